"""Decide whether a file in the inbox is finished.

A file is finished when nothing has changed it for a while, no process of this machine holds it open for writing, and
its own structure does not announce more content. When the structure proves the end (a PNG's IEND, a WAV with the
length of its header), a short while is enough. Where nothing in its format can show it, the while grows with the pauses
that its writer makes. A WAV that ends in zeros may be laid out at full size and filled later. A file that programs keep
beside one that they still write holds it back.

Some file servers never close a file, so one that is open for writing is held back for a limited time only.

Where the kernel does not tell whether another user's file is still open for writing, the while is longer, and writes
count of which the kernel reported an event and no time or size shows anything.

Times are differences of one monotonic clock: the file server's clock and ours may disagree by any amount.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain

from lipsyncd.errors import InputError
from lipsyncd.inbox.beside import Beside
from lipsyncd.inbox.first_seen import FirstSeen, Left, Waited
from lipsyncd.inbox.pairing import Found, role_by_bytes
from lipsyncd.inbox.shown import Shown
from lipsyncd.jobs.job import MANIFEST, Identity
from lipsyncd.jobs.manifest import Manifest
from lipsyncd.log import printable
from lipsyncd.media import Completeness, Structure, examine
from lipsyncd.storage.files import NotRegular
from lipsyncd.storage.leases import written_by_others

_ENDLESS_S = 3.0  # of stillness for a format without an end of its own
_PAUSES = 3.0  # and so many times the longest pause between its changes
_ZEROS_S = 10.0  # for a sound that ends in zeros
_NO_END = "its format does not show where it ends"
_OPEN_S = 30.0  # at most, for a file that is proven whole and still open for writing


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
    pause_s: float = 0.0
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
    hears_writes writes were reported since the scan before
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
        self._beside = Beside()

    def begin(self, now_s: float) -> None:
        """A scan begins."""
        self._now_s = now_s
        self._modified = self.modified()
        self._changed = []
        self.next_scan_s = None
        self.unreadable = Shown()

    @property
    def hears_writes(self) -> bool:
        return bool(self._modified)

    def look_beside(self, names: Sequence[bytes], status: Callable[[bytes], os.stat_result | None]) -> None:
        """Note which of a scan's names are of files that programs keep beside others. Before `observe`."""
        self._beside.begin(names, status, self._now_s, self.first_seen)

    def observe(self, name: bytes, role: str, identity: Identity, *, taken: bool) -> Found:
        """Note what lies under a name in this scan, and decide whether it is finished."""
        seen = self._seen.get(name)
        if seen is None or seen.identity != identity:
            replaced = seen is None or seen.identity.ino != identity.ino
            first_s = self._now_s if seen is None or replaced else seen.first_s
            known = self.first_seen.of(name, identity) if self.first_seen and seen is None else None
            pause_s = 0.0 if seen is None or replaced else self._pause_s(seen)
            seen = self._seen[name] = _Seen(identity, first_s=first_s, still_since_s=self._now_s, pause_s=pause_s)
            if known is not None:
                seen.first_s, seen.still_since_s = self._now_s - known.since_first_s, self._now_s - known.still_s
                seen.pause_s = known.pause_s
            if known is None or not known.still_s:
                self._changed.append(seen)
        elif name in self._modified:
            seen.pause_s = self._pause_s(seen)
            seen.still_since_s, seen.settled = self._now_s, False
            self._changed.append(seen)
            if self.first_seen:
                self.first_seen.outdated = True
        if taken:
            pass
        elif self._is_held(name, seen):
            seen.settled = False
        elif not seen.settled:
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
        self._beside.end()
        self._now_s = now_s

    def remember(self, left: Left) -> None:
        """Write down what the next daemon has to know. After `end`; `left` are the files that have given way."""
        if self.first_seen:
            self.first_seen.keep(chain(self._waits(), self._beside.waits()), left)

    def _waits(self) -> Iterator[tuple[bytes, Identity, Waited]]:
        for name, seen in self._seen.items():
            waited = Waited(self._now_s - seen.first_s, self._now_s - seen.still_since_s, seen.pause_s)
            yield name, seen.identity, waited

    def _pause_s(self, seen: _Seen) -> float:
        """The longest pause between the changes of a file, which has just changed again."""
        return max(seen.pause_s, self._now_s - seen.still_since_s)

    def _is_held(self, name: bytes, seen: _Seen) -> bool:
        """Does another file show that this one is not finished? Not for ever: it may have been left behind."""
        beside = None if name in self.whole else self._beside.latest(name)
        if beside is None or beside[1] >= self._incomplete_s:
            return False
        seen.why = f"is not finished, as {printable(beside[0])!r} beside it shows"
        self.scan_in(self._incomplete_s - beside[1])
        return True

    @property
    def _incomplete_s(self) -> float:
        return self.rules.incomplete_network_s if self.network else self.rules.incomplete_timeout_s

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
        needed_s = self._usual_s(completeness, seen, busy, others=others)
        if name not in self.whole:
            needed_s = self._while_in_doubt(needed_s, seen)
        if busy:
            seen.why = "a program has it open for writing"
            open_s = min(_OPEN_S, self._incomplete_s) if completeness is Completeness.COMPLETE else self._incomplete_s
            needed_s = max(needed_s, open_s)
        seen.settled = still_s >= needed_s
        if not seen.settled:
            self.scan_in(min(needed_s - still_s, self.rules.settle_s) if busy else needed_s - still_s)

    def _completeness(self, name: bytes, role: str, seen: _Seen) -> Completeness:
        if role == MANIFEST and not seen.identity.size:
            return Completeness.TRUNCATED
        if role == MANIFEST:
            whole = isinstance(self._manifest(name, seen.identity), Manifest)
            return Completeness.COMPLETE if whole else Completeness.PLAUSIBLE
        structure = seen.structure
        if structure is None or (structure.completeness is Completeness.TRUNCATED and name in self.whole):
            return Completeness.PLAUSIBLE
        return structure.completeness

    def _usual_s(self, completeness: Completeness, seen: _Seen, busy: bool | None, *, others: bool) -> float:
        """Seconds of stillness after which a file is finished that no program has open. Notes why it waits as long."""
        rules, proven = self.rules, completeness is Completeness.COMPLETE
        if completeness is Completeness.TRUNCATED:
            seen.why = "its content ends before its own header says" if seen.identity.size else "is empty so far"
            return self._incomplete_s
        if self.network:
            return rules.settle_network_s
        if busy is None and others and not proven:
            seen.why = "the kernel does not tell whether its owner still writes it"
            return max(rules.settle_s, rules.settle_network_s)
        return rules.settle_proven_s if proven and busy is False else rules.settle_s

    def _while_in_doubt(self, usual_s: float, seen: _Seen) -> float:
        """The same for what may get more content although nothing announces it."""
        needed_s, found = usual_s, seen.structure
        if found is None or found.completeness is not Completeness.PLAUSIBLE:
            return needed_s
        if found.endless:
            needed_s = max(needed_s, _ENDLESS_S, min(_PAUSES * seen.pause_s, self.rules.incomplete_timeout_s))
        if found.unfilled:
            needed_s = max(needed_s, _ZEROS_S)
        if needed_s > usual_s:
            doubt = "its end is zeros, as of a file that is filled later" if found.unfilled else _NO_END
            seen.why = f"{doubt}: it is taken after {needed_s:.3g} s without a change"
        return needed_s
