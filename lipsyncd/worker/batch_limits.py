"""How many frames at a time fit into each device's memory; kept when render children and daemons end.

A limit is recorded when a batch did not fit into memory. It holds for one renderer on one device, and only while the
terms under which it was found stay the same. Another program may have used the memory, so a limit expires after a day
and more is tried again: at worst that costs one halving, or one attempt of one job.

Owns `state/ceilings.json`. Deleting that file while no daemon runs deletes all limits.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lipsyncd.jobs.job import now_ms
from lipsyncd.storage.files import read_json, write_json

log = logging.getLogger(__name__)

FILE = "ceilings.json"
_EXPIRE_MS = 24 * 3_600_000


class BatchLimits:
    """The limits of one daemon. Safe in several threads."""

    def __init__(self, path: Path, clock_ms: Callable[[], int] = now_ms) -> None:
        self._path = path
        self._clock_ms = clock_ms
        self._lock = threading.Lock()
        self._known = _read(path)

    def most(self, device: str, renderer: str, terms: str) -> int:
        """Frames at a time that may be tried; 0 when nothing is known.

        terms  everything that decides what fits, as text: caps, sizes, versions
        """
        with self._lock:
            found = self._known.get(_key(device, renderer))
        if found is None or found["terms"] != terms:
            return 0
        # A clock that went back far must not keep a limit for ever.
        return int(found["most"]) if abs(self._clock_ms() - found["at_ms"]) < _EXPIRE_MS else 0

    def lower(self, device: str, renderer: str, terms: str, most: int) -> None:
        """More than `most` frames at a time did not fit. If the disk refuses the file, the limit stays in memory."""
        with self._lock:
            self._known[_key(device, renderer)] = {"most": most, "terms": terms, "at_ms": self._clock_ms()}
            try:
                write_json(self._path, self._known)
            except OSError as error:
                log.warning("batch limit of %s on %s is not written: %s", renderer, device, error)


def _key(device: str, renderer: str) -> str:
    return f"{renderer} on {device}"


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The limits in the file. Invalid entries are left out, and a file that cannot be read counts as empty."""
    try:
        found = read_json(path) or {}
    except (OSError, RecursionError) as error:
        log.warning("batch limits: %s cannot be read: %s", path, error)
        return {}
    return {key: entry for key, entry in found.items() if _is_limit(entry)}


def _is_limit(entry: object) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("terms"), str):
        return False
    numbers = (entry.get("most"), entry.get("at_ms"))
    return all(type(n) is int for n in numbers) and entry["most"] >= 1
