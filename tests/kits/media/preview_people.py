"""Portraits drawn from formulas: faces of several people for tests, without a download.

They are shaded like photographs, since the finder of faces has to see them.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.framing import RgbImage

Plane = NDArray[np.float64]  # one value for each pixel
RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Person:
    """The parameters of one painted face. Colours are RGB, 0..1; lengths are eye distances."""

    skin: RGB
    lips: RGB
    hair: RGB
    iris: RGB
    backdrop: RGB
    clothes: RGB
    cheeks: float = 1.00  # half width of the head
    length: float = 1.80  # from the eyes' height to the chin, about
    mouth_half: float = 0.36
    mouth_v: float = 1.10
    smile: float = 0.05  # how much higher the corners are
    full: float = 1.0  # of the lips
    brow: float = 0.030  # half thickness
    light_from: tuple[float, float, float] = (-0.45, -0.40, 0.80)
    long_hair: bool = False
    seed: int = 1


PEOPLE = {
    "ada": Person(
        skin=(0.90, 0.72, 0.61), lips=(0.74, 0.36, 0.35), hair=(0.30, 0.17, 0.09), iris=(0.30, 0.42, 0.50),
        backdrop=(0.62, 0.66, 0.70), clothes=(0.20, 0.28, 0.45), long_hair=True, seed=3,
    ),
    "bashir": Person(
        skin=(0.46, 0.30, 0.22), lips=(0.45, 0.24, 0.22), hair=(0.07, 0.06, 0.06), iris=(0.20, 0.11, 0.06),
        backdrop=(0.80, 0.76, 0.68), clothes=(0.72, 0.70, 0.66), cheeks=1.04, mouth_half=0.39, full=1.35, brow=0.045,
        smile=0.02, light_from=(0.50, -0.45, 0.75), seed=5,
    ),
    "chen": Person(
        skin=(0.86, 0.67, 0.52), lips=(0.66, 0.33, 0.30), hair=(0.10, 0.08, 0.08), iris=(0.24, 0.15, 0.09),
        backdrop=(0.28, 0.33, 0.36), clothes=(0.55, 0.16, 0.18), cheeks=1.06, length=1.72, mouth_v=1.06,
        mouth_half=0.33, full=0.9, smile=0.035, brow=0.036, light_from=(-0.2, -0.6, 0.78), seed=8,
    ),
}  # fmt: skip


def portrait(who: Person, side: int = 512) -> RgbImage:
    """Paint one person, (side, side, 3) RGB; the eyes are a fifth of the side apart."""
    unit = side / 5.0
    y, x = np.mgrid[0:side, 0:side].astype(np.float64)
    return _Painting(who, (x - side / 2) / unit, (y - 0.42 * side) / unit, unit).picture()


class _Painting:
    """One canvas in the coordinates of the face: u to the right, v down, the eyes at (-0.5, 0) and (0.5, 0)."""

    def __init__(self, who: Person, u: Plane, v: Plane, unit: float) -> None:
        self.who, self.u, self.v, self.unit = who, u, v, unit
        self.random = np.random.default_rng(who.seed)
        self.rgb = np.empty((*u.shape, 3))

    def picture(self) -> RgbImage:
        self.backdrop()
        self.head()
        for side in (-1, 1):
            self.eye(side)
            self.brow(side)
        self.nose()
        self.mouth()
        self.fringe()
        grain = self.random.normal(0, 0.008, self.u.shape)[..., None]
        soft = cv2.GaussianBlur(self.rgb, (0, 0), 0.7) + grain
        return np.rint(soft.clip(0, 1) * 255).astype(np.uint8)

    def lay(self, colour: Plane | RGB, cover: Plane) -> None:
        """Paint `colour` where `cover` is 1."""
        self.rgb += (np.asarray(colour) - self.rgb) * cover.clip(0, 1)[..., None]

    def shade(self, factor: Plane) -> None:
        self.rgb *= factor[..., None]

    def edge(self, inside: Plane, soft: float = 0.015) -> Plane:
        """1 where `inside` (in units) is positive, 0 where negative."""
        t = (inside / max(soft, 0.7 / self.unit) + 0.5).clip(0, 1)
        return t * t * (3 - 2 * t)

    def blob(self, u: float, v: float, su: float, sv: float) -> Plane:
        return np.exp(-0.5 * (((self.u - u) / su) ** 2 + ((self.v - v) / sv) ** 2))

    def smooth_noise(self, size: float, stretch: float = 1.0) -> Plane:
        """Noise of about unit variance whose grains are `size` units wide and `stretch` times as high."""
        raw = self.random.normal(0, 1, self.u.shape)
        soft = cv2.GaussianBlur(raw, (0, 0), max(size * self.unit, 0.5), sigmaY=max(size * stretch * self.unit, 0.5))
        return soft / soft.std()

    def backdrop(self) -> None:
        who, u, v = self.who, self.u, self.v
        self.rgb[:] = np.asarray(who.backdrop) * (1 + 0.10 * np.exp(-(u**2 + v**2) / 8) - 0.03 * v)[..., None]
        self.rgb *= 1 + 0.015 * self.smooth_noise(0.25)[..., None]
        strands = 1 + 0.18 * self.smooth_noise(0.02, 12)
        hair = np.asarray(who.hair) * strands[..., None]
        low = 2.1 if who.long_hair else 0.45
        top = self.edge(1 - (u / 1.22) ** 2 - ((v + 0.10) / 1.52) ** 2, 0.05)
        fall = low - 0.9 * (np.abs(u) - 1.0).clip(0) ** 2 * 4
        sides = self.edge(1.24 - np.abs(u) - 0.05 * v**2, 0.06) * self.edge(fall - v, 0.15) * self.edge(v + 0.1, 0.2)
        self.lay(hair, np.maximum(top, sides))
        shoulders = self.edge(v - 2.25 - 0.16 * u**2 - 0.02 * np.abs(u), 0.03)
        self.lay(
            np.asarray(who.clothes) * (1 - 0.05 * np.abs(u) + 0.04 * self.smooth_noise(0.08))[..., None], shoulders
        )
        neck = self.edge(0.62 + 0.10 * (v - 1.6) ** 2 - np.abs(u), 0.03) * self.edge(v - 0.9, 0.1)
        neck *= self.edge(2.46 - 0.5 * u**2 - v, 0.02)
        tone = 0.80 - 0.25 * (u / 0.6) ** 2 - 0.30 * np.exp(-(((v - who.length) / 0.22) ** 2))
        self.lay(np.asarray(who.skin) * tone.clip(0.25, 1)[..., None], neck)

    def head(self) -> None:
        who, u, v = self.who, self.u, self.v
        for side in (-1, 1):
            ear = self.edge(1 - ((u - side * who.cheeks * 0.97) / 0.13) ** 2 - ((v - 0.28) / 0.30) ** 2, 0.1)
            self.lay(np.asarray(who.skin) * np.float64([0.80, 0.72, 0.70]), ear)
        # Egg-shaped: the jaw is narrower than the temples.
        half = who.cheeks * np.where(v < 0.35, 1.0, 1.0 - 0.26 * ((v - 0.35) / (who.length - 0.35)).clip(0, 1.2) ** 1.6)
        height = np.where(v < 0.25, 1.42, who.length - 0.25)
        r2 = np.abs(u / half) ** 2.2 + np.abs((v - 0.25) / height) ** 2.3
        z = np.sqrt((1.12 - r2).clip(0.02))
        normal = np.stack([u / half * 0.85, (v - 0.25) / height * 0.75, z])
        normal /= np.linalg.norm(normal, axis=0)
        light = np.asarray(who.light_from) / np.linalg.norm(who.light_from)
        lambert = np.tensordot(light, normal, 1).clip(0)
        tone = 0.40 + 0.62 * lambert
        skin = np.asarray(who.skin) * tone[..., None] ** np.float64([0.85, 1.0, 1.1])
        skin *= (1 + 0.012 * self.smooth_noise(0.012) + 0.010 * self.smooth_noise(0.10))[..., None]
        self.lay(skin, self.edge(1 - r2, 0.05))
        flush = self.blob(-0.62, 0.72, 0.22, 0.18) + self.blob(0.62, 0.72, 0.22, 0.18)
        self.lay(np.asarray(who.lips) * 1.1, 0.16 * flush)
        self.shade(1 - 0.10 * self.blob(-0.46, 0.86, 0.03, 0.12) - 0.10 * self.blob(0.46, 0.86, 0.03, 0.12))
        self.shade(
            1
            - 0.14 * self.blob(0, who.mouth_v + 0.27, 0.20, 0.045)
            + 0.06 * self.blob(0, who.length - 0.16, 0.15, 0.09)
        )

    def eye(self, side: int) -> None:
        who = self.who
        u, v = self.u - side * 0.5, self.v
        self.shade(
            1 - 0.26 * self.blob(side * 0.48, -0.10, 0.24, 0.10) - 0.12 * self.blob(side * 0.5, 0.13, 0.20, 0.05)
        )
        arch = (1 - (u / 0.225) ** 2).clip(0)
        upper, lower = -0.095 * arch**0.8 + 0.01, 0.065 * arch + 0.01
        opening = self.edge(v - upper, 0.012) * self.edge(lower - v, 0.012) * (np.abs(u) < 0.225)
        white = 0.92 - 0.35 * (u / 0.225) ** 2 - 0.30 * np.exp(-((v - upper) / 0.03).clip(0))
        self.lay(np.float64([0.95, 0.92, 0.90]) * white[..., None] * (0.55 + 0.45 * max(who.skin)), opening)
        r = np.hypot(u, v + 0.015)
        rays = 1 + 0.12 * np.sin(23 * np.arctan2(v + 0.015, u)) * (r > 0.04)
        self.lay(
            np.asarray(who.iris) * (rays * (0.75 + 3.0 * r.clip(0, 0.1)))[..., None], opening * self.edge(0.088 - r)
        )
        self.lay(
            (0.03, 0.03, 0.03), opening * np.maximum(self.edge(0.040 - r), 0.8 * self.edge(0.010 - np.abs(r - 0.088)))
        )
        self.lay((1.0, 1.0, 1.0), 0.9 * opening * self.edge(0.016 - np.hypot(u + 0.03, v + 0.05)))
        lash = np.exp(-(((v - upper) / 0.016) ** 2)) * self.edge(0.235 - np.abs(u), 0.03)
        self.lay((0.07, 0.05, 0.05), 0.9 * lash)
        self.lay(
            np.asarray(who.skin) * 0.45,
            0.45 * np.exp(-(((v - lower) / 0.012) ** 2)) * self.edge(0.22 - np.abs(u), 0.05),
        )
        crease = np.exp(-(((v - upper + 0.055) / 0.012) ** 2)) * self.edge(0.22 - np.abs(u), 0.06)
        self.lay(np.asarray(who.skin) * 0.45, 0.5 * crease)

    def brow(self, side: int) -> None:
        who = self.who
        out = side * self.u - 0.5
        ridge = -0.31 - 0.05 * (1 - ((out - 0.06) / 0.32) ** 2) + 0.02 * out
        thick = who.brow * (1.1 - 1.1 * (out + 0.1).clip(-0.2, 0.4))
        hairs = 0.85 + 0.10 * self.smooth_noise(0.012, 0.7)
        cover = self.edge(thick - np.abs(self.v - ridge), 0.035) * self.edge(0.31 - np.abs(out), 0.10)
        self.lay(np.asarray(who.hair) * 0.8, 0.9 * cover * hairs)

    def nose(self) -> None:
        away = 1 if self.who.light_from[0] < 0 else -1
        u, v = self.u, self.v
        along = self.edge(v - 0.0, 0.3) * self.edge(0.66 - v, 0.15)
        self.shade(1 - 0.20 * np.exp(-(((u - away * (0.10 + 0.06 * v)) / 0.055) ** 2)) * along)
        self.shade(
            1
            + 0.10 * np.exp(-(((u + away * 0.02) / 0.05) ** 2)) * along
            + 0.10 * self.blob(-away * 0.02, 0.58, 0.06, 0.05)
        )
        for side in (-1, 1):
            self.shade(1 - 0.28 * self.blob(side * 0.215, 0.64, 0.025, 0.06))
            self.lay((0.10, 0.05, 0.04), 0.75 * self.blob(side * 0.105, 0.715, 0.042, 0.020))
        self.shade(1 - 0.22 * self.blob(0, 0.76, 0.16, 0.035) - 0.08 * self.blob(0, 0.90, 0.022, 0.06))

    def mouth(self) -> None:
        who = self.who
        x, half = self.u, who.mouth_half
        s = (x / half).clip(-1.2, 1.2)
        line = who.mouth_v - who.smile * s**2 + 0.010 * np.exp(-((s / 0.15) ** 2))
        arch = (1 - s**2).clip(0)
        bow = 0.085 * who.full * arch**0.9 * (1 - 0.22 * np.exp(-((s / 0.14) ** 2)))
        low = 0.120 * who.full * arch**0.75
        lips = np.asarray(who.lips)
        upper = self.edge(self.v - (line - bow), 0.022) * self.edge(line - self.v, 0.01) * (np.abs(s) < 1)
        lower = self.edge((line + low) - self.v, 0.028) * self.edge(self.v - line, 0.01) * (np.abs(s) < 1)
        self.lay(lips * (0.80 - 0.12 * s**2)[..., None], upper)
        depth = ((self.v - line) / low.clip(1e-3)).clip(0, 1)
        round_lip = 0.82 + 0.34 * np.exp(-(((depth - 0.45) / 0.25) ** 2)) * np.exp(-((s / 0.55) ** 2)) - 0.15 * s**2
        self.lay(lips * (round_lip * (1 + 0.03 * self.smooth_noise(0.008, 3)))[..., None], lower)
        self.lay(lips * 0.22, 0.92 * np.exp(-(((self.v - line) / 0.014) ** 2)) * self.edge(1.02 - np.abs(s), 0.12))
        for side in (-1, 1):
            self.shade(1 - 0.25 * self.blob(side * half, who.mouth_v - who.smile, 0.03, 0.03))

    def fringe(self) -> None:
        who, u, v = self.who, self.u, self.v
        strands = 1 + 0.25 * self.smooth_noise(0.018, 8)
        hairline = -0.72 - 0.16 * np.cos(u * 2.2 + 0.5) + 0.45 * np.abs(u / 1.15) ** 4
        top = self.edge(hairline - v, 0.10) * self.edge(1 - (u / 1.22) ** 2 - ((v + 0.10) / 1.52) ** 2, 0.05)
        gloss = 1 + 0.5 * np.exp(-(((v + 1.15 + 0.3 * u) / 0.22) ** 2))
        self.lay(np.asarray(who.hair) * (strands * gloss)[..., None], top)
