"""Fetching: no connection to a private address, every limit holds, and each failure says whether to try again."""

from __future__ import annotations

import gzip
import hashlib
import ipaddress
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipsyncd.errors import ConfigError, FetchFailed, FetchRefused
from lipsyncd.network.address_guard import Guard, lookup, receivers
from lipsyncd.network.fetch import fetch

BODY = bytes(range(256)) * 500
SECRET = "token=s3cret"


class Handler(BaseHTTPRequestHandler):
    """Calls the route of `path` with itself; the route writes the answer."""

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))
        self.server.routes[self.path.partition("?")[0]](self)

    def answer(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class Server:
    """A real HTTP server on loopback. `listed` is the entry of `fetch.allow` that allows it."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self._http = ThreadingHTTPServer((address, 0), Handler)
        self._http.daemon_threads = True
        self._http.routes, self._http.seen = {}, []
        self.port = self._http.server_port
        self.listed = f"{address}:{self.port}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def route(self, path: str, write: Callable[[Handler], None]) -> str:
        self._http.routes[path] = write
        return f"http://{self.listed}{path}"

    def redirect(self, path: str, to: str, status: int = 302) -> str:
        return self.route(path, lambda handler: handler.answer(status, Location=to))

    @property
    def seen(self) -> list[tuple[str, dict[str, str]]]:
        return self._http.seen

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class Canary:
    """Counts connections to one port on all loopback addresses. There must be none."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        self.port = self._listener.getsockname()[1]
        self.hits = 0
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.hits += 1
            connection.close()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def canary() -> Iterator[Canary]:
    listening = Canary()
    yield listening
    time.sleep(0.02)
    assert listening.hits == 0
    listening.close()


@pytest.fixture
def get(tmp_path, server):
    """Fetch into `tmp_path/file` with small limits; check that a failure leaves no file."""

    def get(url: str, **changes):
        limits = {"max_bytes": 1 << 20, "timeout_s": 5.0, "allow": [server.listed]}
        target = tmp_path / "file"
        try:
            return fetch(url, target, **limits | changes)
        except Exception:
            assert not target.exists()
            raise

    return get


@contextmanager
def at_most(limit_s: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < limit_s


# -- good answers ------------------------------------------------------------------------------------------------------


def test_a_file_arrives_whole_and_private(server, get, tmp_path):
    fetched = get(server.route("/a.png", lambda handler: handler.answer(body=BODY)) + "?" + SECRET)

    assert (tmp_path / "file").read_bytes() == BODY
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert (fetched.size_bytes, fetched.sha256) == (len(BODY), hashlib.sha256(BODY).hexdigest())
    assert fetched.final_url == f"http://{server.listed}/a.png"
    assert server.seen[0][0] == f"/a.png?{SECRET}"


def test_five_redirects_are_followed_and_relative_ones_understood(server, get, tmp_path):
    server.route("/deep/end", lambda handler: handler.answer(body=b"x"))
    server.redirect("/deep/3", "4", 308)
    server.redirect("/deep/4", "5", 307)
    server.redirect("/deep/5", "end", 302)
    server.redirect("/2", "deep/3?" + SECRET, 303)
    fetched = get(server.redirect("/1", f"http://{server.listed}/2", 301))

    assert fetched.final_url == f"http://{server.listed}/deep/end"
    assert (tmp_path / "file").read_bytes() == b"x"


def test_the_request_reveals_nothing_about_us(server, get, monkeypatch, canary):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{canary.port}")
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{canary.port}")
    server.route("/end", lambda handler: handler.answer(body=b"x"))
    get(server.route("/start", lambda handler: handler.answer(302, Location="/end", Set_Cookie="a=b")))

    for _, headers in server.seen:
        assert set(headers) == {"Host", "Accept", "Accept-Encoding", "User-Agent", "Connection"}
        assert headers["Accept-Encoding"] == "identity"


def test_an_older_file_is_replaced(server, get, tmp_path):
    (tmp_path / "file").write_bytes(b"longer than what comes now")
    get(server.route("/", lambda handler: handler.answer(body=b"new")))

    assert (tmp_path / "file").read_bytes() == b"new"


# -- addresses that are refused ----------------------------------------------------------------------------------------

PRIVATE = [
    "127.0.0.1",
    "127.8.9.10",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "[2001:0:7f00:1:0:0:80ff:fffe]",
    "[::]",
    "0.0.0.0",
    "0",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0x7f.0.0.1",
    "0177.0.0.1",
    "017700000001",
    "localhost",
    "LocalHost",
]


@pytest.mark.parametrize("host", PRIVATE)
def test_no_spelling_of_loopback_is_allowed(get, canary, host):
    with pytest.raises(FetchRefused, match=r"no public address|no valid host"):
        get(f"http://{host}:{canary.port}/")


@pytest.mark.parametrize("host", PRIVATE)
def test_no_redirect_to_loopback_is_followed(server, get, canary, host):
    with pytest.raises(FetchRefused, match=r"no public address|no valid host"):
        get(server.redirect("/", f"http://{host}:{canary.port}/"))


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("file:///etc/passwd", "scheme 'file'"),
        ("ftp://127.0.0.1/", "scheme 'ftp'"),
        ("http://user:word@127.0.0.1/", "user or a password"),
        ("http://[::1", "no valid URL"),
        ("//localhost:{port}/", "no public address"),
        ("http://127.0.0.1:99999/", "no valid URL"),
        ("http://[::ffff:127.1]/", "no valid URL"),
    ],
)
def test_a_redirect_is_checked_like_the_first_address(server, get, canary, location, message):
    with pytest.raises(FetchRefused, match=message):
        get(server.redirect("/", location.format(port=canary.port)))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///etc/passwd", "scheme 'file'"),
        ("ftp://example.com/a", "scheme 'ftp'"),
        ("gopher://127.0.0.1/", "scheme 'gopher'"),
        ("//example.com/", "scheme ''"),
        ("http:///a", "scheme 'http'"),
        ("a.png", "scheme ''"),
        ("", "scheme ''"),
        ("http://user@example.com/", "user or a password"),
        ("http://user:pass@example.com/", "user or a password"),
        ("http://exa mple.com/", "spaces"),
        ("http://example.com/\r\nHost: x", "control"),
        ("http://example.com:99999/", "no valid URL"),
        ("http://example.com\\@127.0.0.1/", "no valid URL"),
        ("http://[::ffff:127.1]/", "no valid IPv6"),
        ("http://[::ffff:0x7f.1]:80/", "no valid IPv6"),
        ("http://[::127.1]", "no valid IPv6"),
        ("http://[1:2:3:4:5:6:7:8:9]/", "no valid IPv6"),
        ("http://[v1.example.com]/", "no valid IPv6"),
        ("http://[127.0.0.1]/", "no valid"),
        ("http://[]/", "no valid URL"),
    ],
)
def test_a_text_that_is_no_plain_web_address_is_refused(get, url, message):
    with pytest.raises(FetchRefused, match=message):
        get(url)


