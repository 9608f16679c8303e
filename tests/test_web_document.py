"""The OpenAPI document: served, true for every route, held against the server by requests that nobody thought of."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web

import lipsyncd
from lipsyncd import __version__
from lipsyncd.folders import folders_of
from lipsyncd.settings import Paths, Settings, Web
from lipsyncd.vitals import Vitals
from lipsyncd.web import server
from tests.home import ROOT
from tests.web_kit import Api, serving

DOCUMENT: dict[str, Any] = json.loads((Path(server.__file__).with_name("openapi.json")).read_bytes())
EXAMPLES = 25
# What a box of one's own does not have is answered kindly and promised to nobody.
UNPROMISED = re.compile(
    r"/(clips|scenes|expressives|translations|animations|agents|settings|consents|knowledge|secrets)"
    r"|/talks/streams|/tts/voices$|/images/face-detection"
)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    changes = {"web": {"max_queue": 5, "max_upload_mb": 1}, "fetch": {"timeout_s": 1.0}}
    with serving(tmp_path_factory.mktemp("document"), changes=changes, LIPSYNCD_API_KEY="one-long-word") as api:
        yield api


def plain(path: str) -> str:
    """A route's path as the document writes it: names of its parts, without their patterns."""
    return re.sub(r"\{(\w+):[^{}]*\}", r"{\1}", path)


def test_it_is_served_as_it_is_committed(api: Api) -> None:
    assert api.get("/openapi.json").json == DOCUMENT
    assert DOCUMENT["info"]["version"] == __version__


def test_every_route_is_described_and_everything_described_has_a_route(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[str, str]] = set()
    add_route = web.UrlDispatcher.add_route

    def noted(self: web.UrlDispatcher, method: str, path: str, *rest: Any, **more: Any) -> Any:
        seen.add((method, path))
        return add_route(self, method, path, *rest, **more)

    monkeypatch.setattr(web.UrlDispatcher, "add_route", noted)
    settings = Settings(paths=Paths(storage=tmp_path), web=Web(port=0))
    folders = folders_of(settings.paths)
    folders.initialise()
    one = server.WebServer(settings, folders, Path("/nowhere"), lambda: False, cast("Vitals", None))
    one.start()
    one.stop()

    whole = {(method, path) for method, path in seen if not path.endswith("/")}
    assert {(m, f"{p}/") for m, p in whole} <= seen  # every path works with a trailing slash
    assert {("HEAD", p) for m, p in whole if m == "GET"} <= whole
    routes = {
        (m, plain(p))
        for m, p in whole
        if m != "HEAD" and not (UNPROMISED.match(p) and (m, p) != ("GET", "/tts/voices"))
    }
    for role in ("image", "audio"):  # one route for both, told apart in the document
        routes.add(("GET", f"/files/{role}s/{{id}}/{{name}}"))
    routes -= {("GET", "/files/{role}s/{id}/{name}"), ("GET", "/files/{role}s/{id}")}
    described = {(method.upper(), path) for path, item in DOCUMENT["paths"].items() for method in item}
    assert routes == described


def test_it_says_what_it_is_made_of(api: Api) -> None:
    text = json.dumps(DOCUMENT)
    named = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert named == set(DOCUMENT["components"]["schemas"])
    operations = [op["operationId"] for item in DOCUMENT["paths"].values() for op in item.values()]
    assert len(operations) == len(set(operations))


def test_thousands_of_odd_requests_break_nothing_and_every_answer_is_as_described(api: Api, tmp_path: Path) -> None:
    """schemathesis; more examples with SCHEMATHESIS_EXAMPLES in the environment, as `make test-long` does.

    Left out are the one path that answers 501 to a method on purpose, and the two checks that hold a schema against
    acceptance: lenient types are taken on purpose, and no schema can tell which bytes are a picture.
    """
    examples = os.environ.get("SCHEMATHESIS_EXAMPLES", str(EXAMPLES))
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{api.url}/openapi.json",
        "--header", "Authorization: one-long-word", "--max-examples", examples, "--phases", "examples,coverage,fuzzing",
        "--exclude-checks", "negative_data_rejection,positive_data_acceptance", "--request-timeout", "30",
        "--suppress-health-check", "all", "--generation-deterministic", "--no-color",
        "--max-failures", "5", "--exclude-path", "/tts/voices",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "Traceback" not in api.home.log
    assert " error " not in api.home.log


def test_the_document_is_packaged() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["lipsyncd"]
    assert "web/openapi.json" in data
    assert (Path(lipsyncd.__file__).parent / "web" / "openapi.json").exists()
