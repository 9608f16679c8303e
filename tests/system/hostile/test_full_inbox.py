"""Tens of thousands of files in the inbox that are no jobs: the status stays small, memory too, and jobs go on."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest

from lipsyncd.jobs.job import JobState
from tests.kits.installation import Installation
from tests.kits.long_run_figures import report
from tests.kits.machine.machine_kit import LONG

NUMBER = 100_000 if LONG else 20_000
MOST_BYTES_EACH = 3_000  # of memory; a picture cost 4,500, a large manifest all of itself
STATUS_BYTES = 100_000


def resident(installation: Installation) -> int:
    """Bytes of memory that the daemon has."""
    assert installation.daemon is not None
    return int(Path(f"/proc/{installation.daemon.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def status(installation: Installation) -> dict[str, object]:
    content: dict[str, object] = json.loads((installation.path("state") / "status.json").read_text())
    return content


def fill(inbox: Path, kind: str) -> None:
    """Files that wait, that are left alone, that cannot be read, or manifests: each shows in one list of the status."""
    suffix = {"halves": "png", "texts": "txt", "links": "png"}.get(kind, "json")
    manifest = {"image": "gone.png", "audio": "gone.wav"}
    contents = {
        "manifests": json.dumps(manifest).encode(),
        "large manifests": json.dumps({**manifest, "lipsyncd": {"x": "x" * 8000}}).encode(),
    }
    for number in range(NUMBER):
        path = f"{inbox}/{kind} of a member with a long name {number:06d}.{suffix}"
        if kind == "links":
            os.symlink("/nonexistent", path)
        else:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o664)
            os.write(descriptor, contents.get(kind, b"\x89PNG\r\n\x1a\n" + bytes(40)))
            os.close(descriptor)


@pytest.mark.parametrize(
    ("kind", "listed"),
    [("halves", "waiting"), ("texts", "ignored"), ("links", "ignored"), ("manifests", "waiting"),
     ("large manifests", "waiting")],
)  # fmt: skip
def test_an_inbox_full_of_a_members_files_costs_neither_memory_nor_other_jobs(
    installation: Installation, kind: str, listed: str
) -> None:
    installation.folders.initialise()
    with installation.running():
        installation.drop_pair("before")
        installation.until_done("before")
        before = resident(installation)
        fill(installation.path("inbox"), kind)
        installation.until(lambda: status(installation)[f"{listed}_more"] == NUMBER - 100, "the count of all files")
        assert len(status(installation)[listed]) == 100  # type: ignore[arg-type]
        longest_s = 0.0
        for number in range(3):
            began_s = time.monotonic()
            installation.drop_pair(f"meanwhile {number}", seed=number + 1)
            installation.until_state(f"meanwhile {number}", JobState.DONE)
            longest_s = max(longest_s, time.monotonic() - began_s)
        grown = resident(installation) - before
        size = (installation.path("state") / "status.json").stat().st_size
        # The pairs of meanwhile have left the list; it is written once a second.
        installation.until(lambda: status(installation)[f"{listed}_more"] == NUMBER - 100, "the count of all files")
        shown = installation.cli("status").stdout
        left_out = re.search(r"\.\.\. and (\d+) more in the inbox", shown)
        assert left_out is not None, shown
        assert int(left_out[1]) == NUMBER - 100
        assert "the same holds for 99 others" in shown
    assert size < STATUS_BYTES
    assert grown < NUMBER * MOST_BYTES_EACH
    assert longest_s < 30
    report(f"{NUMBER} {kind} in the inbox", f"{grown / 1e6:.0f} MB more, status {size} B, a job in {longest_s:.1f} s")
