"""Folders in the inbox: each with its priority and options, and a folder in the outbox for its videos."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from lipsyncd.errors import ConfigError
from lipsyncd.jobs.job import JobState
from lipsyncd.media.mp4 import inspect
from lipsyncd.settings import Settings, load
from lipsyncd.storage.folders import HIDDEN
from tests.daemon.test_recovery import crash_at
from tests.kits.installation import Home, picture, put, sound


def read(tmp_path: Path, text: str) -> Settings:
    (tmp_path / "lipsyncd.toml").write_text(text)
    return load(tmp_path / "lipsyncd.toml", environ={"HOME": str(tmp_path)})


def drop(home: Home, queue: str, stem: str, seed: int) -> None:
    put(home.path("inbox") / queue, f"{stem}.png", picture(seed))
    put(home.path("inbox") / queue, f"{stem}.wav", sound(seed=seed))


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
    ("text", "told"),
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
def test_a_queue_that_cannot_be_is_refused_with_its_reason(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, text)
    assert told in str(refused.value)
    assert str(tmp_path) in str(refused.value)


# -- the whole way -----------------------------------------------------------------------------------------------------


@pytest.fixture
def queues(home: Home) -> Home:
    home.changes["queue.urgent"] = {"priority": 50, "resolution": 128}
    home.changes["queue.night"] = {"priority": -50, "renderer": "flat", "fps": 30}
    return home


def test_the_same_stem_in_three_folders_is_three_jobs_with_three_places(queues: Home) -> None:
    """In the order of their priorities, each with its preset; a manifest in a queue names files of that queue."""
    home = queues
    home.start()
    home.stop()
    for number, queue in enumerate(("night", "", "urgent")):
        drop(home, queue, "anna", number)
    order = json.dumps({"image": "bert.png", "audio": "bert.wav", "priority": 99, "resolution": 64})
    put(home.path("inbox") / "urgent", "bert.json", order.encode())
    drop(home, "urgent", "bert", 7)
    with home.running():
        home.until(lambda: len(home.view.jobs(states=[JobState.DONE])) == 4, "all four")
        status = home.cli("status").stdout
        told = json.loads(home.cli("status", "--json").stdout)["daemon"]
    jobs = {f"{job.queue}/{job.name}": job for job in home.view.jobs()}
    assert {name: job.priority for name, job in jobs.items()} == {
        "/anna": 0, "night/anna": -50, "urgent/anna": 50, "urgent/bert": 99,
    }  # fmt: skip
    shown = {str(path.relative_to(home.path("outbox"))) for path in home.path("outbox").rglob("[!.]*.mp4")}
    assert shown == {"anna.mp4", "night/anna.mp4", "urgent/anna.mp4", "urgent/bert.mp4"}
    assert inspect(home.path("outbox") / "urgent" / "anna.mp4").video.width == 128
    assert inspect(home.path("outbox") / "urgent" / "bert.mp4").video.width == 64
    assert inspect(home.path("outbox") / "night" / "anna.mp4").video.rate == 30
    sidecar = json.loads((home.path("outbox") / "urgent" / "anna.json").read_text())
    assert (sidecar["video"], sidecar["queue"], sidecar["id"]) == ("anna.mp4", "urgent", jobs["urgent/anna"].id)
    assert "urgent/anna" in status
    assert [(q["name"], q["priority"], q["fault"], q["watch"]) for q in told["queues"]] == [
        ("urgent", 50, "", "events"),
        ("night", -50, "", "events"),
    ]
    assert told["ignored"] == {}
    left = sorted(
        str(p.relative_to(home.path("inbox"))) for p in home.path("inbox").rglob("[!.]*") if HIDDEN not in p.parts
    )
    assert left == ["night", "urgent"]


def test_submit_drops_into_a_queue_and_names_those_that_there_are(queues: Home) -> None:
    home = queues
    (home.root / "my.png").write_bytes(picture())
    (home.root / "my.wav").write_bytes(sound())
    files = (home.root / "my.png", home.root / "my.wav")
    refused = home.cli("submit", *files, "--queue", "urgnt")
    assert refused.returncode == 2
    assert "there is no queue 'urgnt'" in refused.stderr
    assert "queues are urgent, night" in refused.stderr
    before = home.cli("submit", *files, "--queue", "night")  # no daemon has made the folder yet
    assert before.returncode == 0, before.stderr
    with home.running():
        out = home.root / "out.mp4"
        assert home.cli("submit", *files, "--queue", "urgent", "--name", "fast", "--out", out).returncode == 0
        late = home.until_done("my")
    fast = home.job("fast")
    assert fast is not None
    assert (fast.queue, fast.priority, late.queue) == ("urgent", 50, "night")
    assert inspect(out).video.width == 128
    assert (home.path("outbox") / "urgent" / "fast.mp4").exists()


def test_a_reload_takes_over_what_a_queue_gives_and_tells_of_those_that_wait(queues: Home) -> None:
    home = queues
    with home.running():
        home.changes["queue.urgent"] = {"priority": 60, "resolution": 64}
        home.changes["queue.new"] = home.changes.pop("queue.night")
        assert home.config.exists()
        assert home.daemon is not None
        home.daemon.send_signal(signal.SIGHUP)
        home.until(lambda: "settings read again" in home.log, "the reload")
        drop(home, "urgent", "anna", 1)
        assert home.until_done("anna").priority == 60
    assert inspect(home.path("outbox") / "urgent" / "anna.mp4").video.width == 64
    assert "queue.urgent.priority is 60 now, was 50" in home.log
    for name in ("queue.new", "queue.night"):
        assert f"{name}: a queue comes and goes with a restart" in home.log


def test_a_queue_that_is_not_mounted_waits_alone_and_a_folder_without_a_table_is_left_alone(queues: Home) -> None:
    home = queues
    home.changes["watch"] = {"poll_s": 0.2}
    home.start()
    home.stop()
    away = home.root / "away"
    (home.path("inbox") / "urgent").rename(away)
    (home.path("inbox") / "urgent").mkdir()
    (home.path("inbox") / "other").mkdir()
    with home.running():
        home.until(lambda: "the queue urgent waits" in home.cli("status").stdout, "the reason")
        drop(home, "", "anna", 1)
        home.until_done("anna")
        drop(home, "urgent", "bert", 2)
        shutil.rmtree(home.path("inbox") / "urgent")
        away.rename(home.path("inbox") / "urgent")
        drop(home, "urgent", "cara", 3)
        assert home.until_done("cara").queue == "urgent"
        assert home.job("bert") is None
        shutil.rmtree(home.path("outbox") / "urgent")
        drop(home, "urgent", "dora", 4)
        home.until_done("dora")
        assert (home.path("outbox") / "urgent" / "dora.mp4").exists()
        ignored = json.loads(home.cli("status", "--json").stdout)["daemon"]["ignored"]
    assert ignored == {"other": "is no regular file"}


def test_redrops_are_linked_over_queues_and_names_are_free_in_each(queues: Home) -> None:
    home = queues
    home.changes["queue.urgent"] = {"priority": 50}
    with home.running():
        drop(home, "", "anna", 1)
        first = home.until_done("anna")
        drop(home, "urgent", "anna", 1)
        home.until(lambda: (home.path("outbox") / "urgent" / "anna.json").exists(), "the linked video")
        drop(home, "urgent", "anna", 2)
        home.until(lambda: (home.path("outbox") / "urgent" / "anna (2).json").exists(), "the second video")
    linked = json.loads((home.path("outbox") / "urgent" / "anna.json").read_text())
    assert (linked["duplicate_of"], linked["video"]) == (first.id, "anna.mp4")
    assert home.renders == 2


@pytest.mark.parametrize("name", ["intake-inserted", "publish-staged"])
def test_a_crash_costs_no_job_of_a_queue(queues: Home, name: str) -> None:
    home = queues
    home.start()
    home.stop()
    drop(home, "urgent", "anna", 1)
    assert crash_at(home, name)
    if name == "publish-staged":
        for path in home.path("state").glob("ledger.db*"):
            path.unlink()
    with home.running():
        job = home.until_done("anna")
        home.until(lambda: not list((home.path("inbox") / "urgent").glob("[!.]*")), "an empty folder")
    assert (job.queue, home.renders) == ("urgent", 1)
    assert sorted(p.name for p in (home.path("outbox") / "urgent").iterdir()) == ["anna.json", "anna.mp4"]
    assert [p.name for p in home.path("outbox").iterdir() if p.is_file()] == []
