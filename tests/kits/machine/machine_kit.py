"""Changes to the machine around a daemon: many files, small disks, mounts, the clock; and what its processes use.

`LONG=1` selects the full counts of `make test-long`.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.kits.installation import put
from tests.kits.media.media_kit import png_of, tone, wav

LONG = bool(os.environ.get("LONG"))

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
COMPILER = next(filter(None, map(shutil.which, ("tcc", "cc"))), "")
needs_compiler = pytest.mark.skipif(not COMPILER, reason="there is no C compiler; the package tcc is one")
needs_fuse = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="this machine has no /dev/fuse")


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    return sorted(values)[max(0, min(len(values) - 1, round(share * len(values)) - 1))]


# -- many small pairs --------------------------------------------------------------------------------------------------


def small_picture(number: int) -> bytes:
    """A PNG of 64 x 64 pixels of this number alone, made in a fraction of a millisecond."""
    row = b"\0" + bytes((number >> 16 & 255, number >> 8 & 255, number & 255)) * 64
    return png_of(64, 64, row * 64)


def small_sound(number: int, seconds: float = 0.3, **header: int) -> bytes:
    """A WAV of a tone that begins with the number; `header` goes to `wav`."""
    return wav(struct.pack("<I", number) + tone(seconds)[4:], **header)


def drop_pairs(inbox: Path, numbers: Sequence[int], *, seconds: float = 0.3) -> None:
    """Drop a pair named `pN` for each number, each file hidden first and then renamed."""
    for number in numbers:
        put(inbox, f"p{number}.png", small_picture(number))
        put(inbox, f"p{number}.wav", small_sound(number, seconds))


# -- disks and mounts --------------------------------------------------------------------------------------------------


@contextmanager
def tmpfs(folder: Path, size: str = "8m") -> Iterator[Path]:
    """A real tmpfs of that size, mounted on `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        unmount(folder)


def bind(source: Path, folder: Path) -> None:
    subprocess.run(["mount", "--bind", source, folder], check=True)


def unmount(folder: Path) -> None:
    """Remove the last mount on `folder` at once, even if it is in use."""
    subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def bindfs(source: Path, folder: Path) -> Iterator[Path]:
    """`source` mounted by FUSE on `folder`: a write to `source` raises no event there, as on NFS."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["bindfs", "-o", "nonempty", source, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path, *, leave_bytes: int = 0) -> Path:
    """Write one file until the disk is full but for so many bytes; returns that file. Deleting it makes room again."""
    filler = folder / ".filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    if leave_bytes:
        os.truncate(filler, max(0, filler.stat().st_size - leave_bytes))
    return filler


# -- the wall clock ----------------------------------------------------------------------------------------------------


class WallClock:
    """The wall clock of processes started with `environment`, which a test sets while they run: an offset from ours.

    `wall_clock.c` implements it. faketime of Debian 12 makes every `time.sleep` of Python 3.11 fail.
    """

    def __init__(self, folder: Path) -> None:
        library, file = folder / "wall_clock.so", folder / "wall_clock"
        source = Path(__file__).with_name("wall_clock.c")
        subprocess.run([COMPILER, "-shared", "-fPIC", "-nostdlib", "-o", library, source], check=True)
        file.write_bytes(bytes(8))
        with file.open("r+b") as opened:
            self._seen = mmap.mmap(opened.fileno(), 8)
        self.environment = {"LD_PRELOAD": str(library), "WALL_CLOCK": str(file)}

    @property
    def ahead_s(self) -> int:
        [ahead_s] = struct.unpack("<q", self._seen)
        return int(ahead_s)

    def set(self, ahead_s: float) -> None:
        self._seen[:] = struct.pack("<q", round(ahead_s))

    def now_s(self) -> float:
        return time.time() + self.ahead_s


# -- processes ---------------------------------------------------------------------------------------------------------


def family(pid: int) -> list[int]:
    """A process and all its living descendants."""
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            with suppress(OSError):
                todo += map(int, task.read_text().split())
    return found


def status_kib(pid: int, field: str) -> int:
    """A field of /proc/PID/status in KiB; 0 if the process has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1])
    return 0


class PeakMemory(threading.Thread):
    """Finds the largest resident size of each process of a family, in KiB, by its command line.

    The kernel keeps each process's peak, so it is enough to see each process once. The value of `wait4` would
    count the size of the test itself, which a child has for a moment between fork and exec.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.kib: dict[str, int] = {}
        self._over = threading.Event()

    def __enter__(self) -> PeakMemory:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(0.005):
            for pid in family(self.pid):
                with suppress(OSError):
                    peak = status_kib(pid, "VmHWM")
                    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    name = "daemon" if pid == self.pid else command[:80]
                    self.kib[name] = max(self.kib.get(name, 0), peak)
