"""`status` in 80 columns, names as ids, many jobs at once, and a blocked job that says so: with a real daemon."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from lipsyncd.cli.job_table import Row, cells_wide, lines, shortened, state_of
from lipsyncd.daemon.commands import carry_out
from lipsyncd.errors import NoFaceFound, WeightsMissing
from lipsyncd.inbox.not_taken import not_taken
from lipsyncd.inbox.submit import drop, manifest_of
from lipsyncd.jobs.job import JobState
from lipsyncd.ledger.find_job import short_ids
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.ledger.view import LedgerView
from lipsyncd.storage.control_files import WITHDRAW, Request
from tests.kits.core_kit import claimed, queued
from tests.kits.installation import Installation, picture, sound
from tests.kits.jobs_by_hand import JobsByHand
from tests.kits.machine.start_cost import least_cpu_s
from tests.kits.terminal import Terminal

LONG = "the-good-morning-of-the-whole-committee-with-its-chairwoman"
WEIGHTS = WeightsMissing("the weights of musetalk are missing: 6 of 6 files, 3.4 GB, in /var/lib/lipsyncd/models")
FACE = NoFaceFound("a face at 310,120, 41 px wide, in the picture of 1920x1080 pixels: it is turned too far away")


@pytest.fixture
def box(tmp_path: Path) -> Installation:
    """An installation whose ledger holds a job of each kind, with no daemon."""
    box = Installation(tmp_path)
    box.folders.initialise()
    with closing(Ledger(box.path("state") / "ledger.db")) as ledger:
        for name in ("hello", "日本語の名前のとても長い肖像写真と挨拶の言葉"):
            done = claimed(ledger, name)
            ledger.to_publishing(done, token="t", sha256="0" * 64, size=1, frames=25, render_ms=250)
            ledger.to_done(done, note=f"published as {name}.mp4")
        ledger.to_failed(claimed(ledger, "group"), FACE.reason())
        ledger.to_cancelled(queued(ledger, "unwanted"))
        for name in ("anna", LONG):
            ledger.set_blocked(queued(ledger, name, renderer="musetalk"), WEIGHTS.reason(), delay_ms=60_000)
        queued(ledger, "carl", queue="night")
    return box


def shown(box: Installation, width: int | None) -> list[str]:
    """The lines of the table, without colours."""
    view, jobs = box.view, box.view.jobs()
    ends = short_ids(view, jobs)
    rows = [
        Row(
            job, ends[job.id], view.waits_for(job), f"/srv/outbox/{job.place}.mp4" if job.state is JobState.DONE else ""
        )
        for job in jobs
    ]
    return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines(rows, width)]


# -- the table ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_only_names_give_way(box: Installation, width: int) -> None:
    table = shown(box, width)
    assert all(cells_wide(line) <= width for line in table), table
    heading, *below = table
    assert heading.split() == ["NAME", "ID", "STATE", "AGE", "RENDERER", "RENDER", "FPS"]
    jobs = [line for line in below if not line.startswith(" ")]
    for line, job in zip(jobs, box.view.jobs(), strict=True):
        cells = line.split()
        assert job.id[-6:] in cells
        assert ("blocked" if job.blocked else job.state.value) in cells
        assert job.renderer in cells
        whole = f"night/{job.name}" if job.queue else job.name
        assert whole in line or "…" in line
    assert any("…" in line for line in jobs) == (width == 80)
    starts = {heading.index("STATE")}
    for line, job in zip(jobs, box.view.jobs(), strict=True):
        word = "blocked" if job.blocked else job.state.value
        starts.add(cells_wide(line[: line.index(f" {word} ") + 1]))
    assert len(starts) == 1, "the columns are not aligned"


def test_below_a_job_stand_its_reason_or_its_video(box: Installation) -> None:
    table = shown(box, 80)
    at = {line.split()[0]: number for number, line in enumerate(table) if not line.startswith(" ")}
    reason = " ".join(line.strip() for line in table[at["anna"] + 1 : at["anna"] + 4])
    assert reason == f"weights-missing: {WEIGHTS.message} → {WEIGHTS.remedy}"
    assert table[at["anna"] + 4].startswith("the-good-morn")
    assert table[at["anna"] + 5] == "    weights-missing, as above"
    assert " ".join(table[at["group"] + 1].split()).startswith("no-face: a face at 310,120")
    assert table[at["hello"] + 1] == "    /srv/outbox/hello.mp4"
    assert not table[at["unwanted"] + 1].startswith(" ")


def test_elsewhere_nothing_is_shortened_or_wrapped(box: Installation) -> None:
    table = shown(box, None)
    assert any(line.startswith(f"{LONG}  ") for line in table)
    assert f"    weights-missing: {WEIGHTS.message}" in table
    done = box.cli("status", NO_COLOR="1")
    assert f"{box.path('outbox')}/hello.mp4" in done.stdout
    *_, daemon, place = done.stdout.splitlines()
    assert daemon.startswith("no daemon runs (3 queued (2 blocked), 2 done, 1 failed, 1 cancelled)")
    assert place == f"looked in {box.root}/storage (from {box.config})"


def test_a_name_is_cut_by_the_columns_that_it_takes() -> None:
    assert [shortened(text, 5) for text in ("abcde", "abcdef", "日本語", "e\u0301" * 5)] == [
        "abcde",
        "abcd…",
        "日本…",
        "e\u0301" * 5,
    ]
    assert [cells_wide(text) for text in ("abc", "日本", "e\u0301", "…")] == [3, 4, 1, 1]


def test_a_running_job_has_its_stage(box: Installation) -> None:
    with closing(Ledger(box.path("state") / "ledger.db")) as ledger:
        running = ledger.get(claimed(ledger, "dora", priority=100))
    assert state_of(replace(running, stage="")) == "running"
    assert state_of(replace(running, stage="loading")) == "loading"
    assert state_of(replace(running, stage="rendering", fraction=0.425)) == "rendering 42%"


def test_only_the_failed_jobs_and_programs_get_the_paths(box: Installation) -> None:
    failed = json.loads(box.cli("status", "--failed", "--json").stdout)["jobs"]
    assert [(job["name"], job["result_path"]) for job in failed] == [("group", None)]
    jobs = {job["name"]: job for job in json.loads(box.cli("status", "--json").stdout)["jobs"]}
    assert jobs["hello"]["result_path"] == str(box.path("outbox") / "hello.mp4")
    assert jobs["anna"]["waits_for"] == {"code": WEIGHTS.code, "message": WEIGHTS.message, "remedy": WEIGHTS.remedy}
    one = json.loads(box.cli("status", "hello", "--json").stdout)
    assert one["result_path"] == jobs["hello"]["result_path"]
    assert one["events"][-1]["state"] == "done"


def test_the_video_of_a_repetition_without_one_is_the_first_jobs(box: Installation) -> None:
    box.changes["intake"] = {"on_redrop": "skip"}
    with box.running():
        box.drop_pair("first")
        box.until_done("first")
        box.drop_pair("second")
        box.until_done("second")
    one = json.loads(box.cli("status", "second", "--json").stdout)
    assert one["result_path"] == str(box.path("outbox") / "first.mp4")
    assert Path(one["result_path"]).exists()


# -- names, and many jobs at once --------------------------------------------------------------------------------------


def test_unknown_and_ambiguous_names_are_told_apart(box: Installation) -> None:
    unknown = box.cli("status", "nobody")
    assert (unknown.returncode, "has the id or the name 'nobody'" in unknown.stderr) == (2, True)
    with closing(Ledger(box.path("state") / "ledger.db")) as ledger:
        ids = [queued(ledger, "anna", out_name=f"anna {n}") for n in (2, 3)]
    several = box.cli("cancel", "anna", "carl")
    assert several.returncode == 2
    assert "3 jobs fit 'anna'" in several.stderr
    assert f"{ids[0][-6:]} (queued)" in several.stderr
    assert box.view.counts()[JobState.CANCELLED] == 1, "nothing is done before all names are known"


def test_several_jobs_are_cancelled_and_retried_by_name(box: Installation) -> None:
    done = box.cli("cancel", "anna", "night/carl", "anna")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["anna", "night/carl", "anna"]
    assert all(line.endswith(" cancelled") for line in done.stdout.splitlines())
    refused = box.cli("retry", "anna", "group")
    assert refused.returncode == 1  # made without files, so there is nothing to retry
    assert "group" in refused.stderr


def test_all_jobs_are_cancelled_after_a_question(box: Installation) -> None:
    unasked = box.cli("cancel", "--all")
    assert (unasked.returncode, "--yes" in unasked.stderr) == (2, True)
    for answer, left in (("n", 3), ("y", 0)):
        with Terminal(box, "cancel", "--all") as terminal:
            terminal.until(lambda text: "Cancel 3 jobs, 0 of which are running? [y/N]" in text)
            terminal.type(f"{answer}\n")
            terminal.end()
            assert terminal.status == (0 if answer == "y" else 1)
        assert box.view.counts()[JobState.QUEUED] == left
    assert box.cli("cancel", "--all", "--yes").stdout.startswith(f"there are no such jobs in {box.root}/storage (from ")


def test_a_running_daemon_takes_many_requests_at_once(tmp_path: Path) -> None:
    box = Installation(tmp_path, changes={"render": {"renderer": "missing"}})
    with box.running():
        for number in range(12):
            box.drop_pair(f"j{number}", seed=number)
        box.until(lambda: box.view.counts()[JobState.QUEUED] == 12, "twelve jobs")
        done = box.cli("cancel", "--all", "--yes")
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 12
        # A worker may have claimed one just then, to see whether its renderer is there: it ends within a second.
        box.until(lambda: box.view.counts()[JobState.CANCELLED] == 12, "twelve cancelled jobs")


def test_all_failed_jobs_are_retried(tmp_path: Path) -> None:
    box = Installation(tmp_path)
    with box.running():
        for name in ("anna", "bert"):
            box.drop_manifest(name, image=f"{name}.png", audio=f"{name}.wav", renderer="nosuch")
            box.drop_pair(name)
            box.until_failed(name)
        done = box.cli("retry", "--failed")
        assert done.returncode == 0, done.stderr
        assert [line.split()[0] for line in done.stdout.splitlines()] == ["anna", "bert"]
        box.until(
            lambda: all(
                len([e for e in box.view.events(job.id) if e.state == "failed"]) == 2 for job in box.view.jobs()
            ),
            "the second failures",
        )


# -- waiting for a job -------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    image, voice = tmp_path / "ada.png", tmp_path / "hello.wav"
    image.write_bytes(picture())
    voice.write_bytes(sound(0.4))
    return str(image), str(voice)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Installation]:
    box = Installation(tmp_path)
    with box.running():
        yield box


def test_a_blocked_job_says_so_at_once_and_ctrl_c_how_to_go_on(running: Installation, files: tuple[str, str]) -> None:
    with Terminal(running, "submit", *files, "--wait", "--renderer", "missing", "--name", "ada one") as terminal:
        text = " ".join(terminal.until(lambda text: "ada one waits: " in text and "blocked" in text).split())
        assert "missing needs" in text or "tests.no_such_module" in text
        assert "install them, as `lipsyncd doctor` says" in text
        terminal.type("\x03")
        text = terminal.end()
        assert terminal.status == 130
    assert "the job goes on" in text
    assert "lipsyncd status 'ada one'" in text
    assert all(len(line) <= 80 for line in text.splitlines() if "lipsyncd " in line)
    assert "lipsyncd cancel 'ada one'" in text
    assert "Traceback" not in text
    seen = running.cli("status").stdout
    assert re.search(r"^ada one +[0-9a-f]{6} +blocked ", seen, re.MULTILINE)
    assert "    renderer-not-installed: " in seen
    assert running.cli("cancel", "ada one").returncode == 0


def test_without_a_terminal_a_blocked_job_says_so_on_stderr(running: Installation, files: tuple[str, str]) -> None:
    command = [sys.executable, "-m", "lipsyncd", "--config", str(running.config), "submit", *files, "--wait"]
    with subprocess.Popen(
        [*command, "--renderer", "missing"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=running.environment(),
    ) as waiting:  # fmt: skip
        assert waiting.stderr is not None
        for line in waiting.stderr:
            if line.startswith("ada-hello waits: "):
                break
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(20) == 130


def test_a_bar_shows_the_name_and_the_path_follows(running: Installation, files: tuple[str, str]) -> None:
    with Terminal(running, "submit", *files, "--wait", "--renderer", "slow", "--name", "ada") as terminal:
        text = terminal.end()
    assert terminal.status == 0
    assert re.search(r"^ada +━+", text, re.MULTILINE)
    assert "100%" in text
    assert text.rstrip().endswith("/outbox/ada.mp4")


def test_watch_redraws_until_ctrl_c(running: Installation) -> None:
    running.drop_pair("anna")
    running.until_done("anna")
    with Terminal(running, "status", "--watch") as terminal:
        terminal.until(lambda text: len(re.findall(r"anna +[0-9a-f]{6} +done", text)) >= 2)
        terminal.type("\x03")
        terminal.end()
        assert terminal.status == 0


# -- before intake -----------------------------------------------------------------------------------------------------


def test_a_job_that_lies_in_the_inbox_is_found_and_taken_back(tmp_path: Path, files: tuple[str, str]) -> None:
    box = Installation(tmp_path)
    box.cli("init")
    job_id = json.loads(box.cli("submit", *files, "--name", "ada", "--json").stdout)["id"]
    for text in ("ada", job_id, job_id[-6:], job_id.upper()):
        [found] = not_taken(box.folders, text)
        assert (found.job_id, found.name) == (job_id, "ada")
    assert not_taken(box.folders, "nobody") == not_taken(box.folders, job_id[-3:]) == []
    seen = box.cli("status", "ada")
    assert (seen.returncode, f"ada ({job_id}) lies in the inbox as {found.file}: no daemon runs\n") == (0, seen.stdout)
    with box.running():
        box.until_done("ada")


def test_a_job_is_taken_back_by_name_before_it_is_accepted(tmp_path: Path, files: tuple[str, str]) -> None:
    by_hand = JobsByHand(tmp_path / "storage")
    order = manifest_of(image=files[0], audio=files[1], text=None, name="ada")
    submission = drop(by_hand.folders, order, limits=by_hand.settings.intake)
    answer = carry_out(Request(WITHDRAW, submission.job_id), by_hand.stores, by_hand.finisher)
    by_hand.close()
    assert answer.ok
    box = Installation(tmp_path)
    with box.running():
        assert box.until_state("ada", JobState.CANCELLED).id == submission.job_id
    assert not [e for e in LedgerView(box.path("state") / "ledger.db").events(submission.job_id) if "prepar" in e.note]


@pytest.mark.slow
def test_the_status_costs_little_more_than_twice_the_import_of_click(tmp_path: Path) -> None:
    """1.9 is measured, and it was 2.2; `python -m benchmarks.figures start` prints it."""
    installation = Installation(tmp_path)
    installation.folders.initialise()
    commands = {
        "status": [sys.executable, "-m", "lipsyncd", "--config", str(installation.config), "status"],
        "click": [sys.executable, "-c", "import click"],
    }
    least = least_cpu_s(commands, installation.environment(), runs=15)
    assert least["status"] / least["click"] < 2.3, least
