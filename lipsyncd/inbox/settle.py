"""Decide whether a file in the inbox is finished.

A file is finished when nothing has changed it for a while, no process of this machine holds it open for writing, and
its own structure does not announce more content. When the structure proves the end (a PNG's IEND, a WAV with the
length of its header), a short while is enough.

Where the kernel does not tell whether another user's file is still open for writing, the while is longer, and writes
count of which the kernel reported an event and no time or size shows anything.

Times are differences of one monotonic clock: the file server's clock and ours may disagree by any amount.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Mapping, Set
from dataclasses import dataclass

from lipsyncd.errors import InputError
from lipsyncd.inbox.first_seen import FirstSeen, Waited
from lipsyncd.inbox.pairing import Found, role_by_bytes
from lipsyncd.inbox.shown import Shown
from lipsyncd.jobs.job import MANIFEST, Identity
from lipsyncd.jobs.manifest import Manifest
from lipsyncd.log import printable
from lipsyncd.media import Completeness, Structure, examine
from lipsyncd.storage.files import NotRegular
from lipsyncd.storage.leases import written_by_others


@dataclass(frozen=True)
class InboxRules:
    """How long files may take and how large they may be: the settings of the same names."""

    settle_s: float
    settle_proven_s: float
    settle_network_s: float
    incomplete_timeout_s: float
    pair_timeout_s: float
    max_bytes: Mapping[str, int]
    incomplete_network_s: float = 1800.0


@dataclass(slots=True)
class _Seen:
    """What is remembered of a name between scans."""

    identity: Identity
    first_s: float
    still_since_s: float
    structure: Structure | None = None
    settled: bool = False
    why: str = "still being written"


class Settling:
    """The files of one inbox, from the first scan that finds them until they are finished.

    open_file    opens the regular file of a name for reading; raises as `open_regular`
    manifest     gives the content of a manifest; None when it cannot be read at present
    whole        gives the names of files that are known to be whole as they lie, whatever their headers announce
    first_seen   remembers over a restart how long files have waited
    modified     gives the names that were written to since it was last asked, as far as events tell
    answers      did the kernel tell about the last file of another owner whether it is being written; None before one
    unreadable   files that cannot be read, and why, as of the last scan
    next_scan_s  seconds until a file may be finished; None when the next rescan is early enough
    """

    def __init__(
        self,
        open_file: Callable[[bytes], int],
        manifest: Callable[[bytes, Identity], Manifest | InputError | None],
        rules: InboxRules,
        *,
        network: bool,
    ) -> None:
        self.rules = rules
        self.network = network
        self.modified: Callable[[], Set[bytes]] = frozenset
        self.whole: Container[bytes] = frozenset()
        self.first_seen: FirstSeen | None = None
        self.answers: bool | None = None
        self.unreadable = Shown()
        self.next_scan_s: float | None = None
        self._open_file = open_file
        self._manifest = manifest
        self._now_s = 0.0
        self._modified: Set[bytes] = frozenset()
        self._changed: list[_Seen] = []
        self._seen: dict[bytes, _Seen] = {}

    def begin(self, now_s: float) -> None:
        """A scan begins."""
        self._now_s = now_s
        self._modified = self.modified()
        self._changed = []
        self.next_scan_s = None
        self.unreadable = Shown()

    def observe(self, name: bytes, role: str, identity: Identity, *, taken: bool) -> Found:
        """Note what lies under a name in this scan, and decide whether it is finished."""
        seen = self._seen.get(name)
        if seen is None or seen.identity != identity:
            replaced = seen is None or seen.identity.ino != identity.ino
            first_s = self._now_s if seen is None or replaced else seen.first_s
            known = self.first_seen.of(name, identity) if self.first_seen and seen is None else None
            seen = self._seen[name] = _Seen(identity, first_s=first_s, still_since_s=self._now_s)
            if known is None:
                self._changed.append(seen)
            else:
                seen.first_s, seen.still_since_s = self._now_s - known.since_first_s, self._now_s - known.still_s
        elif name in self._modified:
            seen.still_since_s, seen.settled = self._now_s, False
            self._changed.append(seen)
        if not (seen.settled or taken):
            self._settle(name, role, seen)
        settled, age_s = seen.settled or taken, self._now_s - seen.first_s
        named_for, (role, film) = role, role_by_bytes(role, seen.structure)
        return Found(
            name, role, seen.identity, settled=settled, taken=taken, age_s=age_s, film=film, named_for=named_for
        )

    def structure(self, name: bytes) -> Structure | None:
        """What the last look into that file found; None for manifests."""
        seen = self._seen.get(name)
        return None if seen is None else seen.structure

    def why(self, name: bytes) -> str:
        """Why a file is not finished; "" when it is, and for a name that is unknown."""
        seen = self._seen.get(name)
        return "" if seen is None or seen.settled else seen.why

    def end(self, names: Container[bytes], now_s: float) -> None:
        """A scan has ended; forget all other names. A long one may have looked at a file just after a write to it."""
        for seen in self._changed:
            seen.still_since_s = now_s
        self._seen = {name: seen for name, seen in self._seen.items() if name in names}
        if self.first_seen:
            self.first_seen.keep(
                (name, seen.identity, Waited(now_s - seen.first_s, now_s - seen.still_since_s))
                for name, seen in self._seen.items()
            )

    def scan_in(self, seconds: float) -> None:
        """Have the next scan begin in so many seconds, or earlier."""
        self.next_scan_s = seconds if self.next_scan_s is None else min(self.next_scan_s, seconds)

    def _settle(self, name: bytes, role: str, seen: _Seen) -> None:
        """Decide whether a file is finished, and when to scan again if not."""
        still_s = self._now_s - seen.still_since_s
        shortest_s = self.rules.settle_network_s if self.network else self.rules.settle_proven_s
        if still_s < shortest_s:
            self.scan_in(shortest_s - still_s)
            return
        try:
            descriptor = self._open_file(name)
        except (FileNotFoundError, NotRegular):
            return
        except OSError as error:
            seen.why = f"cannot be read: {error.strerror}"
            self.unreadable.note(printable(name), seen.why)
            return
        try:
            # An open also makes an NFS client ask the server again: only then fstat is the truth.
            status = os.fstat(descriptor)
            if Identity.of(status) != seen.identity:
                self.scan_in(self.rules.settle_s)
                return
            busy = written_by_others(descriptor)
            others = status.st_uid != os.geteuid()
            if others and not self.network:
                self.answers = busy is not None
            if role != MANIFEST:
                seen.structure = examine(descriptor, seen.identity.size)
        finally:
            os.close(descriptor)
        completeness = self._completeness(name, role, seen)
        if completeness is Completeness.TRUNCATED and name in self.whole:
            completeness = Completeness.PLAUSIBLE
        seen.settled = self._finished(completeness, seen, still_s, busy, others=others)

    def _completeness(self, name: bytes, role: str, seen: _Seen) -> Completeness:
        """What the content itself shows about its end. A manifest that parses is whole: its last brace is there."""
        if role != MANIFEST:
            return Completeness.PLAUSIBLE if seen.structure is None else seen.structure.completeness
        whole = isinstance(self._manifest(name, seen.identity), Manifest)
        return Completeness.COMPLETE if whole else Completeness.PLAUSIBLE

    def _finished(
        self, completeness: Completeness, seen: _Seen, still_s: float, busy: bool | None, *, others: bool
    ) -> bool:
        if busy:
            seen.why = "a program has it open for writing"
            self.scan_in(self.rules.settle_s)
            return False
        if completeness is Completeness.TRUNCATED:
            seen.why = "its content ends before its own header says"
            rules = self.rules
            return self._after(rules.incomplete_network_s if self.network else rules.incomplete_timeout_s, still_s)
        if self.network:
            return self._after(self.rules.settle_network_s, still_s)
        proven = completeness is Completeness.COMPLETE
        if busy is None and others and not proven:
            seen.why = "the kernel does not tell whether its owner still writes it"
            return self._after(max(self.rules.settle_s, self.rules.settle_network_s), still_s)
        return self._after(self.rules.settle_proven_s if proven and busy is False else self.rules.settle_s, still_s)

    def _after(self, needed_s: float, still_s: float) -> bool:
        if still_s >= needed_s:
            return True
        self.scan_in(needed_s - still_s)
        return False
