"""The same bytes again: what becomes of them in each state of the first job, under each policy, and over crashes."""

from __future__ import annotations

import hashlib
import json
import signal
import sqlite3
from typing import Any

import pytest

from lipsyncd.jobs.job import Job, JobState
from tests.daemon.test_recovery import Consumer
from tests.kits.installation import Home, picture, put, sound


def drop(home: Home, name: str, *, seed: int = 0, seconds: float = 0.3, **said: Any) -> None:
    """An order for `name`; its files have the same bytes for the same seed."""
    put(home.path("inbox"), f"{name}-in.png", picture(seed))
    put(home.path("inbox"), f"{name}-in.wav", sound(seconds, seed))
    home.drop_manifest(f"{name}-order", image=f"{name}-in.png", audio=f"{name}-in.wav", out_name=name, **said)


def video(home: Home, name: str) -> bytes:
    return (home.path("outbox") / f"{name}.mp4").read_bytes()


def until_shown(home: Home, name: str) -> dict[str, Any]:
    home.until(lambda: (home.path("outbox") / f"{name}.json").exists(), f"the sidecar {name}")
    return home.sidecar(name)


def until_cleared(home: Home) -> None:
    home.until(lambda: not list(home.path("spool").iterdir()), "an empty spool")


def history(home: Home, job: Job) -> str:
    return "\n".join(event.note for event in home.view.events(job.id))


# -- the first one is done ---------------------------------------------------------------------------------------------


def test_the_same_bytes_get_the_first_video_under_the_new_name_and_no_render(home: Home) -> None:
    """Under another name, under the same one, and under the first one's kept result when the outbox was emptied."""
    with home.running():
        home.drop_pair("anna")
        first = home.until_done("anna")
        home.drop_pair("bert")
        second = home.until_done("bert")
        home.drop_pair("anna")
        until_shown(home, "anna (2)")
        for path in home.path("outbox").glob("[!.]*"):
            path.unlink()
        home.drop_pair("cara")
        home.until_done("cara")

    assert home.renders == 1
    assert [second.duplicate_of, second.out_sha256, second.attempt] == [first.id, first.out_sha256, 0]
    assert f"the same work as job {first.id}" in history(home, second)
    sidecar = home.sidecar("cara")
    assert sidecar["video"] == "cara.mp4"
    assert sidecar["sha256"] == hashlib.sha256(video(home, "cara")).hexdigest() == first.out_sha256
    assert {i["name"] for i in sidecar["inputs"]} == {"cara.png", "cara.wav"}
    assert sidecar["duplicate_of"] is not None
    assert list(home.path("spool").iterdir()) == []


def test_other_options_are_other_work_unless_they_do_not_shape_the_video(home: Home) -> None:
    others: list[dict[str, Any]] = [{}, {"resolution": 128}, {"fps": 30}, {"stitch": True}, {"pad_s": 0.2}]
    with home.running():
        for number, said in enumerate(others):
            drop(home, f"job{number}", **said)
        assert [home.until_done(f"job{number}").duplicate_of for number in range(len(others))] == [None] * len(others)
        drop(home, "bert", priority=7, user_data={"order": 8})
        job = home.until_done("bert")
    assert home.renders == len(others)
    assert job.duplicate_of == home.job("job0").id  # type: ignore[union-attr]
    assert home.sidecar("bert")["user_data"] == {"order": 8}


def test_a_video_that_is_gone_or_was_made_by_other_settings_is_rendered_again(home: Home) -> None:
    with home.running():
        home.drop_pair("anna")
        home.until_done("anna")
        until_cleared(home)
        for path in [*home.path("outbox").glob("[!.]*"), *(home.path("state") / "results").iterdir()]:
            path.unlink()
        home.drop_pair("bert")
        assert home.until_done("bert").duplicate_of is None
    assert home.renders == 2

    home.changes["output"] = {"crf": 30}
    with home.running():
        home.drop_pair("cara")
        assert home.until_done("cara").duplicate_of is None
        home.drop_pair("dora")
        assert home.until_done("dora").duplicate_of == home.job("cara").id  # type: ignore[union-attr]
    assert home.renders == 3


