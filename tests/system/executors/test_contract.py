"""What every executor promises its worker, over the local child and over an actor of a real Ray cluster.

The renderer is `preview`; a small one takes its place only where a fault has to be provoked. The daemon's part in it
(lost actors and machines, late answers, restarts) is in `test_cluster.py` and `test_lost_head.py`.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from lipsyncd.cluster.ray_child import RayChild
from lipsyncd.errors import (
    LipsyncdError,
    NoFaceFound,
    RenderCrashed,
    RendererNotInstalled,
    RenderStalled,
    RenderTimeout,
)
from lipsyncd.media.mp4 import inspect, inspect_part
from lipsyncd.worker.child_process import LocalChild, RenderCancelled, Timeouts
from lipsyncd.worker.protocol import Progress, Render
from tests.kits.core_kit import is_soon
from tests.kits.faults.faulty_renderers import NAMES
from tests.kits.installation import ROOT
from tests.kits.machine.processes import is_alive, is_gone
from tests.kits.media.preview_people import PEOPLE, portrait
from tests.system.executors.ray_kit import RayMachines, ray_child, ray_machines
from tests.worker.test_child_process import After
from tests.worker.test_child_process import request as plain_request

RENDERERS = (*NAMES, "no-face=tests.kits.faults.faulty_children:NoFace")
ENVIRONMENT = ("TEST_HELPER_PID", "TEST_RENDER_COUNT")
PIXELS = 160  # of a painted person's picture
LONG_S = 240.0  # of sound: `preview` draws its 6,000 large frames for longer than any of these tests waits
PATIENT = Timeouts(start_s=60.0, deadline_s=60.0, silence_s=60.0)

Child = LocalChild | RayChild
Make = Callable[..., AbstractContextManager[Child]]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory, ray_home: Path) -> Iterator[RayMachines]:
    root = tmp_path_factory.mktemp("ray")
    with ray_machines(
        root, ray_home, TEST_HELPER_PID=str(root / "helper"), TEST_RENDER_COUNT=str(root / "renders")
    ) as found:
        yield found


@contextmanager
def local(timeouts: Timeouts = PATIENT) -> Iterator[LocalChild]:
    child = LocalChild("cpu", lambda: timeouts, renderers=RENDERERS, environment=ENVIRONMENT)
    try:
        yield child
    finally:
        child.close()


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def make(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes an executor, with time limits."""
    if request.param == "local":
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setenv("TEST_HELPER_PID", str(tmp_path / "helper"))
        return local
    machines: RayMachines = request.getfixturevalue("machines")
    return lambda timeouts=PATIENT: ray_child(machines, tmp_path / "storage", timeouts, RENDERERS, ENVIRONMENT)


def order(folder: Path, renderer: str = "preview", *, seconds: float = 0.2) -> Render:
    """A request as the worker makes it: the result has the token of the claim in its name."""
    request = plain_request(folder, renderer, seconds=seconds)
    (folder / request.picture.file).write_bytes(portrait(PEOPLE["ada"], PIXELS).tobytes())
    picture = replace(request.picture, width=PIXELS, height=PIXELS)
    resolution = 1024 if seconds == LONG_S else request.resolution
    return replace(request, picture=picture, resolution=resolution, out_file=f".out.{os.urandom(4).hex()}.mp4")


def never() -> bool:
    return False


def ignore(_: object) -> None:
    pass


def fails(
    child: Child,
    request: Render,
    stop: Callable[[], bool] = never,
    progress: Callable[[Progress], None] = ignore,
) -> Exception:
    with pytest.raises((LipsyncdError, RenderCancelled)) as caught:
        child.render(request, progress=progress, stop=stop)
    return caught.value


def works(child: Child, folder: Path, renderer: str = "preview") -> None:
    request = order(folder, renderer)
    child.render(request, progress=ignore, stop=never)
    assert inspect(folder / request.out_file).video.frames == request.frames


def test_one_child_renders_job_after_job_and_reports_its_progress(make: Make, tmp_path: Path) -> None:
    reported: list[Progress] = []
    with make() as child:
        pids = set()
        for seconds in (0.2, 1.0):
            request = order(tmp_path, seconds=seconds)
            result = child.render(request, progress=reported.append, stop=never)
            assert (result.frames, result.width, result.height) == (request.frames, 64, 64)
            assert inspect(tmp_path / request.out_file).video.frames == request.frames
            pids.add(child.pid)
        assert len(pids) == 1
        assert {message.stage for message in reported} >= {"rendering"}


def test_a_part_of_a_video_goes_into_a_file_of_its_own_without_sound(make: Make, tmp_path: Path) -> None:
    whole = order(tmp_path, seconds=2.0)
    with make() as child:
        for number, (start, stop) in enumerate([(0, 20), (20, 50)], 1):
            part = replace(whole, start=start, stop=stop, out_file=whole.out_file.replace(".mp4", f".{number}.mp4"))
            assert child.render(part, progress=ignore, stop=never).frames == stop - start
            assert inspect_part(tmp_path / part.out_file).video.frames == stop - start
        assert isinstance(fails(child, replace(part, renderer="slow"), lambda: True), RenderCancelled)
        works(child, tmp_path)


