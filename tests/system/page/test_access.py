"""The page for all: the keyboard alone, a telephone, a screen reader, dark and light."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.kits.installation import sound
from tests.kits.web_kit import Api
from tests.system.page.conftest import portrait, wall
from tests.system.page.visit import WAIT_MS, Visit, violations, visiting

expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=WAIT_MS)
MOST_TABS = 60
SMALLEST_PX = 24  # of a target, WCAG 2.2 2.5.8
NAME_OF_THE_FOCUS = """() => {
  const at = document.activeElement;
  return at.getAttribute("aria-label") || (at.labels && at.labels[0] ? at.labels[0].innerText : at.innerText) || "";
}"""
IS_FOCUS_SEEN = """() => {
  const at = document.activeElement;
  const places = [at, at.closest("label"), at.parentElement].filter(Boolean);
  return places.some(place => getComputedStyle(place).outlineStyle !== "none");
}"""
SMALL_TARGETS = """smallest => [...document.querySelectorAll("button, a, summary, select, input, textarea, .button")]
  .filter(one => !one.classList.contains("unseen") && one.checkVisibility())
  .filter(one => { const box = one.getBoundingClientRect(); return box.width < smallest || box.height < smallest; })
  .map(one => one.outerHTML.slice(0, 200))"""


def tab_to(page: Any, name: str) -> None:
    """Press Tab until the element of that name has the focus, which has to be seen on each way station."""
    for _ in range(MOST_TABS):
        page.keyboard.press("Tab")
        if page.evaluate("() => document.activeElement !== document.body"):
            assert page.evaluate(IS_FOCUS_SEEN), page.evaluate("() => document.activeElement.outerHTML")
        if page.evaluate(NAME_OF_THE_FOCUS).strip() == name:
            return
    raise AssertionError(f"the keyboard does not reach {name!r}")


def test_a_video_is_made_played_and_deleted_with_the_keyboard_alone(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    page.on("filechooser", lambda _: None)  # from now on, chromium asks Playwright in place of a visitor
    for button, name, content in (
        ("Choose a picture", "keys.jpg", portrait(2)),
        ("Choose a sound", "keys.wav", sound(1)),
    ):
        (tmp_path / name).write_bytes(content)
        tab_to(page, button)
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Space")
        chooser.value.set_files(tmp_path / name)
    page.keyboard.press("Shift+Tab")
    expect(visit.button("Face 2 of 2 speaks")).to_be_visible()
    page.locator("h1").focus()
    tab_to(page, "Face 2 of 2 speaks")
    page.keyboard.press("Enter")
    expect(visit.button("Face 2 of 2 speaks")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("button.primary").first).to_have_attribute("aria-disabled", "false")
    tab_to(page, "Make the video")
    page.keyboard.press("Enter")
    job = visit.job("keys")
    expect(job).to_be_focused()
    expect(job).to_have_attribute("data-state", "done")
    expect(page.locator("#announcements")).to_have_text("keys: Done")
    tab_to(page, "Play keys")
    page.keyboard.press("Enter")
    expect(job.locator("video")).to_have_js_property("ended", True)
    job.focus()
    tab_to(page, "Delete: keys")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(visit.button("Delete: keys")).to_be_focused()
    page.keyboard.press("Enter")
    tab_to(page, "Delete")
    page.keyboard.press("Enter")
    expect(job).to_have_count(0)
    assert page.evaluate("() => document.activeElement !== document.body")


def test_progress_is_announced_by_its_steps_and_not_by_each_percent(visit: Visit) -> None:
    said = visit.page.evaluate_handle("""() => {
      const said = [];
      new MutationObserver(() => said.push(document.getElementById("announcements").textContent))
        .observe(document.getElementById("announcements"), { childList: true, characterData: true, subtree: true });
      return said;
    }""")
    visit.drop({"quiet.jpg": portrait(), "quiet.wav": sound(2)})
    visit.make()
    expect(visit.job("quiet")).to_have_attribute("data-state", "done")
    expect(visit.page.locator("#announcements")).to_have_text("quiet: Done")
    words = said.json_value()
    assert words[-1] == "quiet: Done" and len(words) <= 4, words
    live = visit.page.evaluate("() => [...document.querySelectorAll('li.job [role=status]')].map(e => e.textContent)")
    assert set(live) == {""}


def test_a_telephone_shows_everything_in_its_width(browser: Any, api: Api) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    with visiting(browser, api.url, **phone) as visit:
        visit.drop({"a-name-without-a-blank-that-does-not-fit-into-a-line-of-it.jpg": portrait(2), "s.wav": sound(1)})
        expect(visit.button("Face 1 of 2 speaks")).to_be_visible()
        for fold in ("Options", "The same with curl"):
            visit.page.get_by_text(fold, exact=True).tap()
        _fits(visit)
        visit.page.locator("button.primary[aria-disabled=false]").first.tap()
        job = visit.job("a-name-without-a-blank-that-does-not-fit-into-a-line-of-it")
        expect(job).to_have_attribute("data-state", "done")
        expect(job).to_be_in_viewport()
        job.get_by_role("button", name=re.compile("^Play")).tap()
        expect(job.locator("video")).to_have_js_property("ended", True)
        _fits(visit)


def _fits(visit: Visit) -> None:
    assert visit.page.evaluate("() => document.scrollingElement.scrollWidth") <= 360
    assert visit.page.evaluate(SMALL_TARGETS, SMALLEST_PX) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_any_state(browser: Any, api: Api, axe: str, scheme: str) -> None:
    def order(name: str, picture: bytes, seconds: float, **fields: str) -> None:
        files = {"image": ("p", picture), "audio": ("s.wav", sound(seconds))}
        assert api.form("/jobs", **files, name=f"{name}-{scheme}", **fields).status == 201

    order("done", portrait(), 0.5)
    order("failed", wall(), 0.3)
    order("blocked", portrait(), 0.4, renderer="missing")
    with visiting(browser, api.url, color_scheme=scheme, bypass_csp=True) as visit:
        page = visit.page
        page.add_script_tag(content=axe)
        found = {"empty": violations(page)}
        visit.drop({f"two-{scheme}.jpg": portrait(2), "s.wav": sound(1)})
        expect(visit.button("Face 1 of 2 speaks")).to_be_visible()
        for fold in ("Options", "The same with curl"):
            page.get_by_text(fold, exact=True).click()
        expect(visit.job(f"done-{scheme}")).to_have_attribute("data-state", "done")
        expect(visit.job(f"failed-{scheme}")).to_have_attribute("data-state", "failed")
        expect(visit.job(f"blocked-{scheme}")).to_have_attribute("data-look", "blocked")
        order("long", portrait(), 300)
        expect(visit.job(f"long-{scheme}")).to_have_attribute("data-state", "running")
        visit.button(f"Play done-{scheme}").click()
        found["a pair, and jobs in every state"] = violations(page)
        visit.button(f"Cancel: long-{scheme}").click()
        page.get_by_text("Text", exact=True).click()
        visit.drop({f"{scheme}.png": wall()})
        expect(page.locator("[data-pane=picture] .note.wrong")).to_be_visible()
        found["a text, a refused picture"] = violations(page)
        visit.button(f"Delete: failed-{scheme}").click()
        found["a question"] = violations(page)
        assert [violation for state in found.items() if state[1] for violation in state] == []
