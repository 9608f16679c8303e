"""A terminal for commands: what they draw in it, and what a user types."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable

from tests.kits.installation import Installation


class Terminal:
    """A command in a terminal of its own, in a `with` block; it is killed at its end.

    written  what it has written so far, without the codes for colours and movements
    """

    def __init__(self, installation: Installation, *arguments: str, width: int = 80, **environment: str) -> None:
        self._pid, self._descriptor = pty.fork()
        if self._pid == 0:
            os.environ.update(installation.environment(TERM="xterm-256color", **environment))
            command = [sys.executable, "-m", "lipsyncd", "--config", str(installation.config), *arguments]
            os.execv(sys.executable, command)
        fcntl.ioctl(self._descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
        self._bytes = b""
        self.status: int | None = None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.status is None:
            os.kill(self._pid, signal.SIGKILL)  # closing the terminal ends no process that was started under nohup
            os.waitpid(self._pid, 0)
        os.close(self._descriptor)

    @property
    def written(self) -> str:
        text = self._bytes.decode(errors="replace").replace("\r\n", "\n")
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def until(self, seen: Callable[[str], object], *, seconds: float = 60.0) -> str:
        """What it has written, as soon as that is as wanted."""
        deadline = time.monotonic() + seconds
        while not seen(self.written):
            assert time.monotonic() < deadline, self.written
            if select.select([self._descriptor], [], [], 0.05)[0]:
                try:
                    self._bytes += os.read(self._descriptor, 65536)
                except OSError:  # it has ended
                    assert seen(self.written), self.written
                    break
        return self.written

    def end(self, *, seconds: float = 60.0) -> str:
        """What it has written when it has ended; `status` is its exit status then."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                self._bytes += os.read(self._descriptor, 65536)
            except OSError:
                self.status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
                return self.written
        raise AssertionError(self.written)
