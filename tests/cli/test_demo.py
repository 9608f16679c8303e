"""`lipsyncd demo` as a newcomer runs it, and the picture in the README against its output."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
from PIL import Image

from lipsyncd.media.mp4 import inspect
from tests.kits.installation import Installation

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
