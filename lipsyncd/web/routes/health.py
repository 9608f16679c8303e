"""The routes for supervisors and Prometheus: `/health/live`, `/health/ready`, `/metrics`.

The two health checks need no key, since supervisors have none. Without one, they name the checks that fail and not why,
since reasons contain paths of this machine. The metrics need a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from lipsyncd.monitor.probe import METRICS_TYPE, HealthMonitor
from lipsyncd.web.access import public
from lipsyncd.web.clients import client_of
from lipsyncd.web.jobs import Jobs
from lipsyncd.web.replies import json_reply

_REASON_NEEDS_KEY = "send a key to see why"


class HealthRoutes:
    """The three routes."""

    def __init__(self, monitor: HealthMonitor, jobs: Jobs) -> None:
        self.monitor = monitor
        self.jobs = jobs

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/health/live", self.live),
            web.get("/health/ready", self.ready),
            web.get("/metrics", self.metrics),
        ]

    @public
    async def live(self, _request: web.Request) -> web.Response:
        """Uses neither the ledger nor a disk: 503 means that only a restart helps."""
        return _verdict(*self.monitor.live())

    @public
    async def ready(self, request: web.Request) -> web.Response:
        """503 names the checks that fail."""
        good, body = self.monitor.ready()
        return _verdict(good, body if client_of(request).has_key else _without_reasons(body))

    async def metrics(self, _request: web.Request) -> web.Response:
        body = await self.jobs.in_thread(self.monitor.metrics)
        return web.Response(body=body, headers={"Content-Type": METRICS_TYPE})


def _without_reasons(body: Mapping[str, Any]) -> Mapping[str, Any]:
    hidden = {"degraded": _REASON_NEEDS_KEY} if "degraded" in body else {}
    return {**body, "failing": dict.fromkeys(body["failing"], _REASON_NEEDS_KEY), **hidden}


def _verdict(good: bool, body: Mapping[str, Any]) -> web.Response:
    return json_reply(dict(body), status=200 if good else 503)
