"""MuseTalk in a real render child with a real encoder, and once through inbox and daemon. The networks are small."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from lipsyncd.errors import NoFaceFound, RenderTimeout, WeightsMissing  # noqa: E402
from lipsyncd.jobs.prepared import Picture, Sound  # noqa: E402
from lipsyncd.media import ffmpeg  # noqa: E402
from lipsyncd.worker.check_result import validate  # noqa: E402
from lipsyncd.worker.child_process import LocalChild, RenderCancelled, Timeouts  # noqa: E402
from lipsyncd.worker.protocol import Progress, Render  # noqa: E402
from tests.kits.core_kit import is_soon  # noqa: E402
from tests.kits.installation import Installation, put  # noqa: E402
from tests.kits.media.face_kit import backdrop  # noqa: E402
from tests.kits.media.media_kit import wav  # noqa: E402
from tests.kits.media.musetalk_kit import hum, portrait, write_lock, write_weights  # noqa: E402

TIMEOUTS = Timeouts(start_s=60, deadline_s=60, silence_s=60)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def child(weights: Path) -> Iterator[LocalChild]:
    """One child for all tests, since loading takes longer than rendering."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LIPSYNCD_WEIGHTS_DIR", str(weights))
        environment.setenv("OMP_NUM_THREADS", "1")  # a test shares its machine
        child = LocalChild("cpu", lambda: TIMEOUTS)
        child.start()
    yield child
    child.close()


def request(
    folder: Path, *, picture: np.ndarray | None = None, seconds: float = 0.4, fps: str = "25", stitch: bool = False
) -> Render:
    pixels = portrait() if picture is None else picture
    speech = (hum(seconds) * 24_000).astype("<i2")
    pixels.tofile(folder / "picture.rgb")
    speech.tofile(folder / "speech.s16")
    np.repeat(speech, 3).tofile(folder / "sound.s16")
    return Render(
        job_id=f"job-{time.monotonic_ns()}",
        renderer="musetalk",
        folder=str(folder),
        out_file="out.mp4",
        picture=Picture("picture.rgb", pixels.shape[1], pixels.shape[0]),
        sound=Sound("speech.s16", len(speech), "sound.s16", 3 * len(speech), 48_000, 1),
        fps=fps,
        frames=math.ceil(Fraction(len(speech), 16_000) * Fraction(fps)),
        stitch=stitch,
        resolution=128,
        encode={"ffmpeg": str(ffmpeg.find()), "crf": 18, "preset": "ultrafast", "audio_kbps": 128},
    )


def never() -> bool:
    return False


@pytest.mark.slow
def test_one_child_renders_job_after_job_each_with_its_sound(child: LocalChild, tmp_path: Path) -> None:
    made = []
    for changed in ({}, {"picture": portrait(241, 221), "fps": "30000/1001", "stitch": True}):
        job, progress = request(tmp_path, **changed), list[Progress]()
        result = child.render(job, progress=progress.append, stop=never)
        validate(
            tmp_path / "out.mp4",
            frames=job.frames,
            fps=Fraction(job.fps),
            width=result.width,
            height=result.height,
            duration=Fraction(job.sound.samples, 48_000),
            ffmpeg=ffmpeg.find(),
        )
        assert [*dict.fromkeys(p.stage for p in progress)] == ["loading", "analysing", "rendering", "encoding"]
        assert result.notes["painted_frames"] == job.frames
        assert result.notes["device"] == "cpu"
        made.append((result.width, result.height, child.pid))

    assert [size[:2] for size in made] == [(128, 128), (242, 222)]
    assert made[0][2] == made[1][2]

    # A job with an error does not end the child.
    with pytest.raises(NoFaceFound):
        child.render(request(tmp_path, picture=backdrop(200, 200)), progress=progress.append, stop=never)
    assert child.pid == made[0][2]


def test_a_cancelled_render_ends_within_a_second(child: LocalChild, tmp_path: Path) -> None:
    def took_s() -> float:
        progress: list[Progress] = []
        stopped_s: list[float] = []

        def stop() -> bool:
            if any(p.done >= 2 for p in progress):
                stopped_s.append(time.monotonic())
            return bool(stopped_s)

        with pytest.raises(RenderCancelled):
            child.render(request(tmp_path, seconds=60), progress=progress.append, stop=stop)
        return time.monotonic() - stopped_s[0]

    assert is_soon(took_s, 1.0)


def test_a_render_that_takes_too_long_is_ended(child: LocalChild, tmp_path: Path) -> None:
    child.timeouts = lambda: replace(TIMEOUTS, deadline_s=1.5)
    given, started = request(tmp_path, seconds=60), time.monotonic()
    with pytest.raises(RenderTimeout):
        child.render(given, progress=lambda _: None, stop=never)

    assert time.monotonic() - started < 10
    assert child.pid is None
    child.timeouts = lambda: TIMEOUTS


def test_a_child_without_weights_names_the_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIPSYNCD_WEIGHTS_DIR", str(tmp_path))
    child = LocalChild("cpu", lambda: TIMEOUTS)
    with pytest.raises(WeightsMissing, match="musetalkV15/"):
        child.render(request(tmp_path), progress=lambda _: None, stop=never)
    child.close()


def test_a_pair_in_the_inbox_becomes_a_video_in_the_outbox(installation: Installation, weights: Path) -> None:
    lock = write_lock(weights)
    installation.changes = {
        "render": {"renderer": "musetalk", "unload_idle_s": 0},
        "weights": {"dir": str(weights), "lock": str(lock), "auto_pull": False},
    }
    picture = io.BytesIO()
    Image.fromarray(portrait()).save(picture, "PNG")
    with installation.running(OMP_NUM_THREADS="1"):
        put(installation.path("inbox"), "ada.png", picture.getvalue())
        put(installation.path("inbox"), "ada.wav", wav((hum(0.4) * 24_000).astype("<i2").tobytes()))
        installation.until_done("ada")

    sidecar = installation.sidecar("ada")
    assert sidecar["renderer"] == "musetalk"
    assert (installation.path("outbox") / "ada.mp4").stat().st_size > 1000
