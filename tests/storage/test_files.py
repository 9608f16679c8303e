"""Copying, renaming and replacing against real file systems, writers that interfere, and disks that are full."""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import resource
import signal
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lipsyncd.jobs.job import Identity
from lipsyncd.storage import files
from lipsyncd.storage.files import (
    NotRegular,
    SourceChanged,
    copy_hashed,
    copy_unchanged,
    identity,
    open_regular,
    read_json,
    remove_tree,
    rename_no_replace,
    replace_durably,
    sha256_of,
    write_json,
)
from lipsyncd.storage.open_folder import OpenFolder
from tests.kits.core_kit import as_nobody

CONTEXT = multiprocessing.get_context("fork")


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a child process; gives its exit status."""
    process = CONTEXT.Process(target=work)
    process.start()
    process.join(30)
    assert process.exitcode is not None
    return process.exitcode


# -- opening -----------------------------------------------------------------------------------------------------------


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def make_link(path: Path) -> None:
    (path.parent / "target").write_bytes(b"outside")
    path.symlink_to("target")


def make_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("make", [make_fifo, make_socket, make_link, make_dangling_link, Path.mkdir])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "a.wav"
    make(path)
    before = len(os.listdir("/proc/self/fd"))
    started = time.monotonic()
    with pytest.raises(NotRegular, match="not a regular file"):
        open_regular(path)
    assert time.monotonic() - started < 1  # a FIFO without a writer blocks a process that opens it the usual way
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_device_is_refused() -> None:
    with pytest.raises(NotRegular):
        open_regular(Path("/dev/zero"))


def test_what_is_missing_or_forbidden_has_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing.png")
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"x")
    secret.chmod(0)
    with pytest.raises(PermissionError):
        as_nobody(lambda: open_regular(secret), tmp_path)


# -- copying -----------------------------------------------------------------------------------------------------------


def copy_from(source: Path, expected: Identity, target: Path) -> str:
    """`copy_unchanged` from the source's folder, which is open."""
    with OpenFolder.at(source.parent) as folder:
        return copy_unchanged(os.fsencode(source.name), expected, target, folder=folder.fileno())


def test_a_copy_is_the_bytes_and_their_hash(tmp_path: Path) -> None:
    content = os.urandom(3 * files.COPY_BLOCK_BYTES + 17)
    source = tmp_path / "a"
    source.write_bytes(content)
    expected = identity(source)
    assert expected is not None
    digest = copy_from(source, expected, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == content
    assert digest == sha256_of(source) == sha256_of(tmp_path / "b")
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o600


def test_a_copy_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"new")
    (tmp_path / "b").write_bytes(b"old")
    descriptor = open_regular(tmp_path / "a")
    with pytest.raises(FileExistsError):
        copy_hashed(descriptor, tmp_path / "b")
    os.close(descriptor)
    assert (tmp_path / "b").read_bytes() == b"old"


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def replace_by_rename(path: Path) -> None:
    other = path.with_name("other")
    other.touch()
    os.truncate(other, path.stat().st_size)
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.rename(path)


