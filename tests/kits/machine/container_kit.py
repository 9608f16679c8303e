"""A small Debian to install into, for tests of the systemd unit and of the container images.

mmdebstrap makes it once for all test processes (`debian_root` in conftest.py); a test that changes it uses a copy.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

from tests.kits.installation import ROOT

SUITE = "bookworm"
PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3-venv", "make", "ca-certificates")


def cannot_run(*programs: str) -> str:
    """Why a test that needs root and these programs cannot run here; empty if it can."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [program for program in programs if shutil.which(program) is None]
    return f"needs {', '.join(missing)}: see config/test-packages.sh" if missing else ""


def make_root(folder: Path) -> Path:
    """Make a Debian in `folder`: 260 MB, half a minute."""
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def copy_root(root: Path, target: Path) -> Path:
    """Copy a root with owners, links and devices; the copy shares blocks if the file system can."""
    subprocess.run(["cp", "--archive", "--reflink=auto", str(root), str(target)], check=True, timeout=120)
    return target


def install(root: Path, *packages: str) -> str:
    """Install Debian packages into a copied root, and start none of their services; why that is impossible, or ""."""
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    script = f"apt-get update -qq; apt-get install -qq -y --no-install-recommends {' '.join(packages)} >/dev/null"
    done = subprocess.run(
        ["chroot", root, "sh", "-euc", script], capture_output=True, text=True, timeout=600, check=False
    )
    if "Unable to locate package" in done.stderr or "Could not resolve" in done.stderr:
        return f"{', '.join(packages)} cannot be installed here"
    assert done.returncode == 0, done.stderr[-3000:]
    return ""


def checkout(target: Path) -> Path:
    """Copy the working tree as `git clone` would, with changes: every file that git tracks or does not ignore."""
    listing = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listing, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


@dataclass(frozen=True)
class PipSource:
    """The package sources of pip on this machine, for pip in a container.

    config   text of a pip.conf
    folders  folders of this machine in that text: the container needs them under the same paths
    """

    config: str
    folders: tuple[Path, ...]

    @classmethod
    def of_this_machine(cls) -> PipSource:
        """Asks pip, which reads its files and variables."""
        listing = [sys.executable, "-m", "pip", "config", "list"]
        output = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
        parser = ConfigParser(interpolation=None)
        parser["global"] = {}
        for name, value in re.findall(r"^(?:global|:env:)\.([\w-]+)='(.*)'$", output, re.MULTILINE):
            parser["global"][name] = value.replace("\\n", "\n")
        words = " ".join(parser["global"].values()).split()
        paths = {
            _with_neighbours(Path(word.removeprefix("file://")))
            for word in words
            if word[0] == "/" or "file:///" in word
        }
        lines = "".join(f"{name} = {value}\n" for name, value in parser["global"].items())
        return cls(f"[global]\n{lines}", tuple(sorted(path for path in paths if path.exists())))


def _with_neighbours(path: Path) -> Path:
    """The parent of a package index on disk, since the index may refer to its neighbours; not near the root."""
    return path.parent if path.is_dir() and len(path.parts) > 3 else path
