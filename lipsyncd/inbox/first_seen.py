"""Remember over a restart how long files have waited in an inbox, how they are written, and which have given way.

Some waits are long: for the rest of a sound, or for the other half of a pair. A daemon that is restarted every night
would begin them anew each time. So files that have waited for a minute are written down, with their identity: a file
that was changed meanwhile begins anew. A file that is written with long pauses is written down at once, since a daemon
that does not know of them would take it in the next one.

Owns the files `first-seen*.json` in the state folder. Leaves every decision to `settle`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass
from math import frexp
from pathlib import Path
from typing import Any

from lipsyncd.jobs.job import Identity
from lipsyncd.storage.files import read_json, write_json

LONG_S = 60.0  # shorter waits begin anew
PAUSE_S = 2.5  # shorter pauses are forgotten
_MOST_FILES = 10_000
_MOST_BYTES = 8_000_000
# The wall clock may be set, also while no daemon runs. No more than this is believed of the time between two daemons.
_MOST_APART_S = 3600.0
_AGAIN_S = 600.0

Left = Mapping[bytes, tuple[Identity, str]]


@dataclass(frozen=True)
class Waited:
    """Seconds since a file was first seen, and since it last changed; the longest pause between its changes."""

    since_first_s: float = 0.0
    still_s: float = 0.0
    pause_s: float = 0.0


def file_name(queue: str) -> str:
    return f"first-seen.{queue}.json" if queue else "first-seen.json"


class FirstSeen:
    """The long waits of one inbox, in the file `record`. `wall` gives seconds by the wall clock.

    outdated  a file was written to, and neither its time nor its size shows that: `keep` writes in any case
    """

    def __init__(self, record: Path, wall: Callable[[], float] = time.time) -> None:
        self._record = record
        self._wall = wall
        self._kept: frozenset[tuple[object, ...]] = frozenset()
        self._written_s = 0.0
        self.outdated = False
        written: dict[str, Any] = read_json(self._record, most_bytes=_MOST_BYTES) or {}
        self._waits = self._read_waits(written)
        self._left = _read_left(written)

    def of(self, name: bytes, identity: Identity) -> Waited | None:
        """How long a file had waited when the last daemon wrote it down, and since then; once for each file.

        Of a file that was written to since then, only its longest pause counts.
        """
        known, waited = self._waits.pop(os.fsdecode(name), (None, Waited()))
        if known is None or known == identity:
            return None if known is None else waited
        same = (known.dev, known.ino) == (identity.dev, identity.ino)
        return Waited(pause_s=waited.pause_s) if same and waited.pause_s else None

    def left(self) -> Left:
        """The files that had given way to another one of their stem, and to which; once."""
        left, self._left = self._left, {}
        return left

    def keep(self, files: Iterable[tuple[bytes, Identity, Waited]], left: Left) -> None:
        """Write down what is to be remembered when it has changed. A full disk costs only this memory."""
        self._waits = {}
        long = [
            (os.fsdecode(name), identity, waited)
            for name, identity, waited in files
            if waited.since_first_s >= LONG_S or waited.pause_s >= PAUSE_S
        ][:_MOST_FILES]
        ways = [(os.fsdecode(name), *found) for name, found in left.items()][:_MOST_FILES]
        kept = frozenset([*(_key(*file) for file in long), *ways])
        now_s = self._wall()
        if not self.outdated and kept == self._kept and (not kept or abs(now_s - self._written_s) < _AGAIN_S):
            return
        entries = {name: [*astuple(identity), *astuple(waited)] for name, identity, waited in long}
        others = {name: [*astuple(identity), chosen] for name, identity, chosen in ways}
        try:
            write_json(self._record, {"wall_s": now_s, "files": entries, "left": others})
        except OSError:
            return
        self._kept, self._written_s, self.outdated = kept, now_s, False

    def _read_waits(self, written: Mapping[str, Any]) -> dict[str, tuple[Identity, Waited]]:
        try:
            apart_s = min(max(0.0, self._wall() - float(written["wall_s"])), _MOST_APART_S)
            return {
                str(name): (
                    Identity(*map(int, entry[:5])),
                    Waited(entry[5] + apart_s, entry[6] + apart_s, float(entry[7]) if len(entry) > 7 else 0.0),
                )
                for name, entry in written["files"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            return {}


def _key(name: str, identity: Identity, waited: Waited) -> tuple[object, ...]:
    """What has to change before a file is written down anew: while it grows, how long its pauses are, by doubles."""
    if waited.since_first_s >= LONG_S:
        return name, identity
    return name, identity.ino, frexp(waited.pause_s)[1]


def _read_left(written: Mapping[str, Any]) -> Left:
    try:
        return {
            os.fsencode(name): (Identity(*map(int, entry[:5])), str(entry[5]))
            for name, entry in written.get("left", {}).items()
        }
    except (TypeError, ValueError, AttributeError, IndexError):
        return {}
