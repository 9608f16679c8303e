"""What a machine answers counts for one attempt; a job that ends machines is given up; which machines have slots."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lipsyncd.cluster.on_node import Fence, Probed, Terms, build_of, probe
from lipsyncd.cluster.ray_child import Losses, answer_for
from lipsyncd.cluster.share import WorkFolder
from lipsyncd.cluster.slots import Host, Prober, hosts_of
from lipsyncd.errors import LostTwice, SlotLost
from lipsyncd.jobs.retry import Action, decide
from lipsyncd.media.ffmpeg import find
from lipsyncd.worker.protocol import Progress, Render, Result, to_line
from tests.kits.jobs_by_hand import raw_inputs

FENCE = Fence("job", "token")
RESULT = Result("job", 5, 64, 64, 0.1)


def test_an_answer_counts_for_its_own_attempt_only() -> None:
    assert answer_for((FENCE, to_line(RESULT)), FENCE) == RESULT
    others = [Fence("job", "older"), Fence("another", "token"), Fence("job", "token", 1)]
    for fence in others:
        with pytest.raises(SlotLost):
            answer_for((fence, to_line(RESULT)), FENCE)
    for message in (Result("another", 5, 64, 64, 0.1), Progress("job", "rendering", 1, 2)):
        with pytest.raises(SlotLost):
            answer_for((FENCE, to_line(message)), FENCE)


def test_each_part_of_each_attempt_has_a_fence_and_a_folder_of_its_own(tmp_path: Path) -> None:
    prepared = raw_inputs(tmp_path)
    request = Render("job", "flat", "/", ".out.token.mp4", prepared.picture, prepared.sound, "25", 5, False, 64)
    part = replace(request, out_file=".out.token.3.mp4", start=1, stop=2)
    assert Fence.of(request) == FENCE
    assert Fence.of(part) == Fence("job", "token", 3)
    assert [Fence.of(one).folder for one in (request, part)] == ["token", "token.3"]
    late = (Fence.of(part), to_line(RESULT))
    for other in (FENCE, Fence("job", "token", 2), Fence("job", "newer", 3)):
        with pytest.raises(SlotLost):
            answer_for(late, other)


def test_machines_that_draw_alike_have_one_build(tmp_path: Path) -> None:
    ffmpeg = find()
    build = build_of(ffmpeg, "weights", ["NVIDIA L4"])
    assert build == build_of(ffmpeg, "weights", ["NVIDIA L4"])
    other = tmp_path / "ffmpeg"
    other.write_text("#!/bin/sh\necho another version\n")
    other.chmod(0o755)
    others = [
        build_of(ffmpeg, "other weights", ["NVIDIA L4"]),
        build_of(ffmpeg, "weights", ["NVIDIA H200"]),
        build_of(other, "weights", ["NVIDIA L4"]),
    ]
    assert len({build, *others}) == 4


def test_two_machines_are_lost_with_one_job_and_it_is_given_up() -> None:
    losses = Losses()
    assert [losses.record("job", node) for node in ("a", "a", "b")] == [1, 1, 2]
    assert losses.record("another", "b") == 1
    losses.forget("job")
    assert losses.record("job", "b") == 1
    terms: dict[str, Any] = {"max_attempts": 5, "disk_full": False, "disk_low": False}
    assert decide(LostTwice("twice"), attempt=2, **terms).action is Action.FAIL
    assert [decide(SlotLost("once"), attempt=n, **terms).wait_s for n in (1, 2, 3, 4)] == [5, 5, 5, 5]


def node(name: str, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {
        "NodeID": name,
        "Alive": alive,
        "NodeManagerHostname": name,
        "NodeManagerAddress": "127.0.0.1",
        "Resources": resources,
    }


def test_live_machines_with_a_gpu_and_the_wanted_resource_have_slots() -> None:
    nodes = [node("a", GPU=2.0), node("b", GPU=1.0, lipsync=1.0), node("c", CPU=8.0), node("d", alive=False, GPU=1.0)]
    assert {name: host.gpus for name, host in hosts_of(nodes, "").items()} == {"a": 2.0, "b": 1.0}
    assert list(hosts_of(nodes, "lipsync")) == ["b"]


def test_a_machine_is_judged_by_what_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "share").mkdir()
    work = WorkFolder(tmp_path / "share")
    work.require()
    folder = work.root / "probe" / "nonce"
    folder.mkdir(parents=True)
    (folder / "question").write_text("nonce"[::-1])
    terms = Terms(str(tmp_path / "share"), str(tmp_path / "models"), (), (), {})
    good = probe(terms, "nonce")
    assert good.fault == ""
    host = Host("n", "gpu2", "10.0.0.2", 1.0, nonce="nonce", probed=good)
    judge = Prober(None, terms, work, good.weights).judge
    assert judge(host) == ""
    (folder / "answer").write_text("another's")
    assert "not seen here" in judge(host)
    for changes in ({"uid": 4711}, {"lipsyncd": "0"}, {"python": "3.0.0"}, {"weights": "0"}):
        host.probed = Probed(**{**vars(good), **changes})
        assert str(next(iter(changes.values()))) in judge(host)

    elsewhere = Terms(str(tmp_path / "not-mounted"), str(tmp_path / "models"), (), (), {})
    assert "No such file" in probe(elsewhere, "nonce").fault
    monkeypatch.setenv("LIPSYNCD_ROOTS_SHARE", str(tmp_path / "share"))
    assert probe(elsewhere, "nonce").fault == "", "each machine may have the share elsewhere"
