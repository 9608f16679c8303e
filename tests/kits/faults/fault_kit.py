"""File calls that really fail: the kernel passes each call to a supervisor, which answers the n-th with an error.

A process under test installs a seccomp filter with a listener and goes on; each of its calls on files then waits until
`Supervisor` lets it pass or fails it. The program under test is unchanged: every library, SQLite too, gets the error
where a disk would give it. Linux 5.9 or later.

Source: Linux, Documentation/userspace-api/seccomp_filter.rst, "Userspace Notification".
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import pickle
import select
import struct
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ERRORS = (errno.EIO, errno.ENOSPC, errno.EACCES, errno.ESTALE, errno.EINTR)

# The argument of each call that is a path or a descriptor; for the *at calls the folder's descriptor, which comes
# before the path.
_PATH, _AT, _FD = "path", "at", "fd"
_CALLS = {
    "open": (_PATH, 0), "openat": (_AT, 0), "read": (_FD, 0), "pread64": (_FD, 0), "write": (_FD, 0),
    "pwrite64": (_FD, 0), "fsync": (_FD, 0), "fdatasync": (_FD, 0), "ftruncate": (_FD, 0), "getdents64": (_FD, 0),
    "rename": (_PATH, 0), "renameat": (_AT, 0), "renameat2": (_AT, 0), "link": (_PATH, 0), "linkat": (_AT, 0),
    "unlink": (_PATH, 0), "unlinkat": (_AT, 0), "rmdir": (_PATH, 0), "mkdir": (_PATH, 0), "mkdirat": (_AT, 0),
    "chmod": (_PATH, 0), "fchmod": (_FD, 0), "fchmodat": (_AT, 0), "stat": (_PATH, 0), "lstat": (_PATH, 0),
    "fstat": (_FD, 0), "newfstatat": (_AT, 0), "statx": (_AT, 0), "statfs": (_PATH, 0), "fstatfs": (_FD, 0),
}  # fmt: skip
_NUMBERS = {
    "x86_64": {
        "open": 2, "openat": 257, "read": 0, "pread64": 17, "write": 1, "pwrite64": 18, "fsync": 74, "fdatasync": 75,
        "ftruncate": 77, "getdents64": 217, "rename": 82, "renameat": 264, "renameat2": 316, "link": 86, "linkat": 265,
        "unlink": 87, "unlinkat": 263, "rmdir": 84, "mkdir": 83, "mkdirat": 258, "chmod": 90, "fchmod": 91,
        "fchmodat": 268, "stat": 4, "lstat": 6, "fstat": 5, "newfstatat": 262, "statx": 332, "statfs": 137,
        "fstatfs": 138,
    },
    "aarch64": {
        "openat": 56, "read": 63, "pread64": 67, "write": 64, "pwrite64": 68, "fsync": 82, "fdatasync": 83,
        "ftruncate": 46, "getdents64": 61, "renameat": 38, "renameat2": 276, "linkat": 37, "unlinkat": 35,
        "mkdirat": 34, "fchmod": 52, "fchmodat": 53, "fstat": 80, "newfstatat": 79, "statx": 291, "statfs": 43,
        "fstatfs": 44,
    },
}[os.uname().machine]  # fmt: skip
_NAMES = {number: name for name, number in _NUMBERS.items()}

_SECCOMP, _PIDFD_GETFD = {"x86_64": (317, 438), "aarch64": (277, 438)}[os.uname().machine]
_SET_FILTER, _NEW_LISTENER, _NO_NEW_PRIVS = 1, 1 << 3, 38
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF instructions
_ASK, _ALLOW = 0x7FC00000, 0x7FFF0000
_RECEIVE, _ANSWER, _PASS = 0xC0502100, 0xC0182101, 1  # ioctls of a listener, and the flag that lets a call go on
_AT_FDCWD = 0xFFFFFF9C
_PAGE_BYTES = 4096

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Call:
    """One call on a file below the watched folder."""

    name: str
    path: str

    def __str__(self) -> str:
        return f"{self.name} {self.path}"


@dataclass(frozen=True)
class Report:
    """How a process ended: the result of its work or None, the traceback if it raised, and its calls in order."""

    value: Any
    died: str
    calls: tuple[Call, ...]


_BEGIN, _PAUSE = "calls-count-from-here", "calls-count-no-more"


def begin(root: Path) -> None:
    """Called in the process under test: count calls from here."""
    with contextlib.suppress(OSError):
        os.stat(root / _BEGIN)


def pause(root: Path) -> None:
    """Called in the process under test: count no calls until the next `begin`."""
    with contextlib.suppress(OSError):
        os.stat(root / _PAUSE)


def supervised(work: Callable[[], Any], root: Path, *, fail: int = 0, error: int = 0) -> Report:
    """Do `work` in a fork, and answer its `fail`-th call on files below `root` with `error`; 0 fails none.

    Calls of processes that the fork starts are let through.
    """
    with tempfile.TemporaryFile() as result:
        pid = os.fork()
        if pid == 0:
            os._exit(_do(work, result))
        supervisor = Supervisor(pid, root, fail=fail, error=error)
        try:
            supervisor.serve()
        finally:
            os.waitpid(pid, 0)
        result.seek(0)
        value, died = pickle.load(result)
    return Report(value, died, tuple(supervisor.calls))


def _do(work: Callable[[], Any], result: Any) -> int:
    try:
        listen()
        answer: tuple[Any, str] = (work(), "")
    except BaseException:
        answer = (None, traceback.format_exc())
    sys.stdout.flush()
    pickle.dump(answer, result)
    result.flush()
    return 0


LISTENER = 200  # the descriptor in the process under test, where the supervisor finds it


def listen() -> None:
    """Pass every file call of this process and its children to a supervisor, which may come later."""
    numbers = sorted(_NUMBERS.values())
    lines = [_instruction(_LOAD, 0)]
    for at, number in enumerate(numbers):
        lines.append(_instruction(_IF_EQUAL, number, then=len(numbers) - at))
    lines += [_instruction(_RETURN, _ALLOW), _instruction(_RETURN, _ASK)]
    code = ctypes.create_string_buffer(b"".join(lines))
    program = struct.pack("@HP", len(lines), ctypes.addressof(code))
    _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    listener = _libc.syscall(_SECCOMP, _SET_FILTER, _NEW_LISTENER, program)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "this kernel passes no calls to a supervisor")
    os.dup2(listener, LISTENER, inheritable=False)
    os.close(listener)


def _instruction(code: int, value: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)


class Supervisor:
    """Answers the calls of the process `pid`, which is about to `listen`, until it and all its children have ended."""

    def __init__(self, pid: int, root: Path, *, fail: int, error: int) -> None:
        self.calls: list[Call] = []
        self._pid = pid
        self._root = os.fspath(root)
        self._fail = fail
        self._error = error
        self._counting = False
        self._listener = _listener_of(pid)

    def serve(self) -> None:
        waiting = select.poll()
        waiting.register(self._listener, select.POLLIN)
        while True:
            [(_, events)] = waiting.poll()
            if not events & select.POLLIN:
                break
            try:
                self._answer()
            except FileNotFoundError:
                continue  # the calling process was killed while it waited
        os.close(self._listener)

    def serve_in_background(self) -> threading.Thread:
        thread = threading.Thread(target=self.serve, name="supervisor", daemon=True)
        thread.start()
        return thread

    def _answer(self) -> None:
        asked = bytearray(80)
        fcntl.ioctl(self._listener, _RECEIVE, asked)
        cookie, caller, _, number, _, _ = struct.unpack_from("QIIiIQ", asked)
        refuse = self._is_due(caller, number, struct.unpack_from("6Q", asked, 32))
        code, flags = (-self._error, 0) if refuse else (0, _PASS)
        fcntl.ioctl(self._listener, _ANSWER, bytearray(struct.pack("QqiI", cookie, 0, code, flags)))

    def _is_due(self, caller: int, number: int, arguments: tuple[int, ...]) -> bool:
        name = _NAMES[number]
        if not os.path.exists(f"/proc/{self._pid}/task/{caller}"):
            return False
        path = _path(caller, _CALLS[name], arguments)
        if not path.startswith(self._root):
            return False
        if path.endswith((_BEGIN, _PAUSE)):
            self._counting = path.endswith(_BEGIN)
            return False
        if not self._counting:
            return False
        self.calls.append(Call(name, path.removeprefix(self._root)))
        return len(self.calls) == self._fail


def _listener_of(pid: int) -> int:
    """A copy in this process of the listener that the process `pid` makes."""
    handle = os.pidfd_open(pid)
    try:
        while True:
            found: int = _libc.syscall(_PIDFD_GETFD, handle, LISTENER, 0)
            if found >= 0:
                return found
            if select.select([handle], [], [], 0.0005)[0]:
                raise AssertionError("the process ended before it could be supervised")
    finally:
        os.close(handle)


def _path(caller: int, place: tuple[str, int], arguments: tuple[int, ...]) -> str:
    kind, at = place
    try:
        if kind == _FD:
            return os.readlink(f"/proc/{caller}/fd/{arguments[at] & 0xFFFFFFFF}")
        path = _text(caller, arguments[at + 1] if kind == _AT else arguments[at])
        if path.startswith("/"):
            return path
        folder = arguments[at] & 0xFFFFFFFF
        where = "cwd" if kind == _PATH or folder == _AT_FDCWD else f"fd/{folder}"
        return f"{os.readlink(f'/proc/{caller}/{where}')}/{path}"
    except OSError:
        return ""


def _text(caller: int, address: int) -> str:
    with open(f"/proc/{caller}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        text = memory.read(_PAGE_BYTES - address % _PAGE_BYTES)  # the next page may not be mapped
        while b"\0" not in text:
            text += memory.read(_PAGE_BYTES)
        return os.fsdecode(text.partition(b"\0")[0])