@pytest.mark.parametrize("port", [22, 25, 8080, 0, 6379])
def test_public_addresses_are_allowed_on_web_ports_only(get, port):
    with pytest.raises(FetchRefused, match=f"port {port}"):
        get(f"http://198.41.0.4:{port}/")


def answering(*addresses: str):
    """A resolver that gives these answers one after the other, each a comma-separated list."""
    answers = iter(addresses)

    def ask(host: str, port: int):
        return [entry for address in next(answers).split(",") for entry in lookup(address, port)]

    return ask


@pytest.fixture
def listed() -> Iterator[Server]:
    """A server on an address of its own, which a test may list."""
    running = Server("127.0.0.2")
    yield running
    running.close()


@pytest.mark.parametrize("answers", ["127.0.0.2,127.0.0.1", "127.0.0.1,127.0.0.2"])
def test_a_name_with_one_private_answer_is_refused(get, listed, answers):
    listed.route("/", lambda handler: handler.answer(body=b"x"))
    with pytest.raises(FetchRefused, match="no public address"):
        get(f"http://two-faced.test:{listed.port}/", allow=Guard(["127.0.0.2"], lookup=answering(answers)))
    assert listed.seen == []


def test_a_name_that_changes_its_answer_between_two_requests_is_caught(get, listed, canary):
    guard = Guard(["127.0.0.2"], lookup=answering("127.0.0.2", "127.0.0.1"))
    listed.redirect("/", f"http://rebinding.test:{canary.port}/")
    with pytest.raises(FetchRefused, match="no public address"):
        get(f"http://rebinding.test:{listed.port}/", allow=guard)
    assert len(listed.seen) == 1


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("0.1.2.3", "this host"),
        ("10.0.0.1", "private"),
        ("100.64.0.1", "NAT"),
        ("169.254.169.254", "link-local"),
        ("172.31.255.255", "private"),
        ("192.0.0.192", "protocol"),
        ("192.168.1.1", "private"),
        ("192.88.99.1", "6to4"),
        ("198.19.0.1", "benchmarking"),
        ("203.0.113.9", "documentation"),
        ("224.0.0.1", "multicast"),
        ("255.255.255.255", "reserved"),
        ("fc00::1", "not global"),
        ("fe80::1%eth0", "not global"),
        ("ff02::1", "not global"),
        ("::7f00:1", "not global"),
        ("64:ff9b:1::1", "not global"),
        ("64:ff9b::a00:1", "private"),
        ("2002:a9fe:a9fe::", "link-local"),
        ("2001:0:a00:1::", "private"),
        ("2001:db8::1", "documentation"),
        ("3fff::1", "documentation"),
        ("100::1", "not global"),
    ],
)
def test_special_addresses_are_not_public(address, why):
    assert why in Guard().fault(address, 443)


