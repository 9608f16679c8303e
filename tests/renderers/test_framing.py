"""Squares cut out of pictures, and sides made even."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipsyncd.renderers.framing import Box, SquareView, crop_square, make_even, square_around


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.mark.parametrize(
    ("face", "picture", "square"),
    [
        (Box(200, 200, 100, 120), (600, 600), Box(160, 170, 180, 180)),  # 1.5 x 120, centred
        (Box(10, 200, 100, 120), (600, 600), Box(0, 170, 180, 180)),  # shifted right
        (Box(490, 470, 100, 120), (600, 600), Box(420, 420, 180, 180)),  # shifted left and up
        (Box(20, 20, 101, 90), (152, 152), Box(0, 0, 152, 152)),  # an odd side is rounded up
        (Box(10, 10, 100, 120), (110, 300), Box(-30, 0, 180, 180)),  # wider than the picture, which stays inside whole
        (Box(0, 0, 100, 100), (100, 100), Box(-25, -25, 150, 150)),
    ],
)
def test_the_square_is_half_again_as_long_as_the_face_and_shifted_into_the_picture(face, picture, square):
    assert square_around(face, *picture) == square


@pytest.mark.parametrize("resolution", [64, 90, 256])
@pytest.mark.parametrize("square", [Box(20, 10, 90, 90), Box(-20, -30, 150, 150)])
@pytest.mark.parametrize("box", [Box(40, 30, 25, 21), Box(0, 0, 30, 30), Box(99, 80, 21, 20), Box(60, 30, 0, 0)])
def test_a_change_in_the_picture_shows_only_where_the_square_says(rng, resolution, square, box):
    before = rng.integers(0, 256, (100, 120, 3), np.uint8)
    after = before.copy()
    after[box.place] = 255 - after[box.place]
    view = SquareView(120, 100, square, resolution)

    differs = (view.of(before) != view.of(after)).any(axis=2)

    shown = view.shown(box)
    assert shown.within(Box(0, 0, resolution, resolution)) == shown
    differs[shown.place] = False
    assert not differs.any()


@given(st.data())
def test_the_square_holds_the_face_and_leaves_the_picture_only_when_it_is_larger(data):
    width, height = data.draw(st.integers(1, 3000)), data.draw(st.integers(1, 3000))
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    face = Box(x, y, data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y)))

    square = square_around(face, width, height)

    assert square.width == square.height
    assert 0 <= 2 * square.width - 3 * max(face.width, face.height) <= 1
    for start, end, face_start, face_end, size in (
        (square.x, square.right, face.x, face.right, width),
        (square.y, square.bottom, face.y, face.bottom, height),
    ):
        assert start <= face_start and face_end <= end
        inside, around = start >= 0 and end <= size, start <= 0 and end >= size
        assert inside if square.width <= size else around


def test_a_crop_at_its_own_size_is_a_copy_of_the_pixels(rng):
    picture = rng.integers(0, 256, (60, 80, 3), np.uint8)

    cut = crop_square(picture, Box(10, 20, 32, 32), 32)

    assert np.array_equal(cut, picture[20:52, 10:42])
    assert not np.shares_memory(cut, picture)


def test_a_square_beyond_the_picture_repeats_its_edges(rng):
    picture = rng.integers(0, 256, (20, 10, 3), np.uint8)

    cut = crop_square(picture, Box(-8, 0, 26, 26), 26)

    assert np.array_equal(cut[:20, 8:18], picture)
    assert np.array_equal(cut[:20, :8], np.repeat(picture[:, :1], 8, axis=1))
    assert np.array_equal(cut[20:, 8:18], np.repeat(picture[-1:], 6, axis=0))


def test_shrinking_averages_every_pixel_and_so_does_not_alias(rng):
    noise = rng.integers(0, 256, (256, 256, 3), np.uint8)

    small = crop_square(noise, Box(0, 0, 256, 256), 64)

    averages = noise.reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(small - averages).max() <= 1


def test_growing_keeps_the_position_of_an_edge():
    step = np.zeros((32, 32, 3), np.uint8)
    step[:, 16:] = 200

    large = crop_square(step, Box(0, 0, 32, 32), 128)

    assert large.shape == (128, 128, 3)
    assert np.all(large[:, :58] <= 1) and np.all(large[:, 70:] >= 199)


@pytest.mark.parametrize("resolution", [32, 64, 100])
def test_one_view_cuts_each_frame_as_a_single_crop_does(rng, resolution):
    square = Box(-3, 5, 64, 64)
    view = SquareView(50, 70, square, resolution)

    for _ in range(3):
        picture = rng.integers(0, 256, (70, 50, 3), np.uint8)
        assert np.array_equal(view.of(picture), crop_square(picture, square, resolution))


def test_a_square_that_misses_the_picture_is_refused():
    with pytest.raises(ValueError, match="outside"):
        SquareView(50, 50, Box(50, 0, 10, 10), 10)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 6), (4, 7), (5, 7), (1, 1)])
def test_odd_sides_are_extended_by_their_last_row_and_column(rng, height, width):
    picture = rng.integers(0, 256, (height, width, 3), np.uint8)

    even = make_even(picture)

    assert even.shape == (height + height % 2, width + width % 2, 3)
    assert np.array_equal(even[:height, :width], picture)
    assert np.array_equal(even[-1, :width], picture[-1]) and np.array_equal(even[:height, -1], picture[:, -1])
