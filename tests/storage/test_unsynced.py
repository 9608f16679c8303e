"""Files that become durable together: each one's error is its own, and few descriptors are open."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from lipsyncd.storage import spool
from lipsyncd.storage.spool import Unsynced, sync_all


def opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_all_are_closed_and_an_error_stays_with_its_group(tmp_path: Path) -> None:
    before, groups = descriptors(), [Unsynced() for _ in range(10)]
    for number, group in enumerate(groups):
        for name in ("a", "b"):
            group.add(opened(tmp_path / f"{number}{name}"))
        group.add_folder(tmp_path)
    reading, writing = os.pipe()  # of which fsync fails with EINVAL, as of no file
    groups[4].add(writing)
    sync_all(groups)
    os.close(reading)
    assert [number for number, group in enumerate(groups) if group.fault] == [4]
    assert descriptors() == before


def test_a_folder_whose_file_system_has_no_such_call_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Unsynced()
    monkeypatch.setattr(os, "fsync", lambda _descriptor: (_ for _ in ()).throw(OSError(22, "Invalid argument")))
    group.add_folder(tmp_path)
    sync_all([group])
    assert group.fault is None


def test_very_many_files_of_one_job_keep_few_descriptors_open(tmp_path: Path) -> None:
    before, group, most = descriptors(), Unsynced(), 0
    for number in range(300):
        group.add(opened(tmp_path / str(number)))
        most = max(most, descriptors() - before)
    assert most < 70
    group.close()
    assert descriptors() == before


def test_without_more_threads_one_does_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []

    class NoThread(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(spool.threading, "Thread", NoThread)
    group = Unsynced()
    for number in range(20):
        group.add(opened(tmp_path / str(number)), lambda descriptor: synced.append(descriptor))
    sync_all([group])
    assert len(synced) == 20
    assert len(group) == 0
