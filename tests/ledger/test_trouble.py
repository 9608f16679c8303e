"""A ledger that is unavailable for a while: no job fails, is repeated or is lost, and no thread ends."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from lipsyncd.jobs.job import JobState
from lipsyncd.worker.protocol import Progress, Render, Result
from tests.kits.installation import Installation
from tests.kits.jobs_by_hand import JobsByHand
from tests.kits.media.video_kit import make

GIVEN_UP = "ledger.db: database is locked"


@contextmanager
def locked(installation: Installation) -> Iterator[None]:
    """Another process holds the write lock of the ledger for longer than we wait."""
    with closing(sqlite3.connect(installation.path("state") / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def test_the_daemon_waits_for_a_locked_ledger(installation: Installation) -> None:
    with installation.running():
        with locked(installation):
            installation.drop_pair("anna")
            installation.until(lambda: GIVEN_UP in installation.log, "the first attempt that was given up")
        installation.until_done("anna")
        assert installation.renders == 1
    assert "Traceback" not in installation.log


class LockedOut:
    """Renders, and locks the ledger during the render; the lock stays until `free`."""

    def __init__(self, by_hand: JobsByHand, video: bytes) -> None:
        self.renders = 0
        self._video = video
        self._other = sqlite3.connect(by_hand.ledger.path, isolation_level=None)
        with by_hand.ledger._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA busy_timeout=50")

    def start(self) -> None:
        pass

    def render(
        self, request: Render, *, progress: Callable[[Progress], None], stop: Callable[[], bool], **_: object
    ) -> Result:
        self.renders += 1
        self._other.execute("BEGIN IMMEDIATE")
        progress(Progress(request.job_id, "rendering", 1, 8))
        assert not stop()
        Path(request.folder, request.out_file).write_bytes(self._video)
        return Result(request.job_id, request.frames, 64, 64, 0.1, {})

    def free(self) -> None:
        self._other.execute("ROLLBACK")
        self._other.close()

    def idle_s(self) -> float:
        return 0.0

    def close(self) -> None:
        pass


def test_a_render_whose_end_cannot_be_written_is_not_done_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Locked during the render, and until the worker has given up writing its result."""
    made = make(tmp_path, width=64, height=64, samples=9600)
    by_hand = JobsByHand(tmp_path / "installation")
    job_id = by_hand.queued()
    executor = LockedOut(by_hand, made.path.read_bytes())
    worker = by_hand.worker(executor)
    assert not worker.round()
    assert "database is locked" in caplog.text
    executor.free()
    assert by_hand.job(job_id).state is JobState.RUNNING
    worker.round()
    worker.round()
    assert (by_hand.job(job_id).state, by_hand.job(job_id).attempt) == (JobState.DONE, 1)
    assert executor.renders == 1
    assert not [record for record in caplog.records if record.exc_info]
    by_hand.close()