def test_a_kept_video_that_was_changed_is_not_taken(home: Home) -> None:
    """Neither the copy beside the ledger, which rotted, nor the one in the outbox, which somebody edited."""
    with home.running():
        home.drop_pair("anna")
        first = home.until_done("anna")
        until_cleared(home)
        (home.path("outbox") / "anna.mp4").write_bytes(b"edited")
        kept = home.path("state") / "results" / f"{first.id}.mp4"
        kept.write_bytes(kept.read_bytes()[:-1])
        home.drop_pair("bert")
        home.until_done("bert")
    assert home.renders == 2
    assert home.sidecar("bert")["duplicate_of"] is None


# -- the first one is under way, or ended otherwise --------------------------------------------------------------------


def test_redrops_wait_for_the_one_that_is_queued_or_runs(home: Home) -> None:
    """Five orders of one work at once, the last one urgent: one render, five videos."""
    home.start()
    home.stop()
    names = ["anna", "bert", "cara", "dora"]
    for name in names:
        home.drop_pair(name, seconds=1.0)
    with home.running():
        home.drop_manifest("urgent", image="u.png", audio="u.wav", priority=9)
        put(home.path("inbox"), "u.png", picture())
        put(home.path("inbox"), "u.wav", sound(1.0))
        for name in [*names, "urgent"]:
            home.until_done(name)
    assert home.renders == 1
    assert len({video(home, name) for name in [*names, "urgent"]}) == 1
    jobs = sorted(home.view.jobs(), key=lambda job: job.seq)
    assert jobs[0].duplicate_of is None
    assert all(job.duplicate_of for job in jobs[1:])


def test_a_redrop_of_what_waits_for_the_outbox_waits_with_it(home: Home) -> None:
    home.start()
    home.stop()
    away = home.root / "away"
    home.path("outbox").rename(away)
    home.path("outbox").mkdir()
    with home.running():
        home.drop_pair("anna")
        home.until_state("anna", JobState.PUBLISHING)
        home.drop_pair("bert")
        linked = home.until(lambda: (j := home.job("bert")) and j.stage == "linked" and j, "the link")
        assert (linked.state, linked.reason_code) == (JobState.QUEUED, None)
        home.path("outbox").rmdir()
        away.rename(home.path("outbox"))
        home.until_done("anna")
        home.until_done("bert")
    assert home.renders == 1


@pytest.mark.parametrize("ending", [JobState.FAILED, JobState.CANCELLED])
def test_when_the_first_fails_or_is_cancelled_the_next_one_does_the_work(home: Home, ending: JobState) -> None:
    home.changes["render"] = {"max_attempts": 1}
    renderer = "raises" if ending is JobState.FAILED else "slow"
    with home.running():
        drop(home, "anna", seconds=4.0, renderer=renderer)
        home.until_state("anna", JobState.RUNNING, JobState.FAILED)
        drop(home, "bert", seconds=4.0, renderer=renderer)
        if ending is JobState.CANCELLED:
            home.until(lambda: (j := home.job("bert")) and j.duplicate_of, "the link")
            assert home.cli("cancel", home.job("anna").id).returncode == 0  # type: ignore[union-attr]
            home.until_state("anna", ending)
        bert = home.until_state("bert", JobState.RUNNING, JobState.FAILED)
        assert bert.duplicate_of is None
        if ending is JobState.CANCELLED:
            assert home.cli("cancel", bert.id).returncode == 0
        home.until_state("bert", ending)
        assert home.until(lambda: home.view.get(bert.id).attempt == 1, "an attempt of its own")


def test_a_waiting_redrop_can_be_cancelled_and_leaves_the_first_alone(home: Home) -> None:
    with home.running():
        drop(home, "anna", seconds=1.0, renderer="slow")
        home.until_state("anna", JobState.RUNNING)
        drop(home, "bert", seconds=1.0, renderer="slow")
        linked = home.until(lambda: (j := home.job("bert")) and j.duplicate_of and j, "the link")
        assert home.cli("cancel", linked.id).returncode == 0
        home.until_state("bert", JobState.CANCELLED)
        home.until_done("anna")
    assert not (home.path("outbox") / "bert.mp4").exists()


# -- the other policies ------------------------------------------------------------------------------------------------


