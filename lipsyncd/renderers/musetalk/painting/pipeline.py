"""Run frames through the networks in batches: one batch is computed while the one before is copied to the CPU.

    audio features ──► UNet ──► VAE ──► uint8, scaled and cropped on the device ──► pinned memory ──► blending

A `Prefetcher` runs this in a thread of its own, so that blending and encoding go on meanwhile; its short queue keeps
memory bounded. A batch that does not fit into memory is halved and repeated. When the VAE overflows in half precision,
the batch is repeated with one in float32.

Owns the order of work on the device. Leaves the computation to `networks`, and the VAE of a job to `job_painter`.
"""

from __future__ import annotations

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
from lipsyncd.renderers.musetalk.gpu_memory import BatchSize, current_gpu, is_out_of_memory, release_memory
from lipsyncd.renderers.musetalk.painting.blend import PasteBack
from lipsyncd.renderers.musetalk.painting.job_painter import JobPainter
from lipsyncd.renderers.musetalk.turn import Turn

Item = TypeVar("Item")

_SCALING_BYTES = 64 << 20  # of floats that scaling may use at once


@dataclass(frozen=True)
class FrameInput:
    """The input of the networks for one frame.

    latents  (1, 8, 32, 32) of its face; the same tensor for every frame of a still picture
    tokens   (n, 384) float32 on the CPU: its window of audio features
    paste    the area to scale and crop the patch for; None requests the whole patch
    """

    latents: Tensor
    tokens: Tensor
    paste: PasteBack | None


@dataclass(frozen=True)
class _InFlight:
    """A batch whose patches are being copied to the CPU; `wait` returns when they have arrived.

    full_vae  it was decoded in float32
    finite    (2,) bool: the output of the UNet, and that of the VAE
    """

    batch: Sequence[FrameInput]
    full_vae: bool
    patches: Sequence[Tensor]
    finite: Tensor
    wait: Callable[[], None]


