"""Access: keys in every form that clients send, servers without a key, foreign names and origins."""

from __future__ import annotations

import base64
import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsyncd.errors import ConfigError
from lipsyncd.settings import CurrentSettings, Settings, Web
from lipsyncd.web.access import Access
from lipsyncd.web.keys import key_of, read_keys
from tests.kits.installation import Installation, picture, sound
from tests.kits.web_kit import Api, serving

USER, PASSWORD = "me@example.org", "s3cret:with-colon"
KEY = f"{USER}:{PASSWORD}"
DID_KEY = f"{base64.b64encode(USER.encode()).decode()}:{PASSWORD}"
PLAIN = "one-long-word"
ODD = "odd:?>?>?>?>"  # its base64 has "/" and "+"


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A server with two keys in a file."""
    root = tmp_path_factory.mktemp("access")
    keys = root / "keys"
    keys.write_text(f"# two keys\n{KEY}\n\n{PLAIN}\n{ODD}\n")
    keys.chmod(0o600)
    with serving(root, changes={"web": {"api_key_file": str(keys)}}) as api:
        yield api


@pytest.mark.parametrize(
    ("header", "owner"),
    [
        (f"Basic {KEY}", USER),
        (f"Basic {DID_KEY}", USER),
        (f"basic   {KEY} ", USER),
        (f"Basic {b64(KEY)}", USER),
        (f"Basic {b64(DID_KEY)}", USER),
        (f"Basic {b64(KEY + ':')}", USER),
        (f"Bearer {b64(KEY)}", USER),
        (f"Bearer {KEY}", USER),
        (f"Bearer\t{KEY}", USER),
        (f"BEARER {PLAIN}", "local"),
        (f"Basic {b64(KEY).rstrip('=')}", USER),
        (f"Basic {b64(DID_KEY).rstrip('=')}", USER),
        (f"Basic {DID_KEY.replace('=', '')}", USER),
        (f"Basic {b64(b64(KEY))}", USER),
        (f"Basic {b64(b64(KEY).rstrip('=')).rstrip('=')}", USER),
        (f"Basic {b64(b64(KEY) + ':')}", USER),
        (f"Basic {b64(KEY + chr(10))}", USER),
        (f"Basic {base64.urlsafe_b64encode(ODD.encode()).decode()}", "odd"),
        (PLAIN, "local"),
        (KEY, USER),
        (b64(KEY), USER),
        (f"Basic {b64(PLAIN + ':')}", "local"),
    ],
)
def test_every_form_of_the_header_that_clients_send_is_accepted(api: Api, header: str, owner: str) -> None:
    access = Access(CurrentSettings(Settings()), [key_of(KEY), key_of(PLAIN), key_of(ODD)])
    assert access.owner({"Authorization": header}) == owner
    assert access.owner({"X-Api-Key": header}) == owner
    assert api.get("/credits", Authorization=header).status == 200
    assert api.get("/credits", x_api_key=header).status == 200


@pytest.mark.parametrize(
    "header",
    [
        "", "Basic", "Bearer ", "Basic =====", f"Basic {PASSWORD}", f"Bearer {USER}", f"Basic {KEY}x", KEY.upper(),
        f"Basic {b64(PASSWORD)}", f"Basic {USER}:", "Basic " + "A" * 6_000, "Bearer \xff\xfe", f"Digest {KEY}",
        f"Basic {b64(b64(b64(KEY)))}", ":", "Basic Og==", "Basic =", "Basic A",
    ],
)  # fmt: skip
def test_any_other_header_is_refused(api: Api, header: str) -> None:
    access = Access(CurrentSettings(Settings()), [key_of(KEY), key_of(PLAIN)])
    assert access.owner({"Authorization": header}) is None
    api.get("/credits", Authorization=header).refused(401, "AuthorizationError")


def test_bytes_that_are_no_text_are_no_key() -> None:
    access = Access(CurrentSettings(Settings()), [key_of(KEY), key_of(PLAIN)])
    assert access.owner({"Authorization": "Bearer ÿ\udcff"}) is None


def test_without_the_key_every_route_is_closed_but_the_public_ones(api: Api) -> None:
    for method, path in [("GET", "/talks"), ("POST", "/talks"), ("GET", "/credits"), ("POST", "/generate-video"),
                         ("GET", "/talk-status/x"), ("GET", "/nothing"), ("DELETE", "/images/x")]:  # fmt: skip
        answer = api.call(method, path)
        assert answer.refused(401, "AuthorizationError") == "user unauthenticated"
        assert "WWW-Authenticate" not in answer.headers  # a browser would ask its user
    assert api.get("/health").status == 200
    assert api.get("/openapi.json").status == 200
    assert api.get("/credits", Authorization="Bearer \xff\xfe").status == 401
    assert api.get("/credits", Authorization=f"Basic {DID_KEY}").status == 200
    assert api.get("/credits", x_api_key=PLAIN).status == 200


def test_links_are_signed_and_open_without_the_key(api: Api) -> None:
    headers = {"Authorization": f"Basic {KEY}"}
    image = api.form("/images", headers=headers, image=("a.png", picture())).json
    audio = api.form("/audios", headers=headers, audio=("a.wav", sound())).json
    made = api.post(
        "/talks",
        {"source_url": image["url"], "script": {"type": "audio", "audio_url": audio["url"]}},
        Authorization=f"Basic {KEY}",
    ).json
    assert made["created_by"] == USER
    talk = api.get(f"/talks/{made['id']}?wait=50", Authorization=KEY).json
    assert (talk["status"], talk["user_id"]) == ("done", USER)
    old = api.get(f"/talk-status/{made['id']}", Authorization=KEY).json
    for url in (talk["result_url"], old["result_url"], image["url"], audio["url"]):
        assert "?sig=" in url
        assert api.get(url).status == 200
        bare, _, signature = url.partition("?sig=")
        assert api.get(bare).refused(401, "AuthorizationError")
        assert api.get(bare, Authorization=KEY).status == 200
        changed = signature[:-1] + ("0" if signature[-1] != "0" else "1")
        assert api.get(f"{bare}?sig={changed}").status == 401
        assert api.get(f"{bare}?sig=%ff%fe").status == 401
    assert api.get(image["url"].partition("?")[0] + "?" + audio["url"].partition("?")[2]).status == 401
    secret = api.installation.path("state") / "link-secret"
    assert secret.stat().st_mode & 0o777 == 0o600


def test_no_key_gets_all_slots_for_uploads(api: Api) -> None:
    head = (
        f"POST /images HTTP/1.1\r\nHost: localhost\r\nAuthorization: {PLAIN}\r\nContent-Length: 900000\r\n"
        "Content-Type: multipart/form-data; boundary=X\r\n\r\n"
    )
    uploads = api.installation.path("state") / "uploads"
    with contextlib.ExitStack() as lines:
        for _ in range(12):
            line = lines.enter_context(socket.create_connection(("127.0.0.1", api.port), timeout=60))
            line.sendall(head.encode())
        api.installation.until(lambda: len(list(uploads.glob(".tmp-in-*"))) == 12, "twelve uploads on their way")
        refused = api.form("/images", headers={"Authorization": PLAIN}, image=("a.png", picture()))
        assert refused.refused(429, "TooManyRequestsError")
        assert refused.headers["Retry-After"]
        assert api.form("/images", headers={"Authorization": KEY}, image=("a.png", picture())).status == 201
    api.installation.until(lambda: not list(uploads.glob(".tmp-in-*")), "their places to be free again")
    assert api.form("/images", headers={"Authorization": PLAIN}, image=("a.png", picture())).status == 201


def head_of(api: Api, head: str) -> tuple[bytes, bytes]:
    """Status and body of the answer to a raw head."""
    with socket.create_connection(("127.0.0.1", api.port), timeout=20) as line:
        line.sendall(head.encode("latin-1"))
        answer = b""
        while piece := line.recv(65536):
            answer += piece
    first, _, body = answer.partition(b"\r\n\r\n")
    return first.split()[1], body


def test_with_a_key_host_has_to_be_valid_too(api: Api) -> None:
    """It becomes part of the links in answers."""
    for host in NO_HOST:
        api.get("/credits", Host=host, Authorization=KEY).refused(400, "BadRequestError")
    assert api.get("/credits", Host="lips.example.org:443", Authorization=KEY).status == 200
    two = "GET /credits HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n"
    for head, status in (
        (two, b"400"),
        ("GET /credits HTTP/1.1\r\nConnection: close\r\n", b"400"),
        ("GET /credits HTTP/1.0\r\n", b"200"),
        ("GET http://evil.example/credits HTTP/1.1\r\nHost: local host\r\nConnection: close\r\n", b"400"),
    ):
        assert head_of(api, f"{head}Authorization: {KEY}\r\n\r\n")[0] == status, head


def test_the_log_holds_no_key_and_no_secret(api: Api) -> None:
    api.get("/credits", Authorization=f"Basic {KEY}", x_api_key_external='{"elevenlabs": "xyzzy"}')
    log = api.installation.log
    assert not any(secret in log for secret in (PASSWORD, PLAIN, DID_KEY, "xyzzy"))


# -- starting ----------------------------------------------------------------------------------------------------------


def start(installation: Installation, **environment: str) -> subprocess.CompletedProcess[str]:
    """Start a daemon that must fail."""
    return installation.cli("run", **environment)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])
def test_another_address_without_a_key_stops_the_start(installation: Installation, host: str) -> None:
    installation.changes["web"] = {"enabled": True, "host": host}
    done = start(installation)
    assert done.returncode == 78
    assert "no key is configured" in done.stderr
    assert "web.allow_anonymous" in done.stderr


def test_a_server_without_a_key_is_a_setting_and_each_start_logs_a_warning(tmp_path: Path) -> None:
    with serving(tmp_path, changes={"web": {"host": "0.0.0.0", "allow_anonymous": True}}) as api:
        assert api.get("/credits").status == 200
        assert "every client may use this server" in api.installation.log


def test_a_key_may_come_from_the_environment_or_from_systemd(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "api-key").write_text(f"{KEY}\n")
    (credentials / "api-key").chmod(0o600)
    environment = {"LIPSYNCD_API_KEY": PLAIN, "CREDENTIALS_DIRECTORY": str(credentials)}
    with serving(tmp_path, changes={"web": {"host": "0.0.0.0"}}, **environment) as api:
        assert api.get("/credits").status == 401
        assert api.get("/credits", Authorization=PLAIN).status == 200
        assert api.get("/credits", Authorization=KEY).status == 200
        assert "allow_anonymous" not in api.installation.log


@pytest.mark.parametrize("content", ["", "#\n", "\n# none yet\n"])
def test_the_units_credential_without_a_key_is_no_key(installation: Installation, tmp_path: Path, content: str) -> None:
    """systemd always passes one, so a service without keys must start; on other addresses it must still refuse."""
    (tmp_path / "api-key").write_text(content)
    (tmp_path / "api-key").chmod(0o400)
    assert read_keys(installation.settings.web, {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == []
    installation.changes["web"] = {"enabled": True, "host": "0.0.0.0"}
    daemon = installation.start(wait=False, CREDENTIALS_DIRECTORY=str(tmp_path))
    assert daemon.wait(60) == 78
    installation.daemon = None


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        ("", 0o600, "holds no key"),
        ("# nothing\n", 0o600, "holds no key"),
        ("short\n", 0o600, "has 5 characters"),
        (f"{KEY}\n", 0o644, "every user of this machine may read"),
        (None, 0o600, "cannot read"),
    ],
)
def test_an_unusable_file_of_keys_is_refused(tmp_path: Path, content: str | None, mode: int, message: str) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(ConfigError, match=message):
        read_keys(Web(api_key_file=path), {})


def test_a_port_in_use_stops_the_start_and_names_the_setting(installation: Installation) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        installation.changes["web"] = {"enabled": True, "port": port}
        done = start(installation)
    assert done.returncode == 78
    assert f"web.port is {port}" in done.stderr
    assert "it is in use" in done.stderr


def test_a_name_that_is_no_address_of_this_machine_stops_the_start(installation: Installation) -> None:
    installation.changes["web"] = {"enabled": True, "host": "no-such-host.invalid", "allow_anonymous": True}
    done = start(installation)
    assert done.returncode == 78
    assert "web.host" in done.stderr


def test_another_daemon_is_reported_before_a_port_in_use(tmp_path: Path) -> None:
    with serving(tmp_path) as api:
        api.installation.changes["web"]["port"] = api.port
        assert api.installation.cli("run").returncode == 75


def test_it_can_be_switched_off(installation: Installation) -> None:
    with installation.running():
        assert "REST" not in installation.log


# -- foreign pages -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A server without a key."""
    web = {"allowed_hosts": ["media.example.org"], "cors_origins": ["https://studio.example.org/"]}
    with serving(tmp_path_factory.mktemp("open"), changes={"web": web}) as api:
        yield api


