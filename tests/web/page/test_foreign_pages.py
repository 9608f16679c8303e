"""Requests with a cookie that another page makes: DNS rebinding, other ports of the same host, other sites."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.kits.installation import picture, sound
from tests.kits.web_kit import Api, Browser, serving

KEY, OTHER = "anna:first-secret", "boss:second-secret"
PUBLIC = "https://lips.example.org"
READING = ("/jobs", "/jobs/events", "/talks", "/credits", "/metrics", "/tts/voices", "/talk-status/{id}", "/jobs/{id}",
           "/storage/videos/{id}.mp4", "/nothing")  # fmt: skip
CHANGING = (("POST", "/jobs"), ("POST", "/jobs/{id}/cancel"), ("DELETE", "/jobs/{id}"), ("POST", "/talks"),
            ("DELETE", "/talks/{id}"), ("POST", "/images"), ("POST", "/generate-video"), ("DELETE", "/session"),
)  # fmt: skip


@dataclass
class Signed:
    """A server, and a browser that has signed in and has a job."""

    api: Api
    browser: Browser
    job_id: str


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signed]:
    root = tmp_path_factory.mktemp("foreign")
    keys = root / "keys"
    keys.write_text(f"{KEY}\n{OTHER} admin\n")
    keys.chmod(0o600)
    changes = {"web": {"api_key_file": str(keys), "cors_origins": ["https://studio.example.org"]}}
    with serving(root, changes=changes) as api:
        browser = Browser(api)
        assert browser.sign_in(KEY).status == 204
        made = browser.form("/jobs", image=("p.png", picture()), audio=("v.wav", sound(0.3)))
        yield Signed(api, browser, made.json["id"])


# What a browser sends for another page: of another port of this host (to which it sends the cookie, too), of another
# site, of none.
FOREIGN_READS = [
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": "null"},
    {"Origin": "https://studio.example.org"},  # its pages may use keys, and no visitor's sign-in
    {"Sec_Fetch_Site": "same-site"},
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": ""},
    {"Sec_Fetch_Site": "", "Referer": "http://127.0.0.1:1/page"},
    {"Sec_Fetch_Site": "", "Referer": "http://127.0.0.1@evil.example/"},
    {"Sec_Fetch_Site": "cross-site", "Referer": "OWN/"},
]
FOREIGN_CHANGES = [
    {"Origin": ""},
    {"Origin": "", "Sec_Fetch_Site": "same-origin"},
    {"Origin": "", "Referer": "OWN/"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://127.0.0.1"},
    {"Origin": "null"},
    {"Origin": "https://studio.example.org"},
]


def filled(headers: dict[str, str], api: Api) -> dict[str, str]:
    return {name: value.replace("OWN", api.url) for name, value in headers.items()}


@pytest.mark.parametrize("headers", FOREIGN_READS)
def test_what_another_page_reads_is_refused_on_every_route(signed: Signed, headers: dict[str, str]) -> None:
    for template in READING:
        path = template.format(id=signed.job_id)
        for method in ("GET", "HEAD"):
            answer = signed.browser.call(method, path, **filled(headers, signed.api))
            assert answer.status == 403, (method, path)
        refused = signed.browser.get(path, **filled(headers, signed.api))
        assert "sign-in" in refused.refused(403, "PermissionError")


@pytest.mark.parametrize("headers", FOREIGN_CHANGES)
def test_what_another_page_sends_is_refused_on_every_route(signed: Signed, headers: dict[str, str]) -> None:
    for method, template in CHANGING:
        path = template.format(id=signed.job_id)
        answer = signed.browser.call(method, path, b"{}", **filled(headers, signed.api))
        assert "sign-in" in answer.refused(403, "PermissionError"), (method, path)
    assert signed.browser.get(f"/jobs/{signed.job_id}").json["state"] != "cancelled"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec_Fetch_Site": "none"},  # the address was typed
        {"Sec_Fetch_Site": "", "Referer": "OWN/"},  # over plain HTTP no browser sends Sec-Fetch-Site
        {"Sec_Fetch_Site": "", "Referer": "OWN/page/anything?x=1"},
        {"Origin": "OWN"},
    ],
)
def test_what_our_own_page_reads_is_answered(signed: Signed, headers: dict[str, str]) -> None:
    for path in ("/jobs", f"/talk-status/{signed.job_id}", "/metrics"):
        assert signed.browser.get(path, **filled(headers, signed.api)).status == 200


def test_a_rebound_name_gets_nothing_by_a_cookie(signed: Signed) -> None:
    for host in ("evil.example", f"evil.example:{signed.api.port}", f"127.0.0.1.evil.example:{signed.api.port}"):
        rebound = {"Host": host, "Origin": f"http://{host}"}
        assert "web.allowed_hosts" in signed.browser.get("/jobs", **rebound).refused(403, "PermissionError")
        assert signed.browser.get("/jobs", Host=host).refused(403, "PermissionError")
        assert signed.browser.post("/jobs", {}, **rebound).refused(403, "PermissionError")
        refused = Browser(signed.api).sign_in(KEY, **rebound)
        assert "web.allowed_hosts" in refused.refused(403, "PermissionError")
        assert signed.api.get("/jobs", Host=host, Authorization=KEY).status == 200  # a key counts as before


def test_another_page_can_sign_nobody_in_or_out(signed: Signed) -> None:
    for origin in ("http://127.0.0.1:1", "null", "https://studio.example.org"):
        answer = Browser(signed.api).sign_in(KEY, Origin=origin)
        assert "Set-Cookie" not in answer.headers
        assert answer.refused(403, "PermissionError")
    assert signed.browser.get("/session").json["signed_in"] is True
    assert signed.browser.get("/session", Sec_Fetch_Site="same-site").json["signed_in"] is False
    without = signed.api.post("/session", {"key": KEY})  # of a program
    assert without.status == 204


def test_a_key_in_a_header_wins_over_a_cookie_and_counts_as_before(signed: Signed) -> None:
    browser = signed.browser
    assert browser.get("/session", Authorization=OTHER).json["name"] == "boss"
    foreign = {"Origin": "http://evil.example", "Sec_Fetch_Site": "cross-site"}
    assert browser.get("/jobs", x_api_key=OTHER, **foreign).status == 200
    assert browser.get("/jobs", Authorization=OTHER, Host="evil.example").status == 200
    listed = signed.api.get("/jobs", Authorization=KEY, Origin="https://studio.example.org")
    assert listed.headers["Access-Control-Allow-Origin"] == "https://studio.example.org"
    assert "Access-Control-Allow-Credentials" not in listed.headers
    # A proxy may ask for a password of its own, which the browser then sends with each request.
    assert browser.get("/session", Authorization="Basic b3RoZXI6cGFzc3dvcmQ=").json["name"] == "anna"


def test_a_signed_link_opens_from_everywhere_and_a_bare_one_does_not(signed: Signed) -> None:
    job = signed.browser.get(f"/jobs/{signed.job_id}?wait=50").json
    assert "?sig=" in job["result_url"]
    boss, stranger = Browser(signed.api), Browser(signed.api)
    assert boss.sign_in(OTHER).status == 204
    bare = job["result_url"].partition("?")[0]
    assert [one.get(bare).status for one in (signed.browser, boss, stranger)] == [200, 200, 401]
    for headers in ({"Sec_Fetch_Site": "cross-site"}, {"Origin": "http://evil.example"}):
        video = signed.browser.get(job["result_url"], **headers)
        assert video.status == 200
        assert "default-src 'none'" in video.headers["Content-Security-Policy"]
        assert signed.browser.get(bare, **headers).refused(403, "PermissionError")
    assert signed.browser.get("/", Sec_Fetch_Site="same-site").status == 200  # a link from another server of this host


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A server behind a proxy that ends TLS."""
    with serving(tmp_path_factory.mktemp("public"), changes={"web": {"public_url": f"{PUBLIC}/"}},
                 LIPSYNCD_API_KEY=KEY) as api:  # fmt: skip
        yield api


