"""Small JPEGs of what jobs show, one for each job under `state/thumbnails`, for browsers.

The jail draws them when a job is prepared. They stay as long as the job's row. Nothing depends on one: where it is
lost, there is none.

Owns that folder. Leaves the drawing to `prepare.decode_picture`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection
from pathlib import Path

from lipsyncd.storage.files import open_regular

_SUFFIX = ".jpg"
_FOLDER_MODE = 0o750
_BATCH = 500


class Thumbnails:
    """The thumbnails of one daemon. Safe in several threads and processes."""

    def __init__(self, state: Path) -> None:
        self._root = state / "thumbnails"

    def _path(self, job_id: str) -> str:
        return f"{self._root}/{job_id}{_SUFFIX}"

    def take(self, job_id: str, drawn: Path) -> None:
        """Keep a file of the spool as the job's thumbnail, if it was drawn. No error ends a job for that."""
        with contextlib.suppress(OSError):
            if drawn.exists():
                self._root.mkdir(_FOLDER_MODE, exist_ok=True)
                drawn.replace(self._path(job_id))

    def share(self, first_id: str, job_id: str) -> None:
        """Give a job the thumbnail of another one with the same picture."""
        with contextlib.suppress(OSError):
            os.link(self._path(first_id), self._path(job_id))

    def has(self, job_id: str) -> bool:
        """Is there one? Costs one look at the folder's names."""
        try:
            return os.stat(self._path(job_id)).st_size > 0  # noqa: PTH116 - a Path costs more than the call
        except OSError:
            return False

    def open(self, job_id: str) -> int | None:
        """A descriptor of the file; None when there is none."""
        try:
            return open_regular(self._path(job_id))
        except OSError:
            return None

    def drop(self, job_id: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._path(job_id))  # noqa: PTH108 - as above

    def sweep(self, known: Callable[[Collection[str]], Collection[str]]) -> int:
        """Remove those of jobs that have no row any more; gives their number.

        known  gives which of some ids have a row
        """
        try:
            ids = [name.removesuffix(_SUFFIX) for name in os.listdir(self._root) if name.endswith(_SUFFIX)]
        except OSError:
            return 0
        gone = 0
        for start in range(0, len(ids), _BATCH):
            some = ids[start : start + _BATCH]
            for job_id in set(some) - set(known(some)):
                self.drop(job_id)
                gone += 1
        return gone
