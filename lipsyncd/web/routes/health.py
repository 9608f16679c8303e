"""What supervisors and Prometheus ask: `/health/live`, `/health/ready`, `/metrics`.

The two health checks need no key: whoever starts and stops daemons has none. The metrics do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from lipsyncd.monitor.probe import METRICS_TYPE, Vitals
from lipsyncd.web.access import public
from lipsyncd.web.jobs import Desk
from lipsyncd.web.replies import json_reply


class VitalSigns:
    """These three routes."""

    def __init__(self, vitals: Vitals, desk: Desk) -> None:
        self.vitals = vitals
        self.desk = desk

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/health/live", self.live),
            web.get("/health/ready", self.ready),
            web.get("/metrics", self.metrics),
        ]

    @public
    async def live(self, _request: web.Request) -> web.Response:
        """Asks neither the ledger nor a disk: 503 means that only a restart helps."""
        return _verdict(*self.vitals.live())

    @public
    async def ready(self, _request: web.Request) -> web.Response:
        """503 names what fails."""
        return _verdict(*self.vitals.ready())

    async def metrics(self, _request: web.Request) -> web.Response:
        body = await self.desk.run(self.vitals.metrics)
        return web.Response(body=body, headers={"Content-Type": METRICS_TYPE})


def _verdict(good: bool, body: Mapping[str, Any]) -> web.Response:
    return json_reply(dict(body), status=200 if good else 503)
