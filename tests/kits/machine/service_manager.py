"""The other end of the notification socket: what systemd would hear from a daemon."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class ServiceManager:
    """Listens on a datagram socket as systemd does, and remembers every message as its lines."""

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

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
            ours.sendto(b"", f"\0{self.address[1:]}" if self.address.startswith("@") else self.address)
        self._thread.join()
        self._socket.close()

    @property
    def lines(self) -> list[str]:
        """Everything that was said, line by line."""
        return [line for message in self.messages for line in message]

    @property
    def statuses(self) -> list[str]:
        """Each STATUS, without its name."""
        return [line.removeprefix("STATUS=") for line in self.lines if line.startswith("STATUS=")]

    def wait_for(self, heard: Callable[[str], bool], *, seconds: float = 40.0) -> str:
        """The first line for which `heard` is true, also one that has come already."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = next((line for line in self.lines if heard(line)), None)
            if found is not None:
                return found
            time.sleep(0.02)
        raise AssertionError(f"not heard within {seconds} s: {self.lines}")


@contextmanager
def listening(folder: Path) -> Iterator[ServiceManager]:
    manager = ServiceManager(str(folder / "notify"))
    try:
        yield manager
    finally:
        manager.close()
