"""Decode a user's picture into raw RGB, once, in the jail.

The jailed process (`picture_child`) gets one file to read and one empty file to fill. It has read hostile bytes, so its
answer is checked against the file that it wrote.
"""

from __future__ import annotations

import importlib.util
import json
import os
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
from lipsyncd.prepare.decoder_process import as_message, crash, interpreter, new_files
from lipsyncd.sandbox.jail import Completed, ResourceLimits, run_jailed

FILE = "picture.rgb"
_PACKAGE = Path(__file__).resolve().parents[1]
_ERRORS = (ImageNotRecognised, ImageUndecodable, ImageTooLarge, ImageTooSmall, ImageAnimated)
_MOST_NOTES = 16


def decode_picture(
    source: Path,
    target_dir: Path,
    *,
    background: tuple[int, int, int],
    max_megapixels: float = media.MAX_MEGAPIXELS,
    max_photo_megapixels: float = media.MAX_PHOTO_MEGAPIXELS,
    min_side: int = media.MIN_SIDE,
    may_reduce: bool = False,
    timeout_s: float = 60,
) -> Picture:
    """Decode a picture into `target_dir/picture.rgb`, turned upright by its EXIF data, in sRGB.

    background            RGB, 0 to 255, shown through transparent parts
    may_reduce            decode a JPEG of more than 40 megapixels at half its size
    max_photo_megapixels  for JPEG, HEIC and AVIF; the other limit holds for the other kinds

    Raises the Image* errors of `errors`, and `JailFailed` when the machine failed rather than the picture. Then no file
    is left behind.
    """
    with new_files(target_dir / FILE) as (file,):
        request = {
            "source": os.fspath(source),
            "target": os.fspath(file),
            "background": background,
            "max_megapixels": max_megapixels,
            "max_photo_megapixels": max_photo_megapixels,
            "min_side": min_side,
            "may_reduce": may_reduce,
        }
        ended = _run_picture(request, source, file, timeout_s)
        if ended.timed_out:
            raise ImageUndecodable(f"the picture was not decoded within {timeout_s:g} s")
        if ended.returncode:
            raise crash(ended, ImageUndecodable, "picture")
        return _checked_picture(_answer(ended), file)


def _run_picture(request: dict[str, Any], source: Path, target: Path, timeout_s: float) -> Completed:
    site, libraries = _libraries("PIL", "pillow.libs", package="pillow")
    heif_site, heif_libraries = _libraries("pi_heif", "_pi_heif.*", "pi_heif.libs", package="pi-heif")
    return run_jailed(
        [interpreter(), "-P", "-S", "-m", "lipsyncd.prepare.picture_child", json.dumps(request)],
        readable=[source, _PACKAGE, *libraries, *heif_libraries],
        writable=[target],
        python_path=list(dict.fromkeys((_PACKAGE.parent, site, heif_site))),
        limits=ResourceLimits(
            cpu_s=2 * int(timeout_s) + 1,
            file_bytes=_picture_bytes(max(request["max_megapixels"], request["max_photo_megapixels"])),
        ),
        timeout_s=timeout_s,
    )


def _libraries(module: str, *beside: str, package: str) -> tuple[Path, list[Path]]:
    """The folder of an installed module, and what the jail has to read there. Raises `JailFailed` without it."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise JailFailed(f"{package} is not installed", remedy=f"pip install {package}")
    site = Path(found.origin).resolve().parent.parent
    return site, [site / module, *(path for pattern in beside for path in site.glob(pattern))]


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
