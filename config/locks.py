"""Write config/locks/: the packages of the container images, with versions and with hashes of every file.

    pip install uv && python config/locks.py

`build.txt` builds the wheel. `preview.txt` is for every image; the GPU image adds `musetalk.txt`, and `torch.txt`,
which is torch with its CUDA libraries and may be left out if the base image has them. `onnxruntime-gpu.txt` takes the
place of the onnxruntime in `preview.txt` there.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

CONFIG = Path(__file__).resolve().parent
OF_TORCH = re.compile(r"(torch|triton|sympy|mpmath|networkx|nvidia-.*|cuda-.*)==")
PYTHON = "3.11"


def compiled(*arguments: str, given: str | None = None) -> list[str]:
    """Pinned requirements with their hashes, one text for each package."""
    command = ["uv", "pip", "compile", "--quiet", "--generate-hashes", "--no-header", "--no-annotate"]
    command += ["--python-version", PYTHON, "--constraint", str(CONFIG / "constraints.txt"), *arguments]
    text = subprocess.run(command, input=given, check=True, capture_output=True, text=True, cwd=CONFIG.parent).stdout
    return re.findall(r"^\S.*(?:\n    .*)*", text, re.MULTILINE)


def write(name: str, requirements: list[str]) -> None:
    (CONFIG / "locks" / name).write_text("# Written by config/locks.py.\n" + "\n".join(requirements) + "\n")


def main() -> None:
    (CONFIG / "locks").mkdir(exist_ok=True)
    write("build.txt", compiled("-", given="setuptools>=77\nclick>=8.1\n"))
    speech = ("--extra", "tts", "--extra", "voices")
    preview = compiled("pyproject.toml", *speech)
    rest = [item for item in compiled("pyproject.toml", *speech, "--extra", "musetalk") if item not in preview]
    write("preview.txt", preview)
    write("musetalk.txt", [item for item in rest if not OF_TORCH.match(item)])
    cuda = compiled("pyproject.toml", "--extra", "tts", "--extra", "musetalk-cuda")
    write("onnxruntime-gpu.txt", [item for item in cuda if item.startswith("onnxruntime-gpu==")])
    write("torch.txt", [item for item in rest if OF_TORCH.match(item)])


if __name__ == "__main__":
    main()
