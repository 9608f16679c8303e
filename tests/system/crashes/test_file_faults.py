"""Every file call of a job's life fails once, with each of five errors: nothing is lost, nothing comes out twice.

The calls are counted by the kernel, SQLite's own among them; see `fault_kit`. A job's life is cut into stages, each of
which begins with its own copy of an installation. After the error the same process goes on, as the daemon's threads
would; then everything is started anew and has to find its end.

`LIPSYNCD_TEST_FAULTS` is "all" for every error at every call. A number n there is for every n-th call with one of them,
in turn; `LIPSYNCD_TEST_SEED` says with which call it begins.
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
from tests.kits.daemon_by_hand import Stage, sidecar_taken, taken
from tests.kits.faults.crash_kit import damage, leftovers, visible
from tests.kits.faults.fault_kit import ERRORS, Report, begin, pause, supervised
from tests.kits.installation import Installation
from tests.kits.long_run_figures import count

FAULTS = os.environ.get("LIPSYNCD_TEST_FAULTS", "2")
SEED = int(os.environ.get("LIPSYNCD_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
ROUNDS = 8


@dataclass(frozen=True)
class Fate:
    """One stage: where it begins, a round of its work, when it is over, and what then is wrong.

    start  the start of the parts is itself what fails
    """

    begins: str
    work: Callable[[Stage], None]
    is_over: Callable[[Stage], bool]
    faults: Callable[[Path, Stage], list[str]]
    start: bool = False


# -- the installations that the stages begin with ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an installation for each beginning, made one after the other by real work."""
    root = tmp_path_factory.mktemp("stages")
    first = root / "dropped"
    (first / "home").mkdir(parents=True)
    installation = Installation(first / "home")
    installation.folders.initialise()
    installation.drop_manifest("anna", image="anna.png", audio="anna.wav")
    installation.drop_pair("anna")
    _next(root, "dropped", "accepted", lambda stage: [stage.scan() for _ in range(3)])
    _next(root, "accepted", "prepared", lambda stage: (stage.prepare(), stage.make_video()))
    _next(root, "prepared", "rendered", _render_without_outbox)
    _next(root, "rendered", "staged", _stage_only)
    _next(root, "prepared", "ordered", _order_again)
    (root / "refused" / "home").mkdir(parents=True)
    installation = Installation(root / "refused" / "home")
    installation.folders.initialise()
    installation.drop_manifest("anna", image="../anna.png", audio="anna.wav")
    _next(root, "refused", "to-fail", lambda stage: [stage.scan() for _ in range(3)])
    return root


def _next(root: Path, before: str, after: str, work: Callable[[Stage], object]) -> None:
    shutil.copytree(root / before, root / after)
    stage = Stage(root / after)
    work(stage)
    assert stage.complaints.lines == []
    stage.close()


def _render_without_outbox(stage: Stage) -> None:
    outbox = stage.home.path("outbox")
    outbox.rename(outbox.with_name("away"))
    stage.render()
    outbox.with_name("away").rename(outbox)
    stage.an_hour_passes()
    job = stage.job()
    assert job is not None
    assert job.state is JobState.PUBLISHING


def _order_again(stage: Stage) -> None:
    """A delivered job, and an order to publish it once more."""
    _tidied(stage)
    stage.consume()
    shutil.rmtree(stage.root / "taken")
    job = stage.job()
    assert job is not None
    request = {"action": "republish", "job_id": job.id}
    control_files.write_json(stage.home.folders.control / f"{'0f' * 16}.json", request)


def _stage_only(stage: Stage) -> None:
    """As if killed right after the hidden copies were noted, and with the ledger lost."""
    job = stage.job()
    assert job is not None
    work = stage.spool.open(job)
    assert work.output is not None
    stage.publisher._stage(work, work.output)
    stage.close()
    for path in stage.home.path("state").glob("ledger.db*"):
        path.unlink()


# -- what has to be true at the end of each stage ----------------------------------------------------------------------


def _everywhere(root: Path, stage: Stage) -> list[str]:
    storage = stage.home.root / "storage"
    return [*leftovers(storage), *damage(stage.home.path("state") / "ledger.db"), *stage.complaints.lines]


def _accepted(root: Path, stage: Stage) -> list[str]:
    job, faults = stage.job(), _everywhere(root, stage)
    if job is None or job.state is not JobState.QUEUED or stage.spool.ids() != [job.id]:
        return [*faults, f"job {job}, spool {stage.spool.ids()}"]
    if visible(stage.home.path("inbox")):
        faults.append(f"still in the inbox: {visible(stage.home.path('inbox'))}")
    spec = stage.spool.spec(job.id)
    assert spec is not None
    for source in spec.sources:
        if _sha256(stage.spool.folder(job.id) / source.role) != source.sha256:
            faults.append(f"{source.name} is not what was dropped")
    return faults


def _prepared(root: Path, stage: Stage) -> list[str]:
    job = stage.job()
    ready = job is not None and job.state is JobState.QUEUED and job.prepared and stage.spool.prepared(job.id)
    return [*_everywhere(root, stage), *([] if ready else [f"not prepared: {job}"])]


def _delivered(root: Path, stage: Stage) -> list[str]:
    job, faults = stage.job(), _everywhere(root, stage)
    if job is None or job.state is not JobState.DONE or taken(root) != Counter(["anna.mp4", "anna.json"]):
        return [*faults, f"delivered {dict(taken(root))}, job {job}"]
    [video] = (root / "taken").glob("*.mp4")
    if not _sha256(video) == sidecar_taken(root)["sha256"] == job.out_sha256:
        faults.append("the video is not the one that its sidecar tells of")
    if stage.spool.ids():
        faults.append("the spool is not empty")
    return faults


