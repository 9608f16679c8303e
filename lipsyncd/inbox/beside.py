"""Files that programs keep beside one that they still write: aria2's control file, a browser's part, rsync's copy.

Owns their names and those of what file servers leave, and since when each has not changed. Leaves to `settle` what
follows for the file beside them.
"""

from __future__ import annotations

import fnmatch
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from lipsyncd.inbox.explain import SUFFIX, is_explanation
from lipsyncd.inbox.first_seen import FirstSeen, Waited
from lipsyncd.jobs.job import Identity
from lipsyncd.storage.private_folder import HIDDEN

# What writers and file servers leave beside the real files: never opened, never reported. Compared without case.
_TEMPORARY = (
    ".*",
    "*~",
    "~*",
    "*.part",
    "*.partial",
    "*.tmp",
    "*.temp",
    "*.crdownload",
    "*.opdownload",
    "*.download",
    "*.filepart",
    "*.aria2",
    "*.swp",
    "*.lock",
    "*.!sync",
    "*.bak",
    f"*{SUFFIX}",
    "*:zone.identifier",
    "*.!qb",
    "*.!ut",
    "*.ytdl",
    "#*#",
    "icon\r",
    "__macosx",
    "desktop.ini",
    "thumbs.db",
    "ehthumbs.db",
    "@eadir",
    "#recycle",
    "#snapshot",
    "lost+found",
    "$recycle.bin",
    "system volume information",
)
_IS_TEMPORARY = re.compile("|".join(map(fnmatch.translate, _TEMPORARY)))
_SUFFIXES = (b".aria2", b".part", b".partial", b".crdownload", b".opdownload", b".download", b".filepart", b".!sync")
_MOST = 16  # of one file that are looked at
_OURS, _WRITTEN_BY_US = os.fsencode(HIDDEN), re.compile(rb"\.[0-9a-f]{8}\.part\Z")


class Beside:
    """The files of that kind in one inbox. A scan begins with `begin` and ends with `end`."""

    def __init__(self) -> None:
        self._status: Callable[[bytes], os.stat_result | None] = lambda _name: None
        self._now_s = 0.0
        self._first_seen: FirstSeen | None = None
        self._hidden: list[bytes] = []
        self._known: dict[bytes, tuple[Identity, float, float]] = {}  # with when it was first seen, and last changed
        self._met: dict[bytes, tuple[Identity, float, float]] = {}
        self._by_suffix: dict[bytes, list[bytes]] = {}

    def begin(
        self,
        names: Sequence[bytes],
        status: Callable[[bytes], os.stat_result | None],
        now_s: float,
        first_seen: FirstSeen | None,
    ) -> None:
        """names: everything in the folder, in order; status: what lies under a name."""
        self._status, self._now_s, self._first_seen = status, now_s, first_seen
        self._met = {}
        self._hidden = [name for name in names if name.startswith(b".") and not _is_ours(name)]
        self._by_suffix = {}
        for name in names:
            stem, dot, suffix = name.rpartition(b".")
            if dot and (dot + suffix).lower() in _SUFFIXES and not name.startswith(b"."):
                self._by_suffix.setdefault(stem, []).append(name)

    def latest(self, name: bytes) -> tuple[bytes, float] | None:
        """The file beside `name` that changed last, and how many seconds ago; None when there is none."""
        if not (self._hidden or self._by_suffix):
            return None
        since = [(beside, self._still_s(beside)) for beside in islice(self._of(name), _MOST)]
        return min(((n, s) for n, s in since if s is not None), key=lambda found: found[1], default=None)

    def end(self) -> None:
        """Forget what was not met in this scan."""
        self._known, self._met = self._met, {}
        self._hidden, self._by_suffix = [], {}

    def waits(self) -> Iterator[tuple[bytes, Identity, Waited]]:
        """What was met in the last scan, for `FirstSeen`."""
        for name, (identity, first_s, since_s) in self._known.items():
            yield name, identity, Waited(self._now_s - first_s, self._now_s - since_s)

    def _of(self, name: bytes) -> Iterator[bytes]:
        yield from self._by_suffix.get(name, ())
        begins = b"." + name + b"."
        for at in range(bisect_left(self._hidden, begins), len(self._hidden)):
            if not self._hidden[at].startswith(begins):
                return
            yield self._hidden[at]

    def _still_s(self, name: bytes) -> float | None:
        """Seconds since that file last changed; None when it is gone or cannot be seen."""
        try:
            status = self._status(name)
        except OSError:
            return None
        if status is None:
            return None
        identity, known = Identity.of(status), self._known.get(name)
        if known is None or known[0] != identity:
            waited = self._first_seen.of(name, identity) if self._first_seen and known is None else None
            waited = waited or Waited(0.0, 0.0)
            first_s = self._now_s - waited.since_first_s if known is None else known[1]
            known = identity, first_s, self._now_s - waited.still_s
        self._met[name] = known
        return self._now_s - known[2]


def is_temporary(name: bytes) -> bool:
    """Is it a name that programs use while they write, or one that file servers leave behind?"""
    return _IS_TEMPORARY.match(os.fsdecode(name).lower()) is not None


def _is_ours(name: bytes) -> bool:
    """Is it a name of our own folder, or one that our files have while they are written?"""
    return name.startswith(_OURS) or is_explanation(name) or _WRITTEN_BY_US.search(name) is not None
