"""The kernel's own news about folders: inotify(7) through the C library.

A few calls, used directly, because what matters here is what libraries hide: that the queue overflowed, that a limit
was reached, that a watch ended. Owns one descriptor and knows nothing of what the events are for.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass
from pathlib import Path

ATTRIB, CLOSE_WRITE, MOVED_FROM, MOVED_TO = 0x4, 0x8, 0x40, 0x80
CREATE, DELETE, DELETE_SELF, MOVE_SELF = 0x100, 0x200, 0x400, 0x800
UNMOUNT, OVERFLOW, IGNORED = 0x2000, 0x4000, 0x8000
ONLY_FOLDERS = 0x0100_0000

_CLOSE_ON_EXEC, _DO_NOT_BLOCK = 0x80000, 0x800
_HEADER = struct.Struct("iIII")  # watch, mask, cookie, bytes of the name that follows
_READ_BYTES = 1 << 16


@dataclass(frozen=True)
class Event:
    """`watch` is what `add` gave, -1 for an overflow; `name` is empty for the folder itself."""

    watch: int
    mask: int
    name: bytes


class Inotify:
    """One queue of events. Raises OSError: EMFILE for too many instances, ENOSPC for too many watches."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = self._checked(self._libc.inotify_init1(_CLOSE_ON_EXEC | _DO_NOT_BLOCK))

    def add(self, folder: Path, mask: int) -> int:
        return self._checked(self._libc.inotify_add_watch(self.descriptor, os.fsencode(folder), mask | ONLY_FOLDERS))

    def read(self) -> list[Event]:
        """What has happened since the last call; an empty list when nothing has. Never waits."""
        try:
            data = os.read(self.descriptor, _READ_BYTES)
        except BlockingIOError:
            return []
        events, at = [], 0
        while at < len(data):
            watch, mask, _, length = _HEADER.unpack_from(data, at)
            at += _HEADER.size + length
            events.append(Event(watch, mask, data[at - length : at].rstrip(b"\0")))
        return events

    def close(self) -> None:
        os.close(self.descriptor)

    @staticmethod
    def _checked(result: int) -> int:
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result
