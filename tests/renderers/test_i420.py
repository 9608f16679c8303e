"""The planes of a frame have the colours that the bt709 matrix gives it."""

from __future__ import annotations

import numpy as np
import pytest

from lipsyncd.renderers.i420 import I420
from tests.kits.media.portraits import picture
from tests.kits.media.video_kit import run_ffmpeg


def converted(image):
    """Luma (H, W), and blue and red difference (2, H/2, W/2)."""
    height, width = image.shape[:2]
    colours = I420(width, height)
    planes = np.full(colours.size_bytes, 77, np.uint8)
    colours.convert(image, planes)
    luma, chroma = np.split(planes, [height * width])
    return luma.reshape(height, width), chroma.reshape(2, height // 2, width // 2)


def exact(image):
    """The same by the definition of bt709 in the limited range, in float64, unrounded."""
    red, green, blue = np.moveaxis(image / 255, -1, 0)
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    chroma = np.stack(((blue - luma) / 1.8556, (red - luma) / 1.5748))
    halves = chroma.reshape(2, image.shape[0] // 2, 2, image.shape[1] // 2, 2).mean((2, 4))
    return 16 + 219 * luma, 128 + 224 * halves


@pytest.mark.parametrize("shape", [(2, 2), (2, 46), (38, 2), (64, 50), (301 * 2, 17 * 2)])
def test_each_sample_is_within_a_level_of_the_definition(shape):
    image = np.random.default_rng(3).integers(0, 256, (*shape, 3), np.uint8)
    image[:2, :2] = 255

    for ours, wanted in zip(converted(image), exact(image), strict=True):
        assert np.abs(ours - wanted).max() < 1.3
        assert abs((ours - wanted).mean()) < 0.4


def test_a_part_of_a_picture_has_the_planes_of_a_copy_of_it():
    image = picture("ada")
    part = image[32:200, 48:170]

    for within, alone in zip(converted(part), converted(part.copy()), strict=True):
        assert np.array_equal(within, alone)
    assert np.array_equal(converted(part)[0], converted(image)[0][32:200, 48:170])
    assert np.array_equal(converted(part)[1], converted(image)[1][:, 16:100, 24:85])


@pytest.mark.parametrize("name", ["ada", "astronaut"])
def test_a_photograph_looks_as_ffmpegs_scaler_makes_it(name):
    image = picture(name)
    height, width = image.shape[:2]
    scale = "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-i", "pipe:0")
    done = run_ffmpeg(
        "-v", "error", *source, "-vf", f"{scale},format=yuv420p", "-f", "rawvideo", "-", data=image.tobytes()
    )

    ours = np.concatenate([plane.ravel() for plane in converted(image)]).astype(float)
    theirs = np.frombuffer(done.stdout, np.uint8)
    assert 10 * np.log10(255**2 / np.mean((ours - theirs) ** 2)) > 55
