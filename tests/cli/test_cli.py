"""The command line, used by people and by scripts: real processes, and a real daemon where one is needed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lipsyncd.jobs.job import Job, JobState, new_id
from lipsyncd.media.mp4 import inspect
from tests.kits.core_kit import is_soon
from tests.kits.installation import Installation, picture, sound


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A portrait and a voice outside the inbox."""
    image, voice = tmp_path / "Anna Müller.png", tmp_path / "hello.wav"
    image.write_bytes(picture())
    voice.write_bytes(sound(0.5))
    return image, voice


def test_submit_works_before_any_daemon_has_run(installation: Installation, files: tuple[Path, Path]) -> None:
    submitted = installation.cli("submit", *files)
    assert submitted.returncode == 0, submitted.stderr
    job_id = submitted.stdout.strip()
    with installation.running():
        job = installation.until_done("Anna Müller-hello")
    assert job.id == job_id


def test_submit_takes_a_sound_that_is_cut_short_at_once(installation: Installation, files: tuple[Path, Path]) -> None:
    """The file is whole as it lies there: nothing more of it can come. From a folder it would be waited for."""
    image, voice = files
    voice.write_bytes(sound(1.0)[:-9600])
    with installation.running():
        began_s = time.monotonic()
        done = installation.cli("submit", image, voice, "--wait", "--json")
        took_s = time.monotonic() - began_s
    assert done.returncode == 0, done.stderr
    assert took_s < 40  # `watch.incomplete_timeout_s` is 60 s
    assert "cut short: 0.70 of 1.00 s" in (installation.path("outbox") / "Anna Müller-hello.json").read_text("utf-8")


def test_submit_wait_copies_the_video(installation: Installation, files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "result.mp4"
    with installation.running():
        done = installation.cli(
            "submit", *files, "--wait", "--out", out, "--resolution", "96", "--fps", "50", "--name", "x"
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out)
    facts = inspect(out)
    assert (facts.video.width, facts.video.frames) == (96, 25)
    assert "x: done 100%" in done.stderr
    assert (installation.path("outbox") / "x.mp4").exists()


def test_submit_wait_in_json_prints_the_job_and_nothing_else(
    installation: Installation, files: tuple[Path, Path]
) -> None:
    job_id = new_id()
    with installation.running():
        done = installation.cli("submit", *files, "--wait", "--json", "--id", job_id.upper())
    job = json.loads(done.stdout)
    assert job["id"] == job_id
    assert job["state"] == "done"
    assert Path(job["file"]).exists()


def test_submit_wait_reports_at_once_that_no_daemon_runs(installation: Installation, files: tuple[Path, Path]) -> None:
    started = time.monotonic()
    installation.cli("init")  # as slow as a command is at present
    begun = time.monotonic()
    done = installation.cli("submit", *files, "--wait")
    took_s = time.monotonic() - begun
    assert done.returncode == 1
    assert "no daemon runs" in done.stderr
    assert "lipsyncd run" in done.stderr
    assert took_s < 2.0 + 3 * (begun - started)


def test_submit_wait_ends_with_1_when_the_job_fails(installation: Installation, files: tuple[Path, Path]) -> None:
    with installation.running():
        done = installation.cli("submit", *files, "--wait", "--renderer", "shy")
    assert done.returncode == 1
    assert "failed: no face" in done.stderr
    assert "upright frontal face" in done.stderr


def test_options_of_the_renderer_are_passed_as_json(installation: Installation, files: tuple[Path, Path]) -> None:
    submitted = installation.cli("submit", *files, "--option", "strength=1.2", "--option", "mode=soft", "--json")
    job_id = json.loads(submitted.stdout)["id"]
    [manifest] = installation.path("inbox").glob(f"*{job_id[-12:]}.json")
    assert json.loads(manifest.read_text())["lipsyncd"] == {"strength": 1.2, "mode": "soft"}


def test_the_query_of_an_address_becomes_no_name(installation: Installation) -> None:
    done = installation.cli(
        "submit", "https://example.com/anna?token=secret", "https://example.com/hello.wav", "--json"
    )
    assert json.loads(done.stdout)["name"] == "anna-hello"


def test_a_file_that_cannot_become_a_video_is_refused_at_submission(
    installation: Installation, files: tuple[Path, Path]
) -> None:
    image, voice = files
    image.write_bytes(b"GIF89a" + bytes(100))
    done = installation.cli("submit", image, voice)
    assert done.returncode == 1
    assert "Anna Müller.png" in done.stderr
    assert "JPEG, PNG or WebP" in done.stderr
    assert not list(installation.path("inbox").glob("[!.]*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit"], "IMAGE"),
        (["submit", "a.png"], "AUDIO or --text"),
        (["submit", "a.png", "a.wav", "--text", "hello"], "AUDIO or --text"),
        (["submit", "a.png", "a.wav", "--fps", "0"], "fps"),
        (["submit", "a.png", "a.wav", "--resolution", "65"], "resolution"),
        (["submit", "a.png", "a.wav", "--name", "../x"], "name"),
        (["submit", "a.png", "a.wav", "--id", "7"], "id"),
        (["submit", "a.png", "a.wav", "--option", "strength"], "KEY=VALUE"),
        (["status", "0190"], "has the id or the name '0190'"),
        (["cancel", "0190"], "has the id or the name '0190'"),
        (["cancel"], "name jobs, or give --all"),
        (["cancel", "a", "--all"], "not both"),
        (["retry"], "name jobs, or give --failed"),
        (["priority", "0190", "101"], "101"),
        (["nonsense"], "nonsense"),
    ],
)
def test_wrong_usage_ends_with_2_and_names_the_thing(
    installation: Installation, arguments: list[str], message: str
) -> None:
    done = installation.cli(*arguments)
    assert done.returncode == 2, done
    assert message in done.stderr


