"""For tests of the preview renderer: portraits with known positions, voices, renders and measurements.

The measures are written without the renderer's own: colour and optical flow on the finished frames.
"""

from __future__ import annotations

import tempfile
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import skimage.data
import soxr
from numpy.typing import NDArray

from lipsyncd.prepare.speech import speak
from lipsyncd.renderers import SPEECH_RATE, Scene
from lipsyncd.renderers.framing import Box, RgbImage
from lipsyncd.renderers.preview import Preview
from lipsyncd.renderers.preview.plane import Plane, Window
from tests.kits.media.preview_people import PEOPLE, portrait

Speech = NDArray[np.int16]
Values = NDArray[np.floating]
Box4 = tuple[float, float, float, float]


# -- voices ------------------------------------------------------------------------------------------------------------


@cache
def voice(text: str, speaker: str = "en-us") -> Speech:
    """`text` spoken by espeak-ng, as a job's PCM: (N,) int16, 16 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        spoken = Path(folder, "voice.wav")
        speak(text, spoken, voice=speaker)
        with wave.open(str(spoken)) as wav:
            rate, raw = wav.getframerate(), wav.readframes(wav.getnframes())
    samples = np.frombuffer(raw, np.int16).astype(np.float32)
    resampled = soxr.resample(samples, rate, SPEECH_RATE)  # by `librosa.resample` too, which takes 20 s to import
    return np.rint(resampled).clip(-32768, 32767).astype(np.int16)


def silence(seconds: float) -> Speech:
    return np.zeros(round(seconds * SPEECH_RATE), np.int16)


# -- subjects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A portrait with its true eyes, and the true distances of mouth and chin below them, in eye distances.

    size  width and height of the picture
    draw  makes the picture, when it is needed for the first time
    """

    name: str
    size: tuple[int, int]
    draw: Callable[[], RgbImage]
    left_eye: tuple[float, float]
    right_eye: tuple[float, float]
    mouth_v: float
    chin_v: float

    @cached_property
    def picture(self) -> RgbImage:
        return self.draw()

    @property
    def plane(self) -> Plane:
        return Plane.from_eyes(self.left_eye, self.right_eye)

    def flipped(self) -> Subject:
        last = self.size[0] - 1
        (lx, ly), (rx, ry) = self.left_eye, self.right_eye

        def draw() -> RgbImage:
            return np.ascontiguousarray(self.picture[:, ::-1])

        eyes = {"left_eye": (last - rx, ry), "right_eye": (last - lx, ly)}
        return replace(self, name=f"{self.name}, flipped", draw=draw, **eyes)

    def turned(self, degrees: float, scale: float = 1.0) -> Subject:
        """The subject turned clockwise and scaled around the middle of the picture, which keeps its size."""
        width, height = self.size
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, scale)

        def draw() -> RgbImage:
            how = {"flags": cv2.INTER_CUBIC, "borderMode": cv2.BORDER_REFLECT}
            return cv2.warpAffine(self.picture, matrix, self.size, **how)

        left, right = (tuple(matrix @ [*eye, 1.0]) for eye in (self.left_eye, self.right_eye))
        return replace(self, name=f"{self.name}, {degrees:g} degrees", draw=draw, left_eye=left, right_eye=right)

    def resized(self, side: int) -> Subject:
        """The subject in another size; `side` is the width."""
        factor = side / self.size[0]
        size = (side, round(self.size[1] * factor))

        def draw() -> RgbImage:
            return cv2.resize(self.picture, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)

        left, right = (tuple((c + 0.5) * factor - 0.5 for c in eye) for eye in (self.left_eye, self.right_eye))
        return replace(self, name=f"{self.name}, {side} px", size=size, draw=draw, left_eye=left, right_eye=right)


@cache
def astronaut() -> Subject:
    """A photograph with a smile that shows teeth; the positions were measured in an enlargement."""
    eyes = {"left_eye": (202.5, 102.0), "right_eye": (246.8, 103.0)}
    return Subject("astronaut", (512, 512), skimage.data.astronaut, **eyes, mouth_v=0.97, chin_v=1.70)


@cache
def painted(name: str, side: int = 512) -> Subject:
    who, unit = PEOPLE[name], side / 5.0
    left, right = ((side / 2 + where * unit, 0.42 * side) for where in (-0.5, 0.5))
    return Subject(name, (side, side), partial(portrait, who, side), left, right, who.mouth_v, 0.97 * who.length)


@cache
def subjects() -> tuple[Subject, ...]:
    """Four people, also flipped, scaled and tilted."""
    ada, bashir, chen = (painted(name, 384) for name in PEOPLE)
    return (
        astronaut(), ada, bashir, chen,
        astronaut().flipped(), astronaut().resized(700), bashir.flipped(), ada.resized(330), chen.turned(9),
    )  # fmt: skip


