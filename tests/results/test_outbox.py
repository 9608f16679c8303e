"""Showing files in the outbox: whole, once, and never over a foreign file."""

from __future__ import annotations

import grp
import hashlib
import os
import shutil
import stat
import threading
from pathlib import Path

import pytest

from lipsyncd.errors import BadResult, OutboxUnavailable
from lipsyncd.jobs.job import new_id
from lipsyncd.results.outbox import SIDECAR, VIDEO, Outbox, Token
from lipsyncd.storage.private_folder import HIDDEN
from tests.kits.shared_kit import shared_folder

CONTENT = b"a video" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(shared_folder(tmp_path / "outbox", "outbox"), mode=0o640, group="")


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "out.mp4"
    path.write_bytes(CONTENT)
    return path


def root(outbox: Outbox) -> Path:
    return Path(outbox.shared.where)


def token(outbox: Outbox, job_id: str, suffix: str) -> Path:
    return root(outbox) / HIDDEN / f"{job_id}.{suffix}.part"


def path(outbox: Outbox, out_name: str, suffix: str) -> Path:
    return root(outbox) / f"{out_name}.{suffix}"


def visible(outbox: Outbox) -> list[str]:
    return sorted(p.name for p in root(outbox).iterdir() if p.name != HIDDEN)


def hidden(outbox: Outbox) -> list[str]:
    """What is staged, or half copied."""
    return sorted(p.name for p in (root(outbox) / HIDDEN).iterdir() if p.name.endswith(".part"))


def stage(outbox: Outbox, job_id: str, video: Path, sha256: str, sidecar: bytes) -> str:
    with video.open("rb") as file:
        return outbox.stage(job_id, file.fileno(), sha256, sidecar)


def test_what_is_staged_is_hidden_and_whole(outbox: Outbox, video: Path) -> None:
    job_id = new_id()
    stage(outbox, job_id, video, SHA256, b"{}")
    assert visible(outbox) == []
    assert outbox.token(job_id, VIDEO, "") is Token.STAGED
    assert outbox.token(job_id, SIDECAR, "") is Token.STAGED
    assert token(outbox, job_id, VIDEO).read_bytes() == CONTENT
    assert video.read_bytes() == CONTENT


def test_shown_files_have_their_name_their_mode_and_no_token(outbox: Outbox, video: Path) -> None:
    job_id = new_id()
    mask = os.umask(0o077)  # the mode is set by the settings, whatever the daemon's umask
    try:
        stage(outbox, job_id, video, SHA256, b"{}")
    finally:
        os.umask(mask)
    outbox.show(job_id, VIDEO, "Anna Ä")
    outbox.show(job_id, SIDECAR, "Anna Ä")
    assert visible(outbox) == ["Anna Ä.json", "Anna Ä.mp4"]
    assert {stat.S_IMODE(p.stat().st_mode) for p in root(outbox).glob("Anna*")} == {0o640}
    assert hidden(outbox) == []


def test_a_video_that_changed_in_the_spool_is_not_staged(outbox: Outbox, video: Path) -> None:
    video.write_bytes(CONTENT[:-1] + b"X")
    with pytest.raises(BadResult, match="changed in the spool"):
        stage(outbox, new_id(), video, SHA256, b"{}")
    assert visible(outbox) == []
    assert [name for name in hidden(outbox) if name.endswith("mp4.part")] == []


def test_staging_again_begins_afresh(outbox: Outbox, video: Path) -> None:
    job_id = new_id()
    token(outbox, job_id, VIDEO).write_bytes(b"half a copy")
    token(outbox, job_id, SIDECAR).write_bytes(b"a longer sidecar than the new one")
    stage(outbox, job_id, video, SHA256, b"{}")
    assert token(outbox, job_id, VIDEO).read_bytes() == CONTENT
    assert token(outbox, job_id, SIDECAR).read_bytes() == b"{}"


