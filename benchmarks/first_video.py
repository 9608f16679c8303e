"""Print how long the first video takes: `lipsyncd render` of 3 s of voice, with an empty home and no cache.

    python -m benchmarks.first_video [PYTHON]

PYTHON is the interpreter of another environment, such as one that was just made:

    python3 -m venv fresh && fresh/bin/pip install '.[tts]'
    python -m benchmarks.first_video fresh/bin/python

Each figure is given three times. Processor time is that of all processes together; other work on the machine changes it
little, and the wall time much.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from tests.kits.media.media_kit import wav
from tests.kits.media.portraits import picture
from tests.kits.media.preview_kit import voice

RUNS = 3
SENTENCE = "Hello, my name is Grace. I was a photograph."
# From the start of the child until its first frame is rendered, in a program that has everything else ready.
FIRST_FRAME = """
import sys, time
from lipsyncd.inbox.submit import manifest_of
from lipsyncd.settings import load
from lipsyncd.standalone.session import Session

class Seen(Exception):
    pass

def report(now):
    if now.stage == "rendering" and now.done:
        raise Seen

with Session(load()) as session:
    manifest = manifest_of(image="grace.png", audio="three.wav", text=None, renderer="preview")
    with session.prepared(manifest, "grace", report=lambda _: None) as ready:
        began_s = time.monotonic()
        try:
            session.run(session.request(ready, "out.mp4"), report)
        except Seen:
            print(time.monotonic() - began_s)
"""


def measured(command: list[str], home: Path) -> tuple[float, float, str]:
    """Wall time, processor time of all processes, and the output of a command with an empty home."""
    variables = {"PATH": "/usr/bin:/bin", "HOME": str(home)}
    before, began_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, cwd=home, env=variables, capture_output=True, text=True, check=True)
    wall_s, after = time.monotonic() - began_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def inputs(home: Path) -> None:
    """A photograph, and three seconds of voice."""
    Image.fromarray(picture("hopper")).save(home / "grace.png")
    samples = voice(SENTENCE)[: 3 * 16_000]
    (home / "three.wav").write_bytes(wav(samples.astype("<i2").tobytes()))


def main() -> None:
    python = str(Path(sys.argv[1]).absolute()) if len(sys.argv) > 1 else sys.executable
    walls, processors, firsts = [], [], []
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory(prefix="lipsyncd-bench-") as folder:
            home = Path(folder)
            inputs(home)
            render = [python, "-m", "lipsyncd", "render", "grace.png", "three.wav", "--renderer", "preview"]
            wall_s, processor_s, _ = measured(render, home)
            walls.append(wall_s)
            processors.append(processor_s)
            firsts.append(float(measured([python, "-c", FIRST_FRAME], home)[2]))
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    print(f"| `lipsyncd render` of 3 s of voice, wall time | {shown(walls)} |")
    print(f"| the same, processor time of all its processes | {shown(processors)} |")
    print(f"| start of the render child to its first frame, wall time | {shown(firsts)} |")
    print(f"({load:.1f} processes for each core, these ones included)")


def shown(times: list[float]) -> str:
    return ", ".join(f"{seconds:.1f}" for seconds in times) + " s"


if __name__ == "__main__":
    main()
