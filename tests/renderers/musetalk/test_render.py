"""The whole renderer with small random networks: from a scene to its frames, and failures."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from lipsyncd.errors import BadOption, DeviceMissing, NoFaceFound, WeightsMissing  # noqa: E402
from lipsyncd.jobs.options import OPTIONS  # noqa: E402
from lipsyncd.media import video_frames  # noqa: E402
from lipsyncd.renderers import Renderer, Scene  # noqa: E402
from lipsyncd.renderers.musetalk import renderer as module  # noqa: E402
from lipsyncd.renderers.musetalk.options import Options  # noqa: E402
from lipsyncd.renderers.musetalk.painting.masks import SIDE, blend_square, mask_of  # noqa: E402
from lipsyncd.renderers.musetalk.painting.parsing import draw_labels  # noqa: E402
from lipsyncd.renderers.musetalk.renderer import MuseTalk, RendererSettings, find_device  # noqa: E402
from lipsyncd.renderers.span import Spanning  # noqa: E402
from lipsyncd.weights.lock_list import read_lock  # noqa: E402
from tests.kits.doc_pages import table  # noqa: E402
from tests.kits.media.face_kit import backdrop, draw_head  # noqa: E402
from tests.kits.media.musetalk_kit import portrait, scene, speech, write_weights  # noqa: E402

PICTURE = NDArray[np.uint8]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def renderer(weights: Path) -> Iterator[MuseTalk]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield MuseTalk("cpu", RendererSettings(weights))
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def parsing(renderer: MuseTalk, tmp_path_factory: pytest.TempPathFactory) -> MuseTalk:
    """One that can parse faces."""
    return MuseTalk("cpu", RendererSettings(write_weights(tmp_path_factory.mktemp("parsing"), parser=True)))


def render(renderer: MuseTalk, scene: Scene) -> list[PICTURE]:
    return [frame.copy() for frame in renderer.open(scene).frames()]


def prefetchers() -> int:
    return sum(thread.name == "prefetcher" for thread in threading.enumerate())


# -- frames ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stitch", [True, False], ids=["whole", "square"])
@pytest.mark.parametrize("fps", [Fraction(24), Fraction(30_000, 1001)], ids=str)
def test_a_scene_becomes_its_frames(renderer: MuseTalk, stitch: bool, fps: Fraction) -> None:
    given = scene(portrait(241, 221), fps=fps, stitch=stitch)
    shot = renderer.open(given)
    frames = list(shot.frames())

    assert isinstance(renderer, Renderer)
    assert len(frames) == given.frames
    assert (shot.width, shot.height) == ((242, 222) if stitch else (128, 128))
    assert {(frame.shape, str(frame.dtype)) for frame in frames} == {((shot.height, shot.width, 3), "uint8")}


def test_only_the_lower_half_of_the_face_changes(renderer: MuseTalk) -> None:
    picture = portrait(241, 221)
    shot = renderer.open(scene(picture))
    x, y, width, height = shot.notes["face"]
    frames = [frame.copy() for frame in shot.frames()]

    changed = np.any([frame[:221, :241] != picture for frame in frames], axis=(0, 3))
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    assert x <= columns[0] and columns[-1] < x + width
    assert y + 0.4 * height < rows[0] and rows[-1] < y + height
    assert changed[y + height // 2 : y + height, x : x + width].mean() > 0.4
    assert any((a != b).any() for a, b in pairwise(frames))  # the mouth moves with the sound
    assert all(
        np.array_equal(frame[221], frame[220]) and np.array_equal(frame[:, 241], frame[:, 240]) for frame in frames
    )


@pytest.mark.parametrize("stitch", [True, False], ids=["whole", "square"])
def test_frames_differ_from_the_still_only_where_it_says(renderer: MuseTalk, stitch: bool) -> None:
    shot = renderer.open(scene(portrait(240, 220), stitch=stitch))
    still = shot.still  # type: ignore[attr-defined]

    for frame in shot.frames():
        differs = (frame != still.canvas).any(axis=2)
        differs[still.changes.place] = False
        assert not differs.any()
    assert still.changes.width * still.changes.height < shot.width * shot.height / 2


def test_a_still_picture_is_encoded_once_for_a_voice_of_any_length(renderer: MuseTalk) -> None:
    encoder, seen = renderer._painter.vae.encoder, list[int]()
    hook = encoder.register_forward_hook(lambda _module, given, _answer: seen.append(len(given[0])))
    try:
        for seconds in (0.2, 1.0):
            seen.clear()
            frames = render(renderer, scene(voice=speech(seconds)))
            assert len(frames) == seconds * 25
            assert sum(seen) == 2, "the masked face and the whole face"
    finally:
        hook.remove()


@pytest.mark.parametrize("clear", [True, False], ids=["cleared", "kept"])
def test_unused_memory_is_returned_at_the_next_rest_if_so_configured(weights: Path, clear: bool) -> None:
    renderer = MuseTalk("cpu", RendererSettings(weights, clear_cache=clear))
    render(renderer, scene())
    # Small blocks, which the C library keeps in its heap, with a block at the end of the heap that stays in use.
    taken = [torch.ones(16_384) for _ in range(3_000)]
    top = taken.pop()
    taken.clear()
    before = resident_mb()
    render(renderer, scene())
    assert before - resident_mb() < 100, "the next job may use it"
    renderer.rest()
    given_back = before - resident_mb()
    assert top.numel()
    assert (given_back > 100) is clear, f"{given_back:.0f} of 197 MB"


def resident_mb() -> float:
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1000


def test_two_renders_give_identical_frames(renderer: MuseTalk, weights: Path) -> None:
    first = render(renderer, scene())

    assert np.array_equal(first, render(renderer, scene()))
    assert np.array_equal(first, render(MuseTalk("cpu", RendererSettings(weights)), scene()))


def test_in_a_pause_the_source_is_shown_and_no_network_runs(renderer: MuseTalk) -> None:
    picture, fps = portrait(), Fraction(10)
    voice = np.concatenate((speech(0.3), np.zeros(16_000, np.int16), speech(0.3)))
    shot = renderer.open(scene(picture, voice, fps=fps))
    frames = [frame.copy() for frame in shot.frames()]

    still = [np.array_equal(frame, picture) for frame in frames]
    assert still == [False] * 6 + [True] * 4 + [False] * 6  # the fades, three frames each, lie in the pause
    assert shot.notes["painted_frames"] == 12
    ungated = render(renderer, scene(picture, voice, fps=fps, silence="model"))
    assert not any(np.array_equal(frame, picture) for frame in ungated)


def test_a_silent_voice_runs_no_network(renderer: MuseTalk) -> None:
    picture = portrait()
    frames = render(renderer, scene(picture, np.zeros(16_000, np.int16)))

    assert len(frames) == 25
    assert all(np.array_equal(frame, picture) for frame in frames)


def test_the_chosen_face_is_the_one_that_speaks(renderer: MuseTalk) -> None:
    picture = draw_head(draw_head(backdrop(1000, 260), 150, 130, 130), 800, 130, 100)
    for face, middle in ((0, 150), (1, 800), ("805,120", 800)):
        x, _, width, _ = renderer.open(scene(picture, face=face)).notes["face"]
        assert abs(x + width / 2 - middle) < 10, face


def test_a_picture_without_a_face_is_refused(renderer: MuseTalk) -> None:
    with pytest.raises(NoFaceFound):
        renderer.open(scene(backdrop(240, 220)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"smile": True},
        {"silence": "loud"},
        {"mask": "none"},
        {"extra_margin": -1},
        {"extra_margin": 2.5},
        {"batch": 0},
        {"batch": True},
        {"detail": 1.1},
        {"detail": True},
        {"detail": "much"},
        {"parity": 1},
        {"face": "left"},
        {"duration_mode": "once"},
    ],
    ids=str,
)
def test_options_are_checked(renderer: MuseTalk, wrong: dict[str, Any]) -> None:
    with pytest.raises(BadOption, match=next(iter(wrong))):
        renderer.open(scene(**wrong))


def test_the_documentation_lists_every_option() -> None:
    listed = {row[0].strip("`") for row in table("option")}

    assert listed == {item.name for item in fields(Options)} | {video_frames.OPTION}
    assert {*OPTIONS["musetalk"]} == listed | {"blink"}


def test_a_face_larger_than_the_painted_patch_gets_a_warning(renderer: MuseTalk) -> None:
    assert "warning" not in renderer.open(scene()).notes
    assert "looks soft" in renderer.open(scene(portrait(720, 640, size=330))).notes["warning"]


def test_the_option_detail_is_for_large_faces_and_never_for_parity(parsing: MuseTalk) -> None:
    """The small random networks paint nothing that looks like the source, so it is seen in what is prepared."""
    large = portrait(400, 380, size=330)
    most = {
        (detail, parity): found and round(float(found.most.max()), 3)
        for detail, parity in ((0, False), (0.5, False), (1, True))
        for found in [parsing.open(scene(large, detail=detail, parity=parity))._prepared.detail]  # type: ignore[attr-defined]
    }
    assert most == {(0, False): None, (0.5, False): 0.5, (1, True): None}
    assert parsing.open(scene(detail=1))._prepared.detail is None  # type: ignore[attr-defined]


def test_parity_paints_by_the_parsed_mask_or_is_refused_without_its_weights(
    renderer: MuseTalk, parsing: MuseTalk
) -> None:
    """Masks drawn from the landmarks are 16.6 levels away from the original's; whole frames: `test_parity_frame`."""
    with pytest.raises(WeightsMissing, match="79999_iter"):
        renderer.open(scene(parity=True))
    exact, drawn = parsing.open(scene(parity=True)), parsing.open(scene())
    assert (exact.notes["mask"], drawn.notes["mask"]) == ("parsing", "landmarks")
    with pytest.raises(BadOption, match="option mask is 'landmarks' with parity"):
        parsing.open(scene(parity=True, mask="landmarks"))