@pytest.mark.parametrize("address", ["1.1.1.1", "198.41.0.4", "172.32.0.1", "2606:4700::1111", "64:ff9b::101:101"])
def test_public_addresses_are_allowed(address):
    assert Guard().fault(address, 443) == Guard().fault(address, 80) == ""


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_allowed_addresses_are_global_for_python_too(address):
    if not Guard().fault(str(address), 443):
        embedded = address.version == 6 and address in ipaddress.ip_network("64:ff9b::/96")
        assert address.is_global or embedded or address in ipaddress.ip_network("2002::/16")
        assert not address.is_multicast


# -- entries of fetch.allow --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "url"),
    [
        ("media.test", "http://media.test:{port}/"),
        ("Media.Test.", "http://media.test:{port}/"),
        ("media.test:{port}", "http://MEDIA.test.:{port}/"),
        ("127.0.0.1", "http://media.test:{port}/"),
        ("127.0.0.0/8", "http://127.0.0.1:{port}/"),
        ("127.0.0.1:{port}", "http://127.0.0.1:{port}/"),
        ("127.0.0.0/8", "http://[::ffff:127.0.0.1]:{port}/"),
    ],
)
def test_listed_hosts_and_networks_are_allowed_on_any_port(server, get, entry, url):
    server.route("/", lambda handler: handler.answer(body=b"x"))
    guard = Guard([entry.format(port=server.port)], lookup=lambda _, port: lookup("127.0.0.1", port))

    assert get(url.format(port=server.port), allow=guard).size_bytes == 1


@pytest.mark.parametrize("entry", ["other.test", "test", "media.test:1", "media.test.evil", "10.0.0.0/8", "127.0.0.2"])
def test_entries_allow_only_what_they_name(get, canary, entry):
    guard = Guard([entry], lookup=lambda _, port: lookup("127.0.0.1", port))
    with pytest.raises(FetchRefused, match="no public address"):
        get(f"http://media.test:{canary.port}/", allow=guard)


