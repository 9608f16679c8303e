"""Whether a file can be the picture or the sound of a job, as far as its structure shows: no pixel is decoded here.

The folder, `lipsyncd submit`, REST and fetched addresses all ask here before a decoder sees the file. So the same bytes
get the same answer, in the same words, wherever they come from.
"""

from __future__ import annotations

from typing import Protocol

from lipsyncd.errors import AudioNotRecognised, AudioUndecodable, ImageNotRecognised, ImageUndecodable, InputError
from lipsyncd.media import Completeness, Kind, Structure, check_image_size, most_megapixels, video_frames


class PictureLimits(Protocol):
    """The settings of the section `intake` of the same names."""

    @property
    def min_side_px(self) -> int: ...
    @property
    def max_megapixels(self) -> int: ...
    @property
    def max_photo_megapixels(self) -> int: ...


def picture_fault(structure: Structure, name: str, *, size_bytes: int, limits: PictureLimits) -> InputError | None:
    """The reason why a file cannot be the picture of a job, or the video in its place; None when none is known.

    name  under which the user knows the file, without its folder; "" for none
    """
    called, kind = _called("picture", name), structure.kind
    if kind is None or not (kind.is_image or kind.is_video):
        return ImageNotRecognised(f"{called} {_seen(structure, size_bytes)}")
    if structure.completeness is Completeness.INVALID:
        return ImageUndecodable(f"{called} cannot be decoded: {structure.note}")
    if structure.completeness is Completeness.TRUNCATED:
        return ImageUndecodable(f"{called} is cut short: {structure.note}")
    if not (structure.width and structure.height):
        return None
    usual = video_frames.MAX_MEGAPIXELS if kind.is_video else limits.max_megapixels
    most = most_megapixels(kind, usual=usual, photo=limits.max_photo_megapixels)
    try:
        check_image_size(structure.width, structure.height, min_side=limits.min_side_px, max_megapixels=most)
    except InputError as wrong_size:
        return wrong_size
    return None


def sound_fault(structure: Structure, name: str, *, size_bytes: int) -> InputError | None:
    """The reason why a file cannot be the sound of a job; None when none is known. Of a cut sound the rest is used."""
    called = _called("sound", name)
    if structure.kind is None or not structure.kind.is_audio:
        return AudioNotRecognised(f"{called} {_seen(structure, size_bytes)}")
    if structure.completeness is Completeness.INVALID:
        return AudioUndecodable(f"{called} cannot be decoded: {structure.note}")
    return None


def _called(role: str, name: str) -> str:
    return f"the {role} {name!r}" if name else f"the {role}"


def _seen(structure: Structure, size_bytes: int) -> str:
    """What a file is that cannot be used in its role."""
    if structure.kind is not None:
        return f"is {_described(structure.kind)}"
    if structure.other:
        return f"is {structure.other}, which is not taken"
    return f"has no known format ({size_bytes} bytes)" if size_bytes else "is empty"


def _described(kind: Kind) -> str:
    return f"a picture ({kind})" if kind.is_image else f"a video ({kind})" if kind.is_video else f"a sound ({kind})"
