"""A command that finds nothing names the storage where it looked, and what named that storage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.kits.installation import ROOT, Installation

PORTRAIT = ROOT / "tests/kits/media/grace_hopper.jpg"
COMMANDS = [
    ("status",), ("status", "anna"), ("logs",), ("logs", "anna"), ("cancel", "anna"), ("cancel", "--all", "--yes"),
    ("retry", "--failed"), ("priority", "anna", "3"), ("republish", "anna"), ("backup",), ("prune", "--dry-run"),
    ("submit", str(PORTRAIT), "--text", "Good day.", "--renderer", "preview"),
]  # fmt: skip


def shown(home: Path, *arguments: str, **variables: str) -> str:
    """What a command of a new user prints, on both streams."""
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(
        [sys.executable, "-m", "lipsyncd", *arguments],
        capture_output=True, text=True, timeout=60, env=environment, cwd=home, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2])[:20])
def test_every_command_that_finds_nothing_names_where_it_looked(tmp_path: Path, command: tuple[str, ...]) -> None:
    assert f"{tmp_path}/.local/share/lipsyncd" in shown(tmp_path, *command)


def test_what_named_the_storage_is_named_too(tmp_path: Path) -> None:
    assert "(the default; --config or STORAGE_DIR names another)" in shown(tmp_path, "status")
    given = {"STORAGE_DIR": str(tmp_path / "talking")}
    assert f"looked in {tmp_path}/talking (from environment STORAGE_DIR)" in shown(tmp_path, "status", **given)
    given |= {"LIPSYNCD_PATHS_STATE": str(tmp_path / "apart")}
    assert f"looked in {tmp_path}/apart (from environment LIPSYNCD_PATHS_STATE)" in shown(tmp_path, "status", **given)


def test_a_job_that_nobody_will_take_yet_is_announced_as_such(installation: Installation) -> None:
    order = ("submit", str(PORTRAIT), "--text", "Good day.", "--renderer", "flat")
    alone = installation.cli(*order)
    assert (alone.returncode, len(alone.stdout.split())) == (0, 1)
    assert "no daemon runs; the job waits for the next `lipsyncd run`" in alone.stderr
    with installation.running():
        assert installation.cli(*order, "--name", "again").stderr == ""
