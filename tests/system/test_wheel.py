"""The wheel and the sdist of `make wheel`: without the checkout they make the demo's videos."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from lipsyncd.cli.main import main
from lipsyncd.media.mp4 import inspect
from tests.kits.installation import ROOT
from tests.kits.machine import container_kit

pytestmark = pytest.mark.timeout(1800)  # a busy machine installs packages for minutes


def run(*command: str | Path, cwd: Path, environ: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-4000:])
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make wheel` builds: the sdist, and out of it the wheel."""
    source = container_kit.checkout(tmp_path_factory.mktemp("source"))
    variables = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    run("make", "wheel", cwd=source, environ=variables)
    return source / "dist"


def names(dist: Path) -> tuple[set[str], set[str]]:
    """The files of the wheel, and of the sdist below its folder."""
    [wheel] = dist.glob("*.whl")
    [sdist] = dist.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive, tarfile.open(sdist) as tar:
        return set(archive.namelist()), {name.partition("/")[2] for name in tar.getnames()}


def test_they_hold_what_belongs_into_them(dist: Path) -> None:
    wheel, sdist = names(dist)
    data = {name.partition(".data/data/")[2] for name in wheel if ".data/data/" in name}
    commands = {f"share/man/man1/lipsyncd-{name}.1" for name in main.commands}
    shells = (
        "bash-completion/completions/lipsyncd",
        "zsh/site-functions/_lipsyncd",
        "fish/vendor_completions.d/lipsyncd.fish",
    )
    others = {f"share/{name}" for name in ("man/man1/lipsyncd.1", "man/man5/lipsyncd.toml.5", *shells)}
    assert data == commands | others
    code = {name for name in wheel if name.startswith("lipsyncd/")}
    assert code == {name for name in sdist if name in code}
    assert {"lipsyncd/weights/lock.json", "lipsyncd/py.typed", "lipsyncd/web/openapi.json"} <= code
    page = {f"lipsyncd/web/page/{path.name}" for path in (ROOT / "lipsyncd/web/page").iterdir()}
    assert "lipsyncd/web/page/index.html" in page
    assert page <= code
    assert {
        "README.md",
        "LICENSE",
        "Makefile",
        "config/install.sh",
        "systemd/lipsyncd.service",
        "docs/install.md",
    } <= sdist
    assert [name for name in wheel | sdist if name.startswith(("tests", "config/", "build")) and name in wheel] == []


def test_pipx_installs_the_wheel_and_the_demo_runs_in_an_empty_folder(dist: Path, tmp_path: Path) -> None:
    """As a user who has nothing but the file. pipx makes a fresh virtual environment."""
    run(sys.executable, "-m", "venv", tmp_path / "tools", cwd=tmp_path)
    run(tmp_path / "tools/bin/pip", "install", "--quiet", "pipx", cwd=tmp_path)
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "LANG", "TMPDIR"))}
    folders = {f"PIPX_{kind}": str(tmp_path / kind.lower()) for kind in ("HOME", "BIN_DIR", "MAN_DIR")}
    path = f"{tmp_path}/tools/bin:{tmp_path}/bin_dir:/usr/local/bin:/usr/bin:/bin"
    variables = {**kept, **folders, "PATH": path, "HOME": str(tmp_path)}
    [wheel] = dist.glob("*.whl")
    run(tmp_path / "tools/bin/pipx", "install", f"{wheel}[demo]", cwd=tmp_path, environ=variables)
    empty = tmp_path / "empty"
    empty.mkdir()
    run(tmp_path / "bin_dir/lipsyncd", "demo", "Hello from a wheel.", cwd=empty, environ=variables)
    videos = [inspect(empty / "demo-out" / f"demo-{kind}.mp4") for kind in ("square", "whole")]
    assert all(video.video.frames > 25 for video in videos)
    assert (tmp_path / "man_dir/man1/lipsyncd-submit.1").exists()

    # The remedy for a missing extra: pip takes the installed lipsyncd, and asks no index for it.
    run(
        tmp_path / "tools/bin/pipx",
        "runpip",
        "lipsyncd",
        "install",
        "--no-index",
        "lipsyncd[tts]",
        cwd=empty,
        environ=variables,
    )
