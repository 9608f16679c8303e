"""Renderers that break the protocol with the daemon, or start processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from lipsyncd.errors import NoFaceFound
from lipsyncd.renderers import Scene
from lipsyncd.worker.protocol import Message, Result, to_line
from tests.kits.faults.faulty_renderers import Flat, FlatShot


def line() -> int:
    """The descriptor of this child's socket to the daemon."""
    return int(next(a for a in sys.argv if a.startswith("--line=")).partition("=")[2])


def say(what: bytes | Message) -> None:
    os.write(line(), what if isinstance(what, bytes) else to_line(what))


class Garbage(Flat):
    def open(self, scene: Scene) -> FlatShot:
        say(b"once upon a time\n")
        time.sleep(3600)
        raise AssertionError


class Endless(Flat):
    """A line that never ends."""

    def open(self, scene: Scene) -> NoReturn:
        while True:
            say(b"x" * 65536)


class WrongTypes(Flat):
    def open(self, scene: Scene) -> FlatShot:
        say(b'{"type":"progress","job_id":"job","stage":"rendering","done":"half","total":null}\n')
        time.sleep(3600)
        raise AssertionError


class Impostor(Flat):
    """Sends the result of another job before its own."""

    def open(self, scene: Scene) -> FlatShot:
        say(Result("another job", 1, 2, 2, 0.0))
        return super().open(scene)


class GarbageAtStart(Flat):
    def __init__(self, device: str) -> None:
        say(b"once upon a time\n")
        time.sleep(3600)


class AbortAtStart(Flat):
    def __init__(self, device: str) -> None:
        print("no such \x1b[31mdevice", flush=True)
        os.abort()


class SlowAtStart(Flat):
    def __init__(self, device: str) -> None:
        time.sleep(3600)


class SlowToLoad(Flat):
    def __init__(self, device: str) -> None:
        super().__init__(device)
        time.sleep(3.0)


class WithHelper(Flat):
    """Starts a helper that ignores SIGHUP, SIGINT and SIGTERM, and hangs."""

    def open(self, scene: Scene) -> FlatShot:
        ignore = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; time.sleep(3600)"
        helper = subprocess.Popen([sys.executable, "-c", ignore])
        Path(os.environ["TEST_HELPER_PID"]).write_text(str(helper.pid))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(3600)
        raise AssertionError


class Gasps(Flat):
    """Ends as the C library's loader does when there is no memory."""

    def open(self, scene: Scene) -> NoReturn:
        print("cannot allocate memory for thread-local data: ABORT", flush=True)
        os.abort()


class Leaves(Flat):
    def open(self, scene: Scene) -> FlatShot:
        for number in range(100):
            print(f"last word {number} " + "x" * 1000)
        sys.exit(3)


class Starved(Flat):
    """Its encoder is killed while the kernel kills another process of its control group for want of memory."""

    def open(self, scene: Scene) -> FlatShot:
        class Shot(FlatShot):
            def frames(self) -> Iterator[NDArray[np.uint8]]:
                eat = "open('/proc/self/oom_score_adj', 'w').write('1000'); taken = bytearray(b'x') * 10**9"
                assert subprocess.run([sys.executable, "-c", eat], check=False).returncode == -signal.SIGKILL
                for task in Path("/proc/self/task").iterdir():
                    for child in (task / "children").read_text().split():
                        os.kill(int(child), signal.SIGKILL)
                time.sleep(0.5)  # until the encoder's end has been noticed
                yield from super().frames()

        return Shot(scene)


class NoFace(Flat):
    def open(self, scene: Scene) -> FlatShot:
        raise NoFaceFound("no face in 80 x 72 pixels", remedy="turn around")


class Leaver(Flat):
    """Starts a helper in a session of its own, whose parent ends at once, and renders as usual."""

    def open(self, scene: Scene) -> FlatShot:
        if not os.fork():
            os.setsid()
            helper = subprocess.Popen(["sleep", "600"], start_new_session=True)
            Path(os.environ["TEST_HELPER_PID"]).write_text(str(helper.pid))
            os._exit(0)
        os.wait()
        return super().open(scene)
