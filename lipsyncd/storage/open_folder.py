"""A folder that is open: everything in it is reached through its descriptor, and no link is followed out of it.

Other users may write a shared folder. They can exchange a name between two calls, so a path that was checked proves
nothing about the next call. A descriptor keeps standing for the same folder. From there one step at a time is taken,
with O_NOFOLLOW, and what was opened is checked after it was opened.

Gives out no path. `where` is a text for messages.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeAlias

from lipsyncd.jobs.job import Identity
from lipsyncd.storage.files import (
    NotRegular,
    fsync_opened,
    identity,
    open_regular,
    parse_json,
    read_regular,
    rename_exchange,
    rename_no_replace,
    sha256_of,
)

Name: TypeAlias = str | bytes

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOCTTY
_PASSAGE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_DEPTH = 40  # folders within folders that `remove_tree` enters


class OpenFolder:
    """The folder behind `descriptor`, which this object closes. Names are single components of a path."""

    def __init__(self, descriptor: int, where: str) -> None:
        self._descriptor = descriptor
        self.where = where

    @classmethod
    def at(cls, path: Path) -> Self:
        """The folder under a path that only its administrator can change; links in it are followed."""
        return cls(os.open(path, _FOLDER), str(path))

    def fileno(self) -> int:
        """The descriptor. Raises OSError once it is closed: some calls take -1 for the working directory."""
        if self._descriptor < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self.where)
        return self._descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    @property
    def watchable(self) -> str:
        """A name that stands for this very folder, for calls that take no descriptor, while it is open."""
        return f"/proc/self/fd/{self._descriptor}"

    def shown(self, name: Name) -> str:
        """The name in a message."""
        return f"{self.where}/{os.fsdecode(name)}"

    # -- looking -------------------------------------------------------------------------------------------------------

    def stat(self) -> os.stat_result:
        """The folder's own status."""
        return os.fstat(self._descriptor)

    def entries(self) -> list[os.DirEntry[str]]:
        """Everything in it, in no order. An entry's `path` is only its name."""
        with os.scandir(self.fileno()) as found:
            return list(found)

    def names(self) -> list[bytes]:
        """The names of everything in it, in order. Of a hundred thousand files it takes less memory than `entries`."""
        return sorted(map(os.fsencode, os.listdir(self.fileno())))

    def fingerprint(self, *, apart: Container[str] = ()) -> int:
        """One number for all names and what lies under each: another one once any of that has changed.

        Looking at many files and remembering nothing of them costs a tenth of what it costs to compare them one by one.
        Numbers of one process can be compared.

        apart  names of which only the name counts

        Raises OSError, also when one of the names cannot be looked at.
        """
        descriptor = self.fileno()
        status = os.fstat(descriptor)
        found = hash((status.st_dev, status.st_ino))
        for name in os.listdir(descriptor):
            if name in apart:
                found += hash(name)
                continue
            with contextlib.suppress(FileNotFoundError):  # gone meanwhile, which makes another number too
                s = os.lstat(name, dir_fd=descriptor)
                what = (name, s.st_mode, s.st_uid, s.st_nlink, s.st_dev, s.st_ino)
                found += hash((what, s.st_size, s.st_mtime_ns, s.st_ctime_ns))
        return found

    def files(self) -> list[os.DirEntry[str]]:
        """The regular files, without hidden ones."""
        return [entry for entry in self._shown() if entry.is_file(follow_symlinks=False)]

    def folders(self) -> list[str]:
        """The names of the folders, without hidden ones, in order."""
        return sorted(entry.name for entry in self._shown() if entry.is_dir(follow_symlinks=False))

    def _shown(self) -> list[os.DirEntry[str]]:
        return [entry for entry in self.entries() if not entry.name.startswith(".")]

    def status(self, name: Name) -> os.stat_result | None:
        """What lies under a name, links not followed; None when there is nothing."""
        try:
            return os.lstat(name, dir_fd=self._descriptor)
        except FileNotFoundError:
            return None

    def identity(self, name: Name) -> Identity | None:
        return identity(name, folder=self._descriptor)

    def open(self, name: Name) -> int:
        """A descriptor of a regular file, for reading. Raises `NotRegular` or OSError."""
        return open_regular(name, folder=self._descriptor)

    def read(self, name: Name, most_bytes: int) -> bytes:
        """The first `most_bytes` of a regular file. Raises `NotRegular` or OSError."""
        return read_regular(name, most_bytes, folder=self._descriptor)

    def read_json(self, name: Name) -> dict[str, Any] | None:
        """The object in a small file that others may have written; None when there is none."""
        return parse_json(name, folder=self._descriptor, where=self.where)

    def sha256(self, name: Name) -> str:
        return sha256_of(name, folder=self._descriptor)

    def is_file_of(self, name: Name, sha256: str | None) -> bool:
        """Is it a regular file with that content?"""
        try:
            return self.sha256(name) == sha256
        except (FileNotFoundError, NotRegular):
            return False

    # -- entering ------------------------------------------------------------------------------------------------------

    def enter(self, name: Name) -> OpenFolder:
        """The folder of that name. Raises `NotRegular` for a link or a file, FileNotFoundError."""
        return OpenFolder(_enter(self._descriptor, name, self.shown(name), _FOLDER), self.shown(name))

    def passage(self, name: Name) -> OpenFolder:
        """The folder of that name, to open names in it only, as one may without the right to list it."""
        return OpenFolder(_enter(self._descriptor, name, self.shown(name), _PASSAGE), self.shown(name))

    @contextmanager
    def walk(self, parts: Iterable[str]) -> Iterator[OpenFolder]:
        """The folder that `parts` lead to, one step after another; this folder itself without any."""
        folder = OpenFolder(os.dup(self._descriptor), self.where)
        try:
            for part in parts:
                inner = folder.enter(part)
                folder.close()
                folder = inner
            yield folder
        finally:
            folder.close()

    def make(self, name: Name, mode: int) -> OpenFolder:
        """The folder of that name, made when it is missing; it inherits a setgid bit. Raises as `enter`."""
        with contextlib.suppress(FileExistsError):
            return self.make_new(name, mode)
        return self.enter(name)

    def make_new(self, name: Name, mode: int) -> OpenFolder:
        """As `make`; raises FileExistsError when anything of that name is there. A failure leaves none."""
        os.mkdir(name, mode, dir_fd=self._descriptor)
        try:
            return self.enter(name)
        except OSError:
            with contextlib.suppress(OSError):
                self.remove_folder(name)
            raise

    # -- writing -------------------------------------------------------------------------------------------------------

    def create(self, name: Name, mode: int) -> int:
        """A descriptor of a new file, for writing. Raises FileExistsError, also for a link."""
        return os.open(name, _NEW_FILE, mode, dir_fd=self._descriptor)

    def write(self, name: Name, content: bytes, *, mode: int, prepare: Callable[[int], None] | None = None) -> None:
        """Write a new file and fsync it; a file of that name that is there already goes first. A failure leaves none.

        prepare  called with the file's descriptor, such as `open_to_group`
        """
        self.remove(name)
        with os.fdopen(self.create(name, mode), "wb") as file:
            try:
                if prepare is not None:
                    prepare(file.fileno())
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                self.remove(name)
                raise

    def replace(self, name: str, content: bytes, *, mode: int, prepare: Callable[[int], None] | None = None) -> None:
        """Give a file new content in one step. The name that it has meanwhile is hidden and no other's."""
        hidden = f".{name}.{os.urandom(4).hex()}.part"
        self.write(hidden, content, mode=mode, prepare=prepare)
        try:
            os.rename(hidden, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except BaseException:
            self.remove(hidden)
            raise
        self.fsync()

    def write_json(self, name: str, value: Mapping[str, Any], *, mode: int) -> None:
        """`replace` for an object; ASCII only, so that odd file names survive."""
        self.replace(name, (json.dumps(value, indent=1) + "\n").encode(), mode=mode)

    def fsync(self) -> None:
        """Make the names in it durable, where the file system has such a call."""
        fsync_opened(self._descriptor)

    def rename(self, name: Name, to: OpenFolder, new_name: Name) -> None:
        """Give a file or folder a name in another folder of this file system, or in this one; nothing is replaced.

        Raises FileExistsError, FileNotFoundError, or OSError.
        """
        rename_no_replace(name, new_name, folder=self._descriptor, target_folder=to.fileno())

    def exchange(self, name: Name, other: Name) -> bool:
        """Let two names change places in one step; False where the file system cannot. Raises OSError."""
        return rename_exchange(name, other, folder=self.fileno())

    # -- removing ------------------------------------------------------------------------------------------------------

    def remove(self, name: Name) -> None:
        """Remove a file, or a link itself; nothing happens when it is gone."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._descriptor)

    def remove_folder(self, name: Name) -> None:
        """Remove an empty folder. Raises OSError."""
        os.rmdir(name, dir_fd=self._descriptor)

    def remove_any(self, name: Name) -> None:
        """Remove a file, or a folder with everything in it; nothing happens when it is gone."""
        try:
            self.remove(name)
        except (IsADirectoryError, PermissionError):  # the error for a folder is EISDIR or EPERM
            self.remove_tree(name)

    def remove_tree(self, name: Name, *, _depth: int = 0) -> None:
        """Remove whatever lies under that name, with everything in it; links are removed, not followed."""
        try:
            inner = self.enter(name)
        except FileNotFoundError:
            return
        except NotRegular:
            self.remove(name)
            return
        with inner:
            if _depth > _MOST_DEPTH:
                raise OSError(errno.ELOOP, "too many folders within each other", inner.where)
            for entry in inner.entries():
                inner.remove_tree(entry.name, _depth=_depth + 1)
        self.remove_folder(name)


def open_to_group(descriptor: int) -> None:
    """Let the group read and write a file of ours, whatever our umask is: the daemon may be another user."""
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    if mode & 0o060 != 0o060:
        os.fchmod(descriptor, mode | 0o060)


def _enter(folder: int, name: Name, shown: str, flags: int) -> int:
    try:
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):  # a link, or a file
            raise NotRegular(errno.ENOTDIR, "is a link or a file, and no folder", shown) from None
        raise
