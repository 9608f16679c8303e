"""Renderers for the test of the service, which copies this file beside the installed package."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers import Scene

_CLONE_NEWUSER = 0x10000000


@dataclass
class Shot:
    """Grey frames, each after `wait_s`."""

    scene: Scene
    wait_s: float
    notes: Mapping[str, object] = field(default_factory=dict)

    @property
    def width(self) -> int:
        return self.scene.resolution

    height = width

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        for _ in range(self.scene.frames):
            time.sleep(self.wait_s)
            yield np.full((self.height, self.width, 3), 128, np.uint8)


class Slow:
    """Five frames a second."""

    wait_s = 0.2

    def __init__(self, device: str) -> None:
        self.device = device

    def open(self, scene: Scene) -> Shot:
        return Shot(scene, self.wait_s)

    def close(self) -> None:
        pass


class ForbiddenAttempts(Slow):
    """Tries, as a process of the service, what the unit forbids, and writes the outcomes into the state folder."""

    wait_s = 0.0

    def open(self, scene: Scene) -> Shot:
        tried = {name: _outcome(attempt) for name, attempt in ATTEMPTS.items()}
        Path("/var/lib/lipsyncd/state/attempts.json").write_text(json.dumps(tried))
        return super().open(scene)


def _outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return os.strerror(error.errno or 0)
    return "done"


def _unshare() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "unshare")


def _setgid() -> None:
    folder = Path("/var/lib/lipsyncd/state/setgid")
    folder.mkdir(exist_ok=True)
    folder.chmod(0o2770)


def _lease() -> None:
    """The daemon's one right, on a file of root."""
    with Path("/etc/passwd").open() as file:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)


ATTEMPTS: Mapping[str, Callable[[], object]] = {
    "write the state": lambda: Path("/var/lib/lipsyncd/state/probe").write_text(""),
    "write the outbox": lambda: Path("/srv/lipsyncd/outbox/.probe").write_text(""),
    "write elsewhere": lambda: Path("/usr/local/elsewhere/probe").write_text(
        ""
    ),  # the only writable folder would be its own
    "write /etc": lambda: Path("/etc/lipsyncd/probe").write_text(""),
    "write the program": lambda: Path("/opt/lipsyncd/probe").write_text(""),
    "list /root": lambda: os.listdir("/root"),
    "read /home": lambda: Path("/home/alice/.bashrc").read_text(),
    "read the key's file": lambda: Path("/etc/lipsyncd/api-key").read_text(),
    "open a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
    "open a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
    "make a namespace": _unshare,
    "set a setgid bit": _setgid,
    "ask who writes another user's file": _lease,
    "open the kernel log": lambda: Path("/dev/kmsg").read_text(),
    "read another user's process": lambda: Path("/proc/1/status").read_text(),
}
