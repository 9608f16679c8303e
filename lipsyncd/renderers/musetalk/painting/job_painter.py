"""The networks as one job uses them: fused where that was found to be right, and a VAE in float32 after an overflow.

Half precision ends at 65,504, and the VAE is the network that may exceed it. The copy in float32 belongs to the job:
the next one begins in half precision again, so that its pixels and its time do not depend on the jobs before it.

Owns the choice of a job's networks. Leaves noticing an overflow to the callers, the comparison to `fused.gate`, and the
computation to `networks` and `fused`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lipsyncd.errors import OutOfMemory
from lipsyncd.renderers.musetalk.gpu_memory import is_out_of_memory, release_memory
from lipsyncd.renderers.musetalk.painting.fused.gate import Gate
from lipsyncd.renderers.musetalk.painting.networks import Painted, Painter

PLAIN = "as published"


class JobPainter:
    """A painter for one job. Used by one thread at a time."""

    def __init__(
        self, painter: Painter, *, gate: Gate | None = None, report: Callable[[str], None] = lambda event: None
    ) -> None:
        """
        painter  the published networks, shared by all jobs; never changed
        gate     the fused ones, shared too; None: they are not to be used
        report   gets a sentence for the job's history when the networks or their precision change
        """
        self._painter, self._gate, self._report = painter, gate, report
        self.kernels = PLAIN  # for people: how the latest batch was computed

    @property
    def now(self) -> Painter:
        """The published networks, as this job uses them."""
        return self._painter

    def paint(self, latents: Tensor, tokens: Tensor) -> Painted:
        """Paint a batch, see `Painter.paint`."""
        gate, verdict = self._gate, None
        if gate is not None:
            verdict = gate.verdict
            if verdict is None:
                verdict = gate.judge(self._painter, latents, tokens)
                if verdict is not None and not verdict.passed:
                    self._report(f"the networks are computed {PLAIN}: the fused ones are not used, {verdict.fault}")
            if verdict is not None and verdict.passed:
                self.kernels = gate.fused.path
                return gate.fused.paint(latents, tokens)
        self.kernels = PLAIN if verdict is None else f"{PLAIN}, since of the fused ones {verdict.fault}"
        return self._painter.paint(latents, tokens)

    def forget(self) -> None:
        """Give up memory that a pass can do without, before it is tried again."""
        if self._gate is not None:
            self._gate.fused.forget()

    @property
    def has_full_vae(self) -> bool:
        return self._painter.vae_dtype == torch.float32

    @property
    def precision(self) -> str:
        """For people: "float16", or "float16, VAE float32"."""
        unet, vae = (str(dtype).removeprefix("torch.") for dtype in (self._painter.dtype, self._painter.vae_dtype))
        return unet if unet == vae else f"{unet}, VAE {vae}"

    def use_full_vae(self, why: str) -> None:
        """Compute with a VAE in float32 until the job ends. On a GPU its convolutions may be TF32, of the same range.

        why  what was not finite, for the report

        Raises `OutOfMemory`.
        """
        if self.has_full_vae:
            return
        self.forget()
        release_memory(self._painter.device)
        try:
            self._painter = self._painter.with_full_vae()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(f"{why} in half precision, and the VAE in float32 does not fit beside it") from None
        self._gate = None  # the fused decoder has the weights of the other VAE
        self._report(f"{why} in half precision: the VAE computes in float32 until the end of this job")
