"""The whole path with a real daemon, real child processes, real ffmpeg: from the inbox to the outbox."""

from __future__ import annotations

import json
import os
import signal
from fractions import Fraction

import pytest

from lipsyncd.jobs.job import Job, JobState, new_id, now_ms
from lipsyncd.media.mp4 import inspect
from tests.kits.installation import Installation, picture, put, sound
from tests.kits.machine.processes import is_gone


def test_a_pair_becomes_a_video_with_its_sidecar(installation: Installation) -> None:
    with installation.running():
        installation.drop_pair("anna", seconds=1.0)
        job = installation.until_done("anna")

    facts = inspect(installation.path("outbox") / "anna.mp4")
    assert (facts.video.width, facts.video.height, facts.video.frames) == (64, 64, 25)
    assert facts.moov_first
    sidecar = installation.sidecar("anna")
    assert sidecar["id"] == job.id
    assert sidecar["video"] == "anna.mp4"
    assert sidecar["renderer"] == "flat"
    assert sidecar["bytes"] == (installation.path("outbox") / "anna.mp4").stat().st_size
    assert {i["name"] for i in sidecar["inputs"]} == {"anna.png", "anna.wav"}


def test_afterwards_the_inbox_and_the_spool_are_empty_and_the_inputs_are_archived(installation: Installation) -> None:
    with installation.running():
        installation.drop_pair("anna")
        job = installation.until_done("anna")
        installation.until(lambda: not list(installation.path("spool").iterdir()), "an empty spool")

    assert [p.name for p in installation.path("inbox").iterdir()] == [".lipsyncd"]
    [archived] = installation.path("archive").glob(f"*/{job.id}")
    assert sorted(p.name for p in archived.iterdir()) == ["anna.png", "anna.wav", "job.json"]
    assert (archived / "anna.png").read_bytes() == picture()


def test_a_manifest_decides_over_the_settings(installation: Installation) -> None:
    job_id = new_id()
    with installation.running():
        put(installation.path("inbox"), "face.png", picture(width=101, height=75))
        put(installation.path("inbox"), "voice.wav", sound(0.5))
        installation.drop_manifest(
            "order",
            image="face.png",
            audio="voice.wav",
            id=job_id,
            out_name="Grüße an Anna",
            stitch=True,
            fps=29.97,
            user_data={"order": 7},
            priority=5,
        )
        job = installation.until_done("Grüße an Anna")

    assert job.id == job_id
    facts = inspect(installation.path("outbox") / "Grüße an Anna.mp4")
    assert facts.video.rate == Fraction(30000, 1001)
    assert (facts.video.width, facts.video.height) == (102, 76)
    assert installation.sidecar("Grüße an Anna")["user_data"] == {"order": 7}


def test_one_portrait_serves_many_manifests(installation: Installation) -> None:
    installation.start()
    installation.stop()
    put(installation.path("inbox"), "face.png", picture())
    for number in range(3):
        put(installation.path("inbox"), f"voice{number}.wav", sound(0.3, number))
        installation.drop_manifest(f"job{number}", image="face.png", audio=f"voice{number}.wav")
    with installation.running():
        for number in range(3):
            installation.until_done(f"job{number}")
        installation.until(
            lambda: [p.name for p in installation.path("inbox").iterdir()] == [".lipsyncd"], "an empty inbox"
        )
    assert installation.renders == 3


def test_a_second_result_of_a_name_does_not_replace_the_first(installation: Installation) -> None:
    with installation.running():
        installation.drop_pair("anna", seed=1)
        installation.until_done("anna")
        first = (installation.path("outbox") / "anna.mp4").read_bytes()
        installation.drop_pair("anna", seed=2)
        installation.until(lambda: (installation.path("outbox") / "anna (2).json").exists(), "the second result")

    assert (installation.path("outbox") / "anna.mp4").read_bytes() == first
    assert installation.sidecar("anna (2)")["video"] == "anna (2).mp4"


def test_a_name_conflict_may_fail_the_job_instead(installation: Installation) -> None:
    installation.changes["output"] = {"on_name_conflict": "fail"}
    with installation.running():
        (installation.path("outbox") / "anna.mp4").write_bytes(b"another program's")
        installation.drop_pair("anna")
        job = installation.until_failed("anna")

    assert job.reason_code == "name-taken"
    assert (installation.path("outbox") / "anna.mp4").read_bytes() == b"another program's"


@pytest.mark.parametrize(
    ("renderer", "code", "attempts"),
    [
        ("abort", "render-crashed", 2),
        ("killed", "render-crashed", 2),
        ("raises", "render-crashed", 2),
        ("short", "bad-result", 2),
        ("nosuch", "unknown-renderer", 1),
    ],
)
def test_a_bad_renderer_costs_one_job_and_not_the_daemon(
    installation: Installation, renderer: str, code: str, attempts: int
) -> None:
    installation.changes["render"] = {"max_attempts": attempts}
    with installation.running():
        put(installation.path("inbox"), "bad.png", picture(1))
        put(installation.path("inbox"), "bad.wav", sound(seed=1))
        installation.drop_manifest("bad", image="bad.png", audio="bad.wav", renderer=renderer)
        installation.drop_pair("good", seed=2)
        installation.until_done("good")
        job = installation.until_failed("bad")

    assert job.reason_code == code
    assert job.attempt == attempts
    assert installation.reason(job)["code"] == code
    assert installation.reason(job)["retry"] == f"lipsyncd retry {job.id}"


