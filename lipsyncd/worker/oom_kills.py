"""Did the kernel end a process for want of memory? Its own counters show it; a SIGKILL alone does not.

The counter of the process's control group is read where there is one that is readable, since it counts no other
processes; else the counter of the whole machine. Neither needs a privilege.

Source: the kernel's Documentation/admin-guide/cgroup-v2.rst (`memory.events`) and cgroup-v1/memory.rst
(`memory.oom_control`); `oom_kill` in /proc/vmstat since Linux 4.13. Each is raised before the signal is sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_PROC = Path("/proc")


@dataclass(frozen=True)
class OomCount:
    """A counter of the kernel and its value at one moment. `file` is where the kernel shows it."""

    file: Path
    before: int

    def kills(self) -> int | None:
        """How many processes the kernel has ended since then; None when the control group is gone."""
        now = _count(self.file)
        return None if now is None else now - self.before


def oom_count_of(pid: int, proc: Path = _PROC) -> OomCount | None:
    """The counter that rises when the kernel ends this process for want of memory; None where there is none."""
    for file in (*_groups(pid, proc), proc / "vmstat"):
        count = _count(file)
        if count is not None:
            return OomCount(file, count)
    return None


def _count(file: Path) -> int | None:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def _groups(pid: int, proc: Path) -> Iterator[Path]:
    """Files that count for the control group of a process, in version 2 and in version 1."""
    try:
        groups = (proc / str(pid) / "cgroup").read_text().splitlines()
        mounts = (proc / "self/mountinfo").read_text().splitlines()
    except OSError:
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from (folder / "memory.events" for folder in _mounted_at(path, mounts, "cgroup2", ""))
        elif "memory" in controllers.split(","):
            yield from (folder / "memory.oom_control" for folder in _mounted_at(path, mounts, "cgroup", "memory"))


def _mounted_at(path: str, mounts: list[str], kind: str, option: str) -> Iterator[Path]:
    """The folders of a control group of that path: a container may see only a part of the hierarchy."""
    for line in mounts:
        fields = line.split()
        root, place, rest = PurePosixPath(fields[3]), fields[4], fields[fields.index("-") + 1 :]
        if (
            rest[0] == kind
            and (not option or option in rest[2].split(","))
            and PurePosixPath(path).is_relative_to(root)
        ):
            yield Path(place) / PurePosixPath(path).relative_to(root)
