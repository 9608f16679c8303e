"""The preview renderer as a whole: reproducible frames, options, blinks, memory and speed."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from lipsyncd.errors import BadOption, NoFaceFound
from lipsyncd.renderers import NAMES, Renderer
from lipsyncd.renderers.audio import frame_times
from lipsyncd.renderers.framing import crop_square, square_around
from lipsyncd.renderers.preview import Preview, content_seed
from lipsyncd.renderers.preview.draw.blink import EVERY_S, lid_closure
from tests.kits.media.preview_kit import Subject, astronaut, moved_down, painted, render, scene, silence, voice

ROOT = Path(__file__).resolve().parents[3]


# -- reproducible frames -----------------------------------------------------------------------------------------------

DIGEST = """
import hashlib, sys
import numpy as np
from fractions import Fraction
from lipsyncd.renderers import Scene
from lipsyncd.renderers.preview import Preview
inputs = np.load(sys.argv[1])
digest = hashlib.sha256()
for stitch in (True, False):
    scene = Scene(inputs["picture"], inputs["speech"], Fraction(25), 60, stitch, 256, {"sway": 0.5})
    for frame in Preview().open(scene).frames():
        digest.update(frame.tobytes())
print(digest.hexdigest())
"""


def test_the_same_input_gives_the_same_frames_bit_for_bit_in_another_process(tmp_path):
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, picture=astronaut().picture, speech=voice("Good morning! How do you do?")[:38_400])
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST, str(inputs)],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }

    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64


def test_another_voice_has_other_blinks():
    picture = painted("ada", 256).picture
    seeds = {content_seed(scene(picture, speech)) for speech in (silence(1), silence(2), voice("Hello."))}

    assert len(seeds) == 3


def test_a_renderer_can_have_several_scenes_open():
    """Scenes do not affect each other, even when their frames are taken in turn."""
    speech = voice("Hello there.")
    renderer = Preview()
    alone = [render(painted(name, 256).picture, speech) for name in ("ada", "chen")]
    shots = [renderer.open(scene(painted(name, 256).picture, speech)).frames() for name in ("ada", "chen")]
    renderer.close()

    for index, (ada, chen) in enumerate(zip(*shots, strict=True)):
        assert np.array_equal(ada, alone[0][index])
        assert np.array_equal(chen, alone[1][index])


def test_it_implements_the_interface_under_its_name():
    module, _, name = NAMES["preview"].partition(":")

    assert (module, name) == (Preview.__module__, "Preview")
    assert isinstance(Preview(), Renderer)


# -- the frames --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [64, 256, 514])
def test_the_square_of_a_still_face_is_the_square_of_the_picture(resolution):
    subject = painted("chen")
    shot = Preview().open(scene(subject.picture, silence(1), stitch=False, resolution=resolution))
    square = square_around(_box(shot.notes), 512, 512)
    (frame, *_) = shot.frames()

    assert (shot.width, shot.height) == (resolution, resolution)
    assert np.array_equal(frame, crop_square(subject.picture, square, resolution))


def test_an_odd_picture_is_extended_by_its_edge():
    picture = painted("ada", 301).picture[:, :299]
    shot = Preview().open(scene(picture, voice("Hello.")))

    assert (shot.width, shot.height) == (300, 302)
    for frame in shot.frames():
        assert frame.shape == (302, 300, 3)
        assert np.array_equal(frame[301, :299], picture[300])
        assert np.array_equal(frame[:301, 299], picture[:, 298])


def test_a_face_at_the_edge_of_the_picture_is_drawn():
    """Half of the lower face's window lies outside the picture."""
    picture = np.ascontiguousarray(painted("bashir").picture[60:392, 130:390])
    frames = render(picture, voice("Hello there."))

    assert {frame.shape for frame in frames} == {(332, 260, 3)}
    assert any(not np.array_equal(frame, picture) for frame in frames)


def test_there_are_as_many_frames_as_requested():
    speech = voice("Hello.")
    for frames in (1, 7, 200):
        assert len(render(painted("ada", 256).picture, speech, frames=frames)) == frames


