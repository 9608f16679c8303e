"""The whole path with a real daemon, real child processes, real ffmpeg: from the inbox to the outbox."""

from __future__ import annotations

import json
import os
import signal
from fractions import Fraction

import pytest

from lipsyncd.jobs.job import Job, JobState, new_id, now_ms
from lipsyncd.media.mp4 import inspect
from tests.kits.installation import Home, picture, put, sound


def test_a_pair_becomes_a_video_with_its_sidecar(home: Home) -> None:
    with home.running():
        home.drop_pair("anna", seconds=1.0)
        job = home.until_done("anna")

    facts = inspect(home.path("outbox") / "anna.mp4")
    assert (facts.video.width, facts.video.height, facts.video.frames) == (64, 64, 25)
    assert facts.moov_first
    sidecar = home.sidecar("anna")
    assert sidecar["id"] == job.id
    assert sidecar["video"] == "anna.mp4"
    assert sidecar["renderer"] == "flat"
    assert sidecar["bytes"] == (home.path("outbox") / "anna.mp4").stat().st_size
    assert {i["name"] for i in sidecar["inputs"]} == {"anna.png", "anna.wav"}


def test_afterwards_the_inbox_and_the_spool_are_empty_and_the_inputs_are_archived(home: Home) -> None:
    with home.running():
        home.drop_pair("anna")
        job = home.until_done("anna")
        home.until(lambda: not list(home.path("spool").iterdir()), "an empty spool")

    assert [p.name for p in home.path("inbox").iterdir()] == [".lipsyncd"]
    [archived] = home.path("archive").glob(f"*/{job.id}")
    assert sorted(p.name for p in archived.iterdir()) == ["anna.png", "anna.wav", "job.json"]
    assert (archived / "anna.png").read_bytes() == picture()