@pytest.mark.parametrize("suffix", [VIDEO, SIDECAR])
def test_a_foreign_file_is_never_replaced(outbox: Outbox, video: Path, suffix: str) -> None:
    job_id = new_id()
    theirs = path(outbox, "anna", suffix)
    theirs.write_bytes(b"theirs")
    stage(outbox, job_id, video, SHA256, b"{}")
    assert not outbox.is_free("anna")
    assert outbox.is_free("bert")
    with pytest.raises(FileExistsError):
        outbox.show(job_id, suffix, "anna")
    assert theirs.read_bytes() == b"theirs"
    assert outbox.token(job_id, suffix, "") is Token.STAGED


def test_a_dangling_link_has_the_name_too(outbox: Outbox) -> None:
    path(outbox, "anna", VIDEO).symlink_to("nowhere")
    assert not outbox.is_free("anna")


def test_of_many_jobs_that_show_the_same_name_one_gets_it(outbox: Outbox, video: Path) -> None:
    jobs = [new_id() for _ in range(8)]
    for job_id in jobs:
        stage(outbox, job_id, video, SHA256, b"{}")
    gate, shown = threading.Barrier(len(jobs)), []

    def show(job_id: str) -> None:
        gate.wait()
        try:
            outbox.show(job_id, VIDEO, "anna")
        except FileExistsError:
            return
        shown.append(job_id)

    threads = [threading.Thread(target=show, args=(job_id,)) for job_id in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(shown) == 1
    assert sum(outbox.token(job_id, VIDEO, "") is Token.STAGED for job_id in jobs) == len(jobs) - 1


def test_showing_twice_says_that_the_token_is_gone(outbox: Outbox, video: Path) -> None:
    job_id = new_id()
    stage(outbox, job_id, video, SHA256, b"{}")
    outbox.show(job_id, VIDEO, "anna")
    path(outbox, "anna", VIDEO).unlink()  # a consumer has taken it
    with pytest.raises(FileNotFoundError):
        outbox.show(job_id, VIDEO, "anna")
    assert visible(outbox) == []


def test_a_sweep_leaves_the_tokens_of_staged_jobs(outbox: Outbox, video: Path) -> None:
    kept, torn = new_id(), new_id()
    for job_id in (kept, torn):
        stage(outbox, job_id, video, SHA256, b"{}")
    (root(outbox) / HIDDEN / f".{kept}.mp4.part").write_bytes(b"half a copy")
    assert outbox.sweep({kept}) == 3
    assert outbox.token(kept, VIDEO, "") is Token.STAGED
    assert outbox.token(torn, VIDEO, "") is not Token.STAGED
    assert (root(outbox) / HIDDEN / "outbox-id").exists()


def test_unstaging_removes_the_hidden_files(outbox: Outbox, video: Path) -> None:
    job_id = new_id()
    stage(outbox, job_id, video, SHA256, b"{}")
    outbox.unstage(job_id)
    outbox.unstage(job_id)
    assert hidden(outbox) == []


def test_an_outbox_that_is_gone_is_not_made(outbox: Outbox, video: Path) -> None:
    shutil.rmtree(root(outbox))
    with pytest.raises(OutboxUnavailable, match="is not mounted"):
        stage(outbox, new_id(), video, SHA256, b"{}")
    assert not root(outbox).exists()


def test_results_go_to_the_group_that_the_settings_name(tmp_path: Path, video: Path) -> None:
    mine = grp.getgrgid(os.getgid()).gr_name
    shared = shared_folder(tmp_path / "outbox", "outbox")
    for group in (mine, "no such group"):  # the second one is a warning, not a lost video
        outbox, job_id = Outbox(shared, mode=0o664, group=group), new_id()
        stage(outbox, job_id, video, SHA256, b"{}")
        assert token(outbox, job_id, VIDEO).stat().st_gid == os.getgid()
        assert stat.S_IMODE(token(outbox, job_id, VIDEO).stat().st_mode) == 0o664
