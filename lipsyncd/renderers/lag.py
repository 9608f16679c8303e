"""Measure by how much the lips of a finished video come before or after its voice.

    python -m lipsyncd.renderers.lag REQUEST

The opening between the inner lips, seen by the face mesh in every frame, is laid over the level of the voice; the
shift at which both agree best is the lag. Owns the measurement; `cli.bench` decodes the file and prints the result.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsyncd.errors import NoFaceFound, RenderError
from lipsyncd.jobs.prepared import Video
from lipsyncd.renderers.audio import Samples
from lipsyncd.renderers.face import points
from lipsyncd.renderers.face.choose import choose_face
from lipsyncd.renderers.face.crops import crop_of, mesh_in
from lipsyncd.renderers.face.finder import LEAST_PRESENCE
from lipsyncd.renderers.face.networks import Mesh, networks
from lipsyncd.renderers.framing import RgbImage
from lipsyncd.renderers.video_source import VideoSource
from lipsyncd.renderers.voice.analysis import STEP_RATE, analyse, decibels, smooth

RATE = STEP_RATE  # frames per second at which the video is looked at; a frame that is shown longer comes several times
MOST_LAG_S = 0.4
_VOWELS = slice(3, 13)  # the bands from 400 to 3500 Hz
_RANGE_DB = 30.0  # below the loudest tenth; what is quieter counts as silence
_SMOOTH_STEPS = 4  # lips cannot follow faster
_LEAST_S = 1.0
_LEAST_OPENING = 0.01  # of the face's width: lips that move less do not speak

Curve = NDArray[np.float64]


@dataclass(frozen=True)
class Lag:
    """The result.

    lag_ms       of the picture behind the voice; negative when the lips come first
    correlation  of opening and level at this shift, -1 to 1; below 0.4 the number means little
    faces        share of the frames in which the face was seen
    """

    lag_ms: float
    correlation: float
    faces: float


def measure(frames: Iterable[RgbImage], speech: Samples) -> Lag:
    """The lag of a video.

    frames  (H, W, 3) uint8 RGB, `RATE` a second
    speech  (N,) int16, mono, 16 kHz

    Raises `NoFaceFound` when hardly any frame shows a face, or its lips do not move.
    """
    opening, seen = openings(frames)
    steps = min(len(opening), len(speech) * RATE // 16_000)
    if steps < _LEAST_S * RATE:
        raise NoFaceFound(
            f"the video has {steps / RATE:.2f} s, the lag needs {_LEAST_S:g} s", remedy="use a longer one"
        )
    if np.ptp(opening[:steps]) < _LEAST_OPENING:
        raise NoFaceFound("the lips in the video do not move", remedy="use a video of a person who speaks")
    power = analyse(speech).bands[:, _VOWELS].sum(axis=1)
    level_db = decibels(power)[:steps]
    level = np.clip((level_db - np.percentile(level_db, 90) + _RANGE_DB) / _RANGE_DB, 0.0, 1.0)
    lag_s, correlation = best_shift(smooth(level, _SMOOTH_STEPS), smooth(opening[:steps], _SMOOTH_STEPS))
    return Lag(round(1000 * lag_s, 1), round(correlation, 3), round(seen, 3))


def openings(frames: Iterable[RgbImage]) -> tuple[Curve, float]:
    """How far the inner lips are apart in each frame, in widths of the face; and the share of frames with a face.

    Raises `NoFaceFound` when fewer than half of the frames have one.
    """
    found: list[float] = []
    mesh: Mesh | None = None
    before: RgbImage | None = None
    for frame in frames:
        if before is None or not np.array_equal(frame, before):
            mesh = _followed(frame, mesh)
            before = frame
        found.append(np.nan if mesh is None else _opening(mesh))
    opening = np.array(found)
    known = np.flatnonzero(~np.isnan(opening))
    if len(known) < 0.5 * max(len(opening), 1):
        raise NoFaceFound(f"{len(known)} of {len(opening)} frames show a face", remedy="use a video of one face")
    return np.interp(np.arange(len(opening)), known, opening[known]), len(known) / len(opening)


def _followed(frame: RgbImage, last: Mesh | None) -> Mesh | None:
    """The face where it was in the frame before, or wherever it is now."""
    if last is not None:
        mesh, presence = mesh_in(frame, networks(), crop_of(last))
        if presence >= LEAST_PRESENCE:
            return mesh
    try:
        return choose_face(frame).mesh
    except RenderError:
        return None


def _opening(mesh: Mesh) -> float:
    upper, lower = (mesh[list(lip[3:8]), :2] for lip in (points.INNER_UPPER_LIP, points.INNER_LOWER_LIP))
    width = float(np.linalg.norm(mesh[454] - mesh[234]))
    return float(np.linalg.norm(lower - upper, axis=1).mean()) / width


def best_shift(level: Curve, opening: Curve) -> tuple[float, float]:
    """By how many seconds `opening` comes after `level`, and their correlation there."""
    most = round(MOST_LAG_S * RATE)
    shifts = np.arange(-most, most + 1)
    scores = np.array([_correlation(level, opening, int(shift)) for shift in shifts])
    best = int(np.argmax(scores))
    offset = 0.0
    if 0 < best < len(scores) - 1:
        left, here, right = scores[best - 1 : best + 2]
        bend = left - 2 * here + right
        offset = 0.5 * (left - right) / bend if bend < 0 else 0.0
    return (int(shifts[best]) + offset) / RATE, float(scores[best])


def _correlation(level: Curve, opening: Curve, shift: int) -> float:
    one, other = (level[: len(level) - shift], opening[shift:]) if shift >= 0 else (level[-shift:], opening[:shift])
    one, other = one - one.mean(), other - other.mean()
    size = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / size if size > 0 else 0.0


def main(request: Mapping[str, Any]) -> dict[str, Any]:
    """Measure a decoded video: {"folder", "ffmpeg", "speech", "samples", "video"}; gives the fields of `Lag`."""
    cv2.setNumThreads(1)
    folder = Path(request["folder"])
    speech = np.memmap(folder / request["speech"], "<i2", "r", shape=(request["samples"],))
    source = VideoSource(Video(**request["video"]), folder, Path(request["ffmpeg"]))
    try:
        found = measure(source.read(), speech)
    except RenderError as error:
        return {"error": error.reason()}
    return dict(vars(found))


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
