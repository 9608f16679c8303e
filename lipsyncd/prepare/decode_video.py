"""Decode a video once, in the jail, before a job is queued: does it decode, how large is it, how long is it.

Its frames stay in the file that was dropped; a render child reads them from a jailed ffmpeg when it needs them. The
first one is kept here, so that every renderer has a picture.

Owns the meaning of a scan. Leaves the command line to `media.video_frames`, the meaning of a decoder's failure to
`decoder_process`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from lipsyncd import media
from lipsyncd.errors import ImageNotRecognised, ImageUndecodable
from lipsyncd.jobs.prepared import Picture
from lipsyncd.media import Kind, video_frames, videos
from lipsyncd.media.content import Content
from lipsyncd.prepare import decode_picture
from lipsyncd.prepare.decoder_process import complaint, crash, new_files
from lipsyncd.processes import exit_text
from lipsyncd.sandbox.jail import Completed, ResourceLimits, run_jailed

_REPORT_LINE_BYTES = 128  # for each frame, at most
_HEADER_LINES = 32  # more than a report has before its first frame
_FIRST_FRAME_BYTES = int(4 * 3 * video_frames.MAX_MEGAPIXELS * 1_000_000)  # squaring its pixels may make it larger


@dataclass(frozen=True)
class Footage:
    """`picture` is the first frame, upright, in square pixels; `frames` are all, or as many as were wanted."""

    picture: Picture
    frames: int


def screen(
    source: Path,
    kind: Kind,
    target_dir: Path,
    *,
    ffmpeg: Path,
    fps: Fraction,
    frames: int,
    min_side: int = media.MIN_SIDE,
    timeout_s: float = 600,
) -> Footage:
    """Decode an MP4 or WebM up to `frames` frames at `fps`, and write its first one to `target_dir/picture.rgb`.

    Raises `ImageNotRecognised`, `ImageTooSmall`, `ImageTooLarge`, `ImageUndecodable`, and `JailFailed` when the machine
    failed rather than the video. Then no file is left behind.
    """
    with source.open("rb") as file:
        found = media.examine(file.fileno(), source.stat().st_size)
    if found.kind is not kind or not kind.is_video:
        raise ImageNotRecognised("the video is no MP4, MOV or WebM")
    if found.width and found.height:
        media.check_image_size(found.width, found.height, min_side=min_side, max_megapixels=video_frames.MAX_MEGAPIXELS)
    with new_files(target_dir / decode_picture.FILE, target_dir / "frames.txt") as (picture, report):
        ended = run_jailed(
            video_frames.scan_command(ffmpeg, source, kind, fps=fps, frames=frames, report=report, picture=picture),
            readable=[source],
            writable=[picture, report],
            limits=ResourceLimits(
                cpu_s=4 * int(timeout_s) + 1, file_bytes=_FIRST_FRAME_BYTES + frames * _REPORT_LINE_BYTES
            ),
            timeout_s=timeout_s,
        )
        seen = _judged(ended, picture, _text(report, frames), timeout_s)
        if seen.frames > frames:
            raise ImageUndecodable(f"the video's decoder reported {seen.frames} frames of {frames}")
        media.check_image_size(
            seen.picture.width, seen.picture.height, min_side=min_side, max_megapixels=video_frames.MAX_MEGAPIXELS
        )
        report.unlink()
    return replace(seen, picture=replace(seen.picture, notes=(*seen.picture.notes, *_warnings(source, kind))))


def _warnings(source: Path, kind: Kind) -> tuple[str, ...]:
    if kind is not Kind.MP4:
        return ()
    with source.open("rb") as file:
        hdr = videos.is_hdr(Content(file.fileno(), source.stat().st_size))
    return ("the video is HDR; its colours are shown as they are stored and may look pale",) if hdr else ()


def _text(report: Path, frames: int) -> str:
    """A report as long as one of `frames` frames can be. Hostile bytes were decoded, so it may hold anything."""
    with report.open("rb") as file:
        return file.read((frames + _HEADER_LINES) * _REPORT_LINE_BYTES).decode("ascii", "replace")


def _judged(ended: Completed, picture: Path, report: str, timeout_s: float) -> Footage:
    if ended.timed_out:
        raise ImageUndecodable(
            f"the video was not decoded within {timeout_s:g} s", remedy="shorten it, or scale it down"
        )
    if ended.returncode < 0:
        raise crash(ended, ImageUndecodable, "video")
    fault = complaint(ended.stderr_tail)
    width, height, frames = video_frames.read_report(report)
    if not frames or picture.stat().st_size != width * height * 3:
        raise ImageUndecodable(f"the video cannot be decoded: {fault or f'ffmpeg {exit_text(ended.returncode)}'}")
    notes = (f"damaged parts of the video were left out: {fault}",) if fault else ()
    return Footage(Picture(picture.name, width, height, notes), frames)
