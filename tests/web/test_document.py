"""The OpenAPI document: it is served, packaged, and describes every route."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

import lipsyncd
from lipsyncd import __version__
from lipsyncd.monitor.probe import HealthMonitor
from lipsyncd.settings import CurrentSettings, Paths, Settings, Web
from lipsyncd.storage.folders import folders_of
from lipsyncd.web import server
from lipsyncd.web.jobs import Jobs
from lipsyncd.web.requests import Requests
from lipsyncd.web.uploads import CheckedUploads
from lipsyncd.web.views.bodies import JobBodies
from lipsyncd.web.views.changes import Changes
from lipsyncd.web.views.queue import SlotCount
from lipsyncd.web.views.streams import Streams
from tests.kits.installation import ROOT
from tests.kits.web_kit import Api, serving

DOCUMENT: dict[str, Any] = json.loads((Path(server.__file__).with_name("openapi.json")).read_bytes())
# Answered, but not described: routes for things that this server lacks, and the files of the page.
UNPROMISED = re.compile(
    r"/(clips|scenes|expressives|translations|animations|agents|settings|consents|knowledge|secrets)"
    r"|/talks/streams|/images/face-detection|/page/\{name\}|/favicon\.ico"
)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    changes = {"web": {"max_queue": 5, "max_upload_mb": 1}, "fetch": {"timeout_s": 1.0}}
    with serving(tmp_path_factory.mktemp("document"), changes=changes, LIPSYNCD_API_KEY="one-long-word") as api:
        yield api


def test_it_is_served_as_it_is_committed(api: Api) -> None:
    assert api.get("/openapi.json").json == DOCUMENT
    assert DOCUMENT["info"]["version"] == __version__


def test_every_route_is_described_and_every_description_has_a_route(tmp_path: Path) -> None:
    settings = CurrentSettings(Settings(paths=Paths(storage=tmp_path), web=Web(port=0)))
    folders = folders_of(settings.now.paths)
    folders.initialise()
    one = server.WebServer(
        settings, folders, Path("/nowhere"), lambda: False, cast("HealthMonitor", None), lambda: SlotCount(1)
    )
    jobs = Jobs(settings, folders)
    bodies = JobBodies(jobs, one.links)
    requests = Requests(settings, jobs, CheckedUploads(settings, Path("/nowhere")))
    seen = {
        (route.method, route.resource.canonical)
        for route in one.application(jobs, requests, bodies, Streams(jobs, Changes(jobs.view, bodies))).router.routes()
        if route.resource is not None
    }
    one.stop()
    requests.close()
    jobs.close()

    whole = {(method, path) for method, path in seen if not path.endswith("/")}
    assert {(m, f"{p}/") for m, p in whole} <= seen  # every path works with a trailing slash
    assert {("HEAD", p) for m, p in whole if m == "GET"} <= whole
    routes = {(m, p) for m, p in whole if m != "HEAD" and not UNPROMISED.match(p)}
    for role in ("image", "audio"):  # one route for both, two in the document
        routes.add(("GET", f"/files/{role}s/{{id}}/{{name}}"))
    routes -= {("GET", "/files/{role}s/{id}/{name}"), ("GET", "/files/{role}s/{id}")}
    described = {(method.upper(), path) for path, item in DOCUMENT["paths"].items() for method in item}
    assert routes == described


def test_its_schemas_are_complete(api: Api) -> None:
    text = json.dumps(DOCUMENT)
    named = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert named == set(DOCUMENT["components"]["schemas"])
    operations = [op["operationId"] for item in DOCUMENT["paths"].values() for op in item.values()]
    assert len(operations) == len(set(operations))


def test_the_document_is_packaged() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["lipsyncd"]
    assert "web/openapi.json" in data
    assert (Path(lipsyncd.__file__).parent / "web" / "openapi.json").exists()