def test_the_parsing_mask_needs_its_weights_and_uses_them(renderer: MuseTalk, parsing: MuseTalk) -> None:
    with pytest.raises(WeightsMissing, match="79999_iter"):
        renderer.open(scene(mask="parsing"))

    by_landmarks, by_parsing = (parsing.open(scene(mask=mask, mode="raw")) for mask in ("landmarks", "parsing"))
    assert by_parsing.notes["mask"] == "parsing"
    assert not np.array_equal(next(by_landmarks.frames()), next(by_parsing.frames()))


def test_no_gradients_are_kept(renderer: MuseTalk) -> None:
    """Without inference mode the same batch takes four times the memory."""
    shot = renderer.open(scene())
    answers = []
    assert renderer._gate is not None
    decoders = (renderer._painter.vae.decoder, renderer._gate.fused.decoder)  # the first is used for a comparison
    hooks = [one.register_forward_hook(lambda *given: answers.append(given[-1])) for one in decoders]
    frames = list(shot.frames())
    for hook in hooks:
        hook.remove()

    assert len(answers) in (len(frames), len(frames) + 2)
    assert all(answer.is_inference() and not answer.requires_grad for answer in answers)


def test_closing_a_shot_early_ends_its_thread(renderer: MuseTalk) -> None:
    frames = renderer.open(scene(voice=speech(4))).frames()
    next(frames)
    assert prefetchers() == 1

    started = time.monotonic()
    frames.close()

    assert prefetchers() == 0
    assert time.monotonic() - started < 10  # a few batches, and not the hundred frames


