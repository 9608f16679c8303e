"""The kernel's counters of processes that it ended for want of memory, in each place where they may be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lipsyncd.worker.oom_kills import oom_count_of

PID = 4321


class Proc:
    """A /proc with one process, and the mounts that it sees."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / str(PID)).mkdir()
        (root / "self").mkdir()

    def write(self, *, groups: str = "", mounts: str = "", vmstat: int | None = None) -> None:
        (self.root / str(PID) / "cgroup").write_text(groups)
        (self.root / "self/mountinfo").write_text(mounts.replace("MOUNT", str(self.root)))
        if vmstat is not None:
            (self.root / "vmstat").write_text(f"nr_free_pages 1\noom_kill {vmstat}\nthp_fault_alloc 2\n")

    def count(self, folder: str, kills: int, name: str = "memory.events") -> Path:
        file = self.root / folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"low 0\noom 3\noom_kill {kills}\noom_group_kill 9\n")
        return file


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


V2 = "29 23 0:26 {root} MOUNT/{place} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "35 31 0:32 {root} MOUNT/{place} rw,relatime - cgroup cgroup rw,{option}\n"


def test_the_control_group_of_the_process_is_read_first(proc: Proc) -> None:
    proc.write(groups="0::/system.slice/lipsyncd.service\n", mounts=V2.format(root="/", place="cg"), vmstat=70)
    file = proc.count("cg/system.slice/lipsyncd.service", 2)
    count = oom_count_of(PID, proc.root)
    assert count is not None
    assert (count.file, count.kills()) == (file, 0)
    proc.count("cg/system.slice/lipsyncd.service", 3)
    assert count.kills() == 1


def test_a_container_sees_its_part_of_the_hierarchy(proc: Proc) -> None:
    proc.write(groups="0::/docker/ab/child\n", mounts=V2.format(root="/docker/ab", place="cg"))
    assert oom_count_of(PID, proc.root) is None
    file = proc.count("cg/child", 0)
    count = oom_count_of(PID, proc.root)
    assert count is not None
    assert count.file == file


def test_version_1_counts_under_another_name(proc: Proc) -> None:
    mounts = V1.format(root="/", place="cpu", option="cpu") + V1.format(root="/", place="mem", option="memory")
    proc.write(groups="4:memory:/box\n1:cpu:/box\n0::/\n", mounts=mounts + V2.format(root="/", place="unified"))
    proc.count("cpu/box", 7, "memory.oom_control")
    file = proc.count("mem/box", 7, "memory.oom_control")
    count = oom_count_of(PID, proc.root)
    assert count is not None
    assert count.file == file


def test_without_a_group_the_whole_machine_is_read(proc: Proc) -> None:
    proc.write(groups="0::/../outside\n", mounts=V2.format(root="/inside", place="cg"), vmstat=5)
    count = oom_count_of(PID, proc.root)
    assert count is not None
    assert count.file == proc.root / "vmstat"
    proc.write(vmstat=6)
    assert count.kills() == 1


def test_without_a_counter_there_is_no_answer(proc: Proc) -> None:
    assert oom_count_of(PID, proc.root) is None
    proc.write(vmstat=5)
    count = oom_count_of(PID, proc.root)
    assert count is not None
    count.file.unlink()
    assert count.kills() is None


def test_this_kernel_counts_for_an_unprivileged_process() -> None:
    count = oom_count_of(os.getpid())
    assert count is not None
    assert count.kills() == 0
