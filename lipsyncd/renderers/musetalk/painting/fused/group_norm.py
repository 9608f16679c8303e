"""GroupNorm, and GroupNorm followed by SiLU, by what is right for the device.

On a GPU Triton's kernels, which need a C compiler at their first use on a machine; on a CPU torch's own two steps, the
second in place.

Owns this choice. Leaves the kernels to `triton_norm`.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

from torch import Tensor, nn
from torch.nn import functional


def norm_silu(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """(B, C, h, w), normalised in groups of channels, then SiLU; in the layout of `x`."""
    if x.is_cuda:
        return _kernels().group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps, silu=True)
    return functional.silu(functional.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps), inplace=True)


def normed(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """(B, C, h, w), normalised in groups of channels; in the layout of `x`."""
    if x.is_cuda:
        return _kernels().group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps, silu=False)
    return functional.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


def no_kernels() -> str:
    """Why Triton's kernels cannot run on a GPU of this machine; "" if nothing speaks against it."""
    try:
        _kernels()
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler, gcc or clang"
    return ""


def _kernels() -> Any:
    from lipsyncd.renderers.musetalk.painting.fused import triton_norm  # comes with builds of torch for CUDA alone

    return triton_norm
