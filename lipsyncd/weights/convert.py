"""Have a pickle turned into safetensors by a jailed process that sees nothing but the pickle and its own output.

Owns the choice of walls and the judgement of how the process ended. Leaves the work to `renderers/musetalk/convert.py`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

from lipsyncd.errors import RendererNotInstalled, WeightsDamaged, WeightsUnreachable
from lipsyncd.processes import exit_text, last_line
from lipsyncd.sandbox.jail import ResourceLimits, run_jailed
from lipsyncd.weights.lock_list import Weight

_PACKAGE = Path(__file__).resolve().parent.parent
# Started by its path: as a module it would import the whole renderer, and every library of it.
_CONVERTER = _PACKAGE / "renderers" / "musetalk" / "convert.py"
_PROCESSOR = (Path("/proc/cpuinfo"), Path("/sys/devices/system/cpu"))  # torch asks what it may calculate with
_TIMEOUT_S = 1800.0
_MEMORY_BYTES = 32 << 30  # of address space: the pickle is mapped whole, and so are a CUDA build's libraries
_REFUSED = 3  # the converter's exit status for a file that is not what it should be


def convert(weight: Weight, pickle: Path, target: Path) -> None:
    """Write the tensors of `pickle`, whose hash was right, to `target`, a new file.

    Raises `WeightsDamaged` when it holds anything but tensors, `RendererNotInstalled` without torch, and
    `WeightsUnreachable` when the process failed otherwise (memory, disk).
    """
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        raise RendererNotInstalled(
            f"{weight.name} is a pickle, and torch, which reads it, is not installed",
            remedy="install the extra: pip install 'lipsyncd[musetalk]'",
        )
    site = Path(torch.origin).resolve().parent.parent
    target.unlink(missing_ok=True)
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    pickle = pickle.resolve()  # a link's own name means nothing in the jail
    request = {"pickle": str(pickle), "target": str(target), "dtype": weight.dtype, "from": weight.sha256}
    ended = run_jailed(
        [getattr(sys, "_base_executable", "") or sys.executable, "-P", "-S", str(_CONVERTER), json.dumps(request)],
        readable=[pickle, _CONVERTER, site, *(path for path in _PROCESSOR if path.exists())],
        writable=[target],
        python_path=[site],
        limits=ResourceLimits(
            cpu_s=int(_TIMEOUT_S),
            file_bytes=2 * weight.size_bytes + (1 << 20),
            memory_bytes=_MEMORY_BYTES,
            open_files=256,
            write_or_execute=False,  # torch makes code for itself when it starts
        ),
        timeout_s=_TIMEOUT_S,
    )
    if ended.returncode == 0:
        return
    last = last_line(ended.stderr_tail) or "no message"
    if ended.returncode == _REFUSED:
        raise WeightsDamaged(
            f"{pickle} has the right hash and was refused all the same: {last}",
            remedy="do not open it with anything else; correct the lock list that names it (weights.lock)",
        )
    how = "took too long" if ended.timed_out else exit_text(ended.returncode)
    raise WeightsUnreachable(
        f"the conversion of {weight.name} {how}: {last}", remedy="free memory and disk space, then pull again"
    )
