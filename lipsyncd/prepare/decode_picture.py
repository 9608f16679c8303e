"""Decode a user's picture into raw RGB, once, in the jail, and draw a thumbnail of it there.

The jailed process (`picture_child`) gets one file to read and empty files to fill. It has read hostile bytes, so its
answer is checked against the files that it wrote.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lipsyncd import media
from lipsyncd.errors import (
    ImageAnimated,
    ImageNotRecognised,
    ImageTooLarge,
    ImageTooSmall,
    ImageUndecodable,
    JailFailed,
    from_reason,
)
from lipsyncd.jobs.prepared import Picture
from lipsyncd.prepare.decoder_process import as_message, crash, installed, interpreter, new_files
from lipsyncd.sandbox.jail import Completed, ResourceLimits, run_jailed

FILE = "picture.rgb"
_PACKAGE = Path(__file__).resolve().parents[1]
_ERRORS = (ImageNotRecognised, ImageUndecodable, ImageTooLarge, ImageTooSmall, ImageAnimated)
_MOST_NOTES = 16
_MOST_SMALL_SIDE, _MOST_SMALL_BYTES = 320, 256 << 10  # of a thumbnail; noise takes a third of these bytes


def decode_picture(
    source: Path,
    target_dir: Path,
    *,
    background: tuple[int, int, int],
    max_megapixels: float = media.MAX_MEGAPIXELS,
    max_photo_megapixels: float = media.MAX_PHOTO_MEGAPIXELS,
    min_side: int = media.MIN_SIDE,
    may_reduce: bool = False,
    thumbnail: Path | None = None,
    timeout_s: float = 60,
) -> Picture:
    """Decode a picture into `target_dir/picture.rgb`, turned upright by its EXIF data, in sRGB.

    background            RGB, 0 to 255, shown through transparent parts
    may_reduce            decode a JPEG of more than 40 megapixels at half its size
    max_photo_megapixels  for JPEG, HEIC and AVIF; the other limit holds for the other kinds
    thumbnail             where to draw a small JPEG of the picture; if that fails, the picture is decoded without one

    Raises the Image* errors of `errors`, and `JailFailed` when the machine failed rather than the picture. Then no file
    is left behind.
    """
    with new_files(target_dir / FILE, *_given(thumbnail)) as (file, *small):
        request = {
            "source": os.fspath(source),
            "target": os.fspath(file),
            "thumbnail": os.fspath(thumbnail) if thumbnail else "",
            "background": background,
            "max_megapixels": max_megapixels,
            "max_photo_megapixels": max_photo_megapixels,
            "min_side": min_side,
            "may_reduce": may_reduce,
        }
        most = _picture_bytes(max(max_megapixels, max_photo_megapixels))
        ended = _run_child(request, [source], [file, *small], most, timeout_s)
        if ended.timed_out:
            raise ImageUndecodable(f"the picture was not decoded within {timeout_s:g} s")
        if ended.returncode:
            raise crash(ended, ImageUndecodable, "picture")
        picture = _checked_picture(_answer(ended), file)
    _keep_thumbnail(thumbnail)
    return picture


def draw_thumbnail(picture: Picture, folder: Path, thumbnail: Path, *, timeout_s: float = 60) -> None:
    """Draw a small JPEG of the picture that was decoded into `folder`, such as the first frame of a video.

    There is none where that fails: nothing depends on it.
    """
    source, size = folder / picture.file, {"width": picture.width, "height": picture.height}
    request = {"target": os.fspath(source), "thumbnail": os.fspath(thumbnail), **size}
    with contextlib.suppress(JailFailed, OSError), new_files(thumbnail):
        _run_child(request, [source], [thumbnail], _MOST_SMALL_BYTES, timeout_s)
    _keep_thumbnail(thumbnail)


def _given(thumbnail: Path | None) -> list[Path]:
    return [] if thumbnail is None else [thumbnail]


def _keep_thumbnail(file: Path | None) -> None:
    """Remove a thumbnail that is none. Browsers are to open it, and its writer has decoded hostile bytes before."""
    if file is None or not file.exists():
        return
    size_bytes = file.stat().st_size
    with file.open("rb") as opened:
        seen = media.examine(opened.fileno(), size_bytes)
    good = seen.kind is media.Kind.JPEG and seen.completeness is media.Completeness.COMPLETE
    if not good or size_bytes > _MOST_SMALL_BYTES or not 0 < max(seen.width, seen.height) <= _MOST_SMALL_SIDE:
        file.unlink()


def _run_child(
    request: dict[str, Any], readable: Sequence[Path], writable: Sequence[Path], most_bytes: int, timeout_s: float
) -> Completed:
    """Run the jailed decoder. `most_bytes` of each file that it writes."""
    site, libraries = installed("PIL", "pillow.libs", package="pillow")
    heif_site, heif_libraries = installed("pi_heif", "_pi_heif.*", "pi_heif.libs", package="pi-heif")
    return run_jailed(
        [interpreter(), "-P", "-S", "-m", "lipsyncd.prepare.picture_child", json.dumps(request)],
        readable=[*readable, _PACKAGE, *libraries, *heif_libraries],
        writable=writable,
        python_path=list(dict.fromkeys((_PACKAGE.parent, site, heif_site))),
        limits=ResourceLimits(cpu_s=2 * int(timeout_s) + 1, file_bytes=most_bytes),
        timeout_s=timeout_s,
    )


def _picture_bytes(max_megapixels: float) -> int:
    return int(max_megapixels * 3_000_000) + 1


def _answer(ended: Completed) -> dict[str, Any]:
    """The answer of the jailed decoder. It read hostile bytes, so its answer may be hostile too."""
    try:
        answer = json.loads(ended.stdout)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise ImageUndecodable("the picture's decoder gave no answer")
    reason = answer.get("error")
    if not isinstance(reason, dict):
        return answer
    error = from_reason({name: as_message(str(text)) for name, text in reason.items()})
    if not isinstance(error, _ERRORS):
        raise ImageUndecodable("the picture's decoder gave no answer")
    raise error


def _checked_picture(answer: dict[str, Any], file: Path) -> Picture:
    width, height, notes = answer.get("width"), answer.get("height"), answer.get("notes")
    if not isinstance(width, int) or not isinstance(height, int) or not isinstance(notes, list):
        raise ImageUndecodable("the picture's decoder gave no answer")
    size_bytes = file.stat().st_size
    if width < 1 or height < 1 or size_bytes != width * height * 3:
        raise ImageUndecodable(f"the picture's decoder wrote {size_bytes} bytes for {width} x {height} pixels")
    shown = tuple(as_message(str(note)) for note in notes[:_MOST_NOTES])
    return Picture(file.name, width, height, shown, reduced=answer.get("reduced") is True)