def _shown_again(root: Path, stage: Stage) -> list[str]:
    """One whole video for an order that was granted; for one that was refused, or not answered, one or none."""
    answers = [json.loads(path.read_text())["ok"] for path in stage.home.folders.control.glob("*.answer")]
    came, faults = taken(root), _everywhere(root, stage)
    if came != Counter(["anna.mp4", "anna.json"]) and (came or answers == [True]):
        return [*faults, f"published again: {dict(came)}, answered {answers}"]
    if came and _sha256(*(root / "taken").glob("*.mp4")) != sidecar_taken(root)["sha256"]:
        faults.append("the video is not the one that its sidecar tells of")
    return faults


def _failed(root: Path, stage: Stage) -> list[str]:
    job, folders, faults = stage.job(), visible(stage.home.path("failed")), _everywhere(root, stage)
    if job is None or (job.state, job.reason_code) != (JobState.FAILED, "unsafe-path") or len(folders) != 1:
        return [*faults, f"job {job}, failed/ {folders}"]
    return faults if sorted(p.name for p in folders[0].iterdir()) == ["anna.json", "job.json", "reason.json"] else ["?"]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is(state: JobState) -> Callable[[Stage], bool]:
    def over(stage: Stage) -> bool:
        job = stage.job()
        return job is not None and job.state is state and not stage.spool.ids()

    return over


def _is_accepted(stage: Stage) -> bool:
    return stage.job() is not None and not stage.intake.release.taken and not stage.intake._rowless


def _is_prepared(stage: Stage) -> bool:
    job = stage.job()
    return job is not None and job.prepared


def _fail(stage: Stage) -> None:
    stage.prepare()
    stage._guarded(stage.finisher.tidy)


def _serve(stage: Stage) -> None:
    stage.serve_control()
    stage._guarded(stage.finisher.tidy)


def _is_answered(stage: Stage) -> bool:
    under_way = [plan for _, plan in stage.finisher.republisher.under_way() if not plan.shown]
    return not control_files.pending(stage.home.folders.control) and not under_way


def _tidied(stage: Stage) -> None:
    stage.render()
    stage._guarded(stage.finisher.tidy)


FATES = {
    "accept": Fate("dropped", Stage.scan, _is_accepted, _accepted),
    "prepare": Fate("accepted", Stage.prepare, _is_prepared, _prepared),
    "render": Fate("prepared", _tidied, _is(JobState.DONE), _delivered),
    "publish": Fate("rendered", _tidied, _is(JobState.DONE), _delivered),
    "fail": Fate("to-fail", _fail, _is(JobState.FAILED), _failed),
    "publish again": Fate("ordered", _serve, _is_answered, _shown_again),
    "recover": Fate("staged", _tidied, _is(JobState.DONE), _delivered, start=True),
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


def lived(root: Path, fate: Fate) -> list[str]:
    """Go on until the stage is over, in the process whose calls may fail; gives what must not be."""
    installation = root / "home"
    if fate.start:
        begin(installation)
    try:
        stage = Stage(root)
    except Exception as error:
        pause(installation)
        return [] if fate.start else [f"did not start: {error!r}"]  # the supervisor starts it again
    begin(installation)
    for _ in range(ROUNDS):
        fate.work(stage)
        stage.an_hour_passes()
        pause(installation)
        stage.consume()
        if fate.is_over(stage):
            break
        begin(installation)
    pause(installation)
    over = fate.is_over(stage)
    complaints = stage.complaints.lines
    stage.close()
    return complaints if over else [*complaints, f"not over after {ROUNDS} rounds"]


def started_anew(root: Path, fate: Fate) -> list[str]:
    """After the process: what a new start makes of it, and what is wrong then."""
    stage = Stage(root)
    for _ in range(ROUNDS):
        stage.consume()
        if fate.is_over(stage):
            break
        fate.work(stage)
    faults = fate.faults(root, stage)
    stage.close()
    return faults


def one(stages: Path, root: Path, fate: Fate, *, fail: int = 0, error: int = 0) -> tuple[Report, list[str]]:
    shutil.copytree(stages / fate.begins, root)
    report = supervised(lambda: lived(root, fate), root / "home", fail=fail, error=error)
    faults = [*(report.value or []), *([report.died] if report.died else []), *started_anew(root, fate)]
    renders = root / "renders"
    if renders.exists() and len(renders.read_text().splitlines()) > 2:
        faults.append("rendered more than once again")
    if not faults:
        shutil.rmtree(root)
    return report, faults


@dataclass(frozen=True)
class Met:
    """One case as it went: the call that failed (None when there were fewer this time), and what was wrong after it."""

    call: str | None
    error: int
    faults: tuple[str, ...]


def met(stages: Path, root: Path, name: str, fail: int, error: int) -> Met:
    report, faults = one(stages, root / f"{fail}-{error}", FATES[name], fail=fail, error=error)
    call = f"call {fail}, {report.calls[fail - 1]}" if len(report.calls) >= fail else None
    return Met(call, error, tuple(faults))


@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("name", FATES)
def test_any_file_call_may_fail_once_with_any_error(stages: Path, tmp_path: Path, name: str) -> None:
    clean, faults = one(stages, tmp_path / "clean", FATES[name])
    assert faults == []
    assert len(clean.calls) > 20
    cases = _cases(len(clean.calls))
    # A process for each core: a fork is supervised by the one that made it, which must have no other threads.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("fork")) as pool:
        running = [pool.submit(met, stages, tmp_path, name, n, error) for n, error in cases]
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
