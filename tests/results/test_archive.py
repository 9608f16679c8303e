"""Where the inputs of ended jobs lie: whole folders, original names, copied back for a retry."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lipsyncd.jobs.job import Identity, JobSpec, SourceFile
from lipsyncd.results import archive
from lipsyncd.storage.open_folder import OpenFolder
from lipsyncd.storage.private_folder import HIDDEN
from lipsyncd.storage.shared_folders import SharedFolder
from tests.kits.core_kit import spec_of
from tests.kits.shared_kit import shared_folder

IDENTITY = Identity(1, 2, 3, 4, 5)
AT_MS = 1_764_000_000_123


@pytest.fixture
def spooled(tmp_path: Path) -> Path:
    (tmp_path / "spooled").mkdir()
    return tmp_path / "spooled"


@pytest.fixture
def shared(tmp_path: Path) -> SharedFolder:
    return shared_folder(tmp_path / "failed", "failed")


@pytest.fixture
def root(shared: SharedFolder) -> Path:
    return Path(shared.where)


def put(
    shared: SharedFolder, spec: JobSpec, spooled: Path, name: str = "there", *, reason: bytes | None = None
) -> Path:
    return Path(archive.put(shared, [name], spec, spooled, reason=reason))


def spec_in(kept: Path) -> JobSpec | None:
    with OpenFolder.at(kept) as folder:
        return archive.spec_of(folder)


def unfinished(root: Path) -> list[str]:
    return [path.name for path in (root / HIDDEN).iterdir() if path.is_dir()]


def job_with(spooled: Path, files: dict[str, str], name: str = "anna") -> JobSpec:
    """A job whose inputs lie in the spool; `files` maps a role to the name in the inbox. The content is the name."""
    sources = []
    for role, inbox_name in files.items():
        content = os.fsencode(inbox_name)
        (spooled / role).write_bytes(content)
        sources.append(SourceFile(role, inbox_name, IDENTITY, hashlib.sha256(content).hexdigest()))
    return spec_of(name, sources=tuple(sources))


def visible(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.name != HIDDEN)


def test_inputs_keep_their_own_names(shared: SharedFolder, root: Path, spooled: Path) -> None:
    spec = job_with(spooled, {"image": "Anna Ä.png", "audio": "anna.wav", "manifest": "anna.json"})
    kept = put(shared, spec, spooled, reason=b"{}")
    assert visible(kept) == ["Anna Ä.png", "anna.json", "anna.wav", "job.json", "reason.json"]
    assert (kept / "Anna Ä.png").read_text() == "Anna Ä.png"
    assert spec_in(kept) == spec
    assert unfinished(root) == []


@pytest.mark.parametrize(
    "files",
    [
        {"image": "job.json", "audio": "reason.json"},
        {"image": "job.json", "audio": "input-job.json", "manifest": "input-input-job.json"},
        {"image": "same.png", "audio": "same.png", "manifest": "m.json"},
        {"image": os.fsdecode(b"bad\xff\n.png"), "audio": "-rf .wav"},
        {"image": "x" * 251 + ".png", "audio": "y" * 251 + ".wav"},
    ],
    ids=["names of ours", "names like ours", "one file in two roles", "odd bytes", "longest names"],
)
def test_every_input_comes_back_byte_for_byte(
    shared: SharedFolder, root: Path, spooled: Path, files: dict[str, str], tmp_path: Path
) -> None:
    spec = job_with(spooled, files)
    kept = put(shared, spec, spooled, reason=b"{}")
    back = tmp_path / "back"
    back.mkdir()
    with OpenFolder.at(kept) as folder:
        archive.take_back(folder, spec, back)
    assert {p.name: p.read_bytes() for p in back.iterdir()} == {r: os.fsencode(n) for r, n in files.items()}
    assert spec_in(kept) == spec
    assert json.loads((kept / "reason.json").read_text()) == {}


def test_keeping_again_after_a_crash_finds_the_first_folder(shared: SharedFolder, root: Path, spooled: Path) -> None:
    spec = job_with(spooled, {"image": "a.png"})
    (root / HIDDEN / f"{spec.id}.keep").mkdir()
    (root / HIDDEN / f"{spec.id}.keep" / "half").write_bytes(b"")
    first = put(shared, spec, spooled)
    assert put(shared, spec, spooled) == first
    assert visible(root) == ["there"]
    assert visible(first) == ["a.png", "job.json"]
    assert unfinished(root) == []


def test_another_jobs_folder_of_that_name_is_left_alone(shared: SharedFolder, root: Path, spooled: Path) -> None:
    (root / "there").mkdir()
    (root / "there" / "a user's file").write_bytes(b"")
    one, two = job_with(spooled, {"image": "a.png"}), job_with(spooled, {"image": "a.png"})
    assert put(shared, one, spooled).name == "there-2"
    assert put(shared, two, spooled).name == "there-3"
    assert put(shared, one, spooled).name == "there-2"
    assert visible(root / "there") == ["a user's file"]


def test_a_failed_copy_leaves_no_folder(shared: SharedFolder, root: Path, spooled: Path) -> None:
    spec = job_with(spooled, {"image": "a.png"})
    (spooled / "image").unlink()
    with pytest.raises(FileNotFoundError):
        put(shared, spec, spooled)
    assert visible(root) == []


def test_folders_of_failed_jobs_sort_by_time_and_carry_the_stem() -> None:
    assert archive.failed_name(spec_of("anna"), AT_MS) == ("20251124T160000Z-anna",)
    assert archive.failed_name(spec_of("../etc/x\n"), AT_MS) == ("20251124T160000Z-_etc_x_",)


def test_archived_jobs_lie_in_a_folder_for_each_day(shared: SharedFolder, root: Path, spooled: Path) -> None:
    spec = job_with(spooled, {"image": "a.png"})
    kept = archive.put(shared, archive.archived_name(spec), spec, spooled)
    day = datetime.fromtimestamp(spec.accepted_ms / 1000, UTC)
    assert kept == f"{root}/{day:%Y-%m-%d}/{spec.id}"
    assert visible(Path(kept)) == ["a.png", "job.json"]


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"id": 3}'])
def test_a_folder_without_a_readable_job_is_none(shared: SharedFolder, root: Path, content: bytes | None) -> None:
    if content is not None:
        (root / "job.json").write_bytes(content)
    assert spec_in(root) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "../../state/ledger.db"), ("name", ".."), ("name", ""), ("role", "../job.json"), ("role", "job.json")],
)
def test_a_forged_job_file_leads_nowhere(
    shared: SharedFolder, root: Path, spooled: Path, field: str, value: str
) -> None:
    """Members of the group can write in there: a retry must read and write nothing but the job's own files."""
    kept = put(shared, job_with(spooled, {"image": "a.png"}), spooled)
    order = json.loads((kept / "job.json").read_text())
    assert spec_in(kept) is not None
    order["sources"][0][field] = value
    (kept / "job.json").write_text(json.dumps(order))
    assert spec_in(kept) is None
