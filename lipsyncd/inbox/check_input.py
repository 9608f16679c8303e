"""Whether a file can be the picture or the sound of a job, as far as its structure shows: no pixel is decoded here."""

from __future__ import annotations

from lipsyncd.errors import AudioNotRecognised, AudioUndecodable, ImageNotRecognised, ImageUndecodable, InputError
from lipsyncd.jobs.job import IMAGE
from lipsyncd.media import Completeness, Structure

_NOT_RECOGNISED = {True: ImageNotRecognised, False: AudioNotRecognised}
_UNDECODABLE = {True: ImageUndecodable, False: AudioUndecodable}


def fault(role: str, structure: Structure, *, shown: str, size_bytes: int) -> InputError | None:
    """The reason why the file cannot be used in that role; None when none is known.

    shown  the file's name, for the message
    """
    kind, is_image = structure.kind, role == IMAGE
    if kind is None or not (kind.is_image or kind.is_video if is_image else kind.is_audio):
        unknown = (
            f"is {structure.other}, which is not taken"
            if structure.other
            else f"has no known format ({size_bytes} bytes)"
        )
        seen = f"is {kind}" if kind else unknown
        return _NOT_RECOGNISED[is_image](f"{shown} {seen}")
    if structure.completeness is Completeness.INVALID:
        return _UNDECODABLE[is_image](f"{shown} is damaged: {structure.note}")
    if (
        structure.completeness is Completeness.TRUNCATED and is_image
    ):  # of a sound, the beginning is better than nothing
        return ImageUndecodable(f"{shown} is cut short: {structure.note}")
    return None
