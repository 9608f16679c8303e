"""What others may have written is read in one way: at once, a regular file of bounded size and depth, or nothing."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsyncd.storage.files import MOST_JSON_BYTES, MOST_JSON_DEPTH, NotRegular, read_json
from lipsyncd.storage.open_folder import OpenFolder, open_to_group
from tests.kits.core_kit import as_nobody


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[OpenFolder]:
    with OpenFolder.at(tmp_path) as folder:
        yield folder


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


TRAPS = (
    "fifo", "link", "dangling link", "loop", "folder", "socket", "huge", "too large", "deep", "deeper", "list", "text",
    "not text", "empty",
)  # fmt: skip


def make(path: Path, trap: str) -> None:
    if trap == "fifo":
        os.mkfifo(path)
    elif trap == "link":
        path.with_name("elsewhere").write_text('{"a": 1}')
        path.symlink_to("elsewhere")
    elif trap == "dangling link":
        path.symlink_to("nowhere")
    elif trap == "loop":
        path.symlink_to(path.name)
    elif trap == "folder":
        path.mkdir()
    elif trap == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    elif trap == "huge":
        with path.open("wb") as file:
            file.truncate(8_000_000_000_000)
    else:
        content = {
            "too large": json.dumps({"a": "x" * MOST_JSON_BYTES}),
            "deep": nested(MOST_JSON_DEPTH + 1),
            "deeper": nested(190_000),
            "list": "[1]",
            "text": '"a"',
            "not text": "\udcff\udcfe",
            "empty": "",
        }
        path.write_text(content[trap], errors="surrogateescape")


@pytest.mark.parametrize("trap", TRAPS)
def test_whatever_is_no_small_object_is_none_at_once_and_logged_once(
    folder: OpenFolder, tmp_path: Path, trap: str, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path / "a.json", trap)
    caplog.set_level(logging.WARNING)
    started = time.monotonic()
    assert [folder.read_json("a.json") for _ in range(3)] == [None, None, None]
    assert time.monotonic() - started < 2
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert f"{tmp_path}/a.json is not used: " in lines[0]


@pytest.mark.parametrize("trap", [trap for trap in TRAPS if trap not in ("dangling link", "socket")])
def test_so_it_is_in_a_folder_of_our_own(tmp_path: Path, trap: str) -> None:
    make(tmp_path / "a.json", trap)
    assert read_json(tmp_path / "a.json") is None


def test_the_largest_and_the_deepest_object_are_read(folder: OpenFolder, tmp_path: Path) -> None:
    assert folder.read_json("a.json") is None
    largest = {"a": "x" * (MOST_JSON_BYTES - len('{"a": ""}'))}
    (tmp_path / "a.json").write_text(json.dumps(largest))
    assert folder.read_json("a.json") == largest
    (tmp_path / "a.json").write_text(nested(MOST_JSON_DEPTH))
    assert folder.read_json("a.json") == json.loads(nested(MOST_JSON_DEPTH))


def test_what_may_not_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / "a.json").write_text("{}")
    (tmp_path / "inbox" / "a.json").chmod(0)

    def read() -> object:
        with OpenFolder.at(tmp_path / "inbox") as folder:
            return folder.read_json("a.json")

    assert as_nobody(read, tmp_path / "inbox") is None


def test_an_odd_name_is_logged_on_one_line(
    folder: OpenFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = os.fsdecode(b"a\n\x1b[31m\xff.json")
    (tmp_path / name).write_text("[]")
    assert folder.read_json(name) is None
    [record] = caplog.records
    assert "\n" not in record.getMessage()
    assert "\x1b" not in record.getMessage()


# -- steps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trap", ["link", "file"])
def test_no_step_leads_through_a_link_or_a_file(folder: OpenFolder, tmp_path: Path, trap: str) -> None:
    (tmp_path / "real" / "inner").mkdir(parents=True)
    if trap == "link":
        (tmp_path / "a").symlink_to("real")
    else:
        (tmp_path / "a").touch()
    for step in (folder.enter, folder.passage, lambda name: folder.make(name, 0o700)):
        with pytest.raises(NotRegular):
            step("a")
    with pytest.raises(NotRegular), folder.walk(["a", "inner"]):
        pass
    with folder.walk(["real", "inner"]) as inner:
        assert inner.where == f"{tmp_path}/real/inner"


def test_walking_leaves_no_descriptor_open(folder: OpenFolder, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))
    with folder.walk(["a", "b"]):
        pass
    with pytest.raises(FileNotFoundError), folder.walk(["a", "c"]):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("way", ["create", "write", "replace"])
def test_nothing_is_written_behind_a_link(folder: OpenFolder, tmp_path: Path, way: str) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "a").symlink_to("precious")
    if way == "create":
        with pytest.raises(FileExistsError):
            folder.create("a", 0o600)
    elif way == "write":
        folder.write("a", b"new", mode=0o600, prepare=open_to_group)
    else:
        folder.replace("a", b"new", mode=0o600, prepare=open_to_group)
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "precious").stat().st_mode & 0o060 != 0o060
    assert way == "create" or (tmp_path / "a").read_bytes() == b"new"


def test_a_file_is_opened_to_the_group_by_its_descriptor(folder: OpenFolder, tmp_path: Path) -> None:
    """The name may be another file's when the mode is set: then that file keeps its mode."""
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    descriptor = folder.create("a", 0o600)
    (tmp_path / "a").unlink()
    (tmp_path / "a").symlink_to(secret)
    open_to_group(descriptor)
    assert os.fstat(descriptor).st_mode & 0o777 == 0o660
    os.close(descriptor)
    assert secret.stat().st_mode & 0o777 == 0o600


def test_folders_within_folders_without_end_are_no_endless_removal(folder: OpenFolder, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.mkdir()
    here = os.open(path, os.O_RDONLY)
    for _ in range(60):
        os.mkdir("b", dir_fd=here)
        inner = os.open("b", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    with pytest.raises(OSError, match="too many folders within each other"):
        folder.remove_tree("a")
