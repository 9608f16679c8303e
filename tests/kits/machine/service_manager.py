"""The receiving end of the notification socket: the messages that systemd would get from a daemon."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class ServiceManager:
    """Listens on a datagram socket as systemd does, and keeps every message as a list of lines."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.messages: list[list[str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while message := self._socket.recv(65536):
            self.messages.append(message.decode().split("\n"))

    def _send(self, message: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
            ours.sendto(message, f"\0{self.address[1:]}" if self.address.startswith("@") else self.address)

    def catch_up(self) -> None:
        """Return when everything was read that has been sent so far."""
        mark = f"X_CAUGHT_UP={uuid.uuid4()}"
        self._send(mark.encode())
        self.wait_for(mark.__eq__)

    def close(self) -> None:
        self._send(b"")
        self._thread.join()
        self._socket.close()

    @property
    def lines(self) -> list[str]:
        """The lines of all messages."""
        return [line for message in self.messages for line in message]

    @property
    def statuses(self) -> list[str]:
        """The value of each STATUS."""
        return [line.removeprefix("STATUS=") for line in self.lines if line.startswith("STATUS=")]

    def wait_for(self, wanted: Callable[[str], bool], *, seconds: float = 40.0) -> str:
        """The first line for which `wanted` is true, of those that have come and those that come now."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = next((line for line in self.lines if wanted(line)), None)
            if found is not None:
                return found
            time.sleep(0.02)
        raise AssertionError(f"no such line within {seconds} s: {self.lines}")


@contextmanager
def listening(folder: Path) -> Iterator[ServiceManager]:
    manager = ServiceManager(str(folder / "notify"))
    try:
        yield manager
    finally:
        manager.close()
