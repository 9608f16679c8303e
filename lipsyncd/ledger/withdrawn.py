"""The ids of jobs that were taken back before they had a row, in a file of the folder `state`.

A client can take a job back as soon as its request is answered, while its manifest still lies in the inbox. The daemon
records the id here, and ends the job before it prepares it. An id that never becomes a job stays until newer ones
push it out.
"""

from __future__ import annotations

import threading
from pathlib import Path

from lipsyncd.storage.files import read_json, write_json

FILE = "withdrawn.json"
_MOST = 1000  # members of the group may name any id


class Withdrawn:
    """The file in `state`. Safe in several threads; one object of one process writes it, others may read it."""

    def __init__(self, state: Path) -> None:
        self._file = state / FILE
        self._lock = threading.Lock()
        self._read_as: tuple[int, ...] = ()
        self._ids: tuple[str, ...] = ()

    def __contains__(self, job_id: str) -> bool:
        with self._lock:
            return job_id in self._known()

    def add(self, job_id: str) -> None:
        """Record an id; on return it outlives a crash. Raises OSError."""
        with self._lock:
            known = self._known()
            if job_id not in known:
                self._write((*known, job_id)[-_MOST:])

    def discard(self, job_id: str) -> None:
        """Forget an id, since its job has ended. Raises OSError."""
        with self._lock:
            known = self._known()
            if job_id in known:
                self._write(tuple(one for one in known if one != job_id))

    def _known(self) -> tuple[str, ...]:
        try:
            status = self._file.stat()
        except FileNotFoundError:
            return ()
        read_as = (status.st_ino, status.st_size, status.st_mtime_ns)  # one tick of the clock may see two writes
        if read_as != self._read_as:
            found = (read_json(self._file) or {}).get("ids")
            self._ids = tuple(map(str, found)) if isinstance(found, list) else ()
            self._read_as = read_as
        return self._ids

    def _write(self, ids: tuple[str, ...]) -> None:
        write_json(self._file, {"ids": ids}, mode=0o640)
