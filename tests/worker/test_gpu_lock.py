"""One render at a time on each GPU: the lock between processes, who is waited for, and how a wait ends."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lipsyncd.monitor import gpu
from lipsyncd.worker.child_process import RenderCancelled
from lipsyncd.worker.gpu_lock import gpu_lock

GPU = f"GPU-{uuid.uuid4()}"
HOLDER = """
import sys
from lipsyncd.monitor import gpu
from lipsyncd.worker.gpu_lock import gpu_lock
gpu.uuid = lambda device: sys.argv[1]
with gpu_lock("cuda:0", "musetalk", stop=lambda: False, waits_for=print):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "uuid", lambda device: "" if device == "cpu" else GPU)


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """Another process that renders on the GPU until its stdin closes."""
    command = [sys.executable, "-c", HOLDER, GPU]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def take(renderer: str = "musetalk", device: str = "auto", stop_after_s: float = 0.0) -> list[str]:
    """Take the lock and let go; gives what was reported about holders. Raises `RenderCancelled` when it is not free."""
    reports: list[str] = []
    until_s = time.monotonic() + stop_after_s
    with gpu_lock(device, renderer, stop=lambda: time.monotonic() >= until_s, waits_for=reports.append):
        return reports


def test_a_free_gpu_is_taken_at_once_and_again_after_its_end() -> None:
    assert take() == []
    assert take() == []


def test_the_second_waits_and_learns_who_renders(holder: subprocess.Popen[str]) -> None:
    reports: list[str] = []
    waiting = threading.Thread(target=lambda: reports.extend(take(stop_after_s=30)))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    assert holder.stdin is not None
    let_go_s = time.monotonic()
    holder.stdin.close()
    waiting.join(10)
    assert time.monotonic() - let_go_s < 5
    user = pwd.getpwuid(os.getuid()).pw_name
    name = Path(f"/proc/{os.getpid()}/comm").read_text().strip()
    assert reports[0].startswith(f"{GPU} is in use by process {holder.pid} ({name[:4]}")
    assert reports[0].endswith(f") of user {user}")
    assert len(reports) == 1


def test_a_killed_holder_holds_nothing(holder: subprocess.Popen[str]) -> None:
    holder.kill()
    assert len(take(stop_after_s=10)) <= 1


def test_a_wait_ends_on_request(holder: subprocess.Popen[str]) -> None:
    with pytest.raises(RenderCancelled):
        take(stop_after_s=0.3)


def test_many_wait_and_each_gets_its_turn(holder: subprocess.Popen[str]) -> None:
    inside, overlaps, done = threading.Lock(), [], []

    def work() -> None:
        with gpu_lock("cuda:0", "musetalk", stop=lambda: False, waits_for=lambda _: None):
            if not inside.acquire(blocking=False):
                overlaps.append(1)
            time.sleep(0.01)
            inside.release()
            done.append(1)

    waiting = [threading.Thread(target=work) for _ in range(8)]
    for one in waiting:
        one.start()
    holder.kill()
    for one in waiting:
        one.join(30)
    assert (len(done), overlaps) == (8, [])


@pytest.mark.parametrize(("renderer", "device"), [("preview", "auto"), ("musetalk", "cpu")])
def test_what_uses_no_gpu_waits_for_none(holder: subprocess.Popen[str], renderer: str, device: str) -> None:
    assert take(renderer, device) == []


# -- which GPU it is ---------------------------------------------------------------------------------------------------


class Nvml:
    """NVIDIA's library for two GPUs, with the functions that `gpu.uuid` calls."""

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:
        handle._obj.value = index.value + 1
        return 0 if index.value < 2 else 2

    def nvmlDeviceGetUUID(self, handle: Any, text: Any, size: Any) -> int:
        text.value = b"GPU-%d" % (handle.value - 1)
        return 0


@pytest.mark.parametrize(
    ("device", "visible", "found"),
    [
        ("auto", None, "GPU-0"),
        ("cuda", None, "GPU-0"),
        ("cuda:1", None, "GPU-1"),
        ("cuda:2", None, ""),
        ("cpu", None, ""),
        ("auto", "1", "GPU-1"),
        ("cuda:1", "1,0", "GPU-0"),
        ("cuda:1", "1", ""),
        ("auto", "", ""),
        ("auto", "GPU-7c1e", "GPU-7c1e"),
        ("auto", "MIG-5a2f", "MIG-5a2f"),
        ("auto", "-1", ""),
    ],
)
def test_a_gpu_is_named_by_its_uuid_whatever_its_number(
    monkeypatch: pytest.MonkeyPatch, device: str, visible: str | None, found: str
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(gpu, "_library", Nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu.uuid(device) == found
