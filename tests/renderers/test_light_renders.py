"""A default job needs no compiler: nothing that compiles code at run time is installed for it, or loaded by it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement

from tests.kits.media.preview_kit import astronaut, voice

ROOT = Path(__file__).resolve().parents[2]
COMPILERS = {"librosa", "llvmlite", "numba", "scikit-learn", "scipy", "sklearn"}

RENDER = """
import json, sys
import numpy as np
from fractions import Fraction
from lipsyncd.renderers import NAMES, Scene
from lipsyncd.renderers.__main__ import LoadedRenderers
inputs = np.load(sys.argv[1])
renderer = LoadedRenderers(dict(NAMES), "cpu").get("preview")
scene = Scene(inputs["picture"], inputs["speech"], Fraction(25), 25, False, 256)
count = sum(1 for frame in renderer.open(scene).frames())
print(json.dumps([count, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def test_a_render_of_a_default_job_loads_no_compiler(tmp_path):
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, picture=astronaut().picture, speech=voice("Good morning! How do you do?")[:16_000])
    done = subprocess.run(
        [sys.executable, "-c", RENDER, str(inputs)],
        env={"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    frames, loaded = json.loads(done.stdout)

    assert frames == 25
    assert {"cv2", "numpy"} <= set(loaded)
    assert COMPILERS & set(loaded) == set()


def test_a_base_installation_brings_no_compiler():
    needed = requirements_of("dependencies")

    assert {"numpy", "pillow", "opencv-python-headless"} <= needed
    assert COMPILERS & needed == set()


def test_the_image_without_a_gpu_brings_no_compiler():
    locked = set(re.findall(r"^([\w.-]+)==", (ROOT / "config/locks/preview.txt").read_text(), re.MULTILINE))

    assert "numpy" in locked
    assert COMPILERS & locked == set()


def requirements_of(group: str) -> set[str]:
    """The packages that pip installs for a list in pyproject.toml, with what they need in turn."""
    waiting = [Requirement(line) for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][group]]
    found: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted = waiting.pop()
        key = (re.sub(r"[-_.]+", "-", wanted.name).lower(), frozenset(wanted.extras))
        if key in found:
            continue
        found.add(key)
        for line in metadata.requires(wanted.name) or []:
            part = Requirement(line)
            if part.marker is None or any(part.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)):
                waiting.append(part)
    return {name for name, _ in found}