def rewrite_and_restore_the_time(path: Path) -> None:
    """What `rsync --inplace -t` leaves: other bytes, the same size, the same modification time."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"X")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = [grow, replace_by_rename, rewrite_and_restore_the_time, Path.touch, Path.unlink]


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changed_since_it_was_seen_is_not_copied(tmp_path: Path, change: Callable[[Path], None]) -> None:
    source = tmp_path / "a.wav"
    source.write_bytes(b"voice" * 100)
    expected = identity(source)
    assert expected is not None
    time.sleep(0.01)
    change(source)
    with pytest.raises((SourceChanged, FileNotFoundError)):
        copy_from(source, expected, tmp_path / "copy")


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_while_it_is_copied_is_found_out(tmp_path: Path, change: Callable[[Path], None]) -> None:
    source, target, size_bytes = tmp_path / "a.wav", tmp_path / "copy", 24 * files.COPY_BLOCK_BYTES
    source.write_bytes(os.urandom(size_bytes))
    expected = identity(source)
    assert expected is not None
    time.sleep(0.011)  # older kernels count times of change in ticks of up to 10 ms; a settled file is older than that
    copied_before: list[int] = []

    def interfere() -> None:
        while not target.exists() or target.stat().st_size < files.COPY_BLOCK_BYTES:
            time.sleep(0)
        change(source)
        copied_before.append(target.stat().st_size)

    writer = threading.Thread(target=interfere)
    writer.start()
    with pytest.raises((SourceChanged, FileNotFoundError)):
        copy_from(source, expected, target)
    writer.join()
    assert files.COPY_BLOCK_BYTES <= copied_before[0] < size_bytes, "the change came too late to show anything"


# -- writing -----------------------------------------------------------------------------------------------------------


def test_new_content_comes_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_bytes(b"old")
    before = path.stat().st_ino
    replace_durably(path, b"new", mode=0o640)
    assert path.read_bytes() == b"new"
    assert path.stat().st_ino != before
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [p.name for p in tmp_path.iterdir()] == ["facts.json"]


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_bytes(b"old")

    def write_on_a_full_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            replace_durably(path, b"x" * 5000)
        except OSError as error:
            os._exit(0 if error.errno == errno.EFBIG else 2)
        os._exit(1)

    assert in_child(write_on_a_full_disk) == 0
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["facts.json"]


def test_an_object_survives_with_the_oddest_names(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    value = {"name": os.fsdecode(b"bad\xff\n.wav"), "umlaut": "ä"}
    write_json(path, value)
    assert read_json(path) == value
    assert path.read_bytes().isascii()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b'{"a": 1} tail'])
def test_a_damaged_file_of_ours_reads_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    assert read_json(tmp_path / "x.json") is None
    assert read_json(tmp_path / "none.json") is None
    assert read_json(tmp_path / "x.json" / "below") is None


# -- renaming ----------------------------------------------------------------------------------------------------------


def check_rename_refuses_to_replace(folder: Path) -> None:
    source, target = folder / "source", folder / "target"
    source.write_bytes(b"ours")
    target.write_bytes(b"theirs")
    with pytest.raises(FileExistsError):
        rename_no_replace(source, target)
    assert (source.read_bytes(), target.read_bytes()) == (b"ours", b"theirs")
    target.unlink()
    target.symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        rename_no_replace(source, target)
    target.unlink()
    rename_no_replace(source, target)
    assert target.read_bytes() == b"ours"
    with pytest.raises(FileNotFoundError):
        rename_no_replace(source, folder / "other")


def test_a_rename_refuses_to_replace(tmp_path: Path) -> None:
    check_rename_refuses_to_replace(tmp_path)


def refuse_flags_of_renameat2() -> None:
    """Make the kernel answer EINVAL to a rename with flags, as NFS and many FUSE servers do."""
    machine, call = {"x86_64": (0xC000003E, 316), "aarch64": (0xC00000B7, 276)}[os.uname().machine]
    load, equal, refuse = 0x20, 0x15, 0x06
    flags_at = 16 + 4 * 8  # the fifth argument in `seccomp_data`
    program = [
        (load, 0, 0, 4),
        (equal, 0, 4, machine),
        (load, 0, 0, 0),
        (equal, 0, 2, call),
        (load, 0, 0, flags_at),
        (equal, 1, 0, 1),
        (refuse, 0, 0, 0x7FFF0000),
        (refuse, 0, 0, 0x00050000 | errno.EINVAL),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # no_new_privs
    filters = struct.pack("@HP", len(program), ctypes.addressof(code))
    assert libc.prctl(22, ctypes.c_ulong(2), filters, ctypes.c_ulong(0), ctypes.c_ulong(0)) == 0


def test_a_rename_refuses_to_replace_where_the_file_system_knows_no_such_rename(tmp_path: Path) -> None:
    def work() -> None:
        refuse_flags_of_renameat2()
        libc = ctypes.CDLL(None, use_errno=True)
        (tmp_path / "x").write_bytes(b"")
        assert libc.renameat2(-100, bytes(tmp_path / "x"), -100, bytes(tmp_path / "y"), 1) == -1
        assert ctypes.get_errno() == errno.EINVAL
        check_rename_refuses_to_replace(tmp_path)

    assert in_child(work) == 0


def test_a_rename_across_file_systems_fails_and_moves_nothing(tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm") / f"lipsyncd-test-{os.getpid()}"
    if tmp_path.stat().st_dev != Path("/dev/shm").stat().st_dev:
        (tmp_path / "a").write_bytes(b"ours")
        with pytest.raises(OSError, match="cross-device"):
            rename_no_replace(tmp_path / "a", elsewhere)
        assert (tmp_path / "a").exists()
    assert not elsewhere.exists()


def test_a_folder_is_removed_with_its_content_and_may_be_gone(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_bytes(b"")
    (folder / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "kept").write_bytes(b"")
    remove_tree(folder)
    remove_tree(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


# -- the mask ----------------------------------------------------------------------------------------------------------


def test_asking_for_the_umask_does_not_change_it() -> None:
    def work() -> None:
        os.umask(0o027)
        assert files.umask() == 0o027
        assert os.umask(0) == 0o027

    assert in_child(work) == 0
