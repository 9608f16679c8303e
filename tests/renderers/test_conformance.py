"""The requirements that every renderer has to meet, checked in a real child with a real encoder."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from lipsyncd.errors import BadOption, NoFaceFound, UnknownRenderer
from lipsyncd.jobs.job import MOTIONS
from lipsyncd.jobs.prepared import Picture, Sound
from lipsyncd.media import ffmpeg
from lipsyncd.worker.check_result import validate
from lipsyncd.worker.child_process import LocalChild, RenderCancelled, Timeouts
from lipsyncd.worker.protocol import Progress, Render, Result
from tests.kits.core_kit import is_soon
from tests.kits.media.preview_kit import astronaut, voice

# Without the extra `musetalk` its renderer cannot be checked.
WITH_NETWORKS = find_spec("torch") is not None
RENDERERS = ["preview", pytest.param("musetalk", marks=pytest.mark.slow)] if WITH_NETWORKS else ["preview"]
RATES = ["24", "25", "30000/1001", "30", "60"]
TIMEOUTS = Timeouts(start_s=60, deadline_s=120, silence_s=60)


@dataclass
class Bench:
    """A child, a folder for its jobs, and its progress messages."""

    child: LocalChild
    folder: Path
    progress: list[Progress] = field(default_factory=list)
    stopped_s: float = math.inf  # when the render was first requested to stop

    def request(
        self,
        renderer: str,
        *,
        picture: np.ndarray | None = None,
        seconds: float = 1.01,
        fps: str = "25",
        stitch: bool = False,
        resolution: int = 128,
        motion: str = "none",
        **options: object,
    ) -> Render:
        pixels = subject(renderer) if picture is None else picture
        speech = np.resize(voice("How do you do?"), round(seconds * 16_000)).astype("<i2")
        pixels.tofile(self.folder / "picture.rgb")
        speech.tofile(self.folder / "speech.s16")
        np.repeat(speech, 3).tofile(self.folder / "sound.s16")
        frames = math.ceil(Fraction(len(speech), 16_000) * Fraction(fps))
        return Render(
            job_id=f"job-{time.monotonic_ns()}",
            renderer=renderer,
            folder=str(self.folder),
            out_file="out.mp4",
            picture=Picture("picture.rgb", pixels.shape[1], pixels.shape[0]),
            sound=Sound("speech.s16", len(speech), "sound.s16", 3 * len(speech), 48_000, 1),
            fps=fps,
            frames=frames,
            stitch=stitch,
            resolution=resolution,
            motion=motion,
            options=options,
            encode={"ffmpeg": str(ffmpeg.find()), "crf": 18, "preset": "veryfast", "audio_kbps": 128},
        )

    def render(self, request: Render, *, stop_after: int | None = None) -> Result:
        self.progress, self.stopped_s = [], math.inf

        def stop() -> bool:
            wanted = stop_after is not None and any(p.done >= stop_after for p in self.progress)
            self.stopped_s = min(self.stopped_s, time.monotonic() if wanted else math.inf)
            return wanted

        return self.child.render(request, progress=self.progress.append, stop=stop)

    def validate(self, request: Render, result: Result) -> None:
        validate(
            self.folder / request.out_file,
            frames=request.frames,
            fps=Fraction(request.fps),
            width=result.width,
            height=result.height,
            duration=Fraction(request.sound.samples, request.sound.rate),
            ffmpeg=ffmpeg.find(),
        )

    @property
    def digest(self) -> str:
        return hashlib.sha256((self.folder / "out.mp4").read_bytes()).hexdigest()


def subject(renderer: str) -> np.ndarray:
    """A face that the renderer can find, (512, 512, 3); the small landmark network of tests sees red heads."""
    if renderer.endswith("musetalk") and WITH_NETWORKS:
        from tests.kits.media.face_kit import backdrop, draw_head

        return draw_head(backdrop(512, 512), 224, 120, 130)
    return astronaut().picture


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalChild]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        if WITH_NETWORKS:
            from tests.kits.media.musetalk_kit import write_weights

            weights = write_weights(tmp_path_factory.mktemp("weights"))
            environment.setenv("LIPSYNCD_WEIGHTS_DIR", str(weights))
        child = LocalChild("cpu", lambda: TIMEOUTS)
        yield child
        child.close()


@pytest.fixture
def bench(child: LocalChild, tmp_path: Path) -> Bench:
    return Bench(child, tmp_path)


pytestmark = pytest.mark.parametrize("renderer", RENDERERS)


@pytest.mark.parametrize("stitch", [False, True], ids=["square", "whole"])
@pytest.mark.parametrize("fps", RATES)
def test_the_video_has_its_frames_and_its_sound_at_every_rate(
    bench: Bench, renderer: str, fps: str, stitch: bool
) -> None:
    request = bench.request(renderer, fps=fps, stitch=stitch)
    result = bench.render(request)

    bench.validate(request, result)
    assert (result.width, result.height) == ((512, 512) if stitch else (128, 128))
    assert result.frames == math.ceil(Fraction(request.sound.samples, 48_000) * Fraction(fps))


def test_every_still_moves_as_its_job_asks_for(bench: Bench, renderer: str) -> None:
    """By one code for all renderers, so a renderer has only to name its still; and as often, the same."""
    digests = {}
    for stitch in (False, True):
        for motion in MOTIONS:
            request = bench.request(renderer, motion=motion, stitch=stitch)
            result = bench.render(request)
            bench.validate(request, result)
            digests[motion, stitch] = bench.digest
            assert result.notes.get("motion", {}).get("kind", "none") == motion, result.notes
    assert len(set(digests.values())) == 6
    bench.render(bench.request(renderer, motion="lively", stitch=True))
    assert bench.digest == digests["lively", True]


def test_odd_sides_become_even(bench: Bench, renderer: str) -> None:
    request = bench.request(renderer, picture=np.ascontiguousarray(subject(renderer)[:401, :385]), stitch=True)
    result = bench.render(request)
    bench.validate(request, result)
    assert (result.width, result.height) == (386, 402)


def test_a_square_may_be_larger_than_the_picture(bench: Bench, renderer: str) -> None:
    request = bench.request(renderer, picture=np.ascontiguousarray(subject(renderer)[40:200, 140:310]), resolution=256)
    result = bench.render(request)
    bench.validate(request, result)
    assert (result.width, result.height) == (256, 256)


def test_progress_goes_up_and_names_the_stages(bench: Bench, renderer: str) -> None:
    bench.render(bench.request(renderer, seconds=4))
    done = [p.done for p in bench.progress]
    assert done == sorted(done)
    assert [*dict.fromkeys(p.stage for p in bench.progress)] == ["loading", "analysing", "rendering", "encoding"]


def test_equal_inputs_give_an_equal_file_also_in_another_child(bench: Bench, renderer: str) -> None:
    request = bench.request(renderer)
    bench.render(request)
    first = bench.digest
    other = LocalChild("cpu", lambda: TIMEOUTS)
    try:
        replace(bench, child=other).render(request)
    finally:
        other.close()
    assert bench.digest == first


def test_a_cancel_takes_effect_within_a_second_and_the_child_goes_on(bench: Bench, renderer: str) -> None:
    bench.render(bench.request(renderer, seconds=0.4))
    pid = bench.child.pid

    def took_s() -> float:
        with pytest.raises(RenderCancelled):
            bench.render(bench.request(renderer, seconds=60, stitch=True), stop_after=1)
        return time.monotonic() - bench.stopped_s

    assert is_soon(took_s, 1.0)
    assert bench.child.pid == pid
    bench.render(bench.request(renderer, seconds=0.4))
    assert bench.child.pid == pid


def test_a_picture_without_a_face_is_refused_with_its_size(bench: Bench, renderer: str) -> None:
    wall = np.full((240, 320, 3), 128, np.uint8)
    with pytest.raises(NoFaceFound, match="320") as error:
        bench.render(bench.request(renderer, picture=wall))
    assert error.value.permanent
    assert error.value.remedy


def test_an_unknown_option_is_refused_with_its_name(bench: Bench, renderer: str) -> None:
    with pytest.raises(BadOption, match="colour"):
        bench.render(bench.request(renderer, colour="red"))


def test_notes_contain_the_face_box(bench: Bench, renderer: str) -> None:
    x, y, width, height = bench.render(bench.request(renderer)).notes["face"]
    assert x <= 224 <= x + width
    assert y <= 130 <= y + height


def test_an_unknown_renderer_is_refused_with_the_known_names(bench: Bench, renderer: str) -> None:
    with pytest.raises(UnknownRenderer) as error:
        bench.render(bench.request(f"no-{renderer}"))
    assert renderer in error.value.remedy
