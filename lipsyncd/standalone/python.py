"""What `import lipsyncd` offers for a render without a daemon: `render`, `frames` and `check`.

The keyword arguments are the options of `lipsyncd submit`. Settings come from the same files and variables as for the
commands, or from `config`. Errors are the classes of `lipsyncd.errors`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lipsyncd.errors import LipsyncdError, from_reason
from lipsyncd.inbox.submit import check_file, manifest_of, natural_name
from lipsyncd.jobs.faces import SeenFace
from lipsyncd.jobs.job import IMAGE
from lipsyncd.jobs.manifest import Manifest
from lipsyncd.jobs.prepared import Picture
from lipsyncd.media import examine, ffmpeg
from lipsyncd.prepare import decode_video
from lipsyncd.prepare.decode_picture import decode_picture
from lipsyncd.prepare.find_faces import find_faces
from lipsyncd.results.video_file import Video
from lipsyncd.settings import Settings, load
from lipsyncd.standalone.frames import frames_of
from lipsyncd.standalone.session import Report, Session
from lipsyncd.standalone.target import target_of

if TYPE_CHECKING:
    from lipsyncd.standalone.frames import Frame

Source: TypeAlias = str | os.PathLike[str]  # a file of this machine, or an http(s) address
Rate: TypeAlias = int | float | str | Fraction


def render(
    image: Source,
    audio: Source | None = None,
    *,
    out: Source | None = None,
    force: bool = False,
    text: str | None = None,
    voice: str | None = None,
    renderer: str | None = None,
    stitch: bool | None = None,
    resolution: int | None = None,
    fps: Rate | None = None,
    motion: str | None = None,
    av_offset_ms: int | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Report | None = None,
    config: Source | None = None,
) -> Video:
    """Make a talking video of a portrait and a voice, without a daemon.

    image, audio  files or addresses; a video may take the picture's place
    out           the MP4, or a folder for it; None: NAME.mp4 in the working folder, of the names of the inputs
    force         replace a file that is there
    text, voice   spoken in place of `audio`
    options       of the renderer
    progress      called with a `Progress` several times a second
    config        a settings file to use instead of the default ones

    All else that is None is decided by the settings. The video appears under its name whole or not at all. Raises the
    classes of `lipsyncd.errors`, such as `NoFaceFound`, `NameTaken`, `RendererNotInstalled`.
    """
    settings = _settings(config)
    given = _given(text, voice, renderer, stitch, resolution, fps, motion, av_offset_ms, options)
    manifest, name = _order(image, audio, given)
    target = target_of(None if out is None else Path(out), name)
    with Session(settings) as session:
        return session.video(manifest, name, target, force=force, report=progress or _ignore)


def frames(
    image: Source,
    audio: Source | None = None,
    *,
    text: str | None = None,
    voice: str | None = None,
    renderer: str | None = None,
    stitch: bool | None = None,
    resolution: int | None = None,
    fps: Rate | None = None,
    motion: str | None = None,
    av_offset_ms: int | None = None,
    options: Mapping[str, Any] | None = None,
    config: Source | None = None,
) -> Generator[Frame]:
    """The frames of that video, one after another as they are rendered: arrays (height, width, 3) uint8 RGB.

    There are ceil(duration x fps) of them. Nothing is rendered far ahead of what is read. Closing the generator, or
    leaving a `for` loop and dropping it, ends the render process. Arguments and errors are those of `render`.
    """
    settings = _settings(config)
    given = _given(text, voice, renderer, stitch, resolution, fps, motion, av_offset_ms, options)
    return frames_of(settings, *_order(image, audio, given))


@dataclass(frozen=True)
class Check:
    """What was seen in a picture.

    width, height  in pixels, upright
    faces          the largest first, in pixels of the picture
    chosen         the number of the face that would speak; None when none can
    fault          why none can; None with a chosen face
    warnings       what may look worse than expected
    """

    width: int
    height: int
    faces: tuple[SeenFace, ...]
    chosen: int | None
    fault: LipsyncdError | None
    warnings: tuple[str, ...]


def check(image: Source, *, config: Source | None = None) -> Check:
    """Look at a picture, or the first frame of a video, as a render would, without rendering anything.

    Raises why the file cannot be used at all: `MissingFile` and the Image* classes of `lipsyncd.errors`.
    """
    settings, path = _settings(config), Path(image)
    check_file(path, IMAGE, settings.intake)
    with tempfile.TemporaryDirectory(prefix="lipsyncd-") as scratch:
        folder = Path(scratch)
        shutil.copyfile(path, folder / IMAGE)
        picture = _decoded(folder, settings)
        seen = find_faces(folder, picture, group=True)
    fault = from_reason(seen.refusal) if seen.refusal else None
    return Check(picture.width, picture.height, seen.seen, seen.chosen, fault, picture.notes)


def _decoded(folder: Path, settings: Settings) -> Picture:
    file, limits = folder / IMAGE, settings.intake
    with file.open("rb") as opened:
        kind = examine(opened.fileno(), file.stat().st_size).kind
    if kind is not None and kind.is_video:
        program = ffmpeg.find(settings.render.ffmpeg)
        side = limits.min_side_px
        return decode_video.screen(
            file, kind, folder, ffmpeg=program, fps=settings.output.rate, frames=1, min_side=side
        ).picture
    return decode_picture(
        file,
        folder,
        background=limits.background_rgb,
        max_megapixels=limits.max_megapixels,
        max_photo_megapixels=limits.max_photo_megapixels,
        min_side=limits.min_side_px,
    )


def _settings(config: Source | None) -> Settings:
    return load(None if config is None else Path(config))


def _given(
    text: str | None,
    voice: str | None,
    renderer: str | None,
    stitch: bool | None,
    resolution: int | None,
    fps: Rate | None,
    motion: str | None,
    av_offset_ms: int | None,
    options: Mapping[str, Any] | None,
) -> dict[str, Any]:
    fields = {"text": text, "voice": voice, "renderer": renderer, "stitch": stitch, "resolution": resolution}
    return {**fields, "fps": fps, "motion": motion, "av_offset_ms": av_offset_ms, "options": options or {}}


def _order(image: Source, audio: Source | None, given: Mapping[str, Any]) -> tuple[Manifest, str]:
    """The manifest of a call, and the name of its video. Raises `UsageError`."""
    manifest = manifest_of(image=os.fspath(image), audio=None if audio is None else os.fspath(audio), **given)
    return manifest, natural_name(manifest)


def _ignore(_: object) -> None:
    pass
