"""The files of systemd/: valid for `systemd-analyze verify`, as restricted as documented, and true to the program."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lipsyncd.settings import load
from tests.kits.installation import ROOT

SYSTEMD = ROOT / "systemd"
DROP_INS = sorted(path.name for path in (SYSTEMD / "lipsyncd.service.d").glob("*.conf"))
# Exposure in tenths, lower is better. `PrivateUsers=no`, without which CAP_LEASE has no effect, costs 2 of them.
EXPOSURE = {
    "": 16,
    "cpu-only.conf": 14,
    "loopback-only.conf": 15,
    "mounted-share.conf": 16,
    "pull-weights.conf": 16,
    "ray.conf": 16,
}

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


def lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def unit(folder: Path, drop_in: str = "") -> Path:
    """Write the unit and one drop-in as systemd reads them, with a program that exists."""
    text = (SYSTEMD / "lipsyncd.service").read_text().replace("/opt/lipsyncd/bin/lipsyncd", "/bin/true")
    path = folder / "lipsyncd.service"
    path.write_text(text)
    if drop_in:
        (folder / "lipsyncd.service.d").mkdir()
        shutil.copy(SYSTEMD / "lipsyncd.service.d" / drop_in, folder / "lipsyncd.service.d")
    return path


def test_every_drop_in_is_measured() -> None:
    assert set(EXPOSURE) == {"", *DROP_INS}


@needs_systemd
@pytest.mark.parametrize("drop_in", EXPOSURE, ids=lambda name: name or "alone")
def test_systemd_reports_no_fault_of_the_unit(tmp_path: Path, drop_in: str) -> None:
    path = unit(tmp_path, drop_in)
    verified = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("name", ["lipsyncd-ray-head.service", "lipsyncd-ray-worker.service"])
def test_systemd_reports_no_fault_of_the_units_of_a_cluster(tmp_path: Path, name: str) -> None:
    text = re.sub(r"/opt/lipsyncd/bin/(ray|python)", "/bin/true", (SYSTEMD / name).read_text())
    (tmp_path / name).write_text(text.replace("Documentation=man:lipsyncd(1)\n", ""))
    verified = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / name], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    assert {"NoNewPrivileges=yes", "CapabilityBoundingSet=", "ProtectSystem=strict", "UMask=0077"} <= set(
        lines(SYSTEMD / name)
    )


@needs_systemd
def test_verify_reports_an_unknown_line(tmp_path: Path) -> None:
    path = unit(tmp_path)
    path.write_text(path.read_text().replace("WatchdogSec=30", "WatchDogSecs=30"))
    verified = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
    assert "WatchDogSecs" in verified.stderr


@needs_systemd
@pytest.mark.parametrize(("drop_in", "most"), EXPOSURE.items())
def test_the_exposure_is_as_documented(tmp_path: Path, drop_in: str, most: int) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", f"--threshold={most}", unit(tmp_path, drop_in)]
    judged = subprocess.run(command, capture_output=True, text=True, check=False)
    assert judged.returncode == 0, judged.stdout[-300:]
    stricter = [part if not str(part).startswith("--threshold") else "--threshold=5" for part in command]
    assert subprocess.run(stricter, capture_output=True, check=False).returncode != 0


def test_the_unit_has_one_capability_where_it_has_effect() -> None:
    unit = lines(SYSTEMD / "lipsyncd.service")
    assert {"CapabilityBoundingSet=CAP_LEASE", "AmbientCapabilities=CAP_LEASE", "PrivateUsers=no"} <= set(unit)
    for drop_in in DROP_INS:
        changed = {line.partition("=")[0] for line in lines(SYSTEMD / "lipsyncd.service.d" / drop_in)}
        assert not changed & {"CapabilityBoundingSet", "AmbientCapabilities", "PrivateUsers"}, drop_in


@pytest.mark.parametrize("name", ["nvidia", "nvidia-frontend", "nvidiactl", "nvidia-uvm", "nvidia-caps"])
def test_the_gpu_is_allowed_under_the_names_of_old_and_new_drivers(name: str) -> None:
    assert f"DeviceAllow=char-{name} rw" in lines(SYSTEMD / "lipsyncd.service")


def test_the_units_folders_are_those_of_the_settings_and_of_tmpfiles() -> None:
    settings = load(ROOT / "config" / "service.toml", environ={"HOME": "/nonexistent"})
    made = {Path(line.split()[1]): line.split()[2:5] for line in lines(SYSTEMD / "tmpfiles.d" / "lipsyncd.conf")}
    shared = [settings.paths.inbox, settings.paths.outbox, settings.paths.failed, settings.paths.archive]
    modes = ["3770", "2770", "2770", "2750", "3770"]  # sticky where members leave files
    for folder, mode in zip([*shared, settings.paths.state / "control"], modes, strict=True):
        assert made[folder] == [mode, "lipsyncd", "lipsyncd"]
    assert made[settings.paths.storage] == made[settings.paths.state] == ["0750", "lipsyncd", "lipsyncd"]
    unit = lines(SYSTEMD / "lipsyncd.service")
    assert {f"ReadWritePaths=-{folder.parent}" for folder in shared} == {"ReadWritePaths=-/srv/lipsyncd"} <= set(unit)
    assert "StateDirectory=lipsyncd" in unit


def test_the_service_without_a_gpu_has_settings_that_load(tmp_path: Path) -> None:
    text = (
        (ROOT / "config" / "service.toml").read_text().replace("# renderer", "renderer").replace("# devices", "devices")
    )
    (tmp_path / "lipsyncd.toml").write_text(text)
    settings = load(tmp_path / "lipsyncd.toml", environ={"HOME": "/nonexistent"})
    assert (settings.render.renderer, settings.render.devices) == ("preview", ("cpu",))


@pytest.mark.parametrize("script", sorted((ROOT / "config").glob("*.sh")), ids=lambda path: path.name)
def test_the_scripts_are_written_for_any_posix_shell(script: Path) -> None:
    checked = subprocess.run(["sh", "-n", script], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert script.read_text().startswith("#!/bin/sh\n")