@pytest.mark.parametrize("renderer", ["preview", "hang"])
def test_a_cancelled_render_ends_within_a_second_and_the_next_one_works(
    make: Make, tmp_path: Path, renderer: str
) -> None:
    with make() as child:

        def took_s() -> float:
            works(child, tmp_path)
            request = order(tmp_path, renderer, seconds=LONG_S)
            stop = After(0.5)
            assert isinstance(fails(child, request, stop), RenderCancelled)
            assert stop.asked_s is not None
            return time.monotonic() - stop.asked_s - stop.seconds

        assert is_soon(took_s, 1.3)  # a second, and what a busy machine adds
        works(child, tmp_path)


def test_a_deadline_ends_the_render_and_its_processes(make: Make, tmp_path: Path) -> None:
    with make(Timeouts(start_s=60.0, deadline_s=1.0, silence_s=60.0)) as child:
        assert isinstance(fails(child, order(tmp_path, seconds=LONG_S)), RenderTimeout)
        works(child, tmp_path, "flat")


def test_a_silent_child_is_ended(make: Make, tmp_path: Path) -> None:
    with make(Timeouts(start_s=60.0, deadline_s=60.0, silence_s=1.0)) as child:
        assert isinstance(fails(child, order(tmp_path, "hang")), RenderStalled)


@pytest.mark.parametrize(
    ("renderer", "error"), [("abort", RenderCrashed), ("no-face", NoFaceFound), ("missing", RendererNotInstalled)]
)
def test_a_failure_has_its_own_class_and_the_next_job_works(
    make: Make, tmp_path: Path, renderer: str, error: type[LipsyncdError]
) -> None:
    with make() as child:
        assert type(fails(child, order(tmp_path, renderer))) is error
        works(child, tmp_path)


def test_close_ends_the_child_and_the_next_job_has_a_new_one(make: Make, tmp_path: Path) -> None:
    with make() as child:
        works(child, tmp_path)
        first = child.pid
        assert child.idle_s() > 0
        child.close()
        assert is_gone(first)
        assert (child.pid, child.idle_s()) == (None, 0.0)
        works(child, tmp_path)
        assert child.pid not in (None, first)


def test_start_has_a_child_ready_before_the_first_job(make: Make, tmp_path: Path) -> None:
    with make() as child:
        child.start()
        ready = child.pid
        assert is_alive(ready)
        works(child, tmp_path)
        assert child.pid == ready


def test_a_child_that_is_killed_from_outside_costs_one_render(make: Make, tmp_path: Path) -> None:
    with make() as child:
        works(child, tmp_path)
        request = order(tmp_path, seconds=LONG_S)
        assert child.pid is not None
        pid = child.pid

        def kill(_: Progress) -> None:
            with suppress(ProcessLookupError):  # at the second message
                os.kill(pid, signal.SIGKILL)

        with pytest.raises(RenderCrashed):
            child.render(request, progress=kill, stop=never)
        works(child, tmp_path)


@pytest.mark.ray
def test_two_gpus_of_a_machine_render_at_the_same_time_in_a_child_each(machines: RayMachines, tmp_path: Path) -> None:
    met = threading.Barrier(2, timeout=60.0)

    def rendered(number: int) -> str:
        """Render until the other slot renders, too; returns the GPU that Ray gave to the child."""
        (folder := tmp_path / str(number)).mkdir()
        with ray_child(machines, tmp_path / "storage", PATIENT, RENDERERS, ENVIRONMENT, number=number) as child:
            works(child, folder)
            met.wait()
            stop = threading.Event()

            def both_render(_: Progress) -> None:
                if not stop.is_set():
                    met.wait()
                    stop.set()

            shown = Path(f"/proc/{child.pid}/environ").read_bytes().split(b"\0")
            request = order(folder, seconds=LONG_S)
            assert isinstance(fails(child, request, stop.is_set, both_render), RenderCancelled)
            return next(text.decode() for text in shown if text.startswith(b"CUDA_VISIBLE_DEVICES="))

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(rendered, (0, 1))) == ["CUDA_VISIBLE_DEVICES=0", "CUDA_VISIBLE_DEVICES=1"]


@pytest.mark.ray
def test_nothing_is_left_on_the_share_and_an_idle_actor_gives_its_gpu_back(
    machines: RayMachines, tmp_path: Path
) -> None:
    with ray_child(machines, tmp_path / "storage", PATIENT, RENDERERS, ENVIRONMENT) as child:
        works(child, tmp_path)
        assert list((machines.share / "work").iterdir()) == []
        assert child.has_actor
        child.release_if_idle(0.0)
        assert child.has_actor, "the child lives"
        child.close()
        child.release_if_idle(60.0)
        assert child.has_actor, "it is not idle for long enough"
        child.release_if_idle(0.0)
        assert not child.has_actor
        works(child, tmp_path)
        assert child.starts == 2
