"""Open the next job while the present one is rendered, and draw its first frames while that one is encoded and checked.

A hint of the daemon starts it, and only a request that is equal to the hint takes the result. Anything else drops it:
no job is rendered differently for it, only sooner.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping

from lipsyncd.renderers import Shot, Still
from lipsyncd.renderers.framing import RgbImage
from lipsyncd.worker.protocol import Next, Render

_MOST_FRAMES, _MOST_BYTES = 50, 64 << 20  # that are drawn before the job is requested


class Ahead:
    """The job of one hint, opened and begun in a thread of its own.

    ahead = Ahead(hint, open_shot, aside=True)
    ahead.draw()                        # once the frames of the present job are drawn
    shot = ahead.take(request) or open_shot()
    """

    def __init__(self, hint: Next, open_shot: Callable[[], Shot], *, aside: bool) -> None:
        """`aside`: the renderer can open this job while the frames of another one are drawn."""
        self.hint = hint
        self._open_shot, self._aside = open_shot, aside
        self._may_draw, self._ended = threading.Event(), threading.Event()
        self._shot: Shot | None = None
        self._frames: Iterator[RgbImage] = iter(())
        self._drawn: list[RgbImage] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="next-job", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            if not self._aside:
                self._may_draw.wait()
            if self._ended.is_set():
                return
            self._shot = self._open_shot()
            self._frames = iter(self._shot.frames())  # draws nothing yet
            self._may_draw.wait()
            held = 0
            while held < _MOST_BYTES and len(self._drawn) < _MOST_FRAMES and not self._ended.is_set():
                frame = next(self._frames, None)
                if frame is None:
                    break
                self._drawn.append(frame.copy())  # the renderer may reuse its array
                held += frame.nbytes
        except BaseException as error:  # the caller that requests the job opens it again, and reports the error
            self._error = error

    def draw(self) -> None:
        """The frames of the job before are drawn: begin with those of this one."""
        self._may_draw.set()

    def take(self, request: Render) -> Shot | None:
        """The opened shot, if it is that of the request; else None, and what was done is dropped."""
        self._end()
        if self._shot is None or self._error is not None or not self.hint.is_meant_by(request):
            self._close()
            return None
        return BegunShot(self._shot, self._drawn, self._frames)

    def drop(self) -> None:
        """The job is not requested now."""
        self._end()
        self._close()

    def _end(self) -> None:
        self._ended.set()
        self._may_draw.set()
        self._thread.join()

    def _close(self) -> None:
        if isinstance(self._frames, Generator):
            self._frames.close()
        self._shot, self._drawn = None, []


class BegunShot:
    """A shot whose first frames are drawn; see `lipsyncd.renderers.Shot`."""

    def __init__(self, shot: Shot, drawn: list[RgbImage], rest: Iterator[RgbImage]) -> None:
        self._shot, self._drawn, self._rest = shot, drawn, rest
        self.width, self.height = shot.width, shot.height
        self.still: Still | None = getattr(shot, "still", None)

    @property
    def notes(self) -> Mapping[str, object]:
        return self._shot.notes

    def frames(self) -> Iterator[RgbImage]:
        """See `Shot.frames`."""
        self._drawn.reverse()
        while self._drawn:
            yield self._drawn.pop()
        yield from self._rest
