"""Another video of what an earlier one was made of."""

from __future__ import annotations

import re

import pytest

from tests.kits.installation import sound
from tests.kits.web_kit import Api
from tests.system.page.conftest import portrait
from tests.system.page.visit import WAIT_MS, Visit

expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=WAIT_MS)


def again_with(visit: Visit, name: str, what: str) -> None:
    job = visit.job(name)
    expect(job).to_have_attribute("data-state", "done")
    expect(job.locator(".facts")).to_contain_text(re.compile(r"\d s"))  # the card is complete
    job.locator("summary", has_text="Again with…").click()
    job.get_by_role("button", name=what).click()


def test_the_picture_of_a_job_speaks_with_another_voice_and_the_same_face(visit: Visit, api: Api) -> None:
    options = {"motion": "subtle", "options": '{"face": 1}'}
    first = api.form("/jobs", image=("two.jpg", portrait(2)), audio=("v.wav", sound(0.4)), name="two", **options).json
    again_with(visit, "two", "another voice")
    picture = visit.page.get_by_role("img", name="The picture of two")
    expect(picture).to_be_visible()
    expect(picture).to_have_js_property("naturalWidth", 320)
    visit.drop({"other.wav": sound(0.8)})
    visit.make()
    expect(visit.page.locator("li.job")).to_have_count(2)
    newest = api.get("/jobs?limit=1").json["jobs"][0]
    assert newest["id"] != first["id"]
    made = api.get(f"/jobs/{newest['id']}?wait=50").json
    assert (made["state"], made["name"], made["duration"]) == ("done", "two", 0.8)
    order = api.get(f"/jobs/{newest['id']}/order").json
    assert (order["motion"], order["options"]) == ("subtle", {"face": 1})


def test_the_text_of_a_job_can_be_changed_for_another_picture(visit: Visit, api: Api) -> None:
    image = api.form("/images", image=("a.jpg", portrait())).json["url"]
    api.post("/jobs", {"image_url": image, "text": "Good morning.", "voice": "en-gb", "name": "greeting"})
    again_with(visit, "greeting", "another picture")
    words = visit.page.get_by_role("textbox", name="Text")
    expect(words).to_have_value("Good morning.")
    expect(visit.page.get_by_role("combobox", name="Voice")).to_have_value("en-gb")
    words.fill("Good evening.")
    visit.drop({"eileen.jpg": portrait()})
    visit.make()
    expect(visit.page.locator("li.job")).to_have_count(4)
    newest = api.get("/jobs?limit=1").json["jobs"][0]
    order = api.get(f"/jobs/{newest['id']}?wait=50").json["id"]
    assert api.get(f"/jobs/{order}/order").json["text"] == "Good evening."
