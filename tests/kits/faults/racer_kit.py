"""Attackers on shared folders: real processes of another user that exchange names while the daemon works."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.kits.installation import ROOT
from tests.kits.machine.machine_kit import COMPILER
from tests.kits.machine.users_kit import User

SECRET = b"PRECIOUS-" + hashlib.sha256(b"a secret of the daemon").hexdigest().encode()


_MOST_BYTES = 100_000_000


@dataclass
class Race:
    """What an attacker did: how often it saw its moment, and how often its exchange of two names succeeded."""

    events: int = 0
    swaps: int = 0
    failed: int = 0
    errno: int = 0


@cache
def racer() -> Path:
    """The attacker's program, compiled, in a folder that every user can enter."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="lipsyncd-racer-"))
    folder.chmod(0o755)
    program = folder / "racer"
    subprocess.run([COMPILER, ROOT / "tests/kits/faults/racer.c", "-o", program], check=True)
    program.chmod(0o755)
    return program


@contextmanager
def racing(user: User, watched: Path | None, pattern: str, a: Path, b: Path, *, hold_us: int) -> Iterator[Race]:
    """Exchange `a` and `b` as that user, at the events of a watched folder, or all the time without one."""
    command = [*user.command(), racer(), watched or "-", pattern, a, b, str(hold_us)]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    race = Race()
    try:
        yield race
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=20)
        found = re.search(r"events (\d+) swaps (\d+) failed (\d+) errno (\d+)", output)
        assert found, output
        race.events, race.swaps, race.failed, race.errno = map(int, found.groups())


def make_victim(root: Path, owner: User) -> Path:
    """A folder of the daemon's user alone with a secret in it, which no attack may change, read or add to."""
    victim = root / "victim"
    victim.mkdir()
    (victim / "secret").write_bytes(SECRET)
    for path, mode in ((victim, 0o700), (victim / "secret", 0o600)):
        path.chmod(mode)
        os.chown(path, owner.uid, owner.gid)
    return victim


def snapshot(*folders: Path) -> dict[str, tuple[int, int, int, str]]:
    """Everything under these folders: mode, owner, group, and the content's hash."""
    found = {}
    for folder in folders:
        for path in (folder, *sorted(folder.rglob("*"))):
            status = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(status.st_mode) else ""
            found[str(path)] = (status.st_mode, status.st_uid, status.st_gid, content)
    return found


def leaks(*folders: Path) -> list[Path]:
    """The copies of the secret under these folders: its own file may have another name there."""
    return [path for folder in folders for path in folder.rglob("*") if _holds_the_secret(path)]


def _holds_the_secret(path: Path) -> bool:
    """Does a file of its own hold it? The daemon is at work: files come and go meanwhile."""
    try:
        status = path.lstat()
        # The secret has less than a hundred bytes, and a trap of three gigabytes need not be read.
        small = stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_size < _MOST_BYTES
        return small and SECRET in path.read_bytes()
    except FileNotFoundError:
        return False
