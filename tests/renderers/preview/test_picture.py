"""The visible result: the mouth of the photograph follows the voice, and nothing else moves."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
import pytest

from lipsyncd.renderers.face.choose import choose_face
from lipsyncd.renderers.preview.plane import Window
from tests.kits.media.preview_kit import (
    Subject,
    astronaut,
    best_lag,
    correlation,
    loudness,
    mouth_change,
    moved_down,
    openings,
    painted,
    render,
    silence,
    subjects,
    voice,
)

FOX = "The quick brown fox jumps over the lazy dog, and nobody seems to mind."
STELLA = "Please call Stella. Ask her to bring these things with her from the store."
GUTEN_TAG = "Guten Morgen! Mein Name ist Ada, und ich freue mich, Sie heute zu sehen."
SPOKEN = [(FOX, "en-us"), (STELLA, "en-us+f3"), (GUTEN_TAG, "de")]


def some(number: int, quick: int):
    """The first subjects; those behind the first `quick` ones are left to the slow tests."""
    marks = [() if i < quick else (pytest.mark.slow,) for i in range(number)]
    given = [pytest.param(subject, marks=mark) for subject, mark in zip(subjects(), marks, strict=False)]
    return pytest.mark.parametrize("subject", given, ids=[subject.name for subject in subjects()[:number]])


ALL_SUBJECTS, FOUR_PEOPLE = some(9, quick=3), some(4, quick=2)


def closed(subject: Subject, **changed: object) -> np.ndarray:
    return render(subject.picture, silence(0.2), **changed)[0]


@pytest.mark.parametrize(
    ("subject", "spoken"),
    [
        pytest.param(subject, spoken, marks=() if i < 2 else pytest.mark.slow)
        for i, subject in enumerate(subjects())
        for j, spoken in enumerate(SPOKEN)
        if i < 4 or i % 3 == j
    ],
    ids=lambda given: given.name if isinstance(given, Subject) else given[0][:12],
)
def test_the_mouth_follows_the_voice(subject, spoken):
    text, speaker = spoken
    speech = voice(text, speaker)
    frames = render(subject.picture, speech)
    sound = loudness(speech, len(frames))
    change = mouth_change(frames, closed(subject), choose_face(subject.picture).box)
    heights = openings(frames, subject)[:, 0]

    assert correlation(change, sound) >= 0.6
    assert correlation(heights, sound) >= 0.5
    # Never late: viewers expect the lips a little before the sound.
    assert best_lag(change, sound) in (-1, 0)
    assert best_lag(heights, sound) in (-1, 0)
    assert np.ptp(heights) > 0.15  # it opens by a sixth of an eye distance or more


@ALL_SUBJECTS
def test_the_chin_goes_down_at_the_loudest_vowels_while_the_eyes_stay(subject):
    speech = voice(STELLA)
    rest = closed(subject, options={"blink": False})
    frames = render(subject.picture, speech, options={"blink": False})
    loudest = np.argsort(loudness(speech, len(frames)))[-3:]

    for frame in (frames[i] for i in loudest):
        chin = (-0.15, subject.chin_v - 0.12, 0.15, subject.chin_v)
        assert np.median(moved_down(rest, frame, subject, chin)) >= 0.05
        assert np.abs(moved_down(rest, frame, subject, (-0.8, -0.3, 0.8, 0.3))).max() < 0.01


@ALL_SUBJECTS
def test_a_i_and_u_look_different(subject):
    shapes = {}
    for vowel in ("a:", "i:", "u:"):
        sizes = openings(render(subject.picture, voice(f"[[{vowel}{vowel}]]")), subject)
        held = sizes[sizes[:, 0] >= np.percentile(sizes[:, 0], 70)]
        shapes[vowel] = held.mean(axis=0)
    (a_high, a_wide), (i_high, i_wide), (u_high, u_wide) = (shapes[vowel] for vowel in ("a:", "i:", "u:"))

    assert a_high > i_high + 0.06
    assert a_high > u_high + 0.04
    assert i_wide > u_wide + 0.12
    assert a_wide > u_wide + 0.08


@pytest.mark.parametrize("consonant", ["p", "b", "m"])
@pytest.mark.parametrize("vowel", ["a:", "o:"])
@FOUR_PEOPLE
def test_p_b_and_m_between_vowels_close_the_lips(subject, vowel, consonant):
    speech = voice(f"[[{vowel}{consonant}{vowel}]]")
    heights = openings(render(subject.picture, speech), subject)[:, 0]
    shut = openings([closed(subject)], subject)[0, 0]
    open_share = (heights - shut) / (heights.max() - shut)
    between = quietest_between_vowels(speech, len(heights))

    assert open_share[:between].max() > 0.2  # open before the consonant, even though the voice starts at full level
    assert open_share[between - 1 : between + 2].min() < 0.2
    assert open_share[between:].max() > 0.9  # and after the consonant


def quietest_between_vowels(speech, frames):
    """The frame of the consonant: where the high formants are weakest, in the inner part of the sound."""
    power = np.abs(np.diff(speech.astype(np.float64)))  # a difference suppresses the low murmur of an m
    level = [power[int(i * 640) : int((i + 1) * 640)].mean() for i in range(frames - 1)]
    heard = np.flatnonzero(np.array(level) > 0.25 * max(level))
    return int(heard[0] + 1 + np.argmin(level[heard[0] + 1 : heard[-1]]))


@FOUR_PEOPLE
def test_silence_shows_a_still_and_closed_mouth(subject):
    frames = render(subject.picture, silence(3), options={"blink": False})

    assert len(frames) == 75
    assert all(np.array_equal(frame, frames[0]) for frame in frames)
    assert openings(frames[:1], subject)[0, 0] < 0.09  # the teeth of a smile are covered, too


def test_a_closed_mouth_at_rest_is_the_unchanged_photograph():
    subject = painted("ada")

    assert np.array_equal(closed(subject), subject.picture)


def test_a_smile_keeps_its_own_teeth_and_gets_no_second_row():
    """Where the source has a tooth, a wide open mouth shows the same one: pale, at the same position."""
    subject = astronaut()
    frames = render(subject.picture, voice("[[a:a:]]"))
    widest = frames[int(np.argmax(openings(frames, subject)[:, 0]))]
    teeth = np.s_[146:148, 219:231]

    assert np.abs(widest[teeth].astype(int) - subject.picture[teeth]).mean() < 40
    below = np.s_[149:152, 219:231]  # below them it is dark: no row is painted
    assert widest[below].mean() < 0.6 * widest[teeth].mean()


@pytest.mark.parametrize(
    "turned",
    [astronaut(), astronaut().turned(12), painted("bashir"), painted("chen").turned(-12)],
    ids=lambda subject: subject.name,
)
def test_everything_outside_the_head_stays_unchanged(turned):
    height, width = turned.picture.shape[:2]
    u, v = turned.plane.coordinates(np.arange(width)[None, :], np.arange(height)[:, None])
    outside = (np.abs(u) > 1.05) | (v < -0.35) | (v > turned.chin_v + 0.45)

    for frame in render(turned.picture, voice(FOX)):
        assert np.array_equal(frame[outside], turned.picture[outside])


def test_the_square_around_the_head_does_not_move_either():
    subject = painted("bashir")
    frames = render(subject.picture, voice(FOX), stitch=False, resolution=256)
    changed = np.any([frame != frames[0] for frame in frames], axis=(0, 3))

    assert frames[0].shape == (256, 256, 3)
    assert changed.any()
    assert not changed[:60].any()  # hair and forehead
    assert not changed[:, :24].any()
    assert not changed[:, -24:].any()


@FOUR_PEOPLE
def test_no_grey_rim_at_the_corners_in_the_first_steps_of_opening(subject):
    """In an earlier version the painted inside was visible beside the mouth before it was open."""
    frames = render(subject.picture, voice(FOX), options={"blink": False})
    heights = openings(frames, subject)[:, 0]
    slightly = [frame for frame, height in zip(frames, heights, strict=True) if height < heights.min() + 0.08]
    assert slightly
    for side in (-1, 1):
        corner = Window(side * 0.40 - 0.08, subject.mouth_v - 0.15, side * 0.40 + 0.08, subject.mouth_v + 0.15, 100)
        usual = least_colourful(subject.plane.cut(slightly[0], corner))
        assert min(least_colourful(subject.plane.cut(frame, corner)) for frame in slightly) > usual - 6


def least_colourful(picture):
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    return np.percentile(np.hypot(lab[..., 1], lab[..., 2]), 3)


@pytest.mark.parametrize("fps", [Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30), Fraction(60)])
def test_every_frame_rate_shows_the_same_movement(fps):
    subject, speech = painted("chen", 256), voice(STELLA)
    frames = render(subject.picture, speech, fps=fps)
    heights = openings(frames, subject)[:, 0]
    sound = loudness(speech, len(frames), fps)

    assert len(frames) == -(-len(speech) * fps // 16_000)
    assert correlation(heights, sound) >= 0.5
    assert -Fraction(60, 1000) <= best_lag(heights, sound) / fps <= 0
