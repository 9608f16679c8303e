"""The moving head laid over the shots of real renderers, by what their jobs ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from types import MappingProxyType

import numpy as np
import pytest

from lipsyncd.renderers import Scene, Shot, Still
from lipsyncd.renderers.face.finder import find_faces
from lipsyncd.renderers.motion.moving_shot import motion_of, moving
from lipsyncd.renderers.preview import Preview
from tests.kits.media.portraits import picture
from tests.kits.media.preview_kit import voice

FRAMES = 75


@pytest.fixture(scope="module")
def scene() -> Scene:
    speech = np.resize(voice("Good morning! How do you do?"), FRAMES * 640)
    return Scene(picture("astronaut"), speech, Fraction(25), FRAMES, False, 256, "subtle", {})


def frames(scene: Scene) -> tuple[Shot, list[np.ndarray]]:
    shot = moving(Preview().open(scene), scene)
    return shot, [frame.copy() for frame in shot.frames()]


def test_the_head_moves_and_begins_and_ends_in_its_place(scene):
    shot, moved = frames(scene)
    _, still = frames(replace(scene, motion="none"))
    assert shot.notes["motion"]["kind"] == "subtle"
    assert (shot.width, shot.height, len(moved)) == (256, 256, FRAMES)
    for place in (0, -1):
        assert np.array_equal(moved[place], still[place])
    assert np.abs(moved[FRAMES // 2].astype(int) - still[FRAMES // 2]).mean() > 0.5


def test_lively_moves_more_than_subtle_and_none_not_at_all(scene):
    def turned(kind: str) -> float:
        bridge = [find_faces(frame)[0].mesh[[6, 168, 197], :2].mean(axis=0) for frame in frames_of(kind)[::5]]
        return float(np.ptp(np.array(bridge), axis=0).max())

    def frames_of(kind: str) -> list[np.ndarray]:
        return frames(replace(scene, motion=kind))[1]

    none, subtle, lively = map(turned, ("none", "subtle", "lively"))
    # The mesh of an open mouth differs a little everywhere.
    assert none < 0.6 * subtle < 0.6 * 0.8 * lively


@pytest.mark.parametrize("motion", ["none", "lively"])
@pytest.mark.parametrize(("stitch", "name"), [(True, "hopper"), (False, "ada")])
def test_frames_differ_from_the_still_only_where_it_says_and_say_the_same_with_and_without(scene, motion, stitch, name):
    asked = replace(scene, picture=picture(name), motion=motion, stitch=stitch)
    shot, drawn = frames(asked)
    free = Preview().open(asked)
    free.still = replace(free.still, changes=None)

    assert all(map(np.array_equal, drawn, moving(free, asked).frames()))
    for frame in drawn:
        differs = (frame != shot.still.canvas).any(axis=2)
        differs[shot.still.changes.place] = False
        assert not differs.any()


@pytest.mark.parametrize(
    ("motion", "options", "expected"),
    [
        ("lively", {}, "lively"),
        ("none", {}, "none"),
        ("none", {"sway": 0.5}, "subtle"),
        ("none", {"sway": 0}, "none"),
        ("lively", {"sway": 0.5}, "lively"),
        ("lively", {"parity": True}, "none"),
        ("subtle", {"parity": False}, "subtle"),
    ],
)
def test_what_a_job_asks_for(scene, motion, options, expected):
    assert motion_of(replace(scene, motion=motion, options=options)) == expected


def test_without_blinks_the_lids_stay_open(scene):
    long = replace(scene, speech=np.zeros(250 * 640, np.int16), frames=250)
    assert frames(replace(long, frames=250))[0].notes["motion"]["blinks"] > 0
    assert frames(replace(long, options={"blink": False}))[0].notes["motion"]["blinks"] == 0


class Stranger:
    """The shot of somebody's own renderer: a still without a mesh."""

    width = height = 256
    notes: Mapping[str, object] = MappingProxyType({"made_by": "stranger"})

    def __init__(self, canvas: np.ndarray, frames: int) -> None:
        self.still = Still(canvas)
        self._frames = frames

    def frames(self):
        for _ in range(self._frames):
            yield self.still.canvas


def test_any_renderers_still_moves_and_one_without_a_face_says_why_it_does_not(scene):
    canvas = Preview().open(scene).still.canvas
    shot = moving(Stranger(canvas, FRAMES), scene)
    moved = [frame.copy() for frame in shot.frames()]
    assert shot.notes["made_by"] == "stranger"
    assert any(not np.array_equal(frame, canvas) for frame in moved)
    blank = moving(Stranger(np.full((256, 256, 3), 128, np.uint8), FRAMES), scene)
    assert blank.notes["motion"] == {"kind": "none", "why": "no face in the picture of 256x256 pixels"}
    assert len(list(blank.frames())) == FRAMES


def test_a_shot_that_names_no_still_is_left_alone(scene):
    class Bare(Stranger):
        def __init__(self) -> None:
            self._frames = 3

    bare = Bare()
    assert moving(bare, scene) is bare
