"""How the optional parts of lipsyncd are installed here, for remedies.

It depends on how lipsyncd itself was installed. `make install` and the container's image leave a small file below the
virtual environment, pipx has one of its own, and everything else is a virtual environment of the user's.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

MARKER = Path("share", "lipsyncd", "installation")
SERVICE, CONTAINER = "service", "container"
ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu")  # both install the module `onnxruntime`
CUDA = "musetalk-cuda"  # has the second one
BESIDE_CUDA = ("musetalk", "voices")  # have the first one; with `tts`, CUDA has all that they need


def how_to_install(extra: str, prefix: Path = Path(sys.prefix)) -> str:
    """What to do here to get the extra of that name, such as "musetalk".

    prefix  the virtual environment in use
    """
    marked = installation(prefix)
    if marked.get("method") == SERVICE:
        there = [name for name in marked.get("extras", "").split(",") if name]
        contained = extra in there or (CUDA in there and extra in BESIDE_CUDA)
        extras = ",".join([*there, *([] if contained else [extra])])
        folder = shlex.quote(marked.get("checkout", ""))
        return f"install it: sudo make -C {folder} install EXTRAS={extras}"
    if marked.get("method") == CONTAINER:
        return f"use an image that has the extra `{extra}`, such as the one that `docker build -t lipsyncd .` makes"
    return f"install it: {_pip(prefix)} install 'lipsyncd[{extra}]'"


def how_to_keep_one_onnxruntime(prefix: Path = Path(sys.prefix)) -> str:
    """What to do here where both packages of onnxruntime are installed, whose files overwrite each other.

    The one for GPUs also computes on a CPU.
    """
    marked = installation(prefix)
    if marked.get("method") == SERVICE:
        folder = shlex.quote(marked.get("checkout", ""))
        others = [name for name in marked.get("extras", "").split(",") if name and name not in (CUDA, *BESIDE_CUDA)]
        return f"install it anew: sudo make -C {folder} install EXTRAS={','.join([*others, CUDA])}"
    if marked.get("method") == CONTAINER:
        return "build the image again"
    pip = _pip(prefix)
    return f"{pip} uninstall {' '.join(ONNXRUNTIMES)}, then {pip} install 'lipsyncd[{CUDA}]'"


def how_to_install_package(package: str, prefix: Path = Path(sys.prefix)) -> str:
    """What to do here to get a package that every installation of lipsyncd has."""
    marked = installation(prefix)
    if marked.get("method") == SERVICE:
        return f"install lipsyncd again: sudo make -C {shlex.quote(marked.get('checkout', ''))} install"
    if marked.get("method") == CONTAINER:
        return "build the image again"
    return f"install it: {_pip(prefix)} install {package}"


def installation(prefix: Path = Path(sys.prefix)) -> dict[str, str]:
    """What the installer has recorded: `method`, and of a service `prefix`, `checkout`, `extras`; else {}."""
    try:
        text = (prefix / MARKER).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def _pip(prefix: Path) -> str:
    if (prefix / "pipx_metadata.json").exists():
        return f"pipx runpip {prefix.name}"
    pip = prefix / "bin" / "pip"
    return shlex.quote(str(pip)) if pip.exists() else f"{shlex.quote(sys.executable)} -m pip"
