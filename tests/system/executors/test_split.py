"""A real daemon draws a long video on two slots: one video, one attempt, and nothing left of it when that fails.

A renderer of the tests uses no GPU, so that the names of GPUs stand for slots that are alike.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipsyncd.jobs.job import Job, JobState
from lipsyncd.media.mp4 import inspect
from lipsyncd.storage.control_files import Request, ask
from lipsyncd.storage.files import read_json
from tests.kits.installation import Installation
from tests.kits.media.video_kit import decoded_frames, decoded_sound
from tests.system.executors.ray_kit import children as ray_children
from tests.system.executors.ray_kit import installation_on, ray_machines, start_on_ray

ALIKE = ["cuda:6", "cuda:7"]
SPLIT = {"mode": "auto", "min_frames": 20, "segment_frames": 10}
LONG_S = 6.0  # 30 frames of 0.2 s with the renderer `slow`, in three parts


@pytest.fixture
def daemon(installation: Installation) -> Installation:
    installation.changes["render"] = {"devices": list(ALIKE), "renderer": "slow", "lazy_load": False, "stop_grace_s": 0}
    installation.changes["executor.split"] = dict(SPLIT)
    installation.changes["output"] = {"fps": "5"}
    return installation


def sidecar(daemon: Installation, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((daemon.path("outbox") / f"{name}.json").read_text())
    return content


def segments(daemon: Installation, name: str) -> int | None:
    found: int | None = sidecar(daemon, name)["notes"].get("segments")
    return found


def parts(daemon: Installation, job: Job) -> list[Path]:
    return sorted((daemon.path("spool") / job.id).glob(".out.*"))


def children(daemon: Installation) -> dict[str, int]:
    """The render children by their device; the newest counts."""
    lines = [line.split("render child for ")[1] for line in daemon.log.splitlines() if "render child for " in line]
    started = [line for line in lines if " started, pid " in line]
    return {line.split(" ")[0]: int(line.rpartition(" ")[2]) for line in started}


def start(daemon: Installation) -> None:
    """Start the daemon, and wait for the children of both slots: the second one has to begin before the first ends."""
    before = daemon.log.count(" started, pid ") if (daemon.root / "daemon.log").exists() else 0
    daemon.start()
    daemon.until(lambda: daemon.log.count(" started, pid ") >= before + 2, "two render children")


def loaded(daemon: Installation) -> int:
    """How many slots of a cluster have a child that waits for work."""
    found = (read_json(daemon.path("state") / "status.json") or {}).get("slots", [])
    return sum(slot["state"] == "loaded" for slot in found)


def on_both(daemon: Installation, name: str) -> Job:
    """Wait until both slots draw frames of a job."""
    job = daemon.until_state(name, JobState.RUNNING)

    def drawn() -> bool:
        files = [path for path in parts(daemon, job) if path.stat().st_size or path.suffix == ".mp4"]
        return len(files) >= 2 and daemon.view.get(job.id).stage == "rendering"

    daemon.until(drawn, "two parts under way")
    return job


def test_a_long_job_is_drawn_on_both_slots_and_is_the_video_that_one_slot_draws(installation: Installation) -> None:
    daemon = installation
    daemon.changes["render"] = {"devices": list(ALIKE), "renderer": "preview"}
    daemon.changes["executor.split"] = {"mode": "auto", "min_frames": 100, "segment_frames": 50}
    daemon.changes["output"] = {"motion": "subtle", "crf": 5}
    daemon.start()
    daemon.drop_pair("split", seconds=5.0, with_face=True)
    daemon.until_done("split")
    assert daemon.log.count("is drawn in 2 parts") == 1
    assert len(children(daemon)) == 2, "both have drawn"
    assert segments(daemon, "split") == 2
    daemon.stop()

    daemon.changes["executor.split"]["mode"] = "off"
    daemon.changes["intake"] = {"on_redrop": "render"}
    daemon.start()
    daemon.drop_pair("whole", seconds=5.0, with_face=True)
    daemon.until_done("whole")
    assert daemon.stop() == 0
    assert segments(daemon, "whole") is None

    split, whole = (daemon.path("outbox") / f"{name}.mp4" for name in ("split", "whole"))
    assert inspect(split).video == inspect(whole).video
    assert inspect(split).audio == inspect(whole).audio
    assert np.array_equal(decoded_sound(split, 1), decoded_sound(whole, 1))
    side = inspect(split).video.width
    one, other = (decoded_frames(path, side, side).astype(np.int16) for path in (split, whole))
    assert len(one) == len(other) == 125
    assert np.abs(one - other).mean(axis=(1, 2, 3)).max() < 1.0, "only the encoder's key frames differ"
    facts = [
        {key: sidecar(daemon, name)[key] for key in ("recipe", "frames", "duration_s")} for name in ("split", "whole")
    ]
    assert facts[0] == facts[1]


def test_a_cancelled_job_ends_on_all_slots(daemon: Installation) -> None:
    start(daemon)
    daemon.drop_pair("never", seconds=LONG_S)
    job = on_both(daemon, "never")
    answer = ask(daemon.folders.control, Request("cancel", job.id), timeout_s=30)
    assert answer is not None and answer.ok
    daemon.until_state("never", JobState.CANCELLED)
    asked = next(event.at_ms for event in daemon.view.events(job.id) if event.note == "cancel requested")
    assert (daemon.view.get(job.id).finished_ms or 0) - asked < 5000, "no slot draws its part to the end"
    daemon.until(lambda: not (daemon.path("spool") / job.id).exists(), "the end of its folder")
    daemon.drop_pair("next", seed=1)
    daemon.until_done("next")
    assert daemon.stop() == 0
    assert not list(daemon.path("outbox").glob("never*"))


def test_a_part_whose_child_is_killed_costs_the_attempt_and_the_next_one_is_whole(daemon: Installation) -> None:
    start(daemon)
    daemon.drop_pair("hurt", seconds=LONG_S)
    job = on_both(daemon, "hurt")
    assert job.device is not None
    [helper] = [pid for device, pid in children(daemon).items() if device != job.device]
    os.kill(helper, signal.SIGKILL)
    assert daemon.until_done("hurt").attempt == 2
    assert segments(daemon, "hurt") is None
    assert len([event for event in daemon.view.events(job.id) if "from outside" in event.note]) == 1
    assert daemon.stop() == 0
    assert inspect(daemon.path("outbox") / "hurt.mp4").video.frames == 30


def test_a_video_is_drawn_whole_beside_a_slot_that_works(daemon: Installation) -> None:
    daemon.changes["executor.split"]["mode"] = "off"
    daemon.start()
    daemon.drop_pair("busy", seconds=20.0)
    daemon.until_state("busy", JobState.RUNNING)
    (daemon.root / "lipsyncd.toml").write_text(daemon.config.read_text().replace('mode = "off"', 'mode = "auto"'))
    assert daemon.daemon is not None
    daemon.daemon.send_signal(signal.SIGHUP)
    daemon.until(lambda: "executor.split.mode" in daemon.log, "the new setting")
    daemon.drop_pair("beside", seed=1, seconds=4.0)
    daemon.until_done("beside")
    assert segments(daemon, "beside") is None, "the other slot has work"
    assert daemon.view.jobs(states=[JobState.RUNNING], limit=1)[0].name == "busy"
    daemon.stop()


def test_a_daemon_that_dies_renders_the_job_again(daemon: Installation) -> None:
    start(daemon)
    daemon.drop_pair("again", seconds=LONG_S)
    job = on_both(daemon, "again")
    daemon.kill()
    with daemon.running():
        assert daemon.until_done("again").attempt == 2
        assert daemon.view.get(job.id).state is JobState.DONE
    assert inspect(daemon.path("outbox") / "again.mp4").video.frames == 30


@pytest.mark.ray
def test_a_cluster_draws_a_long_job_on_two_machines_and_survives_the_loss_of_one(
    tmp_path: Path, ray_home: Path, installation: Installation
) -> None:
    with ray_machines(tmp_path, ray_home, head_gpus=1) as machines:
        daemon = installation_on(machines, installation)
        daemon.changes["executor.split"] = dict(SPLIT)
        daemon.changes["output"] = {"fps": "5"}
        daemon.changes["render"] = {"renderer": "slow", "lazy_load": False, "stop_grace_s": 0}
        second = machines.add_node()
        start_on_ray(daemon)
        daemon.until(lambda: loaded(daemon) == 2, "a child in both slots")
        daemon.drop_pair("split", seconds=LONG_S)
        assert daemon.until_done("split").attempt == 1
        assert segments(daemon, "split") == 3
        video = inspect(daemon.path("outbox") / "split.mp4").video
        assert (video.frames, video.duration) == (30, 6)
        daemon.until(lambda: not list((machines.share / "work").iterdir()), "an empty share")

        daemon.drop_pair("hurt", seed=1, seconds=LONG_S)
        job = daemon.until_state("hurt", JobState.RUNNING)
        work = machines.share / "work" / job.id
        daemon.until(lambda: work.exists() and len(list(work.glob("*/video.mp4.part"))) == 2, "two parts under way")
        machines.lose(second)
        assert daemon.until_done("hurt").attempt == 2
        assert segments(daemon, "hurt") is None
        assert inspect(daemon.path("outbox") / "hurt.mp4").video.frames == 30
        assert daemon.stop() == 0
    assert not ray_children(ray_home)