@pytest.mark.parametrize(
    "entry",
    ["", "*", "*.lan", "http://media.lan", "media.lan/", "user@media.lan", "10.0.0.0/33", "10.0.0.999", "a b", "a:b"],
)
def test_an_entry_that_is_no_host_and_no_network_stops_the_start(entry):
    with pytest.raises(ConfigError, match=r"fetch\.allow holds"):
        Guard([entry])


# -- limits ------------------------------------------------------------------------------------------------------------


def test_an_announced_size_over_the_limit_is_refused_unread(server, get):
    with at_most(1), pytest.raises(FetchRefused, match="larger than 1000 bytes"):
        get(server.route("/", lambda handler: handler.answer(Content_Length="5000000000")), max_bytes=1000)


def test_a_body_without_end_is_cut_off_at_the_limit(server, get):
    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        with pytest.raises(OSError):  # we close the connection
            while True:
                handler.wfile.write(bytes(65536))

    with at_most(3), pytest.raises(FetchRefused, match="larger than"):
        get(server.route("/", endless))


def test_a_body_of_exactly_the_limit_is_accepted(server, get):
    url = server.route("/", lambda handler: handler.answer(body=bytes(1000)))

    assert get(url, max_bytes=1000).size_bytes == 1000
    with pytest.raises(FetchRefused):
        get(url, max_bytes=999)


def test_a_compressed_bomb_is_not_unpacked(server, get):
    bomb = gzip.compress(bytes(50 << 20))
    honest = server.route("/honest", lambda handler: handler.answer(body=bomb, Content_Encoding="gzip"))
    silent = server.route("/silent", lambda handler: handler.answer(body=bomb))

    with pytest.raises(FetchRefused, match="compressed"):
        get(honest)
    assert get(silent).size_bytes == len(bomb)


def drip(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    for _ in range(200):
        try:
            handler.wfile.write(b"x")
        except OSError:
            return
        time.sleep(0.05)


@pytest.mark.parametrize("write", [drip, lambda _: time.sleep(4)], ids=["a byte at a time", "nothing at all"])
def test_a_slow_answer_ends_at_the_time_limit(server, get, write):
    with at_most(1.5), pytest.raises(FetchFailed, match=r"within 0\.4 s"):
        get(server.route("/", write), timeout_s=0.4)


def test_a_slow_resolver_does_not_delay_the_fetch(get):
    released = threading.Event()
    guard = Guard(lookup=lambda *_: released.wait(20) or [])
    try:
        with at_most(1.5), pytest.raises(FetchFailed, match=r"within 0\.3 s"):
            get("http://slow.test/", allow=guard, timeout_s=0.3)
    finally:
        released.set()


def test_a_cancelled_fetch_ends_at_once(server, get):
    cancelled = threading.Event()
    threading.Timer(0.3, cancelled.set).start()
    with at_most(1.5), pytest.raises(FetchFailed, match="cancelled"):
        get(server.route("/", drip), cancelled=cancelled.is_set)


def test_redirects_in_a_circle_end(server, get):
    server.redirect("/b", "/a")
    with pytest.raises(FetchRefused, match="more than 5 redirects"):
        get(server.redirect("/a", "/b"))
    assert len(server.seen) == 6


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 418, 451])
def test_answers_that_will_not_change_are_not_retried(server, get, status):
    with pytest.raises(FetchRefused, match=f"answered {status}") as caught:
        get(server.route("/", lambda handler: handler.answer(status)))
    assert caught.value.permanent


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 204, 206, 304, 302, 599])
def test_answers_that_may_change_are_retried(server, get, status):
    with pytest.raises(FetchFailed, match=f"answered {status}") as caught:
        get(server.route("/", lambda handler: handler.answer(status)))
    assert not caught.value.permanent


def cut_short(handler: Handler) -> None:
    handler.answer(body=b"only this", Content_Length="5000")


def not_http(handler: Handler) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n" * 3)


