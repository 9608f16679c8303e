"""The same bytes again: in each state of the first job, under each policy, and over crashes."""

from __future__ import annotations

import hashlib
import json
import signal
import sqlite3
from typing import Any

import pytest

from lipsyncd.jobs.job import Job, JobState
from tests.daemon.test_recovery import Consumer
from tests.kits.installation import Installation, picture, put, sound


def drop(installation: Installation, name: str, *, seed: int = 0, seconds: float = 0.3, **fields: Any) -> None:
    """An order for `name`; its files have the same bytes for the same seed.

    The manifest comes first: on a busy machine the two files would be taken as a pair before it is there.
    """
    installation.drop_manifest(f"{name}-order", image=f"{name}-in.png", audio=f"{name}-in.wav", out_name=name, **fields)
    put(installation.path("inbox"), f"{name}-in.png", picture(seed))
    put(installation.path("inbox"), f"{name}-in.wav", sound(seconds, seed))


def video(installation: Installation, name: str) -> bytes:
    return (installation.path("outbox") / f"{name}.mp4").read_bytes()


def until_shown(installation: Installation, name: str) -> dict[str, Any]:
    installation.until(lambda: (installation.path("outbox") / f"{name}.json").exists(), f"the sidecar {name}")
    return installation.sidecar(name)


def until_cleared(installation: Installation) -> None:
    installation.until(lambda: not list(installation.path("spool").iterdir()), "an empty spool")


def history(installation: Installation, job: Job) -> str:
    return "\n".join(event.note for event in installation.view.events(job.id))


# -- the first one is done ---------------------------------------------------------------------------------------------


def test_the_same_bytes_get_the_first_video_under_the_new_name_and_no_render(installation: Installation) -> None:
    """Under another name, under the same one, and under the first one's kept result when the outbox was emptied."""
    with installation.running():
        installation.drop_pair("anna")
        first = installation.until_done("anna")
        installation.drop_pair("bert")
        second = installation.until_done("bert")
        installation.drop_pair("anna")
        until_shown(installation, "anna (2)")
        for path in installation.path("outbox").glob("[!.]*"):
            path.unlink()
        installation.drop_pair("cara")
        installation.until_done("cara")

    assert installation.renders == 1
    assert [second.duplicate_of, second.out_sha256, second.attempt] == [first.id, first.out_sha256, 0]
    assert f"the same work as job {first.id}" in history(installation, second)
    sidecar = installation.sidecar("cara")
    assert sidecar["video"] == "cara.mp4"
    assert sidecar["sha256"] == hashlib.sha256(video(installation, "cara")).hexdigest() == first.out_sha256
    assert {i["name"] for i in sidecar["inputs"]} == {"cara.png", "cara.wav"}
    assert sidecar["duplicate_of"] is not None
    assert list(installation.path("spool").iterdir()) == []


def test_other_options_are_other_work_unless_they_do_not_shape_the_video(installation: Installation) -> None:
    others: list[dict[str, Any]] = [{}, {"resolution": 128}, {"fps": 30}, {"stitch": True}, {"pad_s": 0.2}]
    with installation.running():
        for number, fields in enumerate(others):
            drop(installation, f"job{number}", **fields)
        assert [installation.until_done(f"job{number}").duplicate_of for number in range(len(others))] == [None] * len(
            others
        )
        drop(installation, "bert", priority=7, user_data={"order": 8})
        job = installation.until_done("bert")
    assert installation.renders == len(others)
    assert job.duplicate_of == installation.job("job0").id  # type: ignore[union-attr]
    assert installation.sidecar("bert")["user_data"] == {"order": 8}


def test_a_video_that_is_gone_or_was_made_by_other_settings_is_rendered_again(installation: Installation) -> None:
    with installation.running():
        installation.drop_pair("anna")
        installation.until_done("anna")
        until_cleared(installation)
        for path in [*installation.path("outbox").glob("[!.]*"), *(installation.path("state") / "results").iterdir()]:
            path.unlink()
        installation.drop_pair("bert")
        assert installation.until_done("bert").duplicate_of is None
    assert installation.renders == 2

    installation.changes["output"] = {"crf": 30}
    with installation.running():
        installation.drop_pair("cara")
        assert installation.until_done("cara").duplicate_of is None
        installation.drop_pair("dora")
        assert installation.until_done("dora").duplicate_of == installation.job("cara").id  # type: ignore[union-attr]
    assert installation.renders == 3


