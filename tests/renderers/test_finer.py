"""Pictures made finer are read as sharply as by cubic interpolation; coarse grids are enlarged alike in every part."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from lipsyncd.renderers.coarse_grid import Grid
from lipsyncd.renderers.finer import finer
from lipsyncd.renderers.preview.draw.fine_box import FineBox
from lipsyncd.renderers.preview.plane import PixelBox
from tests.kits.media.portraits import picture


def cubic(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return cv2.remap(image, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE).astype(int)


def places(height: int, width: int, off: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:height, :width].astype(np.float32)
    swing = np.float32(off) * np.sin(x / 7 + y / 11)
    return x + swing, y - swing


@pytest.mark.parametrize("times", [2, 4])
def test_each_pixel_keeps_its_value_and_those_between_are_cubic(times):
    image = picture("astronaut")[60:161, 180:290]
    fine = finer(image, times)

    assert np.array_equal(fine[::times, ::times], image)
    x, y = (at / np.float32(times) for at in places(*fine.shape[:2]))
    assert np.abs(fine - cubic(image, x, y)).max() <= 6  # rounded twice, clipped twice
    assert np.abs(fine - cubic(image, x, y)).mean() < 0.15


def test_a_picture_of_one_pixel_stays_one_colour():
    assert (finer(np.full((1, 1, 3), 77, np.uint8), 4) == 77).all()


@pytest.mark.parametrize(
    ("side", "scale", "mean"), [(100, 4, 0.35), (800, 2, 0.6), (1500, 1, 0.0)], ids=["small", "large", "huge"]
)
def test_a_part_is_read_nearly_as_by_cubic_interpolation(side, scale, mean):
    image = np.tile(picture("astronaut"), (4, 4, 1))
    box = PixelBox(150, 40, 150 + side, 40 + side)
    part = FineBox(image, box)
    x, y = (at + np.float32(start) for at, start in zip(places(side, side, 1.5), (150, 40), strict=True))
    read = part.read(*(at.astype(np.float32) for at in part.places(x, y)))

    assert part.scale == scale
    inner = np.s_[4:-4, 4:-4]  # beyond the box its edge is repeated
    assert np.abs(read - cubic(image, x, y))[inner].mean() <= mean


def test_a_part_at_the_edge_repeats_it():
    image = picture("ada")
    part = FineBox(image, PixelBox(0, 0, 40, 40))
    x, y = part.places(np.full((1, 3), -20.0), np.array([[0.0, 10.0, 39.0]]))

    assert np.array_equal(part.read(x.astype(np.float32), y.astype(np.float32))[0], image[[0, 10, 39], 0])


@pytest.mark.parametrize("cell_px", [1, 2, 3, 8])
def test_a_grid_keeps_a_slope_and_each_part_is_that_of_the_whole(cell_px):
    grid = Grid(left=7, top=-3, width=101, height=50, cell_px=cell_px)
    slope = (2 * grid.x[None, :] - 3 * grid.y[:, None]).astype(np.float32)
    whole = grid.enlarged(slope)

    assert whole.shape == (50, 101)
    y, x = np.mgrid[-3:47, 7:108]
    assert np.abs(whole - (2 * x - 3 * y)).max() < 1e-3
    uneven = np.random.default_rng(1).random(slope.shape, np.float32)
    for part in (np.s_[0:50, 0:101], np.s_[0:1, 100:101], np.s_[13:31, 5:96], np.s_[49:50, 1:2]):
        assert np.abs(grid.enlarged(uneven, part) - grid.enlarged(uneven)[part]).max() < 1e-5
