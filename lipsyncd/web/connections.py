"""Accepts connections, as many as there is room for, and chooses which one is closed when there are too many.

A connection without a request under way costs a descriptor and nothing else, so a client may hold many. At the bound
the one that has been idle longest is closed; then a client whose request is under way and that has sent nothing for
longer than any answer may take. What has just been accepted stays for a second, since its request may be on its way:
newcomers then wait in the kernel's queue. An address has a bound of its own, for its idle connections only: behind a
proxy all clients have the same one.

Owns accepting, since asyncio's own logs each failure of `accept` hundreds of times and tries again at once.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lipsyncd.web.connection import Connection

log = logging.getLogger(__name__)

_OTHER_FILES = 256  # descriptors for everything but connections
_FILES_OF_ONE = 2  # of a connection whose request is under way: the socket and a file
_FEWEST = 16
_YOUNG_S = 1.0
_SILENT_S = 75.0  # more than a wait for the end of a job
_AGAIN_S = 0.1
_SHORT_OF_FILES_S = 1.0
_COMPLAIN_EVERY_S = 60.0
_AT_A_TIME = 64
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def most_connections(wanted: int) -> int:
    """`wanted`, or fewer where this process may not open enough files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    return min(wanted, max(_FEWEST, (soft - _OTHER_FILES) // _FILES_OF_ONE))


class Connections:
    """The open connections of one server, all in one thread.

    most          at a time
    most_idle     of one address without a request under way
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.most_idle = max(_FEWEST, most // 4)
        # Ordered: the one that became idle, or began its request, first is first. With the time of that.
        self._idle: dict[Connection, float] = {}
        self._busy: dict[Connection, float] = {}
        self._streams: set[Connection] = set()  # they are never closed here: `web.views.streams` bounds them
        self._idle_of: dict[str, dict[Connection, float]] = defaultdict(dict)

    def __len__(self) -> int:
        return len(self._idle) + len(self._busy) + len(self._streams)

    def set_idle(self, connection: Connection, now_s: float) -> None:
        """It has no request under way, from now on."""
        self.forget(connection)
        self._idle[connection] = self._idle_of[connection.address][connection] = now_s

    def set_busy(self, connection: Connection, now_s: float) -> None:
        """A request of it is under way, from now on."""
        self.forget(connection)
        self._busy[connection] = now_s

    def set_stream(self, connection: Connection) -> None:
        """Its request is answered by a stream of events, from now on."""
        self.forget(connection)
        self._streams.add(connection)

    def forget(self, connection: Connection) -> None:
        self._busy.pop(connection, None)
        self._streams.discard(connection)
        if self._idle.pop(connection, None) is None:
            return
        of_address = self._idle_of[connection.address]
        del of_address[connection]
        if not of_address:
            del self._idle_of[connection.address]

    @property
    def most_streams(self) -> int:
        """Half of the connections; the rest stays for requests."""
        return max(1, self.most // 2)

    @property
    def full(self) -> bool:
        return len(self) >= self.most

    def close_one_of(self, address: str, now_s: float) -> None:
        """Close the longest idle one of an address that has as many of them as one may have."""
        of_address = self._idle_of.get(address, {})
        if len(of_address) >= self.most_idle:
            self._close_idle(of_address, now_s)

    def close_one(self, now_s: float) -> bool:
        """Close the connection that is needed least; False when all of them are needed."""
        if self._close_idle(self._idle, now_s):
            return True
        silent = next((one for one in self._busy if now_s - one.received_s > _SILENT_S), None)
        if silent is not None:
            self._close(silent)
        return silent is not None

    def _close_idle(self, among: dict[Connection, float], now_s: float) -> bool:
        longest = next(iter(among), None)
        if longest is None or now_s - among[longest] < _YOUNG_S:
            return False
        self._close(longest)
        return True

    def _close(self, connection: Connection) -> None:
        self.forget(connection)
        connection.abort()


class Listener:
    """Accepts the connections of the sockets, from `start` to `stop`. `connect` makes one for the client's address."""

    def __init__(
        self, sockets: Sequence[socket.socket], connections: Connections, connect: Callable[[str], Connection]
    ) -> None:
        self._sockets = sockets
        self._connections = connections
        self._connect = connect
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: dict[socket.socket, asyncio.TimerHandle] = {}
        self._complained_s = float("-inf")

    def start(self) -> None:
        for listener in self._sockets:
            listener.setblocking(False)
            self._loop.add_reader(listener, self._accept, listener)

    def stop(self) -> None:
        for listener in self._sockets:
            self._loop.remove_reader(listener)
        for timer in self._timers.values():
            timer.cancel()

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_AT_A_TIME):
            now_s = self._loop.time()
            if self._connections.full and not self._connections.close_one(now_s):
                self._complain(f"{len(self._connections)} connections are open, as many as may be; clients wait")
                self._pause(listener, _AGAIN_S)
                return
            try:
                line, address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                closed = error.errno in _SHORT and self._connections.close_one(now_s)
                self._complain(f"no connection can be accepted: {error.strerror}")
                self._pause(listener, _AGAIN_S if closed else _SHORT_OF_FILES_S)
                return
            self._take(line, str(address[0]), now_s)

    def _take(self, line: socket.socket, address: str, now_s: float) -> None:
        self._connections.close_one_of(address, now_s)
        line.setblocking(False)
        connection = self._connect(address)
        self._connections.set_idle(connection, now_s)
        task = self._loop.create_task(self._serve(line, connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, line: socket.socket, connection: Connection) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: connection, line)
        except OSError as error:
            self._connections.forget(connection)
            line.close()
            log.debug("a connection ended before it began: %s", error)

    def _pause(self, listener: socket.socket, seconds: float) -> None:
        """Leave new clients in the kernel's queue for a while."""
        self._loop.remove_reader(listener)
        self._timers[listener] = self._loop.call_later(seconds, self._resume, listener)

    def _resume(self, listener: socket.socket) -> None:
        self._loop.add_reader(listener, self._accept, listener)

    def _complain(self, what: str) -> None:
        """Log it, at most once a minute."""
        if self._loop.time() - self._complained_s >= _COMPLAIN_EVERY_S:
            self._complained_s = self._loop.time()
            log.warning("REST: %s", what)