def test_a_wrong_setting_ends_with_78_in_one_line(installation: Installation) -> None:
    installation.changes["output"] = {"resolution": 65}
    for command in (["run"], ["status"], ["config"]):
        done = installation.cli(*command)
        assert done.returncode == 78
        [line] = done.stderr.splitlines()
        assert all(word in line for word in ("output.resolution", "65", "lipsyncd.toml"))


def test_all_wrong_settings_are_told_at_once_each_in_a_line(installation: Installation) -> None:
    installation.changes["output"] = {"resolution": 65}
    words = (
        "web.port is 'many', read from environment PORT; allowed: a whole number",
        "output.resolution is 65, read from /",
        "render.renderer is 'nosuch', read from environment LIPSYNCD_RENDER_RENDERER; allowed: one of abort, ",
    )
    for command in ("run", "status"):
        done = installation.cli(command, LIPSYNCD_RENDER_RENDERER="nosuch", PORT="many")
        lines = done.stderr.splitlines()
        assert done.returncode == 78
        assert len(lines) == len(words)
        assert all(any(word in line for line in lines) for word in words), lines


@pytest.mark.parametrize("entry", ["10.0.0.0/33", "http://media.lan", "*.lan"])
def test_a_wrong_host_to_fetch_from_is_refused_at_the_start_and_by_doctor(
    installation: Installation, entry: str
) -> None:
    installation.changes["fetch"] = {"allow": ["media.lan", entry]}
    done = installation.cli("run")
    assert done.returncode == 78
    assert f'fetch.allow is ["media.lan", "{entry}"]' in done.stderr
    assert "networks like 192.168.0.0/16" in done.stderr
    [found] = [c for c in json.loads(installation.cli("doctor", "--json").stdout)["checks"] if c["name"] == "settings"]
    assert (found["verdict"], entry in found["seen"]) == ("fault", True)


def test_config_shows_where_each_value_comes_from(installation: Installation) -> None:
    done = installation.cli("config", "--json", OUTPUT_FPS="30")
    values = json.loads(done.stdout)
    assert values["output.fps"]["value"] == "30"
    assert "OUTPUT_FPS" in values["output.fps"]["origin"]
    assert values["render.renderer"]["origin"].endswith("lipsyncd.toml")
    assert values["web.max_queue"] == {"value": 10, "origin": "default"}
    plain = installation.cli("config", OUTPUT_FPS="30").stdout
    assert re.search(r"^output\.fps += 30 .*OUTPUT_FPS", plain, re.MULTILINE)


def test_status_of_one_job_shows_its_history(installation: Installation) -> None:
    with installation.running():
        installation.drop_manifest("anna", image="anna.png", audio="anna.wav", renderer="nosuch")
        installation.drop_pair("anna")
        job = installation.until_failed("anna")
    for short in (job.id[:20], job.id[-6:]):
        text = installation.cli("status", short).stdout
        assert job.id in text
        assert "unknown-renderer" in text
        assert "choose one of" in text
    events = json.loads(installation.cli("status", job.id, "--json").stdout)["events"]
    assert events[0]["state"] == "queued"
    assert events[-1]["state"] == "failed"


def test_status_in_json_is_complete(installation: Installation) -> None:
    empty = json.loads(installation.cli("status", "--json").stdout)
    assert empty == {"daemon": {"running": False}, "counts": dict.fromkeys(JobState, 0), "jobs": []}
    with installation.running():
        assert installation.daemon is not None
        (installation.path("inbox") / "half.png").write_bytes(picture())
        (installation.path("inbox") / "notes.txt").write_text("?")
        status = installation.until(
            lambda: (s := json.loads(installation.cli("status", "--json").stdout)) and s["daemon"].get("waiting") and s,
            "the waiting half",
        )
        plain = installation.until(  # at first it is still being written
            lambda: "half.png: waits for a sound of the same stem" in (s := installation.cli("status").stdout) and s,
            "the reason",
        )
    assert status["daemon"]["running"]
    assert status["daemon"]["waiting"][0]["name"] == "half.png"
    assert "notes.txt" in status["daemon"]["ignored"]
    assert "notes.txt: left in the inbox, since it has no suffix" in plain


def test_status_reports_that_no_daemon_runs(installation: Installation) -> None:
    done = installation.cli("status")
    assert done.returncode == 0
    assert "no daemon runs" in done.stdout


