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
    min_side: int = media.MIN_SIDE,
    timeout_s: float = 60,
) -> Picture:
    """Decode a PNG, JPEG or WebP into `target_dir/picture.rgb`, turned upright by its EXIF data, in sRGB.

    background  RGB, 0 to 255, shown through transparent parts

    Raises the Image* errors of `errors`, and `JailFailed` when the machine failed rather than the picture. Then no file
    is left behind.
    """
    with new_files(target_dir / FILE) as (file,):
        request = {
            "source": os.fspath(source),
            "target": os.fspath(file),
            "background": background,
            "max_megapixels": max_megapixels,
            "min_side": min_side,
        }
        ended = _run_picture(request, source, file, timeout_s)
        if ended.timed_out:
            raise ImageUndecodable(f"the picture was not decoded within {timeout_s:g} s")
        if ended.returncode:
            raise crash(ended, ImageUndecodable, "picture")
        return _checked_picture(_answer(ended), file)


def _run_picture(request: dict[str, Any], source: Path, target: Path, timeout_s: float) -> Completed:
    pillow = importlib.util.find_spec("PIL")
    if pillow is None or pillow.origin is None:
        raise JailFailed("Pillow is not installed", remedy="pip install pillow")
    site = Path(pillow.origin).resolve().parent.parent
    libraries = [path for path in (site / "PIL", site / "pillow.libs") if path.exists()]
    return run_jailed(
        [interpreter(), "-P", "-S", "-m", "lipsyncd.prepare.picture_child", json.dumps(request)],
        readable=[source, _PACKAGE, *libraries],
        writable=[target],
        python_path=[_PACKAGE.parent, site],
        limits=ResourceLimits(cpu_s=2 * int(timeout_s) + 1, file_bytes=_picture_bytes(request["max_megapixels"])),
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
    return Picture(file.name, width, height, tuple(as_message(str(note)) for note in notes[:_MOST_NOTES]))