# -- loading -----------------------------------------------------------------------------------------------------------


def test_every_file_is_where_the_lock_list_puts_it() -> None:
    ours = {value for name, value in vars(module).items() if name.isupper() and isinstance(value, str) and "/" in value}

    assert ours == {weight.used_file for weight in read_lock()}


@pytest.mark.parametrize("file", [module.UNET, module.VAE_CONFIG, module.LANDMARKS])
def test_missing_weights_are_named(tmp_path: Path, file: str) -> None:
    (write_weights(tmp_path) / file).unlink()

    with pytest.raises(WeightsMissing, match=file):
        MuseTalk("cpu", RendererSettings(tmp_path))


def test_the_settings_come_from_the_daemons_environment_variables() -> None:
    environment = {
        "LIPSYNCD_WEIGHTS_DIR": "/w",
        "LIPSYNCD_RENDER_MAX_VRAM_GB": "7.5",
        "LIPSYNCD_RENDER_CLEAR_CACHE": "false",
    }

    assert RendererSettings.from_environment(environment) == RendererSettings(Path("/w"), 7.5, False)
    assert RendererSettings.from_environment({"LIPSYNCD_WEIGHTS_DIR": "/w"}) == RendererSettings(Path("/w"), 14.0, True)
    with pytest.raises(WeightsMissing):
        RendererSettings.from_environment({})


