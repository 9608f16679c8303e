"""All parts of a daemon without its threads: a test takes each step of a job's life by a call."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import text

from lipsyncd.daemon.commands import carry_out
from lipsyncd.daemon.recovery import open_ledger, recover
from lipsyncd.errors import LipsyncdError
from lipsyncd.inbox.accept import Intake
from lipsyncd.inbox.scan import Inbox, rules_of
from lipsyncd.jobs.job import Job, JobState
from lipsyncd.media.ffmpeg import find
from lipsyncd.prepare.fetcher import Fetcher
from lipsyncd.prepare.preparer import Preparer
from lipsyncd.results.failures import Failures
from lipsyncd.results.finish import Finisher
from lipsyncd.results.publish import Publisher
from lipsyncd.results.stores import stores_of
from lipsyncd.settings import CurrentSettings
from lipsyncd.storage import control_files
from lipsyncd.weights import AutoPull, store_of
from lipsyncd.worker.batch_limits import BatchLimits
from lipsyncd.worker.child_process import LocalChild, Timeouts
from lipsyncd.worker.device import Device
from lipsyncd.worker.loop import Worker
from lipsyncd.worker.protocol import Render, Result
from lipsyncd.worker.render_request import render_request
from tests.kits.core_kit import Clock
from tests.kits.installation import Installation

VIDEO = "ready.mp4"  # beside the installation: the result of every render


class ReadyMade:
    """In place of a render child: copies a video that was made before, by a program, and counts the renders."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def start(self) -> None:
        pass

    def render(self, request: Render, **_: object) -> Result:
        target = Path(request.folder, request.out_file)
        subprocess.run(["/bin/cp", self._root / VIDEO, target], check=True, stdin=subprocess.DEVNULL)
        with open(self._root / "renders", "a") as count:
            count.write("1\n")
        return Result(request.job_id, request.frames, 64, 64, 0.1, {})

    def idle_s(self) -> float:
        return 0.0

    def close(self) -> None:
        pass


class UnexpectedErrors(logging.Handler):
    """What was logged with a traceback: unexpected failures."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.lines.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


class DaemonByHand:
    """The parts of one daemon, started for the installation under `root/home`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.installation = installation = Installation(root / "home")
        self.unexpected = UnexpectedErrors()
        logging.getLogger("lipsyncd").addHandler(self.unexpected)
        folders = installation.folders
        settings = self.settings = CurrentSettings(installation.settings)
        self.clock = Clock()
        self.ledger = open_ledger(folders.state / "ledger.db")
        self.stores = stores_of(settings, folders, self.ledger)
        self.finisher = Finisher(self.stores)
        self.failures = Failures(self.stores, self.finisher)
        self.publisher = Publisher(self.stores, self.finisher, self.failures)
        self.spool = self.stores.spool
        inbox = Inbox(folders.shared["inbox"], rules_of(settings.now), network=False, clock=self.clock)
        self.intake = Intake(settings, inbox, self.spool, self.ledger)
        recover(self.intake.register, self.stores, self.finisher)
        self.fetcher = Fetcher(self.stores.settings, lambda: None)
        self.preparer = Preparer(self.stores, self.finisher, self.failures, self.publisher, find(), self.fetcher)
        self.worker = self._worker(ReadyMade(root))

    def _worker(self, executor: ReadyMade | LocalChild) -> Worker:
        weights = AutoPull(store_of(self.settings.now), allowed=False)
        return Worker(
            Device("cpu", executor, find(), weights, BatchLimits(self.installation.path("state") / "ceilings.json")),
            self.stores,
            self.finisher,
            self.failures,
            self.publisher,
            stopping=threading.Event().is_set,
            cut_off=threading.Event().is_set,
        )

    def close(self) -> None:
        logging.getLogger("lipsyncd").removeHandler(self.unexpected)
        self.fetcher.close()
        self.ledger.close()

    # -- steps, as the daemon's threads take them ----------------------------------------------------------------------

    def scan(self) -> None:
        self.clock.wait(1.0)
        self._guarded(self.intake.scan)

    def prepare(self) -> None:
        self._guarded(self.preparer.run_once)

    def render(self) -> None:
        self.worker.round()

    def serve_control(self) -> None:
        def serve() -> None:
            control = self.stores.folders.control
            for name, request in control_files.pending(control):
                control_files.answer(control, name, carry_out(request, self.stores, self.finisher))

        self._guarded(serve)

    def make_video(self) -> None:
        """Make the prepared job's video with a real child and keep it beside the installation; requeue the job."""
        child = LocalChild(
            "cpu", lambda: Timeouts(60.0, 60.0, 60.0), renderers=self.installation.settings.render.renderers
        )
        job = self.ledger.claim("cpu", "made")
        assert job is not None
        spec, prepared = self.spool.spec(job.id), self.spool.prepared(job.id)
        assert spec is not None
        assert prepared is not None
        target = self.spool.partial_render(job.id, "made")
        request = render_request(spec, prepared, target, output=self.settings.now.output, ffmpeg=find())
        child.render(request, progress=lambda _: None, stop=lambda: False)
        child.close()
        shutil.move(self.spool.partial_render(job.id, "made"), self.root / VIDEO)
        self.ledger.requeue(job.id, note="made", charge=False)

    def _guarded(self, work: Callable[[], object]) -> None:
        try:
            work()
        except (LipsyncdError, OSError) as error:
            logging.getLogger("lipsyncd").warning("%s", error)
        except Exception as error:
            self.unexpected.lines.append(f"unexpected: {error!r}")

    def skip_back_offs(self) -> None:
        """Every back-off is over."""

        def due() -> None:
            with self.ledger._write() as session:
                session.execute(text("UPDATE job SET not_before_ms = 0"))

        self._guarded(due)

    # -- results -------------------------------------------------------------------------------------------------------

    def job(self) -> Job | None:
        """The only job; AssertionError when there are more."""
        jobs = self.ledger.in_state(*JobState)
        assert len(jobs) <= 1, jobs
        return jobs[0] if jobs else None

    def consume(self) -> None:
        """Move every visible file of the outbox away, as a consumer does."""
        taken = self.root / "taken"
        taken.mkdir(exist_ok=True)
        for path in self.installation.path("outbox").iterdir():
            if not path.name.startswith("."):
                os.rename(path, taken / f"{len(os.listdir(taken))}-{path.name}")


def taken(root: Path) -> Counter[str]:
    """How often a consumer has got each file name from an installation."""
    folder = root / "taken"
    return Counter(path.name.partition("-")[2] for path in folder.iterdir()) if folder.exists() else Counter()


def sidecar_taken(root: Path) -> dict[str, object]:
    [path] = (root / "taken").glob("*.json")
    content: dict[str, object] = json.loads(path.read_text())
    return content
