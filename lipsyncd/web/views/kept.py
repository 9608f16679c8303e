"""What is still kept of the jobs' orders and of their inputs, so that another job can be made of them.

An accepted job has both in the spool; an ended one in failed/ or the archive, or as an upload. What a job named by its
address is not kept: the address is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipsyncd.jobs.did_talk import rest_of
from lipsyncd.jobs.job import AUDIO, IMAGE, Job, JobSpec
from lipsyncd.results import archive
from lipsyncd.storage.files import NotRegular, copy_hashed, open_regular
from lipsyncd.storage.spool import Spool
from lipsyncd.storage.uploads import Upload
from lipsyncd.web.clients import Client
from lipsyncd.web.forms import Part
from lipsyncd.web.jobs import Jobs
from lipsyncd.web.replies import ApiError, too_large
from lipsyncd.web.uploads import CheckedUploads

_WORDS = {IMAGE: "picture", AUDIO: "sound"}
_ADDRESS = {IMAGE: "source_url", AUDIO: "audio_url"}  # in what is kept of a request
_GONE = (FileNotFoundError, NotRegular, PermissionError)


@dataclass(frozen=True)
class Kept:
    """The order of one job, and its files. `open` gives a descriptor by the role; it raises OSError without one."""

    spec: JobSpec
    open: Callable[[str], int]


@dataclass(frozen=True)
class Earlier:
    """One input of an earlier job: an upload, a copy of a file that is no upload yet, an address, or a text."""

    upload: Upload | None = None
    copy: Part | None = None
    address: str | None = None
    text: str | None = None
    voice: str | None = None
    ssml: bool = False


class KeptOrders:
    """The orders and inputs of one daemon's jobs. Its methods block; only `inputs` touches no shared folder."""

    def __init__(self, jobs: Jobs, uploads: CheckedUploads) -> None:
        self._jobs = jobs
        self._uploads = uploads
        self._spool = Spool(jobs.folders.spool)

    def inputs(self, job: Job) -> dict[str, bool]:
        """Are the picture, and the sound or the text, still there for another job? As the row records it.

        A member of the group may have removed them from failed/ since; an order finds out.
        """
        if not job.state.ended:
            return dict.fromkeys((IMAGE, AUDIO), job.seq > 0)
        rest = rest_of(job)
        has_folder = job.kept is not None or self._spool.folder(job.id).is_dir()
        if not has_folder:  # they may have gone from there to where they are kept since the row was read
            now = self._jobs.view.exact(job.id)
            has_folder = now is not None and now.kept is not None
        found = {}
        for role in (IMAGE, AUDIO):
            upload_id = _upload_of(role, rest)
            found[role] = self._uploads.stored.has(upload_id) if upload_id else _ADDRESS[role] in rest or has_folder
        return found

    def order(self, job: Job) -> dict[str, Any]:
        """The fields of `POST /jobs` with which the same order is made; null where the order is no longer kept."""
        with self._opened(job) as kept:
            spec = None if kept is None else kept.spec
        known = {
            "name": job.name,
            "renderer": job.renderer,
            "stitch": job.stitch,
            "resolution": job.resolution,
            "fps": job.fps,
        }
        if spec is None:
            more = ("motion", "av_offset_ms", "pad_s", "options", "text", "voice", "ssml")
            return {**known, **dict.fromkeys(more)}
        return {
            **known,
            "motion": spec.motion,
            "av_offset_ms": spec.av_offset_ms,
            "pad_s": spec.pad_s,
            "options": dict(spec.options),
            "text": spec.text,
            "voice": spec.voice,
            "ssml": spec.ssml,
        }

    def find(self, role: str, job: Job, client: Client, folder: Path) -> Earlier:
        """The picture or the sound of a job that the client sees; a file is copied into `folder`.

        Raises `ApiError`: 410 when it is not kept any more, 409 when the job is not accepted yet.
        """
        rest = rest_of(job)
        upload_id = _upload_of(role, rest)
        upload = self._uploads.stored.find(upload_id, role) if upload_id else None
        if upload is not None and client.owns(upload):
            self._uploads.stored.touch(upload.id)
            return Earlier(upload=upload)
        address = None if upload_id else rest.get(_ADDRESS[role])
        for _ in range(2):  # once more for files that leave the spool for where they are kept just now
            with self._opened(job) as kept:
                if kept is None and not job.state.ended:
                    raise ApiError(
                        409, "NotReadyError", f"job {job.id} is not accepted yet; try again in a second",
                        headers={"Retry-After": "1"},
                    )  # fmt: skip
                if kept is None:
                    break
                spec = kept.spec
                if role == AUDIO and spec.text is not None:
                    return Earlier(text=spec.text, voice=spec.voice, ssml=spec.ssml)
                with contextlib.suppress(*_GONE):
                    return Earlier(copy=self._copy(role, kept, folder / f"{role}-of"))
                address = address or (spec.image_url if role == IMAGE else spec.audio_url)
        if address is None or not address.startswith(("http://", "https://")):
            raise _gone(role, job)
        return Earlier(address=address)

    def _copy(self, role: str, kept: Kept, target: Path) -> Part:
        descriptor = kept.open(role)
        try:
            most = self._jobs.settings.now.web.max_upload_mb * 1_000_000
            if os.fstat(descriptor).st_size > most:
                raise too_large("/jobs", most)
            size_bytes, sha256 = copy_hashed(descriptor, target)
        finally:
            os.close(descriptor)
        name = next((source.name for source in kept.spec.sources if source.role == role), "")
        return Part(target, name, size_bytes, sha256)

    @contextmanager
    def _opened(self, job: Job) -> Iterator[Kept | None]:
        """The order and the files of a job, where they are; None when they are gone.

        Raises 503 while the shared folder that has them is not mounted.
        """
        spec = self._spool.spec(job.id)
        if spec is None:  # it may be on its way to where it is kept
            job = self._jobs.find(job.id) or job
        place = None if job.kept is None else self._jobs.folders.place_of(job.kept, ("failed", "archive"))
        if spec is not None:
            folder = self._spool.folder(job.id)
            yield Kept(spec, lambda role: open_regular(folder / role))
        elif place is None:
            yield None
        else:
            shared, parts = place
            with contextlib.ExitStack() as stack:
                root = stack.enter_context(shared.opened())
                if root is None:
                    raise ApiError(503, "ServiceUnavailableError", f"{shared.absence}; try again when it is mounted")
                try:
                    opened = stack.enter_context(root.walk(parts))
                    spec = archive.spec_of(opened)
                except _GONE:
                    spec = None
                is_ours = spec is not None and spec.id == job.id
                yield Kept(spec, lambda role: archive.open_input(opened, spec, role)) if spec and is_ours else None


def _gone(role: str, job: Job) -> ApiError:
    what = _WORDS[role]
    return ApiError(410, "GoneError", f"the {what} of job {job.id} is not kept any more; send the {what} itself")


def _upload_of(role: str, rest: Mapping[str, Any]) -> str:
    """The id of the upload that a job over REST has read as its picture or its sound; "" if it was none.

    The ledger says so, and not the `job.json` in failed/, which members of the group can rewrite.
    """
    uploads = rest.get("uploads", ())
    return str(uploads[0 if role == IMAGE else -1]) if uploads and f"{role}_sha256" in rest else ""
