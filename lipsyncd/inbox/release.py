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
from lipsyncd.inbox.shown import Shown
from lipsyncd.jobs.job import Identity, JobSpec, SourceFile
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.log import printable
from lipsyncd.storage.failpoints import reach
from lipsyncd.storage.open_folder import OpenFolder
from lipsyncd.storage.removal import Removal
from lipsyncd.storage.spool import Spool

log = logging.getLogger(__name__)


class Release:
    """The accepted jobs of one inbox whose files still lie there.

    stuck  files that could not be removed, and why
    """

    def __init__(self, inbox: Inbox, spool: Spool, ledger: Ledger, queue: str) -> None:
        self.stuck = Shown()
        self._inbox = inbox
        self._ledger = ledger
        self._sources: dict[str, tuple[SourceFile, ...]] = {}
        for job_id in ledger.unreleased():
            spec = spool.spec(job_id)
            if spec is None and not queue:
                self._sources[job_id] = ()
            elif spec is not None and ("" if spec.rest is not None else spec.queue) == queue:
                self._sources[job_id] = spec.sources

    def add(self, spec: JobSpec) -> None:
        """A job was accepted: its files can go."""
        self._sources[spec.id] = spec.sources

    @property
    def taken(self) -> dict[bytes, Identity]:
        """Files of accepted jobs that may still lie in the inbox."""
        return {os.fsencode(s.name): s.identity for sources in self._sources.values() for s in sources}

    def refresh(self) -> None:
        """Recognise files whose status alone changed while no daemon ran, so that they are no drops of their own."""
        folder = self._inbox.folder
        self._sources = {
            job_id: tuple(
                replace(source, identity=now)
                if (now := folder.identity(os.fsencode(source.name))) and _is_same(folder, source, now)
                else source
                for source in sources
            )
            for job_id, sources in self._sources.items()
        }

    def run(self) -> None:
        """Remove what can go. Called while the inbox is open.

        All through one descriptor: in the folder that has come in place of an unmounted one no input can be found. One
        that we believed to be gone would be another drop when its folder is back.
        """
        if self._sources:
            with self._inbox.shared.removal(self._inbox.folder) as removal:
                self._release(removal)

    def _release(self, removal: Removal) -> None:
        needed = self._inbox.named_by_manifests(self.taken)
        known, self.stuck = self.stuck, Shown()
        left = {
            job_id: tuple(
                s for source in sources if (s := self._release_file(removal, job_id, source, needed, known)) is not None
            )
            for job_id, sources in self._sources.items()
        }
        released = [job_id for job_id, sources in left.items() if not sources]
        if released:
            self._inbox.folder.fsync()
            removal.fsync()
            reach("intake-unlinked")
            self._ledger.set_released(released)
        self._sources = {job_id: sources for job_id, sources in left.items() if sources}

    def _release_file(
        self, removal: Removal, job_id: str, source: SourceFile, needed: Container[bytes], known: Mapping[str, str]
    ) -> SourceFile | None:
        """None when the name no longer stands for the bytes that were copied, else what still lies there."""
        name, folder = os.fsencode(source.name), self._inbox.folder
        try:
            now = folder.identity(name)
            if now is None or not _is_same(folder, source, now):
                return None
            source = replace(source, identity=now)
            if name in needed:
                return source
            reach("intake-before-unlink")
            removal.take_file(folder, name, now)
        except FileNotFoundError:
            return None
        except OSError as error:
            shown, why = printable(source.name), f"job {job_id} has it, and it cannot be removed: {error.strerror}"
            if self.stuck.note(shown, why) and known.get(shown) != why:
                log.warning("intake: cannot remove %s from the inbox: %s", shown, error.strerror)
            return source
        return None


def _is_same(folder: OpenFolder, source: SourceFile, now: Identity) -> bool:
    """The bytes we copied, also when only the inode's own data changed (a chmod, a backup tool)."""
    if now == source.identity:
        return True
    unchanged = replace(now, ctime_ns=0) == replace(source.identity, ctime_ns=0)
    return unchanged and folder.is_file_of(os.fsencode(source.name), source.sha256)


def unlink_same(inbox: Inbox, file: Found) -> None:
    """Remove a file unless another one has its name by now. Called while the inbox is open."""
    if inbox.folder.identity(file.name) == file.identity:
        with inbox.shared.removal(inbox.folder) as removal:
            removal.take_file(inbox.folder, file.name, file.identity)
