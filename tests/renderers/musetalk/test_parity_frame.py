"""Whole frames of `parity` beside frames that are composed of the stages recorded from the original's code.

    recorded latents ──► recorded output of the UNet ──► decoded, beside the recorded pixels ──► recorded mask ──► frame

The composition is written with Pillow and OpenCV alone, and is itself held against a recorded frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from fractions import Fraction

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

torch = pytest.importorskip("torch")

from lipsyncd.renderers import Scene  # noqa: E402
from lipsyncd.renderers.framing import Box  # noqa: E402
from lipsyncd.renderers.musetalk.bench.random_inputs import face_at  # noqa: E402
from lipsyncd.renderers.musetalk.gpu_memory import BatchSize  # noqa: E402
from lipsyncd.renderers.musetalk.painting.job_painter import JobPainter  # noqa: E402
from lipsyncd.renderers.musetalk.painting.networks import Painter  # noqa: E402
from lipsyncd.renderers.musetalk.painting.pipeline import Pipeline  # noqa: E402
from lipsyncd.renderers.musetalk.painting.prepared_face import prepare_face  # noqa: E402
from lipsyncd.renderers.musetalk.still_shot import StillShot, Voice  # noqa: E402
from tests.kits.media.musetalk_kit import (  # noqa: E402
    GOLDENS,
    astronaut,
    furthest,
    golden,
    small_unet,
    small_vae,
)

PIXELS = NDArray[np.uint8]
FRAMES = 3


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class RecordedTokens:
    """The windows of audio features that the recorded pass of the UNet was given."""

    def __init__(self, seed: int) -> None:
        drawn = np.random.RandomState(seed).standard_normal((FRAMES, 50, 384)).astype(np.float32)
        self._tokens = torch.from_numpy(drawn)

    def window(self, frame: int) -> torch.Tensor:
        return self._tokens[frame]

    def ahead(self, frames: list[int]) -> AbstractContextManager[None]:
        return nullcontext()  # they are there


def composed(picture: PIXELS, patch: PIXELS, face: Box, mask: PIXELS) -> PIXELS:
    """A frame as the original composes it.

    patch  the painted face, of any size
    mask   (512, 512), 0 or 255, as made of the label map
    """
    half = int(max(face.width, face.height) // 2 * 1.5)
    left, top = (face.x + face.right) // 2 - half, (face.y + face.bottom) // 2 - half
    inside = (face.x - left, face.y - top, face.right - left, face.bottom - top)
    whole = Image.fromarray(picture)
    square = whole.crop((left, top, left + 2 * half, top + 2 * half))
    square.paste(Image.fromarray(cv2.resize(patch, (face.width, face.height))), inside[:2])
    alpha = Image.new("L", square.size, 0)
    alpha.paste(Image.fromarray(mask).resize(square.size).crop(inside), inside[:2])
    values = np.array(alpha)
    values[: int(2 * half * 0.5)] = 0
    kernel = int(0.05 * 2 * half // 2 * 2) + 1
    whole.paste(square, (left, top), Image.fromarray(cv2.GaussianBlur(values, (kernel, kernel), 0)))
    return np.array(whole)


def recorded_face() -> Box:
    x, y, right, bottom = (int(value) for value in golden("generator")["face_box"])
    return Box(x, y, right - x, bottom - y)


def test_the_composition_gives_the_recorded_frame() -> None:
    face, wanted = recorded_face(), golden("blending")
    assert wanted["centre_face_box"].tolist() == [face.x, face.y, face.right, face.bottom]
    y, x = np.mgrid[: face.height, : face.width]
    patch = np.dstack((x * 255 / face.width, y * 255 / face.height, (x + y) % 256)).astype(np.uint8)
    bgr = np.ascontiguousarray(astronaut()[..., ::-1])
    for mode in ("jaw", "raw"):
        frame = composed(bgr, patch, face, golden("parsing_masks")[mode])
        assert np.array_equal(frame[:336, :352], wanted[f"centre_{mode}_blend"]), mode
        assert np.array_equal(frame[336:], bgr[336:]) and np.array_equal(frame[:, 352:], bgr[:, 352:])


@pytest.fixture(scope="module")
def wanted() -> list[PIXELS]:
    """Frames (512, 512, 3) RGB, composed of recorded stages."""
    recorded, mask = golden("generator"), golden("parsing_masks")["jaw"]
    with torch.inference_mode():
        decoded = small_vae().decode(torch.from_numpy(recorded["pred"]) / 0.18215).sample
    patches = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    off = np.abs(patches[:, ::2, ::2, ::-1].astype(np.int16) - recorded["decoded_bgr"])
    assert off.max() <= 2 and off.mean() < 0.05, "not the pixels that the original decoded"
    return [composed(astronaut(), patch, recorded_face(), mask) for patch in patches]


@pytest.mark.parametrize("batch", [1, 2])
def test_a_frame_of_parity_is_the_originals(wanted: list[PIXELS], batch: int) -> None:
    recorded, face = golden("generator"), face_at(recorded_face())
    painter, labels = JobPainter(Painter(small_unet(), small_vae())), np.load(GOLDENS / "parsing_labels.npy")
    prepared = prepare_face(astronaut(), face, painter, lambda *_: labels, "jaw")
    assert furthest(prepared.latents.numpy(), recorded["latents"]) < 1e-3
    scene = Scene(astronaut(), np.zeros(1920, np.int16), Fraction(25), FRAMES, stitch=True, resolution=256)
    voice = Voice(RecordedTokens(int(recorded["audio_seed"])), np.ones(FRAMES, np.float32))  # type: ignore[arg-type]

    shot = StillShot(
        scene,
        face.box,
        prepared,
        voice,
        Pipeline(painter, BatchSize(torch.device("cpu"), 14), batch),
        parity=True,
        notes={},
        done=lambda _: None,
    )
    frames = [frame.copy() for frame in shot.frames()]

    changed = np.any([frame != astronaut() for frame in wanted], axis=(0, 3))
    assert changed.sum() > 3000
    for frame, expected in zip(frames, wanted, strict=True):
        off = np.abs(frame.astype(np.int16) - expected)
        assert off.max() <= 2 and off[changed].mean() < 0.05
    # The frames differ from one another and from the source by far more than what is allowed here.
    apart = np.abs(wanted[0].astype(np.int16) - wanted[1])[changed].mean()
    assert apart > 1, apart
