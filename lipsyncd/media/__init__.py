"""What format a file has, judged by its bytes, and whether it is whole.

The name and type that come with a file are only hints: a playlist named `a.wav` would make ffmpeg open what it lists,
an SVG named `a.png` what it links. So the first bytes decide among a closed list of formats, and no other file is
opened by a decoder.

Owns that list and its limits. Leaves the headers of each format to the other modules, and decoding to
`lipsyncd.prepare`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from lipsyncd.errors import ImageTooLarge, ImageTooSmall
from lipsyncd.media import bitmaps, frames, heif, other_formats, pictures, recordings, sounds, videos, wav
from lipsyncd.media.content import Completeness, Content, Integrity, unfilled

__all__ = [
    "AUDIO_SUFFIXES",
    "IMAGE_SUFFIXES",
    "MAX_MEGAPIXELS",
    "MAX_PHOTO_MEGAPIXELS",
    "MIN_SIDE",
    "SECOND_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Completeness",
    "Kind",
    "Structure",
    "check_image_size",
    "examine",
    "most_megapixels",
    "sniff",
]

MIN_SIDE = 64  # pixels
MAX_MEGAPIXELS = 40
MAX_PHOTO_MEGAPIXELS = 64  # phones make 48 and 50

# Names that can be one half of a pair in a folder. Nothing else depends on a file's name.
# A file of a second suffix gives way to one of a first suffix: an iPhone's `.heic` to the `.jpg` exported from it.
_FIRST_IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
_SECOND_IMAGES = frozenset({".jfif", ".jpe", ".jif", ".heic", ".heif", ".avif", ".bmp", ".tif", ".tiff", ".gif"})
_FIRST_SOUNDS = frozenset({".wav", ".mp3", ".m4a", ".ogg", ".oga", ".opus", ".flac"})
_SECOND_SOUNDS = frozenset(
    {".aac", ".m4b", ".mp2", ".mpga", ".weba", ".mka", ".aif", ".aiff", ".caf", ".amr", ".3gp", ".3ga", ".w64"}
)
IMAGE_SUFFIXES = _FIRST_IMAGES | _SECOND_IMAGES
AUDIO_SUFFIXES = _FIRST_SOUNDS | _SECOND_SOUNDS
VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".webm"})  # in place of a picture
SECOND_SUFFIXES = _SECOND_IMAGES | _SECOND_SOUNDS

# Brands of MP4 with sound or video. The same container carries HEIC and AVIF pictures under other brands (`heif`).
_MP4_BRANDS = (
    b"M4A", b"M4B", b"M4V", b"mp4", b"iso", b"dash", b"MSNV", b"avc1", b"3gp", b"3g2", b"qt", b"XAVC", b"mmp4", b"F4A",
)  # fmt: skip

_HEAD_BYTES = 512
_ZEROS_BYTES = 1 << 14  # at the end of a file: no encoder writes as many


class Kind(StrEnum):
    JPEG = "jpeg"
    PNG = "png"
    WEBP = "webp"
    HEIC = "heic"
    AVIF = "avif"
    BMP = "bmp"
    TIFF = "tiff"
    GIF = "gif"
    WAV = "wav"
    MP3 = "mp3"  # and MP2
    AAC = "aac"  # in ADTS
    M4A = "m4a"
    OGG = "ogg"
    FLAC = "flac"
    MP4 = "mp4"  # with a video track; without one it is M4A, whatever its name and brand
    WEBM = "webm"
    WEBA = "weba"  # a WebM without a video track, whatever its name
    MKA = "mka"  # any Matroska that is no WebM: only its sound is used
    AMR = "amr"
    AIFF = "aiff"
    CAF = "caf"
    W64 = "w64"

    @property
    def is_image(self) -> bool:
        return self in (Kind.JPEG, Kind.PNG, Kind.WEBP, Kind.HEIC, Kind.AVIF, Kind.BMP, Kind.TIFF, Kind.GIF)

    @property
    def is_photo(self) -> bool:
        """Is it one of the formats in which cameras and phones save, which are larger than others?"""
        return self in (Kind.JPEG, Kind.HEIC, Kind.AVIF)

    @property
    def is_video(self) -> bool:
        return self in (Kind.MP4, Kind.WEBM)

    @property
    def is_audio(self) -> bool:
        """Can it be a voice? Of a video the sound is used and the pictures are ignored."""
        return not self.is_image


@dataclass(frozen=True, slots=True)
class Structure:
    """A file as its headers describe it.

    kind           None when it has none of our formats
    width, height  pixels as stored, before any rotation; 0 for sound, for WebM, and while they cannot be read yet
    note           why it is not complete, for messages
    declared_s     how long a sound that is cut short would last by its header; 0 where that is not known
    other          what it is instead of our formats, such as "a PDF document"; "" where that is unknown
    endless        nothing in its format shows where it ends
    unfilled       its end is zeros, as in a file that was laid out at full size and is filled later
    """

    kind: Kind | None
    completeness: Completeness
    width: int = 0
    height: int = 0
    note: str = ""
    declared_s: float = 0.0
    other: str = ""
    endless: bool = False
    unfilled: bool = False


def sniff(head: bytes) -> Kind | None:
    """The format of a file that starts with `head` (64 bytes are enough); None when it is none of ours.

    An MP4 is `M4A` here, and a WebM is `WEBM`: the tracks are described further on, where `examine` finds them.
    """
    if head.startswith(b"\xff\xd8\xff"):
        return Kind.JPEG
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return Kind.PNG
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return Kind.WEBP
    if brand := heif.brand(head):
        return Kind(brand)
    if bitmaps.is_bmp(head):
        return Kind.BMP
    if head[:4] in (b"II*\0", b"MM\0*") and head[8:10] != b"CR":  # not a Canon's raw picture
        return Kind.TIFF
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return Kind.GIF
    if head[:4] in wav.MAGICS and head[8:12] == b"WAVE":
        return Kind.WAV
    if head.startswith(b"fLaC"):
        return Kind.FLAC
    if head.startswith(b"OggS\0"):
        return Kind.OGG
    if head[4:8] == b"ftyp" and head[8:12].startswith(_MP4_BRANDS):
        return Kind.M4A
    if videos.is_webm(head):
        return Kind.WEBM
    if videos.is_matroska(head):
        return Kind.MKA
    if head.startswith(recordings.AMR):
        return Kind.AMR
    if recordings.is_aiff(head):
        return Kind.AIFF
    if head.startswith(recordings.CAF):
        return Kind.CAF
    if recordings.is_w64(head):
        return Kind.W64
    if head.startswith(b"ID3") and len(head) >= 10 and head[3] < 0xFF and max(head[6:10]) < 0x80:
        return Kind.MP3
    found = frames.at_start(head)
    return None if found is None else Kind(found)


_CHECKS = {
    Kind.JPEG: pictures.jpeg,
    Kind.PNG: pictures.png,
    Kind.WEBP: pictures.webp,
    Kind.HEIC: heif.heif,
    Kind.AVIF: heif.heif,
    Kind.BMP: bitmaps.bmp,
    Kind.TIFF: bitmaps.tiff,
    Kind.GIF: bitmaps.gif,
    Kind.WAV: wav.wav,
    Kind.MP3: frames.sound,
    Kind.AAC: frames.sound,
    Kind.M4A: sounds.mp4,
    Kind.OGG: sounds.ogg,
    Kind.FLAC: sounds.flac,
    Kind.WEBM: videos.webm,
    Kind.MKA: videos.webm,
    Kind.AMR: recordings.amr,
    Kind.AIFF: recordings.aiff,
    Kind.CAF: recordings.caf,
    Kind.W64: recordings.w64,
}
# A length alone shows where they end, if anything does. The others end with a mark or a check sum, or know silence.
_ENDS_BY_LENGTH = frozenset(
    (Kind.WEBP, Kind.HEIC, Kind.AVIF, Kind.BMP, Kind.TIFF, Kind.MP3, Kind.AAC, Kind.M4A, Kind.WEBM, Kind.MKA, Kind.AMR)
)


def examine(fd: int, size_bytes: int) -> Structure:
    """Judge the first `size_bytes` bytes of an open file by their headers and their end, without decoding anything.

    The file's position is neither used nor moved. No content makes this raise; an OSError comes from the storage.
    """
    content = Content(fd, size_bytes)
    head = content.at(0, _HEAD_BYTES)
    kind = _kind(content, head)
    if kind is None and not any(head):
        return Structure(None, Completeness.TRUNCATED, note="only zeros so far" if head else "empty")
    if kind is None and len(head) < 12:
        return Structure(None, Completeness.TRUNCATED, note=f"only {len(head)} bytes")
    if kind is None:
        other = other_formats.name_of(head)
        return Structure(None, Completeness.INVALID, note="none of the accepted formats", other=other)
    if kind is Kind.MP3 and content.at(frames.behind_tags(content), 4) == b"fLaC":
        return Structure(Kind.FLAC, Completeness.PLAUSIBLE, note="a FLAC behind an ID3 tag", endless=True)
    found = _CHECKS[kind](content)
    if kind in _ENDS_BY_LENGTH and _whole_but_for_zeros(content, found):
        found = unfilled(found)
    width, height = found.width, found.height
    if kind is Kind.M4A and (size := videos.picture_size(content)) is not None:
        kind, (width, height) = Kind.MP4, size
    if kind is Kind.WEBM and videos.holds_sound_alone(content):
        kind = Kind.WEBA
    return Structure(
        kind, found.completeness, width, height, found.note, found.declared_s,
        endless=found.endless, unfilled=found.unfilled,
    )  # fmt: skip


def _whole_but_for_zeros(content: Content, found: Integrity) -> bool:
    whole = found.completeness in (Completeness.COMPLETE, Completeness.PLAUSIBLE)
    return whole and content.zeros_before(content.size, _ZEROS_BYTES)


def _kind(content: Content, head: bytes) -> Kind | None:
    """`sniff`, and what only a longer look shows: frames behind a tag, behind zeros or junk, or cut out of a stream."""
    kind = sniff(head)
    if kind not in (None, Kind.MP3, Kind.AAC) or (kind is None and frames.holds_other_format(head)):
        return kind
    start = frames.behind_tags(content)
    window = content.at(start, frames.WINDOW_BYTES)
    found = frames.find(window, ends=start + len(window) == content.size)
    return kind if found is None else Kind(found.kind)


def most_megapixels(kind: Kind | None, *, photo: float = MAX_PHOTO_MEGAPIXELS, usual: float = MAX_MEGAPIXELS) -> float:
    """The largest picture of that kind that is taken."""
    return photo if kind is not None and kind.is_photo else usual


def check_image_size(
    width: int, height: int, *, min_side: int = MIN_SIDE, max_megapixels: float = MAX_MEGAPIXELS
) -> None:
    """Raise `ImageTooSmall` or `ImageTooLarge`, with the size in pixels, before memory of that size is allocated."""
    if min(width, height) < min_side:
        raise ImageTooSmall(f"the picture has {width} x {height} pixels, fewer than {min_side} on a side")
    if width * height > max_megapixels * 1_000_000:
        raise ImageTooLarge(
            f"the picture has {width} x {height} pixels, {width * height / 1e6:.1f} megapixels",
            remedy=f"scale the picture down to at most {max_megapixels:g} megapixels",
        )
