"""Ask the kernel whether a file is still open for writing, and keep the right to ask.

A read lease is granted only while no process of this machine has the file open for writing. The kernel grants one on
files of our own user. On files of others it needs CAP_LEASE in the first user namespace: in any other namespace the
capability shows and the kernel still refuses. Source: fcntl(2), "Leases"; capabilities(7).

Owns the capability: programs that we start get none. Leaves to `inbox` what an answer means for a file.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lipsyncd.storage.files import open_regular
from lipsyncd.storage.mounts import refuses_leases

_CAP_AMBIENT, _CLEAR_ALL = 47, 4  # prctl(2)
_CAPABILITIES_V3 = 0x20080522
_NOBODY = 65534


# -- the right ---------------------------------------------------------------------------------------------------------


def keep_rights_from_children() -> None:
    """Call once, before other threads start: programs that are started later get no capability, and we keep ours.

    The unit and the container's entry point give CAP_LEASE as an ambient capability, which every program inherits.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    libc.prctl(ctypes.c_int(_CAP_AMBIENT), ctypes.c_ulong(_CLEAR_ALL), zero, zero, zero)
    # Effective, permitted and inheritable, each of 64 bits in two halves. The unit's filter refuses the second call.
    # What is inheritable counts only for a program whose file has capabilities, and NoNewPrivileges ignores those.
    header, sets = (ctypes.c_uint32 * 2)(_CAPABILITIES_V3, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets) == 0:
        sets[2] = sets[5] = 0
        libc.capset(header, sets)


def sees_other_users_writers(scratch: Path) -> bool | None:
    """Does the kernel give us a lease on a file of another owner? Tried on one; None when there is none to try.

    scratch  a folder where root, who owns the usual ones, may make a file and give it away

    Call `expect_lease_signals` before.
    """
    for descriptor in _files_of_others(scratch):
        code = _lease_refusal(descriptor)
        if code in (0, errno.EAGAIN):
            return True
        if code in (errno.EACCES, errno.EPERM):
            return False
    return None


def _files_of_others(scratch: Path) -> Iterator[int]:
    """Descriptors of regular files of other owners, each open for reading until the next one is asked for."""
    for path in ("/etc/passwd", os.path.realpath(sys.executable)):
        with suppress(OSError):
            yield from _while_open(open_regular(path))
    if os.geteuid() == 0:
        with suppress(OSError), tempfile.TemporaryFile(dir=scratch) as made:
            os.fchown(made.fileno(), _NOBODY, -1)
            yield from _while_open(os.open(f"/proc/self/fd/{made.fileno()}", os.O_RDONLY | os.O_CLOEXEC))


def _while_open(descriptor: int) -> Iterator[int]:
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            yield descriptor
    finally:
        os.close(descriptor)


# -- the question ------------------------------------------------------------------------------------------------------


def expect_lease_signals() -> None:
    """Call once, in the main thread, before any lease: one that breaks sends SIGIO, which kills."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)


def written_by_others(descriptor: int) -> bool | None:
    """Does a process on this machine hold the file open for writing? None when the kernel gives no answer.

    It sees local writers (smbd and knfsd too), never remote ones.
    """
    code = _lease_refusal(descriptor)
    if code == errno.EAGAIN:
        # NFS and CIFS refuse a lease this way wherever the server has not delegated the file to us.
        return None if refuses_leases(descriptor) else True
    return None if code else False


def _lease_refusal(descriptor: int) -> int:
    """The error number with which the kernel refuses a read lease; 0 for one that it grants and that we give back."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno or errno.EINVAL
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return 0