def test_a_hanging_renderer_is_ended_by_the_silence_clock(installation: Installation) -> None:
    installation.changes["render"] = {"max_attempts": 1, "stall_timeout_s": 1}
    with installation.running():
        installation.drop_manifest("hung", image="hung.png", audio="hung.wav", renderer="hang")
        installation.drop_pair("hung")
        job = installation.until_failed("hung")

    assert job.reason_code == "render-stalled"


def test_a_slow_renderer_is_ended_by_the_deadline(installation: Installation) -> None:
    installation.changes["render"] = {"max_attempts": 1, "job_timeout_s": 2}
    with installation.running():
        installation.drop_manifest("slow", image="slow.png", audio="slow.wav", renderer="slow")
        installation.drop_pair("slow", seconds=4)
        job = installation.until_failed("slow")

    assert job.reason_code == "render-timeout"


def test_a_renderer_that_is_not_installed_blocks_the_job_and_costs_no_attempt(installation: Installation) -> None:
    with installation.running():
        installation.drop_manifest("early", image="early.png", audio="early.wav", renderer="missing")
        installation.drop_pair("early")
        blocked = installation.until(lambda: (j := installation.job("early")) and j.reason_code and j, "the reason")
        assert blocked.state is JobState.QUEUED
        assert blocked.reason_code == "renderer-not-installed"
        assert blocked.attempt == 0
        installation.drop_pair("other", seed=3)
        installation.until_done("other")


def test_the_child_and_its_memory_go_after_the_idle_time(installation: Installation) -> None:
    installation.changes["render"] = {"unload_idle_s": 0.5}
    with installation.running():
        installation.drop_pair("anna")
        installation.until_done("anna")
        installation.until(lambda: "render child for cpu ended" in installation.log, "the unloading")
        installation.drop_pair("bert", seed=1)
        installation.until_done("bert")
    assert installation.log.count("render child for cpu started") == 2


def test_a_stop_puts_a_long_job_back_without_charging_it(installation: Installation) -> None:
    installation.changes["render"] = {"stop_grace_s": 0.5, "renderer": "slow"}
    installation.start()
    installation.drop_pair("long", seconds=20)
    installation.until_state("long", JobState.RUNNING)
    assert installation.stop() == 0

    job = installation.job("long")
    assert job is not None
    assert (job.state, job.attempt) == (JobState.QUEUED, 0)
    assert not list(installation.path("outbox").glob("*.mp4"))


def test_a_killed_daemon_leaves_no_child_behind(installation: Installation) -> None:
    installation.changes["render"] = {"renderer": "slow"}
    installation.start()
    installation.drop_pair("long", seconds=20)
    installation.until_state("long", JobState.RUNNING)
    installation.until(lambda: "render child for cpu started" in installation.log, "the child")
    child = int(installation.log.split("render child for cpu started, pid ")[1].split()[0])
    os.kill(child, 0)
    installation.kill()

    assert is_gone(child)


def test_an_outbox_that_is_not_mounted_keeps_the_finished_video(installation: Installation) -> None:
    installation.start()
    installation.stop()
    away = installation.root / "away"
    installation.path("outbox").rename(away)
    installation.path("outbox").mkdir()
    with installation.running():
        installation.drop_pair("anna")
        blocked = installation.until(lambda: (j := installation.job("anna")) and j.reason_code and j, "the reason")
        assert (blocked.state, blocked.reason_code) == (JobState.PUBLISHING, "outbox-unavailable")
        assert list(installation.path("outbox").iterdir()) == []
        installation.path("outbox").rmdir()
        away.rename(installation.path("outbox"))
        installation.until_done("anna")
    assert installation.renders == 1


def test_an_outbox_that_comes_back_ends_a_wait_that_has_grown(installation: Installation) -> None:
    def waits_long() -> Job | None:
        job = installation.job("anna")
        return job if job is not None and job.not_before_ms > now_ms() + 8_000 else None

    installation.start()
    installation.stop()
    away = installation.root / "away"
    installation.path("outbox").rename(away)
    with installation.running():
        installation.drop_pair("anna")
        waiting = installation.until(waits_long, "the second wait")
        away.rename(installation.path("outbox"))
        done = installation.until_done("anna")
    assert (done.finished_ms or 0) < waiting.not_before_ms, "the job went on before its time"
    assert (installation.renders, done.attempt) == (1, 1)


def test_an_inbox_that_is_not_mounted_is_not_an_empty_one(installation: Installation) -> None:
    with installation.running():
        away = installation.root / "away"
        installation.path("inbox").rename(away)
        installation.path("inbox").mkdir()
        installation.until(lambda: "is not mounted" in installation.log, "the warning")
        status = installation.until(
            lambda: (
                not (s := json.loads(installation.cli("status", "--json").stdout))["daemon"]["inbox_available"] and s
            ),
            "the status",
        )
        assert status["daemon"]["running"]
        installation.path("inbox").rmdir()
        away.rename(installation.path("inbox"))
        installation.drop_pair("anna")
        installation.until_done("anna")


def test_ctrl_c_stops_like_sigterm(installation: Installation) -> None:
    installation.start()
    assert installation.daemon is not None
    installation.daemon.send_signal(signal.SIGINT)
    assert installation.daemon.wait(20) == 0
    installation.daemon = None
