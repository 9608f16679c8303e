"""Remedies for what is not installed fit how lipsyncd was installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lipsyncd.extras import MARKER, how_to_install, how_to_install_package, how_to_keep_one_onnxruntime
from tests.kits.installation import ROOT


def record(where: Path, **facts: str) -> None:
    (where / MARKER).parent.mkdir(parents=True, exist_ok=True)
    (where / MARKER).write_text("".join(f"{name}={value}\n" for name, value in facts.items()))


def test_a_service_is_told_to_install_again_with_one_more_part(tmp_path: Path) -> None:
    record(tmp_path, method="service", prefix="/opt/lipsyncd", checkout="/home/an na/lipsyncd", extras="tts")
    command = "sudo make -C '/home/an na/lipsyncd' install"
    assert how_to_install("musetalk", tmp_path) == f"install it: {command} EXTRAS=tts,musetalk"
    assert how_to_install("tts", tmp_path) == f"install it: {command} EXTRAS=tts"
    assert how_to_install_package("numpy", tmp_path) == f"install lipsyncd again: {command}"


def test_the_extra_for_cuda_is_never_joined_by_one_that_overwrites_it(tmp_path: Path) -> None:
    record(tmp_path, method="service", checkout="/src", extras="tts,musetalk-cuda")
    for extra in ("musetalk", "voices", "musetalk-cuda"):
        assert how_to_install(extra, tmp_path).endswith(" EXTRAS=tts,musetalk-cuda")
    assert how_to_install("demo", tmp_path).endswith(" EXTRAS=tts,musetalk-cuda,demo")
    assert "make -C /src install EXTRAS=tts,musetalk-cuda" in how_to_keep_one_onnxruntime(tmp_path)
    assert "uninstall onnxruntime onnxruntime-gpu, then" in how_to_keep_one_onnxruntime(tmp_path / "other")
    record(tmp_path / "image", method="container")
    assert how_to_keep_one_onnxruntime(tmp_path / "image") == "build the image again"


@pytest.mark.skipif(os.geteuid() != 0, reason="make install is root's")
@pytest.mark.parametrize("extras", ["musetalk-cuda,musetalk", "voices,musetalk-cuda", "musetalk-gpu"])
def test_make_install_refuses_extras_that_do_not_go_together(tmp_path: Path, extras: str) -> None:
    if shutil.which("systemd-sysusers") is None or shutil.which("systemd-tmpfiles") is None:
        pytest.skip("needs systemd")
    environment = {**os.environ, "PREFIX": str(tmp_path / "opt"), "EXTRAS": extras}
    script = ["sh", str(ROOT / "config/install.sh")]
    ended = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "overwrite its own" in ended.stderr or "EXTRAS has musetalk-gpu; there are" in ended.stderr
    assert not list((tmp_path / "opt" / "versions").glob("[0-9]*"))


def test_a_container_needs_another_image(tmp_path: Path) -> None:
    record(tmp_path, method="container")
    assert "docker build" in how_to_install("musetalk", tmp_path)
    assert "pip" not in how_to_install("musetalk", tmp_path) + how_to_install_package("numpy", tmp_path)


def test_pipx_is_named_where_it_made_the_environment(tmp_path: Path) -> None:
    prefix = tmp_path / "lipsyncd"
    prefix.mkdir()
    (prefix / "pipx_metadata.json").write_text("{}")
    assert how_to_install("tts", prefix) == "install it: pipx runpip lipsyncd install 'lipsyncd[tts]'"


def test_a_virtual_environment_gets_its_own_pip_by_its_path(tmp_path: Path) -> None:
    assert how_to_install("tts", tmp_path).endswith("-m pip install 'lipsyncd[tts]'")  # one without pip
    pip = tmp_path / "bin" / "pip"
    pip.parent.mkdir()
    pip.touch()
    assert how_to_install("tts", tmp_path) == f"install it: {pip} install 'lipsyncd[tts]'"
    assert how_to_install_package("numpy", tmp_path) == f"install it: {pip} install numpy"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe=\n", b"method", b"method=tape\n"])
def test_a_record_that_cannot_be_read_counts_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MARKER).parent.mkdir(parents=True)
    (tmp_path / MARKER).write_bytes(content)
    assert "pip install 'lipsyncd[tts]'" in how_to_install("tts", tmp_path)


def test_no_other_module_tells_anybody_to_use_pip() -> None:
    modules = [path for path in (ROOT / "lipsyncd").rglob("*.py") if path.name != "extras.py"]
    assert [path for path in modules if re.search(r"pip install", path.read_text())] == []


def test_the_installers_leave_the_record_that_is_read() -> None:
    script = (ROOT / "config/install.sh").read_text()
    assert r"'method=service\nprefix=%s\ncheckout=%s\nextras=%s\n'" in script
    assert f"share=$new/{MARKER.parent}" in script
    assert f"echo method=container > /opt/lipsyncd/{MARKER}" in (ROOT / "Dockerfile").read_text()
