"""The tracks of an MP4, read from its boxes.

Owns the meaning of the boxes (ISO/IEC 14496-12). Leaves their headers to `mp4_boxes`, encoding to `ffmpeg`, and the
comparison with what a job requested to `lipsyncd.worker.check_result`.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TypeVar

from lipsyncd.media.content import Content
from lipsyncd.media.mp4_boxes import Mp4Damaged, boxes, boxes_in

MAX_MOOV_BYTES = 32 << 20  # ten minutes at 120 fps need 2 MiB
_MAX_TOP_LEVEL_BOXES = 1000

_T = TypeVar("_T")


@dataclass(frozen=True)
class Colour:
    """The container's colour tags (`colr`, type `nclx`), in the code points of ISO/IEC 23091-2; 1 is bt709."""

    primaries: int
    transfer: int
    matrix: int
    full_range: bool


BT709 = Colour(primaries=1, transfer=1, matrix=1, full_range=False)


@dataclass(frozen=True)
class VideoTrack:
    """The video track.

    rate      frames per second, exact; None when not all frames have the same duration
    start_s   when the first frame is shown, after the edit list
    duration  seconds that are shown, after the edit list
    """

    codec: str
    width: int
    height: int
    frames: int
    rate: Fraction | None
    start_s: Fraction
    duration: Fraction
    colour: Colour | None


@dataclass(frozen=True)
class AudioTrack:
    """The audio track; `start_s` and `duration` as in `VideoTrack`, so without the encoder's priming samples."""

    codec: str
    rate: int
    start_s: Fraction
    duration: Fraction


@dataclass(frozen=True)
class Mp4Facts:
    """One video track and one audio track, as the boxes describe them.

    moov_first  the index comes before the media, so that a player can start with the first bytes
    truncated   a box claims to reach beyond the end of the file
    """

    moov_first: bool
    truncated: bool
    video: VideoTrack
    audio: AudioTrack


def inspect(path: Path) -> Mp4Facts:
    """Read the boxes of the file at `path`. Nothing is decoded; `mdat` is skipped, never read.

    Raises `Mp4Damaged` for anything that is not an MP4 with exactly one video and one audio track, whatever the bytes
    are, and `OSError` when the file cannot be read.
    """
    kinds, moov, truncated = _index(path)
    try:
        video, audio = _tracks(moov)
    except (struct.error, IndexError) as error:
        raise Mp4Damaged(f"its moov contradicts itself: {error}") from error
    return Mp4Facts(
        moov_first=b"mdat" not in kinds[: kinds.index(b"moov")],
        truncated=truncated,
        video=video,
        audio=audio,
    )


@dataclass(frozen=True)
class VideoPart:
    """The video track of an MP4 that has no other one. `parameters` are what its decoder is set up with (`avcC`)."""

    video: VideoTrack
    parameters: bytes


def inspect_part(path: Path) -> VideoPart:
    """Read the boxes of a video without sound. Raises as `inspect` does, and `Mp4Damaged` when the file was cut."""
    _, moov, truncated = _index(path)
    if truncated:
        raise Mp4Damaged("it ends before its boxes do")
    try:
        track = _single([trak for kind, trak in boxes_in(moov) if kind == "trak"], "of all")
        _, entry = _sample_entry(track)
        parameters = bytes(_only(entry[78:], "avcC"))
        return VideoPart(_video(track, _ticks_per_second(_only(moov, "mvhd"))), parameters)
    except (struct.error, IndexError) as error:
        raise Mp4Damaged(f"its moov contradicts itself: {error}") from error


def _index(path: Path) -> tuple[list[bytes], memoryview, bool]:
    """The kinds of all boxes, the payload of the moov, and whether a box claims to reach beyond the file's end."""
    with path.open("rb") as file:
        content = Content(file.fileno(), os.fstat(file.fileno()).st_size)
        top = list(islice(boxes(content.at, 0, content.size), _MAX_TOP_LEVEL_BOXES + 1))
        if len(top) > _MAX_TOP_LEVEL_BOXES:
            raise Mp4Damaged(f"it has more than {_MAX_TOP_LEVEL_BOXES} boxes")
        kinds = [box.kind for box in top]
        if b"ftyp" not in kinds[:1]:
            raise Mp4Damaged("it does not begin with ftyp")
        if b"moov" not in kinds:
            raise Mp4Damaged("it has no moov: it was not written to its end")
        index = top[kinds.index(b"moov")]
        if index.end - index.payload > MAX_MOOV_BYTES:
            raise Mp4Damaged(f"its moov claims {index.end - index.payload} bytes")
        moov = content.at(index.payload, index.end - index.payload)
    return kinds, memoryview(moov), any(box.end > content.size for box in top)


# -- boxes inside the moov ---------------------------------------------------------------------------------------------


def _child(data: memoryview, *path: str) -> memoryview:
    for kind in path:
        data = _only(data, kind)
    return data


def _only(data: memoryview, kind: str) -> memoryview:
    found = _optional(data, kind)
    if found is None:
        raise Mp4Damaged(f"a box {kind} is missing")
    return found


def _optional(data: memoryview, kind: str) -> memoryview | None:
    return next((payload for name, payload in boxes_in(data) if name == kind), None)


# -- tracks ------------------------------------------------------------------------------------------------------------


def _tracks(moov: memoryview) -> tuple[VideoTrack, AudioTrack]:
    movie_scale = _ticks_per_second(_only(moov, "mvhd"))
    videos: list[VideoTrack] = []
    audios: list[AudioTrack] = []
    for kind, trak in boxes_in(moov):
        if kind != "trak":
            continue
        handler = bytes(_child(trak, "mdia", "hdlr")[8:12])
        if handler == b"vide":
            videos.append(_video(trak, movie_scale))
        elif handler == b"soun":
            audios.append(_audio(trak, movie_scale))
    return _single(videos, "video"), _single(audios, "audio")


