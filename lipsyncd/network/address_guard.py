"""Which addresses the daemon may connect to when a stranger names them, and a resolver that enforces it.

A manifest's URL must not open the daemon's own network to its sender. So addresses are checked, not names: all answers
of the resolver, and again the address of each socket just before it connects. That also covers literal addresses,
redirects, and names whose answer changes.

Owns the rule. Leaves methods, redirects and bodies to its users.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from lipsyncd.errors import ConfigError, FetchRefused
from lipsyncd.settings import hosts

PUBLIC_PORTS = frozenset((80, 443))

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Lookup: TypeAlias = Callable[[str, int], Sequence[tuple[Any, Any, Any, Any, Any]]]

# The special-purpose registries of IANA (RFC 6890 and its updates). `ipaddress` does not suffice: the addresses that it
# calls global differ between versions of Python, and include 192.0.0.192 (one cloud's metadata) and multicast.
_RESERVED_V4 = {
    "0.0.0.0/8": "this host",
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "carrier-grade NAT",
    "127.0.0.0/8": "loopback",
    "169.254.0.0/16": "link-local",
    "172.16.0.0/12": "private",
    "192.0.0.0/24": "protocol assignments",
    "192.0.2.0/24": "documentation",
    "192.88.99.0/24": "6to4 relay",
    "192.168.0.0/16": "private",
    "198.18.0.0/15": "benchmarking",
    "198.51.100.0/24": "documentation",
    "203.0.113.0/24": "documentation",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved",
}
_RESERVED_V6 = {
    "2001::/23": "protocol assignments",
    "2001:db8::/32": "documentation",
    "3fff::/20": "documentation",
}
_RESERVED = [(ipaddress.ip_network(text), label) for text, label in (_RESERVED_V4 | _RESERVED_V6).items()]
_GLOBAL_V6 = ipaddress.ip_network("2000::/3")  # all global unicast addresses
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def lookup(host: str, port: int) -> Sequence[tuple[Any, Any, Any, Any, Any]]:
    """The answers of the system's resolver, in the form of `socket.getaddrinfo`."""
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)


def without_secrets(url: URL) -> str:
    """The address for logs and messages: without user, password, query and fragment, which may hold secrets."""
    port = "" if url.is_default_port() or url.explicit_port is None else f":{url.explicit_port}"
    host = url.host or ""
    bare = f"{url.scheme}://{f'[{host}]' if ':' in host else host}{port}{url.raw_path}"
    return bare if len(bare) <= 120 else bare[:117] + "..."