class Pipeline:
    """The frames of one job: its networks and their batch size. Used by one thread at a time."""

    def __init__(
        self,
        painter: JobPainter,
        batch: BatchSize,
        size: int | None = None,
        *,
        most: int | None = None,
        turn: Turn | None = None,
        report: Callable[[int, int], None] = lambda size, too_many: None,
    ) -> None:
        """
        most    the largest batch size that the job may try, 0 for any; None: what `batch` found until now holds
        turn    of the device's networks, which another thread may use to open the next job
        size    the batch size that a job requests; with None the device determines it
        report  called before a size is tried for the first time, with it and the size that did not fit, or 0
        """
        self._painter, self._batch, self._requested, self._report = painter, batch, size, report
        self._most, self._turn = most, turn or Turn()
        self._device = painter.now.device
        self._reported = 0

    def begin(self) -> int:
        """Begin the job, unless it has begun. Returns how many frames are painted at a time."""
        if self._most is not None:  # not before: the job before may still be painting
            self._batch.start_job(self._most)
            self._most = None
        return self.size

    @property
    def size(self) -> int:
        """How many frames it paints at a time at present."""
        return self._batch.size(self._requested)

    def patches(self, inputs: Iterable[FrameInput]) -> Iterator[RgbImage]:
        """The patch for the area of each paste, in order: (h, w, 3) uint8 RGB; a whole patch is 256 x 256.

        Raises `OutOfMemory` when a single frame does not fit, `RenderError` when the output is not finite.
        """
        self.begin()
        waiting, in_flight = iter(inputs), deque[_InFlight]()
        with torch.inference_mode(), current_gpu(self._device):
            while batch := self._next(waiting):
                in_flight.extend(self._submit(batch))
                while len(in_flight) > 1:
                    yield from self._collect(in_flight.popleft())
            while in_flight:
                yield from self._collect(in_flight.popleft())

    def _next(self, waiting: Iterator[FrameInput]) -> list[FrameInput]:
        size = self.size
        return [one for _, one in zip(range(size), waiting, strict=False)]

    def _submit(self, batch: Sequence[FrameInput]) -> list[_InFlight]:
        """Start a batch, in as many parts as memory requires."""
        in_flight, first, too_many = [], 0, 0
        while first < len(batch):
            size = self.size
            if size != self._reported:
                self._reported = size
                self._report(size, too_many)
            piece = batch[first : first + size]
            batch_in_flight = self._try_run(piece)
            if batch_in_flight is None:
                self._painter.forget()
                release_memory(self._device)
                too_many = len(piece)
                self._batch.halve(too_many)
            else:
                in_flight.append(batch_in_flight)
                first += len(piece)
        return in_flight

    def _try_run(self, batch: Sequence[FrameInput]) -> _InFlight | None:
        """Start a batch. None when it does not fit; then the memory of the attempt is free again."""
        try:
            with self._turn:
                return self._run(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None

    def _run(self, batch: Sequence[FrameInput]) -> _InFlight:
        device = self._device
        # On a GPU every batch has the same shape: the tail is filled up with its last frame.
        filler = self.size - len(batch) if device.type == "cuda" else 0
        full = [*batch, *(batch[-1] for _ in range(filler))]
        tokens = torch.stack([one.tokens for one in full])
        if device.type == "cuda":
            tokens = tokens.pin_memory().to(device, non_blocking=True)
        # The filled up frames repeat the last one, so they are finite where it is.
        painted = self._painter.paint(_latents_of_batch(full), tokens)
        patches = _crops(painted.pixels[: len(batch)], [one.paste for one in batch])
        return self._copy_to_cpu(batch, patches, painted.finite)

    def _copy_to_cpu(self, batch: Sequence[FrameInput], patches: Sequence[Tensor], finite: Tensor) -> _InFlight:
        """Start the copies to the CPU without waiting for them."""
        full_vae = self._painter.has_full_vae
        if self._device.type != "cuda":
            # The next batch may be written over this one; on a GPU it waits for the copies below.
            return _InFlight(batch, full_vae, [some.clone() for some in patches], finite.clone(), lambda: None)
        there = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in (*patches, finite)]
        for target, source in zip(there, (*patches, finite), strict=True):
            target.copy_(source, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call, unused-ignore]
        done.record()
        return _InFlight(batch, full_vae, there[:-1], there[-1], done.synchronize)

    def _collect(self, batch_in_flight: _InFlight) -> Iterator[RgbImage]:
        batch_in_flight.wait()
        painted, decoded = batch_in_flight.finite.tolist()
        if painted and decoded:
            for patches in batch_in_flight.patches:
                yield from patches.numpy()
            return
        if not painted or batch_in_flight.full_vae:
            raise RenderError(
                f"the output of the {'VAE' if painted else 'UNet'} is not finite",
                remedy="check the weights with `lipsyncd models verify`; if they are correct, report it with the input",
            )
        self._painter.use_full_vae("decoded frames were not finite")
        for again in self._submit(batch_in_flight.batch):
            yield from self._collect(again)


def _latents_of_batch(batch: Sequence[FrameInput]) -> Tensor:
    """The latents of a batch, (B, 8, h, w); not copied where all of them are the same."""
    first = batch[0].latents
    if all(one.latents is first for one in batch):
        return first.expand(len(batch), -1, -1, -1)
    return torch.cat([one.latents for one in batch])


def _crops(pictures: Tensor, pastes: Sequence[PasteBack | None]) -> list[Tensor]:
    """The patches for the area of each paste, frames of the same paste together: (n, h, w, 3) uint8."""
    patches, first = [], 0
    for _, group in groupby(pastes, key=id):
        paste, *more = group
        some = pictures[first : first + 1 + len(more)]
        first += len(some)
        patches.extend([_rows_last(some)] if paste is None else scaled(some, paste))
    return patches


def scaled(pictures: Tensor, paste: PasteBack) -> list[Tensor]:
    """Patches scaled to the face box and cropped to the area of the paste, in parts of a bounded size.

    pictures  (n, 3, 256, 256) uint8
    returns   (k, h, w, 3) uint8, like OpenCV's linear resize except for single levels
    """
    face, inside = paste.face, (..., *paste.area_in_face)
    at_once = max(_SCALING_BYTES // (face.width * face.height * 12), 1)
    return [
        _rows_last(functional.interpolate(some.float(), (face.height, face.width), mode="bilinear")[inside].round())
        for some in torch.split(pictures, at_once)
    ]


def _rows_last(pictures: Tensor) -> Tensor:
    return pictures.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