def test_a_kept_video_that_was_changed_is_not_taken(installation: Installation) -> None:
    """Neither the copy beside the ledger, which rotted, nor the one in the outbox, which a user edited."""
    with installation.running():
        installation.drop_pair("anna")
        first = installation.until_done("anna")
        until_cleared(installation)
        (installation.path("outbox") / "anna.mp4").write_bytes(b"edited")
        kept = installation.path("state") / "results" / f"{first.id}.mp4"
        kept.write_bytes(kept.read_bytes()[:-1])
        installation.drop_pair("bert")
        installation.until_done("bert")
    assert installation.renders == 2
    assert installation.sidecar("bert")["duplicate_of"] is None


# -- the first one is under way, or ended otherwise --------------------------------------------------------------------


def test_redrops_wait_for_the_one_that_is_queued_or_runs(installation: Installation) -> None:
    """Five orders of one work at once, the last one urgent: one render, five videos."""
    installation.start()
    installation.stop()
    names = ["anna", "bert", "cara", "dora"]
    for name in names:
        installation.drop_pair(name, seconds=1.0)
    with installation.running():
        installation.drop_manifest("urgent", image="u.png", audio="u.wav", priority=9)
        put(installation.path("inbox"), "u.png", picture())
        put(installation.path("inbox"), "u.wav", sound(1.0))
        for name in [*names, "urgent"]:
            installation.until_done(name)
    assert installation.renders == 1
    assert len({video(installation, name) for name in [*names, "urgent"]}) == 1
    jobs = sorted(installation.view.jobs(), key=lambda job: job.seq)
    assert jobs[0].duplicate_of is None
    assert all(job.duplicate_of for job in jobs[1:])


def test_a_redrop_of_what_waits_for_the_outbox_waits_with_it(installation: Installation) -> None:
    installation.start()
    installation.stop()
    away = installation.root / "away"
    installation.path("outbox").rename(away)
    installation.path("outbox").mkdir()
    with installation.running():
        installation.drop_pair("anna")
        installation.until_state("anna", JobState.PUBLISHING)
        installation.drop_pair("bert")
        linked = installation.until(lambda: (j := installation.job("bert")) and j.stage == "linked" and j, "the link")
        assert (linked.state, linked.reason_code) == (JobState.QUEUED, None)
        installation.path("outbox").rmdir()
        away.rename(installation.path("outbox"))
        installation.until_done("anna")
        installation.until_done("bert")
    assert installation.renders == 1


@pytest.mark.parametrize("ending", [JobState.FAILED, JobState.CANCELLED])
def test_when_the_first_fails_or_is_cancelled_the_next_one_does_the_work(
    installation: Installation, ending: JobState
) -> None:
    installation.changes["render"] = {"max_attempts": 1}
    renderer = "raises" if ending is JobState.FAILED else "slow"
    with installation.running():
        drop(installation, "anna", seconds=4.0, renderer=renderer)
        installation.until_state("anna", JobState.RUNNING, JobState.FAILED)
        drop(installation, "bert", seconds=4.0, renderer=renderer)
        if ending is JobState.CANCELLED:
            installation.until(lambda: (j := installation.job("bert")) and j.duplicate_of, "the link")
            assert installation.cli("cancel", installation.job("anna").id).returncode == 0  # type: ignore[union-attr]
            installation.until_state("anna", ending)
        bert = installation.until_state("bert", JobState.RUNNING, JobState.FAILED)
        assert bert.duplicate_of is None
        if ending is JobState.CANCELLED:
            assert installation.cli("cancel", bert.id).returncode == 0
        installation.until_state("bert", ending)
        assert installation.until(lambda: installation.view.get(bert.id).attempt == 1, "an attempt of its own")


def test_a_waiting_redrop_can_be_cancelled_and_leaves_the_first_alone(installation: Installation) -> None:
    with installation.running():
        drop(installation, "anna", seconds=1.0, renderer="slow")
        installation.until_state("anna", JobState.RUNNING)
        drop(installation, "bert", seconds=1.0, renderer="slow")
        linked = installation.until(lambda: (j := installation.job("bert")) and j.duplicate_of and j, "the link")
        assert installation.cli("cancel", linked.id).returncode == 0
        installation.until_state("bert", JobState.CANCELLED)
        installation.until_done("anna")
    assert not (installation.path("outbox") / "bert.mp4").exists()


