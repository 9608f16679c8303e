"""UNet and decoder in their fused form, as one painter.

Owns which parts are fused on which device. Leaves the forward passes to `unet` and `decoder`, recordings to `graphs`.
"""

from __future__ import annotations

import copy
from functools import cached_property

import torch
from torch import Tensor

from lipsyncd.renderers.musetalk.painting.fused.decoder import FusedDecoder
from lipsyncd.renderers.musetalk.painting.fused.graphs import Graphs, Record, cuda_record
from lipsyncd.renderers.musetalk.painting.fused.group_norm import no_kernels
from lipsyncd.renderers.musetalk.painting.fused.layers import NotFusable
from lipsyncd.renderers.musetalk.painting.fused.unet import FusedUNet
from lipsyncd.renderers.musetalk.painting.networks import Painted, Painter, finished, positional_encoding


class FusedPainter:
    """Paints as `Painter.paint` does, with the weights of the published networks. Used by one thread at a time."""

    def __init__(self, plain: Painter, unet: FusedUNet | None, decoder: FusedDecoder, record: Record | None) -> None:
        """
        plain    the published networks
        unet     None: that of `plain` paints, since on a CPU a fused one is no faster
        decoder  of the type of its weights
        record   how the device records a pass; None: each pass is computed anew
        """
        self.plain, self.unet, self.decoder = plain, unet, decoder
        self._graphs = Graphs(self.compute, record, plain.device) if record else None

    @classmethod
    def of(cls, plain: Painter, *, decoder_type: torch.dtype | None = None) -> FusedPainter:
        """The fused form of a painter.

        decoder_type  bfloat16: the decoder computes in it, with a copy of its weights; None: in the type of the VAE

        Raises `NotFusable` when the networks are built differently from what is known here, and on a GPU when Triton
        cannot run: without its kernels the other steps cost more than they bring.
        """
        vae, gpu = plain.vae, plain.device.type == "cuda"
        if gpu and (fault := no_kernels()):
            raise NotFusable(fault)
        with torch.inference_mode(False):
            if decoder_type not in (None, plain.vae_dtype):
                vae = copy.deepcopy(vae).to(decoder_type)
            unet = FusedUNet(plain.unet) if gpu else None
            return cls(plain, unet, FusedDecoder(vae), cuda_record(plain.device) if gpu else None)

    @property
    def lower_precision(self) -> bool:
        """Does the decoder compute in less than the VAE's own type?"""
        return self.decoder.dtype != self.plain.vae_dtype

    @cached_property
    def path(self) -> str:
        """What runs, for people and for comparisons: "fused decoder, channels last, bfloat16"."""
        parts = ["fused decoder" if self.unet is None else "fused UNet and decoder", "channels last"]
        parts += ["Triton"] if self.plain.device.type == "cuda" else []
        parts += ["CUDA graph"] if self._graphs else []
        return ", ".join((*parts, str(self.decoder.dtype).removeprefix("torch.")))

    def paint(self, latents: Tensor, tokens: Tensor) -> Painted:
        """See `Painter.paint`."""
        paint = self._graphs.paint if self._graphs else self.compute
        return paint(latents, tokens)

    def forget(self) -> None:
        """Drop the recordings and so the memory that they hold."""
        if self._graphs:
            self._graphs.forget()

    def compute(self, latents: Tensor, tokens: Tensor) -> Painted:
        """`paint`, without recordings."""
        painted = self.predict(latents, tokens)
        return finished(painted, self.decode(painted))

    def decode(self, latents: Tensor) -> Tensor:
        """See `Painter.decode`; of the decoder's type."""
        return self.decoder(latents.to(self.decoder.dtype))

    def predict(self, latents: Tensor, tokens: Tensor) -> Tensor:
        """See `Painter.predict`."""
        if self.unet is None:
            return self.plain.predict(latents, tokens)
        device, dtype = self.plain.device, self.plain.dtype
        audio = tokens.to(device) + positional_encoding(tokens.shape[1], tokens.shape[2], device)
        return self.unet(latents.to(device, dtype), audio.to(dtype))
