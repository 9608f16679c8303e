"""Prepare accepted jobs: decode every input to a raw picture and raw sound, in the jail.

Inputs that a job only names are fetched (`fetcher`) or spoken first. A render child later reads only what the jail
wrote.
Runs in one thread, while others render. The queue's order decides which job is next.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable
from pathlib import Path

from lipsyncd.errors import Blocked, MissingHalf, from_reason
from lipsyncd.jobs.blocked import ReadState, packages
from lipsyncd.jobs.job import AUDIO, IMAGE, Job, JobSpec, JobState
from lipsyncd.jobs.prepared import Prepared, frame_count
from lipsyncd.jobs.retry import Action
from lipsyncd.media import video_frames
from lipsyncd.prepare import find_faces
from lipsyncd.prepare.fetcher import Fetcher
from lipsyncd.prepare.inputs import decode_inputs, may_reduce, require_face, speak_text, voice_of
from lipsyncd.prepare.voices.process import SpeakingStopped
from lipsyncd.results.duplicates import Duplicates
from lipsyncd.results.failures import PREPARE, Failures
from lipsyncd.results.finish import Finisher
from lipsyncd.results.publish import Publisher
from lipsyncd.results.stores import Stores
from lipsyncd.settings import Speech
from lipsyncd.storage import disk_space, uploads
from lipsyncd.storage.files import keep

log = logging.getLogger(__name__)

_THUMBNAIL = "thumbnail.jpg"  # as the jail draws it; then it moves to the others
_LONGEST_S = 1800.0  # each decoder and speaker has a limit of its own, far below


class Preparer:
    """Prepares the jobs of one daemon.

    stopping  True when the daemon stops: a long text is then spoken again by the next one
    """

    def __init__(
        self,
        stores: Stores,
        finisher: Finisher,
        failures: Failures,
        publisher: Publisher,
        ffmpeg: Path,
        fetcher: Fetcher,
        *,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._stores = stores
        self._finisher = finisher
        self._fetcher = fetcher
        self._failures = failures
        self._ffmpeg = ffmpeg
        self._stopping = stopping
        self._duplicates = Duplicates(stores, finisher, publisher)
        self._tries: Counter[str] = Counter()

    def run_once(self) -> bool:
        """Prepare the next job that is due; False when there is none. Raises `LedgerUnavailable`."""
        job = self._stores.ledger.next_to_prepare(self._fetcher.under_way)
        if job is None:
            return False
        if job.id in self._stores.withdrawn:
            self._finisher.cancel(job.id, sources=[JobState.QUEUED])
            self._stores.withdrawn.discard(job.id)
            return True
        self._tries[job.id] += 1
        try:
            with self._stores.steps.at("prepare", f"has prepared job {job.id}", limit_s=_LONGEST_S):
                if not self._prepare(job):
                    self._tries[job.id] -= 1  # its files are being fetched: the attempt is not over
                    return True
        except SpeakingStopped:
            self._tries[job.id] -= 1  # cancelled, or the daemon stops
        except Exception as error:
            done = self._failures.handle(job, error, PREPARE, self._obstacle, attempt=self._tries[job.id])
            if done is Action.WAIT:
                self._tries[job.id] -= 1  # a wait is no attempt
            elif done is not Action.RETRY:
                self._tries[job.id] = 0
        else:
            self._tries[job.id] = 0
        self._tries = +self._tries  # without zeros
        return True

    def _prepare(self, job: Job) -> bool:
        """Prepare a job; False when its files have to be fetched first."""
        stores = self._stores
        work = stores.spool.open(job)
        spec, prepared = work.spec, work.prepared
        if spec.refusal is not None:
            raise from_reason(spec.refusal)
        if self._duplicates.serve(job, stores.settings.now, lambda: voice_of(spec, stores.settings.now.speech)):
            return True
        if prepared is None or _outdated(prepared, spec):
            disk_space.require(stores.spool.root, stores.settings.now.paths.min_free_mb)
            if self._fetcher.begin(spec, stores.spool.folder(job.id), job.tenant or ""):
                stores.ledger.set_stage(job.id, "fetching")
                return False
            stores.ledger.set_stage(job.id, "preparing")
            prepared = self._decode(spec)
            stores.spool.set_prepared(job.id, prepared)
            if stores.spool.spec(job.id) != spec:
                return True  # a late manifest has changed the job: prepare it again later
        require_face(prepared, spec)
        duration = prepared.sound.duration
        frames = frame_count(duration, spec.fps)
        stores.ledger.set_prepared(job.id, frames=frames, duration_ms=round(duration * 1000))
        log.info("job %s prepared: %.2f s, %d frames", job.id, float(duration), frames)
        return True

    def _obstacle(self, _blocked: Blocked) -> tuple[str, ReadState]:
        return PREPARE.name, self._room_and_packages

    def _room_and_packages(self) -> Hashable:
        """Cheap to compare, and different once there is room again or a package was installed."""
        floor_mb = self._stores.settings.now.paths.min_free_mb
        return disk_space.shortage(self._stores.spool.root, floor_mb) == "", packages()

    def _decode(self, spec: JobSpec) -> Prepared:
        folder, settings = self._stores.spool.folder(spec.id), self._stores.settings.now
        self._bring_image(spec, folder)
        self._bring_audio(spec, folder, settings.speech)
        drawn = folder / _THUMBNAIL
        try:
            return decode_inputs(spec, folder, limits=settings.intake, ffmpeg=self._ffmpeg, thumbnail=drawn)
        finally:
            self._stores.thumbnails.take(spec.id, drawn)  # also when the sound is at fault: people know the picture

    def _bring_image(self, spec: JobSpec, folder: Path) -> None:
        path = folder / IMAGE
        if path.exists():
            return
        if spec.image_url is None:
            raise MissingHalf(f"job {spec.id} has no picture")
        self._copy_upload(spec.image_url, path)

    def _bring_audio(self, spec: JobSpec, folder: Path, rules: Speech) -> None:
        path = folder / AUDIO
        if path.exists():
            return
        if spec.text is not None:
            part = path.with_suffix(".part")  # goes with the job's folder when the job is cancelled
            speak_text(spec, path, rules, lambda: self._stopping() or not part.exists())
        elif spec.audio_url is not None:
            self._copy_upload(spec.audio_url, path)
        else:
            raise MissingHalf(f"job {spec.id} has no sound")

    def _copy_upload(self, reference: str, path: Path) -> None:
        part = path.with_suffix(".part")
        uploads.copy(self._stores.settings.now.paths.state, reference, part)
        keep(part, path)


def _outdated(prepared: Prepared, spec: JobSpec) -> bool:
    """Has a manifest that came late changed what was prepared?"""
    video = prepared.video
    other = video is not None and (video.fps, video.mode) != (str(spec.fps), video_frames.read_mode(spec.options))
    reduced = prepared.picture.reduced and not may_reduce(spec)
    return other or reduced or prepared.pad_s != spec.pad_s or _faces_outdated(prepared, spec)


def _faces_outdated(prepared: Prepared, spec: JobSpec) -> bool:
    """Has the job another renderer or another choice of its face than when its picture was looked at?"""
    if prepared.video is not None or not find_faces.decides(spec):
        return False
    return prepared.faces is None or prepared.faces.choice != find_faces.choice_of(spec)