def cause(error: aiohttp.ClientError) -> str:
    """A failure in words. Not `str(error)`: some of aiohttp's errors quote the whole address with its query."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "its certificate is not trusted here"
    if isinstance(error, aiohttp.ClientConnectorError):
        inner = error.os_error
        return os.strerror(inner.errno) if inner.errno else str(inner)
    if isinstance(error, aiohttp.ClientPayloadError):
        return "it ended before it was complete"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the server closed the connection"
    if isinstance(error, aiohttp.ClientResponseError):
        return "the server does not speak HTTP"
    return type(error).__name__


refused_connections: Counter[str] = Counter()  # since the start, by the rule that refused them


class Guard:
    """The rule: public addresses on ports 80 and 443, and the entries of `allow` on any port.

    allow    host names (`media.lan`), names with a port (`media.lan:8080`), addresses and networks (`192.168.0.0/16`).
             A listed name may resolve to any address: its DNS is trusted.
    public   False: only the entries of `allow`, as for addresses without TLS
    setting  the setting that holds `allow`, for the message

    Raises `ConfigError` for an entry that is none of these.
    """

    def __init__(
        self, allow: Sequence[str] = (), *, lookup: Lookup = lookup, public: bool = True, setting: str = "fetch.allow"
    ) -> None:
        self._lookup = lookup
        self._public = public
        self._networks: list[hosts.Network] = []
        self._names: set[tuple[str, int | None]] = set()
        for entry in allow:
            try:
                place = hosts.parse(entry)
            except ValueError:
                raise ConfigError(f"{setting} holds {entry!r}; allowed are {hosts.ALLOWED}") from None
            if isinstance(place, tuple):
                self._names.add(place)
            else:
                self._networks.append(place)

    def check(self, text: str) -> URL:
        """The parsed address. Raises `FetchRefused` for other schemes, users and passwords, and for invalid URLs."""
        if not text.isprintable() or " " in text:
            raise FetchRefused("the address holds spaces or control characters", remedy="correct it")
        try:
            url = URL(text).with_fragment(None)
            port = url.port
        except ValueError as error:
            raise FetchRefused("the address is no valid URL", remedy="correct it") from error
        if _is_no_literal(text, url):
            raise FetchRefused("the address holds no valid IPv6 address in its brackets", remedy="correct it")
        if url.scheme not in ("http", "https") or not url.raw_host or port is None:
            raise FetchRefused(f"an address with the scheme {url.scheme[:20]!r}", remedy="use http:// or https://")
        if url.raw_user is not None or url.raw_password is not None:
            raise FetchRefused(
                f"{without_secrets(url)} holds a user or a password", remedy="use a signed link or the inbox"
            )
        return url

    def resolver(self, url: URL) -> GuardedResolver:
        """The resolver for one request to `url`."""
        return GuardedResolver(self, self._lookup, listed=self._is_listed(url))

    def _is_listed(self, url: URL) -> bool:
        name = _normal(url.raw_host or "")
        return (name, None) in self._names or (name, url.port) in self._names

    def check_without_resolving(self, text: str) -> None:
        """Raise `FetchRefused` if the address is refused whatever it resolves to. Others may be refused later."""
        url = self.check(text)
        host, port, fault = url.raw_host or "", url.port or 0, ""
        if self._is_listed(url):
            return
        if _is_address(host):
            fault = self.fault(host, port)
        elif not self._networks:  # else its name may resolve to an address in one of them
            fault = self._fault_of_public(port)
        if fault:
            raise FetchRefused(f"{without_secrets(url)} {fault}")

    def fault(self, address: str, port: int) -> str:
        """Why this address and port are refused; an empty text if they are allowed."""
        everything_listed = True
        for inner in _unwrapped(ipaddress.ip_address(address.partition("%")[0])):
            if any(inner in network for network in self._networks if network.version == inner.version):
                continue
            everything_listed = False
            if reserved := _reserved(inner):
                return f"is no public address ({reserved})"
        return "" if everything_listed else self._fault_of_public(port)

    def _fault_of_public(self, port: int) -> str:
        if not self._public:
            return "has no TLS and is not listed"
        if port not in PUBLIC_PORTS:
            return f"has port {port}, which is neither 80 nor 443"
        return ""


def receivers(allow: Sequence[str]) -> Mapping[str, Guard]:
    """The rules for webhooks, by scheme: http only to entries of `web.webhook_allow`, https to public addresses too."""
    setting = "web.webhook_allow"
    return {"https": Guard(allow, setting=setting), "http": Guard(allow, setting=setting, public=False)}


def _is_no_literal(text: str, url: URL) -> bool:
    """Does a host in brackets hold no IPv6 address? yarl accepts such hosts, and reads a name out of some of them."""
    authority = re.split(r"[/?#\\]", text.partition("//")[2], maxsplit=1)[0]
    host = (url.raw_host or "").partition("%")[0]  # without the zone
    return "[" in authority and not (":" in host and _is_address(host))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _normal(host: str) -> str:
    return host.lower().rstrip(".")


def _unwrapped(address: _Address) -> Iterator[_Address]:
    """The addresses that a packet to this one can reach: IPv6 carries IPv4 in four ways."""
    if isinstance(address, ipaddress.IPv4Address):
        yield address
    elif address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    elif address in _NAT64:
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    elif address.sixtofour is not None:
        yield address.sixtofour
    elif address.teredo is not None:
        yield from address.teredo
    else:
        yield address


def _reserved(address: _Address) -> str:
    if address.version == 6 and address not in _GLOBAL_V6:
        return "loopback" if address.is_loopback else "not global unicast"
    return next(
        (label for network, label in _RESERVED if address.version == network.version and address in network), ""
    )


class GuardedResolver(AbstractResolver):
    """Resolves and connects for one request, and checks each address.

    refused  why an address was refused, empty if none was. An attribute, because aiohttp wraps and merges the errors of
             a resolver and a socket factory.
    """

    def __init__(self, guard: Guard, lookup: Lookup, *, listed: bool) -> None:
        self.refused = ""
        self._guard = guard
        self._lookup = lookup
        self._listed = listed

    def connector(self) -> aiohttp.TCPConnector:
        """A connector for one session, which closes it. Call it inside the running loop."""
        return aiohttp.TCPConnector(
            resolver=self, socket_factory=self._socket, use_dns_cache=False, force_close=True, limit=1
        )

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        answers = await _in_thread(lambda: self._lookup(host, port))
        for _, _, _, _, address in answers:
            self._check(address[0], port)
        return [
            ResolveResult(hostname=host, host=address[0], port=port, family=kind, proto=proto, flags=_NUMERIC)
            for kind, _, proto, _, address in answers
        ]

    async def close(self) -> None:
        """Required by aiohttp; nothing is open."""

    def _socket(self, info: tuple[Any, Any, Any, Any, Any]) -> socket.socket:
        family, kind, proto, _, address = info
        self._check(address[0], address[1])
        return socket.socket(family, kind, proto)

    def _check(self, address: str, port: int) -> None:
        fault = "" if self._listed else self._guard.fault(address, port)
        if fault:
            self.refused = fault
            rule = "port" if "port" in fault else "no-tls" if "TLS" in fault else "not-public"
            refused_connections[rule] += 1
            raise PermissionError(fault)


_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


async def _in_thread(ask: Callable[[], Any]) -> Any:
    """Run `ask` in a thread that is never joined: a resolver may take longer than the whole fetch may.

    The loop's own executor is joined when the loop closes, so the fetch would wait until the resolver gives up.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: OSError | UnicodeError | None) -> None:
        if answer.done():
            return
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(OSError(getattr(error, "strerror", None) or str(error)))

    def work() -> None:
        result, failed = None, None
        try:
            result = ask()
        except (OSError, UnicodeError) as error:
            failed = error
        try:
            loop.call_soon_threadsafe(settle, result, failed)
        except RuntimeError:  # the loop is closed, so the answer is no longer needed
            return

    threading.Thread(target=work, name="resolve", daemon=True).start()
    return await answer
