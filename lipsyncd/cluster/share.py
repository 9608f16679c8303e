"""The folder `work/` in the shared folder: what one attempt at a job needs on another machine, and its video.

    work/JOB/ATTEMPT/     copies of the prepared inputs; ATTEMPT is the token of the claim, which no other attempt has
    work/JOB/ATTEMPT.1/   the same for part 1 of a video that several machines draw
        video.mp4.part    being written
        video.mp4         complete and fsynced
    work/probe/NONCE/     proves that a machine sees this folder

A machine that was lost may write on after its job runs elsewhere. It writes below its own attempt's folder only, and
that is not read any more. It knows no other folder of the daemon.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from pathlib import Path

from lipsyncd.errors import BadResult, FolderNotOurs, ShareUnavailable
from lipsyncd.storage.files import NotRegular, copy_hashed, open_regular
from lipsyncd.worker.protocol import Render

VIDEO, PART = "video.mp4", "video.mp4.part"


class WorkFolder:
    """`work/` of one shared folder, on the machine of the daemon."""

    def __init__(self, share: Path) -> None:
        self.root = share / "work"

    def require(self) -> None:
        """Make the folder. Raises `ShareUnavailable`, and `FolderNotOurs` when others may write into it."""
        try:
            self.root.mkdir(mode=0o700, exist_ok=True)  # never the share: without it, nothing is mounted there
            info = self.root.lstat()
        except OSError as error:
            raise ShareUnavailable(f"{self.root} cannot be used: {error.strerror}") from error
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
            raise FolderNotOurs(f"{self.root} is not a folder that only the daemon's user may write")

    def send(self, request: Render, name: str) -> Path:
        """Copy the inputs of a request into a new folder of that name, which is returned.

        name  of the attempt, or of one part in it
        """
        self.require()
        folder = self.root / request.job_id / name
        try:
            folder.mkdir(mode=0o700, parents=True)
            names = [request.picture.file, request.sound.speech_file]
            if not request.is_part:
                names.append(request.sound.file)
            if request.video is not None:
                names.append(request.video.file)
            for name in dict.fromkeys(names):
                _copy(Path(request.folder, name), folder / name)
        except OSError as error:
            raise ShareUnavailable(f"the inputs cannot be copied to {folder}: {error.strerror or error}") from error
        return folder

    def fetch(self, folder: Path, target: Path) -> None:
        """Copy the finished video to `target`. Raises `BadResult` without one, `ShareUnavailable`."""
        try:
            _copy(folder / VIDEO, target)
        except (FileNotFoundError, NotRegular) as error:
            raise BadResult(f"the machine that rendered left no video in {folder}") from error
        except OSError as error:
            raise ShareUnavailable(f"the video cannot be copied from {folder}: {error.strerror or error}") from error

    def remove(self, folder: Path) -> None:
        """Remove the folder of one attempt, and its job's when that is empty; what cannot be removed is swept later."""
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()

    def sweep(self, older_than_s: float, running: frozenset[str]) -> int:
        """Remove folders of attempts and probes in which nothing has happened for that long; returns how many.

        running  ids of jobs that are being rendered: their folders stay
        """
        before, removed = time.time() - older_than_s, 0
        with contextlib.suppress(OSError):
            for job in os.scandir(self.root):
                if job.name in running or not job.is_dir(follow_symlinks=False):
                    continue
                for attempt in os.scandir(job.path):
                    if attempt.is_dir(follow_symlinks=False) and attempt.stat(follow_symlinks=False).st_mtime < before:
                        shutil.rmtree(attempt.path, ignore_errors=True)
                        removed += 1
                if job.stat(follow_symlinks=False).st_mtime < before:
                    with contextlib.suppress(OSError):
                        Path(job.path).rmdir()
        return removed


def _copy(source: Path, target: Path) -> None:
    descriptor = open_regular(source)
    try:
        target.unlink(missing_ok=True)
        copy_hashed(descriptor, target)
    finally:
        os.close(descriptor)
