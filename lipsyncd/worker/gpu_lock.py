"""One render at a time on each GPU of this machine, in whatever program: a daemon, `lipsyncd render`, a Python program.

The lock is a name in the kernel's abstract namespace of Unix sockets, made of the GPU's UUID. So it needs no file that
all users may write, it ends with its holder however that ends, and a waiting process learns who the holder is. It is
held during a render and not while a child only keeps its weights.

A CPU has no lock: the kernel shares it. Neither has `preview`, which uses no GPU. Containers that have a network of
their own have a lock of their own. Source: unix(7), abstract sockets and SO_PEERCRED.
"""

from __future__ import annotations

import contextlib
import errno
import pwd
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lipsyncd.log import printable
from lipsyncd.monitor import gpu
from lipsyncd.worker.child_process import RenderCancelled

WAITING = "waiting for the GPU"  # the stage of a job meanwhile
WITHOUT_GPU = ("preview",)
_TICK_S = 0.2
_BACKLOG = 64  # processes that wait at the same time and learn at once when it is free
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


@contextlib.contextmanager
def gpu_lock(
    device: str, renderer: str, *, stop: Callable[[], bool], waits_for: Callable[[str], None]
) -> Iterator[None]:
    """Hold the lock of the GPU that this renderer uses on this device, if it uses one.

    stop       called several times a second while the lock is another's; True ends the wait
    waits_for  called with a sentence about each holder that is waited for

    Raises `RenderCancelled` after a stop.
    """
    found = "" if renderer in WITHOUT_GPU else gpu.uuid(device)
    if not found:
        yield
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as lock:
        while not _take(lock, f"\0lipsyncd/{found}"):
            _wait(f"\0lipsyncd/{found}", stop, lambda who: waits_for(f"{found} is in use by {who}"))
        yield


def _take(lock: socket.socket, name: str) -> bool:
    try:
        lock.bind(name)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    lock.listen(_BACKLOG)
    return True


def _wait(name: str, stop: Callable[[], bool], report: Callable[[str], None]) -> None:
    """Return when the holder has let go, or might have."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as line:
        line.setblocking(False)
        try:
            line.connect(name)
        except OSError:  # it has gone this moment, does not listen yet, or too many wait
            time.sleep(_TICK_S / 10)
            if stop():
                raise RenderCancelled(name[1:]) from None
            return
        report(_holder(line))
        waiting = select.poll()
        waiting.register(line, select.POLLIN)
        while not waiting.poll(_TICK_S * 1000):  # the line breaks when the holder closes its end
            if stop():
                raise RenderCancelled(name[1:])


def _holder(line: socket.socket) -> str:
    """The holder as the kernel knows it, such as "process 4711 (lipsyncd) of user ada"."""
    credentials = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    try:
        name = printable(Path(f"/proc/{pid}/comm").read_bytes().strip())
    except OSError:  # another container's, or hidden
        return f"process {pid} of user {user}"
    return f"process {pid} ({name}) of user {user}"
