"""Real users on one machine: the daemon's, two members of its group, and a stranger, each in processes of its own.

A user here is a number: no test needs an entry in /etc/passwd.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.kits.installation import ROOT, Installation

CAP_LEASE = 28


@dataclass(frozen=True)
class User:
    """A user and its groups, by number."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def command(self, *, lease: bool = False) -> list[str]:
        """What to write before a command to run it as this user, without capabilities, or with CAP_LEASE alone."""
        more = ",".join(map(str, self.groups))
        ids = [f"--reuid={self.uid}", f"--regid={self.gid}", f"--groups={more}" if more else "--clear-groups"]
        kept = "-all,+lease" if lease else "-all"
        # setpriv finds the program with root's rights; env finds it with the user's.
        return ["setpriv", *ids, f"--inh-caps={kept}", f"--ambient-caps={kept}", f"--bounding-set={kept}", "env"]

    def run(
        self, *command: str | Path, umask: int = 0o022, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as this user, with a group of friends' usual umask."""
        return subprocess.run(
            [*self.command(), *map(str, command)],
            umask=umask, cwd="/", capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip


DAEMON = User(961, 961)
MEMBER = User(1001, 1001, (961,))
COLLEAGUE = User(1003, 1003, (961,))
STRANGER = User(1002, 1002)


def _missing() -> str:
    if os.geteuid() != 0:
        return "only root can run processes as other users"
    if shutil.which("setpriv") is None:
        return "needs setpriv"
    return "" if python() else "other users can read no Python of this version with our packages, or not this checkout"


@cache
def python() -> str:
    """A Python that every user can run, with what this one imports; "" when there is none.

    This one may lie in root's home. Then the system's, if it is of the same version, takes the packages from here.
    """
    if _runs(sys.executable):
        return sys.executable
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    found = shutil.which(name, path="/usr/local/bin:/usr/bin")
    if found is None:
        return ""
    folder = Path(tempfile.mkdtemp(prefix="lipsyncd-python-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)
    subprocess.run([found, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    site = folder / "venv/lib" / name / "site-packages"
    (site / "packages.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    made = str(folder / "venv/bin/python")
    return made if _runs(made) else ""


def _runs(program: str) -> bool:
    imports = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import lipsyncd.cli.main, numpy, watchdog, sqlmodel"
    return STRANGER.run(program, "-P", "-c", imports).returncode == 0


needs_users = pytest.mark.skipif(bool(_missing()), reason=_missing() or "users are there")


@contextmanager
def shared_installation() -> Iterator[Installation]:
    """An installation outside of the test runner's own folders, with the folders that systemd/tmpfiles.d makes.

    They belong to the daemon's user. `run_as` decides as whom the daemon runs.
    """
    with tempfile.TemporaryDirectory(prefix="lipsyncd-users-") as name:
        root = Path(name)
        root.chmod(0o755)
        installation = Installation(root, python=python())
        installation.changes["paths"] = {
            kind: str(root / "srv" / kind) for kind in ("inbox", "outbox", "failed", "archive")
        }
        for line in (ROOT / "systemd/tmpfiles.d/lipsyncd.conf").read_text().splitlines():
            if not line.startswith("d "):
                continue
            _, path, mode, *_ = line.split()
            make_folder(placed(root, path), int(mode, 8))
        (root / "daemon.log").touch()
        os.chown(root, DAEMON.uid, DAEMON.gid)  # the home folder: caches, and the count of renders
        yield installation


def placed(root: Path, path: str) -> Path:
    """Where a folder of the service lies in a scratch installation."""
    return root / path.replace("/srv/lipsyncd", "srv", 1).replace("/var/lib/lipsyncd", "storage", 1).lstrip("/")


def make_folder(folder: Path, mode: int) -> None:
    """A folder of the daemon's user with this mode, whatever our umask."""
    folder.mkdir(exist_ok=True)
    os.chown(folder, DAEMON.uid, DAEMON.gid)
    folder.chmod(mode)


def capabilities(pid: int | str) -> dict[str, int]:
    """The sets of a process by their letters in /proc: Inh, Prm, Eff, Bnd, Amb."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {line[3:6]: int(line.split()[1], 16) for line in lines if line.startswith("Cap")}
