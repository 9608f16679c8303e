"""Folders in the inbox: each with its priority and options, and a folder in the outbox for its videos."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from lipsyncd.errors import ConfigError
from lipsyncd.jobs.job import JobState
from lipsyncd.media.mp4 import inspect
from lipsyncd.settings import Settings, load
from lipsyncd.storage.private_folder import HIDDEN
from tests.daemon.test_recovery import crash_at
from tests.kits.installation import Installation, picture, put, sound


def read(tmp_path: Path, text: str) -> Settings:
    (tmp_path / "lipsyncd.toml").write_text(text)
    return load(tmp_path / "lipsyncd.toml", environ={"HOME": str(tmp_path)})


def drop(installation: Installation, queue: str, stem: str, seed: int) -> None:
    put(installation.path("inbox") / queue, f"{stem}.png", picture(seed))
    put(installation.path("inbox") / queue, f"{stem}.wav", sound(seed=seed))


# -- settings ----------------------------------------------------------------------------------------------------------


def test_what_a_queue_does_not_say_the_sections_decide(tmp_path: Path) -> None:
    urgent = "[queue.urgent]\npriority = 50\nstitch = true\n"
    settings = read(tmp_path, f"[output]\nfps = 30\n{urgent}[queue.small_1]\nresolution = 64\nfps = 29.97\n")
    urgent, small = settings.queues
    assert (urgent.name, urgent.priority, urgent.stitch, urgent.resolution, urgent.fps) == (
        "urgent",
        50,
        True,
        256,
        "30",
    )
    assert (small.name, small.priority, small.stitch, small.resolution) == ("small_1", 0, False, 64)
    assert str(small.rate) == "30000/1001"
    assert (settings.queue("urgent"), settings.queue().fps) == (urgent, "30")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[queue.urgent]\npriorty = 5", "unknown setting queue.urgent.priorty"),
        ("[queue.urgent]\npriority = 101", "queue.urgent.priority is 101"),
        ("[queue.urgent]\nstitch = 1", "queue.urgent.stitch is 1"),
        ("[queue.urgent]\nresolution = 65", "allowed: an even number from 64 to 2048"),
        ('[queue."../up"]\n', "a queue is called '../up'"),
        ('[queue.".lipsyncd"]\n', "a queue is called '.lipsyncd'"),
        ("[queue.one]\n[queue.ONE]\n", "each name once without regard to case"),
        ("[queue]\nurgent = 5", "queue.urgent is 5"),
        ("queue = 5", "queue is 5"),
    ],
)
def test_a_queue_that_cannot_be_is_refused_with_its_reason(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, text)
    assert reason in str(refused.value)
    assert str(tmp_path) in str(refused.value)


# -- the whole way -----------------------------------------------------------------------------------------------------


@pytest.fixture
def queues(installation: Installation) -> Installation:
    installation.changes["queue.urgent"] = {"priority": 50, "resolution": 128}
    installation.changes["queue.night"] = {"priority": -50, "renderer": "flat", "fps": 30}
    return installation


@pytest.mark.inotify
def test_the_same_stem_in_three_folders_is_three_jobs_with_three_places(queues: Installation) -> None:
    """In the order of their priorities, each with its preset; a manifest in a queue names files of that queue."""
    installation = queues
    installation.start()
    installation.stop()
    for number, queue in enumerate(("night", "", "urgent")):
        drop(installation, queue, "anna", number)
    order = json.dumps({"image": "bert.png", "audio": "bert.wav", "priority": 99, "resolution": 64})
    put(installation.path("inbox") / "urgent", "bert.json", order.encode())
    drop(installation, "urgent", "bert", 7)
    with installation.running():
        installation.until(lambda: len(installation.view.jobs(states=[JobState.DONE])) == 4, "all four")
        table = installation.cli("status").stdout

        def watched() -> dict[str, Any]:
            """The status, once all folders report events: the daemon writes it once a second."""
            found = json.loads(installation.cli("status", "--json").stdout)["daemon"]
            return found if {queue["watch"] for queue in found["queues"]} == {"events"} else {}

        status = installation.until(watched, "events of all folders")
    jobs = {f"{job.queue}/{job.name}": job for job in installation.view.jobs()}
    assert {name: job.priority for name, job in jobs.items()} == {
        "/anna": 0, "night/anna": -50, "urgent/anna": 50, "urgent/bert": 99,
    }  # fmt: skip
    shown = {
        str(path.relative_to(installation.path("outbox"))) for path in installation.path("outbox").rglob("[!.]*.mp4")
    }
    assert shown == {"anna.mp4", "night/anna.mp4", "urgent/anna.mp4", "urgent/bert.mp4"}
    assert inspect(installation.path("outbox") / "urgent" / "anna.mp4").video.width == 128
    assert inspect(installation.path("outbox") / "urgent" / "bert.mp4").video.width == 64
    assert inspect(installation.path("outbox") / "night" / "anna.mp4").video.rate == 30
    sidecar = json.loads((installation.path("outbox") / "urgent" / "anna.json").read_text())
    assert (sidecar["video"], sidecar["queue"], sidecar["id"]) == ("anna.mp4", "urgent", jobs["urgent/anna"].id)
    assert "urgent/anna" in table
    assert [(q["name"], q["priority"], q["fault"], q["watch"]) for q in status["queues"]] == [
        ("urgent", 50, "", "events"),
        ("night", -50, "", "events"),
    ]
    assert status["ignored"] == {}
    left = sorted(
        str(p.relative_to(installation.path("inbox")))
        for p in installation.path("inbox").rglob("[!.]*")
        if HIDDEN not in p.parts
    )
    assert left == ["night", "urgent"]


def test_submit_drops_into_a_queue_and_names_those_that_there_are(queues: Installation) -> None:
    installation = queues
    (installation.root / "my.png").write_bytes(picture())
    (installation.root / "my.wav").write_bytes(sound())
    files = (installation.root / "my.png", installation.root / "my.wav")
    refused = installation.cli("submit", *files, "--queue", "urgnt")
    assert refused.returncode == 2
    assert "there is no queue 'urgnt'" in refused.stderr
    assert "queues are urgent, night" in refused.stderr
    before = installation.cli("submit", *files, "--queue", "night")  # no daemon has made the folder yet
    assert before.returncode == 0, before.stderr
    with installation.running():
        out = installation.root / "out.mp4"
        assert installation.cli("submit", *files, "--queue", "urgent", "--name", "fast", "--out", out).returncode == 0
        late = installation.until_done("my")
    fast = installation.job("fast")
    assert fast is not None
    assert (fast.queue, fast.priority, late.queue) == ("urgent", 50, "night")
    assert inspect(out).video.width == 128
    assert (installation.path("outbox") / "urgent" / "fast.mp4").exists()


def test_a_reload_takes_over_what_a_queue_gives_and_tells_of_those_that_wait(queues: Installation) -> None:
    installation = queues
    with installation.running():
        installation.changes["queue.urgent"] = {"priority": 60, "resolution": 64}
        installation.changes["queue.new"] = installation.changes.pop("queue.night")
        assert installation.config.exists()
        assert installation.daemon is not None
        installation.daemon.send_signal(signal.SIGHUP)
        installation.until(lambda: "settings read again" in installation.log, "the reload")
        drop(installation, "urgent", "anna", 1)
        assert installation.until_done("anna").priority == 60
    assert inspect(installation.path("outbox") / "urgent" / "anna.mp4").video.width == 64
    assert "queue.urgent.priority is 60 now, was 50" in installation.log
    for name in ("queue.new", "queue.night"):
        assert f"{name}: a queue comes and goes with a restart" in installation.log


def test_a_queue_that_is_not_mounted_waits_alone_and_a_folder_without_a_table_is_left_alone(
    queues: Installation,
) -> None:
    installation = queues
    installation.changes["watch"] = {"poll_s": 0.2}
    installation.start()
    installation.stop()
    away = installation.root / "away"
    (installation.path("inbox") / "urgent").rename(away)
    (installation.path("inbox") / "urgent").mkdir()
    (installation.path("inbox") / "other").mkdir()
    with installation.running():
        installation.until(lambda: "the queue urgent waits" in installation.cli("status").stdout, "the reason")
        drop(installation, "", "anna", 1)
        installation.until_done("anna")
        drop(installation, "urgent", "bert", 2)
        shutil.rmtree(installation.path("inbox") / "urgent")
        away.rename(installation.path("inbox") / "urgent")
        drop(installation, "urgent", "cara", 3)
        assert installation.until_done("cara").queue == "urgent"
        assert installation.job("bert") is None
        shutil.rmtree(installation.path("outbox") / "urgent")
        drop(installation, "urgent", "dora", 4)
        installation.until_done("dora")
        assert (installation.path("outbox") / "urgent" / "dora.mp4").exists()
        ignored = json.loads(installation.cli("status", "--json").stdout)["daemon"]["ignored"]
    assert ignored == {"other": "is a folder, and folders are not looked into"}


def test_redrops_are_linked_over_queues_and_names_are_free_in_each(queues: Installation) -> None:
    installation = queues
    installation.changes["queue.urgent"] = {"priority": 50}
    with installation.running():
        drop(installation, "", "anna", 1)
        first = installation.until_done("anna")
        drop(installation, "urgent", "anna", 1)
        installation.until(lambda: (installation.path("outbox") / "urgent" / "anna.json").exists(), "the linked video")
        drop(installation, "urgent", "anna", 2)
        installation.until(
            lambda: (installation.path("outbox") / "urgent" / "anna (2).json").exists(), "the second video"
        )
    linked = json.loads((installation.path("outbox") / "urgent" / "anna.json").read_text())
    assert (linked["duplicate_of"], linked["video"]) == (first.id, "anna.mp4")
    assert installation.renders == 2


@pytest.mark.parametrize("name", ["intake-inserted", "publish-staged"])
def test_a_crash_costs_no_job_of_a_queue(queues: Installation, name: str) -> None:
    installation = queues
    installation.start()
    installation.stop()
    drop(installation, "urgent", "anna", 1)
    crash_at(installation, name)
    if name == "publish-staged":
        for path in installation.path("state").glob("ledger.db*"):
            path.unlink()
    with installation.running():
        job = installation.until_done("anna")
        installation.until(lambda: not list((installation.path("inbox") / "urgent").glob("[!.]*")), "an empty folder")
    assert (job.queue, installation.renders) == ("urgent", 1)
    assert sorted(p.name for p in (installation.path("outbox") / "urgent").iterdir()) == ["anna.json", "anna.mp4"]
    assert [p.name for p in installation.path("outbox").iterdir() if p.is_file()] == []
