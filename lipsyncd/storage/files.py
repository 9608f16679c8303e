"""Write, copy and rename files so that a power cut leaves either the old state or the new one.

Every durable step of a job is made of these few calls. Callers keep to one order: write, fsync the file, rename, fsync
the folder. Source of the rules: Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014.

Owns no folder of its own.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lipsyncd.jobs.job import Identity
from lipsyncd.storage.failpoints import reach

COPY_BLOCK_BYTES = 1 << 20
_RENAME_NOREPLACE = 1
_AT_FDCWD = -100
_NO_DIRECTORY_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # what CIFS and some FUSE servers answer
_NO_SUCH_FLAG = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


class NotRegular(OSError):
    """A name stands for a link, a FIFO, a device or a folder."""


class SourceChanged(Exception):
    """A file changed while it was being copied: try again later."""


def open_regular(path: bytes | str | Path, *, folder: int | None = None) -> int:
    """Open a regular file for reading without following a link and without waiting for a FIFO's writer.

    Only the last component is guarded: call it with a folder that is ours, or with the descriptor of one.
    Raises `NotRegular` or OSError.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        descriptor = os.open(path, flags, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise NotRegular(error.errno, "not a regular file", os.fsdecode(path)) from error
        raise
    if not _is_regular(descriptor):
        os.close(descriptor)
        raise NotRegular(errno.EINVAL, "not a regular file", os.fsdecode(path))
    return descriptor


def _is_regular(descriptor: int) -> bool:
    return (os.fstat(descriptor).st_mode & 0o170000) == 0o100000


def copy_hashed(source: int, target: Path, *, mode: int = 0o600) -> tuple[int, str]:
    """Copy an open file to a new one, fsynced; gives its size in bytes and its SHA-256 as hex.

    Raises FileExistsError when the target is there already.
    """
    digest = hashlib.sha256()
    size = 0
    out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(out, "wb") as file:
        os.lseek(source, 0, os.SEEK_SET)
        while block := os.read(source, COPY_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return size, digest.hexdigest()


def copy_unchanged(name: bytes, expected: Identity, target: Path) -> str:
    """Copy a file that others can write, and prove that it has not changed meanwhile; gives its SHA-256 as hex.

    Raises `SourceChanged` when the file under `name` is not, or no longer, the one that was `expected`.
    """
    descriptor = open_regular(name)
    try:
        if Identity.of(os.fstat(descriptor)) != expected:
            raise SourceChanged(os.fsdecode(name))
        size, digest = copy_hashed(descriptor, target)
        after = Identity.of(os.fstat(descriptor))
    finally:
        os.close(descriptor)
    if size != expected.size or after != expected or identity(name) != expected:
        raise SourceChanged(os.fsdecode(name))
    return digest


def sha256_of(path: bytes | Path, *, folder: int | None = None) -> str:
    """SHA-256 of a regular file, as hex; `folder` is as for `open_regular`."""
    descriptor = open_regular(path, folder=folder)
    with os.fdopen(descriptor, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(path: bytes | Path, *, folder: int | None = None) -> Identity | None:
    """The identity of the file under that name; None when there is none. `folder` is as for `open_regular`."""
    try:
        return Identity.of(os.lstat(path, dir_fd=folder))
    except FileNotFoundError:
        return None


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the file system has such a call."""
    descriptor = open_folder(folder)
    try:
        fsync_opened(descriptor)
    finally:
        os.close(descriptor)


def open_folder(folder: Path) -> int:
    """A descriptor of this very folder, whatever is mounted in its place meanwhile."""
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def fsync_opened(folder: int) -> None:
    """`fsync_folder` for the descriptor of a folder."""
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_FSYNC:
            raise


def fsync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file under its own name, replacing a torn one of an earlier try, and fsync it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def open_to_group(path: Path) -> None:
    """Let the group read and write a file of ours, whatever our umask is: the daemon may be another user."""
    mode = path.stat().st_mode & 0o777
    if mode & 0o060 != 0o060:
        path.chmod(mode | 0o060)


def replace_durably(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Give a file new content in one step: readers, and the next start, find either the old or the new content."""
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        write_new(hidden, content, mode=mode)
        reach("replace-written")
        hidden.replace(path)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def sweep_torn(folder: Path, names: str = "*") -> int:
    """Remove what a crash left of `replace_durably` for files called like `names`; gives their number."""
    torn = list(folder.glob(f".{names}.????????.part"))
    for path in torn:
        path.unlink(missing_ok=True)
    return len(torn)


def write_json(path: Path, value: Mapping[str, Any], *, mode: int = 0o600) -> None:
    """`replace_durably` for an object; ASCII only, so that odd file names survive."""
    replace_durably(path, (json.dumps(value, indent=1) + "\n").encode(), mode=mode)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file of our own; None when there is no such file or it is damaged."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def rename_no_replace(source: Path, target: Path) -> None:
    """Rename within one file system, refusing to replace what is there.

    Raises FileExistsError when the target exists, FileNotFoundError when the source does not. Where the file system
    has no such rename (NFS, many CIFS and FUSE servers) the name is looked up first, which leaves a moment in which a
    file that another program writes under this name could be replaced.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        done = libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE)
        if done == 0:
            return
        code = ctypes.get_errno()
        if code not in _NO_SUCH_FLAG:
            raise OSError(code, os.strerror(code), str(source), None, str(target))
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.rename(target)


def remove_tree(folder: Path) -> None:
    """Delete a folder of ours with everything in it. Nothing happens when it is gone already."""
    shutil.rmtree(folder, ignore_errors=False, onerror=_ignore_missing)


def _ignore_missing(_function: object, _path: str, info: Any) -> None:
    if not isinstance(info[1], FileNotFoundError):
        raise info[1]


def umask() -> int:
    """The process's mask for new files. Asking the kernel by setting it would change it for the other threads."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022  # kernels before 4.7 do not show it
