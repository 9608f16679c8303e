"""`lipsyncd logs`: the ledger's events as lines, with the stage that each one ended and its duration."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from lipsyncd.errors import NoFaceFound, OutOfMemory
from lipsyncd.jobs.job import JobEvent, JobState
from lipsyncd.ledger.history import HistoryReader
from lipsyncd.ledger.ledger import Ledger
from tests.kits.core_kit import claimed, queued
from tests.kits.installation import Installation

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}  ")


@pytest.fixture
def ledger(installation: Installation) -> Iterator[Ledger]:
    installation.folders.initialise()
    ledger = Ledger(installation.path("state") / "ledger.db")
    yield ledger
    ledger.close()


def finished(ledger: Ledger, name: str) -> str:
    job_id = claimed(ledger, name)
    ledger.to_publishing(job_id, token="t", sha256="0" * 64, size=1, frames=25, render_ms=250)
    ledger.to_done(job_id, note=f"published as {name}.mp4")
    return job_id


def stretch(ledger: Ledger, *steps_ms: int) -> None:
    """Date the events so that these times lie between them."""
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as file:
        [start] = file.execute("SELECT min(at_ms) FROM job_event").fetchone()
        for number, step in enumerate(steps_ms, start=1):
            start += step
            file.execute("UPDATE job_event SET at_ms=? WHERE id=?", (start, number))


def lines(installation: Installation, *arguments: str) -> list[str]:
    done = installation.cli("logs", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# -- the entries of events ---------------------------------------------------------------------------------------------


def read(*events: tuple[int, str, str]) -> list[tuple[str, float | None, int]]:
    reader = HistoryReader()
    entries = [reader.read(JobEvent(at_ms, state, note, n, "j")) for n, (at_ms, state, note) in enumerate(events)]
    return [(entry.stage, entry.took_s, entry.attempt) for entry in entries]


def test_each_event_ends_a_stage_and_has_its_duration() -> None:
    assert read(
        (1000, "queued", "accepted"),
        (1500, "queued", "prepared"),
        (1600, "running", "attempt 1 of 3 on cpu"),
        (5600, "publishing", "rendered"),
        (5700, "done", "published"),
    ) == [("", None, 0), ("preparing", 0.5, 0), ("waiting", 0.1, 1), ("rendering", 4.0, 1), ("publishing", 0.1, 1)]


def test_a_failed_attempt_waits_and_a_retried_job_is_prepared_again() -> None:
    assert read(
        (0, "queued", "accepted"),
        (0, "queued", "prepared"),
        (0, "running", "attempt 1 of 3 on cpu"),
        (2000, "queued", "crashed"),
        (5000, "running", "attempt 2 of 3 on cpu"),
        (6000, "failed", "render-crashed: it crashed"),
        (60_000, "queued", "retry"),
        (61_000, "queued", "prepared"),
    )[3:] == [
        ("rendering", 2.0, 1), ("waiting", 3.0, 2), ("rendering", 1.0, 2), ("", None, 0), ("preparing", 1.0, 0)
    ]  # fmt: skip


def test_a_clock_that_goes_back_gives_no_negative_duration() -> None:
    assert read((5000, "queued", "accepted"), (1000, "queued", "prepared"))[1] == ("preparing", 0.0, 0)


@pytest.mark.parametrize(
    ("note", "code"),
    [("no-face: no face found", "no-face"), ("waits: disk-low: 3 MB", "disk-low"), ("published as a-b: c.mp4", ""),
     ("attempt 1 of 3 on cpu", ""), ("prepared", "")],
)  # fmt: skip
def test_the_code_of_a_reason_is_found(note: str, code: str) -> None:
    assert HistoryReader().read(JobEvent(0, "queued", note)).reason == code


# -- the command -------------------------------------------------------------------------------------------------------


def test_one_job_has_a_line_for_each_event(installation: Installation, ledger: Ledger) -> None:
    job_id = finished(ledger, "anna")
    stretch(ledger, 0, 500, 100, 4000, 120_000)
    shown = lines(installation, job_id[-12:])
    assert all(LINE.match(line) for line in shown)
    assert [re.split(r" {2,}", line, maxsplit=3)[1:] for line in shown] == [
        ["queued", "accepted"],
        ["queued", "preparing 0.50 s", "prepared"],
        ["running", "waiting 0.10 s", "attempt 1 of 3 on cpu"],
        ["publishing", "rendering 4.00 s", "rendered"],
        ["done", "publishing 2.0 min", "published as anna.mp4"],
    ]


def test_a_failed_job_ends_with_its_reason_and_the_remedy(installation: Installation, ledger: Ledger) -> None:
    job_id = queued(ledger)
    error = NoFaceFound("no face in the picture")
    ledger.to_failed(job_id, error.reason())
    *_, reason, remedy = lines(installation, job_id)
    assert reason.endswith("no-face: no face in the picture")
    assert remedy == f"→ {error.remedy}"


def test_the_events_of_all_jobs_are_shown_in_order(installation: Installation, ledger: Ledger) -> None:
    anna, bert = finished(ledger, "anna"), finished(ledger, "bert\nforged")
    shown = lines(installation)
    assert [anna[-12:] in line for line in shown] == [True] * 5 + [False] * 5
    assert all(LINE.match(line) for line in shown)
    assert bert[-12:] + "  bert\\nforged" in shown[-1]
    assert lines(installation, "--limit", "3") == shown[-3:]


def test_the_stage_is_known_when_earlier_events_are_left_out(installation: Installation, ledger: Ledger) -> None:
    finished(ledger, "anna")
    stretch(ledger, 0, 500, 100, 4000, 100)
    assert "publishing 0.10 s" in lines(installation, "--limit", "1")[0]


def test_json_has_a_whole_object_on_each_line(installation: Installation, ledger: Ledger) -> None:
    job_id = claimed(ledger)
    ledger.requeue(job_id, note="out of memory", charge=True, error=OutOfMemory("").reason())
    shown = [json.loads(line) for line in lines(installation, "--json")]
    assert [entry["state"] for entry in shown] == ["queued", "queued", "running", "queued"]
    assert {entry["job_id"] for entry in shown} == {job_id}
    assert (shown[2]["attempt"], shown[2]["stage"]) == (1, "waiting")
    assert shown[3].keys() == {"at", "job_id", "name", "state", "note", "reason", "attempt", "stage", "took_s"}
    assert datetime.fromisoformat(shown[0]["at"]).tzinfo is not None


def test_since_leaves_out_earlier_events(installation: Installation, ledger: Ledger) -> None:
    finished(ledger, "anna")
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as file:
        file.execute("UPDATE job_event SET at_ms = at_ms - 7200000 WHERE id < 4")
    half_an_hour_ago = (datetime.now() - timedelta(minutes=30)).isoformat()
    assert len(lines(installation, "--since", "30m")) == len(lines(installation, "--since", half_an_hour_ago)) == 2
    assert len(lines(installation, "--since", "1d")) == 5


@pytest.mark.parametrize(
    "arguments", [["--since", "yesterday"], ["--since", "9999999h"], ["--limit", "0"], ["0190"]], ids=" ".join
)
def test_wrong_usage_ends_with_2(installation: Installation, ledger: Ledger, arguments: list[str]) -> None:
    assert installation.cli("logs", *arguments).returncode == 2


def test_before_the_first_start_no_events_are_shown(installation: Installation) -> None:
    assert lines(installation) == []


# -- following ---------------------------------------------------------------------------------------------------------


def following(installation: Installation, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lipsyncd", "--config", str(installation.config), "logs", "--follow", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=installation.environment()
    )  # fmt: skip


def test_following_one_job_ends_with_it_and_misses_nothing(installation: Installation, ledger: Ledger) -> None:
    job_id = claimed(ledger)
    with following(installation, job_id, "--json") as process:
        assert process.stdout is not None
        first = [json.loads(process.stdout.readline()) for _ in range(3)]
        ledger.to_publishing(job_id, token="t", sha256="0" * 64, size=1, frames=25, render_ms=250)
        rendered = json.loads(process.stdout.readline())
        ledger.to_done(job_id, note="published as anna.mp4")
        rest, complaints = process.communicate(timeout=60)
    assert [entry["note"] for entry in (*first, rendered)] == [
        "accepted", "prepared", "attempt 1 of 3 on cpu", "rendered"
    ]  # fmt: skip
    assert json.loads(rest)["state"] == "done"
    assert (process.returncode, complaints) == (0, "")


def test_following_all_jobs_of_a_daemon_goes_on_until_it_is_interrupted(installation: Installation) -> None:
    with installation.running(), following(installation, "--since", "1h") as process:
        assert process.stdout is not None
        installation.drop_pair("anna")
        installation.until_done("anna")
        shown = [process.stdout.readline() for _ in range(5)]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert [re.split(r" {2,}", line)[3] for line in shown] == ["queued", "queued", "running", "publishing", "done"]
    assert JobState.DONE in shown[-1]


def test_following_a_job_ends_when_the_job_is_deleted(
    installation: Installation, ledger: Ledger, tmp_path: Path
) -> None:
    job_id = claimed(ledger)
    with following(installation, job_id) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with closing(sqlite3.connect(ledger.path, isolation_level=None)) as file:
            file.execute("PRAGMA foreign_keys=ON")
            file.execute("DELETE FROM job WHERE id=?", (job_id,))
        process.communicate(timeout=60)
    assert process.returncode == 0