def hang_up(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("write", "message"),
    [(cut_short, "before it was complete"), (not_http, "does not speak HTTP"), (hang_up, "closed the connection")],
)
def test_a_broken_answer_is_retried(server, get, write, message):
    with pytest.raises(FetchFailed, match=message):
        get(server.route("/", write))


def test_a_port_without_a_server_is_retried(get):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(FetchFailed, match="refused"):
        get(f"http://127.0.0.1:{port}/", allow=["127.0.0.1"])


def test_an_unknown_name_is_retried(get):
    def unknown(*_: object):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(FetchFailed, match="not known"):
        get("http://nowhere.test/", allow=Guard(lookup=unknown))


def test_https_to_a_server_without_tls_fails_cleanly(server, get):
    with pytest.raises(FetchFailed, match="cannot be fetched"):
        get(server.route("/", lambda handler: handler.answer()).replace("http:", "https:"))


@pytest.mark.parametrize(
    "write",
    [
        lambda handler: handler.answer(404),
        lambda handler: handler.answer(503),
        lambda handler: handler.answer(302, Location=f"http://127.0.0.1:1/?{SECRET}"),
        lambda handler: handler.answer(302, Location=f"file:///x?{SECRET}"),
        lambda handler: handler.answer(Content_Length="9" * 12),
        lambda handler: handler.answer(Content_Encoding="br"),
        cut_short,
        not_http,
        hang_up,
        drip,
    ],
)
def test_possible_secrets_are_in_no_message_and_no_log(server, get, caplog, write):
    caplog.set_level(0)
    with pytest.raises((FetchRefused, FetchFailed)) as caught:
        get(server.route("/", write) + f"?{SECRET}#{SECRET}", timeout_s=0.5)

    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in caplog.text


def test_a_link_in_place_of_the_target_is_not_followed(server, get, tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"precious")
    os.symlink(tmp_path / "elsewhere", tmp_path / "file")

    get(server.route("/", lambda handler: handler.answer(body=BODY)))

    assert (tmp_path / "elsewhere").read_bytes() == b"precious"
    assert not (tmp_path / "file").is_symlink()


@pytest.mark.parametrize(
    ("scheme", "host", "allow", "why"),
    [
        ("https", "hooks.example.org", [], ""),
        ("https", "hooks.example.org:443", [], ""),
        ("https", "93.184.216.34", [], ""),
        ("https", "hooks.example.org:8443", [], "port 8443"),
        ("https", "hooks.example.org:8443", ["hooks.example.org"], ""),
        ("https", "hooks.example.org:8443", ["10.0.0.0/8"], ""),  # it may resolve into that network
        ("https", "10.0.0.7", [], "private"),
        ("https", "[::1]", [], "loopback"),
        ("https", "10.0.0.7:8443", ["10.0.0.0/8"], ""),
        ("https", "me:secret@hooks.example.org", [], "a user or a password"),
        ("http", "hooks.example.org", [], "has no TLS"),
        ("http", "93.184.216.34", [], "has no TLS"),
        ("http", "93.184.216.34", ["10.0.0.0/8"], "has no TLS"),
        ("http", "hooks.lan:8080", ["hooks.lan:8080"], ""),
        ("http", "hooks.lan:8081", ["hooks.lan:8080"], "has no TLS"),
        ("http", "hooks.lan", ["192.168.0.0/16"], ""),
    ],
)
def test_addresses_that_would_always_be_refused_are_found_without_resolving(
    scheme: str, host: str, allow: list[str], why: str
) -> None:
    """By the address alone, without a resolver; an address that passes is checked again at each connection."""
    guard = receivers(allow)[scheme]
    if not why:
        guard.check_without_resolving(f"{scheme}://{host}/hook?secret=1")
        return
    with pytest.raises(FetchRefused, match=why) as refusal:
        guard.check_without_resolving(f"{scheme}://{host}/hook?secret=1")
    assert "secret" not in refusal.value.message
