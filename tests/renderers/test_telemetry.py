"""onnxruntime reports nothing: neither an event nor an identifier of the machine is made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kits.media.voice_kit import humming

# This process opens no socket: the test itself must not report anything either.
QUIET = "from lipsyncd.sandbox import seccomp; seccomp.give_up('execve'); seccomp.restrict(); "
SESSION = (
    "import onnxruntime; onnxruntime.InferenceSession(open({!r}, 'rb').read(), providers=['CPUExecutionProvider'])"
)


@pytest.mark.parametrize(("before", "expected"), [("", True), ("import lipsyncd.renderers.piper.voice; ", False)])
def test_a_session_of_a_renderer_makes_no_place_for_an_identifier_of_the_machine(
    tmp_path: Path, before: str, expected: bool
) -> None:
    """With onnxruntime alone there is one: else this test would see nothing."""
    model, home = tmp_path / "model.onnx", tmp_path / "home"
    model.write_bytes(humming())
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, "-c", QUIET + before + SESSION.format(str(model))],
        env={**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    left = [path.name for path in home.rglob("*")]

    assert bool(left) is expected, left
