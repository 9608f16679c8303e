"""The hosts that a setting may list: the grammar of `fetch.allow` and `web.webhook_allow`.

Apart from `network`, which obeys the lists, so that every command refuses a wrong entry without loading a client.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TypeAlias

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
ALLOWED = "host names, host:port, addresses and networks like 192.168.0.0/16"

_PLACE = r"(?:\[(?P<literal>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?"
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"


def parse(entry: str) -> Network | tuple[str, int | None]:
    """A network (one address is one, too), or a name with a port; None: any port. Raises ValueError for all else.

    A name may be an address with a port: `[::1]:8080`.
    """
    try:
        return ipaddress.ip_network(entry, strict=False)
    except ValueError:
        found = re.fullmatch(_PLACE, entry.lower())
    if found is None:
        raise ValueError(ALLOWED)
    port = None if found["port"] is None else int(found["port"])
    host = found["literal"] or found["name"].removesuffix(".")
    if found["literal"]:
        ipaddress.IPv6Address(host)
    elif host.rpartition(".")[2].isdigit():  # 10.0.0.999 is a mistake, not a name
        ipaddress.IPv4Address(host)
    elif not all(re.fullmatch(_LABEL, label) for label in host.split(".")):
        raise ValueError(ALLOWED)
    if port is not None and not 0 < port <= 65535:
        raise ValueError(ALLOWED)
    return host, port


def are_valid(entries: tuple[str, ...]) -> bool:
    try:
        for entry in entries:
            parse(entry)
    except ValueError:
        return False
    return True