def is_secure(cookie: str) -> bool:
    return "secure" in {part.strip().lower() for part in cookie.split(";")}


def test_behind_a_proxy_the_public_address_is_ours_and_the_cookie_needs_tls(public: Api) -> None:
    for host in ("lips.example.org", f"127.0.0.1:{public.port}"):  # a proxy may keep Host, or not
        browser = Browser(public)
        answer = browser.sign_in(KEY, Origin=PUBLIC, Host=host)
        assert answer.status == 204
        assert is_secure(answer.headers["Set-Cookie"])
        assert browser.get("/jobs", Host=host).status == 200
        assert browser.get("/jobs", Host=host, Sec_Fetch_Site="", Referer=f"{PUBLIC}/").status == 200
        assert browser.call("DELETE", "/jobs/x", Host=host, Origin=PUBLIC).status == 404
        assert browser.call("DELETE", "/jobs/x", Host=host, Origin="http://lips.example.org:81").status == 403
        assert is_secure(browser.call("DELETE", "/session", Host=host, Origin=PUBLIC).headers["Set-Cookie"])
    page = public.get("/", Host="lips.example.org")
    assert page.headers["Cross-Origin-Opener-Policy"] == "same-origin"


def test_a_public_address_with_tls_refuses_a_sign_in_without(public: Api) -> None:
    plain = Browser(public).sign_in(KEY, Origin="http://gpubox:8003", Host="gpubox:8003")
    assert PUBLIC in plain.refused(403, "PermissionError")
    assert is_secure(Browser(public).sign_in(KEY).headers["Set-Cookie"])  # browsers trust this machine itself


def test_without_tls_the_cookie_is_not_secure_whatever_a_proxy_forwards(signed: Signed) -> None:
    forwarded = {"X_Forwarded_Proto": "https", "X_Forwarded_Host": "evil.example", "Forwarded": "proto=https"}
    browser = Browser(signed.api)
    answer = browser.sign_in(KEY, **forwarded)
    assert (answer.status, is_secure(answer.headers["Set-Cookie"])) == (204, False)
    assert browser.get("/jobs", Origin="http://evil.example", **forwarded).status == 403
    by_tls = Browser(signed.api).sign_in(KEY, Origin="https://gpubox", Host="gpubox")  # the browser's own word
    assert is_secure(by_tls.headers["Set-Cookie"])


def test_a_server_without_a_key_takes_its_public_address_for_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("open"), changes={"web": {"public_url": PUBLIC}}) as api:
        assert api.get("/jobs", Host="lips.example.org", Origin=PUBLIC).status == 200
        assert api.get("/jobs", Origin=PUBLIC).status == 200
        assert api.get("/jobs", Host="lips.example.com").refused(403, "PermissionError")
