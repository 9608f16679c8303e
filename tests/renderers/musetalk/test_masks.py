"""Masks and blending, pixel for pixel as in the original. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from lipsyncd.renderers.framing import Box
from lipsyncd.renderers.musetalk.painting.blend import PasteBack, alpha_blend
from lipsyncd.renderers.musetalk.painting.masks import MODES, SIDE, WIDE_RIM, blend_square, cut_square, mask_of, place
from lipsyncd.renderers.musetalk.painting.scaling import bicubic, bilinear, resize

GOLDENS = Path(__file__).parents[2] / "goldens"
FACES = ("centre", "near_edge", "odd")
PIXELS = NDArray[np.uint8]


@pytest.fixture(scope="module")
def labels() -> PIXELS:
    labels: PIXELS = np.load(GOLDENS / "parsing_labels.npy")
    return labels


@pytest.fixture(scope="module")
def blending() -> dict[str, Any]:
    return dict(np.load(GOLDENS / "blending.npz"))


@pytest.fixture(scope="module")
def picture() -> PIXELS:
    """The astronaut, with the channel order of the recorded pictures."""
    pixels: PIXELS = np.ascontiguousarray(skimage.data.astronaut()[..., ::-1])
    return pixels


def face_of(blending: dict[str, Any], name: str) -> Box:
    x, y, right, bottom = (int(value) for value in blending[f"{name}_face_box"])
    return Box(x, y, right - x, bottom - y)


def patch_for(face: Box) -> PIXELS:
    y, x = np.mgrid[: face.height, : face.width]
    channels = (x * 255 / face.width, y * 255 / face.height, (x + y) % 256)
    patch: PIXELS = np.dstack(channels).astype(np.uint8)
    return patch


# -- scaling -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32 - 1))
def test_scaling_equals_pillows(before: int, after: int, seed: int) -> None:
    for channels in ((), (3,)):
        pixels = np.random.default_rng(seed).integers(0, 256, (before, before, *channels), np.uint8)
        for ours, theirs in ((bilinear, Image.Resampling.BILINEAR), (bicubic, Image.Resampling.BICUBIC)):
            wanted = np.asarray(Image.fromarray(pixels).resize((after, after), theirs))
            assert np.array_equal(resize(pixels, after, ours), wanted)


def test_a_large_picture_is_scaled_in_blocks_of_rows() -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (700, 700, 3), np.uint8)
    wanted = np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR))

    assert np.array_equal(resize(pixels, SIDE, bilinear), wanted)


# -- masks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_masks_of_each_mode(labels: PIXELS, mode: str) -> None:
    assert np.array_equal(mask_of(labels, mode), np.load(GOLDENS / "parsing_masks.npz")[mode])


def test_narrower_cheeks(labels: PIXELS) -> None:
    wanted = np.load(GOLDENS / "parsing_masks.npz")["jaw_cheek80"]

    assert np.array_equal(mask_of(labels, "jaw", cheeks=(80, 80)), wanted)


@pytest.mark.parametrize("name", FACES)
def test_the_square_of_the_blend_and_its_wide_rim(labels: PIXELS, blending: dict[str, Any], name: str) -> None:
    face = face_of(blending, name)
    square = blend_square(face)

    assert [square.x, square.y, square.right, square.bottom] == blending[f"{name}_material_box"].tolist()
    alpha = place(mask_of(labels), face, square, rim=WIDE_RIM)
    assert np.array_equal(alpha, blending[f"{name}_material_mask"])


def test_outside_of_the_picture_the_square_is_black(picture: PIXELS) -> None:
    cut = cut_square(picture, Box(-51, 400, 246, 246))

    assert not cut[:, :51].any() and not cut[112:].any()
    assert np.array_equal(cut[:112, 51:], picture[400:, :195])


# -- blending ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FACES)
@pytest.mark.parametrize("kind", ["jaw", "raw", "material"])
def test_the_pasted_picture(picture: PIXELS, labels: PIXELS, blending: dict[str, Any], name: str, kind: str) -> None:
    face = face_of(blending, name)
    square = blend_square(face)
    rim = {"rim": WIDE_RIM} if kind == "material" else {}
    alpha = place(mask_of(labels, "jaw" if kind == "material" else kind), face, square, **rim)
    paste = PasteBack.from_mask(alpha, square, face, picture)
    frame = picture.copy()

    paste.blend_patch(picture, patch_for(face), frame)

    wanted = picture.copy()
    wanted[:336, :352] = blending[f"{name}_{kind}_blend"]
    assert np.array_equal(frame, wanted)
    assert paste.area.width * paste.area.height < face.width * face.height


def test_only_the_area_is_written(picture: PIXELS, labels: PIXELS, blending: dict[str, Any]) -> None:
    face = face_of(blending, "centre")
    square = blend_square(face)
    paste = PasteBack.from_mask(place(mask_of(labels), face, square), square, face, picture)
    frame = np.full_like(picture, 7)

    paste.blend_patch(picture, patch_for(face), frame)

    area = np.zeros(picture.shape[:2], bool)
    area[paste.area.y : paste.area.bottom, paste.area.x : paste.area.right] = True
    assert (frame[~area] == 7).all()
    assert (frame[area] != 7).any()


def test_weight_fades_from_the_source_to_the_painted_face(
    picture: PIXELS, labels: PIXELS, blending: dict[str, Any]
) -> None:
    face = face_of(blending, "centre")
    square = blend_square(face)
    paste = PasteBack.from_mask(place(mask_of(labels), face, square), square, face, picture)
    patch = patch_for(face)
    off = []
    for weight in (0.0, 0.25, 0.5, 0.75, 1.0):
        frame = picture.copy()
        paste.blend_patch(picture, patch, frame, weight=weight)
        off.append(float(np.abs(frame.astype(np.int16) - picture).sum()))

    assert off[0] == 0
    assert np.allclose(np.array(off) / off[-1], [0, 0.25, 0.5, 0.75, 1], atol=0.02)


def test_a_patch_of_another_size_fills_the_face_box(picture: PIXELS, blending: dict[str, Any]) -> None:
    face = face_of(blending, "odd")
    square = blend_square(face)
    paste = PasteBack.from_mask(np.full((square.height, square.width), 255, np.uint8), square, face, picture)
    frame = picture.copy()

    paste.blend_patch(picture, np.full((256, 256, 3), 9, np.uint8), frame)

    assert (frame[face.y : face.bottom, face.x : face.right] == 9).all()
    assert paste.area == face


def test_an_empty_mask_changes_nothing(picture: PIXELS, blending: dict[str, Any]) -> None:
    face = face_of(blending, "centre")
    square = blend_square(face)
    paste = PasteBack.from_mask(np.zeros((square.height, square.width), np.uint8), square, face, picture)
    frame = picture.copy()

    paste.blend_patch(picture, patch_for(face), frame)

    assert np.array_equal(frame, picture)


@pytest.mark.parametrize("alpha", [0, 1, 127, 128, 254, 255])
def test_alpha_blend_equals_pillows_paste_for_every_pair_of_values(alpha: int) -> None:
    over, under = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    wanted = Image.fromarray(under)
    wanted.paste(Image.fromarray(over), (0, 0), Image.new("L", (256, 256), alpha))

    ours = alpha_blend(over[..., None], under[..., None], np.full((256, 256, 1), alpha, np.uint16))

    assert np.array_equal(ours[..., 0], np.asarray(wanted))
