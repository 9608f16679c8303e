"""Every file call of a job's life fails once, with each of five errors: nothing is lost, nothing comes out twice.

The kernel counts the calls, those of SQLite too; see `fault_kit`. A job's life is cut into steps, and each case begins
with its own copy of an installation before its step. After the error the same process goes on, as the daemon's threads
would; then a new start must bring the step to its end.

`LIPSYNCD_TEST_FAULTS` "all" selects every error at every call; a number n selects every n-th call with one of the
errors in turn, and `LIPSYNCD_TEST_SEED` the first call.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import itertools
import json
import mmap
import multiprocessing
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from lipsyncd.jobs.job import JobState
from lipsyncd.storage import control_files
from lipsyncd.storage.files import write_json
from tests.kits.daemon_by_hand import DaemonByHand, sidecar_taken, taken
from tests.kits.faults.crash_kit import damage, leftovers, visible
from tests.kits.faults.fault_kit import ERRORS, Report, begin, pause, supervised
from tests.kits.installation import Installation
from tests.kits.long_run_figures import count

FAULTS = os.environ.get("LIPSYNCD_TEST_FAULTS", "2")
SEED = int(os.environ.get("LIPSYNCD_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
ROUNDS = 8


@dataclass(frozen=True)
class Step:
    """One daemon: where it begins, a round of its work, when it is over, and what then is wrong.

    start  the start of the parts is itself what fails
    """

    begins: str
    work: Callable[[DaemonByHand], None]
    is_over: Callable[[DaemonByHand], bool]
    faults: Callable[[Path, DaemonByHand], list[str]]
    start: bool = False


# -- the installation before each step ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def beginnings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installation before each step, each made from the one before by real work."""
    root = tmp_path_factory.mktemp("beginnings")
    first = root / "dropped"
    (first / "home").mkdir(parents=True)
    installation = Installation(first / "home")
    installation.folders.initialise()
    installation.drop_manifest("anna", image="anna.png", audio="anna.wav")
    installation.drop_pair("anna")
    _next(root, "dropped", "accepted", lambda daemon: [daemon.scan() for _ in range(3)])
    _next(root, "accepted", "prepared", lambda daemon: (daemon.prepare(), daemon.make_video()))
    _next(root, "prepared", "rendered", _render_without_outbox)
    _next(root, "rendered", "staged", _stage_only)
    _next(root, "prepared", "ordered", _order_again)
    (root / "refused" / "home").mkdir(parents=True)
    installation = Installation(root / "refused" / "home")
    installation.folders.initialise()
    installation.drop_manifest("anna", image="../anna.png", audio="anna.wav")
    _next(root, "refused", "to-fail", lambda daemon: [daemon.scan() for _ in range(3)])
    return root


def _next(root: Path, before: str, after: str, work: Callable[[DaemonByHand], object]) -> None:
    shutil.copytree(root / before, root / after)
    daemon = DaemonByHand(root / after)
    work(daemon)
    assert daemon.unexpected.lines == []
    daemon.close()


def _render_without_outbox(daemon: DaemonByHand) -> None:
    outbox = daemon.installation.path("outbox")
    outbox.rename(outbox.with_name("away"))
    daemon.render()
    outbox.with_name("away").rename(outbox)
    daemon.skip_back_offs()
    job = daemon.job()
    assert job is not None
    assert job.state is JobState.PUBLISHING


def _order_again(daemon: DaemonByHand) -> None:
    """A delivered job, and a request to publish it again."""
    _render_and_tidy(daemon)
    daemon.consume()
    shutil.rmtree(daemon.root / "taken")
    job = daemon.job()
    assert job is not None
    request = {"action": "republish", "job_id": job.id}
    write_json(daemon.installation.folders.control / f"{'0f' * 16}.json", request)


def _stage_only(daemon: DaemonByHand) -> None:
    """As after a kill right after the hidden copies were recorded, and with the ledger lost."""
    job = daemon.job()
    assert job is not None
    work = daemon.spool.open(job)
    assert work.output is not None
    daemon.publisher._stage(work, work.output, "anna")
    daemon.close()
    for path in daemon.installation.path("state").glob("ledger.db*"):
        path.unlink()


# -- the faults after each step ----------------------------------------------------------------------------------------


def _everywhere(root: Path, daemon: DaemonByHand) -> list[str]:
    storage = daemon.installation.root / "storage"
    return [*leftovers(storage), *damage(daemon.installation.path("state") / "ledger.db"), *daemon.unexpected.lines]


