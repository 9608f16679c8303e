"""A system call filter: no new process, no socket, and none of the calls that a decoder has no legitimate use for.

Threads stay possible: of `clone`, only the form that makes one is allowed. `clone3` passes its flags in memory, where a
filter cannot read them; it counts as missing, so that the C library falls back to `clone`. `prlimit64`, `kill` and
their like reach only the process itself.

Owns the filter. Leaves the lists of calls to `call_table`, and the moment to `launcher` and the jailed Python programs.
Source: Linux, Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Iterator, Sequence

from lipsyncd.sandbox.call_table import CallTable, table_of

_X32_CALLS = 0x40000000  # a second set of numbers for the calls of x86_64

_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF instructions
_CALL_AT, _MACHINE_AT, _ARGUMENTS_AT = 0, 4, 16  # byte offsets in the kernel's `seccomp_data`
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000

_CLONE_THREAD = 0x00010000
_SET_PARENT_DEATH_SIGNAL = 1  # of `prctl`: without that signal, a program could outlive the daemon
# Of `fcntl`: whom a descriptor signals, watching a folder, and the size of a pipe, which no memory limit counts.
_REFUSED_OF_FCNTL = (8, 15, 1026, 1031)  # F_SETOWN, F_SETOWN_EX, F_NOTIFY, F_SETPIPE_SZ
_SIGNALS = ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")
_NEW_PROCESSES = ("fork", "vfork")  # EPERM, as a limit of the system gives it

_SET_SECCOMP, _SET_NO_NEW_PRIVILEGES, _FILTER = 22, 38, 2


def restrict(*, memory_files: bool = False) -> bool:
    """Refuse those calls to this process, and to the program that it becomes.

    memory_files  allow `memfd_create`

    A refused call gives EACCES; one that would make a process EPERM. Returns False on a machine that is not in the
    table. The process must have set no_new_privs. Raises OSError where the kernel has no filters.
    """
    table = table_of(os.uname().machine)
    if table is None:
        return False
    _install(program(table, os.getpid(), memory_files=memory_files))
    return True


def give_up(*names: str) -> bool:
    """Refuse calls of the conditional list to this process from now on, whatever their arguments; see `restrict`.

    For a jailed Python program that needs a call while it starts, and never again once it reads hostile bytes.
    """
    table = table_of(os.uname().machine)
    if table is None:
        return False
    _prctl(_SET_NO_NEW_PRIVILEGES, ctypes.c_ulong(1), ctypes.c_ulong(0))
    _install(_assembled(table, [_refusal(table.others[name], errno.EACCES) for name in names]))
    return True


def program(table: CallTable, own: int, *, memory_files: bool) -> list[bytes]:
    """The filter that `restrict` installs, as instructions of BPF; `own` is the id of its process."""
    return _assembled(table, _blocks(table, own, memory_files=memory_files))


def _blocks(table: CallTable, own: int, *, memory_files: bool) -> Iterator[list[bytes]]:
    """The instructions for each call. The process id stays the same when another program is run."""
    others, me = table.others, [(_IF_EQUAL, own)]
    yield _allowed_if(others["clone"], 0, [(_IF_ANY_BIT, _CLONE_THREAD)], errno.EPERM)
    yield _refusal(others["clone3"], errno.ENOSYS)
    yield from (_refusal(call, _error_of(name)) for name, call in table.refused.items())
    yield from (_allowed_if(others[name], 0, me, errno.EACCES) for name in _SIGNALS)
    yield _allowed_if(others["prlimit64"], 0, [(_IF_EQUAL, 0), *me], errno.EACCES)
    yield _refused_if(others["prctl"], 0, [_SET_PARENT_DEATH_SIGNAL])
    yield _refused_if(others["fcntl"], 1, _REFUSED_OF_FCNTL)
    if not memory_files:
        yield _refusal(others["memfd_create"], errno.EACCES)


def _error_of(name: str) -> int:
    return errno.EPERM if name in _NEW_PROCESSES else errno.EACCES


def _refusal(call: int, error: int) -> list[bytes]:
    return [_instruction(_IF_EQUAL, call, otherwise=1), _instruction(_RETURN, _ERROR | error)]


def _allowed_if(call: int, argument: int, tests: Sequence[tuple[int, int]], error: int) -> list[bytes]:
    return _choice(call, argument, tests, _ALLOW, _ERROR | error)


def _refused_if(call: int, argument: int, values: Iterable[int]) -> list[bytes]:
    return _choice(call, argument, [(_IF_EQUAL, value) for value in values], _ERROR | errno.EACCES, _ALLOW)


def _choice(call: int, argument: int, tests: Sequence[tuple[int, int]], passed: int, failed: int) -> list[bytes]:
    """`passed` if one of the tests holds for an argument of the call, else `failed`.

    The kernel declares these arguments as `int` or uses none of their upper bits, so the lower 32 are the argument.
    """
    body = [
        _instruction(_LOAD, _ARGUMENTS_AT + 8 * argument),  # both machines are little-endian
        *(_instruction(test, value, then=len(tests) - at) for at, (test, value) in enumerate(tests)),
        _instruction(_RETURN, failed),
        _instruction(_RETURN, passed),
    ]
    return [_instruction(_IF_EQUAL, call, otherwise=len(body)), *body]


def _assembled(table: CallTable, blocks: Iterable[list[bytes]]) -> list[bytes]:
    """Calls with another numbering (32 bit, x32) are all refused, since the table does not fit."""
    refuse = _instruction(_RETURN, _ERROR | errno.EACCES)
    return [
        _instruction(_LOAD, _MACHINE_AT),
        _instruction(_IF_EQUAL, table.audit, then=1),
        refuse,
        _instruction(_LOAD, _CALL_AT),
        _instruction(_IF_AT_LEAST, _X32_CALLS, otherwise=1),
        refuse,
        *(instruction for block in blocks for instruction in block),
        _instruction(_RETURN, _ALLOW),
    ]


def _install(instructions: list[bytes]) -> None:
    code = ctypes.create_string_buffer(b"".join(instructions))
    whole = struct.pack("@HP", len(instructions), ctypes.addressof(code))
    _prctl(_SET_SECCOMP, ctypes.c_ulong(_FILTER), whole)


def _prctl(option: int, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    padding = [ctypes.c_ulong(0)] * (4 - len(arguments))
    if libc.prctl(ctypes.c_int(option), *arguments, *padding):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")


def _instruction(code: int, value: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)
