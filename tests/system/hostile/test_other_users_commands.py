"""Commands of a user who may not read the installation: each names the rights that are missing, and guesses nothing."""

from __future__ import annotations

import json
import subprocess

from tests.kits.doctor_kit import free_port
from tests.kits.installation import ROOT, Installation
from tests.kits.machine.users_kit import DAEMON, STRANGER, needs_users, shared_installation

pytestmark = needs_users


def as_stranger(installation: Installation, *arguments: str) -> subprocess.CompletedProcess[str]:
    lipsyncd = [installation.python, "-P", "-m", "lipsyncd", "--config", str(installation.config), *arguments]
    return STRANGER.run("env", f"PYTHONPATH={ROOT}", "HOME=/", *lipsyncd)


def test_doctor_backup_and_status_of_a_user_without_rights() -> None:
    with shared_installation() as installation:
        installation.run_as = DAEMON.command()
        installation.changes["web"] = {"enabled": True, "port": free_port()}
        with installation.running():
            found = json.loads(as_stranger(installation, "doctor", "--json").stdout)
            web = next(check for check in found["checks"] if check["name"] == "web")
            assert web["seen"].endswith("is ready"), web
            for command in ("backup", "status"):
                refused = as_stranger(installation, command)
                assert refused.returncode == 77, refused
                assert "Permission denied" in refused.stderr
                assert "join the group" in refused.stderr
                assert "Traceback" not in refused.stderr


def test_a_port_that_a_lipsyncd_with_other_folders_uses_is_named_as_such(installation: Installation) -> None:
    installation.changes["web"] = {"enabled": True, "port": free_port()}
    with installation.running():
        other = Installation(installation.root / "other", changes=installation.changes)
        other.root.mkdir()
        found = json.loads(other.cli("doctor", "--json").stdout)
    web = next(check for check in found["checks"] if check["name"] == "web")
    assert web["verdict"] == "fault"
    assert "used by a lipsyncd with other folders" in web["seen"]
