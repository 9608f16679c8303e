"""The render child: takes jobs over a socket, renders and encodes them one after another, until the socket is closed.

    python -m lipsyncd.renderers --device cpu --line 5 [--renderer name=module:Class …] [--preload name]

Started by `lipsyncd.worker.child_process`; ends when the daemon ends, for whatever reason. Only this module uses both a
renderer and the encoder.
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
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import NoReturn, cast

import numpy as np

from lipsyncd.errors import BadResult, LipsyncdError, RenderCrashed, RendererNotInstalled, UnknownRenderer
from lipsyncd.extras import how_to_install
from lipsyncd.media.ffmpeg import X264, Encoding
from lipsyncd.renderers import NAMES, Renderer, Scene, Shot
from lipsyncd.renderers.ahead import Ahead
from lipsyncd.renderers.audio import shifted
from lipsyncd.renderers.encoder import Encoder
from lipsyncd.renderers.raw_frames import RawFrames
from lipsyncd.renderers.span import Spanning, span_of
from lipsyncd.renderers.video_source import VideoSource
from lipsyncd.worker.protocol import (
    CANCELLED,
    LOADING,
    Batch,
    Cancel,
    Failure,
    Message,
    Next,
    Progress,
    Ready,
    Render,
    Result,
    from_line,
    to_line,
)

_PR_SET_PDEATHSIG = 1
_PROGRESS_EVERY_S = 0.2
_REST_AFTER_S = 1.0  # without a job
_OOM_SCORE_ADJ = 500  # counts half of the machine's memory on top of the child's own


class Cancelled(Exception):
    """The daemon has cancelled this render."""


class DaemonConnection:
    """The socket to the daemon. A thread reads it, so that a cancel arrives while a frame is being rendered."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._sending = threading.Lock()
        self._cancelled: set[str] = set()
        self.requests: queue.Queue[Render] = queue.Queue()
        self.hint: Next | None = None

    def start_reading(self) -> None:
        threading.Thread(target=self._read, name="daemon-connection", daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(OSError), self._socket.makefile("rb") as lines:
            for line in lines:
                message = from_line(line)
                if isinstance(message, Cancel):
                    self._cancelled.add(message.job_id)
                elif isinstance(message, Next):
                    self.hint = message
                elif isinstance(message, Render):
                    self._cancelled.discard(message.job_id)  # from an earlier run of the same job
                    self.requests.put(message)
        # The daemon has closed its end or died: no process waits for the render under way.
        os._exit(0)

    def cancelled(self, job_id: str) -> bool:
        return job_id in self._cancelled

    def send(self, message: Message) -> None:
        with self._sending:
            self._socket.sendall(to_line(message))


class LoadedRenderers:
    """The renderers by name. Each is loaded for its first job and kept."""

    def __init__(self, classes: dict[str, str], device: str) -> None:
        self._classes = classes
        self._device = device
        self._loaded: dict[str, Renderer] = {}

    def get(self, name: str) -> Renderer:
        """Raises `UnknownRenderer`, or `RendererNotInstalled` when its packages are missing."""
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def rest(self) -> None:
        """No job waits: let renderers that have a use for it know."""
        for name, renderer in self._loaded.items():
            if (rest := getattr(renderer, "rest", None)) is not None:
                try:
                    rest()
                except Exception:  # the next job shows whether the renderer still works
                    print(f"the renderer {name!r} raised while it was resting:", file=sys.stderr)
                    traceback.print_exc()

    def _load(self, name: str) -> Renderer:
        path = self._classes.get(name)
        if path is None:
            known = ", ".join(sorted(self._classes))
            raise UnknownRenderer(f"there is no renderer {name!r}", remedy=f"choose one of: {known}")
        module, _, attribute = path.partition(":")
        try:
            make = getattr(importlib.import_module(module), attribute)
        except ImportError as error:
            remedy = f"{how_to_install(name)}, or choose another renderer" if name == "musetalk" else None
            raise RendererNotInstalled(f"the renderer {name!r} cannot be loaded: {error}", remedy=remedy) from error
        return cast(Callable[[str], Renderer], make)(self._device)


class RenderLoop:
    """Renders the daemon's requests, one at a time."""

    def __init__(self, daemon: DaemonConnection, renderers: LoadedRenderers) -> None:
        self._daemon = daemon
        self._renderers = renderers
        self._ahead: Ahead | None = None
        self._kept: tuple[Render, Shot] | None = None  # of a video whose parts are drawn one after another

    def run(self) -> NoReturn:
        self._daemon.send(Ready(os.getpid()))
        while True:
            self._daemon.send(self._answer(self._next()))

    def _next(self) -> Render:
        with contextlib.suppress(queue.Empty):
            return self._daemon.requests.get(timeout=_REST_AFTER_S)
        self._drop_ahead()
        self._kept = None
        self._renderers.rest()
        return self._daemon.requests.get()

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
        self._report(request, LOADING, 0)
        renderer = self._renderers.get(request.renderer)
        self._report(request, "analysing", 0)
        ahead, self._ahead = self._ahead, None
        shot = (ahead.take(request) if ahead else None) or self._shot_of(renderer, request)
        encoder = self._encode(shot, request)
        took_s = time.monotonic() - started
        notes = {**shot.notes, "encoder": encoder} if encoder else dict(shot.notes)
        return Result(request.job_id, len(request.drawn), shot.width, shot.height, took_s, notes=notes)

    def _shot_of(self, renderer: Renderer, request: Render) -> Shot:
        """The shot of a request; for the next part of a video, the one that is open already."""
        whole = replace(request, out_file="", start=0, stop=0)
        kept, self._kept = self._kept, None
        if kept is not None and request.is_part and kept[0] == whole:
            shot = kept[1]
        else:
            kept = None  # not in memory beside another one
            shot = self._open(renderer, request)
        if request.is_part and isinstance(shot, Spanning):
            self._kept = whole, shot
        return shot

    def _open(self, renderer: Renderer, request: Render) -> Shot:
        """The shot of a request that was made; of a hint, nothing is reported before its frames are drawn."""
        analysing, reported_at = not isinstance(request, Next), time.monotonic()

        def on_frame() -> None:
            """Report progress while the faces of a video are being found, which can take long."""
            nonlocal reported_at
            if analysing and time.monotonic() - reported_at > _PROGRESS_EVERY_S:
                reported_at = time.monotonic()
                self._report(request, "analysing", 0)

        def report_batch(size: int, too_many: int) -> None:
            self._daemon.send(Batch(request.job_id, size, too_many))

        scene = load_scene(request, on_frame, report_batch)
        shot = renderer.open(scene)
        if hasattr(shot, "still"):
            from lipsyncd.renderers.motion.moving_shot import moving  # other shots do without its libraries

            shot = moving(shot, scene)
        analysing = False
        return shot

    def _encode(self, shot: Shot, request: Render) -> str:
        """Draw and encode the frames of a request. Returns which encoder did it, for the sidecar; "" where none did."""
        done, reported_at, drawn = 0, 0.0, request.drawn
        with self._sink(shot, request) as sink:
            for frame in span_of(shot, drawn.start, drawn.stop) if request.is_part else shot.frames():
                sink.write(frame)
                done += 1
                self._follow_hint(request)
                if self._daemon.cancelled(request.job_id):
                    raise Cancelled
                if time.monotonic() - reported_at > _PROGRESS_EVERY_S:
                    reported_at = time.monotonic()
                    self._report(request, "rendering", done)
            if done != len(drawn):
                raise BadResult(f"the renderer {request.renderer!r} gave {done} frames instead of {len(drawn)}")
            if self._ahead is not None:
                self._ahead.draw()
            self._report(request, "encoding", done)
            sink.finish()
        return sink.described

    def _follow_hint(self, present: Render) -> None:
        """Open the job that most likely comes next, if the daemon has named one."""
        hint, self._daemon.hint = self._daemon.hint, None
        if hint is None or hint.job_id == present.job_id:  # it came too late
            return
        self._drop_ahead()
        renderer = self._renderers.get(hint.renderer)
        aside = getattr(renderer, "opens_aside", False) is True
        self._ahead = Ahead(hint, lambda: self._open(renderer, hint), aside=aside)

    def _drop_ahead(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.drop()

    def _sink(self, shot: Shot, request: Render) -> Encoder | RawFrames:
        """Where the frames go: into an MP4, or as they are into a pipe."""
        folder = Path(request.folder)
        target = folder / request.out_file
        if request.encode.get("raw"):
            return RawFrames(target, shot.width, shot.height)
        encoding = Encoding(
            width=shot.width,
            height=shot.height,
            fps=Fraction(request.fps),
            sound=None if request.is_part else folder / request.sound.file,
            channels=0 if request.is_part else request.sound.channels,
            crf=int(request.encode["crf"]),
            preset=str(request.encode["preset"]),
            audio_kbps=int(request.encode["audio_kbps"]),
            encoder=str(request.encode.get("encoder", X264)),
            threads=int(request.encode.get("threads", Encoding.threads)),
        )
        return Encoder(Path(request.encode["ffmpeg"]), encoding, target, still=getattr(shot, "still", None))

    def _report(self, request: Render, stage: str, done: int) -> None:
        if self._daemon.cancelled(request.job_id):
            raise Cancelled
        self._daemon.send(Progress(request.job_id, stage, done, len(request.drawn)))


def load_scene(
    request: Render,
    on_frame: Callable[[], None] = lambda: None,
    report_batch: Callable[[int, int], None] = lambda size, too_many: None,
) -> Scene:
    """The scene of a request: the picture in memory, the speech as a memory map, a video decoded as it is used."""
    folder, picture = Path(request.folder), request.picture
    pixels = np.fromfile(folder / picture.file, np.uint8)
    speech = np.memmap(folder / request.sound.speech_file, "<i2", "r", shape=(request.sound.speech_samples,))
    video = None
    if request.video is not None:
        video = VideoSource(request.video, folder, Path(request.encode["ffmpeg"]), on_frame=on_frame)
    return Scene(
        picture=pixels.reshape(picture.height, picture.width, 3),
        speech=shifted(speech, request.av_offset_ms),
        fps=Fraction(request.fps),
        frames=request.frames,
        stitch=request.stitch,
        resolution=request.resolution,
        motion=request.motion,
        options=request.options,
        video=video,
        max_batch=request.most,
        report_batch=report_batch,
    )


def set_parent_death_signal(parent: int) -> None:
    """Have the kernel kill this process when the daemon dies, so that no orphan keeps a GPU."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


def raise_oom_score() -> None:
    """Have the kernel kill this process rather than the daemon when memory runs out: the daemon can start another."""
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        score.write_text(str(max(int(score.read_text()), _OOM_SCORE_ADJ)))


def main(arguments: list[str] | None = None) -> NoReturn:
    parser = argparse.ArgumentParser(prog="python -m lipsyncd.renderers")
    parser.add_argument("--device", required=True)
    parser.add_argument("--line", type=int, required=True)
    parser.add_argument("--renderer", action="append", default=[])
    parser.add_argument("--preload", default="")
    given = parser.parse_args(arguments)
    set_parent_death_signal(os.getppid())
    raise_oom_score()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the daemon handles Ctrl-C in a terminal
    classes = {**NAMES, **dict(entry.split("=", 1) for entry in given.renderer)}
    daemon = DaemonConnection(given.line)
    daemon.start_reading()
    renderers = LoadedRenderers(classes, given.device)
    if given.preload:
        with contextlib.suppress(LipsyncdError):  # the first job fails with the same error
            renderers.get(given.preload)
    RenderLoop(daemon, renderers).run()


if __name__ == "__main__":
    main()
