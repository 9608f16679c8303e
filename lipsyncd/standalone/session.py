"""Make videos one after another without a daemon, with its own steps: prepare, render in the child, check.

Everything happens in a scratch folder of this user, which goes with the session, however that ends. The render child
keeps its renderer for the next video and ends with the session; the kernel ends it, too, when this process dies.

Owns the scratch folder and the child. Leaves the place of a finished video to `target`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from lipsyncd.errors import (
    Blocked,
    DeviceMissing,
    DiskLow,
    EncodeFailed,
    FetchFailed,
    JailFailed,
    LipsyncdError,
    NotAllowed,
    OutOfMemory,
    RenderCrashed,
    RendererNotInstalled,
    RenderStalled,
    WeightsMissing,
    from_reason,
)
from lipsyncd.inbox.submit import check_file
from lipsyncd.jobs.job import AUDIO, Identity, JobSpec, SourceFile
from lipsyncd.jobs.manifest import Manifest
from lipsyncd.jobs.prepared import Output, Prepared
from lipsyncd.media import ffmpeg
from lipsyncd.prepare.inputs import decode_inputs, require_face, speak_text
from lipsyncd.results.recipe import recipe_of
from lipsyncd.results.video_file import Video
from lipsyncd.settings import CurrentSettings, Settings
from lipsyncd.standalone.order import PREVIEW, local_files, require_renderer, spec_of, weights_folder
from lipsyncd.standalone.target import check_target, deliver
from lipsyncd.storage.disk_space import says_full
from lipsyncd.storage.files import copy_hashed, open_regular, remove_tree
from lipsyncd.worker import protocol
from lipsyncd.worker.child_process import LocalChild
from lipsyncd.worker.encoder_process import require_encoder
from lipsyncd.worker.gpu_lock import WAITING, gpu_lock
from lipsyncd.worker.local_child import local_child
from lipsyncd.worker.render_request import checked_output, render_request

PREPARING, CHECKING = "preparing", "checking"
_RENDERING = "rendering"
_AGAIN = "try again; if it happens again, report it with these words"
# What helps where no daemon runs; the errors' own remedies speak of its log and of `lipsyncd retry`.
_REMEDIES: dict[type[LipsyncdError], str] = {
    RenderCrashed: _AGAIN,
    RenderStalled: _AGAIN,
    JailFailed: _AGAIN,
    EncodeFailed: EncodeFailed.default_remedy,
    OutOfMemory: "end other programs, or choose a smaller resolution, and try again",
    FetchFailed: "check that this machine can reach the address, and try again",
    RendererNotInstalled: f"install it, or {PREVIEW}",
    WeightsMissing: f"run `lipsyncd models pull`, or {PREVIEW}",
    DeviceMissing: f"{DeviceMissing.default_remedy}, or {PREVIEW}",
}


@dataclass(frozen=True)
class Progress:
    """How far one video is.

    stage  preparing, waiting for the GPU, loading, analysing, rendering, encoding, checking
    done   frames, of `total`
    eta_s  seconds until the last frame at the speed so far; None while that is not known
    note   what it waits for; else ""
    """

    stage: str
    done: int
    total: int
    eta_s: float | None = None
    note: str = ""

    @property
    def fraction(self) -> float:
        """0 to 1."""
        return min(self.done / self.total, 1.0) if self.total else 0.0


Report = Callable[[Progress], object]


@dataclass(frozen=True)
class Ready:
    """A job whose inputs are decoded into `folder`."""

    spec: JobSpec
    folder: Path
    prepared: Prepared


class Session:
    """Used by one thread, in a `with` block. Raises `ConfigError` when there is no ffmpeg."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._current = CurrentSettings(settings)
        self._ffmpeg = ffmpeg.find(settings.render.ffmpeg)
        require_encoder(self._ffmpeg, settings.output.encoder)
        self._device = settings.render.devices[0]
        self._child: LocalChild | None = None
        # It goes at the end of the interpreter, too, if a program forgets the session.
        self._scratch = tempfile.TemporaryDirectory(prefix="lipsyncd-", ignore_cleanup_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child and remove the scratch folder. Harmless when called twice."""
        child, self._child = self._child, None
        try:
            if child is not None:
                child.close()
        finally:
            self._scratch.cleanup()

    # -- one video -----------------------------------------------------------------------------------------------------

    def video(self, manifest: Manifest, name: str, target: Path, *, force: bool = False, report: Report) -> Video:
        """Make the video of a manifest at `target`; it appears there whole or not at all.

        manifest  `image` and `audio` are paths of this machine, or addresses
        name      for messages

        Raises what is wrong with the inputs, the render or the target. Then the target is as it was before.
        """
        with self.prepared(manifest, name, target, force=force, report=report) as ready:
            with _explained():
                output, made = self._render(ready, report)
            with _explained(f"free space on the disk of {target.parent.absolute()}"):
                deliver(made, target, force=force)
        return Video.read(target, renderer=ready.spec.renderer, render_s=output.render_ms / 1000, notes=output.notes)

    def accepted(self, manifest: Manifest, name: str) -> JobSpec:
        """The job of a manifest, once it is known that its renderer can work here. Raises as `require_renderer`."""
        spec = spec_of(manifest, name, self.settings)
        with _explained():
            require_renderer(spec, self.settings)
        return spec

    @contextlib.contextmanager
    def prepared(
        self, manifest: Manifest, name: str, target: Path | None = None, *, force: bool = False, report: Report
    ) -> Iterator[Ready]:
        """The job of a manifest with its inputs decoded, in a folder that goes at the end of the block.

        What can be refused is refused first: the target, the renderer, the files by their heads.
        """
        spec = self.accepted(manifest, name)
        files = local_files(manifest, spec)
        if target is not None:
            check_target(target, files.values(), force=force)
        folder = Path(self._scratch.name, spec.id)
        try:
            with _explained():
                for role, path in files.items():
                    check_file(path, role, self.settings.intake)
                report(Progress(PREPARING, 0, 0))
                folder.mkdir()
                spec = replace(spec, sources=tuple(_copied(path, role, folder) for role, path in files.items()))
                self._bring_the_rest(spec, folder)
                prepared = decode_inputs(spec, folder, limits=self.settings.intake, ffmpeg=self._ffmpeg)
                require_face(prepared, spec)
            yield Ready(spec, folder, prepared)
        finally:
            remove_tree(folder)

    def _bring_the_rest(self, spec: JobSpec, folder: Path) -> None:
        """Fetch the addresses that a job names, and speak its text."""
        if spec.image_url is not None or spec.audio_url is not None:
            from lipsyncd.prepare.fetcher import Fetcher  # loads aiohttp, for half a second

            fetched = threading.Event()
            fetcher = Fetcher(self._current, fetched.set)
            try:
                while fetcher.begin(spec, folder, ""):
                    fetched.wait()
                    fetched.clear()
            finally:
                fetcher.close()
        if spec.text is not None:
            speak_text(spec, folder / AUDIO, self.settings.speech)

    def request(self, ready: Ready, file: str) -> protocol.Render:
        """What the child is asked for: the video, as `file` in the job's folder."""
        target = ready.folder / file
        return render_request(ready.spec, ready.prepared, target, output=self.settings.output, ffmpeg=self._ffmpeg)

    def _render(self, ready: Ready, report: Report) -> tuple[Output, Path]:
        """The facts and the place of a job's checked video."""
        request = self.request(ready, "out.mp4")
        made = ready.folder / request.out_file
        result = self.run(request, report)
        report(Progress(CHECKING, request.frames, request.frames))
        recipe = recipe_of(self.settings, ready.prepared.voice)
        return checked_output(made, ready.spec, ready.prepared, request, result, recipe=recipe), made

    def run(
        self, request: protocol.Render, report: Report, stop: Callable[[], bool] = lambda: False
    ) -> protocol.Result:
        """Have the child do one request, when the GPU is free. Raises as `LocalChild.render` does."""
        if self._child is None:
            self._child = local_child(self._current, self._device, weights_folder(request.renderer, self.settings))
        heard = _Heard(report, request.frames)
        try:
            with gpu_lock(self._device, request.renderer, stop=stop, waits_for=heard.waits_for):
                return self._child.render(request, progress=heard.message, stop=stop)
        except (Blocked, OutOfMemory):
            self._child.close()  # what it looked for once it never finds; only its end gives all memory back
            raise


class _Heard:
    """Turns what is heard of a render into `Progress`, with the time that is left by the speed of the frames so far."""

    def __init__(self, report: Report, frames: int) -> None:
        self._report = report
        self._frames = frames
        self._first: tuple[float, int] | None = None

    def waits_for(self, why: str) -> None:
        self._report(Progress(WAITING, 0, self._frames, note=why))

    def message(self, message: protocol.Progress) -> None:
        now_s, left_s = time.monotonic(), None
        if message.stage == _RENDERING:
            if self._first is None:
                self._first = (now_s, message.done)
            since_s, frames = now_s - self._first[0], message.done - self._first[1]
            if frames > 0:
                left_s = (message.total - message.done) * since_s / frames
        self._report(Progress(message.stage, message.done, message.total, left_s))


@contextlib.contextmanager
def _explained(room: str = "") -> Iterator[None]:
    """Give an error the remedy that helps without a daemon, and a full disk its own error.

    room  how to make room where it is written; "" for the scratch folder
    """
    room = room or f"free space in {tempfile.gettempdir()}, or set TMPDIR to a folder on another disk"
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskLow(f"no room on the disk: {error.strerror}", remedy=room) from error
        kind = NotAllowed if isinstance(error, PermissionError) else LipsyncdError
        raise kind(f"{error.filename or 'a file'}: {error.strerror}", remedy="check the folder and its disk") from error
    except LipsyncdError as error:
        if says_full(error):
            raise DiskLow(f"no room on the disk: {error.message}", remedy=room) from error
        remedy = _REMEDIES.get(type(error))
        if remedy is None or error.remedy != error.default_remedy:
            raise
        raise from_reason({**error.reason(), "remedy": remedy}) from error


def _copied(path: Path, role: str, folder: Path) -> SourceFile:
    """A user's file, copied into the job's folder: it may change or go while we work."""
    descriptor = open_regular(path)
    try:
        _, sha256 = copy_hashed(descriptor, folder / role)
        return SourceFile(role, path.name, Identity.of(os.fstat(descriptor)), sha256)
    finally:
        os.close(descriptor)
