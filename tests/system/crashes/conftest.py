"""The installations of the crash tests lie in memory where the machine has room there.

Each case makes dozens of fsyncs, and a thousand cases would wait for the disk for most of their time. A process that is
killed loses nothing that it has written, on a disk as in memory; the order of the fsyncs is the subject of
`test_order`, and a disk's own faults are that of `system/machine`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")
ROOM = 2 << 30  # bytes; a case needs 3 MB, and what has passed is removed


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory; without room there, pytest's own."""
    if not (MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="lipsyncd-", dir=MEMORY) as folder:
        yield Path(folder)
        shutil.copytree(folder, tmp_path, symlinks=True, dirs_exist_ok=True)  # what a failed case has left, to be read
