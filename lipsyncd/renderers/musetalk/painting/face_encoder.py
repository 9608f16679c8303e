"""Encode faces for the networks, a few at a time; their latents are checked while the next ones are computed.

When the VAE overflows in half precision, the faces under way are encoded again with one in float32.

Owns the order of encoding. Leaves the computation to `latents`, and the VAE of a job to `job_painter`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from lipsyncd.errors import OutOfMemory, RenderError
from lipsyncd.renderers.musetalk.gpu_memory import current_gpu, is_out_of_memory, release_memory
from lipsyncd.renderers.musetalk.painting.job_painter import JobPainter
from lipsyncd.renderers.musetalk.painting.latents import encoded
from lipsyncd.renderers.musetalk.painting.networks import Painter
from lipsyncd.renderers.musetalk.turn import Turn


@dataclass(frozen=True)
class InFlight:
    """Faces whose latents are being computed.

    painter  whose VAE computes them
    latents  (1, 8, 32, 32) of each, on the device
    finite   () bool on the CPU; not before `wait` returns
    """

    pictures: Sequence[Tensor]
    painter: Painter
    latents: Sequence[Tensor]
    finite: Tensor
    wait: Callable[[], None]


class FaceEncoder:
    """The faces of one job. Used by one thread at a time, the one that paints."""

    def __init__(
        self, painter: JobPainter, *, at_once: Callable[[], int] = lambda: 1, turn: Turn | None = None
    ) -> None:
        """
        at_once  how many faces a GPU encodes at a time; a CPU gains nothing from more than one
        turn     of the device's networks; None: the caller has it
        """
        self._painter, self._at_once, self._turn = painter, at_once, turn
        self._most: int | None = None  # what fits, where more was tried

    @property
    def at_once(self) -> int:
        """How many faces the device encodes at a time."""
        if self._painter.now.device.type != "cuda":
            return 1
        wanted = max(self._at_once(), 1)
        return wanted if self._most is None else min(wanted, self._most)

    def encode(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """`start`, then `finish`."""
        return self.finish(self.start(pictures))

    def start(self, pictures: Sequence[Tensor]) -> list[InFlight]:
        """Start to encode faces, in as many parts as memory requires.

        pictures  (2, 3, 256, 256) float32 on the CPU for each face, see `masked_and_whole`

        Raises `OutOfMemory` when a single face does not fit.
        """
        in_flight, first = [], 0
        while first < len(pictures):
            size = self.at_once
            piece = pictures[first : first + size]
            try:
                with self._turn or nullcontext():
                    in_flight.append(self._run(piece, size))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            else:
                first += len(piece)
                continue
            self._make_room(size)
        return in_flight

    def finish(self, in_flight: Sequence[InFlight]) -> list[Tensor]:
        """The latents (1, 8, 32, 32) of each face. Raises `OutOfMemory`, and `RenderError` when they are not finite."""
        return [latents for part in in_flight for latents in self._finished(part)]

    def _finished(self, part: InFlight) -> Sequence[Tensor]:
        part.wait()
        current = part.painter is self._painter.now
        if current and bool(part.finite):
            return part.latents
        if current:
            if self._painter.has_full_vae:
                raise RenderError(
                    "the latents of the face are not finite", remedy="check the weights with `lipsyncd models verify`"
                )
            self._painter.use_full_vae("the latents of the face were not finite")
        return self.encode(part.pictures)

    def _run(self, pictures: Sequence[Tensor], size: int) -> InFlight:
        painter = self._painter.now
        device, gpu = painter.device, painter.device.type == "cuda"
        with torch.inference_mode(), current_gpu(device):
            # On a GPU every batch has the same shape: the tail is filled up with its last face.
            both = torch.cat([*pictures, *([pictures[-1]] * (size - len(pictures)))])
            if gpu:
                both = both.to(painter.vae_dtype).pin_memory().to(device, non_blocking=True)
            latents = encoded(painter, both)[: len(pictures)]
            finite = torch.isfinite(latents).all()
            if not gpu:
                return InFlight(pictures, painter, torch.split(latents, 1), finite, lambda: None)
            here = torch.empty((), dtype=torch.bool, pin_memory=True)
            here.copy_(finite, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call, unused-ignore]
            done.record()
            return InFlight(pictures, painter, torch.split(latents, 1), here, done.synchronize)

    def _make_room(self, too_many: int) -> None:
        """Give up memory and half of the size, which did not fit."""
        self._painter.forget()
        release_memory(self._painter.now.device)
        if too_many <= 1:
            raise OutOfMemory("the picture of one face does not fit into the memory that the render may use")
        self._most = too_many // 2
