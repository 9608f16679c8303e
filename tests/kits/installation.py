"""A whole installation in a scratch folder: its settings, its folders, its real daemon."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lipsyncd.jobs.job import Job, JobState
from lipsyncd.ledger.view import LedgerView
from lipsyncd.settings import Settings, load
from lipsyncd.storage.folders import Folders, folders_of
from tests.kits import forking_daemons
from tests.kits.faults.faulty_renderers import NAMES
from tests.kits.forking_daemons import Forked
from tests.kits.media.preview_people import PEOPLE, portrait

ROOT = Path(__file__).resolve().parents[2]
READY = " ready in "  # stands in the log after each start
WAIT_S = 150.0  # on an idle machine nothing takes a tenth of it


def picture(seed: int = 0, width: int = 80, height: int = 72) -> bytes:
    """A PNG with pixels of this seed alone."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@cache
def face(seed: int = 0) -> bytes:
    """A PNG of a painted person, for renderers that look for a face; with pixels of this seed in a corner."""
    pixels = portrait(PEOPLE["ada"], 160)
    pixels[:8, :8] = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def sound(seconds: float = 0.3, seed: int = 0, rate: int = 16_000) -> bytes:
    """A mono 16-bit WAV of a tone with a little noise of this seed."""
    count = round(seconds * rate)
    t = np.arange(count) / rate
    noise = np.random.default_rng(seed).normal(0, 0.01, count)
    samples = np.clip((0.4 * np.sin(2 * np.pi * 220 * t) + noise) * 32767, -32768, 32767).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def put(folder: Path, name: str | bytes, content: bytes) -> Path:
    """Write a file under a hidden name, then rename it."""
    hidden = folder / f".{os.urandom(6).hex()}.part"
    hidden.write_bytes(content)
    target = Path(os.fsdecode(os.path.join(os.fsencode(folder), os.fsencode(name))))
    hidden.rename(target)
    return target


