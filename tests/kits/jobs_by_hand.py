"""An installation without threads: a test brings a job to a state by a call."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lipsyncd.daemon.recovery import recover
from lipsyncd.inbox.accept import Intake
from lipsyncd.inbox.scan import Inbox, rules_of
from lipsyncd.jobs.job import Job, JobSpec, JobState, SourceFile, new_id
from lipsyncd.jobs.prepared import Output, Picture, Prepared, Sound
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.media.ffmpeg import find
from lipsyncd.results.failures import Failures
from lipsyncd.results.finish import Finisher
from lipsyncd.results.publish import Publisher
from lipsyncd.results.stores import stores_of
from lipsyncd.settings import CurrentSettings, Paths, Settings
from lipsyncd.storage.files import identity
from lipsyncd.storage.folders import folders_of
from lipsyncd.storage.private_folder import HIDDEN
from lipsyncd.storage.spool import Spool
from lipsyncd.weights import AutoPull, store_of
from lipsyncd.worker.batch_limits import BatchLimits
from lipsyncd.worker.child_process import Executor
from lipsyncd.worker.device import Device
from lipsyncd.worker.loop import Worker
from tests.kits.core_kit import spec_of


def raw_inputs(folder: Path, *, seconds: float = 0.2) -> Prepared:
    """Write what the jail writes into a job's folder: a grey picture, and a tone for the renderer and for the MP4."""
    (folder / "picture.rgb").write_bytes(bytes([128]) * (80 * 72 * 3))
    counts = {}
    for name, rate in (("speech.s16", 16_000), ("sound.s16", 48_000)):
        counts[name] = round(seconds * rate)
        tone = 8000 * np.sin(2 * np.pi * 220 * np.arange(counts[name]) / rate)
        (folder / name).write_bytes(tone.astype("<i2").tobytes())
    sound = Sound("speech.s16", counts["speech.s16"], "sound.s16", counts["sound.s16"], 48_000, 1)
    return Prepared(Picture("picture.rgb", 80, 72), sound)


class Claiming(Spool):
    """A spool in which a worker claims the next job while an ending is written."""

    ledger: Ledger

    def set_ending(self, job_id: str, ending: Mapping[str, Any]) -> None:
        super().set_ending(job_id, ending)
        self.ledger.claim("cpu", "token")


class JobsByHand:
    """Folders, spool, ledger, outbox and finisher of an installation. `sections` are sections of the settings."""

    def __init__(self, root: Path, **sections: Any) -> None:
        self.settings = Settings(Paths(storage=root), **sections)
        self.folders = folders_of(self.settings.paths)
        self.folders.initialise()
        self.ledger = Ledger(self.folders.state / "ledger.db")
        self.open_stores()

    def open_stores(self) -> None:
        """Make the parts that work on jobs, for the folders and the ledger as they are set."""
        self.stores = stores_of(CurrentSettings(self.settings), self.folders, self.ledger)
        self.finisher = Finisher(self.stores)
        self.failures = Failures(self.stores, self.finisher)
        self.publisher = Publisher(self.stores, self.finisher, self.failures)
        self.spool, self.outbox = self.stores.spool, self.stores.outbox

    def close(self) -> None:
        self.ledger.close()

    def queued(self, name: str = "anna", *, max_attempts: int = 3, **changes: Any) -> str:
        """An accepted job with two inputs, prepared."""
        job_id = new_id()

        def fill(folder: Path) -> JobSpec:
            sources = []
            for role, file in (("image", f"{name}.png"), ("audio", f"{name}.wav")):
                (folder / role).write_text(file)
                seen = identity(folder / role)
                assert seen is not None
                digest = hashlib.sha256(file.encode()).hexdigest()
                sources.append(SourceFile(role, file, seen, digest))
            return spec_of(name, id=job_id, sources=tuple(sources), **changes)

        spec = self.spool.accept(job_id, fill)
        self.spool.set_prepared(job_id, raw_inputs(self.spool.folder(job_id)))
        self.ledger.insert(spec, max_attempts=max_attempts)
        self.ledger.set_released([job_id])
        self.ledger.set_prepared(job_id, frames=25, duration_ms=1000)
        return job_id

    def running(self, name: str = "anna") -> str:
        job_id = self.queued(name)
        assert self.ledger.claim("cpu", "token") is not None
        return job_id

    def rendered(self, name: str = "anna", content: bytes = b"a video") -> str:
        """A job whose video is in the spool and waits to be published."""
        job_id = self.running(name)
        self.finish_render(job_id, content)
        return job_id

    def finish_render(self, job_id: str, content: bytes = b"a video") -> None:
        """Store the finished video of a running job, as the worker does."""
        partial = self.spool.partial_render(job_id, "token")
        partial.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        self.spool.keep_output(job_id, partial, Output(digest, len(content), 25, 64, 64, 500, 1000, 1, {}))
        self.ledger.to_publishing(job_id, token="token", sha256=digest, size=len(content), frames=25, render_ms=500)

    def published(self, name: str = "anna", content: bytes = b"a video") -> str:
        job_id = self.rendered(name, content)
        assert self.publish(job_id).state is JobState.DONE
        return job_id

    def publish(self, job_id: str) -> Job:
        """One try; gives the job afterwards. Raises what the publisher raises."""
        return self.publisher.publish(self.spool.open(self.job(job_id)))

    def try_publish(self, job_id: str) -> Job:
        """One try as the worker makes it; gives the job afterwards."""
        self.publisher.try_publish(self.job(job_id))
        return self.job(job_id)

    def worker(self, executor: Executor, *, cut_off: bool = False) -> Worker:
        """A worker for the device "cpu" that renders by `executor`; `cut_off`: the daemon stops and waits no longer."""
        weights = AutoPull(store_of(self.settings), allowed=False)
        return Worker(
            Device("cpu", executor, find(), weights, BatchLimits(self.folders.state / "ceilings.json")),
            self.stores,
            self.finisher,
            self.failures,
            self.publisher,
            stopping=lambda: False,
            cut_off=lambda: cut_off,
        )

    def restart(self) -> None:
        """Recover, as the daemon does before its first scan."""
        inbox = Inbox(self.folders.shared["inbox"], rules_of(self.settings), network=False)
        intake = Intake(CurrentSettings(self.settings), inbox, self.spool, self.ledger)
        recover(intake.register, self.stores, self.finisher)

    def job(self, job_id: str) -> Job:
        return self.ledger.get(job_id)

    def path(self, kind: str) -> Path:
        """Where a shared folder lies."""
        return Path(self.folders.shared[kind].where)

    def shown(self, kind: str = "outbox") -> list[str]:
        return sorted(p.name for p in self.path(kind).iterdir() if p.name != HIDDEN)

    def hidden(self) -> list[str]:
        return sorted(p.name for p in (self.path("outbox") / HIDDEN).glob("*.part"))

    def unmount(self, kind: str) -> None:
        folder = self.path(kind)
        folder.rename(folder.with_name(f"{kind} away"))
        folder.mkdir()

    def mount(self, kind: str) -> None:
        folder = self.path(kind)
        folder.rmdir()
        folder.with_name(f"{kind} away").rename(folder)

    def sidecar(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.path("outbox") / f"{name}.json").read_text())
        return content

    def let_a_worker_claim_while_an_ending_is_written(self) -> None:
        spool = Claiming(self.spool.root)
        spool.ledger = self.ledger
        self.stores.spool = spool
