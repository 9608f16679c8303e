"""A system call filter: no sockets, and none of the calls that a decoder has no legitimate use for.

Landlock covers files and TCP, but neither UDP nor named unix sockets (a container engine's, for example). So `socket`
itself is refused, and `io_uring`, which could open one past the filter. The other calls reach into other processes, or
into parts of the kernel where most escapes were found.

Owns the filter. Leaves the moment to `launcher`. Source: Linux, Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence

# machine: (its number in the kernel's audit interface, numbers of the refused calls in the order of the names below)
#   socket  io_uring_setup  ptrace  process_vm_readv  process_vm_writev  unshare  setns
#   bpf  perf_event_open  userfaultfd  add_key  request_key  keyctl
_MACHINES = {
    "x86_64": (0xC000003E, (41, 425, 101, 310, 311, 272, 308, 321, 298, 323, 248, 249, 250)),
    "aarch64": (0xC00000B7, (198, 425, 117, 270, 271, 97, 268, 280, 241, 282, 217, 218, 219)),
}
_X32_CALLS = 0x40000000  # a second set of numbers for the calls of x86_64

_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF instructions
_CALL_AT, _MACHINE_AT = 0, 4  # byte offsets in the kernel's `seccomp_data`
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EACCES

_SET_SECCOMP, _FILTER = 22, 2


def restrict() -> bool:
    """Refuse those calls (EACCES) to this process and every process it starts.

    Returns False on an architecture that is not in the table. The process must have set no_new_privs. Raises OSError
    where the kernel has no filters.
    """
    known = _MACHINES.get(os.uname().machine)
    if known is None:
        return False
    instructions = _program(*known)
    code = ctypes.create_string_buffer(b"".join(instructions))
    program = struct.pack("@HP", len(instructions), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(ctypes.c_int(_SET_SECCOMP), ctypes.c_ulong(_FILTER), program, ctypes.c_ulong(0), ctypes.c_ulong(0)):
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")
    return True


def _program(machine: int, refused: Sequence[int]) -> list[bytes]:
    """The filter as BPF. Calls with another numbering (32 bit, x32) are all refused, since the table does not fit."""
    refusal = len(refused) + 5  # index of the last instruction; a jump is counted from the instruction after it
    return [
        _instruction(_LOAD, _MACHINE_AT),
        _instruction(_IF_EQUAL, machine, otherwise=refusal - 2),
        _instruction(_LOAD, _CALL_AT),
        _instruction(_IF_AT_LEAST, _X32_CALLS, then=refusal - 4),
        *(_instruction(_IF_EQUAL, call, then=refusal - at - 1) for at, call in enumerate(refused, start=4)),
        _instruction(_RETURN, _ALLOW),
        _instruction(_RETURN, _REFUSE),
    ]


def _instruction(code: int, value: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, then, otherwise, value)