@dataclass
class Installation:
    """Paths, settings and helpers for one scratch installation. Settings are changed before the daemon starts.

    run_as  what comes before a command to run it as another user
    python  the interpreter of daemon and commands
    """

    root: Path
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    daemon: subprocess.Popen[bytes] | Forked | None = None
    run_as: Sequence[str] = ()
    python: str = sys.executable

    @property
    def config(self) -> Path:
        sections = {
            "paths": {"storage": str(self.root / "storage"), "min_free_mb": 1},
            "watch": {"settle_s": 0.3, "settle_proven_s": 0.05, "rescan_s": 1.0},
            "render": {"renderer": "flat", "renderers": list(NAMES), "devices": ["cpu"], "stop_grace_s": 5},
            "output": {"resolution": 64, "preset": "ultrafast"},
            "web": {"enabled": False, "port": 0},
        }
        sections["render"]["environment"] = ["TEST_RENDER_COUNT", "TEST_FACE_IN_VIEW"]
        for section, values in self.changes.items():
            sections.setdefault(section, {}).update(values)
        text = "".join(
            f"[{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items())
            for name, values in sections.items()
        )
        path = self.root / "lipsyncd.toml"
        path.write_text(text)
        return path

    @property
    def settings(self) -> Settings:
        return load(self.config, environ={"HOME": str(self.root)})

    @property
    def folders(self) -> Folders:
        return folders_of(self.settings.paths)

    def path(self, kind: str) -> Path:
        return Path(self.changes.get("paths", {}).get(kind, self.root / "storage" / kind))

    @property
    def view(self) -> LedgerView:
        return LedgerView(self.path("state") / "ledger.db")

    @property
    def log(self) -> str:
        return (self.root / "daemon.log").read_text(errors="replace")

    @property
    def renders(self) -> int:
        """How many renders the renderer has counted."""
        count = self.root / "renders"
        return len(count.read_text().splitlines()) if count.exists() else 0

    def environment(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "TMPDIR")}
        own = {"PYTHONPATH": str(ROOT), "TEST_RENDER_COUNT": str(self.root / "renders"), "HOME": str(self.root)}
        own["XDG_RUNTIME_DIR"] = str(self.root)  # where a daemon leaves its pointer
        own["OPENBLAS_NUM_THREADS"] = "1"  # a thread for each core costs a small render half of its time
        return {**kept, **own, **more}

    # -- the daemon ----------------------------------------------------------------------------------------------------

    def start(self, *, wait: bool = True, fresh: bool = False, **environment: str) -> subprocess.Popen[bytes] | Forked:
        """Start the daemon: a fork of a process that has imported everything, or with `fresh` a new interpreter."""
        arguments = ["--config", str(self.config), "run"]
        log, variables = self.root / "daemon.log", self.environment(**environment)
        log.touch()
        starts = self.log.count(READY)
        if fresh or self.run_as or environment.keys() & {"LD_PRELOAD", "PYTHONPATH"}:
            with log.open("ab") as output:
                command = [*self.run_as, self.python, "-m", "lipsyncd", *arguments]
                self.daemon = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stderr=output, stdout=output, env=variables
                )
        else:
            self.daemon = forking_daemons.shared().start(arguments, log, variables)
        if wait:
            self.until(lambda: self.log.count(READY) > starts or self.daemon.poll() is not None, "the daemon's start")
            assert self.daemon.poll() is None, self.log
        return self.daemon

    def stop(self) -> int:
        assert self.daemon is not None
        self.daemon.send_signal(signal.SIGTERM)
        status = self.daemon.wait(30)
        self.daemon = None
        return status

    def kill(self) -> None:
        assert self.daemon is not None
        self.daemon.kill()
        self.daemon.wait(10)
        self.daemon = None

    @contextmanager
    def running(self, *, fresh: bool = False, **environment: str) -> Iterator[Installation]:
        self.start(fresh=fresh, **environment)
        try:
            yield self
        finally:
            if self.daemon is not None:
                assert self.stop() == 0, self.log

    def cli(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [self.python, "-m", "lipsyncd", "--config", str(self.config), *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=self.environment(**environment), check=False
        )

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def drop_pair(self, stem: str, *, seed: int = 0, seconds: float = 0.3, with_face: bool = False) -> None:
        put(self.path("inbox"), f"{stem}.png", face(seed) if with_face else picture(seed))
        put(self.path("inbox"), f"{stem}.wav", sound(seconds, seed))

    def drop_manifest(self, name: str, **fields: Any) -> None:
        put(self.path("inbox"), f"{name}.json", json.dumps(fields).encode())

    def until(self, done: Callable[[], Any], what: str, *, seconds: float = WAIT_S) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = done()
            if found:
                return found
            time.sleep(0.02)
        log = self.log if (self.root / "daemon.log").exists() else ""
        raise AssertionError(f"{what} did not come within {seconds} s\n{log[-3000:]}")

    def job(self, name: str) -> Job | None:
        """The newest job of that name."""
        return next(
            iter(sorted((j for j in self.view.jobs(limit=10_000) if j.name == name), key=lambda j: -j.seq)), None
        )

    def until_state(self, name: str, *states: JobState, seconds: float = WAIT_S) -> Job:
        def there() -> Job | None:
            job = self.job(name)
            return job if job is not None and job.state in states else None

        found: Job = self.until(there, f"job {name} in {[*map(str, states)]}", seconds=seconds)
        return found

    def until_done(self, name: str) -> Job:
        job = self.until_state(name, JobState.DONE, JobState.FAILED, JobState.CANCELLED)
        assert job.state is JobState.DONE, f"{job.reason_code}: {job.reason}"
        return job

    def until_failed(self, name: str) -> Job:
        job = self.until_state(name, JobState.DONE, JobState.FAILED, JobState.CANCELLED)
        assert job.state is JobState.FAILED, job
        self.until(lambda: not (self.path("spool") / job.id).exists(), "the failed job's folder")
        return self.view.get(job.id)

    def reason(self, job: Job) -> dict[str, Any]:
        """The content of a failed job's `reason.json`."""
        kept = self.view.get(job.id).kept
        assert kept is not None
        content: dict[str, Any] = json.loads((Path(kept) / "reason.json").read_text())
        return content

    def sidecar(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.path("outbox") / f"{name}.json").read_text())
        return content