def _accepted(root: Path, daemon: DaemonByHand) -> list[str]:
    job, faults = daemon.job(), _everywhere(root, daemon)
    if job is None or job.state is not JobState.QUEUED or daemon.spool.ids() != [job.id]:
        return [*faults, f"job {job}, spool {daemon.spool.ids()}"]
    if visible(daemon.installation.path("inbox")):
        faults.append(f"still in the inbox: {visible(daemon.installation.path('inbox'))}")
    spec = daemon.spool.spec(job.id)
    assert spec is not None
    for source in spec.sources:
        if _sha256(daemon.spool.folder(job.id) / source.role) != source.sha256:
            faults.append(f"{source.name} differs from the dropped file")
    return faults


def _prepared(root: Path, daemon: DaemonByHand) -> list[str]:
    job = daemon.job()
    ready = job is not None and job.state is JobState.QUEUED and job.prepared and daemon.spool.prepared(job.id)
    return [*_everywhere(root, daemon), *([] if ready else [f"not prepared: {job}"])]


def _delivered(root: Path, daemon: DaemonByHand) -> list[str]:
    job, faults = daemon.job(), _everywhere(root, daemon)
    if job is None or job.state is not JobState.DONE or taken(root) != Counter(["anna.mp4", "anna.json"]):
        return [*faults, f"delivered {dict(taken(root))}, job {job}"]
    [video] = (root / "taken").glob("*.mp4")
    if not _sha256(video) == sidecar_taken(root)["sha256"] == job.out_sha256:
        faults.append("the video has not the digest of its sidecar")
    if daemon.spool.ids():
        faults.append("the spool is not empty")
    return faults


def _shown_again(root: Path, daemon: DaemonByHand) -> list[str]:
    """One whole video for a request that was granted; one or none if it was refused or not answered."""
    answers = [json.loads(path.read_text())["ok"] for path in daemon.installation.folders.control.glob("*.answer")]
    delivered, faults = taken(root), _everywhere(root, daemon)
    if delivered != Counter(["anna.mp4", "anna.json"]) and (delivered or answers == [True]):
        return [*faults, f"published again: {dict(delivered)}, answered {answers}"]
    if delivered and _sha256(*(root / "taken").glob("*.mp4")) != sidecar_taken(root)["sha256"]:
        faults.append("the video has not the digest of its sidecar")
    return faults


def _failed(root: Path, daemon: DaemonByHand) -> list[str]:
    job, folders, faults = daemon.job(), visible(daemon.installation.path("failed")), _everywhere(root, daemon)
    if job is None or (job.state, job.reason_code) != (JobState.FAILED, "unsafe-path") or len(folders) != 1:
        return [*faults, f"job {job}, failed/ {folders}"]
    return faults if sorted(p.name for p in folders[0].iterdir()) == ["anna.json", "job.json", "reason.json"] else ["?"]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is(state: JobState) -> Callable[[DaemonByHand], bool]:
    def over(daemon: DaemonByHand) -> bool:
        job = daemon.job()
        return job is not None and job.state is state and not daemon.spool.ids()

    return over


def _is_accepted(daemon: DaemonByHand) -> bool:
    return daemon.job() is not None and not daemon.intake.release.taken and not daemon.intake._rowless


def _is_prepared(daemon: DaemonByHand) -> bool:
    job = daemon.job()
    return job is not None and job.prepared


def _fail(daemon: DaemonByHand) -> None:
    daemon.prepare()
    daemon._guarded(daemon.finisher.tidy)


def _serve(daemon: DaemonByHand) -> None:
    daemon.serve_control()
    daemon._guarded(daemon.finisher.tidy)


def _is_answered(daemon: DaemonByHand) -> bool:
    under_way = [plan for _, plan in daemon.finisher.republisher.under_way() if not plan.shown]
    return not control_files.pending(daemon.installation.folders.control) and not under_way


def _render_and_tidy(daemon: DaemonByHand) -> None:
    daemon.render()
    daemon._guarded(daemon.finisher.tidy)


STEPS = {
    "accept": Step("dropped", DaemonByHand.scan, _is_accepted, _accepted),
    "prepare": Step("accepted", DaemonByHand.prepare, _is_prepared, _prepared),
    "render": Step("prepared", _render_and_tidy, _is(JobState.DONE), _delivered),
    "publish": Step("rendered", _render_and_tidy, _is(JobState.DONE), _delivered),
    "fail": Step("to-fail", _fail, _is(JobState.FAILED), _failed),
    "publish again": Step("ordered", _serve, _is_answered, _shown_again),
    "recover": Step("staged", _render_and_tidy, _is(JobState.DONE), _delivered, start=True),
}


