"""The frames of a job as NumPy arrays, in this process, while its child renders them.

The child hands raw frames on through a named pipe. The pipe holds a few, so nothing is rendered far ahead of its user.
The only module outside of `renderers` that imports numpy, and only when a program asks for frames: its user wants
arrays.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import threading
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipsyncd.jobs.manifest import Manifest
from lipsyncd.settings import Settings
from lipsyncd.standalone.session import Session
from lipsyncd.worker import protocol
from lipsyncd.worker.child_process import RenderCancelled

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Frame = NDArray[np.uint8]  # (height, width, 3) RGB

_PIPE = "frames"
_PIPE_BYTES = 1 << 20
_TICK_MS = 100
_NEVER_S = 1e9  # its user may take as long as they like between two frames


def frames_of(settings: Settings, manifest: Manifest, name: str) -> Generator[Frame]:
    """Each frame in order; closing the generator ends the child within a second."""
    import numpy as np

    render = replace(settings.render, job_timeout_s=_NEVER_S, stall_timeout_s=_NEVER_S)
    with (
        Session(replace(settings, render=render)) as session,
        session.prepared(manifest, name, report=lambda _: None) as ready,
    ):
        request = session.request(ready, _PIPE)
        request = replace(request, encode={**request.encode, "raw": True})
        with _Reader(ready.folder / _PIPE, lambda stop: session.run(request, lambda _: None, stop)) as reader:
            width, height = protocol.FRAMES_HEAD.unpack(reader.read(protocol.FRAMES_HEAD.size))
            for _ in range(request.frames):
                yield np.frombuffer(reader.read(height * width * 3), np.uint8).reshape(height, width, 3)
            reader.finish()


class _Reader:
    """The reading end of the pipe, and the thread in which the render runs meanwhile.

    render  called in that thread, with a function that returns True once the render shall end
    """

    def __init__(self, pipe: Path, render: Callable[[Callable[[], bool]], protocol.Result]) -> None:
        self._stop = threading.Event()
        self._error: BaseException | None = None
        os.mkfifo(pipe, 0o600)
        # Also for writing: so neither side waits for the other to open it, and it never looks closed.
        self._descriptor = os.open(pipe, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # the user has as many large pipes as they may
            fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._filled = select.poll()
        self._filled.register(self._descriptor, select.POLLIN)
        # Not waited for at the end of the interpreter: the kernel ends the child with this process.
        self._thread = threading.Thread(target=self._run, args=(render,), name="renders-frames", daemon=True)

    def _run(self, render: Callable[[Callable[[], bool]], protocol.Result]) -> None:
        try:
            render(self._stop.is_set)
        except BaseException as error:
            self._error = error

    def read(self, size: int) -> bytearray:
        """The next `size` bytes. Raises what has ended the render."""
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            if self._filled.poll(_TICK_MS):
                rest = rest[os.readv(self._descriptor, [rest]) :]
            elif not self._thread.is_alive():
                self.finish()
                raise EOFError("the render child has sent too few frames")
        return data

    def finish(self) -> None:
        """Wait for the end of the render. Raises what it has ended with."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def __enter__(self) -> _Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()
        os.close(self._descriptor)
        if isinstance(self._error, RenderCancelled):
            self._error = None
