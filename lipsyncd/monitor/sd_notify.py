"""What systemd hears from us: one datagram a message, over the socket that it names in the environment.

Without that socket every call does nothing, and no failure reaches the daemon: whether it is heard changes no job.
Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping

_PATIENCE_S = 2.0  # systemd reads nothing while it reloads itself


class Notifier:
    """The line to systemd, if there is one. Takes its variables out of `environ`, so that no child speaks for us.

    watchdog_s  systemd ends a service that has not said WATCHDOG=1 for this long; 0 when it does not watch
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        self._address = environ.pop("NOTIFY_SOCKET", "")
        watched = environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        limit_us = environ.pop("WATCHDOG_USEC", "")
        self.watchdog_s = int(limit_us) / 1e6 if watched and limit_us.isdecimal() else 0.0

    @property
    def heard(self) -> bool:
        """Is there a systemd that listens?"""
        return self._address.startswith(("/", "@"))

    def tell(self, *assignments: str) -> None:
        """Send assignments such as "READY=1"; a line break in one of them would begin another."""
        if not self.heard:
            return
        address = f"\0{self._address[1:]}" if self._address[0] == "@" else self._address
        message = "\n".join(line.replace("\n", " ") for line in assignments)
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as ours,
        ):
            ours.settimeout(_PATIENCE_S)
            ours.sendto(message.encode("utf-8", "replace"), address)
