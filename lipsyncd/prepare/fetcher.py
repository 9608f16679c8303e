"""Fetch the addresses that jobs name, several at a time, while the preparing thread works on other jobs.

One slow server holds up its own job only. A file appears in the job's spool folder under its own name, whole; a failure
is kept until the preparing thread asks for it, since that one decides about retries.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lipsyncd.errors import FetchFailed, FetchRefused
from lipsyncd.jobs import did_talk
from lipsyncd.jobs.job import JobSpec
from lipsyncd.jobs.manifest import classify
from lipsyncd.network import fetch
from lipsyncd.settings import CurrentSettings
from lipsyncd.storage.files import keep

log = logging.getLogger(__name__)

_MOST_THREADS = 32


@dataclass(frozen=True)
class _Wanted:
    url: str
    path: Path
    most_bytes: int


class Fetcher:
    """The fetches of one daemon. `on_end` is called, in any thread, when the files of a job are there or failed."""

    def __init__(self, settings: CurrentSettings, on_end: Callable[[], None]) -> None:
        self._settings = settings
        self._on_end = on_end
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._waiting: dict[str, tuple[str, list[_Wanted]]] = {}  # by job, oldest first: whose it is, and its files
        self._running: dict[str, str] = {}  # by job: whose it is
        self._failed: dict[str, Exception] = {}
        self._pool = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="fetch")

    # -- for the preparing thread --------------------------------------------------------------------------------------

    @property
    def under_way(self) -> frozenset[str]:
        """The jobs whose files are being fetched, or wait for that."""
        with self._lock:
            return frozenset((*self._waiting, *self._running))

    def begin(self, spec: JobSpec, folder: Path, owner: str) -> bool:
        """Fetch what a job names and does not have yet; False when there is nothing to fetch.

        owner  whose job it is, such as a tenant of REST: no owner has more than half of the fetches at a time

        Raises the failure of the fetch before: the caller decides whether the job is tried again.
        """
        with self._lock:
            failure = self._failed.pop(spec.id, None)
        if failure is not None:
            raise failure
        limits, rules = self._settings.now.intake, self._settings.now.fetch
        sizes = {"image": max(limits.max_image_mb, limits.max_video_mb), "audio": limits.max_audio_mb}
        wanted = [
            _Wanted(url, folder / role, min(rules.max_mb, sizes[role]) * 1_000_000)
            for role, url in (("image", spec.image_url), ("audio", spec.audio_url))
            if url is not None and classify(url) == "url" and not (folder / role).exists()
        ]
        if not wanted:
            return False
        with self._lock:
            self._waiting[spec.id] = (owner, wanted)
        self._start_next()
        return True

    def close(self) -> None:
        """End the fetches under way; returns within a second."""
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    # -- the fetching threads ------------------------------------------------------------------------------------------

    def _start_next(self) -> None:
        with self._lock:
            parallel = self._settings.now.fetch.parallel
            of_owner = Counter(self._running.values())
            for job_id, (owner, wanted) in list(self._waiting.items()):
                if len(self._running) >= parallel or self._stop.is_set():
                    return
                if of_owner[owner] < max(1, parallel // 2):
                    del self._waiting[job_id]
                    self._running[job_id] = owner
                    of_owner[owner] += 1
                    self._pool.submit(self._run, job_id, wanted)

    def _run(self, job_id: str, wanted: list[_Wanted]) -> None:
        failure: Exception | None = None
        try:
            for one in wanted:
                self._fetch(one)
        except Exception as error:
            failure = error
        with self._lock:
            del self._running[job_id]
            if failure is not None and not self._stop.is_set():
                self._failed[job_id] = failure
        self._start_next()
        self._on_end()

    def _fetch(self, one: _Wanted) -> None:
        rules, part = self._settings.now.fetch, one.path.with_suffix(".part")
        try:
            fetch.fetch(
                one.url,
                part,
                max_bytes=one.most_bytes,
                timeout_s=rules.timeout_s,
                min_bytes_s=rules.min_kb_s * 1000,
                allow=rules.allow,
                cancelled=lambda: self._stop.is_set() or not one.path.parent.is_dir(),
            )
        except (FetchRefused, FetchFailed) as error:  # after a redirect its address no longer tells which one it was
            shown = f"{did_talk.FETCHED[one.path.name]}: {error.message}"
            raise type(error)(shown, remedy=error.remedy) from error
        keep(part, one.path)
