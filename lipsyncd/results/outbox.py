"""Show a finished video in the outbox: whole, under a free name, exactly once.

A result is first *staged* under hidden names on the outbox's own file system. Once the spool has noted that (`staged`),
the hidden files are tokens: present means not shown yet, absent means shown, even when a consumer has taken the video
away a moment later. Showing is a rename that refuses to replace. The sidecar comes last and marks a complete result.

The only writer of results in the outbox. Callers check first that it is mounted (`Folders`); it is never created here.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from lipsyncd.errors import BadResult
from lipsyncd.storage.failpoints import reach
from lipsyncd.storage.files import copy_hashed, fsync_folder, open_regular, read_json, rename_no_replace, write_new
from lipsyncd.storage.folders import HIDDEN

log = logging.getLogger(__name__)

VIDEO, SIDECAR = "mp4", "json"


class Outbox:
    """The folder `root`. Results get `mode` and, when it is not empty, `group`.

    hidden  where results are staged: our own folder in the outbox
    """

    def __init__(self, root: Path, *, mode: int, group: str, hidden: Path | None = None) -> None:
        self.root = root
        self.mode = mode
        self.group = group
        self._hidden = root / HIDDEN if hidden is None else hidden

    def of_queue(self, queue: str) -> Outbox:
        """The outbox's folder for the results of a queue, which is created when needed; the outbox itself for ""."""
        if not queue:
            return self
        return Outbox(self.root / queue, mode=self.mode, group=self.group, hidden=self._hidden)

    def token(self, job_id: str, suffix: str) -> Path:
        return self._hidden / f"{job_id}.{suffix}.part"

    def path(self, out_name: str, suffix: str) -> Path:
        return self.root / f"{out_name}.{suffix}"

    def stage(self, job_id: str, video: Path, sha256: str, sidecar: bytes) -> None:
        """Put hidden copies into the outbox, durable and of the expected bytes. A repeated call starts again."""
        target = self.token(job_id, VIDEO)
        target.unlink(missing_ok=True)
        descriptor = open_regular(video)
        try:
            _, copied = copy_hashed(descriptor, target, mode=self.mode)
        finally:
            os.close(descriptor)
        if copied != sha256:
            raise BadResult(f"the video of job {job_id} changed in the spool: {copied[:12]} is not {sha256[:12]}")
        self._own(target)
        self.stage_sidecar(job_id, sidecar)
        reach("publish-copied")

    def stage_sidecar(self, job_id: str, sidecar: bytes) -> None:
        target = self.token(job_id, SIDECAR)
        write_new(target, sidecar, mode=self.mode)
        self._own(target)
        fsync_folder(self._hidden)

    def is_free(self, out_name: str) -> bool:
        """True if neither a video nor a sidecar of that name exists."""
        return not any(os.path.lexists(self.path(out_name, suffix)) for suffix in (VIDEO, SIDECAR))

    def is_staged(self, job_id: str, suffix: str) -> bool:
        return self.token(job_id, suffix).exists()

    def show(self, job_id: str, suffix: str, out_name: str) -> None:
        """Give a staged file its name.

        Raises FileExistsError when a foreign file has it, FileNotFoundError when the token is gone (shown before).
        """
        reach(f"publish-before-{suffix}")
        self._rename(job_id, suffix, out_name)
        reach(f"publish-renamed-{suffix}")
        self._make_durable()

    def show_again(self, job_id: str, suffix: str, out_name: str) -> None:
        """`show`, for a job that was published before."""
        self._rename(job_id, suffix, out_name)
        self._make_durable()

    def _rename(self, job_id: str, suffix: str, out_name: str) -> None:
        if self.root != self._hidden.parent:
            self.root.mkdir(0o775, exist_ok=True)  # a consumer may have tidied it away
        rename_no_replace(self.token(job_id, suffix), self.path(out_name, suffix))

    def _make_durable(self) -> None:
        fsync_folder(self.root)
        fsync_folder(self._hidden)

    def unstage(self, job_id: str) -> None:
        """Remove the hidden files of a job that will not be shown."""
        for suffix in (VIDEO, SIDECAR):
            self.token(job_id, suffix).unlink(missing_ok=True)

    def withdraw(self, job_id: str, out_name: str) -> None:
        """Delete the result of that name if it is still this job's. The sidecar, which proves it, is deleted last."""
        if (read_json(self.path(out_name, SIDECAR)) or {}).get("id") == job_id:
            for suffix in (VIDEO, SIDECAR):
                self.path(out_name, suffix).unlink(missing_ok=True)
            fsync_folder(self.root)

    def sweep(self, staged: set[str]) -> int:
        """Remove the hidden files of jobs that are not staged; returns their number. Only at start, while mounted."""
        torn = [path for path in self._hidden.glob("*.part") if path.name.partition(".")[0] not in staged]
        for path in torn:
            path.unlink(missing_ok=True)
        return len(torn)

    def _own(self, path: Path) -> None:
        path.chmod(self.mode)
        if self.group:
            try:
                shutil.chown(path, group=self.group)
            except (LookupError, OSError) as error:
                log.warning("outbox: cannot give %s to group %s: %s", path.name, self.group, error)
