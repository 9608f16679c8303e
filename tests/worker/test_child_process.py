"""The render child as a real process: it works, crashes, hangs, sends garbage, and always ends when it must."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from lipsyncd.errors import (
    LipsyncdError,
    NoFaceFound,
    OutOfMemory,
    RenderCrashed,
    RendererNotInstalled,
    RenderStalled,
    RenderTimeout,
    UnknownRenderer,
)
from lipsyncd.media.ffmpeg import find
from lipsyncd.media.mp4 import inspect, inspect_part
from lipsyncd.worker.child_process import LocalChild, RenderCancelled, Timeouts
from lipsyncd.worker.protocol import Progress, Render, Result
from tests.kits.core_kit import is_soon
from tests.kits.faults.faulty_renderers import NAMES
from tests.kits.installation import ROOT
from tests.kits.jobs_by_hand import raw_inputs
from tests.kits.machine.processes import is_alive, is_gone

MORE = (
    "garbage=Garbage",
    "endless=Endless",
    "wrong-types=WrongTypes",
    "impostor=Impostor",
    "leaves=Leaves",
    "gasps=Gasps",
)
AT_START = ("garbage-at-start=GarbageAtStart", "abort-at-start=AbortAtStart", "slow-at-start=SlowAtStart")
OTHERS = ("with-helper=WithHelper", "no-face=NoFace", "slow-to-load=SlowToLoad")
RENDERERS = (
    *NAMES,
    *(entry.replace("=", "=tests.kits.faults.faulty_children:") for entry in (*MORE, *AT_START, *OTHERS)),
)
PATIENT = Timeouts(start_s=60.0, deadline_s=60.0, silence_s=60.0)


@pytest.fixture(autouse=True)
def where_children_find_their_renderers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TEST_HELPER_PID", str(tmp_path / "helper"))


@contextmanager
def child(timeouts: Timeouts = PATIENT, *, preload: str = "") -> Iterator[LocalChild]:
    one = LocalChild(
        "cpu",
        lambda: timeouts,
        renderers=RENDERERS,
        preload=preload,
        environment=["TEST_HELPER_PID", "TEST_ALLOWED", "TEST_RENDER_COUNT"],
    )
    try:
        yield one
    finally:
        one.close()


def request(folder: Path, renderer: str, *, seconds: float = 0.2) -> Render:
    prepared = raw_inputs(folder, seconds=seconds)
    return Render(
        job_id="job",
        renderer=renderer,
        folder=str(folder),
        out_file="out.mp4",
        picture=prepared.picture,
        sound=prepared.sound,
        fps="25",
        frames=round(seconds * 25),
        stitch=False,
        resolution=64,
        encode={"ffmpeg": str(find()), "crf": 30, "preset": "ultrafast", "audio_kbps": 64},
    )


def render(
    one: LocalChild, order: Render, *, stop: Callable[[], bool] = lambda: False, reported: list[Progress] | None = None
) -> Result:
    (Path(order.folder) / order.out_file).unlink(missing_ok=True)
    return one.render(order, progress=(reported if reported is not None else []).append, stop=stop)


# -- work --------------------------------------------------------------------------------------------------------------


def test_one_child_renders_job_after_job_and_reports_its_progress(tmp_path: Path) -> None:
    reported: list[Progress] = []
    with child() as one:
        one.start()
        pid = one.pid
        for seconds in (0.2, 1.0):
            order = request(tmp_path, "flat", seconds=seconds)
            result = render(one, order, reported=reported)
            assert (result.frames, result.width, result.height) == (order.frames, 64, 64)
            assert result.notes == {"made_by": "flat", "encoder": "x264, 2 threads"}
            assert inspect(tmp_path / "out.mp4").video.frames == order.frames
        assert one.pid == pid
        assert is_alive(pid)
    assert [p.stage for p in reported][:2] == ["loading", "analysing"]
    assert all(0 <= p.done <= p.total for p in reported)
    assert is_gone(pid)


def test_parts_of_a_video_have_no_sound_and_are_drawn_after_one_look_at_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = tmp_path / "renders"
    monkeypatch.setenv("TEST_RENDER_COUNT", str(count))
    order = request(tmp_path, "flat", seconds=2.0)
    reported: list[Progress] = []
    with child() as one:
        for number, (start, stop) in enumerate([(0, 20), (20, 47), (47, 50)], 1):
            part = replace(order, start=start, stop=stop, out_file=f".out.token.{number}.mp4")
            assert render(one, part, reported=reported).frames == stop - start
            assert inspect_part(tmp_path / part.out_file).video.frames == stop - start
            assert reported[-1].done == reported[-1].total == stop - start
        assert len(count.read_text().splitlines()) == 1
        render(one, order)
        render(one, replace(order, start=10, stop=20, job_id="another"))
        assert len(count.read_text().splitlines()) == 3


def test_idle_time_counts_from_the_last_job_and_not_without_a_child(tmp_path: Path) -> None:
    with child() as one:
        assert one.idle_s() == 0.0
        render(one, request(tmp_path, "flat"))
        assert one.idle_s() < 1
        time.sleep(0.3)
        assert one.idle_s() >= 0.3
        one.close()
        one.close()
        assert (one.idle_s(), one.pid) == (0.0, None)


@pytest.mark.parametrize(
    ("renderer", "error", "message"),
    [
        ("no-face", NoFaceFound, "no face in 80 x 72 pixels; turn around"),
        ("nosuch", UnknownRenderer, "there is no renderer 'nosuch'; choose one of: abort, "),
        ("missing", RendererNotInstalled, "the renderer 'missing' cannot be loaded"),
        ("raises", RenderCrashed, "the renderer raised ZeroDivisionError: as asked"),
    ],
)
def test_what_a_renderer_says_arrives_as_the_same_error_and_the_child_lives_on(
    tmp_path: Path, renderer: str, error: type[LipsyncdError], message: str
) -> None:
    with child() as one:
        with pytest.raises(error) as caught:
            render(one, request(tmp_path, renderer))
        assert str(caught.value).startswith(message)
        pid = one.pid
        render(one, request(tmp_path, "flat"))
        assert one.pid == pid


def test_the_result_of_another_job_is_ignored(tmp_path: Path) -> None:
    with child() as one:
        assert render(one, request(tmp_path, "impostor")).frames == 5


def test_a_child_inherits_what_libraries_need_and_what_the_operator_names_and_no_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secrets = ("LIPSYNCD_API_KEY", "LIPSYNCD_WEB_WEBHOOK_SECRET", "CREDENTIALS_DIRECTORY", "AWS_SECRET_ACCESS_KEY")
    secrets += ("HF_TOKEN", "NVIDIA_API_KEY", "HTTPS_PROXY", "NOTIFY_SOCKET", "TEST_NOT_ALLOWED")
    wanted = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "LC_ALL", "HF_HUB_OFFLINE", "TEST_ALLOWED")
    for name in (*secrets, *wanted):
        monkeypatch.setenv(name, f"of {name}")
    with child() as one:
        one.start()
        found = dict(
            entry.split(b"=", 1) for entry in Path(f"/proc/{one.pid}/environ").read_bytes().split(b"\0") if entry
        )
    assert [name for name in secrets if name.encode() in found or f"of {name}".encode() in found.values()] == []
    assert [name for name in wanted if found.get(name.encode()) != f"of {name}".encode()] == []
    assert found.keys() >= {b"PATH", b"PYTHONPATH"}


# -- crashes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("renderer", "error", "message"),
    [
        ("abort", RenderCrashed, "was killed by SIGABRT: about to abort"),
        ("killed", RenderCrashed, "was killed by SIGKILL from outside, and not by the kernel"),
        ("gasps", OutOfMemory, "was killed by SIGABRT for want of memory: cannot allocate memory for"),
        ("leaves", RenderCrashed, "exited with status 3: "),
        ("garbage", RenderCrashed, "does not speak our protocol: not a message: b'once upon a time'"),
        ("wrong-types", RenderCrashed, "does not speak our protocol"),
        ("endless", RenderCrashed, "the render child sent a line of more than 262144 bytes"),
    ],
)
def test_a_child_that_crashes_or_talks_nonsense_is_ended_and_the_next_job_gets_a_new_one(
    tmp_path: Path, renderer: str, error: type[LipsyncdError], message: str
) -> None:
    with child() as one:
        one.start()
        first = one.pid
        with pytest.raises(error) as caught:
            render(one, request(tmp_path, renderer))
        assert message in str(caught.value)
        assert len(str(caught.value)) < 10_000
        assert is_gone(first)
        assert one.pid is None
        render(one, request(tmp_path, "flat"))
        assert one.pid not in (None, first)


def test_the_last_lines_of_a_child_are_quoted_on_one_line(tmp_path: Path) -> None:
    with child() as one, pytest.raises(RenderCrashed) as caught:
        render(one, request(tmp_path, "leaves"))
    assert "last word 99 " in str(caught.value)
    assert "last word 80 " not in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("preload", "error", "message"),
    [
        ("abort-at-start", RenderCrashed, "was killed by SIGABRT: no such \\x1b[31mdevice"),
        ("garbage-at-start", RenderCrashed, "does not speak our protocol"),
        ("slow-at-start", RenderStalled, "was not ready after 1 s"),
    ],
)
def test_a_child_that_does_not_start_is_ended_with_its_reason(
    preload: str, error: type[LipsyncdError], message: str
) -> None:
    with child(Timeouts(start_s=1.0, deadline_s=60, silence_s=60), preload=preload) as one:
        if preload != "slow-at-start":
            one.timeouts = lambda: PATIENT
        pids: list[int | None] = []
        watcher = threading.Thread(target=lambda: pids.append(_first_pid(one)))
        watcher.start()
        with pytest.raises(error) as caught:
            one.start()
        watcher.join()
        assert message in str(caught.value)
        assert one.pid is None
        assert is_gone(pids[0])


def _first_pid(one: LocalChild) -> int | None:
    deadline = time.monotonic() + 20
    while one.pid is None and time.monotonic() < deadline:
        time.sleep(0.002)
    return one.pid


def test_a_child_that_was_killed_between_two_jobs_is_replaced(tmp_path: Path) -> None:
    with child() as one:
        render(one, request(tmp_path, "flat"))
        assert one.pid is not None
        first = one.pid
        os.kill(first, 9)
        assert is_gone(first)
        assert render(one, request(tmp_path, "flat")).frames == 5
        assert one.pid != first


# -- clocks and cancelling ---------------------------------------------------------------------------------------------


class After:
    """A `stop` that returns True so many seconds after its first call."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.asked_s: float | None = None

    def __call__(self) -> bool:
        now_s = time.monotonic()
        self.asked_s = now_s if self.asked_s is None else self.asked_s
        return now_s - self.asked_s >= self.seconds


