"""The file system of a folder in the table of mounts, and the file systems on which no ledger may be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lipsyncd.storage.mounts import file_system_type, is_network, known_network
from tests.kits.installation import Installation, picture, put, sound
from tests.kits.machine.machine_kit import bindfs, needs_fuse

ROOT_MOUNT = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw"


@pytest.mark.parametrize(
    ("lines", "folder", "expected"),
    [
        ([], "/srv/inbox", "ext4"),
        (["30 27 0:50 / /srv/inbox rw shared:5 master:2 - nfs4 server:/x rw"], "/srv/inbox", "nfs4"),
        (["30 27 0:50 / /srv rw - cifs //server/x rw"], "/srv/inbox", "cifs"),
        (["30 27 0:50 / /srv/inbox2 rw - nfs4 server:/x rw"], "/srv/inbox", "ext4"),
        (["30 27 0:50 / /srv/my\\040inbox\\134x\\011y rw - fuse.sshfs s rw"], "/srv/my inbox\\x\ty", "fuse.sshfs"),
        (["30 27 0:50 / /srv/a\\134040b rw - nfs s rw"], "/srv/a\\040b", "nfs"),
        # Two mounts on one point: the later one is visible.
        (["30 27 0:50 / /srv rw - nfs4 s rw", "31 30 0:51 / /srv rw - xfs /dev/b rw"], "/srv/inbox", "xfs"),
        (["31 27 0:51 / /srv rw - xfs /dev/b rw", "30 31 0:50 / /srv rw - nfs4 s rw"], "/srv/inbox", "nfs4"),
        # A mount covers earlier ones below it, although their paths are longer.
        (["30 27 0:50 / /srv/inbox rw - tmpfs t rw", "31 27 0:51 / /srv rw - nfs4 s rw"], "/srv/inbox", "nfs4"),
        (["30 27 0:50 / /srv rw - nfs4 s rw", "31 30 0:51 / /srv/inbox rw - tmpfs t rw"], "/srv/inbox", "tmpfs"),
    ],
)
def test_the_type_is_that_of_the_mount_that_a_path_ends_on(
    tmp_path: Path, lines: list[str], folder: str, expected: str
) -> None:
    table = tmp_path / "mountinfo"
    table.write_text("\n".join([ROOT_MOUNT, *lines]) + "\n")
    assert file_system_type(Path(folder), table) == expected


def test_a_root_that_is_its_own_parent_is_read_too(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text("1 1 0:2 / / rw - rootfs rootfs rw\n2 1 0:3 / / rw - btrfs /dev/a rw\n")
    assert file_system_type(Path("/srv"), table) == "btrfs"


def test_the_real_table_of_this_machine_is_understood(tmp_path: Path) -> None:
    assert file_system_type(Path("/proc")) == "proc"
    assert file_system_type(tmp_path) != ""
    link = tmp_path / "link"
    link.symlink_to("/proc")
    assert file_system_type(link) == "proc"


def test_an_unknown_file_system_counts_as_network(tmp_path: Path) -> None:
    assert file_system_type(tmp_path, tmp_path / "no such table") == ""
    assert is_network(Path("/proc"))


@pytest.mark.parametrize(
    ("kind", "refused"),
    [("nfs4", "nfs4"), ("cifs", "cifs"), ("9p", "9p"), ("fuse", "fuse"), ("fuse.sshfs", "fuse.sshfs")]
    + [(kind, "") for kind in ("ext4", "xfs", "tmpfs", "overlay", "somethingnew")],
)
def test_only_a_known_network_file_system_is_refused(tmp_path: Path, kind: str, refused: str) -> None:
    """Polling an unknown file system costs little, but a refusal has to be right."""
    table = tmp_path / "mountinfo"
    table.write_text(f"27 1 254:0 / / rw,relatime - {kind} /dev/vda rw\n")
    assert known_network(tmp_path, table) == refused


def test_without_a_table_the_kernel_is_asked_for_its_magic_number(tmp_path: Path) -> None:
    assert known_network(tmp_path, tmp_path / "no such table") == ""
    assert known_network(tmp_path / "nowhere", tmp_path / "no such table") == ""


@needs_fuse
def test_a_folder_on_a_fuse_mount_is_recognised_by_table_and_by_number(tmp_path: Path) -> None:
    (tmp_path / "backing").mkdir()
    with bindfs(tmp_path / "backing", tmp_path / "mounted") as mounted:
        assert known_network(mounted).startswith("fuse")
        assert known_network(mounted / "not there yet").startswith("fuse")
        assert known_network(mounted, tmp_path / "no such table") == "fuse"
    assert known_network(tmp_path / "backing") == ""


@needs_fuse
@pytest.mark.parametrize("kind", ["state", "spool"])
def test_the_daemon_does_not_begin_with_its_state_on_a_share(installation: Installation, kind: str) -> None:
    (installation.root / "backing").mkdir()
    with bindfs(installation.root / "backing", installation.root / "share") as share:
        installation.changes["paths"] = {kind: str(share / kind)}
        refused = installation.cli("run")
        assert list(share.iterdir()) == []
    assert refused.returncode == 78
    assert f"paths.{kind}" in refused.stderr
    assert "lies on fuse" in refused.stderr


@needs_fuse
def test_inbox_and_outbox_may_be_shares(installation: Installation) -> None:
    """Files that another machine writes there raise no event here and are found by polling."""
    (installation.root / "backing").mkdir()
    with bindfs(installation.root / "backing", installation.root / "share") as share:
        installation.changes["paths"] = {"inbox": str(share / "inbox"), "outbox": str(share / "outbox")}
        installation.changes["watch"] = {"poll_s": 0.2, "settle_network_s": 0.3, "rescan_s": 1000}
        with installation.running():
            for name, content in (("anna.png", picture()), ("anna.wav", sound())):
                put(installation.root / "backing" / "inbox", name, content)
            installation.until_done("anna")
            status = json.loads(installation.cli("status", "--json").stdout)["daemon"]
    assert (status["watch"], status["degraded"]) == ("polling", "")
    assert (installation.root / "backing" / "outbox" / "anna.mp4").stat().st_size > 0
