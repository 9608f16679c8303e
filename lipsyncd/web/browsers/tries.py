"""How often a key may be tried: wrong keys are counted for each address, and for all addresses together.

Each count falls with time, so an honest mistake costs nothing, and none is kept for ever. There is no timer: a count is
computed when it is needed.
"""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass

_MOST_ADDRESSES = 4096
_NETWORK_BITS = 64  # of IPv6: one customer has so many addresses


@dataclass(frozen=True)
class Limit:
    """So many wrong keys at once; then one more for each `every_s`."""

    most: int
    every_s: float


OF_ONE = Limit(most=10, every_s=6.0)
OF_ALL = Limit(most=100, every_s=0.5)


@dataclass
class _Count:
    """Wrong keys at a time; they become fewer with it."""

    number: float = 0.0
    at_s: float = 0.0

    def now(self, now_s: float, limit: Limit) -> float:
        return max(0.0, self.number - (now_s - self.at_s) / limit.every_s)

    def add(self, now_s: float, limit: Limit) -> None:
        self.number, self.at_s = self.now(now_s, limit) + 1, now_s

    def wait_s(self, now_s: float, limit: Limit) -> float:
        return max(0.0, (self.now(now_s, limit) + 1 - limit.most) * limit.every_s)


class Tries:
    """The wrong keys of one server. `now_s` is a clock that cannot be set."""

    def __init__(self) -> None:
        self._all = _Count()
        self._of: dict[str, _Count] = {}

    def wait_s(self, address: str, now_s: float) -> int:
        """In how many whole seconds a client of that address may try a key; 0 means now."""
        of_one = self._of.get(_network(address), _Count())
        return math.ceil(max(of_one.wait_s(now_s, OF_ONE), self._all.wait_s(now_s, OF_ALL)))

    def failed(self, address: str, now_s: float) -> None:
        """Count a wrong key."""
        network = _network(address)
        count = self._of.pop(network, _Count())
        if len(self._of) >= _MOST_ADDRESSES:
            del self._of[next(iter(self._of))]  # the one whose last wrong key is the longest ago
        self._of[network] = count
        count.add(now_s, OF_ONE)
        self._all.add(now_s, OF_ALL)


def _network(address: str) -> str:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 4:
        return address
    return str(ipaddress.ip_network((found, _NETWORK_BITS), strict=False))
