"""May the fused networks be used here? They are compared with the published ones once for each set of weights.

The first batch of a first job is painted three times: by the fused networks, by the published ones, and, for its first
and its last frame, by the published ones in float32. The fused ones pass with all of their parts or with none. What was
found is kept in a file, so that later jobs on this installation take the same path without a comparison.

Owns the comparison, its limits and the file. Leaves what follows from it to `job_painter`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from lipsyncd.renderers.musetalk.arithmetic import true_float32
from lipsyncd.renderers.musetalk.gpu_memory import is_out_of_memory
from lipsyncd.renderers.musetalk.painting.fused.painter import FusedPainter
from lipsyncd.renderers.musetalk.painting.networks import Painted, Painter

log = logging.getLogger(__name__)

MOST_LATENTS = 0.01  # mean difference of the UNet's latents, whose deviation is about 1
LEAST_PSNR_DB = 40.0  # of the pictures, 8 bits
MOST_LEVELS = 1  # how much further a pixel may be from float32 than it is with the published networks
_EQUAL_DB = 99.0  # stands for equal pictures


@dataclass(frozen=True)
class Comparison:
    """Distances of the fused networks from the published ones in float32, over the frames that were compared.

    latents  mean difference of the UNet's latents
    psnr_db  of the pictures
    levels   the largest difference of a pixel, less that of the published networks in the same precision
    """

    latents: float
    psnr_db: float
    levels: int

    def fault(self, *, lower_precision: bool) -> str:
        """What is out of its limit; "" if nothing is. A lower precision that was asked for may cost single levels."""
        if not self.latents <= MOST_LATENTS:
            return f"latents differ by {self.latents:.2g} on average, more than {MOST_LATENTS:g}"
        if not self.psnr_db >= LEAST_PSNR_DB:
            return f"pictures differ by {self.psnr_db:.1f} dB PSNR, less than {LEAST_PSNR_DB:g}"
        if self.levels > MOST_LEVELS and not lower_precision:
            return f"a pixel differs by {self.levels} levels, more than {MOST_LEVELS}"
        return ""


@dataclass(frozen=True)
class Verdict:
    """The result of a comparison: `fault` is "" when the fused networks may be used."""

    fault: str

    @property
    def passed(self) -> bool:
        return not self.fault


class Gate:
    """The fused networks of a device, and whether they may be used. Used by one thread at a time."""

    def __init__(self, fused: FusedPainter, facts: Mapping[str, str], folder: Path | None = None) -> None:
        """
        facts   what the verdict depends on: weights, versions, device
        folder  where verdicts are kept; with None this process alone remembers
        """
        self.fused = fused
        self._facts = {**facts, "path": fused.path}
        key = hashlib.sha256(json.dumps(self._facts, sort_keys=True).encode()).hexdigest()[:16]
        self._file = folder / f"{key}.json" if folder else None
        self.verdict = self._read()

    def judge(self, plain: Painter, latents: Tensor, tokens: Tensor) -> Verdict | None:
        """Compare on a batch and keep the verdict. None if this batch shows nothing, since the VAE overflows in it."""
        try:
            compared = _compare(plain, self.fused, latents, tokens)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                self.verdict = Verdict("there is no memory to compare them")  # so the next process tries again
            else:
                log.warning("the fused networks fail on %s", plain.device, exc_info=True)
                self._keep(Verdict(f"they fail: {str(error).splitlines()[0] if str(error) else type(error).__name__}"))
            return self.verdict
        if compared is None:
            return None
        self._keep(Verdict(compared.fault(lower_precision=self.fused.lower_precision)), compared)
        return self.verdict

    def _read(self) -> Verdict | None:
        if self._file is None:
            return None
        try:
            kept = json.loads(self._file.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        fault = kept.get("fault") if isinstance(kept, dict) and kept.get("of") == self._facts else None
        return Verdict(fault) if isinstance(fault, str) else None

    def _keep(self, verdict: Verdict, compared: Comparison | None = None) -> None:
        self.verdict = verdict
        if self._file is None:
            return
        entry = {"fault": verdict.fault, **(asdict(compared) if compared else {}), "of": self._facts}
        unfinished = self._file.with_suffix(f".{os.getpid()}.new")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(json.dumps(entry, indent=1) + "\n", "utf-8")
            unfinished.replace(self._file)
        except OSError as error:
            log.info("the comparison of the fused networks is not kept: %s", error)
            with suppress(OSError):
                unfinished.unlink()


def weights_identity(*files: Path) -> str:
    """A text that changes with the files' contents, without reading them whole: sizes, times and samples."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            status = os.fstat(opened.fileno())
            digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}".encode())
            for part in range(16):
                opened.seek(part * status.st_size // 16)
                digest.update(opened.read(1 << 16))
    return digest.hexdigest()[:16]


def _compare(plain: Painter, fused: FusedPainter, latents: Tensor, tokens: Tensor) -> Comparison | None:
    """None when the published networks give no finite pictures themselves."""
    ends = [0] if len(latents) == 1 else [0, len(latents) - 1]
    published = plain.paint(latents, tokens)
    if not bool(published.finite.all()):
        return None
    wanted = _cut(published, ends)
    ours = _cut(fused.paint(latents, tokens), ends)
    exact = wanted if plain.dtype == plain.vae_dtype == torch.float32 else _in_float32(plain, latents, tokens, ends)
    off = (ours.pixels.float() - exact.pixels.float()).abs()
    error = float(off.square().mean())
    return Comparison(
        latents=float((ours.latents.float() - exact.latents.float()).abs().mean()),
        psnr_db=10 * math.log10(255**2 / error) if error > 0 else _EQUAL_DB if error == 0 else math.nan,
        levels=int(off.max()) - int((wanted.pixels.float() - exact.pixels.float()).abs().max()),
    )


def _cut(painted: Painted, frames: list[int]) -> Painted:
    """Those frames, as a copy, since the next batch may be written over the original."""
    return Painted(painted.latents[frames].clone(), painted.pixels[frames].clone(), painted.finite.clone())


def _in_float32(plain: Painter, latents: Tensor, tokens: Tensor, frames: list[int]) -> Painted:
    """Those frames by the published networks in real float32, one at a time."""
    with torch.inference_mode(False):
        exact = Painter(copy.deepcopy(plain.unet).float(), copy.deepcopy(plain.vae).float())
    with true_float32():
        single = [exact.paint(latents[one : one + 1].float(), tokens[one : one + 1]) for one in frames]
    return Painted(
        *(torch.cat(parts) for parts in zip(*((p.latents, p.pixels, p.finite) for p in single), strict=True))
    )