# -- the other policies ------------------------------------------------------------------------------------------------


def test_render_does_the_work_anew(installation: Installation) -> None:
    installation.changes["intake"] = {"on_redrop": "render"}
    with installation.running():
        for name in ("anna", "bert"):
            installation.drop_pair(name)
            assert installation.until_done(name).duplicate_of is None
    assert installation.renders == 2


def test_skip_leaves_a_sidecar_that_names_the_first_video(installation: Installation) -> None:
    installation.changes["intake"] = {"on_redrop": "skip"}
    with installation.running():
        installation.drop_pair("anna")
        first = installation.until_done("anna")
        installation.drop_pair("bert")
        second = installation.until_done("bert")
        installation.drop_pair("anna")
        again = until_shown(installation, "anna (2)")
        out = installation.root / "bert.mp4"
        status = installation.cli("status", second.id).stdout
        until_cleared(installation)
        refused = installation.cli("republish", second.id)
        for path in [*installation.path("outbox").glob("*.mp4"), *(installation.path("state") / "results").iterdir()]:
            path.unlink()
        installation.drop_pair("cara")
        assert installation.until_done("cara").duplicate_of is None
    assert installation.renders == 2
    assert (again["video"], again["duplicate_of"]) == ("anna.mp4", first.id)
    assert installation.sidecar("bert")["video"] == "anna.mp4"
    assert sorted(p.name for p in installation.path("outbox").glob("*.mp4")) == ["cara.mp4"]
    assert first.id in status
    assert refused.returncode == 1
    assert f"has the inputs of job {first.id}" in refused.stderr
    assert not out.exists()


def test_the_same_order_under_its_own_id_is_no_redrop(installation: Installation) -> None:
    with installation.running():
        drop(installation, "anna")
        job = installation.until_done("anna")
        drop(installation, "anna", id=job.id)
        installation.until(
            lambda: [p.name for p in installation.path("inbox").iterdir()] == [".lipsyncd"], "an empty inbox"
        )
        assert [j.id for j in installation.view.jobs()] == [job.id]
    assert installation.renders == 1


# -- crashes -----------------------------------------------------------------------------------------------------------


AT = ("link-copied", "link-noted", "link-kept", "link-publishing", "publish-staged", "publish-renamed-json", "cleared")


@pytest.mark.parametrize("policy", ["link", "skip"])
def test_a_crash_while_linking_delivers_once_and_renders_nothing(installation: Installation, policy: str) -> None:
    """One redrop after the other, each killed at another step; each start first puts right what the last one left."""
    installation.changes["intake"] = {"on_redrop": policy}
    with installation.running():
        installation.drop_pair("anna")
        installation.until_done("anna")
        until_cleared(installation)
    expected: dict[str, int] = {}
    with Consumer(installation) as consumer:
        for name in AT:
            installation.drop_pair(name)
            expected |= {f"{name}.{suffix}": 1 for suffix in (["mp4", "json"] if policy == "link" else ["json"])}
            daemon = installation.start(LIPSYNCD_FAIL=name, wait=False)
            assert daemon.wait(60) == -signal.SIGKILL
        with installation.running():
            jobs = [installation.until_done(name) for name in AT]
            until_cleared(installation)
            installation.until(lambda: sum(consumer.taken.values()) >= len(expected) + 2, "all results")
    del consumer.taken["anna.mp4"], consumer.taken["anna.json"]
    assert consumer.taken == expected
    for name, job in zip(AT, jobs, strict=True):
        assert json.loads(consumer.content[f"{name}.json"])["sha256"] == job.out_sha256
    assert not list((installation.path("outbox") / ".lipsyncd").glob("*.part"))
    assert installation.renders == 1


def test_a_result_that_was_copied_for_an_order_that_changed_is_not_published(installation: Installation) -> None:
    """Killed with the copy in the spool; before the restart the row is no longer linked, as after new options."""
    with installation.running():
        installation.drop_pair("anna")
        installation.until_done("anna")
    installation.drop_pair("bert")
    installation.start(LIPSYNCD_FAIL="link-kept", wait=False).wait(30)
    with sqlite3.connect(installation.path("state") / "ledger.db") as ledger:
        ledger.execute("UPDATE job SET duplicate_of=NULL, idem_key='other' WHERE name='bert'")
    with installation.running():
        assert installation.until_done("bert").duplicate_of is None
    assert installation.renders == 2