def test_a_device_without_a_number_is_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.cuda.set_device` refuses a GPU without a number, so only the count of GPUs is replaced here."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    assert [find_device(name) for name in ("auto", "cuda", "cuda:0")] == [torch.device("cuda", 0)] * 3
    assert find_device("cuda:1") == torch.device("cuda", 1)
    assert find_device("cpu") == find_device("cpu:0") == torch.device("cpu")
    for name in ("cuda:2", "cpu:1"):
        with pytest.raises(DeviceMissing, match=f"'{name}': it has 2 GPUs"):
            find_device(name)


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0", "cuda:7"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_absent_gpu_is_never_replaced_by_the_cpu(weights: Path, name: str) -> None:
    with pytest.raises(DeviceMissing, match=name):
        MuseTalk(name, RendererSettings(weights))


def test_closing_drops_the_networks(weights: Path) -> None:
    renderer = MuseTalk("cpu", RendererSettings(weights))
    alive = renderer._painter.unet
    renderer.close()

    assert not hasattr(renderer, "_painter")
    assert isinstance(alive, nn.Module)


# -- the mask from landmarks -------------------------------------------------------------------------------------------


def test_the_mask_from_landmarks_covers_chin_and_lips_but_not_the_nose(renderer: MuseTalk) -> None:
    from lipsyncd.renderers.musetalk.face.find_face import find_face

    picture = portrait()
    face = find_face(picture, renderer._landmarks)
    square = blend_square(face.box)
    labels = draw_labels(face.landmarks, square)
    mask = mask_of(labels)

    def at(point: int, down: float = 0.0) -> int:
        x, y = (face.landmarks[point] - (square.x, square.y)) * (SIDE / square.width)
        return int(mask[round(y + down), round(x)])

    assert at(8, down=5) == 255  # a little below the chin
    assert all(at(point) == 255 for point in (48, 51, 54, 57, 62, 66))
    assert at(30) == 0
    assert mask[0].sum() == mask[:, 0].sum() == mask[:, -1].sum() == 0


def test_parts_of_a_video_are_painted_in_the_batches_of_the_whole(renderer: MuseTalk) -> None:
    """Pauses are not painted, so batches and frames do not begin at the same numbers."""
    quiet = np.zeros(12_800, np.int16)
    voice = np.concatenate([speech(0.5), quiet, speech(0.9)])
    asked = scene(voice=voice, batch=4)
    whole = render(renderer, asked)
    painted = renderer.open(asked)
    frames = len(list(painted.frames()))
    count = painted.notes["painted_frames"]
    assert isinstance(count, int)
    assert 8 < count < frames - 4

    shot = renderer.open(asked)
    assert isinstance(shot, Spanning)
    ends = (0, 5, 14, 16, 33, 34, frames)
    parts = [frame.copy() for start, stop in pairwise(ends) for frame in shot.span(start, stop)]
    assert len(parts) == len(whole) == frames
    assert all(map(np.array_equal, parts, whole))
