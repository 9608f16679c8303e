"""MuseTalk with small networks through inbox and daemon: the possible outcomes of a job."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from lipsyncd.jobs.job import JobState
from lipsyncd.media.mp4 import inspect
from tests.kits.installation import Installation, put
from tests.kits.media.face_kit import backdrop
from tests.kits.media.media_kit import encoded, wav
from tests.kits.media.musetalk_kit import hum, portrait, write_lock, write_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The settings of small weights, with a lock list of their own."""
    folder = write_weights(tmp_path_factory.mktemp("weights"))
    return {"dir": str(folder), "lock": str(write_lock(folder)), "auto_pull": False}


def home_of(folder: Path, weights: dict[str, object], **render: object) -> Installation:
    return Installation(
        folder,
        changes={
            "render": {"renderer": "musetalk", **render},
            "weights": weights,
            "intake": {"on_redrop": "render"},
        },
    )


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, object]) -> Iterator[Installation]:
    """One daemon for the whole file, so that the networks are loaded once."""
    installation = home_of(tmp_path_factory.mktemp("busy"), weights)
    with installation.running(OMP_NUM_THREADS="1"):
        yield installation


JAILED = {"picture.rgb", "speech.s16", "sound.s16"}  # decoded in the jail before


def drop(
    installation: Installation, name: str, voice: np.ndarray, picture: np.ndarray | None = None, **fields: object
) -> None:
    """Drop a job that differs from every other in its last pixel and its voice."""
    pixels = (portrait() if picture is None else picture).copy()
    pixels[-1, -1] = np.frombuffer(name.encode()[-3:].rjust(3), np.uint8)
    put(installation.path("inbox"), f"{name}-face.png", encoded(Image.fromarray(pixels), "PNG"))
    put(installation.path("inbox"), f"{name}-voice.wav", wav((voice * 24_000).astype("<i2").tobytes()))
    installation.drop_manifest(name, image=f"{name}-face.png", audio=f"{name}-voice.wav", **fields)


def rendering(installation: Installation, name: str) -> None:
    installation.until(
        lambda: (job := installation.job(name)) and job.stage == "rendering" and job.fraction > 0, "the first frames"
    )


def child_of(installation: Installation) -> int:
    return int(installation.log.rsplit("render child for cpu started, pid ", 1)[1].split()[0])


def test_odd_sides_become_even_in_the_whole_picture(busy: Installation) -> None:
    drop(busy, "odd", hum(0.4), portrait(241, 221), stitch=True, fps=24)
    busy.until_done("odd")
    facts = inspect(busy.path("outbox") / "odd.mp4")
    assert (facts.video.width, facts.video.height, facts.video.frames) == (242, 222, 10)


def test_a_voice_of_silence_gives_a_still_video_of_its_length(busy: Installation) -> None:
    drop(busy, "silent", np.zeros(16_000, np.float32))
    busy.until_done("silent")
    assert inspect(busy.path("outbox") / "silent.mp4").video.frames == 25


def test_two_runs_give_the_same_file(busy: Installation) -> None:
    """The second one is rendered too, since `intake.on_redrop` is set to that here."""
    for name in ("twin-a", "twin-b"):
        put(busy.path("inbox"), f"{name}.png", encoded(Image.fromarray(portrait()), "PNG"))
        put(busy.path("inbox"), f"{name}.wav", wav((hum(0.6) * 24_000).astype("<i2").tobytes()))
        busy.until_done(name)
    one, other = (busy.job(name) for name in ("twin-a", "twin-b"))
    assert one is not None
    assert other is not None
    assert one.id != other.id
    assert all("attempt 1 of 3 on cpu" in [e.note for e in busy.view.events(job.id)] for job in (one, other))
    assert one.out_sha256 == other.out_sha256


def test_memory_does_not_grow_with_the_length_and_no_intermediate_files_are_written(busy: Installation) -> None:
    peaks_mb = []
    for name, seconds in (("brief", 1.0), ("lengthy", 10.0)):
        if peaks_mb:
            Path(f"/proc/{child_of(busy)}/clear_refs").write_text("5")  # resets the peak
        drop(busy, name, hum(seconds), stitch=True)
        if name == "lengthy":
            rendering(busy, name)
            job = busy.job(name)
            assert job is not None
            inside = {p.name for p in (busy.path("spool") / job.id).iterdir()}
            made = inside - {"job.json", "manifest", "image", "audio", "prepared.json", *JAILED}
            assert all(name.startswith(".out.") for name in made), "nothing but the video that is being encoded"
        busy.until_done(name)
        status = Path(f"/proc/{child_of(busy)}/status").read_text()
        peaks_mb.append(int(status.split("VmHWM:")[1].split()[0]) / 1000)
    assert peaks_mb[1] < peaks_mb[0] + 25, peaks_mb  # all its frames together take 40 MB


