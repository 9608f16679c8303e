"""The list of jobs: cancel, retry, delete; a reload; two visitors; a daemon that restarts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.kits.installation import sound
from tests.kits.web_kit import Api, port_of, serving
from tests.system.page.conftest import SETTINGS, portrait, wall
from tests.system.page.visit import WAIT_MS, Visit, visiting

expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=WAIT_MS)
LONG_S = 60  # of sound: longer than any of these tests


def order(api: Api, name: str, *, seconds: float = 0.3, picture: bytes = b"", **fields: str) -> str:
    """Make a job as a script does; returns its id."""
    files = {"image": ("p.jpg", picture or portrait()), "audio": ("s.wav", sound(seconds))}
    made = api.form("/jobs", **files, name=name, **fields)
    assert made.status == 201, made
    job_id: str = made.json["id"]
    return job_id


@contextmanager
def late_pictures() -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers 404 until its list has a picture."""
    pictures: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if pictures else 404)
            self.end_headers()
            self.wfile.write(b"".join(pictures))

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/late.jpg", pictures
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_running_job_is_cancelled_and_one_that_waits_moves_up(visit: Visit, api: Api) -> None:
    order(api, "long", seconds=LONG_S)
    order(api, "other", seconds=LONG_S - 1)
    job = visit.job("long")
    expect(job).to_have_attribute("data-state", "running")
    expect(visit.job("other")).to_contain_text("Waiting, next in the queue")
    expect(visit.page.locator(".summary")).to_have_text("1 in progress, 1 waiting")
    expect(visit.page.locator("#slots")).to_be_empty()
    job.get_by_role("button", name="Cancel: long").click()
    expect(job).to_contain_text("Cancelled")
    expect(visit.job("other")).to_have_attribute("data-state", "running")
    visit.button("Cancel: other").click()
    expect(visit.job("other")).to_contain_text("Cancelled")
    expect(visit.page.locator(".summary")).to_have_text("")


def test_the_header_names_the_cards_of_a_server_with_several(browser: Any, tmp_path: Path) -> None:
    render = {"renderer": "slow", "devices": ["cpu", "cuda:7"]}  # it uses no card: the second one is only a name
    with serving(tmp_path, changes={"render": render}) as api, visiting(browser, api.url) as visit:
        cards = visit.page.locator("#slots")
        expect(cards).to_have_text("0 of 2 cards render")
        order(api, "long", seconds=LONG_S)
        expect(cards).to_have_text("1 of 2 cards renders")
        order(api, "other", seconds=LONG_S - 1)
        expect(cards).to_have_text("2 of 2 cards render")
        for name in ("long", "other"):
            visit.button(f"Cancel: {name}").click()
        expect(cards).to_have_text("0 of 2 cards render")


def test_a_failed_job_says_why_and_is_tried_again(visit: Visit, api: Api) -> None:
    with late_pictures() as (address, pictures):
        upload = api.form("/audios", audio=("s.wav", sound(0.3))).json["url"]
        assert api.post("/jobs", {"image_url": address, "audio_url": upload, "name": "late"}).status == 201
        job = visit.job("late")
        expect(job).to_have_attribute("data-state", "failed")
        expect(job.locator(".why")).to_contain_text("404")
        expect(job.locator(".remedy")).not_to_be_empty()
        pictures.append(portrait())
        job.get_by_role("button", name="Try again: late").click()
        expect(job).to_have_attribute("data-state", "done")
        expect(job.locator(".why")).to_be_hidden()


def test_a_blocked_job_says_what_it_waits_for(visit: Visit, api: Api) -> None:
    order(api, "large", renderer="missing")
    job = visit.job("large")
    expect(job).to_contain_text("Blocked: it goes on by itself")
    expect(job.locator(".why")).not_to_be_empty()
    job.get_by_role("button", name="Cancel: large").click()
    expect(job).to_contain_text("Cancelled")


def test_a_job_is_deleted_after_a_question(visit: Visit, api: Api) -> None:
    job_id = order(api, "surplus", picture=wall())
    job = visit.job("surplus")
    expect(job).to_have_attribute("data-state", "failed")
    job.get_by_role("button", name="Delete: surplus").click()
    expect(visit.page.get_by_role("dialog", name="Delete surplus?")).to_be_visible()
    visit.button("Keep").click()
    expect(job).to_be_visible()
    job.get_by_role("button", name="Delete: surplus").click()
    visit.button("Delete").last.click()
    expect(job).to_have_count(0)
    api.get(f"/jobs/{job_id}").refused(404, "NotFoundError")


def test_two_visitors_see_the_same_and_a_reload_in_the_middle_loses_nothing(
    visit: Visit, browser: Any, api: Api
) -> None:
    with visiting(browser, api.url) as other:
        visit.drop({"shared.jpg": portrait(), "s.wav": sound(LONG_S)})
        visit.make()
        for one in (visit, other):
            expect(one.job("shared")).to_have_attribute("data-state", "running")
        visit.page.reload()
        expect(visit.job("shared")).to_have_attribute("data-state", "running")
        progress = visit.job("shared").get_by_role("progressbar", name="Progress of shared")
        expect(progress).to_be_visible()
        seen = progress.get_attribute("value")
        expect(progress).not_to_have_attribute("value", seen or "")
        other.button("Cancel: shared").click()
        for one in (visit, other):
            expect(one.job("shared")).to_contain_text("Cancelled")
        visit.button("Delete: shared").click()
        visit.page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        for one in (visit, other):
            expect(one.job("shared")).to_have_count(0)


def test_the_list_has_pages_filters_and_a_search(visit: Visit, api: Api) -> None:
    upload = api.form("/audios", audio=("s.wav", sound(0.3))).json["url"]
    with late_pictures() as (address, _):
        for number in range(22):
            body = {"image_url": f"{address}?{number}", "audio_url": upload, "name": f"many-{number:02}"}
            assert api.post("/jobs", body).status == 201
        expect(visit.job("many-21")).to_have_attribute("data-state", "failed")
    visit.page.reload()
    cards = visit.page.locator("li.job")
    expect(cards).to_have_count(20)
    visit.button("Show more").click()
    expect(visit.job("many-00")).to_be_visible()
    visit.page.get_by_role("searchbox", name="Find by name").fill("many-07")
    expect(cards).to_have_count(1)
    visit.page.get_by_text("In progress", exact=True).click()
    expect(visit.page.get_by_text("No video fits.")).to_be_visible()
    visit.page.get_by_text("Failed", exact=True).first.click()
    expect(cards).to_have_count(1)


def test_the_page_goes_on_by_itself_when_the_daemon_restarts(browser: Any, tmp_path: Path) -> None:
    with serving(tmp_path, changes=SETTINGS) as api, visiting(browser, api.url) as visit:
        order(api, "before")
        expect(visit.job("before")).to_have_attribute("data-state", "done")
        installation, connection = api.installation, visit.page.locator("#connection")
        installation.stop()
        expect(connection).to_have_text("Connection lost, trying again…")
        installation.changes["web"]["port"] = api.port
        installation.start()
        assert port_of(installation) == api.port
        expect(connection).to_have_text("Connected again")
        order(api, "after")
        expect(visit.job("after")).to_have_attribute("data-state", "done")
        expect(visit.job("before")).to_have_count(1)
        expect(connection).to_have_text("")
        assert [text for text in visit.console if "ERR_CONNECTION_REFUSED" not in text and "ERR_" not in text] == []
        visit.console.clear()
