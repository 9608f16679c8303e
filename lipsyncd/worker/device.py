"""What renders on one device or slot, and one request on it: the lock of its GPU, and how many frames fit at a time.

Leaves the choice of the request, and what a failure means for its job, to `attempt` and `split`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from pathlib import Path

from lipsyncd import __version__
from lipsyncd.errors import Blocked, DeviceMissing, OutOfMemory, RendererNotInstalled, ShareUnavailable
from lipsyncd.jobs.blocked import ReadState, packages
from lipsyncd.monitor import gpu
from lipsyncd.results.stores import Stores
from lipsyncd.weights import RENDERER, AutoPull
from lipsyncd.worker.batch_limits import BatchLimits
from lipsyncd.worker.child_process import Executor
from lipsyncd.worker.gpu_lock import WITHOUT_GPU, gpu_lock
from lipsyncd.worker.protocol import Batch, Next, Progress, Render, Result
from lipsyncd.worker.split.shared_video import SharedVideos

log = logging.getLogger(__name__)


@dataclass
class Device:
    """What renders on one device.

    weights       verified, or pulled, before each render that opens weights
    batch_limits  how many frames at a time have fitted into each device
    shared        the videos that are being drawn in parts by several of the daemon's slots
    build         of a slot of a cluster: what a frame depends on besides the request, of its machine
    """

    name: str
    executor: Executor
    ffmpeg: Path
    weights: AutoPull
    batch_limits: BatchLimits
    shared: SharedVideos = field(default_factory=SharedVideos)
    build: str = ""

    def place(self, renderer: str) -> str:
        return f"{renderer} on {self.name}"

    def obstacle(self, blocked: Blocked, renderer: str) -> tuple[str, ReadState]:
        """Where a blocked job stands, and a cheap look at what blocks it."""
        if isinstance(blocked, DeviceMissing):
            return self.place(renderer), gpu.sight
        if isinstance(blocked, RendererNotInstalled):
            return self.place(renderer), packages
        if isinstance(blocked, ShareUnavailable):
            return "the shared folder", str  # no cheap look: a dead file server would hold it up
        return f"weights of {renderer}", self._state_of_weights

    def fingerprint(self, renderer: str) -> str:
        """What all devices have to have in common that draw parts of one video: equal requests give equal frames.

        The devices of one machine have its programs and weights in common. Without NVIDIA's library nothing is known
        of a GPU but that it is none of the processor's cores.
        """
        if self.build:
            return self.build
        if renderer in WITHOUT_GPU:
            return "any"
        found = gpu.find(self.name)
        return self.name.partition(":")[0] if found is None else f"{found.name} {found.memory.total_gb:.1f}GB"

    def _state_of_weights(self) -> Hashable:
        return tuple(found.state for found in self.weights.store.status())

    def terms(self, renderer: str, max_vram_gb: float) -> str:
        """What decides how many frames at a time fit: the cap, the device, the program, the networks."""
        found = gpu.find(self.name)
        return " ".join(
            [
                f"cap={max_vram_gb:g}GB",
                f"device={self.name if found is None else f'{found.name} {found.memory.total_gb:.1f}GB'}",
                f"version={__version__}",
                f"weights={self.weights.store.fingerprint if renderer == RENDERER else '-'}",
            ]
        )


class OneRender:
    """One request on one device. `request` says how many frames at a time may be tried."""

    def __init__(self, device: Device, stores: Stores, request: Render) -> None:
        self._device, self._stores = device, stores
        self._terms = device.terms(request.renderer, stores.settings.now.render.max_vram_gb)
        most = device.batch_limits.most(device.name, request.renderer, self._terms)
        self.request = replace(request, most=most)
        self._at_a_time = 1  # frames

    def run(
        self,
        *,
        stop: Callable[[], bool],
        progress: Callable[[Progress], None],
        waits: Callable[[str], None],
        upcoming: Callable[[], Next | None] = lambda: None,
    ) -> Result:
        """Render. `waits` is called with a sentence about each holder of the GPU that is waited for.

        Raises `RenderCancelled` after a stop, and what a render may meet.
        """
        device, request = self._device, self.request
        try:
            with gpu_lock(device.name, request.renderer, stop=stop, waits_for=waits):
                return device.executor.render(
                    request, progress=progress, stop=stop, batch=self._on_batch, upcoming=upcoming
                )
        except OutOfMemory:
            if self._at_a_time > 1:  # the child had no chance to try fewer by itself
                self._lower(self._at_a_time, self._at_a_time // 2)
            device.executor.close()  # only the end of the process gives all memory back
            raise
        except Blocked:
            device.executor.close()  # a process that looked for a device or package once never finds a new one
            raise

    def _on_batch(self, message: Batch) -> None:
        self._at_a_time = message.size
        if message.too_many:
            self._lower(message.too_many, message.size)

    def _lower(self, too_many: int, most: int) -> None:
        self._device.batch_limits.lower(self._device.name, self.request.renderer, self._terms, most)
        note = f"{too_many} frames at a time did not fit into memory, {most} are tried"
        self._stores.ledger.note(self.request.job_id, note)
        log.warning("job %s: %s", self.request.job_id, note)