def test_a_picture_without_a_face_ends_with_its_reason(busy: Installation) -> None:
    drop(busy, "faceless", hum(0.4), backdrop(240, 220))
    job = busy.until_failed("faceless")
    assert (job.reason_code, job.attempt) == ("no-face", 0)  # found when it was prepared
    assert "240" in (job.reason or "")
    assert busy.reason(job)["remedy"]


def test_a_cancel_ends_a_render_within_a_second(busy: Installation) -> None:
    drop(busy, "long", hum(120))
    rendering(busy, "long")
    job = busy.job("long")
    assert job is not None
    child = child_of(busy)
    assert busy.cli("cancel", job.id).returncode == 0
    requested_ms = next(e.at_ms for e in busy.view.events(job.id) if e.note == "cancel requested")
    ended = busy.until_state("long", JobState.CANCELLED)
    assert (ended.finished_ms or 0) - requested_ms < 1000
    assert child_of(busy) == child, "a polite cancel keeps the networks loaded"


def test_a_killed_child_costs_one_attempt_and_the_job_is_done(busy: Installation) -> None:
    drop(busy, "killed", hum(6))
    rendering(busy, "killed")
    os.kill(child_of(busy), signal.SIGKILL)
    job = busy.until_done("killed")
    assert job.attempt == 2
    assert inspect(busy.path("outbox") / "killed.mp4").video.frames == 150


def test_the_deadline_ends_a_render_and_the_child_with_it(tmp_path: Path, weights: dict[str, object]) -> None:
    installation = home_of(tmp_path, weights, job_timeout_s=4, max_attempts=1)
    with installation.running(OMP_NUM_THREADS="1"):
        drop(installation, "endless", hum(300))
        started = time.monotonic()
        job = installation.until_failed("endless")
        child = child_of(installation)
    assert job.reason_code == "render-timeout"
    assert time.monotonic() - started < 40
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_missing_device_blocks_the_job_and_the_cpu_does_not_render_it(
    tmp_path: Path, weights: dict[str, object]
) -> None:
    """A new process probes for the device after growing waits; other jobs start no process meanwhile."""
    installation = home_of(tmp_path, weights, devices=["cuda:99"])
    with installation.running(OMP_NUM_THREADS="1"):
        drop(installation, "early", hum(0.4))
        first = installation.until(lambda: (j := installation.job("early")) and j.reason_code and j, "the reason")
        assert (first.state, first.reason_code, first.attempt) == (JobState.QUEUED, "device-missing", 0)
        assert "'cuda:99'" in (first.reason or "")
        assert 'devices = ["cpu"]' in (first.remedy or "")
        drop(installation, "meanwhile", hum(0.5))
        installation.until(
            lambda: (j := installation.job("meanwhile")) and j.reason_code == "device-missing", "the other's reason"
        )
        installation.until(lambda: installation.log.count("next look in 10 s: ") >= 1, "the second look")
        starts = installation.log.count("render child for cuda:99 started")
        assert starts == installation.log.count("render child for cuda:99 ended") == 2
        drop(installation, "other", hum(0.6), renderer="flat")  # a job that needs no GPU goes on
        installation.until_done("other")
    assert [p.name for p in installation.path("outbox").glob("*.mp4")] == ["other.mp4"]


def test_networks_are_preloaded_and_unloaded_after_the_idle_time(tmp_path: Path, weights: dict[str, object]) -> None:
    installation = home_of(tmp_path, weights, lazy_load=False, unload_idle_s=2)
    with installation.running(OMP_NUM_THREADS="1"):
        installation.until(lambda: "render child for cpu started" in installation.log, "the child, before any job")
        child = child_of(installation)
        assert "libtorch" in Path(f"/proc/{child}/maps").read_text()
        installation.until(lambda: "no job for 2 s, unloading" in installation.log, "the unloading")
        installation.until(lambda: not Path(f"/proc/{child}").exists(), "the end of its process")