# -- measures ----------------------------------------------------------------------------------------------------------

MEASURED = 100  # cells for each eye distance


def openings(frames: Sequence[RgbImage], subject: Subject) -> NDArray[np.float64]:
    """The opening between the lips in each frame, segmented by colour.

    Inside a mouth it is darker than skin and lips, or, on teeth, much paler.

    returns  (n, 2): height in the middle and width, in eye distances
    """
    window = Window(-0.50, subject.mouth_v - 0.22, 0.50, subject.mouth_v + 0.42, MEASURED)
    labs = (_lab(subject.plane.cut(frame, window)) for frame in frames)
    skin = np.median(_lab(subject.plane.cut(subject.picture, window))[-10:].reshape(-1, 3), axis=0)
    return np.array([_opening(lab, skin) for lab in labs])


def _opening(lab: Values, skin: Values) -> tuple[float, float]:
    pale = (np.hypot(lab[..., 1], lab[..., 2]) < 0.62 * np.hypot(skin[1], skin[2])) & (lab[..., 0] > 0.5 * skin[0])
    inside = (pale | (lab[..., 0] < 0.62 * skin[0])).astype(np.uint8)
    inside = cv2.morphologyEx(inside, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    middle = inside[:, inside.shape[1] // 2 - 10 : inside.shape[1] // 2 + 11]
    heights = [np.ptp(np.flatnonzero(column)) + 1 if column.any() else 0 for column in middle.T]
    columns = np.flatnonzero(inside.sum(axis=0) >= 4)
    return float(np.mean(heights)) / MEASURED, (float(np.ptp(columns)) + 1 if len(columns) else 0.0) / MEASURED


def _lab(picture: RgbImage) -> NDArray[np.float32]:
    return cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)


def moved_down(before: RgbImage, after: RgbImage, subject: Subject, part: Box4) -> NDArray[np.float64]:
    """Optical flow down the face, in eye distances, in a part (left, top, right, bottom) of the face's plane."""
    grey = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (before, after))
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*grey, None)
    plane, window = subject.plane, Window(*part, scale=60)
    size = (window.columns, window.rows)
    cut = cv2.warpAffine(flow, plane.to_pixels(window), size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return cut @ np.array([plane.down_x, plane.down_y]) / plane.unit_px**2


def mouth_change(frames: Sequence[RgbImage], closed: RgbImage, box: Box) -> NDArray[np.float64]:
    """m(t): the mean absolute difference of each frame from the closed mouth, in the lower half of the face box."""
    low = np.s_[box.y + box.height // 2 : box.bottom, box.x : box.right]
    return np.array([np.abs(frame[low].astype(np.int16) - closed[low]).mean() for frame in frames])


def loudness(speech: Speech, frames: int, fps: Fraction = Fraction(25)) -> NDArray[np.float64]:
    """e(t): root mean square of the voice in each frame, smoothed over 3 frames. Independent of the renderer."""
    edges = [int(i * SPEECH_RATE / fps) for i in range(frames + 1)]
    pieces = (speech[a:b].astype(np.float64) for a, b in pairwise(edges))
    level = [np.sqrt(np.mean(piece**2)) if len(piece) else 0.0 for piece in pieces]
    return np.convolve(level, np.ones(3) / 3, "same")


# -- renders -----------------------------------------------------------------------------------------------------------


def scene(picture: RgbImage, speech: Speech, **changed: object) -> Scene:
    """A scene with 25 frames per second and the whole picture, unless `changed`."""
    fps = cast(Fraction, changed.get("fps", Fraction(25)))
    values = {"fps": fps, "frames": -(-len(speech) * fps // SPEECH_RATE), "stitch": True, "resolution": 256}
    return Scene(picture=picture, speech=speech, **(values | changed))  # type: ignore[arg-type]


def render(picture: RgbImage, speech: Speech, **changed: object) -> list[RgbImage]:
    """All frames, copied, since a renderer may reuse its arrays."""
    return [frame.copy() for frame in Preview().open(scene(picture, speech, **changed)).frames()]


def correlation(a: Values, b: Values) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def best_lag(moves: Values, sounds: Values, most: int = 4) -> int:
    """The lag of the movement behind the sound with the best correlation, in frames; negative when it is early."""

    def at(lag: int) -> float:
        shorter = len(moves) - abs(lag)
        return correlation(moves[max(lag, 0) :][:shorter], sounds[max(-lag, 0) :][:shorter])

    return max(range(-most, most + 1), key=at)
