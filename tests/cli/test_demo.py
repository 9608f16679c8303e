"""`lipsyncd demo` as a newcomer runs it, and the picture in the README against its output."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lipsyncd.media.mp4 import inspect
from tests.kits.installation import ROOT, Installation

SHEET = Path(__file__).resolve().parents[2] / "benchmarks" / "contact-sheet.jpg"


def test_the_demo_makes_two_videos_and_the_contact_sheet_of_the_readme(
    installation: Installation, tmp_path: Path
) -> None:
    started = time.monotonic()
    out = tmp_path / "demo-out"
    done = installation.cli("demo", "--out", out)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 60

    assert {p.name for p in out.iterdir()} == {
        *("demo-square.mp4", "demo-square.json", "demo-whole.mp4", "demo-whole.json", "contact-sheet.png")
    }
    for name in ("demo-square", "demo-whole"):
        facts = inspect(out / f"{name}.mp4")
        sidecar = json.loads((out / f"{name}.json").read_text())
        assert (facts.video.width, facts.video.height) == (512, 512)
        assert facts.video.frames == sidecar["frames"] > 100
        assert sidecar["renderer"] == "preview"
        assert str(out / f"{name}.mp4") in done.stdout

    made, shown = Image.open(out / "contact-sheet.png").convert("RGB"), Image.open(SHEET).convert("RGB")
    assert made.size == shown.size
    difference = np.abs(np.asarray(made, np.int16) - np.asarray(shown, np.int16))
    assert difference.mean() < 2.5, "the README's contact sheet is out of date: copy the demo's new one"


def test_the_demo_speaks_any_sentence_beside_other_daemons_and_settings(
    installation: Installation, tmp_path: Path
) -> None:
    out = tmp_path / "own"
    with ExitStack() as stack:
        with suppress(OSError):  # the port is in use already, for example by another daemon
            stack.enter_context(socket.create_server(("127.0.0.1", 8003)))
        others = {"STORAGE_DIR": "/nonexistent", "LIPSYNCD_RENDER_RENDERER": "musetalk"}
        done = installation.cli("demo", "One two.", "--out", out, **others)
    assert done.returncode == 0, done.stderr
    assert inspect(out / "demo-square.mp4").video.frames < 60


def test_the_demo_needs_no_torch() -> None:
    """The modules that the demo's daemon and child import load none of the heavy libraries."""
    modules = "lipsyncd.cli.demo, lipsyncd.daemon.daemon, lipsyncd.renderers.__main__, lipsyncd.renderers.preview"
    code = f"import sys, {modules}; print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "text", ["Good day.", 'It\'s "quoted".', "5 $ or $5, $HOME and `id`", "back\\slash", "$(TEXT)"]
)
def test_make_hands_the_sentence_on_as_it_was_given(text: str) -> None:
    make = ["make", "-n", "--no-print-directory", "demo", f"TEXT={text}"]
    # `make test` sets variables by which a make inside it prints more.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    shown = subprocess.run(make, capture_output=True, text=True, check=True, cwd=ROOT, env=alone).stdout
    program, _, rest = shown.splitlines()[-1].partition(" demo ")
    assert program.endswith("bin/lipsyncd")
    assert subprocess.run(["sh", "-c", f"printf %s {rest}"], capture_output=True, text=True, check=True).stdout == text


PIP = """#!/bin/sh
echo "Collecting click>=8.1 (from lipsyncd==0.1.0)"
echo "  Downloading click-8.4.2-py3-none-any.whl.metadata (2.6 kB)"
echo "Requirement already satisfied: numpy in /usr/lib"
echo "Downloading imageio_ffmpeg-0.6.0-py3-none-manylinux2014_x86_64.whl (68.0 MB)"
echo "Installing collected packages: click, rich, lipsyncd"
echo "ERROR: No matching distribution" >&2
exit {status}
"""


@pytest.mark.parametrize("status", [0, 3])
def test_an_installation_says_what_it_does_and_ends_as_pip_does(tmp_path: Path, status: int) -> None:
    pip = tmp_path / "venv" / "bin" / "pip"
    pip.parent.mkdir(parents=True)
    pip.write_text(PIP.format(status=status))
    pip.chmod(0o755)
    script = SHEET.parents[1] / "config" / "pip-install.sh"
    done = subprocess.run(["sh", script, tmp_path / "venv", "."], capture_output=True, text=True, check=False)
    assert done.returncode == status
    first, *lines = done.stdout.splitlines()
    assert first.startswith(f"lipsyncd: installing Python packages into {tmp_path}/venv")
    assert lines == ["  downloading imageio_ffmpeg, 68.0 MB", "  installing 3 packages"]
    assert ("pip failed" in done.stderr) is bool(status)
    assert "No matching distribution" in done.stderr
