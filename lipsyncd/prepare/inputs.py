"""Turn the files of one job into what a renderer reads: raw picture and raw sound, all decoded in the jail.

The daemon's preparer and a render without a daemon call the same functions. They work in the folder of one job, where
the inputs lie as `image` and `audio`, and know no ledger and no queue.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lipsyncd import media
from lipsyncd.errors import ImageTooLarge, from_reason
from lipsyncd.jobs.faces import Faces
from lipsyncd.jobs.job import AUDIO, IMAGE, JobSpec
from lipsyncd.jobs.manifest import classify
from lipsyncd.jobs.prepared import Picture, Prepared, Sound, Video, frame_count
from lipsyncd.media import check_input, video_frames
from lipsyncd.prepare import decode_video, find_faces, speech
from lipsyncd.prepare.decode_picture import FILE as PICTURE_FILE
from lipsyncd.prepare.decode_picture import decode_picture, draw_thumbnail
from lipsyncd.prepare.decode_sound import SOUND_FILE, SPEECH_FILE, decode_sound, padded, shortened
from lipsyncd.settings import Intake, Speech
from lipsyncd.storage.files import keep, read_json, write_json

_SPOKEN = "spoken.json"  # beside the sound: which voice spoke it
_MOST_WHOLE_PIXELS = 35_000_000  # the largest frame of H.264, level 6.2, has 139,264 blocks of 16 x 16


def decode_inputs(
    spec: JobSpec, folder: Path, *, limits: Intake, ffmpeg: Path, thumbnail: Path | None = None
) -> Prepared:
    """Decode `image` and `audio` of a job's folder into it, and look for the face of a still.

    thumbnail  where to draw a small JPEG of the picture, or of the video's first frame; it may be missing afterwards

    Raises the reason why a file cannot be used, and `JailFailed` when the machine failed. A still without a face that
    can speak is no failure here: `require_face` judges that.
    """
    image, audio = folder / IMAGE, folder / AUDIO
    seen, heard = _examined(image), _examined(audio)
    fault = check_input.picture_fault(seen, _name(spec, IMAGE), size_bytes=image.stat().st_size, limits=limits)
    fault = fault or check_input.sound_fault(heard, _name(spec, AUDIO), size_bytes=audio.stat().st_size)
    if fault is not None:
        raise fault
    shown, kind = seen.kind, heard.kind
    assert shown is not None  # otherwise it is a fault
    assert kind is not None
    if shown.is_image:
        _check_whole(spec, seen)
        # Both at the same time: a face takes longer than the sound. The fault of the sound comes first.
        try:
            with ThreadPoolExecutor(1, "picture") as beside:
                looking = beside.submit(_picture_and_faces, spec, folder, limits, thumbnail)
                sound = _sound(spec, kind, folder, limits, ffmpeg)
            picture, faces = looking.result()
        except BaseException:
            for made in (PICTURE_FILE, SPEECH_FILE, SOUND_FILE):  # on a full disk it is the room for a next try
                (folder / made).unlink(missing_ok=True)
            raise
        return _with_voice(spec, folder, Prepared(picture, sound, pad_s=spec.pad_s, faces=faces))
    sound = _sound(spec, kind, folder, limits, ffmpeg)
    video = _with_video(spec, image, shown, sound, ffmpeg=ffmpeg, min_side=limits.min_side_px)
    if thumbnail is not None:
        draw_thumbnail(video.picture, folder, thumbnail)
    return _with_voice(spec, folder, video)


def require_face(prepared: Prepared, spec: JobSpec) -> None:
    """Raise the reason why no face of the still can speak, where the search for faces decides about it."""
    if prepared.faces is not None and prepared.faces.refusal and find_faces.decides(spec):
        raise from_reason(prepared.faces.refusal)


def speak_text(spec: JobSpec, path: Path, rules: Speech, unwanted: Callable[[], bool] = lambda: False) -> None:
    """Speak the text of a job into a WAV at `path`, and note beside it which voice spoke.

    unwanted  asked all the time; True ends the speaking

    Raises `SpeechNotInstalled`, `SpeechFailed`, `VoiceUnusable`, `SpeakingStopped`.
    """
    assert spec.text is not None
    part = path.with_suffix(".part")
    spoken = speak_as(rules, spec.text, part, voice=spec.voice, ssml=spec.ssml, unwanted=unwanted)
    write_json(path.parent / _SPOKEN, {"voice": spoken.identity, "notes": spoken.notes})
    keep(part, path)


def speak_as(
    rules: Speech,
    text: str,
    target: Path,
    *,
    voice: str | None = None,
    ssml: bool = False,
    unwanted: Callable[[], bool] = lambda: False,
) -> speech.Spoken:
    """Speak a text as the settings say: with the operator's program, or with a voice. Raises as `speak_text`."""
    speak = partial(speech.speak_with, rules.command) if rules.command else partial(speech.speak, folder=rules.voices)
    return speak(
        text,
        target,
        voice=voice or rules.voice,
        words_per_minute=rules.words_per_minute,
        ssml=ssml,
        timeout_s=rules.timeout_s,
        unwanted=unwanted,
    )


