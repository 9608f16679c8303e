"""The one capability of the daemon: it works, status and doctor report it, and no process that it starts has it."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lipsyncd.doctor import Verdict
from tests.kits.doctor_kit import fault, seen
from tests.kits.installation import Installation
from tests.kits.machine.machine_kit import family
from tests.kits.machine.users_kit import CAP_LEASE, DAEMON, capabilities, needs_users, shared_installation

pytestmark = needs_users


def status(installation: Installation) -> tuple[dict[str, Any], str]:
    """What `lipsyncd status` shows: for programs, and for people."""
    shown = json.loads(installation.cli("status", "--json").stdout)["daemon"]
    return shown, installation.cli("status").stdout


@pytest.mark.parametrize("lease", [True, False])
def test_status_and_doctor_report_whether_the_kernel_tells_who_writes(lease: bool) -> None:
    with shared_installation() as installation:
        installation.run_as = DAEMON.command(lease=lease)
        with installation.running():
            shown, text = installation.until(lambda: (s := status(installation))[0].get("at_ms") and s, "the status")
            assert shown["leases"] is lease
            assert ("files of other users wait longer" in text) is not lease
            if lease:
                assert seen(installation, "writers").verdict is Verdict.OK
            else:
                fault(installation, "writers", "theirs wait 5 s", "CAP_LEASE", verdict=Verdict.WARNING)
                installation.path("inbox").chmod(0o750)  # then only the daemon's user drops files, and nothing is amiss
                assert seen(installation, "writers").verdict is Verdict.NOTE
        assert seen(installation, "writers").verdict is Verdict.NOTE


def test_the_daemon_keeps_the_right_and_its_children_have_none() -> None:
    """A render child at work, with the encoder that it has started, and everything that a job needs before."""
    with shared_installation() as installation:
        installation.run_as = DAEMON.command(lease=True)
        installation.changes["render"] = {"renderer": "slow"}
        with installation.running() as running:
            assert running.daemon is not None
            daemon = running.daemon.pid
            running.drop_pair("anna", seconds=3.0)
            programs: dict[str, dict[str, int]] = {}

            def look() -> bool:
                programs.update(run_by(daemon))
                job = running.job("anna")
                return job is not None and job.state.ended

            running.until(look, "the end of the job")
            running.until_done("anna")
            own = capabilities(daemon)
    lease = 1 << CAP_LEASE
    assert (own["Prm"], own["Eff"], own["Inh"], own["Amb"]) == (lease, lease, 0, 0)
    assert any("lipsyncd.renderers" in program for program in programs), programs
    assert any("libx264" in program for program in programs), programs
    assert {(s["Inh"], s["Prm"], s["Eff"], s["Amb"]) for s in programs.values()} == {(0, 0, 0, 0)}


def run_by(daemon: int) -> dict[str, dict[str, int]]:
    """The capabilities of each program that the daemon runs now, by its command line.

    Between fork and exec a child is still the daemon, with its command line and its rights.
    """
    own = Path(f"/proc/{daemon}/cmdline").read_bytes()
    found = {}
    for pid in family(daemon):
        with suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if command not in (own, b""):
                found[command.replace(b"\0", b" ").decode(errors="replace")] = capabilities(pid)
    return found
