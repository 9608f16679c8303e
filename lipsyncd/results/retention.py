"""Which files and rows have expired: by age, by size, and when a disk runs full.

Each kind of piece has its own limits; ledger rows have theirs. The oldest goes first. Results that a client asked to
`persist` stay, and so does an upload that an open job or a manifest in the inbox names. An upload that was to persist
has no limit of age, but one of size.

Only chooses. Leaves the times to `housekeeping` and the removal to `leftovers`.
"""

from __future__ import annotations

import contextlib
import re
import stat
from collections.abc import Collection, Container, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lipsyncd.jobs.manifest import MAX_BYTES
from lipsyncd.ledger.view import LedgerView
from lipsyncd.results import leftovers
from lipsyncd.results.leftovers import ARCHIVE, FAILED, KINDS, OUTBOX, RESULTS, UPLOADS, Piece
from lipsyncd.settings import Settings
from lipsyncd.storage.files import NotRegular
from lipsyncd.storage.folders import Folders
from lipsyncd.storage.open_folder import OpenFolder
from lipsyncd.storage.uploads import PREFIX

LEDGER = "ledger"
_NAMED_UPLOAD = re.compile(re.escape(PREFIX).encode() + rb"([0-9a-f-]{36})")
_YOUNG_S = 3600.0  # nothing younger goes early: a client may be about to fetch it
_AHEAD_S = 30 * 86400.0  # no correct clock is set back by so much
_GB = 1_000_000_000


@dataclass(frozen=True)
class Limits:
    """At most this old and this much of one kind; 0 means without limit."""

    age_s: float
    size_bytes: float

    @property
    def any(self) -> bool:
        return self.age_s > 0 or self.size_bytes > 0


@dataclass(frozen=True)
class Count:
    """How much of one kind goes, and how much there was: pieces, or rows, and bytes."""

    kind: str
    goes: int
    frees_bytes: int
    holds: int
    holds_bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Retention:
    """The rules of one installation. Only reads."""

    def __init__(self, settings: Settings, folders: Folders, view: LedgerView) -> None:
        rules = settings.retention
        self.limits = {
            OUTBOX: Limits(rules.outbox_days * 86400, rules.outbox_gb * _GB),
            ARCHIVE: Limits(rules.archive_days * 86400, rules.archive_gb * _GB),
            FAILED: Limits(rules.failed_days * 86400, rules.failed_gb * _GB),
            RESULTS: Limits(rules.results_h * 3600, rules.results_gb * _GB),
            UPLOADS: Limits(rules.uploads_h * 3600, rules.uploads_gb * _GB),
        }
        self._rules = rules
        self._folders = folders
        self._view = view

    def pieces(self, kind: str) -> list[Piece]:
        """Every piece of a kind, oldest first; none while its share is not mounted."""
        exempt = self._uploads_in_use() if kind == UPLOADS else self._view.persisting()
        found = leftovers.listed(self._folders, kind, exempt)
        return sorted(found, key=lambda piece: (piece.at_s, piece.id))

    def due(self, kind: str, now_s: float) -> tuple[list[Piece], list[Piece]]:
        """The pieces of a kind that are too old or over the size, and all pieces of that kind."""
        there = self.pieces(kind)
        return over(there, self.limits[kind], now_s), there

    def early(self, device: int, wanted_bytes: float, now_s: float) -> list[Piece]:
        """The pieces to remove early when a disk runs full: the oldest on it, of all kinds that have a limit."""
        limited = [kind for kind in KINDS if self.limits[kind].any]
        candidates = [piece for kind in limited for piece in self.pieces(kind) if piece.device == device]
        chosen, found = [], 0
        for piece in sorted(candidates, key=lambda piece: _turn(piece, now_s)):
            young = -_AHEAD_S <= now_s - piece.at_s <= _YOUNG_S
            if not (piece.exempt or piece.persists) and not young and found < wanted_bytes:
                chosen.append(piece)
                found += piece.size_bytes
        return chosen

    def old_rows(self, now_s: float, *, without: Collection[str] = ()) -> list[str]:
        """Ids of the ended jobs whose rows go, oldest first.

        A failed job keeps its row while its folder in failed/ stays: `lipsyncd retry` needs both. The folders of the
        jobs `without` count as gone.
        """
        days = self._rules.ledger_days
        before_ms = round((now_s - days * 86400) * 1000) if days else 0
        old = self._view.old_rows(before_ms, self._rules.ledger_rows)
        with self._folders.shared[FAILED].opened() as root:
            return [
                job_id
                for job_id, failed, kept in old
                if not failed or job_id in without or (root is not None and not self._is_kept(root, kept))
            ]

    def _is_kept(self, root: OpenFolder, kept: str | None) -> bool:
        """Does the folder with a failed job's inputs still lie in failed/?"""
        place = None if kept is None else self._folders.place_of(kept, [FAILED])
        status = None if place is None or len(place[1]) != 1 else root.status(place[1][0])
        return status is not None and stat.S_ISDIR(status.st_mode)

    def count(self, now_s: float) -> list[Count]:
        """How much would be pruned now, by kind."""
        found = {kind: self.due(kind, now_s) for kind in KINDS}
        rows = self.old_rows(now_s, without={piece.id for piece in found[FAILED][0]})
        counts = [count_of(kind, due, there) for kind, (due, there) in found.items()]
        return [*counts, Count(LEDGER, len(rows), 0, self.rows(), 0)]

    def rows(self) -> int:
        """How many jobs the ledger has."""
        return sum(self._view.counts().values())

    def _uploads_in_use(self) -> Container[str]:
        """Uploads that jobs may still read; all of them while the inbox cannot be read.

        The inbox is read first: a manifest leaves it once the job has its row.
        """
        with self._folders.shared["inbox"].opened() as inbox:
            if inbox is None:
                return _All()
            waiting = _named_in(inbox)
        return waiting | self._view.uploads_in_use()


class _All(Container[str]):
    def __contains__(self, _item: object) -> bool:
        return True


def over(there: Sequence[Piece], limits: Limits, now_s: float) -> list[Piece]:
    """The pieces that are too old, and the oldest ones beyond the size. Exempt ones stay."""
    total = sum(piece.size_bytes for piece in there)
    doomed = []
    for piece in sorted(there, key=lambda piece: (piece.persists, _turn(piece, now_s))):
        old = piece.at_s == 0 or (not piece.persists and 0 < limits.age_s < now_s - piece.at_s)
        if not piece.exempt and (old or 0 < limits.size_bytes < total):
            doomed.append(piece)
            total -= piece.size_bytes
    return doomed


def _turn(piece: Piece, now_s: float) -> tuple[bool, float, str]:
    """The order in which pieces go: the oldest first.

    A date in the far future was set by a clock that was years ahead, so that file is older than those dated now.
    """
    return piece.at_s <= now_s + _AHEAD_S, piece.at_s, piece.id


def count_of(kind: str, gone: Collection[Piece], there: Collection[Piece]) -> Count:
    """Count what goes and what there is."""
    frees, holds = (sum(piece.size_bytes for piece in some) for some in (gone, there))
    return Count(kind, len(gone), frees, len(there), holds)


def _named_in(inbox: OpenFolder) -> set[str]:
    """The uploads that manifests in the inbox name."""
    found: set[str] = set()
    for entry in inbox.entries():
        if entry.name.endswith(".json"):
            with contextlib.suppress(FileNotFoundError, NotRegular, PermissionError):
                content = inbox.read(entry.name, MAX_BYTES + 1)
                found |= {name.decode() for name in _NAMED_UPLOAD.findall(content)}
    return found
