"""Remember over a restart how long files have waited in an inbox.

Some waits are long: for the rest of a sound, or for the other half of a pair. A daemon that is restarted every night
would begin them anew each time. So files that have waited for a minute are written down, with their identity: a file
that was changed meanwhile begins anew.

Owns the files `first-seen*.json` in the state folder. Leaves every decision to `settle`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from lipsyncd.jobs.job import Identity
from lipsyncd.storage.files import read_json, write_json

LONG_S = 60.0  # shorter waits begin anew
_MOST_FILES = 10_000
_MOST_BYTES = 8_000_000
# The wall clock may be set, also while no daemon runs. No more than this is believed of the time between two daemons.
_MOST_APART_S = 3600.0
_AGAIN_S = 600.0


@dataclass(frozen=True)
class Waited:
    """Seconds since a file was first seen, and since it last changed."""

    since_first_s: float
    still_s: float


def file_name(queue: str) -> str:
    return f"first-seen.{queue}.json" if queue else "first-seen.json"


class FirstSeen:
    """The long waits of one inbox, in the file `record`. `wall` gives seconds by the wall clock."""

    def __init__(self, record: Path, wall: Callable[[], float] = time.time) -> None:
        self._record = record
        self._wall = wall
        self._kept: frozenset[tuple[str, Identity]] = frozenset()
        self._written_s = 0.0
        self._waits = self._read()

    def of(self, name: bytes, identity: Identity) -> Waited | None:
        """How long a file had waited when the last daemon wrote it down, and since then; once for each file."""
        known = self._waits.pop(os.fsdecode(name), None)
        return known[1] if known is not None and known[0] == identity else None

    def keep(self, files: Iterable[tuple[bytes, Identity, Waited]]) -> None:
        """Write the long waits down when there are other ones than before. A full disk costs only this memory."""
        self._waits = {}
        long = [(os.fsdecode(name), identity, w) for name, identity, w in files if w.since_first_s >= LONG_S]
        kept = frozenset((name, identity) for name, identity, _ in long[:_MOST_FILES])
        now_s = self._wall()
        if kept == self._kept and (not kept or abs(now_s - self._written_s) < _AGAIN_S):
            return
        entries = {
            name: [*astuple(identity), waited.since_first_s, waited.still_s]
            for name, identity, waited in long[:_MOST_FILES]
        }
        try:
            write_json(self._record, {"wall_s": now_s, "files": entries})
        except OSError:
            return
        self._kept, self._written_s = kept, now_s

    def _read(self) -> dict[str, tuple[Identity, Waited]]:
        written: dict[str, Any] = read_json(self._record, most_bytes=_MOST_BYTES) or {}
        try:
            apart_s = min(max(0.0, self._wall() - float(written["wall_s"])), _MOST_APART_S)
            return {
                str(name): (Identity(*map(int, entry[:5])), Waited(entry[5] + apart_s, entry[6] + apart_s))
                for name, entry in written["files"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            return {}
