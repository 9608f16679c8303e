"""Sign in and out on the page of another machine, as two clients and an administrator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.kits.installation import sound
from tests.kits.web_kit import Api, serving
from tests.system.page.conftest import SETTINGS, portrait, wall
from tests.system.page.visit import REMOTE, WAIT_MS, Visit, violations, visiting

expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=WAIT_MS)
ANNA, BERT, BOSS = "anna:first-secret", "bert:second-secret", "boss:third-secret"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    root = tmp_path_factory.mktemp("keys")
    (root / "keys").write_text(f"{ANNA}\n{BERT}\n{BOSS} admin\n")
    (root / "keys").chmod(0o600)
    with serving(root, changes={**SETTINGS, "web": {"api_key_file": str(root / "keys"), "max_queue": 40}}) as api:
        yield api


def remote(api: Api) -> str:
    """The server's address as that of another machine, without TLS."""
    return f"http://{REMOTE}:{api.port}"


def sign_in(visit: Visit, key: str) -> None:
    visit.page.get_by_label("Key").fill(key)
    visit.page.keyboard.press("Enter")


def test_a_key_signs_in_and_the_way_out_leaves_nothing(browser: Any, api: Api) -> None:
    with visiting(browser, remote(api)) as visit:
        page = visit.page
        expect(page.get_by_label("Key")).to_be_focused()
        sign_in(visit, "anna:no-secret")
        expect(page.get_by_role("alert")).to_contain_text("This is no key of this server")
        assert [text for text in visit.console if "401" not in text] == []
        visit.console.clear()  # the browser's own words about the refusal
        sign_in(visit, ANNA)
        expect(page.get_by_role("heading", name="New video")).to_be_visible()

        visit.drop({"hers.jpg": portrait(), "s.wav": sound(0.5)})
        page.get_by_text("The same with curl").click()
        expect(page.locator("pre")).to_contain_text("Authorization")
        visit.make()
        expect(visit.job("hers")).to_have_attribute("data-state", "done")
        visit.button("Play hers").click()
        expect(visit.job("hers").locator("video")).to_have_js_property("ended", True)
        page.reload()
        expect(visit.job("hers")).to_be_visible()
        assert ANNA.partition(":")[2] not in page.content()
        [cookie] = page.context.cookies()
        assert cookie["httpOnly"] and cookie["sameSite"] == "Strict"
        assert page.evaluate("() => [document.cookie, localStorage.length, sessionStorage.length]") == ["", 0, 0]

        visit.button("Sign out").click()
        expect(page.get_by_label("Key")).to_be_visible()
        expect(visit.job("hers")).to_have_count(0)
        assert page.context.cookies() == []


def test_each_client_sees_its_own_jobs_and_an_administrator_all(browser: Any, api: Api) -> None:
    with (
        visiting(browser, remote(api)) as anna,
        visiting(browser, remote(api)) as bert,
        visiting(browser, remote(api)) as boss,
    ):
        for visit, key in ((anna, ANNA), (bert, BERT), (boss, BOSS)):
            sign_in(visit, key)
            expect(visit.page.get_by_role("heading", name="New video")).to_be_visible()
        for visit, name in ((anna, "of-anna"), (bert, "of-bert")):
            visit.drop({f"{name}.jpg": portrait(), "s.wav": sound(0.3)})
            visit.make()
            expect(visit.job(name)).to_have_attribute("data-state", "done")
        for name in ("of-anna", "of-bert"):
            expect(boss.job(name)).to_have_attribute("data-state", "done")
        assert (anna.job("of-bert").count(), bert.job("of-anna").count()) == (0, 0)


def test_a_sign_in_that_ends_elsewhere_shows_the_form_again(browser: Any, api: Api) -> None:
    with visiting(browser, remote(api)) as visit:
        sign_in(visit, BOSS)
        expect(visit.page.get_by_role("heading", name="New video")).to_be_visible()
        [cookie] = visit.page.context.cookies()
        headers = {"Cookie": f"{cookie['name']}={cookie['value']}", "Origin": api.url}
        assert api.call("DELETE", "/session", headers=headers).status == 204
        expect(visit.page.get_by_label("Key")).to_be_visible()
        sign_in(visit, BOSS)
        expect(visit.page.get_by_role("heading", name="New video")).to_be_visible()
        order = {"image": ("p.png", wall()), "audio": ("s.wav", sound(0.3))}
        assert api.form("/jobs", headers={"Authorization": BOSS}, **order, name="later").status == 201
        expect(visit.job("later")).to_have_attribute("data-state", "failed")
        assert [text for text in visit.console if "401" not in text] == []
        visit.console.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_the_form(browser: Any, api: Api, axe: str, scheme: str) -> None:
    with visiting(browser, remote(api), color_scheme=scheme, bypass_csp=True) as visit:
        expect(visit.page.get_by_label("Key")).to_be_focused()
        visit.page.add_script_tag(content=axe)
        assert violations(visit.page) == []
