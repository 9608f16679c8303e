"""Sign-in: the cookie, whose it is, how long it lives, how often keys may be tried; on a real server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lipsyncd.web.browsers.sessions import LONGEST_IDLE_S, LONGEST_S, MOST_OF_ONE_KEY, Sessions
from lipsyncd.web.browsers.tries import OF_ALL, OF_ONE, Tries
from lipsyncd.web.keys import key_of
from tests.kits.installation import picture, sound
from tests.kits.web_kit import Api, Browser, serving

ANNA, BERT, BOSS, WORD = "anna:first-secret", "bert:second-secret", "boss:third-secret", "one-long-word"


def write_keys(path: Path, *keys: str) -> None:
    path.write_text("".join(f"{key}\n" for key in keys))
    path.chmod(0o600)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    root = tmp_path_factory.mktemp("sign-in")
    write_keys(root / "keys", ANNA, BERT, WORD, f"{BOSS} admin")
    with serving(root, changes={"web": {"api_key_file": str(root / "keys"), "max_queue": 40}}) as api:
        yield api


def signed_in(api: Api, key: str) -> Browser:
    browser = Browser(api)
    assert browser.sign_in(key).status == 204
    return browser


def ordered(browser: Browser, seed: int) -> str:
    answer = browser.form("/jobs", image=("p.png", picture(seed)), audio=("v.wav", sound(0.3, seed)))
    assert answer.status == 201, answer
    job_id: str = answer.json["id"]
    return job_id


def test_a_key_is_entered_once_and_the_cookie_is_not_the_key(api: Api) -> None:
    browser = Browser(api)
    assert browser.get("/session").json == {"key_required": True, "signed_in": False, "admin": False, "name": None}
    assert browser.get("/jobs").refused(401, "AuthorizationError")
    answer = browser.sign_in(ANNA)
    assert (answer.status, answer.body, answer.headers["Cache-Control"]) == (204, b"", "no-store")
    [cookie] = answer.headers.get_all("Set-Cookie") or []
    name, _, token = browser.cookie.partition("=")
    assert name == f"lipsyncd-{api.port}"
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", token)  # 32 random bytes
    parts = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert parts == {"httponly", "samesite=strict", "path=/", f"max-age={int(LONGEST_S)}"}
    assert browser.get("/session").json == {"key_required": True, "signed_in": True, "admin": False, "name": "anna"}
    assert browser.get("/jobs").status == 200
    assert browser.cookie != signed_in(api, ANNA).cookie


@pytest.mark.parametrize(
    ("key", "admin", "name"), [(BERT, False, "bert"), (f"  {BOSS}\n", True, "boss"), (WORD, False, None)]
)
def test_each_key_signs_in_as_its_client(api: Api, key: str, admin: bool, name: str | None) -> None:
    shown = signed_in(api, key).get("/session").json
    assert shown == {"key_required": True, "signed_in": True, "admin": admin, "name": name}


def test_a_cookie_sees_what_its_key_sees_on_every_route(api: Api) -> None:
    anna, bert, boss = (signed_in(api, key) for key in (ANNA, BERT, BOSS))
    job_id = ordered(anna, 1)
    talk_id = f"tlk_{job_id.replace('-', '')}"
    for path in (f"/jobs/{job_id}", f"/talk-status/{job_id}", f"/talks/{talk_id}"):
        assert anna.get(path).status == 200, path
        assert boss.get(path).status == 200, path
        assert bert.get(path).refused(404, "NotFoundError"), path
        assert anna.get(path, Cookie="").status == 401, path
    assert job_id in {job["id"] for job in anna.get("/jobs").json["jobs"]}
    assert job_id in {job["id"] for job in boss.get("/jobs").json["jobs"]}
    assert bert.get("/jobs").json["jobs"] == []
    for path in ("/credits", "/talks", "/tts/voices", "/metrics", "/health/ready"):
        assert anna.get(path).status == 200, path
    upload = anna.form("/images", image=("a.png", picture(2))).json
    bare = upload["url"].partition("?")[0].partition(api.url)[2]
    assert (anna.get(bare).status, boss.get(bare).status, bert.get(bare).status) == (200, 200, 404)
    assert bert.post(f"/jobs/{job_id}/cancel", {}).status == 404
    assert anna.post(f"/jobs/{job_id}/cancel", {}).status in (200, 409)  # 409: it is done already


def test_a_stolen_cookie_is_void_after_sign_out(api: Api) -> None:
    browser, other = signed_in(api, ANNA), signed_in(api, ANNA)
    stolen = Browser(api, browser.cookie)
    assert stolen.get("/jobs").status == 200
    answer = browser.call("DELETE", "/session")
    assert answer.status == 204
    assert "max-age=0" in answer.headers["Set-Cookie"].lower()
    assert stolen.get("/jobs").refused(401, "AuthorizationError")
    assert stolen.get("/session").json["signed_in"] is False
    assert other.get("/jobs").status == 200
    assert browser.call("DELETE", "/session").status == 204  # twice is no fault
    again = Browser(api, other.cookie)
    assert again.sign_in(BERT).status == 204  # another sign-in takes the place of the one before
    assert other.get("/jobs").status == 401


def test_a_sign_in_outlives_the_daemon_and_ends_with_its_keys(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    write_keys(keys, ANNA, BERT)
    with serving(tmp_path, changes={"web": {"api_key_file": str(keys)}}) as api:
        installation, browser = api.installation, signed_in(api, ANNA)
        installation.changes["web"]["port"] = api.port
        path = installation.path("state") / "sessions.json"
        assert path.stat().st_mode & 0o777 == 0o600
        token = browser.cookie.partition("=")[2]
        for secret in (token, "first-secret", key_of(ANNA).digests[0].hex()):
            assert secret not in path.read_text()
            assert secret not in installation.log
        installation.kill()
        installation.start()
        assert browser.get("/session").json["name"] == "anna"

        write_keys(keys, BERT, f"{ANNA}!")
        assert installation.cli("reload").returncode == 0
        assert browser.get("/jobs").refused(401, "AuthorizationError")
        assert not path.exists()
        assert "Traceback" not in installation.log


def test_wrong_keys_are_limited_and_nobody_else_is(tmp_path: Path) -> None:
    with serving(tmp_path, LIPSYNCD_API_KEY=WORD) as api:
        browser, other = Browser(api), signed_in(api, WORD)
        for number in range(OF_ONE.most):
            answer = browser.sign_in(f"wrong-key-{number}")
            assert "key" in answer.refused(401, "AuthorizationError")
            assert "Set-Cookie" not in answer.headers
        for key in ("wrong-key", WORD):
            limited = browser.sign_in(key)
            assert "try again" in limited.refused(429, "TooManyRequestsError")
            assert 1 <= int(limited.headers["Retry-After"]) <= OF_ONE.every_s
        assert other.get("/jobs").status == 200
        assert api.get("/jobs", Authorization=WORD).status == 200
        assert api.installation.log.count("wrong key") == OF_ONE.most
        assert "wrong-key-1" not in api.installation.log


@pytest.mark.parametrize(
    "body", [b"", b"x", b"[]", b"{}", b'{"key": ""}', b'{"key": 1}', b'{"key": null}', b'{"key": "\\ud800"}']
)
def test_a_body_without_a_key_is_refused(api: Api, body: bytes) -> None:
    assert Browser(api).call("POST", "/session", body).status == 400


def test_a_server_without_a_key_needs_no_sign_in(tmp_path: Path) -> None:
    with serving(tmp_path) as api:
        browser = Browser(api)
        assert browser.get("/session").json == {"key_required": False, "signed_in": False, "admin": True, "name": None}
        assert "no key" in browser.sign_in(WORD).refused(400, "BadRequestError")
        assert browser.call("DELETE", "/session").status == 204
        assert not [path.name for path in api.installation.path("state").glob("session*")]


def test_without_the_page_no_cookie_counts(tmp_path: Path) -> None:
    with serving(tmp_path, LIPSYNCD_API_KEY=WORD) as api:
        installation, browser = api.installation, signed_in(api, WORD)
        assert installation.stop() == 0
        installation.changes["web"] |= {"page": False, "port": api.port}
        installation.start(LIPSYNCD_API_KEY=WORD)
        assert browser.get("/jobs").status == 401
        assert browser.sign_in(WORD).status in (401, 404)
        assert browser.get("/session", Authorization=WORD).status == 404


# -- lifetimes and bounds, by hand -------------------------------------------------------------------------------------


def test_sign_ins_end_with_any_change_of_the_keys_also_while_the_daemon_does_not_run(tmp_path: Path) -> None:
    anna, bert, boss = key_of(ANNA), key_of(BERT), key_of(BOSS)
    sessions = Sessions(tmp_path, [anna, bert])
    token = sessions.sign_in(anna)
    sessions.take_keys([bert, anna])  # the same ones
    assert sessions.key_of(token) is not None
    for others in ([anna], [anna, bert, boss], [replace(anna, admin=True), bert], []):
        sessions = Sessions(tmp_path, [anna, bert])
        token = sessions.sign_in(anna)
        sessions.take_keys(others)
        assert sessions.key_of(token) is None
        sessions.take_keys([anna, bert])
        assert sessions.key_of(token) is None  # for good
        assert Sessions(tmp_path, [anna, bert]).key_of(token) is None
        token = sessions.sign_in(anna)
        assert Sessions(tmp_path, others).key_of(token) is None
        assert Sessions(tmp_path, [anna, bert]).key_of(token) is None


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_sign_in_ends_when_it_is_not_used_and_after_a_month(tmp_path: Path) -> None:
    clock, key = Clock(), key_of(ANNA)
    sessions = Sessions(tmp_path, [key], clock=clock)
    idle, used = sessions.sign_in(key), sessions.sign_in(key)
    for _ in range(5):
        clock.now_s += LONGEST_IDLE_S * 0.8
        assert sessions.key_of(used) is not None
    assert sessions.key_of(idle) is None
    assert sessions.is_stale
    sessions.save()
    assert not sessions.is_stale
    again = Sessions(tmp_path, [key], clock=clock)
    assert again.key_of(used) is not None
    clock.now_s += LONGEST_IDLE_S * 0.5  # more than a month
    assert again.key_of(used) is None
    clock.now_s -= 10 * LONGEST_S
    fresh = sessions.sign_in(key)
    clock.now_s -= LONGEST_S  # a clock that is set back ends no sign-in
    assert sessions.key_of(fresh) is not None


def test_a_key_has_so_many_sign_ins_and_the_longest_unused_one_ends(tmp_path: Path) -> None:
    clock, anna, bert = Clock(), key_of(ANNA), key_of(BERT)
    sessions = Sessions(tmp_path, [anna, bert], clock=clock)
    of_bert = sessions.sign_in(bert)
    tokens = []
    for _ in range(MOST_OF_ONE_KEY):
        clock.now_s += 1
        tokens.append(sessions.sign_in(anna))
    clock.now_s += 1
    assert sessions.key_of(tokens[0]) is not None  # used now
    tokens.append(sessions.sign_in(anna))
    alive = [sessions.key_of(token) is not None for token in tokens]
    assert alive == [True, False, *[True] * (MOST_OF_ONE_KEY - 1)]
    assert sessions.key_of(of_bert) is not None
    assert len(json.loads((tmp_path / "sessions.json").read_text())["sessions"]) == MOST_OF_ONE_KEY + 1


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"keys": 1}', '{"keys": "KEYS", "sessions": [[1, 2]]}', '{"keys": "KEYS"}']
)
def test_a_damaged_file_of_sign_ins_counts_for_nothing(tmp_path: Path, content: str) -> None:
    key = key_of(ANNA)
    token = Sessions(tmp_path, [key]).sign_in(key)
    path = tmp_path / "sessions.json"
    path.write_text(content.replace("KEYS", json.loads(path.read_text())["keys"]))
    sessions = Sessions(tmp_path, [key])
    assert sessions.key_of(token) is None
    assert not path.exists()
    assert sessions.key_of(sessions.sign_in(key)) is not None


def test_a_sign_in_that_cannot_be_written_down_ends_with_the_daemon(tmp_path: Path) -> None:
    """Its file is removed, so that no restart brings back a sign-in that has ended."""
    key = key_of(ANNA)
    sessions = Sessions(tmp_path, [key])
    token = sessions.sign_in(key)
    (tmp_path / "sessions.json").unlink()
    (tmp_path / "sessions.json").mkdir()
    other = sessions.sign_in(key)
    assert sessions.key_of(other) is not None
    (tmp_path / "sessions.json").rmdir()
    assert Sessions(tmp_path, [key]).key_of(token) is None


def test_wrong_keys_are_counted_for_an_address_and_for_all_of_them() -> None:
    tries = Tries()
    for _ in range(OF_ONE.most):
        assert tries.wait_s("2001:db8::1", 0) == 0
        tries.failed("2001:db8::1", 0)
    assert tries.wait_s("2001:db8::ffff:2", 0) == OF_ONE.every_s  # of the same customer
    assert tries.wait_s("2001:db8:0:1::1", 0) == 0
    assert tries.wait_s("2001:db8::1", OF_ONE.every_s) == 0
    tries.failed("2001:db8::1", OF_ONE.every_s)
    assert tries.wait_s("2001:db8::1", OF_ONE.every_s) == OF_ONE.every_s
    for number in range(OF_ALL.most):
        tries.failed(f"192.0.2.{number}", 100)
    assert tries.wait_s("198.51.100.1", 100) == 1
    assert tries.wait_s("198.51.100.1", 100 + OF_ALL.every_s) == 0
    for number in range(10_000):
        tries.failed(f"10.1.{number // 256}.{number % 256}", 200)
    assert len(tries._of) <= 4096
