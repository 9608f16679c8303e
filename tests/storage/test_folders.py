"""Markers: what tells an empty folder from one that is not mounted."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lipsyncd.errors import ConfigError
from lipsyncd.storage.files import umask
from lipsyncd.storage.folders import KINDS, Folders
from lipsyncd.storage.private_folder import HIDDEN
from tests.kits.core_kit import as_nobody
from tests.kits.installation import ROOT


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    shared = {kind: tmp_path / kind for kind in KINDS}
    return Folders(state=tmp_path / "state", spool=tmp_path / "spool", shared=shared)


def path(folders: Folders, kind: str) -> Path:
    return Path(folders.shared[kind].where)


def marker(folders: Folders, kind: str) -> Path:
    return path(folders, kind) / HIDDEN / f"{kind}-id"


def test_the_first_start_makes_and_marks_everything_and_the_second_nothing(folders: Folders) -> None:
    assert folders.known() == {}
    assert not any(folders.available(kind) for kind in KINDS)

    lines = folders.initialise()

    assert len(lines) == 12  # 8 folders made, 4 of them marked
    assert all(folders.available(kind) for kind in KINDS)
    assert len(set(folders.known().values())) == 4
    before = {path: path.stat().st_mtime_ns for path in folders.state.parent.rglob("*")}
    assert folders.initialise() == []
    assert {path: path.stat().st_mtime_ns for path in folders.state.parent.rglob("*")} == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_is_not_mounted_is_not_available_and_not_marked_again(folders: Folders, kind: str) -> None:
    folders.initialise()
    folder = path(folders, kind)
    away = folder.with_name("away")
    folder.rename(away)
    assert not folders.available(kind)
    folder.mkdir()
    assert not folders.available(kind)
    assert folders.initialise() == []
    assert list(folder.iterdir()) == []
    folder.rmdir()
    away.rename(folder)
    assert folders.available(kind)


def test_another_folder_in_its_place_is_not_the_one_that_we_know(folders: Folders, tmp_path: Path) -> None:
    folders.initialise()
    other = Folders(state=tmp_path / "s2", spool=tmp_path / "p2", shared={k: tmp_path / f"{k}2" for k in KINDS})
    other.initialise()
    path(folders, "outbox").rename(tmp_path / "away")
    path(other, "outbox").rename(path(folders, "outbox"))
    assert not folders.available("outbox")
    folders.initialise(adopt=True)
    assert folders.available("outbox")
    assert folders.known()["outbox"] == other.known()["outbox"]


def test_adopting_marks_a_folder_that_lost_its_marker(folders: Folders) -> None:
    folders.initialise()
    before = folders.known()
    marker(folders, "inbox").unlink()
    assert not folders.available("inbox")
    lines = folders.initialise(adopt=True)
    assert [line.partition(" ")[0] for line in lines] == ["marked"]
    assert folders.available("inbox")
    changed = {kind for kind in KINDS if folders.known()[kind] != before[kind]}
    assert changed == {"inbox"}


def test_a_crash_between_the_markers_and_their_record_is_mended_by_the_next_start(folders: Folders) -> None:
    folders.initialise()
    ids = folders.known()
    (folders.state / "folders.json").unlink()
    assert folders.initialise() == []
    assert folders.known() == ids


def test_a_damaged_record_makes_nothing_available_by_itself(folders: Folders) -> None:
    folders.initialise()
    (folders.state / "folders.json").write_text(json.dumps({"inbox": 7, "outbox": ""}))
    marker(folders, "outbox").write_text("")
    assert not folders.available("inbox")
    assert not folders.available("archive")
    assert not folders.available("outbox")


def test_what_is_in_the_way_is_named_with_its_path(folders: Folders) -> None:
    path(folders, "outbox").write_bytes(b"")
    with pytest.raises(ConfigError, match=f"{path(folders, 'outbox')} is no folder"):
        folders.initialise()


def test_a_place_where_nothing_may_be_made_is_named_with_the_reason(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot make the folder .*: Permission denied"):
        as_nobody(folders.initialise, tmp_path)


def test_the_group_shares_the_folders_and_leaves_requests(folders: Folders) -> None:
    """Members of our group drop files and requests and take videos; ledger, spool and results are only read."""
    program = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
os.umask(0o022)
from pathlib import Path
from lipsyncd.storage.folders import Folders, KINDS
root = Path({str(folders.state.parent)!r})
Folders(state=root / "state", spool=root / "spool", shared={{k: root / k for k in KINDS}}).initialise()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    modes = {p.name: oct(stat.S_IMODE(p.stat().st_mode)) for p in folders.state.parent.iterdir()}
    assert modes["inbox"] == "0o3770"
    assert modes["outbox"] == modes["failed"] == "0o2775"
    assert modes["archive"] == "0o2750"
    assert modes["state"] == modes["spool"] == "0o750"
    assert oct(stat.S_IMODE(folders.control.stat().st_mode)) == "0o3770"
    assert oct(stat.S_IMODE(marker(folders, "inbox").parent.stat().st_mode)) == "0o2711"
    assert oct(stat.S_IMODE(marker(folders, "inbox").stat().st_mode)) == "0o644"
    assert os.access(marker(folders, "inbox"), os.R_OK)


def with_queue(tmp_path: Path) -> Folders:
    shared = {kind: tmp_path / kind for kind in KINDS} | {"inbox/night": tmp_path / "inbox" / "night"}
    return Folders(state=tmp_path / "state", spool=tmp_path / "spool", shared=shared)


def mode_of(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))


def test_folders_for_drops_that_an_earlier_version_made_become_sticky(tmp_path: Path) -> None:
    folders = with_queue(tmp_path)
    folders.initialise()
    inbox, night = tmp_path / "inbox", tmp_path / "inbox" / "night"
    assert mode_of(night) == mode_of(inbox) == mode_of(folders.control) == "0o3770"
    assert folders.make_sticky() == []
    for folder, mode in ((inbox, 0o2775), (night, 0o2770), (folders.control, 0o2770)):
        folder.chmod(mode)
    assert folders.make_sticky() == [str(inbox), str(night), str(folders.control)]
    assert [mode_of(path) for path in (inbox, night, folders.control)] == ["0o3775", "0o3770", "0o3770"]
    assert folders.make_sticky() == []
    assert mode_of(path(folders, "outbox")) == oct(0o2775 & ~(umask() & 0o007))


def test_a_folder_that_only_the_daemon_writes_or_that_is_anothers_does_not_become_sticky(folders: Folders) -> None:
    """In a sticky folder of another user no accepted file could be removed."""
    folders.initialise()
    path(folders, "inbox").chmod(0o755)
    assert folders.make_sticky() == []
    path(folders, "inbox").chmod(0o2775)
    if os.geteuid() == 0:
        os.chown(path(folders, "inbox"), 1001, 1001)
        assert folders.make_sticky() == []
    assert mode_of(path(folders, "inbox")) in ("0o2775", "0o775")  # a chown clears setgid


@pytest.mark.parametrize("as_link", [True, False])
def test_a_queues_folder_that_is_a_link_or_a_file_is_refused_and_nothing_is_done_behind_it(
    tmp_path: Path, as_link: bool
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (tmp_path / "inbox").mkdir()
    if as_link:
        (tmp_path / "inbox" / "night").symlink_to(elsewhere)
    else:
        (tmp_path / "inbox" / "night").touch()
    folders = with_queue(tmp_path)
    with pytest.raises(ConfigError, match=r"inbox/night: is a link or a file, and no folder"):
        folders.initialise()
    assert not folders.available("inbox/night")
    assert (os.listdir(elsewhere), mode_of(elsewhere)) == ([], "0o700")


@pytest.mark.parametrize("trap", ["fifo", "link", "bytes", "folder"])
def test_what_others_put_in_a_markers_place_is_no_marker_and_blocks_no_thread(folders: Folders, trap: str) -> None:
    folders.initialise()
    file = marker(folders, "inbox")
    content = file.read_bytes()
    file.unlink()
    if trap == "fifo":
        os.mkfifo(file)
    elif trap == "link":
        file.with_name("elsewhere").write_bytes(content)
        file.symlink_to("elsewhere")
    elif trap == "bytes":
        file.write_bytes(b"\xff" * 50)
    else:
        file.mkdir()
    assert not folders.available("inbox")
    assert folders.available("outbox")
