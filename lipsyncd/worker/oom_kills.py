"""Did the kernel end a process for want of memory? It keeps count of those that it has ended; a SIGKILL says nothing.

The count of the process's own control group is asked for where there is one that anybody may read, since it knows of
nobody else's processes; the count of the whole machine otherwise. No privilege is needed for either.

Source: the kernel's Documentation/admin-guide/cgroup-v2.rst (`memory.events`) and cgroup-v1/memory.rst
(`memory.oom_control`); `oom_kill` in /proc/vmstat since Linux 4.13. Each is raised before the signal is sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_PROC = Path("/proc")


@dataclass(frozen=True)
class Witness:
    """A count at one moment. `file` is where the kernel keeps it."""

    file: Path
    before: int

    def kills(self) -> int | None:
        """How many processes it has ended since then; None when the count is gone, with its control group."""
        now = _count(self.file)
        return None if now is None else now - self.before


def witness_of(pid: int, proc: Path = _PROC) -> Witness | None:
    """Whoever would tell that the kernel ends this living process; None where nobody counts."""
    for file in (*_groups(pid, proc), proc / "vmstat"):
        count = _count(file)
        if count is not None:
            return Witness(file, count)
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
            yield from (folder / "memory.events" for folder in _seen(path, mounts, "cgroup2", ""))
        elif "memory" in controllers.split(","):
            yield from (folder / "memory.oom_control" for folder in _seen(path, mounts, "cgroup", "memory"))


def _seen(path: str, mounts: list[str], kind: str, option: str) -> Iterator[Path]:
    """Where a control group of that path shows: a container may see only a part of the hierarchy."""
    for line in mounts:
        fields = line.split()
        root, place, rest = PurePosixPath(fields[3]), fields[4], fields[fields.index("-") + 1 :]
        if (
            rest[0] == kind
            and (not option or option in rest[2].split(","))
            and PurePosixPath(path).is_relative_to(root)
        ):
            yield Path(place) / PurePosixPath(path).relative_to(root)