def test_notes_are_json_and_describe_the_face():
    notes = Preview().open(scene(astronaut().picture, silence(1))).notes

    assert json.loads(json.dumps(notes)) == notes
    assert notes["teeth"] == "own"
    assert notes["blinks"] is True
    assert notes["eyes_px"] == pytest.approx(44.3, abs=3)
    assert Preview().open(scene(painted("ada").picture, silence(1))).notes["teeth"] == "painted"


def _box(notes):
    from lipsyncd.renderers.framing import Box

    return Box(*notes["face"])


# -- blinks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_blinks_come_every_three_to_six_seconds(seed):
    at_s = frame_times(Fraction(100), 6000)
    closure = lid_closure(at_s, seed)
    shut_s = at_s[np.flatnonzero((closure[1:-1] == 1) & (closure[:-2] < 1)) + 1]

    assert 60 / EVERY_S[1] - 1 <= len(shut_s) <= 60 / EVERY_S[0] + 1
    assert np.diff(shut_s).min() >= EVERY_S[0] - 0.02
    assert np.diff(shut_s).max() <= EVERY_S[1] + 0.02
    assert (closure > 0).mean() < 0.12


@pytest.mark.parametrize("fps", [Fraction(24), Fraction(25), Fraction(60)])
def test_every_frame_rate_shows_each_blink(fps):
    closure = lid_closure(frame_times(fps, int(60 * fps)), seed=7)
    fine = lid_closure(frame_times(Fraction(1000), 60_000), seed=7)

    def blinks(curve):
        return int(np.count_nonzero((curve[1:] > 0) & (curve[:-1] == 0)))

    assert blinks(closure) == blinks(fine) > 8
    assert closure.max() > 0.9


@pytest.mark.parametrize("subject", [astronaut(), painted("ada"), painted("bashir"), painted("chen").turned(10)])
def test_a_blink_moves_the_lids_down_and_nothing_else(subject: Subject):
    frames = render(subject.picture, silence(8))
    changed = np.any([frame != frames[0] for frame in frames], axis=(0, 3))
    height, width = changed.shape
    u, v = subject.plane.coordinates(np.arange(width)[None, :], np.arange(height)[:, None])
    eyes = (np.abs(np.abs(u) - 0.5) < 0.36) & (v > -0.36) & (v < 0.24)

    assert changed[eyes].mean() > 0.15
    assert not changed[~eyes].any()
    shut = max(frames, key=lambda frame: int(np.count_nonzero(frame != frames[0])))
    for side in (-0.5, 0.5):
        assert np.percentile(moved_down(frames[0], shut, subject, (side - 0.1, -0.1, side + 0.1, 0.05)), 90) > 0.03


def test_shut_eyes_show_no_iris():
    subject = painted("ada")  # blue eyes
    frames = render(subject.picture, silence(8))
    shut = max(frames, key=lambda frame: int(np.count_nonzero(frame != frames[0])))
    x, y = (int(subject.left_eye[0]), int(subject.left_eye[1]))
    iris = np.s_[y - 6 : y + 8, x - 7 : x + 8]

    def blueness(picture):
        return picture[iris][..., 2].astype(int).mean() - picture[iris][..., 0].astype(int).mean()

    assert blueness(frames[0]) > 10
    assert blueness(shut) < -20


def test_without_blinks_the_eyes_stay_open():
    frames = render(painted("ada", 256).picture, silence(8), options={"blink": False})

    assert all(np.array_equal(frame, frames[0]) for frame in frames)


# -- options -----------------------------------------------------------------------------------------------------------


