"""From two files to a video that plays, as a visitor does it."""

from __future__ import annotations

import io
import re
from typing import Any

import pillow_heif
import pytest
from PIL import Image

from tests.kits.installation import sound
from tests.kits.web_kit import Api
from tests.system.page.conftest import portrait, wall
from tests.system.page.visit import WAIT_MS, Visit

expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=WAIT_MS)


def plays(video: Any, width: int) -> None:
    """The video has come to its end: its time moved, and pictures and sound were decoded."""
    expect(video).to_have_js_property("ended", True)
    time_s, sound_bytes, frames, seen = video.evaluate(
        "v => [v.currentTime, v.webkitAudioDecodedByteCount, v.webkitDecodedFrameCount, v.videoWidth]"
    )
    assert time_s > 0.9 and sound_bytes > 1000 and frames > 20 and seen == width


def test_two_dropped_files_become_a_video_that_plays(visit: Visit) -> None:
    visit.drop({"eileen.jpg": portrait(), "hello.wav": sound(1)})
    face = visit.page.locator(".face.speaks")
    expect(face).to_be_visible()
    frame, box = visit.page.locator(".frame img").bounding_box(), face.bounding_box()
    across = (box["x"] + box["width"] / 2 - frame["x"]) / frame["width"]
    down = (box["y"] + box["height"] / 2 - frame["y"]) / frame["height"]
    assert abs(across - 165 / 320) < 0.05 and abs(down - 115 / 320) < 0.08  # where her nose is
    expect(visit.page.get_by_text("1.0 s", exact=True)).to_be_visible()

    visit.make()
    job = visit.job("eileen")
    expect(job).to_have_attribute("data-state", "done")
    expect(job.locator(".facts")).to_contain_text("1.0 s")

    job.get_by_role("button", name="Play eileen").click()
    plays(job.locator("video"), 128)
    job.get_by_role("button", name="Close eileen").click()
    expect(job.locator("video")).to_have_count(0)

    with visit.page.expect_download() as download:
        job.get_by_role("link", name="Download: eileen").click()
    assert download.value.suggested_filename == "eileen.mp4"
    assert download.value.path().read_bytes()[4:8] == b"ftyp"


def test_the_sound_can_be_heard_before(visit: Visit) -> None:
    visit.drop({"hello.wav": sound(1)})
    visit.page.get_by_role("button", name="Play", exact=True).click()
    expect(visit.page.locator("audio")).to_have_js_property("ended", True)
    seek = visit.page.get_by_role("slider", name="Position in the sound")
    seek.fill("0.5")
    expect(seek).to_have_attribute("aria-valuetext", "0:00 of 0:01")
    assert visit.page.locator("audio").evaluate("a => a.currentTime") == pytest.approx(0.5, abs=0.05)
    drawn = visit.page.locator("canvas").evaluate(
        "c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
    )
    assert drawn > 10  # colours of bars on nothing


def test_of_several_faces_the_visitor_chooses_one(visit: Visit, api: Api) -> None:
    visit.drop({"two.jpg": portrait(2), "hello.wav": sound(0.4)})
    faces = visit.page.get_by_role("button", name=re.compile("^Face . of 2"))
    expect(faces).to_have_count(2)
    left, right = sorted(range(2), key=lambda number: faces.nth(number).bounding_box()["x"])
    faces.nth(right).click()
    expect(faces.nth(right)).to_have_attribute("aria-pressed", "true")
    expect(faces.nth(left)).to_have_attribute("aria-pressed", "false")
    visit.make()
    expect(visit.job("two")).to_have_attribute("data-state", "done")
    sidecar = api.installation.sidecar("two")
    assert sidecar["notes"]["face"][0] > 320, sidecar


def test_a_picture_that_no_browser_shows_is_seen_by_its_thumbnail(visit: Visit) -> None:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.open(io.BytesIO(portrait()))).save(buffer)
    visit.drop({"phone.heic": buffer.getvalue(), "s.wav": sound(0.3)})
    expect(visit.page.locator(".face.speaks")).to_be_visible()
    expect(visit.page.locator(".frame img")).to_have_attribute("src", re.compile("^/images/.+/thumbnail$"))
    expect(visit.page.locator(".frame img")).to_have_js_property("naturalWidth", 320)
    visit.make()
    expect(visit.job("phone")).to_have_attribute("data-state", "done")
    expect(visit.job("phone").locator(".thumb img")).to_have_js_property("naturalWidth", 320)


