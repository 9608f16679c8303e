"""The render child: takes jobs over its line, renders and encodes them one after another, until the line is closed.

    python -m lipsyncd.renderers --device cpu --line 5 [--renderer name=module:Class …] [--preload name]

Started by `lipsyncd.worker.child_process`; ends when the daemon does, however that ends. Only here renderer
and encoder meet.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import NoReturn, cast

import numpy as np

from lipsyncd.errors import BadResult, LipsyncdError, RenderCrashed, RendererNotInstalled, UnknownRenderer
from lipsyncd.media.ffmpeg import Encoding
from lipsyncd.renderers import NAMES, Renderer, Scene
from lipsyncd.renderers.encoder import Encoder
from lipsyncd.renderers.video_source import VideoSource
from lipsyncd.worker.protocol import (
    CANCELLED,
    LOADING,
    Batch,
    Cancel,
    Failure,
    Message,
    Progress,
    Ready,
    Render,
    Result,
    from_line,
    to_line,
)

_PR_SET_PDEATHSIG = 1
_PROGRESS_EVERY_S = 0.2
_FIRST_TO_GO = 500  # half of all memory is added to what the child really takes; 1000 would spare everybody else


class Cancelled(Exception):
    """The daemon asked to end this render."""


class Line:
    """Our end of the socket: a thread reads it, so that a cancel is heard while a frame is being made."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._sending = threading.Lock()
        self._cancelled: set[str] = set()
        self.work: queue.Queue[Render] = queue.Queue()

    def listen(self) -> None:
        threading.Thread(target=self._read, name="line", daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(OSError), self._socket.makefile("rb") as lines:
            for line in lines:
                message = from_line(line)
                if isinstance(message, Cancel):
                    self._cancelled.add(message.job_id)
                elif isinstance(message, Render):
                    self._cancelled.discard(message.job_id)  # an earlier run's: the job was retried
                    self.work.put(message)
        # The daemon has closed its end, or died. What is under way is worth nothing to anybody.
        os._exit(0)

    def cancelled(self, job_id: str) -> bool:
        return job_id in self._cancelled

    def say(self, message: Message) -> None:
        with self._sending:
            self._socket.sendall(to_line(message))


class Renderers:
    """The renderers by name; each is made when its first job comes and kept."""

    def __init__(self, places: dict[str, str], device: str) -> None:
        self._places = places
        self._device = device
        self._loaded: dict[str, Renderer] = {}

    def get(self, name: str) -> Renderer:
        """Raises `UnknownRenderer`, or `RendererNotInstalled` when its packages are missing."""
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def _load(self, name: str) -> Renderer:
        place = self._places.get(name)
        if place is None:
            known = ", ".join(sorted(self._places))
            raise UnknownRenderer(f"there is no renderer {name!r}", remedy=f"choose one of: {known}")
        module, _, attribute = place.partition(":")
        try:
            make = getattr(importlib.import_module(module), attribute)
        except ImportError as error:
            raise RendererNotInstalled(f"the renderer {name!r} cannot be loaded: {error}") from error
        return cast(Callable[[str], Renderer], make)(self._device)


class Child:
    """The loop: one job at a time."""

    def __init__(self, line: Line, renderers: Renderers) -> None:
        self._line = line
        self._renderers = renderers

    def run(self) -> NoReturn:
        self._line.say(Ready(os.getpid()))
        while True:
            self._line.say(self._answer(self._line.work.get()))

    def _answer(self, request: Render) -> Result | Failure:
        try:
            return self._render(request)
        except Cancelled:
            return Failure(request.job_id, CANCELLED, "cancelled on request", "")
        except LipsyncdError as error:
            return Failure(request.job_id, error.code, error.message, error.remedy)
        except MemoryError:
            return Failure(request.job_id, "out-of-memory", "the render needs more memory than there is", "")
        except Exception as error:
            traceback.print_exc()
            crash = RenderCrashed(f"the renderer raised {type(error).__name__}: {error}")
            return Failure(request.job_id, crash.code, crash.message, crash.remedy)

    def _render(self, request: Render) -> Result:
        started = time.monotonic()
        self._tell(request, LOADING, 0)
        renderer = self._renderers.get(request.renderer)
        self._tell(request, "analysing", 0)
        looking, looked = True, time.monotonic()

        def alive() -> None:
            """A video's faces take a while to find: a frame that was read is a sign of life."""
            nonlocal looked
            if looking and time.monotonic() - looked > _PROGRESS_EVERY_S:
                looked = time.monotonic()
                self._tell(request, "analysing", 0)

        def tell_batch(size: int, too_many: int) -> None:
            self._line.say(Batch(request.job_id, size, too_many))

        shot = renderer.open(load_scene(request, alive, tell_batch))
        looking = False
        folder = Path(request.folder)
        encoding = Encoding(
            width=shot.width,
            height=shot.height,
            fps=Fraction(request.fps),
            sound=folder / request.sound.file,
            channels=request.sound.channels,
            crf=int(request.encode["crf"]),
            preset=str(request.encode["preset"]),
            audio_kbps=int(request.encode["audio_kbps"]),
        )
        done, told = 0, 0.0
        with Encoder(Path(request.encode["ffmpeg"]), encoding, folder / request.out_file) as encoder:
            for frame in shot.frames():
                encoder.write(frame)
                done += 1
                if self._line.cancelled(request.job_id):
                    raise Cancelled
                if time.monotonic() - told > _PROGRESS_EVERY_S:
                    told = time.monotonic()
                    self._tell(request, "rendering", done)
            if done != request.frames:
                raise BadResult(f"the renderer {request.renderer!r} gave {done} frames where {request.frames} were due")
            self._tell(request, "encoding", done)
            encoder.finish()
        return Result(request.job_id, done, shot.width, shot.height, time.monotonic() - started, notes=dict(shot.notes))

    def _tell(self, request: Render, stage: str, done: int) -> None:
        if self._line.cancelled(request.job_id):
            raise Cancelled
        self._line.say(Progress(request.job_id, stage, done, request.frames))


def load_scene(
    request: Render,
    alive: Callable[[], None] = lambda: None,
    tell_batch: Callable[[int, int], None] = lambda size, too_many: None,
) -> Scene:
    """The scene of a request: the picture in memory, the speech as a map of its file, a video read as it is shown."""
    folder, picture = Path(request.folder), request.picture
    pixels = np.fromfile(folder / picture.file, np.uint8)
    speech = np.memmap(folder / request.sound.speech_file, "<i2", "r", shape=(request.sound.speech_samples,))
    return Scene(
        picture=pixels.reshape(picture.height, picture.width, 3),
        speech=speech,
        fps=Fraction(request.fps),
        frames=request.frames,
        stitch=request.stitch,
        resolution=request.resolution,
        options=request.options,
        video=None
        if request.video is None
        else VideoSource(request.video, folder, Path(request.encode["ffmpeg"]), on_frame=alive),
        most=request.most,
        tell_batch=tell_batch,
    )


def die_with_parent(parent: int) -> None:
    """Be killed when the daemon dies without a word, so that no orphan keeps a GPU."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


def be_the_first_to_go() -> None:
    """Where memory runs out the kernel shall take the child and leave the daemon, which knows how to go on."""
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        score.write_text(str(max(int(score.read_text()), _FIRST_TO_GO)))


def main(arguments: list[str] | None = None) -> NoReturn:
    parser = argparse.ArgumentParser(prog="python -m lipsyncd.renderers")
    parser.add_argument("--device", required=True)
    parser.add_argument("--line", type=int, required=True)
    parser.add_argument("--renderer", action="append", default=[])
    parser.add_argument("--preload", default="")
    given = parser.parse_args(arguments)
    die_with_parent(os.getppid())
    be_the_first_to_go()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the daemon's to handle
    places = {**NAMES, **dict(entry.split("=", 1) for entry in given.renderer)}
    line = Line(given.line)
    line.listen()
    renderers = Renderers(places, given.device)
    if given.preload:
        with contextlib.suppress(LipsyncdError):  # the first job says what is wrong, with its id
            renderers.get(given.preload)
    Child(line, renderers).run()


if __name__ == "__main__":
    main()
