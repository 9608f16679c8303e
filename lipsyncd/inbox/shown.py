"""Files for people to see, and why each is listed: the first hundred of what may be many, and a count of the others.

Each user of a share may put a hundred thousand files there; the status is written every second.
"""

from __future__ import annotations

MOST = 100


class Shown(dict[str, str]):
    """File names with a reason. `more` counts those that are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.more = 0

    def note(self, name: str, why: str) -> bool:
        """Add a file; False when it is only counted."""
        if name not in self and len(self) >= MOST:
            self.more += 1
            return False
        self[name] = why
        return True

    @property
    def total(self) -> int:
        return len(self) + self.more


def together(*lists: Shown) -> Shown:
    """One list of all of them."""
    found = Shown()
    for one in lists:
        for name, why in one.items():
            found.note(name, why)
        found.more += one.more
    return found