def test_a_manifest_decides_over_the_settings(home: Home) -> None:
    job_id = new_id()
    with home.running():
        put(home.path("inbox"), "face.png", picture(width=101, height=75))
        put(home.path("inbox"), "voice.wav", sound(0.5))
        home.drop_manifest(
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
        job = home.until_done("Grüße an Anna")

    assert job.id == job_id
    facts = inspect(home.path("outbox") / "Grüße an Anna.mp4")
    assert facts.video.rate == Fraction(30000, 1001)
    assert (facts.video.width, facts.video.height) == (102, 76)
    assert home.sidecar("Grüße an Anna")["user_data"] == {"order": 7}


def test_one_portrait_serves_many_manifests(home: Home) -> None:
    home.start()
    home.stop()
    put(home.path("inbox"), "face.png", picture())
    for number in range(3):
        put(home.path("inbox"), f"voice{number}.wav", sound(0.3, number))
        home.drop_manifest(f"job{number}", image="face.png", audio=f"voice{number}.wav")
    with home.running():
        for number in range(3):
            home.until_done(f"job{number}")
        home.until(lambda: [p.name for p in home.path("inbox").iterdir()] == [".lipsyncd"], "an empty inbox")
    assert home.renders == 3


def test_a_second_result_of_a_name_does_not_replace_the_first(home: Home) -> None:
    with home.running():
        home.drop_pair("anna", seed=1)
        home.until_done("anna")
        first = (home.path("outbox") / "anna.mp4").read_bytes()
        home.drop_pair("anna", seed=2)
        home.until(lambda: (home.path("outbox") / "anna (2).json").exists(), "the second result")

    assert (home.path("outbox") / "anna.mp4").read_bytes() == first
    assert home.sidecar("anna (2)")["video"] == "anna (2).mp4"


def test_a_name_conflict_may_fail_the_job_instead(home: Home) -> None:
    home.changes["output"] = {"on_name_conflict": "fail"}
    with home.running():
        (home.path("outbox") / "anna.mp4").write_bytes(b"somebody's own")
        home.drop_pair("anna")
        job = home.until_failed("anna")

    assert job.reason_code == "name-taken"
    assert (home.path("outbox") / "anna.mp4").read_bytes() == b"somebody's own"


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
def test_a_bad_renderer_costs_one_job_and_not_the_daemon(home: Home, renderer: str, code: str, attempts: int) -> None:
    home.changes["render"] = {"max_attempts": attempts}
    with home.running():
        put(home.path("inbox"), "bad.png", picture(1))
        put(home.path("inbox"), "bad.wav", sound(seed=1))
        home.drop_manifest("bad", image="bad.png", audio="bad.wav", renderer=renderer)
        home.drop_pair("good", seed=2)
        home.until_done("good")
        job = home.until_failed("bad")

    assert job.reason_code == code
    assert job.attempt == attempts
    assert home.reason(job)["code"] == code
    assert home.reason(job)["retry"] == f"lipsyncd retry {job.id}"


def test_a_hanging_renderer_is_ended_by_the_silence_clock(home: Home) -> None:
    home.changes["render"] = {"max_attempts": 1, "stall_timeout_s": 1}
    with home.running():
        home.drop_manifest("hung", image="hung.png", audio="hung.wav", renderer="hang")
        home.drop_pair("hung")
        job = home.until_failed("hung")

    assert job.reason_code == "render-stalled"


def test_a_slow_renderer_is_ended_by_the_deadline(home: Home) -> None:
    home.changes["render"] = {"max_attempts": 1, "job_timeout_s": 2}
    with home.running():
        home.drop_manifest("slow", image="slow.png", audio="slow.wav", renderer="slow")
        home.drop_pair("slow", seconds=4)
        job = home.until_failed("slow")

    assert job.reason_code == "render-timeout"


def test_a_renderer_that_is_not_installed_blocks_the_job_and_costs_no_attempt(home: Home) -> None:
    with home.running():
        home.drop_manifest("early", image="early.png", audio="early.wav", renderer="missing")
        home.drop_pair("early")
        blocked = home.until(lambda: (j := home.job("early")) and j.reason_code and j, "the reason")
        assert blocked.state is JobState.QUEUED
        assert blocked.reason_code == "renderer-not-installed"
        assert blocked.attempt == 0
        home.drop_pair("other", seed=3)
        home.until_done("other")


def test_the_child_and_its_memory_go_after_the_idle_time(home: Home) -> None:
    home.changes["render"] = {"unload_idle_s": 0.5}
    with home.running():
        home.drop_pair("anna")
        home.until_done("anna")
        home.until(lambda: "render child for cpu ended" in home.log, "the unloading")
        home.drop_pair("bert", seed=1)
        home.until_done("bert")
    assert home.log.count("render child for cpu started") == 2


def test_a_stop_puts_a_long_job_back_without_charging_it(home: Home) -> None:
    home.changes["render"] = {"stop_grace_s": 0.5, "renderer": "slow"}
    home.start()
    home.drop_pair("long", seconds=20)
    home.until_state("long", JobState.RUNNING)
    assert home.stop() == 0

    job = home.job("long")
    assert job is not None
    assert (job.state, job.attempt) == (JobState.QUEUED, 0)
    assert not list(home.path("outbox").glob("*.mp4"))


def test_a_killed_daemon_leaves_no_child_behind(home: Home) -> None:
    home.changes["render"] = {"renderer": "slow"}
    home.start()
    home.drop_pair("long", seconds=20)
    home.until_state("long", JobState.RUNNING)
    home.until(lambda: "render child for cpu started" in home.log, "the child")
    child = int(home.log.split("render child for cpu started, pid ")[1].split()[0])
    os.kill(child, 0)
    home.kill()

    home.until(lambda: not _alive(child), "the child's end", seconds=5)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


def test_an_outbox_that_is_not_mounted_keeps_the_finished_video(home: Home) -> None:
    home.start()
    home.stop()
    away = home.root / "away"
    home.path("outbox").rename(away)
    home.path("outbox").mkdir()
    with home.running():
        home.drop_pair("anna")
        blocked = home.until(lambda: (j := home.job("anna")) and j.reason_code and j, "the reason")
        assert (blocked.state, blocked.reason_code) == (JobState.PUBLISHING, "outbox-unavailable")
        assert list(home.path("outbox").iterdir()) == []
        home.path("outbox").rmdir()
        away.rename(home.path("outbox"))
        home.until_done("anna")
    assert home.renders == 1


def test_an_outbox_that_comes_back_ends_a_wait_that_has_grown(home: Home) -> None:
    def waits_long() -> Job | None:
        job = home.job("anna")
        return job if job is not None and job.not_before_ms > now_ms() + 8_000 else None

    home.start()
    home.stop()
    away = home.root / "away"
    home.path("outbox").rename(away)
    with home.running():
        home.drop_pair("anna")
        waiting = home.until(waits_long, "the second wait")
        away.rename(home.path("outbox"))
        done = home.until_done("anna")
    assert (done.finished_ms or 0) < waiting.not_before_ms, "the job went on before its time"
    assert (home.renders, done.attempt) == (1, 1)


def test_an_inbox_that_is_not_mounted_is_not_an_empty_one(home: Home) -> None:
    with home.running():
        away = home.root / "away"
        home.path("inbox").rename(away)
        home.path("inbox").mkdir()
        home.until(lambda: "is not mounted" in home.log, "the warning")
        status = home.until(
            lambda: not (s := json.loads(home.cli("status", "--json").stdout))["daemon"]["inbox_available"] and s,
            "the status",
        )
        assert status["daemon"]["running"]
        home.path("inbox").rmdir()
        away.rename(home.path("inbox"))
        home.drop_pair("anna")
        home.until_done("anna")


def test_ctrl_c_stops_like_sigterm(home: Home) -> None:
    home.start()
    assert home.daemon is not None
    home.daemon.send_signal(signal.SIGINT)
    assert home.daemon.wait(20) == 0
    home.daemon = None
