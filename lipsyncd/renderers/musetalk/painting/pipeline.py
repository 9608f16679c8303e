"""Frames through the networks: batches of one size, one in flight while the one before is fetched.

    windows of the voice ──► UNet ──► VAE ──► bytes, cut and scaled on the device ──► pinned memory ──► whoever blends

A thread drives the device, so that blending and encoding go on meanwhile; a short queue holds it back, so that memory
does not grow with the length. A batch that does not fit is halved and repeated. Half precision that does not stay
finite is left for full precision, and the batch is repeated too.

Owns the order of work on the device. Leaves what the networks compute to `networks`.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from lipsyncd.errors import RenderError
from lipsyncd.renderers.framing import RgbImage
from lipsyncd.renderers.musetalk.gpu_memory import Batch, exhausted, give_back, on
from lipsyncd.renderers.musetalk.painting.blend import Paste
from lipsyncd.renderers.musetalk.painting.networks import Painter, to_bytes

Item = TypeVar("Item")

_STRETCH_BYTES = 64 << 20  # of floats that scaling may take at once
_AHEAD = 16  # finished frames that wait for whoever blends them


@dataclass(frozen=True)
class Wanted:
    """One frame to paint.

    latents  (1, 8, 32, 32) of its face; the same tensor for every frame of a still picture
    tokens   (n, 384) float32 on the CPU: its window of the voice
    paste    what is to be cut out for; None asks for the whole patch
    """

    latents: Tensor
    tokens: Tensor
    paste: Paste | None


@dataclass(frozen=True)
class _Flight:
    """A batch whose pictures are on their way to the CPU."""

    batch: Sequence[Wanted]
    dtype: torch.dtype
    patches: Sequence[Tensor]
    finite: Tensor
    landed: Callable[[], None]


class Pipeline:
    """One device, its networks and how much they may take at once. Used by one thread at a time."""

    def __init__(
        self,
        painter: Painter,
        batch: Batch,
        size: int | None = None,
        *,
        tell: Callable[[int, int], None] = lambda size, too_many: None,
    ) -> None:
        """
        size  the batch that a job asks for; None leaves it to the device
        tell  called before a size is tried for the first time, with the one that did not fit, or 0
        """
        self._painter, self._batch, self._asked, self._tell = painter, batch, size, tell
        self._told = 0

    def patches(self, wanted: Iterable[Wanted]) -> Iterator[RgbImage]:
        """What belongs into the area of each paste, in order: (h, w, 3) uint8 RGB; a whole patch is 256 x 256.

        Raises `OutOfMemory` when a single frame does not fit, `RenderError` when the answer is not finite.
        """
        waiting, flights = iter(wanted), deque[_Flight]()
        with torch.inference_mode(), on(self._painter.device):
            while batch := self._next(waiting):
                flights.extend(self._start(batch))
                while len(flights) > 1:
                    yield from self._land(flights.popleft())
            while flights:
                yield from self._land(flights.popleft())

    def _next(self, waiting: Iterator[Wanted]) -> list[Wanted]:
        size = self._batch.size(self._asked)
        return [one for _, one in zip(range(size), waiting, strict=False)]

    def _start(self, batch: Sequence[Wanted]) -> list[_Flight]:
        """Put a batch on its way, in as many pieces as it takes."""
        flights, first, too_many = [], 0, 0
        while first < len(batch):
            size = self._batch.size(self._asked)
            if size != self._told:
                self._told = size
                self._tell(size, too_many)
            piece = batch[first : first + size]
            flight = self._try(piece)
            if flight is None:
                give_back(self._painter.device)
                too_many = len(piece)
                self._batch.halve(too_many)
            else:
                flights.append(flight)
                first += len(piece)
        return flights

    def _try(self, batch: Sequence[Wanted]) -> _Flight | None:
        """The batch on its way, or None when it does not fit: then nothing of the attempt is held any more."""
        try:
            return self._send(batch)
        except (RuntimeError, MemoryError) as error:
            if not exhausted(error):
                raise
        return None

    def _send(self, batch: Sequence[Wanted]) -> _Flight:
        device, dtype = self._painter.device, self._painter.dtype
        # On a GPU every batch has the same shape: the tail is filled up with its last frame.
        filler = self._batch.size(self._asked) - len(batch) if device.type == "cuda" else 0
        full = [*batch, *(batch[-1] for _ in range(filler))]
        tokens = torch.stack([one.tokens for one in full])
        if device.type == "cuda":
            tokens = tokens.pin_memory().to(device, non_blocking=True)
        decoded = self._painter.decode(self._painter.predict(_joined(full), tokens))[: len(batch)]
        finite = torch.isfinite(decoded).all()
        pictures = to_bytes(decoded)
        return self._fetch(batch, dtype, _cut(pictures, [one.paste for one in batch]), finite)

    def _fetch(self, batch: Sequence[Wanted], dtype: torch.dtype, patches: Sequence[Tensor], finite: Tensor) -> _Flight:
        """Begin the copies to the CPU and do not wait for them."""
        if self._painter.device.type != "cuda":
            return _Flight(batch, dtype, patches, finite, lambda: None)
        there = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in (*patches, finite)]
        for target, source in zip(there, (*patches, finite), strict=True):
            target.copy_(source, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call, unused-ignore]
        done.record()
        return _Flight(batch, dtype, there[:-1], there[-1], done.synchronize)

    def _land(self, flight: _Flight) -> Iterator[RgbImage]:
        flight.landed()
        if bool(flight.finite):
            for patches in flight.patches:
                yield from patches.numpy()
            return
        if flight.dtype == torch.float32:
            raise RenderError(
                "the networks' answer is not finite",
                remedy="check the weights with `lipsyncd models verify`; if they are right, report it with the input",
            )
        self._painter.in_full()
        for again in self._start(flight.batch):
            yield from self._land(again)


def _joined(batch: Sequence[Wanted]) -> Tensor:
    """The latents of a batch, (B, 8, h, w); not copied where all of them are the same."""
    first = batch[0].latents
    if all(one.latents is first for one in batch):
        return first.expand(len(batch), -1, -1, -1)
    return torch.cat([one.latents for one in batch])


def _cut(pictures: Tensor, pastes: Sequence[Paste | None]) -> list[Tensor]:
    """What belongs into the area of each paste, frames of the same paste together: (n, h, w, 3) uint8."""
    patches, first = [], 0
    for _, group in groupby(pastes, key=id):
        paste, *more = group
        some = pictures[first : first + 1 + len(more)]
        first += len(some)
        patches.extend([_rows_last(some)] if paste is None else scaled(some, paste))
    return patches


def scaled(pictures: Tensor, paste: Paste) -> list[Tensor]:
    """Patches stretched over the face box and cut to the area of the paste, in stretches of a bounded size.

    pictures  (n, 3, 256, 256) uint8
    returns   (k, h, w, 3) uint8, as OpenCV's linear resize gives them but for single levels
    """
    face, inside = paste.face, (..., *paste.inside)
    at_once = max(_STRETCH_BYTES // (face.width * face.height * 12), 1)
    return [
        _rows_last(functional.interpolate(some.float(), (face.height, face.width), mode="bilinear")[inside].round())
        for some in torch.split(pictures, at_once)
    ]


def _rows_last(pictures: Tensor) -> Tensor:
    return pictures.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


# -- a thread ahead ----------------------------------------------------------------------------------------------------


class Ahead(Iterator[Item]):
    """An iterator that another thread runs ahead, by a few items. What that thread raises is raised here.

    `close` ends the thread; it waits for the item under way.
    """

    def __init__(self, items: Iterator[Item], most: int = _AHEAD) -> None:
        self._ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(most)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(items,), name="device", daemon=True)
        self._thread.start()

    def _run(self, items: Iterator[Item]) -> None:
        try:
            for item in items:
                if not self._put((item, None)):
                    return
            self._put((None, StopIteration()))
        except BaseException as error:  # handed over, whatever it is
            self._put((None, error))

    def _put(self, entry: tuple[Item | None, BaseException | None]) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(entry, timeout=0.05)
            except queue.Full:
                continue
            return True
        return False

    def __next__(self) -> Item:
        if self._closed.is_set():
            raise StopIteration
        item, error = self._ready.get()
        if error is not None:
            self.close()
            raise error
        return item  # type: ignore[return-value]  # None comes with an error only

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
