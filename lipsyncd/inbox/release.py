"""Remove the inputs of accepted jobs from the inbox, if their names still stand for the bytes that were copied.

Files that a waiting manifest names as well stay until that manifest has its job.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Container, Mapping
from dataclasses import replace

from lipsyncd.inbox.pairing import Found
from lipsyncd.inbox.scan import Inbox
from lipsyncd.jobs.job import Identity, JobSpec, SourceFile
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.log import printable
from lipsyncd.storage.failpoints import reach
from lipsyncd.storage.files import fsync_opened, identity, sha256_of
from lipsyncd.storage.spool import Spool

log = logging.getLogger(__name__)


class Release:
    """The accepted jobs of one inbox whose files still lie there.

    stuck  files that could not be removed, and why
    """

    def __init__(self, inbox: Inbox, spool: Spool, ledger: Ledger, queue: str) -> None:
        self.stuck: dict[str, str] = {}
        self._inbox = inbox
        self._ledger = ledger
        self._sources: dict[str, tuple[SourceFile, ...]] = {}
        for job_id in ledger.unreleased():
            spec = spool.spec(job_id)
            if spec is None and not queue:
                self._sources[job_id] = ()
            elif spec is not None and spec.queue == queue:
                self._sources[job_id] = spec.sources

    def add(self, spec: JobSpec) -> None:
        """A job was accepted: its files can go."""
        self._sources[spec.id] = spec.sources

    @property
    def taken(self) -> dict[bytes, Identity]:
        """Files of accepted jobs that may still lie in the inbox."""
        return {os.fsencode(s.name): s.identity for sources in self._sources.values() for s in sources}

    def run(self) -> None:
        """Unlink what can go.

        All through one descriptor: in the folder that has come in place of an unmounted one no input can be found. One
        that we believed to be gone would be another drop when its folder is back.
        """
        if not self._sources:
            return
        with self._inbox.opened() as folder:
            if folder is not None:
                self._release_in(folder)

    def _release_in(self, folder: int) -> None:
        needed = self._inbox.named_by_manifests(self.taken)
        known, self.stuck = self.stuck, {}
        left = {
            job_id: tuple(
                s for source in sources if (s := self._release_file(folder, job_id, source, needed, known)) is not None
            )
            for job_id, sources in self._sources.items()
        }
        released = [job_id for job_id, sources in left.items() if not sources]
        if released:
            fsync_opened(folder)
            reach("intake-unlinked")
            self._ledger.set_released(released)
        self._sources = {job_id: sources for job_id, sources in left.items() if sources}

    def _release_file(
        self, folder: int, job_id: str, source: SourceFile, needed: Container[bytes], known: Mapping[str, str]
    ) -> SourceFile | None:
        """None when the name no longer stands for the bytes that were copied, else what still lies there."""
        name = os.fsencode(source.name)
        try:
            now = identity(name, folder=folder)
            if now is None or not _is_same(folder, name, source, now):
                return None
            source = replace(source, identity=now)
            if name in needed:
                return source
            reach("intake-before-unlink")
            os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            shown, why = printable(source.name), f"job {job_id} has it, and it cannot be removed: {error.strerror}"
            if known.get(shown) != why:
                log.warning("intake: cannot remove %s from the inbox: %s", shown, error.strerror)
            self.stuck[shown] = why
            return source
        return None


def _is_same(folder: int, name: bytes, source: SourceFile, now: Identity) -> bool:
    """The bytes we copied, also when only the inode's own data changed (a chmod, a backup tool)."""
    if now == source.identity:
        return True
    unchanged = replace(now, ctime_ns=0) == replace(source.identity, ctime_ns=0)
    return unchanged and sha256_of(name, folder=folder) == source.sha256


def unlink_same(inbox: Inbox, file: Found) -> None:
    """Remove a file unless another one has its name by now."""
    path = inbox.path(file.name)
    if identity(path) == file.identity:
        os.unlink(path)  # noqa: PTH108 - names are bytes