def test_several_pairs_are_several_orders_and_one_button_makes_them_all(visit: Visit) -> None:
    visit.drop({"b.wav": sound(0.3, 1), "a.jpg": portrait(), "a.wav": sound(0.4, 2), "B.jpg": portrait()})
    expect(visit.page.locator(".order")).to_have_count(2)
    visit.button("Make 2 videos").click()
    expect(visit.page.locator(".order")).to_have_count(1)
    for name in ("a", "B"):
        expect(visit.job(name)).to_have_attribute("data-state", "done")
    expect(visit.job("a").locator(".facts")).to_contain_text("0.4 s")
    expect(visit.job("B").locator(".facts")).to_contain_text("0.3 s")


def test_a_refusal_says_what_is_wrong_and_what_helps(visit: Visit) -> None:
    visit.page.locator("button.primary").first.click(force=True)
    expect(visit.page.get_by_text("Add a picture first.")).to_be_visible()
    visit.drop({"wall.png": wall()})
    expect(visit.page.locator("[data-pane=picture] .note.wrong")).to_contain_text("upright")
    visit.drop({"notes.txt": b"no sound"})
    expect(visit.page.get_by_text("notes.txt: this is neither a picture nor a sound.")).to_be_visible()
    assert visit.console == []
    visit.drop({"broken.wav": b"RIFF and no more"})
    expect(visit.page.locator("[data-pane=sound] .note.wrong")).to_contain_text("sound")
    assert [text for text in visit.console if "415" not in text and "400" not in text] == []  # the browser's own words
    visit.console.clear()


def test_a_text_is_spoken_by_a_voice_of_the_server(visit: Visit) -> None:
    visit.drop({"teller.jpg": portrait()})
    visit.page.get_by_text("Text", exact=True).click()
    visit.page.get_by_role("textbox", name="Text").fill("Yes, of course.")
    visit.page.get_by_role("combobox", name="Voice").select_option("de")
    visit.button("Listen").click()
    heard = visit.page.locator("audio")
    expect(heard).to_have_js_property("ended", True)
    assert heard.evaluate("a => [a.duration > 0.5, a.webkitAudioDecodedByteCount > 1000]") == [True, True]
    visit.page.get_by_role("textbox", name="Text").fill("Word. " * 100)
    expect(visit.page.get_by_text("this one has 599")).to_be_visible()
    expect(visit.button("Listen")).to_be_disabled()
    visit.page.get_by_role("textbox", name="Text").fill("Yes, of course.")
    visit.make()
    job = visit.job("teller")
    expect(job).to_have_attribute("data-state", "done")
    job.get_by_role("button", name="Play teller").click()
    plays(job.locator("video"), 128)


SORTED = {
    "": "",
    "a.jpg": "a.jpg+",
    "a.wav": "+a.wav",
    "a.jpg b.wav": "a.jpg+b.wav",
    "b.wav A.png a.jpg a.WAV": "A.png+a.WAV a.jpg+ +b.wav",
    "a.jpg b.jpg B.mp3 a.flac": "a.jpg+a.flac b.jpg+B.mp3",
    "a.jpg x.wav y.wav": "a.jpg+x.wav a.jpg+y.wav",
    "a.jpg b.jpg x.wav": "a.jpg+x.wav b.jpg+x.wav",
    "a.mp4 a.wav": "a.mp4+a.wav",
    "a.mp4 a.jpg": "a.jpg+a.mp4",
    "a.mp4": "a.mp4+",
    "a.heic a.amr": "a.heic+a.amr",
    "a.jpg notes.txt": "a.jpg+ ?notes.txt",
}


def test_dropped_files_are_sorted_into_orders(visit: Visit) -> None:
    sort = """async names => {
      const { sortFiles } = await import("/page/files.js");
      const { pairs, others } = sortFiles(names.map(name => new File(["x"], name)));
      const name = file => file ? file.name : "";
      return pairs.map(pair => `${name(pair.picture)}+${name(pair.sound)}`).concat(others.map(file => `?${file.name}`));
    }"""
    assert {dropped: " ".join(visit.page.evaluate(sort, dropped.split())) for dropped in SORTED} == SORTED
