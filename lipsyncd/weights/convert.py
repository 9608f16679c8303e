"""Run the conversion of a pickle to safetensors in a jailed process that sees only the pickle and its own output.

Owns the limits of that process and the meaning of its exit status. Leaves the work to `renderers/musetalk/convert.py`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

from lipsyncd.errors import RendererNotInstalled, WeightsDamaged, WeightsUnreachable
from lipsyncd.extras import how_to_install
from lipsyncd.processes import exit_text, last_line
from lipsyncd.sandbox.jail import ResourceLimits, run_jailed
from lipsyncd.weights.lock_list import Weight

_PACKAGE = Path(__file__).resolve().parent.parent
# Started by its path: as a module it would import the whole renderer and all of its libraries.
_CONVERTER = _PACKAGE / "renderers" / "musetalk" / "convert.py"
_PROCESSOR = (Path("/proc/cpuinfo"), Path("/sys/devices/system/cpu"))  # torch reads the processor's features
_TIMEOUT_S = 1800.0
_MEMORY_BYTES = 32 << 30  # of address space: the whole pickle is mapped, and so are the libraries of a CUDA build
_REFUSED = 3  # the converter's exit status for a file with anything but tensors


def convert(weight: Weight, pickle: Path, target: Path) -> None:
    """Write the tensors of `pickle`, whose hash was right, to the new file `target`.

    Raises `WeightsDamaged` if it holds anything but tensors, `RendererNotInstalled` without torch, and
    `WeightsUnreachable` if the process fails for another reason (memory, disk).
    """
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        raise RendererNotInstalled(
            f"{weight.name} is a pickle, and torch, which reads it, is not installed",
            remedy=how_to_install("musetalk"),
        )
    site = Path(torch.origin).resolve().parent.parent
    target.unlink(missing_ok=True)
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    pickle = pickle.resolve()  # the jail opens the file itself, not a link to it
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
            write_or_execute=False,  # torch generates code when it starts
        ),
        timeout_s=_TIMEOUT_S,
    )
    if ended.returncode == 0:
        return
    last = last_line(ended.stderr_tail) or "no message"
    if ended.returncode == _REFUSED:
        raise WeightsDamaged(
            f"{pickle} has the right hash but was refused: {last}",
            remedy="do not open it with another program; correct the lock list that names it (weights.lock)",
        )
    how = "took too long" if ended.timed_out else exit_text(ended.returncode)
    raise WeightsUnreachable(
        f"the conversion of {weight.name} {how}: {last}", remedy="free memory and disk space, then pull again"
    )
