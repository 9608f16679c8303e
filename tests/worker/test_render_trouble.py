"""Renders that go wrong, through inbox and daemon: the kernel kills, clocks run out, helpers stay, jobs are poison."""

from __future__ import annotations

import os

import pytest

from lipsyncd.jobs.job import JobState
from tests.kits.faults.faulty_renderers import NAMES
from tests.kits.installation import Installation
from tests.kits.machine.cgroup_kit import memory_group
from tests.kits.machine.processes import children_of, command_of, is_alive


def drop(installation: Installation, name: str, renderer: str, *, seed: int = 0, seconds: float = 0.3) -> None:
    installation.drop_pair(f"{name}-in", seed=seed, seconds=seconds)
    installation.drop_manifest(name, image=f"{name}-in.png", audio=f"{name}-in.wav", renderer=renderer, out_name=name)


def notes_of(installation: Installation, name: str) -> list[str]:
    job = installation.job(name)
    assert job is not None
    return [event.note for event in installation.view.events(job.id)]


def child_of(installation: Installation) -> int:
    return int(installation.log.rsplit("render child for cpu started, pid ", 1)[1].split()[0])


@pytest.mark.slow
def test_a_child_that_the_kernel_ends_is_recognised_and_tried_again_with_half_the_batch(
    installation: Installation,
) -> None:
    with memory_group(500_000_000) as group, installation.running():
        assert installation.daemon is not None
        group.write_text(str(installation.daemon.pid))
        drop(installation, "large", "hungry")
        waits = installation.until(
            lambda: (j := installation.job("large")) and j.reason_code and j, "the first attempt's end"
        )
        assert (waits.state, waits.reason_code) == (JobState.QUEUED, "out-of-memory")
        assert "the kernel ended the render child" in waits.reason
        job = installation.until_done("large")
        assert installation.daemon.poll() is None, "the kernel took the child and left the daemon"
        drop(installation, "next", "hungry", seed=1)
        installation.until_done("next")
    assert job.attempt == 2
    assert "64 frames at a time did not fit into memory, 32 are tried" in notes_of(installation, "large")
    assert installation.sidecar("large")["notes"]["batch"] == 32
    assert installation.sidecar("next")["notes"]["batch"] == 32
    assert installation.log.count("render child for cpu started") == 2

    installation.changes["render"] = {"max_vram_gb": 20}
    with installation.running():
        drop(installation, "other", "hungry", seed=2)
        installation.until_done("other")
    assert installation.sidecar("other")["notes"]["batch"] == 64, "what was found under another cap says nothing"


def test_an_encoder_that_the_kernel_ends_counts_as_want_of_memory_too(installation: Installation) -> None:
    installation.changes["render"] = {
        "renderers": [*NAMES, "starved=tests.kits.faults.faulty_children:Starved"],
        "max_attempts": 1,
    }
    with memory_group(500_000_000) as group, installation.running():
        assert installation.daemon is not None
        group.write_text(str(installation.daemon.pid))
        drop(installation, "starved", "starved")
        job = installation.until_failed("starved")
    assert job.reason_code == "out-of-memory"
    assert "the kernel ended the encoder" in (job.reason or "")


@pytest.mark.parametrize("clock", ["job_timeout_s", "stall_timeout_s"])
def test_a_clock_that_runs_out_ends_the_child_and_what_it_started(installation: Installation, clock: str) -> None:
    installation.changes["render"] = {"max_attempts": 1, clock: 2}
    with installation.running():
        drop(installation, "stuck", "nurse")
        job = installation.until_failed("stuck")
        child, helper = map(int, (installation.root / "renders").read_text().split())
        installation.until(lambda: not is_alive(child) and not is_alive(helper), "the end of both")
    assert job.reason_code == ("render-timeout" if clock == "job_timeout_s" else "render-stalled")


def test_the_encoder_of_a_child_that_is_killed_ends_too(installation: Installation) -> None:
    with installation.running():
        drop(installation, "long", "slow", seconds=20)
        installation.until_state("long", JobState.RUNNING)
        child = installation.until(
            lambda: "render child for cpu started" in installation.log and child_of(installation), "the child"
        )
        encoders = installation.until(
            lambda: [p for p in children_of(child) if b"ffmpeg" in command_of(p)], "its encoder"
        )
        os.kill(child, 9)
        installation.until(lambda: not any(is_alive(pid) for pid in encoders), "the encoder's end")
        job = installation.until(lambda: (j := installation.job("long")) and j.reason_code and j, "the attempt's end")
    assert (job.state, job.reason_code) == (JobState.QUEUED, "render-crashed")
    assert "not by the kernel" in job.reason