# Not a name or an address with a port, whatever a program may read out of it.
NO_HOST = [
    "localhost:1:2", "localhost:port", "localhost:", "localhost:65536", "localhost evil", "localhost,evil.example",
    "localhost/evil", "localhost#evil", "localhost?evil", "localhost\\evil", "evil@localhost", "localhost@evil.example",
    "[::1]evil", "[::1].evil.example", "[localhost]", "[127.0.0.1]", "[::1%lo]", "[::1%25lo]", "::1", "[]",
    "[::ffff:127.1]", "-localhost", "localhost-", "127.1", "2130706433", "0x7f000001", "0x7f.1", "127.0.0.01",
    "local%68ost", "b\xfccher", "localhost..", ".localhost", "a" * 64, "a." * 127 + "a",
]  # fmt: skip


@pytest.mark.parametrize(
    "host",
    [
        "localhost:1234",
        "LOCALHOST",
        "localhost.",
        "127.0.0.1",
        "[::1]:8003",
        "[::ffff:127.0.0.1]",
        "192.168.1.7:80",
        "gpubox",
        "lipsyncd_1:80",
        "media.example.org",
    ],
)
def test_names_that_no_stranger_can_give_this_machine_are_accepted(open_api: Api, host: str) -> None:
    assert open_api.get("/credits", Host=host).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example:8003", "localhost.evil.example", "", "[::1", "x..y", *NO_HOST],
)
def test_a_rebound_name_is_refused(open_api: Api, host: str) -> None:
    for path in ("/credits", "/health", "/nothing"):
        open_api.get(path, Host=host).refused(403, "PermissionError")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost.evil:80"])
