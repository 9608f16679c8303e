"""Painting by replaying what the device did once: a CUDA graph for each shape of a batch.

A pass starts over a thousand kernels; a graph starts them all at once. It always reads and writes the same memory, so
each batch is copied into its buffers, and its results lie where the last ones lay. All of it, from the first recording
on, happens on one thread that lasts as long as the networks: libraries keep state for each thread.

Owns the buffers and the thread. Leaves the work itself, and how a device records it, to those who make this.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from lipsyncd.renderers.musetalk.gpu_memory import current_gpu
from lipsyncd.renderers.musetalk.painting.networks import Painted

Answer = TypeVar("Answer")
Work = Callable[[], Painted]
Record = Callable[[Work], tuple[Callable[[], None], Painted]]  # work to a replay of it, and where its results lie

WARM_UPS = 2  # passes before a recording: libraries allocate their workspaces in them, and Triton compiles
_MOST_SHAPES = 2  # a recording holds the memory of its pass


@dataclass(frozen=True)
class _Recording:
    latents: Tensor
    tokens: Tensor
    replay: Callable[[], None]
    painted: Painted


class Graphs:
    """Recordings of one painter. Used by one thread at a time."""

    def __init__(self, paint: Callable[[Tensor, Tensor], Painted], record: Record, device: torch.device) -> None:
        """
        paint   the work: (B, 8, h, w) latents and (B, n, 384) tokens on the device
        record  how the device records it
        """
        self._paint, self._record, self._device = paint, record, device
        self._recordings: dict[tuple[torch.Size, torch.Size, torch.dtype], _Recording] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")

    def paint(self, latents: Tensor, tokens: Tensor) -> Painted:
        """See `Painter.paint`. The next batch is written over the result."""
        return self._on_thread(lambda: self._replayed(latents, tokens))

    def forget(self) -> None:
        """Drop the recordings; their memory is unused then, and the next batch is recorded again."""
        self._on_thread(self._recordings.clear)

    def _on_thread(self, call: Callable[[], Answer]) -> Answer:
        def inside() -> Answer:
            with torch.inference_mode(), current_gpu(self._device):  # each thread has its own
                return call()

        return self._thread.submit(inside).result()

    def _replayed(self, latents: Tensor, tokens: Tensor) -> Painted:
        shape = (latents.shape, tokens.shape, latents.dtype)
        recording = self._recordings.pop(shape, None) or self._recorded(latents, tokens)
        self._recordings[shape] = recording  # the latest one is the last one
        recording.latents.copy_(latents)
        recording.tokens.copy_(tokens, non_blocking=True)
        recording.replay()
        return recording.painted

    def _recorded(self, latents: Tensor, tokens: Tensor) -> _Recording:
        while len(self._recordings) >= _MOST_SHAPES:
            del self._recordings[next(iter(self._recordings))]
        # Not like `latents`: those of a still are one picture, repeated without memory of their own.
        given = torch.empty(latents.shape, dtype=latents.dtype, device=self._device).copy_(latents)
        heard = torch.empty(tokens.shape, dtype=tokens.dtype, device=self._device).copy_(tokens)
        replay, painted = self._record(lambda: self._paint(given, heard))
        return _Recording(given, heard, replay, painted)


def cuda_record(device: torch.device) -> Record:
    """How a GPU records, by a CUDA graph. Source: "CUDA Graphs" in torch's notes on CUDA semantics."""

    def record(work: Work) -> tuple[Callable[[], None], Painted]:
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call, unused-ignore]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                work()
        torch.cuda.current_stream(device).wait_stream(side)
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        # Other threads (landmarks, sound, pinned memory) go on meanwhile: only what this one does is recorded.
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            painted = work()
        return graph.replay, painted

    return record
