"""The ranges of one video, taken by several workers, and the place where idle workers find such videos.

A range belongs to one attempt at one job. What a worker brings after the attempt has ended is dropped: the object that
it brings it to is no longer read, and its file lies under a name that no other attempt has.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import PurePath

from lipsyncd.errors import RenderTimeout
from lipsyncd.media.ffmpeg import keyframe_interval
from lipsyncd.worker.protocol import Progress, Render, Result

_TICK_S = 0.1
_HELPERS_END_S = 30.0  # a cancelled render ends within a second; a shared folder may hang


@dataclass(frozen=True)
class Range:
    """Frames `start` up to and not including `stop` of a video; `number` counts from 1."""

    number: int
    start: int
    stop: int


def ranges_of(frames: int, length: int, fps: Fraction) -> tuple[Range, ...]:
    """Ranges of about `length` frames, about equally long; each begins at a multiple of the key frames' distance."""
    interval = keyframe_interval(fps)
    stretches = -(-frames // interval)
    count = min(max(round(frames / length), 1), stretches)
    ends = [min(stretches * number // count * interval, frames) for number in range(count + 1)]
    return tuple(Range(number, *ends) for number, ends in enumerate(pairwise(ends), 1))


class SharedVideo:
    """The video of one attempt. Every method may be called in any thread.

    request  for the whole video
    ranges   of it
    needed   the fingerprint of every device that may draw some of it
    others   how many other slots were free when it was begun
    stop     True once the attempt has to end
    on_fraction     gets the finished part of the whole, 0 to 1, while ranges are drawn
    """

    def __init__(
        self,
        request: Render,
        ranges: tuple[Range, ...],
        needed: str,
        *,
        others: int,
        stop: Callable[[], bool],
        deadline_s: Callable[[], float],
        on_fraction: Callable[[float], None],
    ) -> None:
        """`deadline_s`: longest time for the whole, in seconds from the first child's first message."""
        self.request, self.ranges, self.needed, self.others = request, ranges, needed, others
        self.error: Exception | None = None
        self._stop, self._deadline_s, self._on_fraction = stop, deadline_s, on_fraction
        self._begun_s: float | None = None  # when the first child began
        self._changed = threading.Condition()
        self._waiting = deque(ranges)
        self._under_way: dict[int, str] = {}  # by number of the range, the device
        self._done: dict[int, int] = {}  # frames of each range
        self._results: dict[int, Result] = {}
        self._refused: set[str] = set()  # devices that cannot draw it now
        self._closed = False

    def request_for(self, part: Range) -> Render:
        """The request to draw one range, into a file of its own beside that of the whole."""
        name = PurePath(self.request.out_file)
        return replace(
            self.request, start=part.start, stop=part.stop, out_file=f"{name.stem}.{part.number}{name.suffix}"
        )

    def over(self) -> bool:
        """Has everything that is drawn of it to end?"""
        if self._closed or self.error is not None or self._stop():
            return True
        deadline_s = self._deadline_s()
        if self._begun_s is not None and time.monotonic() - self._begun_s > deadline_s:
            self.fail(RenderTimeout(f"job {self.request.job_id} was not rendered within {deadline_s:g} s"))
            return True
        return False

    # -- ranges --------------------------------------------------------------------------------------------------------

    def take(self, device: str) -> Range | None:
        """The next range for a device; None when there is none for it now."""
        with self._changed:
            if self._closed or self.error is not None or device in self._refused or not self._waiting:
                return None
            part = self._waiting.popleft()
            self._under_way[part.number] = device
            return part

    def wait(self) -> bool:
        """Wait a moment for news; False when all ranges are drawn."""
        with self._changed:
            if len(self._results) == len(self.ranges):
                return False
            if not self._waiting:
                self._changed.wait(_TICK_S)
            return True

    def give_back(self, part: Range, device: str, *, refused: bool) -> None:
        """A range was not drawn; `refused`: this device cannot draw any of it now."""
        with self._changed:
            self._under_way.pop(part.number, None)
            self._done.pop(part.number, None)
            self._waiting.appendleft(part)
            if refused:
                self._refused.add(device)
            self._changed.notify_all()

    def finish(self, part: Range, result: Result) -> None:
        """A range is drawn."""
        with self._changed:
            self._under_way.pop(part.number, None)
            self._results[part.number] = result
            self._changed.notify_all()
        self._count(part, part.stop - part.start)

    def fail(self, error: Exception, part: Range | None = None) -> None:
        """The attempt fails: the first error counts."""
        with self._changed:
            if part is not None:
                self._under_way.pop(part.number, None)
            self.error = self.error or error
            self._changed.notify_all()

    def progress(self, part: Range, message: Progress) -> None:
        """How much of a range is drawn."""
        self._begun_s = self._begun_s or time.monotonic()
        self._count(part, message.done)

    def _count(self, part: Range, done: int) -> None:
        with self._changed:
            self._done[part.number] = done
            total = sum(self._done.values())
        if not self._closed:
            self._on_fraction(total / self.request.frames)

    @property
    def has_frames(self) -> bool:
        """Is any frame drawn?"""
        return any(self._done.values())

    def results(self) -> list[Result]:
        """The answers for all ranges, in their order, once `wait` has returned False."""
        return [self._results[part.number] for part in self.ranges]

    def close(self) -> None:
        """End what is still drawn of it, and wait for its workers, since the attempt is over."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._under_way, _HELPERS_END_S)


class SharedVideos:
    """The slots of one daemon, and the videos of which an idle one may draw a part. Safe in several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slots: dict[str, tuple[Callable[[str], str], threading.Event]] = {}
        self._busy: set[str] = set()
        self._videos: list[SharedVideo] = []

    def enter(self, device: str, fingerprint: Callable[[str], str], wake: threading.Event) -> None:
        """A slot takes work from now on.

        fingerprint  of `Device`
        wake         set when there is something to draw
        """
        with self._lock:
            self._slots[device] = fingerprint, wake

    def leave(self, device: str) -> None:
        with self._lock:
            self._slots.pop(device, None)

    @contextmanager
    def busy(self, device: str) -> Iterator[None]:
        """While a slot has work."""
        with self._lock:
            self._busy.add(device)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(device)

    def free(self, besides: str, renderer: str, needed: str) -> int:
        """How many other slots with this fingerprint have no work."""
        with self._lock:
            there = [
                fingerprint
                for device, (fingerprint, _) in self._slots.items()
                if device != besides and device not in self._busy
            ]
        return sum(fingerprint(renderer) == needed for fingerprint in there)

    @contextmanager
    def offered(self, video: SharedVideo) -> Iterator[None]:
        """Let other slots draw parts of a video."""
        with self._lock:
            self._videos.append(video)
        try:
            self.wake()
            yield
        finally:
            with self._lock:
                self._videos.remove(video)

    def wake(self) -> None:
        """Let every slot without work look for something to draw."""
        with self._lock:
            waiting = [wake for _, wake in self._slots.values()]
        for wake in waiting:
            wake.set()

    def find(self, device: str, fingerprint: Callable[[str], str]) -> tuple[SharedVideo, Range] | None:
        """A range for a slot without work; None when there is none."""
        with self._lock:
            videos = list(self._videos)
        for video in videos:
            if video.needed == fingerprint(video.request.renderer) and not video.over():
                part = video.take(device)
                if part is not None:
                    return video, part
        return None