def test_render_does_the_work_anew(home: Home) -> None:
    home.changes["intake"] = {"on_redrop": "render"}
    with home.running():
        for name in ("anna", "bert"):
            home.drop_pair(name)
            assert home.until_done(name).duplicate_of is None
    assert home.renders == 2


def test_skip_leaves_a_sidecar_that_names_the_first_video(home: Home) -> None:
    home.changes["intake"] = {"on_redrop": "skip"}
    with home.running():
        home.drop_pair("anna")
        first = home.until_done("anna")
        home.drop_pair("bert")
        second = home.until_done("bert")
        home.drop_pair("anna")
        again = until_shown(home, "anna (2)")
        out = home.root / "bert.mp4"
        status = home.cli("status", second.id).stdout
        until_cleared(home)
        refused = home.cli("republish", second.id)
        for path in [*home.path("outbox").glob("*.mp4"), *(home.path("state") / "results").iterdir()]:
            path.unlink()
        home.drop_pair("cara")
        assert home.until_done("cara").duplicate_of is None
    assert home.renders == 2
    assert (again["video"], again["duplicate_of"]) == ("anna.mp4", first.id)
    assert home.sidecar("bert")["video"] == "anna.mp4"
    assert sorted(p.name for p in home.path("outbox").glob("*.mp4")) == ["cara.mp4"]
    assert first.id in status
    assert refused.returncode == 1
    assert f"brought the inputs of job {first.id} again" in refused.stderr
    assert not out.exists()


def test_the_same_order_under_its_own_id_is_no_redrop(home: Home) -> None:
    with home.running():
        drop(home, "anna")
        job = home.until_done("anna")
        drop(home, "anna", id=job.id)
        home.until(lambda: [p.name for p in home.path("inbox").iterdir()] == [".lipsyncd"], "an empty inbox")
        assert [j.id for j in home.view.jobs()] == [job.id]
    assert home.renders == 1


# -- crashes -----------------------------------------------------------------------------------------------------------


AT = ("link-copied", "link-noted", "link-kept", "link-publishing", "publish-staged", "publish-renamed-json", "cleared")


@pytest.mark.parametrize("policy", ["link", "skip"])
def test_a_crash_while_linking_delivers_once_and_renders_nothing(home: Home, policy: str) -> None:
    """One redrop after the other, each killed at another step; each start first puts right what the last one left."""
    home.changes["intake"] = {"on_redrop": policy}
    with home.running():
        home.drop_pair("anna")
        home.until_done("anna")
        until_cleared(home)
    expected: dict[str, int] = {}
    with Consumer(home) as consumer:
        for name in AT:
            home.drop_pair(name)
            expected |= {f"{name}.{suffix}": 1 for suffix in (["mp4", "json"] if policy == "link" else ["json"])}
            daemon = home.start(LIPSYNCD_FAIL=name, wait=False)
            assert daemon.wait(60) == -signal.SIGKILL
        with home.running():
            jobs = [home.until_done(name) for name in AT]
            until_cleared(home)
            home.until(lambda: sum(consumer.taken.values()) >= len(expected) + 2, "all results")
    del consumer.taken["anna.mp4"], consumer.taken["anna.json"]
    assert consumer.taken == expected
    for name, job in zip(AT, jobs, strict=True):
        assert json.loads(consumer.content[f"{name}.json"])["sha256"] == job.out_sha256
    assert not list((home.path("outbox") / ".lipsyncd").glob("*.part"))
    assert home.renders == 1


def test_a_result_that_was_copied_for_an_order_that_changed_is_not_published(home: Home) -> None:
    """Killed with the copy in the spool; before the restart the row is no longer linked, as after new options."""
    with home.running():
        home.drop_pair("anna")
        home.until_done("anna")
    home.drop_pair("bert")
    home.start(LIPSYNCD_FAIL="link-kept", wait=False).wait(30)
    with sqlite3.connect(home.path("state") / "ledger.db") as ledger:
        ledger.execute("UPDATE job SET duplicate_of=NULL, idem_key='other' WHERE name='bert'")
    with home.running():
        assert home.until_done("bert").duplicate_of is None
    assert home.renders == 2
