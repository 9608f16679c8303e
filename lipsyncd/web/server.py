"""The server and its thread. It binds its port before the daemon starts anything else, and serves until it is stopped.

The thread has an asyncio loop of its own, so that nothing in the daemon waits for a client. A port that is in use is a
wrong setting and fails the start.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from aiohttp import web

from lipsyncd.errors import ConfigError
from lipsyncd.monitor.probe import HealthMonitor
from lipsyncd.settings import CurrentSettings, Settings
from lipsyncd.storage.folders import Folders
from lipsyncd.web.access import Access, public
from lipsyncd.web.browsers.sessions import Sessions
from lipsyncd.web.connection import Connection
from lipsyncd.web.connections import Connections, Listener, most_connections
from lipsyncd.web.jobs import Jobs
from lipsyncd.web.keys import read_keys, without_admin
from lipsyncd.web.links import Links
from lipsyncd.web.replies import json_reply
from lipsyncd.web.requests import Requests
from lipsyncd.web.routes.did_api import TalkRoutes
from lipsyncd.web.routes.did_refusals import PlaceholderRoutes
from lipsyncd.web.routes.downloads import DownloadRoutes
from lipsyncd.web.routes.health import HealthRoutes
from lipsyncd.web.routes.jobs_api import JobRoutes
from lipsyncd.web.routes.jobs_events import JobEventRoutes
from lipsyncd.web.routes.jobs_orders import JobOrderRoutes
from lipsyncd.web.routes.original_api import OriginalRoutes
from lipsyncd.web.routes.page import PageRoutes
from lipsyncd.web.routes.sessions import SessionRoutes
from lipsyncd.web.routes.speech import SpeechRoutes
from lipsyncd.web.routes.voices import Voices
from lipsyncd.web.uploads import CheckedUploads
from lipsyncd.web.views.bodies import JobBodies
from lipsyncd.web.views.changes import Changes
from lipsyncd.web.views.kept import KeptOrders
from lipsyncd.web.views.queue import SlotCount
from lipsyncd.web.views.streams import Streams
from lipsyncd.web.views.waits import Waits

log = logging.getLogger(__name__)

_BODY_BYTES = 1 << 20  # of JSON; forms are counted elsewhere
_BACKLOG = 256
_HEAD_WITHIN_S = 20.0
_STOP_S = 2.0
_DOCUMENT = Path(__file__).with_name("openapi.json")


class WebServer:
    """The REST service of one daemon. `start` and `stop` are called from the main thread.

    ffmpeg        decodes uploads
    model_loaded  is a renderer loaded now?
    monitor       answers health checks and metrics
    slots         how many jobs can be rendered at a time now, and how many are

    Raises `ConfigError`: no key where one is needed, an address or a port that cannot be bound.
    """

    def __init__(
        self,
        settings: CurrentSettings,
        folders: Folders,
        ffmpeg: Path,
        model_loaded: Callable[[], bool],
        monitor: HealthMonitor,
        slots: Callable[[], SlotCount],
    ) -> None:
        self.settings = settings
        self.folders = folders
        self.ffmpeg = ffmpeg
        self.model_loaded = model_loaded
        self.monitor = monitor
        self.slots = slots
        self._head_within_s = min(_HEAD_WITHIN_S, settings.now.web.upload_timeout_s)
        keys = read_keys(settings.now.web)
        self.links = Links(folders.state, signed=bool(keys))
        self.access = Access(settings, keys, Sessions(folders.state, keys) if settings.now.web.page else None)
        self._sockets = _bind(settings.now.web.host, settings.now.web.port)
        self.port: int = self._sockets[0].getsockname()[1]
        self.access.cookie = f"lipsyncd-{self.port}"  # browsers send a cookie to all ports of a host
        self._loop = asyncio.new_event_loop()
        self._streams: Streams | None = None
        self._waits: Waits | None = None
        self._serving = threading.Event()
        self._closed = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="web")
        settings.before_change(self._prepare_keys)

    def start(self) -> None:
        self._thread.start()
        self._serving.wait()
        keys = f"keys: {len(self.access.keys)}" if self.access.keys else "no key"
        log.info("REST on http://%s:%d, %s", _in_url(self.settings.now.web.host), self.port, keys)
        self._warn_without_admin()
        if not self.access.keys and self.settings.now.web.allow_anonymous:
            log.warning("REST: no key is configured and web.allow_anonymous is true: every client may use this server")

    def _prepare_keys(self, settings: Settings) -> Callable[[], None]:
        """Read the keys again. Raises `ConfigError`."""
        before, keys = self.access.keys, read_keys(settings.web)

        def take_over() -> None:
            self.access.take_keys(keys)
            self.links.signed = bool(keys)
            if keys != before:
                log.info("REST: keys: %d now, were %d", len(keys), len(before))
                if self._streams is not None and not self._loop.is_closed():
                    self._loop.call_soon_threadsafe(self._streams.end_all)  # their readers come back with a key
                self._warn_without_admin()

        return take_over

    def _warn_without_admin(self) -> None:
        if without_admin(self.access.keys):
            log.warning(
                "REST: %d keys and none of an administrator: no client sees the jobs of the folder or of before; "
                "write the word admin behind one key",
                len(self.access.keys),
            )

    # What the readers of streams and the requests that wait learn of. Any thread may call these.

    def changed(self) -> None:
        """Something about the jobs has changed in the ledger."""
        if self._streams is not None:
            self._streams.signal()
        self._answer_waiting()

    def deleted(self, jobs: Sequence[tuple[str, str | None]]) -> None:
        """These jobs were deleted: the id of each, and its tenant."""
        if self._streams is not None:
            self._streams.signal_deleted(jobs)
        self._answer_waiting()

    def progressed(self) -> None:
        """Renders have advanced, the daemon has paused or goes on, or slots of a cluster have come or gone."""
        if self._streams is not None:
            self._streams.signal_progress()
        self._answer_waiting()

    def _answer_waiting(self) -> None:
        if self._waits is not None:
            self._waits.signal()

    @property
    def address(self) -> str:
        """The address of this server, as far as it is known without a client's request."""
        host = self.settings.now.web.host
        named = socket.gethostname() if host in ("0.0.0.0", "::") else _in_url(host)
        return self.settings.now.web.public_url.rstrip("/") or f"http://{named}:{self.port}"

    def stop(self) -> None:
        """End every request within two seconds. Before the start, only close the port."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closed.set)
            self._thread.join()
        for listener in self._sockets:
            listener.close()
        self._loop.close()

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except Exception:
            log.exception("the web server ended")
        finally:
            self._serving.set()  # `start` must not wait for a server that failed

    async def _serve(self) -> None:
        jobs = Jobs(self.settings, self.folders, self.slots)
        self._waits = jobs.waits
        uploads = CheckedUploads(self.settings, self.ffmpeg, jobs.uploads_in_use)
        requests = Requests(self.settings, jobs, uploads)
        bodies = JobBodies(jobs, self.links)
        connections = Connections(most_connections(self.settings.now.web.max_connections))
        self._streams = streams = Streams(jobs, Changes(jobs.view, bodies), connections.most_streams)
        application = self.application(jobs, requests, bodies, streams)
        runner = web.AppRunner(application, shutdown_timeout=_STOP_S, handler_cancellation=True)
        await runner.setup()
        assert runner.server is not None  # after the setup
        connect = partial(
            Connection,
            server=runner.server,
            connections=connections,
            loop=self._loop,
            head_within_s=self._head_within_s,
        )
        listener = Listener(self._sockets, connections, connect)
        listener.start()
        sending = self._loop.create_task(streams.run())
        self._serving.set()
        await self._closed.wait()
        jobs.waits.end()
        listener.stop()
        streams.end_all(for_ever=True)
        await runner.cleanup()
        sending.cancel()
        if self.access.sessions is not None:
            self.access.sessions.save()
        requests.close()
        jobs.close()

    def application(self, jobs: Jobs, requests: Requests, bodies: JobBodies, streams: Streams) -> web.Application:
        """All routes, each with and without a slash at its end."""
        app = web.Application(middlewares=[self.access.middleware], client_max_size=_BODY_BYTES)
        voices, kept = Voices(self.settings.now.speech, jobs), KeptOrders(jobs, requests.uploads)
        pages: tuple[PageRoutes | SessionRoutes, ...] = ()
        if self.access.sessions is not None:
            pages = (PageRoutes(self.access.names), SessionRoutes(requests, self.access, self.access.sessions, streams))
        groups = (
            OriginalRoutes(requests, jobs, self.links, self.model_loaded),
            HealthRoutes(self.monitor, jobs),
            PlaceholderRoutes(voices),  # before the talks: /talks/streams is no id
            TalkRoutes(requests, jobs, self.links, voices),
            JobEventRoutes(jobs, streams, self.access),  # before single jobs: /jobs/events is no id
            JobRoutes(jobs, bodies, kept),
            JobOrderRoutes(requests, bodies, voices, kept),
            SpeechRoutes(requests, voices),
            DownloadRoutes(jobs, requests.uploads.stored, self.links),
            _DocumentRoutes(),
            *pages,
        )
        for group in groups:
            for route in group.routes():
                for path in dict.fromkeys((route.path, f"{route.path.rstrip('/')}/")):
                    app.router.add_route(route.method, path, route.handler)
                    if route.method == "GET":
                        app.router.add_route("HEAD", path, route.handler)
        return app


class _DocumentRoutes:
    """The OpenAPI description of all routes."""

    def __init__(self) -> None:
        self._body = json.loads(_DOCUMENT.read_bytes())

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/openapi.json", self.document)]

    @public
    async def document(self, _request: web.Request) -> web.Response:
        return json_reply(self._body)


def _bind(host: str, port: int) -> list[socket.socket]:
    """A bound socket for each address of the host, all on one port."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"web.host is {host!r}: {error}", remedy="allowed: an address of this machine") from None
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            listener = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one_port = sockets[0].getsockname()[1] if len(sockets) > 1 else port
            listener.bind((address[0], one_port, *address[2:]))
            listener.listen(_BACKLOG)  # clients that connect before the loop runs wait and are not refused
    except OSError as error:
        for listener in sockets:
            listener.close()
        why = "it is in use" if error.errno == errno.EADDRINUSE else error.strerror
        raise ConfigError(
            f"web.port is {port} and web.host is {host!r}: {why}",
            remedy="set another web.port (0 takes any free one), or web.enabled = false",
        ) from None
    return sockets


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
