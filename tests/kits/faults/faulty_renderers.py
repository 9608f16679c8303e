"""Small renderers for tests: `Flat` is quick and correct, the others crash, hang or give a wrong result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipsyncd.errors import NoFaceFound
from lipsyncd.renderers import Scene

NAMES = (
    "flat=tests.kits.faults.faulty_renderers:Flat",
    "slow=tests.kits.faults.faulty_renderers:Slow",
    "abort=tests.kits.faults.faulty_renderers:Abort",
    "killed=tests.kits.faults.faulty_renderers:Killed",
    "raises=tests.kits.faults.faulty_renderers:Raises",
    "hang=tests.kits.faults.faulty_renderers:Hang",
    "hungry=tests.kits.faults.faulty_renderers:Hungry",
    "nurse=tests.kits.faults.faulty_renderers:Nurse",
    "short=tests.kits.faults.faulty_renderers:Short",
    "eventful=tests.kits.faults.faulty_renderers:Eventful",
    "shy=tests.kits.faults.faulty_renderers:Shy",
    "missing=tests.no_such_module:Nothing",
)


@dataclass
class FlatShot:
    """The mean colour of the picture, with a bright bar that moves from frame to frame."""

    scene: Scene
    wait_s: float = 0.0
    notes: Mapping[str, object] = field(default_factory=lambda: {"made_by": "flat"})

    @property
    def width(self) -> int:
        return (self.scene.picture.shape[1] + 1) // 2 * 2 if self.scene.stitch else self.scene.resolution

    @property
    def height(self) -> int:
        return (self.scene.picture.shape[0] + 1) // 2 * 2 if self.scene.stitch else self.scene.resolution

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        return self.span(0, self.scene.frames)

    def span(self, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
        frame = np.empty((self.height, self.width, 3), np.uint8)
        for number in range(start, stop):
            time.sleep(self.wait_s)
            frame[:] = self.scene.picture.mean(axis=(0, 1)).astype(np.uint8)
            frame[: 8 + number % 8] = 200
            yield frame


class Flat:
    """Counts its renders in the file that $TEST_RENDER_COUNT names: one line for each."""

    def __init__(self, device: str) -> None:
        self.device = device

    def open(self, scene: Scene) -> FlatShot:
        count = os.environ.get("TEST_RENDER_COUNT")
        if count:
            line = os.open(count, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(line, f"{int(scene.picture.sum())}\n".encode())
            os.close(line)
        return FlatShot(scene)

    def close(self) -> None:
        pass


class Slow(Flat):
    def open(self, scene: Scene) -> FlatShot:
        super().open(scene)
        return FlatShot(scene, wait_s=0.2)


class Abort(Flat):
    def open(self, scene: Scene) -> FlatShot:
        print("about to abort", flush=True)
        os.abort()


class Killed(Flat):
    def open(self, scene: Scene) -> FlatShot:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")


class Raises(Flat):
    def open(self, scene: Scene) -> FlatShot:
        raise ZeroDivisionError("as asked")


class Hang(Flat):
    def open(self, scene: Scene) -> FlatShot:
        while True:
            time.sleep(3600)


class Eventful(Flat):
    """Has something to say about each of its renders, and while it rests."""

    def open(self, scene: Scene) -> FlatShot:
        super().open(scene)
        return FlatShot(scene, notes={"events": ["the lamp was replaced", 7]})

    def rest(self) -> None:
        Path(os.environ["TEST_RENDER_COUNT"]).write_text("rested")
        raise ZeroDivisionError("as asked")


class Shy(Flat):
    """Sees a face only while $TEST_FACE_IN_VIEW is set."""

    def open(self, scene: Scene) -> FlatShot:
        if not os.environ.get("TEST_FACE_IN_VIEW"):
            raise NoFaceFound("no face in the picture")
        return super().open(scene)


class Hungry(Flat):
    """Takes 10 MB for each frame of a batch of 64, or of fewer if the scene limits the batch."""

    def open(self, scene: Scene) -> FlatShot:
        super().open(scene)
        batch = min(64, scene.max_batch or 64)
        scene.report_batch(batch, 0)
        taken = np.ones((batch, 10_000_000), np.uint8)
        return FlatShot(scene, notes={"batch": len(taken)})


class Nurse(Flat):
    """Hangs beside a helper that ignores SIGHUP, SIGINT and SIGTERM, and records the ids of both processes."""

    def open(self, scene: Scene) -> FlatShot:
        ignore = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; time.sleep(3600)"
        helper = subprocess.Popen([sys.executable, "-c", ignore])
        Path(os.environ["TEST_RENDER_COUNT"]).write_text(f"{os.getpid()} {helper.pid}")
        while True:
            time.sleep(3600)


class Short(Flat):
    """Gives one frame less than requested."""

    def open(self, scene: Scene) -> FlatShot:
        class Shorter(FlatShot):
            def frames(self) -> Iterator[NDArray[np.uint8]]:
                for number, frame in enumerate(super().frames()):
                    if number < self.scene.frames - 1:
                        yield frame

        return Shorter(scene)
