"""Show a finished video in the outbox: whole, under a free name, exactly once.

A result is first *staged* under hidden names on the outbox's own file system. Once the spool has noted that (`staged`),
the hidden files are tokens: present means not shown yet, absent means shown, even when a consumer has taken the video
away a moment later. Showing is a rename that refuses to replace. The sidecar comes last and marks a complete result.

The only writer of results in the outbox. Every operation opens the outbox anew and raises `OutboxUnavailable` while it
is not mounted; it is never created here.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from lipsyncd.errors import BadResult, OutboxUnavailable
from lipsyncd.storage.failpoints import reach
from lipsyncd.storage.files import NotRegular, copy_into
from lipsyncd.storage.open_folder import OpenFolder
from lipsyncd.storage.private_folder import id_of
from lipsyncd.storage.shared_folders import SharedFolder

log = logging.getLogger(__name__)

VIDEO, SIDECAR = "mp4", "json"
_QUEUE_MODE = 0o775
_MOST_SIDECAR_BYTES = 1_000_000


class Token(Enum):
    """What became of a hidden copy of a result.

    STAGED  it lies there
    SHOWN   it was given its name
    LOST    it is gone with its hidden folder, which a member has taken away
    """

    STAGED = "staged"
    SHOWN = "shown"
    LOST = "lost"


class Outbox:
    """The shared folder for results, or its folder for those of a queue.

    mode, group  of the results; a `group` of "" leaves them to the group that they inherit
    """

    def __init__(self, shared: SharedFolder, *, mode: int, group: str, queue: str = "") -> None:
        self.shared = shared
        self.mode = mode
        self.group = group
        self.queue = queue

    def of_queue(self, queue: str) -> Outbox:
        """The outbox's folder for the results of a queue, which is created when needed; the outbox itself for ""."""
        return Outbox(self.shared, mode=self.mode, group=self.group, queue=queue) if queue else self

    # -- staging -------------------------------------------------------------------------------------------------------

    def stage(self, job_id: str, video: int, sha256: str, sidecar: bytes) -> str:
        """Put hidden copies into the outbox, durable and of the expected bytes. A repeated call starts again.

        video  a descriptor of the video

        The sidecar comes first. A token of the video means that both are whole.

        Returns the id of the hidden folder: see `made`.
        """
        with self._private() as private:
            token, unfinished = _token(job_id, VIDEO), _unfinished(job_id)
            made = self._write_sidecar(private, job_id, sidecar)
            private.remove(unfinished)
            descriptor = private.create(unfinished, self.mode)
            self._own(descriptor, token)
            _, copied = copy_into(video, descriptor)
            if copied != sha256:
                private.remove(unfinished)
                raise BadResult(f"the video of job {job_id} changed in the spool: {copied[:12]} is not {sha256[:12]}")
            private.remove(token)
            private.rename(unfinished, private, token)
            private.fsync()
        reach("publish-copied")
        return made

    def stage_sidecar(self, job_id: str, sidecar: bytes) -> str:
        """Put a hidden copy of a sidecar into the outbox; returns as `stage`."""
        with self._private() as private:
            return self._write_sidecar(private, job_id, sidecar)

    def _write_sidecar(self, private: OpenFolder, job_id: str, sidecar: bytes) -> str:
        token = _token(job_id, SIDECAR)
        private.replace(token, sidecar, mode=self.mode, prepare=lambda descriptor: self._own(descriptor, token))
        return id_of(private)

    def _own(self, descriptor: int, name: str) -> None:
        os.fchmod(descriptor, self.mode)
        if self.group:
            try:
                shutil.chown(descriptor, group=self.group)
            except (LookupError, OSError) as error:
                log.warning("outbox: cannot give %s to group %s: %s", name, self.group, error)

    def token(self, job_id: str, suffix: str, made: str) -> Token:
        """What became of a hidden copy. One look: a member may exchange the hidden folder between two.

        made  the id of the hidden folder that it was staged in
        """
        with self._private() as private:
            if private.status(_token(job_id, suffix)) is not None:
                return Token.STAGED
            return Token.SHOWN if id_of(private) == made else Token.LOST

    def staged_sidecar(self, job_id: str) -> bytes:
        """The staged sidecar. Raises FileNotFoundError."""
        with self._private() as private:
            return private.read(_token(job_id, SIDECAR), _MOST_SIDECAR_BYTES)

    def unstage(self, job_id: str) -> None:
        """Remove the hidden files of a job that will not be shown."""
        with self._private() as private:
            for name in (_unfinished(job_id), _token(job_id, VIDEO), _token(job_id, SIDECAR)):
                private.remove(name)

    def sweep(self, staged: set[str]) -> int:
        """Remove the hidden files of jobs that are not staged; returns their number. Only at start, while mounted."""
        with self._private() as private:
            parts = [entry.name for entry in private.entries() if entry.name.endswith(".part")]
            torn = [name for name in parts if name.partition(".")[0] not in staged]
            for name in torn:
                private.remove_tree(name)
        return len(torn)

    # -- showing -------------------------------------------------------------------------------------------------------

    def is_free(self, out_name: str) -> bool:
        """True if neither a video nor a sidecar of that name exists."""
        with self._results() as results:
            return not any(results.status(f"{out_name}.{suffix}") for suffix in (VIDEO, SIDECAR))

    def has_video(self, out_name: str, size_bytes: int, sha256: str) -> bool:
        """Does that very video lie there under that name?"""
        with self._results() as results:
            name = f"{out_name}.{VIDEO}"
            status = results.status(name)
            return status is not None and status.st_size == size_bytes and results.is_file_of(name, sha256)

    def has_sidecar(self, job_id: str, out_name: str) -> bool:
        """Does this job's sidecar lie there, under that name or the longer one that it gets when that was taken?"""
        with self._results() as results:
            names = (f"{out_name}.{SIDECAR}", f"{out_name} {job_id}.{SIDECAR}")
            return any((results.read_json(name) or {}).get("id") == job_id for name in names)

    def show(self, job_id: str, suffix: str, out_name: str) -> None:
        """Give a staged file its name.

        Raises FileExistsError when a foreign file has it, FileNotFoundError when the token is gone (shown before).
        """
        reach(f"publish-before-{suffix}")
        with self._showing(job_id, suffix, out_name):
            reach(f"publish-renamed-{suffix}")

    def show_again(self, job_id: str, suffix: str, out_name: str) -> None:
        """`show`, for a job that was published before."""
        with self._showing(job_id, suffix, out_name):
            pass

    @contextmanager
    def _showing(self, job_id: str, suffix: str, out_name: str) -> Iterator[None]:
        """Give a staged file its name; at the end of the block make that durable."""
        with self._root() as root, self.shared.private(root) as private, self._results_in(root) as results:
            private.rename(_token(job_id, suffix), results, f"{out_name}.{suffix}")
            yield
            results.fsync()
            private.fsync()

    def withdraw(self, job_id: str, out_name: str) -> None:
        """Delete the result of that name if it is still this job's. The sidecar, which proves it, is deleted last."""
        sidecar, video = f"{out_name}.{SIDECAR}", f"{out_name}.{VIDEO}"
        with self._root() as root, self.shared.removal(root) as removal, self._results_in(root) as results:
            facts = results.read_json(sidecar) or {}
            if facts.get("id") != job_id:
                return
            removal.take(results, video, lambda here, name: here.is_file_of(name, facts.get("sha256")))
            removal.fsync()
            removal.take(results, sidecar, lambda here, name: (here.read_json(name) or {}).get("id") == job_id)
            results.fsync()

    # -- opening -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _root(self) -> Iterator[OpenFolder]:
        with self.shared.opened() as root:
            if root is None:
                raise OutboxUnavailable(self.shared.absence)
            yield root

    @contextmanager
    def _private(self) -> Iterator[OpenFolder]:
        with self._root() as root, self.shared.private(root) as private:
            yield private

    @contextmanager
    def _results(self) -> Iterator[OpenFolder]:
        with self._root() as root, self._results_in(root) as results:
            yield results

    @contextmanager
    def _results_in(self, root: OpenFolder) -> Iterator[OpenFolder]:
        """Where results are shown. A consumer may have tidied a queue's folder away: then it is made again."""
        if not self.queue:
            yield root
            return
        try:
            folder = root.make(self.queue, _QUEUE_MODE)
        except NotRegular as error:
            raise OutboxUnavailable(
                f"{root.shown(self.queue)} is a link or a file, and no folder", remedy="remove it"
            ) from error
        with folder:
            yield folder


def _token(job_id: str, suffix: str) -> str:
    return f"{job_id}.{suffix}.part"


def _unfinished(job_id: str) -> str:
    """The name of a copy of the video under way. The next start removes it, whatever job it is of."""
    return f".{_token(job_id, VIDEO)}"
