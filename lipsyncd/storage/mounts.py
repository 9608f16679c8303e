"""Which file system a folder lies on: can other machines write there, and do SQLite's locks hold there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_MOUNTINFO = Path("/proc/self/mountinfo")
_LOCAL = frozenset(("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "tmpfs", "overlay", "bcachefs", "ramfs"))
_NETWORK = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "ceph", "lustre", "gpfs", "beegfs", "afs"),
        *("ncpfs", "vboxsf", "vmhgfs", "prl_fs"),
    )
)
# The same by the kernel's magic numbers (statfs(2)), for when the table of mounts cannot be read.
_NETWORK_MAGIC = {
    0x6969: "nfs",
    0xFE534D42: "smb3",
    0xFF534D42: "cifs",
    0x65735546: "fuse",
    0x01021997: "9p",
    0x00C36400: "ceph",
}
_NEED_DELEGATION = frozenset(("nfs", "cifs", "smb3"))
_STATFS_BYTES = 512  # more than the structure has on any machine; its first word is the magic number


@dataclass(frozen=True)
class _Mount:
    number: str
    parent: str
    point: str
    kind: str

    def holds(self, path: str) -> bool:
        return path == self.point or path.startswith(self.point.rstrip("/") + "/")


def mount_of(descriptor: int) -> str:
    """The line of /proc/self/mountinfo for the mount that an open folder lies on; "" when that is unknown."""
    number = mount_number(descriptor)
    try:
        lines = _MOUNTINFO.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    return next((line for line in lines if number and line.startswith(f"{number} ")), "")


def mount_number(descriptor: int) -> str:
    """The number of the mount that an open folder lies on; "" when that is unknown. The kernel reuses numbers."""
    try:
        lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("mnt_id:")), "")


def file_system_type(folder: Path | int, mountinfo: Path = _MOUNTINFO) -> str:
    """The type of the file system that a folder lies on, such as "ext4" or "nfs4"; "" when that is unknown.

    folder  a path, or the descriptor of an open folder

    For a path it walks from mount to mount as the kernel does: the longest matching mount point may be one that a later
    mount above it has covered. Source: proc_pid_mountinfo(5).
    """
    if isinstance(folder, int):
        line = mount_of(folder)
        return _mount(line).kind if line else ""
    try:
        lines = mountinfo.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    path = os.path.realpath(folder)
    mounts = [mount for mount in map(_mount, lines) if mount.holds(path)]
    numbers = {mount.number for mount in mounts}
    here = next((mount for mount in mounts if mount.parent not in numbers - {mount.number}), None)
    kind = ""
    while here is not None:
        kind, number = here.kind, here.number
        inner = [mount for mount in mounts if mount.parent == number != mount.number]
        here = min(inner, key=lambda mount: len(mount.point), default=None)
    return kind


def _mount(line: str) -> _Mount:
    fields = line.split(" ")
    return _Mount(fields[0], fields[1], _unescape(fields[4]), fields[fields.index("-") + 1])


def _unescape(field: str) -> str:
    """A path of mountinfo, in which space, tab, newline and backslash are octal escapes."""
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, char)
    return field


def is_network(folder: Path | int) -> bool:
    """Can other machines write there without our kernel knowing? Unknown file systems count as network."""
    return file_system_type(folder) not in _LOCAL


def known_network(folder: Path | int, mountinfo: Path = _MOUNTINFO) -> str:
    """The type of a file system that certainly belongs to a network or to a program, else "".

    SQLite cannot work there: its locks and its shared memory work between processes of one kernel only.
    """
    kind = file_system_type(folder, mountinfo) or _NETWORK_MAGIC.get(_magic(folder), "")
    return kind if kind in _NETWORK or kind.startswith("fuse") else ""


def refuses_leases(descriptor: int) -> bool:
    """Does an open file lie on NFS or CIFS? There the kernel grants a lease only if the server delegated the file."""
    return _NETWORK_MAGIC.get(_magic(descriptor), "") in _NEED_DELEGATION


def _magic(place: Path | int) -> int:
    """The kernel's number for the file system of a folder or of a descriptor; 0 when it gives none."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    answer = ctypes.create_string_buffer(_STATFS_BYTES)
    failed = libc.fstatfs(place, answer) if isinstance(place, int) else libc.statfs(os.fsencode(place), answer)
    return 0 if failed else ctypes.c_ulong.from_buffer(answer).value & 0xFFFFFFFF