def voice_of(spec: JobSpec, rules: Speech) -> str:
    """Equal for jobs whose text would sound the same now; "" for a job with a sound.

    Raises `SpeechFailed` or `VoiceUnusable` when its voice is missing.
    """
    if spec.text is None:
        return ""
    wanted = spec.voice or rules.voice
    if rules.command:
        return speech.identity_with(rules.command, wanted, rules.words_per_minute)
    return speech.identity(wanted, rules.words_per_minute, rules.voices)


def may_reduce(spec: JobSpec) -> bool:
    """Is a very large JPEG needed at half its size only? With `parity` every pixel is the original's."""
    return not spec.stitch and not spec.options.get("parity")


def _sound(spec: JobSpec, kind: media.Kind, folder: Path, limits: Intake, ffmpeg: Path) -> Sound:
    least, most = limits.min_audio_s, limits.max_audio_s
    sound = decode_sound(folder / AUDIO, kind, folder, ffmpeg=ffmpeg, min_s=least, max_s=most)
    return padded(sound, folder, spec.pad_s) if spec.pad_s else sound


def _picture_and_faces(
    spec: JobSpec, folder: Path, limits: Intake, thumbnail: Path | None
) -> tuple[Picture, Faces | None]:
    picture = decode_picture(
        folder / IMAGE,
        folder,
        background=limits.background_rgb,
        max_megapixels=limits.max_megapixels,
        max_photo_megapixels=limits.max_photo_megapixels,
        min_side=limits.min_side_px,
        may_reduce=may_reduce(spec),
        thumbnail=thumbnail,
    )
    if not find_faces.decides(spec):
        return picture, None
    return picture, find_faces.find_faces(folder, picture, find_faces.choice_of(spec))


def _with_video(spec: JobSpec, file: Path, kind: media.Kind, sound: Sound, *, ffmpeg: Path, min_side: int) -> Prepared:
    """A video in place of a picture; if the job requests it, the sound is cut to its length."""
    mode, folder = video_frames.read_mode(spec.options), file.parent
    wanted = frame_count(sound.duration, spec.fps)
    seen = decode_video.screen(file, kind, folder, ffmpeg=ffmpeg, fps=spec.fps, frames=wanted, min_side=min_side)
    notes: tuple[str, ...] = ()
    if seen.frames < wanted and mode == video_frames.CUT:
        whole_s, sound = float(sound.duration), shortened(sound, folder, seen.frames / spec.fps)
        notes = (f"the sound was cut from {whole_s:.2f} to {float(sound.duration):.2f} s, where the video ends",)
    elif seen.frames < wanted:
        notes = (f"the video has {seen.frames} of {wanted} frames, it goes on by {video_frames.OPTION} = {mode}",)
    size = (seen.picture.width, seen.picture.height)
    video = Video(file.name, kind.value, *size, str(spec.fps), seen.frames, mode)
    return Prepared(seen.picture, sound, notes, spec.pad_s, video)


def _with_voice(spec: JobSpec, folder: Path, prepared: Prepared) -> Prepared:
    """What `speak_text` noted, for the sidecar and for the comparison of jobs."""
    spoken = None if spec.text is None else read_json(folder / _SPOKEN)
    if spoken is None:
        return prepared
    return replace(prepared, voice=str(spoken["voice"]), notes=(*map(str, spoken["notes"]), *prepared.notes))


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


def _name(spec: JobSpec, role: str) -> str:
    """The name of that input as the user knows it; of an address the end of its path. "" for uploads and text."""
    name = next((source.name for source in spec.sources if source.role == role), None)
    url = (spec.image_url if role == IMAGE else spec.audio_url) or ""
    return name or (unquote(urlsplit(url).path).rpartition("/")[2] if classify(url) == "url" else "")
