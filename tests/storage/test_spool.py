"""The spool: a job is there whole or not at all, and says by itself how far it came."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lipsyncd.jobs.job import JobSpec, new_id
from lipsyncd.jobs.prepared import Output, Picture, Prepared, Sound
from lipsyncd.storage.spool import Spool
from tests.kits.core_kit import spec_of

PREPARED = Prepared(
    Picture("picture.rgb", 8, 6), Sound("speech.s16", 160, "sound.s16", 480, 48_000, 1), ("a note",), 1.5
)
OUTPUT = Output("ab" * 32, 5, 25, 64, 64, 100, 1000, 1, {"face": [1, 2]})


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    root = tmp_path / "spool"
    root.mkdir()
    return Spool(root)


def accept(spool: Spool, spec: JobSpec | None = None) -> JobSpec:
    spec = spec_of() if spec is None else spec

    def fill(folder: Path) -> JobSpec:
        (folder / "image").write_bytes(b"picture")
        return spec

    return spool.accept(spec.id, fill)


def rendered(spool: Spool, spec: JobSpec) -> None:
    partial = spool.partial_render(spec.id, "token")
    partial.write_bytes(b"video")
    spool.keep_output(spec.id, partial, OUTPUT)


def test_an_accepted_job_is_there_with_everything(spool: Spool) -> None:
    spec = accept(spool)
    assert spool.ids() == [spec.id]
    assert spool.spec(spec.id) == spec
    assert (spool.folder(spec.id) / "image").read_bytes() == b"picture"


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_what_goes_wrong_while_filling_leaves_no_trace(spool: Spool, error: BaseException) -> None:
    def fill(folder: Path) -> JobSpec:
        (folder / "image").write_bytes(b"half")
        raise error

    with pytest.raises(type(error)):
        spool.accept(new_id(), fill)
    assert list(spool.root.iterdir()) == []


def test_an_id_is_accepted_once(spool: Spool) -> None:
    spec = accept(spool)
    with pytest.raises(OSError, match="not empty"):
        accept(spool, spec)
    assert spool.ids() == [spec.id]
    assert [p.name for p in spool.root.iterdir()] == [spec.id]


def test_what_a_crash_left_before_the_commit_is_swept_and_a_new_try_begins_afresh(spool: Spool) -> None:
    spec = spec_of()
    torn = spool.root / f".tmp-{spec.id}"
    torn.mkdir()
    (torn / "old").write_bytes(b"")
    accept(spool, spec)
    assert not (spool.folder(spec.id) / "old").exists()
    torn.mkdir()
    (spool.folder(spec.id) / ".out.abc.mp4").write_bytes(b"half a video")
    assert spool.sweep() == 1
    assert sorted(p.name for p in spool.folder(spec.id).iterdir()) == ["image", "job.json"]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"id": 1}', b"\xff"])
def test_a_damaged_job_reads_as_none_and_stays(spool: Spool, content: bytes) -> None:
    spec = accept(spool)
    (spool.folder(spec.id) / "job.json").write_bytes(content)
    assert spool.spec(spec.id) is None
    assert spool.ids() == [spec.id]
    assert spool.spec(new_id()) is None


def test_what_the_jail_made_is_remembered(spool: Spool) -> None:
    spec = accept(spool)
    assert spool.prepared(spec.id) is None
    for name in (PREPARED.picture.file, PREPARED.sound.speech_file, PREPARED.sound.file):
        (spool.folder(spec.id) / name).write_bytes(b"raw")
    spool.set_prepared(spec.id, PREPARED)
    assert spool.prepared(spec.id) == PREPARED
    (spool.folder(spec.id) / "prepared.json").write_text('{"picture": 7}')
    assert spool.prepared(spec.id) is None


def test_a_video_is_finished_only_when_file_and_facts_agree(spool: Spool) -> None:
    spec = accept(spool)
    assert spool.output(spec.id) is None
    rendered(spool, spec)
    assert spool.output(spec.id) == OUTPUT
    assert spool.video(spec.id).read_bytes() == b"video"
    spool.video(spec.id).write_bytes(b"cut")
    assert spool.output(spec.id) is None
    spool.video(spec.id).unlink()
    assert spool.output(spec.id) is None


def test_a_video_without_its_facts_is_no_result(spool: Spool) -> None:
    """The crash came between the two renames: it is rendered again."""
    spec = accept(spool)
    rendered(spool, spec)
    (spool.folder(spec.id) / "out.json").unlink()
    assert spool.output(spec.id) is None


def test_once_staged_the_facts_stand_without_the_video(spool: Spool) -> None:
    spec = accept(spool)
    rendered(spool, spec)
    assert spool.staged_name(spec.id) is None
    spool.set_staged(spec.id, "anna (2)", "made-1")
    spool.video(spec.id).unlink()
    assert spool.staged_name(spec.id) == "anna (2)"
    assert spool.output(spec.id) == OUTPUT


def test_a_dropped_output_leaves_a_job_that_can_be_rendered_again(spool: Spool) -> None:
    spec = accept(spool)
    rendered(spool, spec)
    spool.set_staged(spec.id, "anna", "made-1")
    spool.drop_output(spec.id)
    assert (spool.staged_name(spec.id), spool.output(spec.id)) == (None, None)
    assert sorted(p.name for p in spool.folder(spec.id).iterdir()) == ["image", "job.json"]
    spool.drop_output(new_id())


def test_an_ending_is_recorded_and_taken_back(spool: Spool) -> None:
    spec = accept(spool)
    spool.set_ending(spec.id, {"state": "failed", "code": "no-face"})
    assert spool.ending(spec.id) == {"state": "failed", "code": "no-face"}
    spool.clear_ending(spec.id)
    spool.clear_ending(spec.id)
    assert spool.ending(spec.id) is None
    spool.clear_ending(new_id())


def test_a_removed_job_is_gone_at_once_and_removing_is_repeatable(spool: Spool) -> None:
    spec = accept(spool)
    spool.remove(spec.id)
    spool.remove(spec.id)
    assert list(spool.root.iterdir()) == []


def test_options_are_rewritten_in_one_step(spool: Spool) -> None:
    spec = accept(spool)
    other = spec_of(id=spec.id, resolution=128)
    spool.rewrite(other)
    assert spool.spec(spec.id) == other
    assert sorted(p.name for p in spool.folder(spec.id).iterdir()) == ["image", "job.json"]


def make_file(path: Path) -> None:
    path.write_bytes(b"")


def make_hidden(path: Path) -> None:
    path.with_name(f".{path.name}").mkdir()


@pytest.mark.parametrize("make", [make_file, make_hidden])
def test_strangers_in_the_spool_are_no_jobs(spool: Spool, make: Callable[[Path], None]) -> None:
    make(spool.root / new_id())
    assert spool.ids() == []