def test_cancel_ends_a_running_job_within_a_second(installation: Installation) -> None:
    cancelled: list[Job] = []

    def took_s() -> float:
        name = f"long-{len(cancelled)}"
        installation.drop_manifest(name, image=f"{name}.png", audio=f"{name}.wav", renderer="slow")
        installation.drop_pair(name, seconds=20, seed=len(cancelled))
        job = installation.until_state(name, JobState.RUNNING)
        cancelled.append(job)
        installation.until(lambda: installation.view.get(job.id).stage == "rendering", "the rendering")
        asked = installation.cli("cancel", job.id)
        started = time.monotonic()
        assert asked.returncode == 0, asked.stderr
        installation.until_state(name, JobState.CANCELLED)
        return time.monotonic() - started

    with installation.running():
        assert is_soon(took_s, 1.2)
        installation.drop_pair("next", seed=9)
        installation.until_done("next")
    assert installation.log.count("render child for cpu started") == 1, "a polite cancel keeps the child"
    for job in cancelled:
        [kept] = installation.path("archive").glob(f"*/{job.id}")
        assert (kept / f"{job.name}.png").exists()


def test_cancel_ends_a_job_whose_renderer_does_not_react(installation: Installation) -> None:
    with installation.running():
        installation.drop_manifest("hung", image="hung.png", audio="hung.wav", renderer="hang")
        installation.drop_pair("hung")
        job = installation.until_state("hung", JobState.RUNNING)
        installation.until(lambda: (j := installation.job("hung")) and j.stage == "analysing", "the hang")
        assert installation.cli("cancel", job.id).returncode == 0
        installation.until_state("hung", JobState.CANCELLED, seconds=30)  # it would hang for an hour


def test_a_waiting_job_is_cancelled_reprioritised_and_retried_without_a_daemon(
    installation: Installation, files: tuple[Path, Path]
) -> None:
    installation.changes["render"] = {"renderer": "missing"}
    with installation.running():
        job_id = installation.cli("submit", *files, "--name", "anna").stdout.strip()
        installation.until(lambda: (j := installation.job("anna")) and j.reason_code, "the block")
    assert installation.cli("priority", job_id, "-5").stdout == f"{job_id} has priority -5\n"
    assert installation.view.get(job_id).priority == -5
    assert installation.cli("cancel", job_id).stdout == f"{job_id} cancelled\n"
    assert installation.cli("priority", job_id, "5").returncode == 1
    assert installation.cli("retry", job_id).stdout == f"{job_id} queued again\n"
    assert installation.view.get(job_id).state is JobState.QUEUED
    installation.changes["render"] = {"renderer": "flat"}
    assert installation.cli("cancel", job_id).returncode == 0


def test_a_failed_job_is_retried_with_a_daemon(installation: Installation) -> None:
    with installation.running():
        installation.drop_manifest("anna", image="anna.png", audio="anna.wav", renderer="nosuch")
        installation.drop_pair("anna")
        job = installation.until_failed("anna")
        assert Path(job.kept or "").is_dir()
        assert installation.cli("retry", job.id).returncode == 0
        installation.until(
            lambda: len([e for e in installation.view.events(job.id) if e.state == "failed"]) == 2, "the second failure"
        )
        installation.until(
            lambda: len([p for p in installation.path("failed").iterdir() if p.name[0] != "."]) == 1, "one folder"
        )


def test_republish_puts_a_taken_video_back(installation: Installation) -> None:
    with installation.running():
        installation.drop_pair("anna")
        job = installation.until_done("anna")
        video = installation.path("outbox") / "anna.mp4"
        content = video.read_bytes()
        installation.until(lambda: not list(installation.path("spool").iterdir()), "an empty spool")
        assert installation.cli("republish", job.id).stdout == f"{job.id} published again as anna (2).mp4\n"
        assert installation.sidecar("anna (2)")["video"] == "anna (2).mp4"
        for path in installation.path("outbox").glob("anna*"):
            path.unlink()
        assert installation.cli("republish", job.id).stdout == f"{job.id} published again as anna.mp4\n"
        assert video.read_bytes() == content
    assert installation.renders == 1


def test_init_may_be_repeated_and_adopts_only_with_its_option(installation: Installation) -> None:
    assert f"marked {installation.path('inbox')} as inbox" in installation.cli("init").stdout
    assert installation.cli("init").stdout == "nothing to do: all folders exist and are marked\n"
    marker = installation.path("inbox") / ".lipsyncd" / "inbox-id"
    marker.unlink()
    installation.cli("init")
    assert not installation.folders.available("inbox")
    installation.cli("init", "--adopt")
    assert installation.folders.available("inbox")


def test_help_describes_each_command(installation: Installation) -> None:
    text = installation.cli("--help").stdout
    for command in ("run", "submit", "status", "cancel", "retry", "priority", "republish", "init", "config", "demo"):
        assert re.search(rf"^  {command} +\w", text, re.MULTILINE), command
        assert installation.cli(command, "--help").returncode == 0


def test_the_installed_command_and_the_module_are_the_same() -> None:
    module = subprocess.run([sys.executable, "-m", "lipsyncd", "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"lipsyncd, version \d+\.\d+\.\d+\n", module.stdout)
