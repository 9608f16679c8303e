"""How many frames at a time each device takes, remembered over the ends of render children and of daemons.

A ceiling is what is left when a batch did not fit into memory. It holds for a renderer on a device, under the terms it
was found under; with other terms it says nothing. What took the memory may have been another program, so a ceiling is
forgotten after a day and more is tried again: at worst that costs one halving, or one attempt of one job.

Owns `state/ceilings.json`. Deleting that file while no daemon runs forgets all of them.
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
_FORGET_MS = 24 * 3_600_000


class Ceilings:
    """The ceilings of one daemon. Safe in several threads."""

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
        # A clock that went back far must not keep a ceiling for ever.
        return int(found["most"]) if abs(self._clock_ms() - found["at_ms"]) < _FORGET_MS else 0

    def lower(self, device: str, renderer: str, terms: str, most: int) -> None:
        """More than `most` frames at a time did not fit. Kept in memory alone while the disk refuses."""
        with self._lock:
            self._known[_key(device, renderer)] = {"most": most, "terms": terms, "at_ms": self._clock_ms()}
            try:
                write_json(self._path, self._known)
            except OSError as error:
                log.warning("ceiling of %s on %s is not written: %s", renderer, device, error)


def _key(device: str, renderer: str) -> str:
    return f"{renderer} on {device}"


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """What the file says; entries that are no ceiling, and files that cannot be read, are worth nothing."""
    try:
        found = read_json(path) or {}
    except (OSError, RecursionError) as error:
        log.warning("ceilings: %s cannot be read: %s", path, error)
        return {}
    return {key: entry for key, entry in found.items() if _is_ceiling(entry)}


def _is_ceiling(entry: object) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("terms"), str):
        return False
    numbers = (entry.get("most"), entry.get("at_ms"))
    return all(type(n) is int for n in numbers) and entry["most"] >= 1