def test_a_post_from_a_foreign_page_is_refused(open_api: Api, origin: str) -> None:
    answer = open_api.form("/images", headers={"Origin": origin}, image=("a.png", picture()))
    assert answer.refused(403, "PermissionError")
    assert "Access-Control-Allow-Origin" not in answer.headers
    preflight = open_api.call("OPTIONS", "/talks", headers={"Origin": origin, "Access-Control-Request-Method": "POST"})
    assert "Access-Control-Allow-Origin" not in preflight.headers


def test_our_own_pages_and_listed_origins_are_allowed(open_api: Api) -> None:
    own = f"http://127.0.0.1:{open_api.port}"
    assert open_api.get("/credits", Origin=own).status == 200
    listed = open_api.get("/credits", Origin="https://studio.example.org")
    assert (listed.status, listed.headers["Access-Control-Allow-Origin"]) == (200, "https://studio.example.org")
    refused = open_api.get("/nothing", Origin="https://studio.example.org")
    assert refused.refused(404, "NotFoundError")
    assert (
        refused.headers["Access-Control-Allow-Origin"] == "https://studio.example.org"
    )  # so that its page can read the reason
    preflight = open_api.call(
        "OPTIONS",
        "/talks",
        headers={"Origin": "https://studio.example.org", "Access-Control-Request-Method": "POST"},
    )
    assert preflight.status == 204
    assert "authorization" in preflight.headers["Access-Control-Allow-Headers"]
