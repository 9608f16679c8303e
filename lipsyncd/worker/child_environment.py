"""Which variables a render child inherits from the daemon's environment: a list, so that no secret is among them.

A renderer may be anybody's code with anybody's libraries, and the daemon's environment holds API keys.

Owns the list. Leaves the variables that carry settings to the one who starts the child.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

_NAMES = frozenset((
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
    "LD_PRELOAD", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE", "CC", "CXX", "COVERAGE_PROCESS_START",
    "LIPSYNCD_WEIGHTS_DIR",
    # Not all of NVIDIA_: there is an API key among them.
    "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_TF32_OVERRIDE",
))  # fmt: skip
# Python, and the libraries of the built-in renderers: threads, devices, caches, memory.
_PREFIXES = (
    "LC_", "PYTHON", "CUDA_", "CUDNN_", "CUBLAS_", "NCCL_", "TORCH_", "TORCHINDUCTOR_", "PYTORCH_", "TRITON_",
    "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "BLIS_", "VECLIB_", "NUMEXPR_", "NUMBA_", "ORT_", "OPENCV_",
    "MALLOC_", "GLIBC_", "LIPSYNCD_RENDER_",
)  # fmt: skip


def inherited(environ: Mapping[str, str], more: Collection[str] = ()) -> dict[str, str]:
    """The variables of `environ` that are on the list, or are named in `more` (`render.environment`)."""
    return {
        name: value for name, value in environ.items() if name in _NAMES or name in more or name.startswith(_PREFIXES)
    }
