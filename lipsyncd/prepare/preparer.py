"""Prepare accepted jobs: decode every input to a raw picture and raw sound, in the jail.

Inputs that a job only names are fetched (`fetcher`) or spoken first. A render child later reads only what the jail
wrote.
Runs in one thread, while others render. The queue's order decides which job is next.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable
from functools import partial
from pathlib import Path

from lipsyncd import media
from lipsyncd.errors import (
    AudioNotRecognised,
    Blocked,
    ImageNotRecognised,
    ImageTooLarge,
    MissingHalf,
    from_reason,
)
from lipsyncd.jobs.blocked import ReadState, packages
from lipsyncd.jobs.job import Job, JobSpec
from lipsyncd.jobs.prepared import Prepared, Sound, Video, frame_count
from lipsyncd.jobs.retry import Action
from lipsyncd.media import video_frames
from lipsyncd.prepare import decode_video, speech
from lipsyncd.prepare.decode_picture import decode_picture
from lipsyncd.prepare.decode_sound import decode_sound, padded, shortened
from lipsyncd.prepare.fetcher import Fetcher, keep
from lipsyncd.results.duplicates import Duplicates
from lipsyncd.results.failures import PREPARE, Failures
from lipsyncd.results.finish import Finisher
from lipsyncd.results.publish import Publisher
from lipsyncd.results.stores import Stores
from lipsyncd.storage import disk_space, uploads

log = logging.getLogger(__name__)

_MOST_WHOLE_PIXELS = 35_000_000  # the largest frame of H.264, level 6.2, has 139,264 blocks of 16 x 16
_LONGEST_S = 1800.0  # each decoder and speaker has a limit of its own, far below


class Preparer:
    """Prepares the jobs of one daemon."""

    def __init__(
        self,
        stores: Stores,
        finisher: Finisher,
        failures: Failures,
        publisher: Publisher,
        ffmpeg: Path,
        fetcher: Fetcher,
    ) -> None:
        self._stores = stores
        self._fetcher = fetcher
        self._failures = failures
        self._ffmpeg = ffmpeg
        self._duplicates = Duplicates(stores, finisher, publisher)
        self._tries: Counter[str] = Counter()

    def run_once(self) -> bool:
        """Prepare the next job that is due; False when there is none. Raises `LedgerUnavailable`."""
        job = self._stores.ledger.next_to_prepare(self._fetcher.under_way)
        if job is None:
            return False
        self._tries[job.id] += 1
        try:
            with self._stores.steps.at("prepare", f"has prepared job {job.id}", limit_s=_LONGEST_S):
                if not self._prepare(job):
                    self._tries[job.id] -= 1  # its files are being fetched: the attempt is not over
                    return True
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
        if self._duplicates.serve(job, stores.settings.now):
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
        folder, limits = self._stores.spool.folder(spec.id), self._stores.settings.now.intake
        image, audio = self._image(spec, folder), self._audio(spec, folder)
        seen = _examined(image)
        shown = seen.kind
        if shown is None or not (shown.is_image or shown.is_video):
            raise ImageNotRecognised(f"{_called(spec, 'image')} is {seen.other or 'no picture or video that is taken'}")
        if shown.is_image:
            _check_whole(spec, seen)
        kind = _examined(audio).kind
        if kind is None or not kind.is_audio:
            raise AudioNotRecognised(f"{_called(spec, 'audio')} is no sound that we know by its content")
        sound = decode_sound(
            audio, kind, folder, ffmpeg=self._ffmpeg, min_s=limits.min_audio_s, max_s=limits.max_audio_s
        )
        if spec.pad_s:
            sound = padded(sound, folder, spec.pad_s)
        if shown.is_video:
            return self._with_video(spec, image, shown, sound)
        picture = decode_picture(
            image,
            folder,
            background=limits.background_rgb,
            max_megapixels=limits.max_megapixels,
            max_photo_megapixels=limits.max_photo_megapixels,
            min_side=limits.min_side_px,
            may_reduce=_may_reduce(spec),
        )
        return Prepared(picture, sound, pad_s=spec.pad_s)

    def _with_video(self, spec: JobSpec, file: Path, kind: media.Kind, sound: Sound) -> Prepared:
        """A video in place of a picture; if the job requests it, the sound is cut to its length."""
        mode = video_frames.read_mode(spec.options)
        wanted = frame_count(sound.duration, spec.fps)
        folder, least = self._stores.spool.folder(spec.id), self._stores.settings.now.intake.min_side_px
        seen = decode_video.screen(file, kind, folder, ffmpeg=self._ffmpeg, fps=spec.fps, frames=wanted, min_side=least)
        notes: tuple[str, ...] = ()
        if seen.frames < wanted and mode == video_frames.CUT:
            whole_s, sound = float(sound.duration), shortened(sound, folder, seen.frames / spec.fps)
            notes = (f"the sound was cut from {whole_s:.2f} to {float(sound.duration):.2f} s, where the video ends",)
        elif seen.frames < wanted:
            notes = (f"the video has {seen.frames} of {wanted} frames, it goes on by {video_frames.OPTION} = {mode}",)
        size = (seen.picture.width, seen.picture.height)
        video = Video(file.name, kind.value, *size, str(spec.fps), seen.frames, mode)
        return Prepared(seen.picture, sound, notes, spec.pad_s, video)

    def _image(self, spec: JobSpec, folder: Path) -> Path:
        path = folder / "image"
        if not path.exists():
            if spec.image_url is None:
                raise MissingHalf(f"job {spec.id} has no picture")
            self._copy_upload(spec.image_url, path)
        return path

    def _audio(self, spec: JobSpec, folder: Path) -> Path:
        path = folder / "audio"
        if path.exists():
            return path
        if spec.text is not None:
            self._speak(spec.text, spec, path)
        elif spec.audio_url is not None:
            self._copy_upload(spec.audio_url, path)
        else:
            raise MissingHalf(f"job {spec.id} has no sound")
        return path

    def _speak(self, text: str, spec: JobSpec, path: Path) -> None:
        rules = self._stores.settings.now.speech
        part = path.with_suffix(".part")
        speak = partial(speech.speak_with, rules.command) if rules.command else speech.speak
        speak(
            text,
            part,
            voice=spec.voice or rules.voice,
            words_per_minute=rules.words_per_minute,
            ssml=spec.ssml,
            timeout_s=rules.timeout_s,
        )
        keep(part, path)

    def _copy_upload(self, reference: str, path: Path) -> None:
        part = path.with_suffix(".part")
        uploads.copy(self._stores.settings.now.paths.state, reference, part)
        keep(part, path)


def _outdated(prepared: Prepared, spec: JobSpec) -> bool:
    """Has a manifest that came late changed what was prepared?"""
    video = prepared.video
    other = video is not None and (video.fps, video.mode) != (str(spec.fps), video_frames.read_mode(spec.options))
    reduced = prepared.picture.reduced and not _may_reduce(spec)
    return other or reduced or prepared.pad_s != spec.pad_s


def _may_reduce(spec: JobSpec) -> bool:
    """Is a very large JPEG needed at half its size only? With `parity` every pixel is the original's."""
    return not spec.stitch and not spec.options.get("parity")


def _check_whole(spec: JobSpec, shown: media.Structure) -> None:
    """Raise `ImageTooLarge` for a picture that cannot be shown as a whole: H.264 has no larger frames."""
    if spec.stitch and shown.width * shown.height > _MOST_WHOLE_PIXELS:
        raise ImageTooLarge(
            f"the picture has {shown.width} x {shown.height} pixels, and a video with stitch = true has at most "
            f"{_MOST_WHOLE_PIXELS / 1e6:.0f} megapixels",
            remedy="use stitch = false, which shows the square around the face, or scale the picture down",
        )


def _examined(path: Path) -> media.Structure:
    with path.open("rb") as file:
        return media.examine(file.fileno(), path.stat().st_size)


def _called(spec: JobSpec, role: str) -> str:
    """The name under which the user knows that input; an address without its query, which may hold a secret."""
    name = next((s.name for s in spec.sources if s.role == role), None)
    url = (spec.image_url if role == "image" else spec.audio_url) or ""
    return repr(name or url.partition("?")[0] or role)
