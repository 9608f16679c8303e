"""The files of the page: what is served, with which headers, and that no other file is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsyncd.web.routes import page
from tests.kits.web_kit import Api, serving

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A server with a key: the page needs none."""
    with serving(tmp_path_factory.mktemp("page"), LIPSYNCD_API_KEY="one-long-word") as api:
        yield api


def test_every_file_of_the_page_is_served_with_its_type_and_a_strict_policy(api: Api) -> None:
    names = {path.name for path in page.FOLDER.iterdir()}
    for path in ("/", "/favicon.ico", *(f"/page/{name}" for name in names)):
        name = {"/": "index.html", "/favicon.ico": "icon.png"}.get(path, path.rpartition("/")[2])
        answer = api.get(path)
        assert (answer.status, answer.body) == (200, (page.FOLDER / name).read_bytes()), path
        kind = {"css": "text/css", "html": "text/html", "js": "text/javascript", "png": "image/png", "svg": "image/svg"}
        assert answer.headers["Content-Type"].startswith(kind[name.rpartition(".")[2]])
        assert answer.headers["Content-Security-Policy"] == POLICY
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert "Cross-Origin-Opener-Policy" not in api.get(path, Host="gpubox:8003").headers  # no TLS: it is ignored
        head = api.call("HEAD", path)
        assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(answer.body)))


def test_a_browser_that_has_a_file_gets_no_second_copy(api: Api) -> None:
    first = api.get("/")
    assert first.headers["Cache-Control"] == "no-cache"
    for known in (first.headers["ETag"], f'"other", W/{first.headers["ETag"]}', "*"):
        again = api.get("/", If_None_Match=known)
        assert (again.status, again.body, again.headers["ETag"]) == (304, b"", first.headers["ETag"])
        assert again.headers["Content-Security-Policy"] == POLICY
    assert api.get("/", If_None_Match='"other"').status == 200


@pytest.mark.parametrize(
    "name", ["nothing.js", "..%2fserver.py", "%2e%2e%2fopenapi.json", "../server.py", "..", "%00", "index.html%00", "."]
)
def test_no_other_file_is_served(api: Api, name: str) -> None:
    assert api.get(f"/page/{name}").status in (401, 404)
    assert api.get(f"/page/{name}", Authorization="one-long-word").refused(404, "NotFoundError")


def test_what_the_files_refer_to_is_there_and_nothing_is_inline() -> None:
    """The policy refuses whatever is inline, and whatever comes from elsewhere."""
    html = (page.FOLDER / "index.html").read_text()
    for address in re.findall(r'(?:src|href)="(/page/[^"]*)"', html):
        assert (page.FOLDER / address.removeprefix("/page/")).is_file(), address
    assert not re.search(r"<style|<script(?![^>]*\bsrc=)|\sstyle=|\son[a-z]+=|javascript:", html)
    for path in page.FOLDER.iterdir():
        if path.suffix in (".html", ".css", ".js"):
            assert not re.search(r"(?:src|href|from|import|url)\W{1,3}https?://", path.read_text()), path


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    with serving(tmp_path, changes={"web": {"page": False}}) as api:
        for path in ("/", "/page/index.html", "/favicon.ico"):
            api.get(path).refused(404, "NotFoundError")
        assert api.get("/health").status == 200
