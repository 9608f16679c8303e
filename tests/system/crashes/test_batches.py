"""Several drops that are accepted together: SIGKILL within each step of the batch, and its shared fsyncs in order.

Whatever happens to one of them, the others are accepted, and each becomes exactly one job with the bytes of its drop.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from lipsyncd.jobs.job import JobState, new_id
from lipsyncd.storage.failpoints import arm
from tests.kits.daemon_by_hand import DaemonByHand
from tests.kits.faults.crash_kit import damage, leftovers, visible
from tests.kits.faults.fault_kit import Report, begin, supervised
from tests.kits.faults.trace_kit import CALLS, Event, is_commit, read, traced
from tests.kits.installation import Installation
from tests.kits.long_run_figures import count

PAIRS = ("anna", "bert", "cleo", "dora")
REFUSED = "nobody"  # a manifest with a path out of the inbox
ORDERED = "anna"  # a pair with a manifest and an id of its own
STEPS = (
    "accept-staging", "accept-copied", "accept-before-commit", "accept-renamed", "accept-committed",
    "ledger-before-commit", "intake-inserted", "intake-before-unlink", "removal-taken", "intake-unlinked",
)  # fmt: skip
SCANS = 3  # one finds the drops, one takes them, one goes on where an error has stopped it


@pytest.fixture(scope="module")
def dropped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an installation whose inbox holds five drops."""
    root = tmp_path_factory.mktemp("dropped")
    (root / "home").mkdir()
    installation = Installation(root / "home")
    installation.folders.initialise()
    installation.drop_manifest(ORDERED, id=new_id(), image="anna.png", audio="anna.wav")
    installation.drop_manifest(REFUSED, image="../anna.png", audio="anna.wav")
    for seed, name in enumerate(PAIRS):
        installation.drop_pair(name, seed=seed)
    return root


def take(root: Path) -> None:
    daemon = DaemonByHand(root)
    for _ in range(SCANS):
        daemon.scan()
    daemon.close()


def faults(root: Path) -> list[str]:
    """What is wrong after all has been taken: the jobs, the bytes of their inputs, and what was left anywhere."""
    daemon = DaemonByHand(root)
    jobs = daemon.ledger.in_state(*JobState)
    found = sorted(job.name for job in jobs)
    wrong = [] if found == sorted([*PAIRS, REFUSED]) else [f"the jobs are {found}"]
    if sorted(job.id for job in jobs) != daemon.spool.ids():
        wrong.append(f"the spool holds {daemon.spool.ids()}")
    for job in jobs:
        spec = daemon.spool.spec(job.id)
        assert spec is not None
        for source in spec.sources:
            copied = (daemon.spool.folder(job.id) / source.role).read_bytes()
            if hashlib.sha256(copied).hexdigest() != source.sha256:
                wrong.append(f"{job.name}: {source.role} is not what was dropped")
        if {source.name.partition(".")[0] for source in spec.sources} != {job.name}:
            wrong.append(f"{job.name} has {[source.name for source in spec.sources]}")
    if left := visible(daemon.installation.path("inbox")):
        wrong.append(f"still in the inbox: {left}")
    wrong += daemon.unexpected.lines
    daemon.close()
    return [*wrong, *leftovers(root / "home/storage"), *damage(daemon.installation.path("state") / "ledger.db")]


