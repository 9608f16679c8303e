"""A still that lives: the motion of one picture, laid over its finished frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.face.networks import Mesh
from lipsyncd.renderers.face.points import OVAL
from lipsyncd.renderers.framing import Box, RgbImage
from lipsyncd.renderers.motion.blinks import blink_starts, lid_closure
from lipsyncd.renderers.motion.easing import smoothstep
from lipsyncd.renderers.motion.eye_opening import blinking_eyes
from lipsyncd.renderers.motion.field import LEAST_JACOBIAN, WAYS, Field
from lipsyncd.renderers.motion.head import LIMITS, head_numbers
from lipsyncd.renderers.motion.head_pose import HeadPose
from lipsyncd.renderers.motion.lids import Lid
from lipsyncd.renderers.motion.sampler import Sampler

KINDS = tuple(LIMITS)
FRONTAL_DEG, SIDE_DEG, AT_SIDE = 20.0, 60.0, 0.35  # what remains of the motion of a head seen from its side
AT_EDGE, CLEAR = 0.30, 0.12  # what remains at the edge of the picture; the distance, in sizes, that counts as far


class StillMotion:
    """The moving head of one canvas, for each frame of one video.

    field    the displacement field
    numbers  (frames, ways) float32: how far the head moves in each frame, as `field.WAYS` lists them
    closure  (frames,) how far the lids are closed: 0 to 1
    changes  the box beyond which every moved frame equals the canvas
    """

    def __init__(
        self,
        canvas: RgbImage,
        mesh: Mesh,
        *,
        kind: str,
        at_s: NDArray[np.floating],
        seed: int,
        emphasis: NDArray[np.floating] | None = None,
        speaking: NDArray[np.floating] | None = None,
        blink: bool = True,
        other_faces: Sequence[Box] = (),
        changes: Box | None = None,
    ) -> None:
        """
        canvas       (H, W, 3) uint8 RGB, the frame in which nothing moves
        mesh         (468, 3) float32 x, y, z in pixels of the canvas
        kind         "subtle" or "lively"
        at_s         (frames,) the time of each frame in seconds, increasing
        seed         of all that is chosen by chance
        emphasis     (frames,) 0 to 1: how much the voice stresses something; None: nowhere
        speaking     (frames,) 0 to 1: 0 in pauses; None: everywhere
        other_faces  boxes of other faces in the canvas, which are not moved
        changes      the box of the canvas beyond which the frames given to `apply` equal it; None: they may differ
                     anywhere
        """
        height, width = canvas.shape[:2]
        times = np.asarray(at_s, np.float64)
        stress = _curve(emphasis, len(times), 0.0)
        voiced = _curve(speaking, len(times), 1.0)
        pose = HeadPose.of(mesh)
        self.field = Field((width, height), mesh, pose, other_faces)
        numbers = head_numbers(times, LIMITS[kind], seed, stress, voiced)
        share, reasons = _less_motion(mesh, pose, width, height)
        most = np.abs(numbers).max(axis=0, initial=0.0)
        unfolded = _unfolded(self.field, share * most)
        if unfolded < 1:
            reasons.append("little room")
        self.numbers = numbers * np.float32(share * unfolded)
        self._lids = [Lid(canvas, eye) for eye in blinking_eyes(canvas, mesh)] if blink else []
        drawn = changes or Box(0, 0, width, height)
        self._parts = [drawn, *(lid.box for lid in self._lids)]
        self._sampler = Sampler(canvas, self.field.box, self._parts)
        self._blinking = canvas.copy() if self._lids else canvas
        self.changes = reduce(Box.union, (self.field.box, *self._parts))
        starts = blink_starts(times, stress, seed) if self._lids else []
        self.closure = lid_closure(times, starts)
        self._notes = _notes(kind, self.numbers, share * unfolded, reasons) | {"blinks": len(starts)}

    @property
    def notes(self) -> Mapping[str, object]:
        """Facts for the sidecar: the largest turns in degrees, and why they are smaller than the kind allows."""
        return self._notes

    def apply(self, frame: RgbImage, number: int) -> RgbImage:
        """Move frame `number` of the video.

        frame    (H, W, 3) uint8 RGB of the canvas's size; it is not changed
        returns  the same; `frame` itself when nothing moves, else an array that the next call may change
        """
        numbers, closure = self.numbers[number], float(self.closure[number])
        if closure > 0:
            frame = self._blinked(frame, closure)
        if not numbers.any():
            return frame
        x, y = self.field.sources(numbers, self._sampler.scale)
        return self._sampler.sampled(frame, x, y)

    def _blinked(self, frame: RgbImage, closure: float) -> RgbImage:
        """The frame with its lids closed. Only what may differ from the canvas is copied."""
        for part in self._parts:
            self._blinking[part.place] = frame[part.place]
        for lid in self._lids:
            lid.close(self._blinking, closure)
        return self._blinking


def _curve(values: NDArray[np.floating] | None, frames: int, otherwise: float) -> NDArray[np.float64]:
    return np.full(frames, otherwise) if values is None else np.asarray(values, np.float64)


def _less_motion(mesh: Mesh, pose: HeadPose, width: int, height: int) -> tuple[float, list[str]]:
    """The share of the motion that suits this head in this picture, and why it is not all."""
    share, reasons = 1.0, []
    turned = max(abs(pose.yaw_deg), abs(pose.pitch_deg))
    if turned > FRONTAL_DEG:
        share *= 1 - (1 - AT_SIDE) * float(smoothstep((turned - FRONTAL_DEG) / (SIDE_DEG - FRONTAL_DEG)))
        reasons.append(f"turned by {turned:.0f} degrees")
    x, y = mesh[list(OVAL), :2].T
    clear = min(x.min(), y.min(), width - 1 - x.max(), height - 1 - y.max()) / pose.size_px
    if clear < CLEAR:
        share *= 1 - (1 - AT_EDGE) * float(smoothstep(1 - clear / CLEAR))
        reasons.append("at the edge of the picture")
    return share, reasons


def _unfolded(field: Field, most: NDArray[np.float32]) -> float:
    """The largest share of these numbers, at most 1, with which the field keeps its Jacobian."""
    if field.least_jacobian(most) >= LEAST_JACOBIAN:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if field.least_jacobian(most * np.float32(middle)) >= LEAST_JACOBIAN else (low, middle)
        )
    return low


def _notes(kind: str, numbers: NDArray[np.float32], share: float, reasons: list[str]) -> dict[str, object]:
    most = dict(zip(WAYS, np.abs(numbers).max(axis=0, initial=0.0).tolist(), strict=True))
    notes: dict[str, object] = {
        "kind": kind,
        "yaw_deg": round(float(np.degrees(most["yaw"])), 2),
        "pitch_deg": round(float(np.degrees(most["pitch"])), 2),
        "roll_deg": round(float(np.degrees(most["roll"])), 2),
        "drift_percent": round(100 * max(most["right"], most["down"]), 2),
    }
    if reasons:
        notes["reduced"] = {"share": round(share, 2), "why": reasons}
    return notes