def test_a_path_that_lies_across_two_pages_of_memory_is_read_whole(tmp_path: Path) -> None:
    name = b"calls " + b"x" * 100
    path = os.fsencode(tmp_path / os.fsdecode(name))

    def look() -> None:
        begin(tmp_path)
        with mmap.mmap(-1, 2 * mmap.PAGESIZE) as memory:
            at = mmap.PAGESIZE - len(path) + 20
            memory[at : at + len(path) + 1] = path + b"\0"
            view = ctypes.c_char.from_buffer(memory, at)
            ctypes.CDLL(None).mkdir(ctypes.byref(view), 0o700)
            del view

    assert [str(call) for call in supervised(look, tmp_path).calls] == [f"mkdir /{name.decode()}"]


# -- the sweep ---------------------------------------------------------------------------------------------------------


def work_until_over(root: Path, step: Step) -> list[str]:
    """Work until the step is over, in the process whose calls may fail; returns the faults."""
    installation = root / "home"
    if step.start:
        begin(installation)
    try:
        daemon = DaemonByHand(root)
    except Exception as error:
        pause(installation)
        return [] if step.start else [f"did not start: {error!r}"]  # the supervisor starts it again
    begin(installation)
    for _ in range(ROUNDS):
        step.work(daemon)
        daemon.skip_back_offs()
        pause(installation)
        daemon.consume()
        if step.is_over(daemon):
            break
        begin(installation)
    pause(installation)
    over = step.is_over(daemon)
    unexpected = daemon.unexpected.lines
    daemon.close()
    return unexpected if over else [*unexpected, f"not over after {ROUNDS} rounds"]


def restart(root: Path, step: Step) -> list[str]:
    """After that process: start again, work until the step is over, and return the faults."""
    daemon = DaemonByHand(root)
    for _ in range(ROUNDS):
        daemon.consume()
        if step.is_over(daemon):
            break
        step.work(daemon)
    faults = step.faults(root, daemon)
    daemon.close()
    return faults


def one(beginnings: Path, root: Path, step: Step, *, fail: int = 0, error: int = 0) -> tuple[Report, list[str]]:
    shutil.copytree(beginnings / step.begins, root)
    report = supervised(lambda: work_until_over(root, step), root / "home", fail=fail, error=error)
    faults = [*(report.value or []), *([report.died] if report.died else []), *restart(root, step)]
    renders = root / "renders"
    if renders.exists() and len(renders.read_text().splitlines()) > 2:
        faults.append("rendered more than once again")
    if not faults:
        shutil.rmtree(root)
    return report, faults


@dataclass(frozen=True)
class Outcome:
    """One case: the call that failed (None if there were fewer calls this time), and the faults after it."""

    call: str | None
    error: int
    faults: tuple[str, ...]


def outcome_of(beginnings: Path, root: Path, name: str, fail: int, error: int) -> Outcome:
    report, faults = one(beginnings, root / f"{fail}-{error}", STEPS[name], fail=fail, error=error)
    call = f"call {fail}, {report.calls[fail - 1]}" if len(report.calls) >= fail else None
    return Outcome(call, error, tuple(faults))


@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("name", STEPS)
def test_any_file_call_may_fail_once_with_any_error(beginnings: Path, tmp_path: Path, name: str) -> None:
    clean, faults = one(beginnings, tmp_path / "clean", STEPS[name])
    assert faults == []
    assert len(clean.calls) > 20
    cases = _cases(len(clean.calls))
    # A process for each core: the parent of a fork supervises it and must have no other threads.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("fork")) as pool:
        running = [pool.submit(outcome_of, beginnings, tmp_path, name, n, error) for n, error in cases]
        ended = [case.result() for case in running]
    wrong = [f"{errno.errorcode[case.error]} at {case.call}: {fault}" for case in ended for fault in case.faults]
    assert not wrong, "\n".join(wrong)
    reached = sum(case.call is not None for case in ended)
    print(f"LIPSYNCD_TEST_SEED={SEED}, {name}: {len(clean.calls)} calls, {len(cases)} cases, {reached} reached")
    assert reached >= len(cases) * 0.9
    count(f"{'each of five errors' if FAULTS == 'all' else 'an error'} at file calls: {name}", cases=reached)


def _cases(calls: int) -> Sequence[tuple[int, int]]:
    numbers = range(1, calls + 1)
    if FAULTS == "all":
        return list(itertools.product(numbers, ERRORS))
    return [(n, ERRORS[(n + SEED // 7) % len(ERRORS)]) for n in numbers if (n + SEED) % int(FAULTS) == 0]