def test_sway_moves_the_head_a_little_and_leaves_the_corners():
    subject = painted("chen")
    still = render(subject.picture, silence(6), options={"blink": False})
    frames = render(subject.picture, silence(6), options={"blink": False, "sway": 1})

    assert np.array_equal(frames[0][:40, :40], still[0][:40, :40])
    assert all(np.array_equal(frame[:12, :12], subject.picture[:12, :12]) for frame in frames)
    forehead = (-0.5, -0.6, 0.5, -0.4)
    drift = [np.median(moved_down(still[0], frame, subject, forehead)) for frame in frames[::10]]
    most = 0.01 * 512 / subject.plane.unit_px
    assert 0.002 < np.ptp(drift) <= 2 * most
    steps = np.abs(np.diff([frame.astype(int).mean() for frame in frames]))
    assert steps.max() < 0.5  # it drifts and does not jump


def test_strength_opens_the_mouth_less_or_more():
    subject, speech = painted("ada", 256), voice("[[a:a:]]")

    def changed(strength):
        frames = render(subject.picture, speech, options={"strength": strength, "blink": False})
        return max(float(np.abs(frame.astype(int) - subject.picture).mean()) for frame in frames)

    assert changed(0.5) < 0.8 * changed(1.0) < 0.9 * changed(1.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blnk": True}, "no option 'blnk'; it has these: blink, sway, strength"),
        ({"blink": 1}, "option blink is 1; it must be true or false"),
        ({"sway": 1.5}, "option sway is 1.5; it must be a number from 0 to 1"),
        ({"sway": -0.1}, "option sway is -0.1"),
        ({"sway": True}, "option sway is True"),
        ({"strength": "1"}, "option strength is '1'; it must be a number from 0.5 to 1.5"),
        ({"strength": float("nan")}, "option strength is nan"),
        ({"strength": None}, "option strength is None"),
    ],
)
def test_wrong_options_are_refused_before_any_work(options, message):
    with pytest.raises(BadOption) as caught:
        Preview().open(scene(np.zeros((64, 64, 3), np.uint8), silence(1), options=options))

    assert message in str(caught.value)
    assert caught.value.permanent


def test_a_picture_without_a_face_fails_on_opening():
    with pytest.raises(NoFaceFound, match="64x64 pixels"):
        Preview().open(scene(np.zeros((64, 64, 3), np.uint8), silence(1)))


# -- memory and speed --------------------------------------------------------------------------------------------------

TEN_MINUTES = """
import sys
import numpy as np
from fractions import Fraction
from pathlib import Path
from lipsyncd.renderers import Scene
from lipsyncd.renderers.preview import Preview
inputs = np.load(sys.argv[1])
speech = np.resize(inputs["speech"], 600 * 16000)
scene = Scene(inputs["picture"], speech, Fraction(5), 3000, True, 512)
count = sum(1 for frame in Preview().open(scene).frames())
# Not getrusage: its maximum includes the process from which this one was forked.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(count, int(status["VmHWM"].split()[0]) // 1024)
"""


@pytest.mark.slow
def test_ten_minutes_fit_into_600_megabytes(tmp_path):
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, picture=astronaut().picture, speech=voice("Good morning! How do you do?"))
    done = subprocess.run(
        [sys.executable, "-c", TEN_MINUTES, str(inputs)],
        env={"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    frames, most_mb = (int(word) for word in done.stdout.split())

    assert frames == 3_000  # all of them would take 2.4 GB
    assert most_mb < 600


@pytest.mark.parametrize(("stitch", "resolution"), [(True, 256), (False, 512)])
def test_rendering_is_many_times_faster_than_real_time(stitch, resolution):
    """The encoder takes one core; for four times real time a frame may take at most 10 ms."""
    shot = Preview().open(
        scene(painted("ada").picture, voice("Good morning! How do you do?"), stitch=stitch, resolution=resolution)
    )
    frames, started = shot.frames(), time.process_time()
    count = sum(1 for _ in frames)

    assert (time.process_time() - started) / count < 0.008


def test_the_seed_depends_on_the_content_only():
    """A recorded value, since a change of the seed would move the blinks of every video."""
    subject = scene(np.full((4, 4, 3), 7, np.uint8), np.arange(8, dtype=np.int16))
    digest = hashlib.blake2b(b"\7" * 48 + np.arange(8, dtype="<i2").tobytes(), digest_size=8).digest()

    assert content_seed(subject) == int.from_bytes(digest, "big")