def in_fork(work: Callable[[], object]) -> int:
    """Do it in a process of its own; gives how that ended, as `os.waitpid` does."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


# -- kills -------------------------------------------------------------------------------------------------------------


def outcome_of(dropped: Path, root: Path, places: Sequence[str], without_ledger: bool) -> tuple[list[bool], list[str]]:
    """Kill a process at each of these places, one after the other; gives which were reached, and what is wrong."""
    shutil.copytree(dropped, root)
    died = []
    for place in places:
        died.append(in_fork(lambda at=place: (arm(at), take(root))) == signal.SIGKILL)
        if without_ledger:
            for path in (root / "home/storage/state").glob("ledger.db*"):
                path.unlink()
    if in_fork(lambda: take(root)):
        return died, [f"{places}: the last process has failed"]
    wrong = faults(root)
    if not wrong:
        shutil.rmtree(root)
    return died, [f"{' then '.join(places)}{', without ledger' * without_ledger}: {fault}" for fault in wrong]


@pytest.mark.timeout(600)
def test_a_kill_within_a_batch_costs_no_drop_and_doubles_none(dropped: Path, tmp_path: Path) -> None:
    jobs, files = len(PAIRS) + 1, 2 * len(PAIRS) + 2
    times = dict.fromkeys(STEPS, jobs) | {"accept-before-commit": 1, "accept-committed": 1, "intake-unlinked": 1}
    times |= {"ledger-before-commit": 2, "intake-before-unlink": files, "removal-taken": files}
    singly = [(f"{name}:{number}",) for name in STEPS for number in sorted({1, 2, times[name]} - {times[name] + 1})]
    twice = [(first, second) for (first,), (second,) in itertools.islice(itertools.pairwise(singly), 0, None, 3)]
    cases = [*singly, *twice]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("fork")) as pool:
        running = [
            pool.submit(outcome_of, dropped, tmp_path / str(number), places, number % 3 == 2)
            for number, places in enumerate(cases)
        ]
        ended = [case.result() for case in running]
    wrong = [fault for _, found in ended for fault in found]
    assert not wrong, "\n".join(wrong)
    never = [places[0] for places, (died, _) in zip(cases, ended, strict=True) if not died[0]]
    assert never == []
    kills = sum(sum(died) for died, _ in ended)
    assert kills > len(cases)
    count(f"kill within each step of a batch of {jobs} drops, and at pairs of them", cases=len(cases), kills=kills)


# -- errors ------------------------------------------------------------------------------------------------------------


def taken_once(root: Path) -> list[str]:
    """Scan until the drops are found and taken once; gives the names of the jobs."""
    daemon = DaemonByHand(root)
    daemon.scan()
    begin(root / "home")
    daemon.scan()
    return sorted(job.name for job in daemon.ledger.in_state(*JobState))


def failed_at(dropped: Path, root: Path, number: int = 0, error: int = errno.EIO) -> Report:
    shutil.copytree(dropped, root)
    return supervised(lambda: taken_once(root), root / "home", fail=number, error=error)


def test_a_drop_whose_fsync_fails_waits_and_the_others_are_accepted(dropped: Path, tmp_path: Path) -> None:
    clean = failed_at(dropped, tmp_path / "clean")
    assert clean.value == sorted([*PAIRS, REFUSED]), clean.died
    syncs = [number for number, call in enumerate(clean.calls, start=1) if call.name == "fsync"]
    staged = [number for number in syncs if ".tmp-" in clean.calls[number - 1].path]
    assert len(staged) == 2 * len(PAIRS) + 2 + 2 * (len(PAIRS) + 1)  # the files, and job.json and the folder of each
    for number in staged[:: len(staged) // 6]:
        report = failed_at(dropped, tmp_path / str(number), number)
        assert len(report.value) == len(PAIRS), report.died
        take(tmp_path / str(number))
        assert faults(tmp_path / str(number)) == []


def test_when_the_shared_fsync_of_the_names_fails_all_of_them_wait(dropped: Path, tmp_path: Path) -> None:
    clean = failed_at(dropped, tmp_path / "clean")
    [root_sync] = [
        number
        for number, call in enumerate(clean.calls, start=1)
        if (call.name, call.path) == ("fsync", "/storage/spool")
    ]
    report = failed_at(dropped, tmp_path / "failed", root_sync)
    assert report.value == []
    take(tmp_path / "failed")
    assert faults(tmp_path / "failed") == []


# -- the order of the calls --------------------------------------------------------------------------------------------


def test_a_batch_shares_its_fsyncs_and_each_job_in_it_keeps_the_order(dropped: Path, tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    shutil.copytree(dropped / "home", tmp_path, dirs_exist_ok=True)
    installation.changes = {"render": {"renderer": "missing"}}
    with traced(installation, tmp_path / "trace", CALLS, "-s", "64"):
        installation.until(lambda: sum(installation.view.counts().values()) == len(PAIRS) + 1, "the acceptance of all")
        installation.until(lambda: not visible(installation.path("inbox")), "an empty inbox")
    events = read(tmp_path / "trace")
    spool, inbox = str(installation.path("spool")), str(installation.path("inbox"))
    renames = [e for e in events if e.name == "rename" and e.path.startswith(f"{spool}/.tmp-") and e.paths[1] != e.path]
    accepted = [e for e in renames if ".tmp-" not in e.paths[1]]
    assert len(accepted) == len(PAIRS) + 1
    batches = _batches(accepted, [e for e in events if e.is_sync and e.path == spool])
    assert len(batches) < len(accepted), "no two drops were accepted together, so nothing was proved"
    for names_kept, renamed in batches:
        for rename in renamed:
            _was_durable_before(rename, events)
        commit = next(e for e in events if is_commit(e) and e.begin > names_kept.end and e.thread == names_kept.thread)
        taken = [e for e in events if e.name.startswith("rename") and Path(e.path).parent == Path(inbox)]
        first_taken = min((e for e in taken if e.begin > names_kept.end), key=lambda e: e.begin)
        assert first_taken.begin > commit.end
        assert any(
            e.is_sync and e.path == commit.path and commit.end < e.begin and e.end < first_taken.begin for e in events
        )


def _batches(accepted: Sequence[Event], syncs: Sequence[Event]) -> list[tuple[Event, list[Event]]]:
    """The fsyncs of the spool's names, each with the renames that it has made durable."""
    found: dict[Event, list[Event]] = {}
    for rename in accepted:
        kept = next(e for e in syncs if e.begin > rename.end)
        found.setdefault(kept, []).append(rename)
    return list(found.items())


def _was_durable_before(rename: Event, events: Sequence[Event]) -> None:
    """Every file of the folder, and its names, were fsynced between their making and the rename."""
    staging = rename.path
    made = [
        e
        for e in events
        if e.name.startswith("open") and "O_CREAT" in e.arguments and Path(e.path).parent == Path(staging)
    ]
    assert len(made) >= 2
    last = max(made, key=lambda e: e.end)
    for path, after in [*((e.path, e) for e in made), (staging, last)]:
        assert any(e.is_sync and e.path == path and e.begin > after.end and e.end < rename.begin for e in events), path