def cancelled_s(one: LocalChild, asked: Render, after_s: float) -> float:
    """How long a render goes on after it was cancelled, so many seconds after its begin."""
    stop = After(after_s)
    with pytest.raises(RenderCancelled):
        render(one, asked, stop=stop)
    assert stop.asked_s is not None
    return time.monotonic() - stop.asked_s - after_s


def test_a_render_ends_within_a_second_of_a_cancel_and_the_child_stays(tmp_path: Path) -> None:
    with child() as one:
        one.start()
        pid, asked = one.pid, request(tmp_path, "slow", seconds=20)
        assert is_soon(lambda: cancelled_s(one, asked, 0.5), 1.0)
        assert one.pid == pid
        assert render(one, request(tmp_path, "flat")).frames == 5


def test_a_renderer_that_does_not_listen_is_cancelled_within_a_second_all_the_same(tmp_path: Path) -> None:
    pids: list[int | None] = []
    with child() as one:

        def took_s() -> float:
            one.start()
            pids.append(one.pid)
            return cancelled_s(one, request(tmp_path, "hang"), 0.3)

        assert is_soon(took_s, 1.5)  # the last half second is the child's, to end in order
        assert all(is_gone(pid) for pid in pids)


def test_silence_ends_a_render(tmp_path: Path) -> None:
    with child(Timeouts(start_s=60, deadline_s=60, silence_s=0.5)) as one:
        one.start()
        pid, started = one.pid, time.monotonic()
        with pytest.raises(RenderStalled, match=r"sent nothing for 0\.5 s"):
            render(one, request(tmp_path, "hang"))
        assert 0.5 <= time.monotonic() - started < 40
        assert is_gone(pid)


