"""Some frames of a video are those of the whole video, bit for bit, wherever a part begins and on which shot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from lipsyncd.renderers import Scene, Shot
from lipsyncd.renderers.motion.moving_shot import moving
from lipsyncd.renderers.preview import Preview
from lipsyncd.renderers.span import Spanning, span_of
from tests.kits.media.preview_kit import painted, silence, voice
from tests.kits.media.preview_kit import scene as scene_of

Frames = list[NDArray[np.uint8]]
CUTS = (0, 1, 50, 51, 100)


def copies(frames: Iterator[NDArray[np.uint8]]) -> Frames:
    return [frame.copy() for frame in frames]


def opened(scene: Scene) -> Shot:
    return moving(Preview().open(scene), scene)


def in_parts(shots: Sequence[Shot], ends: Sequence[int]) -> Frames:
    """The frames between neighbouring `ends`, each part on the next shot."""
    parts = pairwise(ends)
    return [frame for number, part in enumerate(parts) for frame in copies(span_of(shots[number % len(shots)], *part))]


@pytest.fixture(scope="module")
def scene() -> Scene:
    """A picture that speaks, pauses and speaks, while its head moves."""
    speech = np.concatenate([silence(0.4), voice("Good morning! How are you?"), silence(0.5), voice("Fine.")])
    return replace(scene_of(painted("ada", 256).picture, speech, fps=Fraction(30000, 1001)), motion="subtle")


@pytest.fixture(scope="module")
def whole(scene: Scene) -> Frames:
    return copies(opened(scene).frames())


def test_parts_equal_the_whole_video_in_shots_of_their_own_and_in_one_after_another(
    scene: Scene, whole: Frames
) -> None:
    ends = (*CUTS, scene.frames)
    assert len(whole) == scene.frames > CUTS[-1]
    assert any(not np.array_equal(whole[cut - 1], whole[cut]) for cut in CUTS[1:]), "something moves at a joint"
    for shots in ([opened(scene) for _ in ends[1:]], [opened(scene)]):
        assert all(map(np.array_equal, in_parts(shots, ends), whole))


def test_parts_may_be_drawn_in_any_order(scene: Scene, whole: Frames) -> None:
    shot = opened(scene)
    assert all(map(np.array_equal, copies(span_of(shot, 70, 90)), whole[70:90]))
    assert all(map(np.array_equal, copies(span_of(shot, 20, 40)), whole[20:40]))


def test_a_part_that_ends_early_leaves_the_shot_usable(scene: Scene, whole: Frames) -> None:
    shot = opened(scene)
    part = span_of(shot, 10, 60)
    next(part)
    part.close()  # type: ignore[attr-defined]
    assert np.array_equal(next(span_of(shot, 30, 31)), whole[30])


class Counting:
    """A shot that begins at its first frame only, and counts what it draws."""

    width = height = 2
    notes: dict[str, object] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.drawn = 0

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        for number in range(20):
            self.drawn += 1
            yield np.full((2, 2, 3), number, np.uint8)


def test_of_a_shot_that_cannot_begin_anywhere_the_frames_before_are_drawn_and_dropped() -> None:
    shot = Counting()
    assert not isinstance(shot, Spanning)
    assert [int(frame[0, 0, 0]) for frame in span_of(shot, 5, 8)] == [5, 6, 7]
    assert shot.drawn == 8
