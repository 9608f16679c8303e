"""Write, copy and rename files so that a power cut leaves either the old state or the new one.

Every durable step of a job is made of these few calls. Callers keep to one order: write, fsync the file, rename, fsync
the folder. Source of the rules: Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014.

Owns no folder of its own.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from lipsyncd.jobs.job import Identity
from lipsyncd.storage.failpoints import reach

Name: TypeAlias = bytes | str | Path

COPY_BLOCK_BYTES = 1 << 20
MOST_JSON_BYTES = 1_000_000
MOST_JSON_DEPTH = 64
_MOST_REPORTED = 1000
_reported: set[str] = set()
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_AT_FDCWD = -100
_NO_DIRECTORY_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # what CIFS and some FUSE servers answer
_NO_SUCH_FLAG = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


class NotRegular(OSError):
    """A name stands for a link, a FIFO or a device; or for a folder in place of a file, or the other way round."""


class SourceChanged(Exception):
    """A file changed while it was being copied: try again later."""


def open_regular(path: Name, *, folder: int | None = None) -> int:
    """Open a regular file for reading without following a link and without waiting for a FIFO's writer.

    Only the last component is guarded: call it with a folder that is ours, or with the descriptor of one. In a folder
    given by its descriptor, which others may write, a second name of one of our private files is refused, too: where
    the kernel does not protect hard links, anyone can make one. Raises `NotRegular` or OSError.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        descriptor = os.open(path, flags, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise NotRegular(error.errno, "not a regular file", os.fsdecode(path)) from error
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or (folder is not None and is_second_name(status)):
        os.close(descriptor)
        raise NotRegular(errno.EINVAL, "not a regular file", os.fsdecode(path))
    return descriptor


def read_regular(path: Name, most_bytes: int, *, folder: int | None = None) -> bytes:
    """The first `most_bytes` of a regular file. Raises `NotRegular` or OSError; `folder` is as for `open_regular`."""
    with os.fdopen(open_regular(path, folder=folder), "rb") as file:
        return file.read(most_bytes)


def is_second_name(status: os.stat_result) -> bool:
    """Is it one of several names of a file of ours that no one else may read?"""
    return status.st_nlink > 1 and status.st_uid == os.geteuid() and not status.st_mode & 0o044


def fsync_and_close(descriptor: int) -> None:
    """Make a file durable that is written, and close it."""
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


Finish: TypeAlias = Callable[[int], None]  # takes over the descriptor of a file that is written, as `fsync_and_close`


def copy_hashed(source: int, target: Path, *, mode: int = 0o600, finish: Finish = fsync_and_close) -> tuple[int, str]:
    """Copy an open file to a new one, fsynced; gives its size in bytes and its SHA-256 as hex.

    Raises FileExistsError when the target is there already.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return copy_into(source, os.open(target, flags, mode), finish=finish)


def copy_into(source: int, target: int, *, finish: Finish = fsync_and_close) -> tuple[int, str]:
    """`copy_hashed` into an open file, which `finish` takes over."""
    import hashlib

    digest = hashlib.sha256()
    size = 0
    try:
        os.lseek(source, 0, os.SEEK_SET)
        while block := os.read(source, COPY_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
            _write_all(target, block)
    except BaseException:
        os.close(target)
        raise
    finish(target)
    return size, digest.hexdigest()


def _write_all(descriptor: int, content: bytes) -> None:
    written = os.write(descriptor, content)
    while written < len(content):
        written += os.write(descriptor, memoryview(content)[written:])


def copy_unchanged(
    name: Name, expected: Identity, target: Path, *, folder: int, finish: Finish = fsync_and_close
) -> str:
    """Copy a file that others can write, and prove that it has not changed meanwhile; gives its SHA-256 as hex.

    Raises `SourceChanged` when the file under `name` is not, or no longer, the one that was `expected`.
    """
    descriptor = open_regular(name, folder=folder)
    try:
        if Identity.of(os.fstat(descriptor)) != expected:
            raise SourceChanged(os.fsdecode(name))
        size, digest = copy_hashed(descriptor, target, finish=finish)
        after = Identity.of(os.fstat(descriptor))
    finally:
        os.close(descriptor)
    if size != expected.size or after != expected or identity(name, folder=folder) != expected:
        raise SourceChanged(os.fsdecode(name))
    return digest


def sha256_of(path: Name, *, folder: int | None = None) -> str:
    """SHA-256 of a regular file, as hex; `folder` is as for `open_regular`."""
    descriptor = open_regular(path, folder=folder)
    import hashlib

    with os.fdopen(descriptor, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(path: Name, *, folder: int | None = None) -> Identity | None:
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


def keep(part: Path, path: Path) -> None:
    """Give a whole file its name; a power cut leaves none, or all of it."""
    fsync_file(part)
    part.rename(path)


def write_new(path: Path, content: bytes, *, mode: int = 0o600, finish: Finish = fsync_and_close) -> None:
    """Write a file under its own name, replacing a torn one of an earlier try, and fsync it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        _write_all(descriptor, content)
    except BaseException:
        os.close(descriptor)
        raise
    finish(descriptor)


def replace_durably(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Give a file new content in one step: readers, and the next start, find either the old or the new content."""
    hidden = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
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


def read_json(path: Path, *, most_bytes: int = MOST_JSON_BYTES) -> dict[str, Any] | None:
    """The object in a file; None when there is no such file or it is damaged. Its folder has to be ours: see there.

    Raises OSError, such as PermissionError, when it exists and cannot be read.
    """
    try:
        data = read_regular(path, most_bytes + 1)
    except (FileNotFoundError, NotADirectoryError, NotRegular):
        return None
    return None if len(data) > most_bytes else json_object(data)


def parse_json(name: Name, *, folder: int, where: str) -> dict[str, Any] | None:
    """The object in a file of a folder that others may write. None for everything else, which is logged once.

    A regular file of at most `MOST_JSON_BYTES`, opened without waiting, with objects nested at most `MOST_JSON_DEPTH`
    deep. A missing file is None, too, and not logged.
    """
    try:
        data = read_regular(name, MOST_JSON_BYTES + 1, folder=folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        _report_once(name, where, error.strerror or str(error))
        return None
    if len(data) > MOST_JSON_BYTES:
        _report_once(name, where, f"it has more than {MOST_JSON_BYTES} bytes")
        return None
    found = json_object(data)
    if found is None:
        _report_once(name, where, "it holds no JSON object, or one that is nested too deeply")
    return found


def json_object(data: bytes) -> dict[str, Any] | None:
    """The JSON object in `data`; None when it is none, or nested deeper than `MOST_JSON_DEPTH`."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and _is_flat(value) else None


def _is_flat(value: object) -> bool:
    """Is it nested at most `MOST_JSON_DEPTH` deep? Deeper ones could not be written, copied or compared later."""
    level: list[object] = [value]
    for _ in range(MOST_JSON_DEPTH):
        inner = [item for item in level if isinstance(item, dict | list)]
        if not inner:
            return True
        level = [one for item in inner for one in (item.values() if isinstance(item, dict) else item)]
    return not any(isinstance(item, dict | list) for item in level)


def _report_once(name: Name, where: str, why: str) -> None:
    """Log why a file is not used, once for each: others may write as many as they like, so no more are remembered."""
    import logging  # here, since `lipsyncd status` reads JSON and logs nothing

    from lipsyncd.log import printable

    shown = printable(f"{where}/{os.fsdecode(name)}")
    if shown not in _reported and len(_reported) < _MOST_REPORTED:
        _reported.add(shown)
        logging.getLogger(__name__).warning("%s is not used: %s", shown, why)


def rename_no_replace(
    source: Name, target: Name, *, folder: int | None = None, target_folder: int | None = None
) -> None:
    """Rename within one file system, refusing to replace what is there; each name in its folder, if one is given.

    Raises FileExistsError when the target exists, FileNotFoundError when the source does not. Where the file system
    has no such rename (NFS, many CIFS and FUSE servers) the name is looked up first, which leaves a moment in which a
    file that another program writes under this name could be replaced.
    """
    if _renameat2(source, target, folder, target_folder, _RENAME_NOREPLACE):
        return
    if identity(target, folder=target_folder) is not None:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fsdecode(target))
    os.rename(source, target, src_dir_fd=folder, dst_dir_fd=target_folder)


def rename_exchange(name: Name, other: Name, *, folder: int) -> bool:
    """Let two names in a folder change places in one step; False where the file system has no such rename."""
    return _renameat2(name, other, folder, folder, _RENAME_EXCHANGE)


@cache
def _libc_renameat2() -> Callable[..., int] | None:
    import ctypes

    return getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


def _renameat2(source: Name, target: Name, folder: int | None, target_folder: int | None, flag: int) -> bool:
    """renameat2(2); False when it does not exist or does not know the flag there. Raises OSError."""
    import ctypes

    rename = _libc_renameat2()
    if rename is None:
        return False
    here, there = (_AT_FDCWD if fd is None else fd for fd in (folder, target_folder))
    if rename(here, os.fsencode(source), there, os.fsencode(target), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_SUCH_FLAG:
        return False
    raise OSError(code, os.strerror(code), os.fsdecode(source), None, os.fsdecode(target))


def remove_tree(folder: Path) -> None:
    """Delete a folder of ours with everything in it. Nothing happens when it is gone already."""
    import shutil

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