def test_loading_a_renderer_has_the_time_of_a_start_and_rendering_has_not(tmp_path: Path) -> None:
    with child(Timeouts(start_s=60, deadline_s=60, silence_s=2.0)) as one:
        one.start()
        render(one, request(tmp_path, "slow-to-load"))
        one.close()
        one.timeouts = lambda: PATIENT
        one.start()
        one.timeouts = lambda: Timeouts(start_s=0.5, deadline_s=60, silence_s=60)
        with pytest.raises(RenderStalled, match=r"sent nothing for 0\.5 s"):
            render(one, request(tmp_path, "slow-to-load"))


def test_the_deadline_ends_a_render_that_goes_on_talking(tmp_path: Path) -> None:
    reported: list[Progress] = []
    with child(Timeouts(start_s=60, deadline_s=3.0, silence_s=60)) as one:
        one.start()
        pid = one.pid
        with pytest.raises(RenderTimeout, match=r"job job was not rendered within 3 s"):
            render(one, request(tmp_path, "slow", seconds=20), reported=reported)
        assert reported[-1].stage == "rendering"
        assert is_gone(pid)


@pytest.mark.parametrize("end", ["silence", "close"])
def test_what_a_child_has_started_ends_with_it(tmp_path: Path, end: str) -> None:
    """A helper that ignores every polite signal, in the child's process group."""
    with child(Timeouts(start_s=60, deadline_s=60, silence_s=3.0 if end == "silence" else 60)) as one:
        one.start()

        def close() -> None:
            for _ in range(6000):
                if (tmp_path / "helper").exists() and (tmp_path / "helper").read_text():
                    break
                time.sleep(0.01)
            one.close()

        closer = threading.Thread(target=close) if end == "close" else None
        if closer is not None:
            closer.start()
        with pytest.raises((RenderStalled, RenderCrashed, OutOfMemory)):
            render(one, request(tmp_path, "with-helper"))
        if closer is not None:
            closer.join()
        helper = int((tmp_path / "helper").read_text())
        assert is_gone(helper)


def test_nothing_is_left_open(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with child() as one:
        for renderer in ("flat", "abort", "garbage"):
            with suppress(RenderCrashed):
                render(one, request(tmp_path, renderer))
            one.close()
    deadline = time.monotonic() + 60  # the thread that reads a child's output closes it a moment later
    while (left := set(os.listdir("/proc/self/fd")) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left == set()