def _single(tracks: list[_T], what: str) -> _T:
    if len(tracks) != 1:
        raise Mp4Damaged(f"it has {len(tracks)} {what} tracks instead of one")
    return tracks[0]


def _video(trak: memoryview, movie_scale: int) -> VideoTrack:
    codec, entry = _sample_entry(trak)
    width, height = struct.unpack_from(">HH", entry, 24)
    counts, scale = _sample_times(trak), _scale(trak)
    frames = sum(count for count, _ in counts)
    steps = {step for count, step in counts if count}
    start, duration = _presented(trak, movie_scale)
    return VideoTrack(
        codec=codec,
        width=width,
        height=height,
        frames=frames,
        rate=Fraction(scale, steps.pop()) if len(steps) == 1 and 0 not in steps else None,
        start_s=start,
        duration=duration,
        colour=_colour(entry[78:]),
    )


def _audio(trak: memoryview, movie_scale: int) -> AudioTrack:
    codec, entry = _sample_entry(trak)
    (rate,) = struct.unpack_from(">I", entry, 24)
    start, duration = _presented(trak, movie_scale)
    return AudioTrack(codec=codec, rate=rate >> 16, start_s=start, duration=duration)


def _sample_entry(trak: memoryview) -> tuple[str, memoryview]:
    described = _child(trak, "mdia", "minf", "stbl", "stsd")
    first = next(iter(boxes_in(described[8:])), None)
    if first is None:
        raise Mp4Damaged("a track names no codec")
    return first


def _sample_times(trak: memoryview) -> list[tuple[int, int]]:
    """(how many samples, ticks of each) in decoding order, checked against the number of sample sizes."""
    table = _child(trak, "mdia", "minf", "stbl")
    times, sizes = _only(table, "stts"), _only(table, "stsz")
    counts = _runs(times, ">II")
    (samples,) = struct.unpack_from(">I", sizes, 8)
    if sum(count for count, _ in counts) != samples:
        raise Mp4Damaged(f"its stts counts {sum(count for count, _ in counts)} samples, its stsz {samples}")
    return counts


def _runs(box: memoryview, layout: str) -> list[tuple[int, int]]:
    (entries,) = struct.unpack_from(">I", box, 4)
    if entries * 8 > len(box) - 8:
        raise Mp4Damaged(f"a table claims {entries} entries in {len(box)} bytes")
    return list(struct.iter_unpack(layout, box[8 : 8 + entries * 8]))


def _shown_until(trak: memoryview) -> int:
    """When the last sample ends on the track's own clock, in ticks.

    Frames are stored in decoding order; `ctts` gives the delay until each is shown. Both tables are run-length coded
    and are read run by run: a claim of four billion samples costs one step.
    """
    late = _optional(_child(trak, "mdia", "minf", "stbl"), "ctts")
    delays = [] if late is None else _runs(late, ">Ii")[::-1]
    at = until = 0
    waiting, delay = 0, 0  # how many more samples the current delay applies to
    for count, step in _sample_times(trak):
        while count:
            while waiting == 0:
                waiting, delay = delays.pop() if delays else (count, 0)
            taken = min(count, waiting)
            at += taken * step
            until = max(until, at + delay)
            count -= taken
            waiting -= taken
    return until


def _presented(trak: memoryview, movie_scale: int) -> tuple[Fraction, Fraction]:
    """(start, duration) in seconds of what is shown after the edit list.

    The length of an edit is rounded to ticks of the movie (usually 1 ms). Where it agrees with the media to within one
    such tick, the media's own, finer ticks are used.
    """
    scale = _scale(trak)
    until = Fraction(_shown_until(trak), scale)
    start = Fraction(0)
    shown: Fraction | None = None
    for length, media_time in _edits(trak):
        edit = Fraction(length, movie_scale)
        if media_time < 0:  # an empty edit: nothing is shown for that long
            start += edit
            continue
        if shown is not None:
            raise Mp4Damaged("the edit list of a track has several parts")
        left = until - Fraction(media_time, scale)
        shown = left if abs(edit - left) <= Fraction(1, movie_scale) else min(edit, left)
    return start, until if shown is None else max(shown, Fraction(0))


def _edits(trak: memoryview) -> list[tuple[int, int]]:
    box = _optional(trak, "edts")
    listed = None if box is None else _optional(box, "elst")
    if listed is None:
        return []
    version, entries = listed[0], struct.unpack_from(">I", listed, 4)[0]
    layout, size = (">Qq4x", 20) if version == 1 else (">Ii4x", 12)
    if entries * size > len(listed) - 8:
        raise Mp4Damaged(f"its elst claims {entries} entries in {len(listed)} bytes")
    return list(struct.iter_unpack(layout, listed[8 : 8 + entries * size]))


def _scale(trak: memoryview) -> int:
    return _ticks_per_second(_child(trak, "mdia", "mdhd"))


def _ticks_per_second(header: memoryview) -> int:
    """The time scale of an mvhd or mdhd; version 1 has longer dates before it."""
    (scale,) = struct.unpack_from(">I", header, 20 if header[0] == 1 else 12)
    if scale == 0:
        raise Mp4Damaged("a time scale is 0")
    return int(scale)


def _colour(boxes: memoryview) -> Colour | None:
    payload = _optional(boxes, "colr")
    if payload is None or bytes(payload[:4]) != b"nclx":
        return None
    primaries, transfer, matrix, flags = struct.unpack_from(">HHHB", payload, 4)
    return Colour(primaries, transfer, matrix, bool(flags & 0x80))
