"""The folder of one attempt on the shared folder: inputs out, video back, nothing of others touched."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lipsyncd.cluster.share import VIDEO, WorkFolder
from lipsyncd.errors import BadResult, FolderNotOurs, ShareUnavailable
from lipsyncd.worker.protocol import Render
from tests.kits.jobs_by_hand import raw_inputs


@pytest.fixture
def work(tmp_path: Path) -> WorkFolder:
    share = tmp_path / "share"
    share.mkdir()
    return WorkFolder(share)


@pytest.fixture
def order(tmp_path: Path) -> Render:
    folder = tmp_path / "spool"
    folder.mkdir()
    prepared = raw_inputs(folder)
    (folder / "job.json").write_text("{}")
    return Render("job", "flat", str(folder), ".out.0.mp4", prepared.picture, prepared.sound, "25", 5, False, 64)


def test_the_inputs_and_nothing_else_are_copied_for_their_owner_alone(work: WorkFolder, order: Render) -> None:
    folder = work.send(order, "token")
    assert folder == work.root / "job" / "token"
    assert {path.name for path in folder.iterdir()} == {"picture.rgb", "speech.s16", "sound.s16"}
    assert all(path.read_bytes() == Path(order.folder, path.name).read_bytes() for path in folder.iterdir())
    assert all(path.stat().st_mode & 0o077 == 0 for path in (work.root, *folder.iterdir()))


def test_a_part_of_a_video_needs_no_sound_but_the_voice(work: WorkFolder, order: Render) -> None:
    folder = work.send(replace(order, start=0, stop=2), "token.1")
    assert {path.name for path in folder.iterdir()} == {"picture.rgb", "speech.s16"}
    assert work.send(replace(order, start=2, stop=5), "token.2") != folder


def test_two_attempts_never_share_a_folder(work: WorkFolder, order: Render) -> None:
    work.send(order, "first")
    with pytest.raises(ShareUnavailable):
        work.send(order, "first")
    assert work.send(order, "second") != work.root / "job" / "first"


def test_the_video_comes_back_and_a_link_in_its_place_does_not(work: WorkFolder, order: Render, tmp_path: Path) -> None:
    folder, target = work.send(order, "token"), tmp_path / "out.mp4"
    with pytest.raises(BadResult):
        work.fetch(folder, target)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (folder / VIDEO).symlink_to(secret)
    with pytest.raises((BadResult, ShareUnavailable)):
        work.fetch(folder, target)
    assert not target.exists()
    (folder / VIDEO).unlink()
    (folder / VIDEO).write_bytes(b"video")
    work.fetch(folder, target)
    assert target.read_bytes() == b"video"
    work.remove(folder)
    assert list(work.root.iterdir()) == []


def test_a_share_that_is_not_mounted_is_not_made(tmp_path: Path, order: Render) -> None:
    with pytest.raises(ShareUnavailable):
        WorkFolder(tmp_path / "absent").send(order, "token")
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_may_write_is_refused(work: WorkFolder, order: Render, mode: int) -> None:
    work.root.mkdir()
    work.root.chmod(mode)
    with pytest.raises(FolderNotOurs):
        work.send(order, "token")


def test_a_link_in_place_of_the_folder_is_refused(work: WorkFolder, order: Render, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    work.root.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FolderNotOurs):
        work.send(order, "token")


def test_what_lost_machines_left_is_swept_after_a_while_and_running_jobs_keep_theirs(
    work: WorkFolder, order: Render
) -> None:
    lost = work.send(order, "lost")
    running = work.send(replace(order, job_id="running"), "token")
    fresh = work.send(replace(order, job_id="fresh"), "token")
    old_s = time.time() - 1000
    for folder in (lost, running):
        os.utime(folder, (old_s, old_s))
        os.utime(folder.parent, (old_s, old_s))
    assert work.sweep(900.0, frozenset(["running"])) == 1
    assert (lost.exists(), running.exists(), fresh.exists()) == (False, True, True)
