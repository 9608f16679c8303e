"""Print how long the frames pause between two jobs: from the last frame of one to the first frame of the next.

    python -m benchmarks.between_jobs

`preview` in a daemon that has a queue, and `musetalk` with small random networks in a render child, with a hint at the
next job and without one.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.figures import scratch, speech_wav
from lipsyncd.jobs.prepared import Picture, Sound
from lipsyncd.media.ffmpeg import find
from lipsyncd.worker.child_process import LocalChild, Timeouts
from lipsyncd.worker.protocol import Next, Render
from tests.kits.installation import put
from tests.kits.media import portraits
from tests.kits.media.media_kit import encoded
from tests.kits.media.musetalk_kit import hum, portrait, write_weights

JOBS, SECONDS = 6, 4.0
PREVIEW = "counted=tests.kits.media.counted_preview:CountedPreview"
MUSETALK = "counted=tests.kits.media.counted_musetalk:CountedMuseTalk"


def gaps_ms(noted: Path) -> list[float]:
    """Milliseconds from each last frame to the first frame that follows."""
    times = [(what, float(at_s)) for what, _, at_s in map(str.split, noted.read_text().splitlines())]
    ends, starts = ([at_s for what, at_s in times if what == wanted] for wanted in ("last", "first"))
    return [1000 * (start - end) for end, start in zip(ends, starts[1:], strict=False)]


def say(name: str, gaps: list[float]) -> None:
    print(f"{name}: median {statistics.median(gaps):.0f} ms, most {max(gaps):.0f} ms, {len(gaps)} pauses", flush=True)


def preview() -> None:
    """Six jobs of 4 s that wait in the queue; the first two are left out, since the third waits while they run."""
    with tempfile.TemporaryDirectory(prefix="lipsyncd-bench-") as folder:
        noted = Path(folder, "noted")
        render = {"renderer": "preview", "renderers": [PREVIEW], "environment": ["TEST_OPENS"]}
        installation = scratch(render=render)
        with installation.running(TEST_OPENS=str(noted)):
            for number in range(JOBS):
                name = f"job{number}"
                image = Image.fromarray(portraits.picture(("ada", "astronaut")[number % 2]))
                put(installation.path("inbox"), f"{name}.png", encoded(image, "PNG"))
                put(installation.path("inbox"), f"{name}.wav", speech_wav(SECONDS + number / 10))
                files = {"image": f"{name}.png", "audio": f"{name}.wav"}
                installation.drop_manifest(name, **files, renderer="counted", stitch=True)
            for number in range(JOBS):
                installation.until_state(f"job{number}", "done", seconds=300)
        say("preview in a daemon", gaps_ms(noted)[1:])


def request(folder: Path, number: int) -> Render:
    folder.mkdir()
    pixels, speech = portrait(241, 221), (hum(1.0 + number / 10) * 24_000).astype("<i2")
    pixels.tofile(folder / "picture.rgb")
    speech.tofile(folder / "speech.s16")
    np.repeat(speech, 3).tofile(folder / "sound.s16")
    return Render(
        job_id=folder.name,
        renderer="counted",
        folder=str(folder),
        out_file="out.mp4",
        picture=Picture("picture.rgb", pixels.shape[1], pixels.shape[0]),
        sound=Sound("speech.s16", len(speech), "sound.s16", 3 * len(speech), 48_000, 1),
        fps="25",
        frames=math.ceil(Fraction(len(speech), 16_000) * 25),
        stitch=True,
        resolution=128,
        encode={"ffmpeg": str(find()), "crf": 18, "preset": "veryfast", "audio_kbps": 128},
    )


def musetalk() -> None:
    with tempfile.TemporaryDirectory(prefix="lipsyncd-bench-") as name:
        folder, noted = Path(name), Path(name, "noted")
        weights = folder / "weights"
        weights.mkdir()
        write_weights(weights)
        os.environ["TEST_OPENS"] = str(noted)
        timeouts = Timeouts(300.0, 300.0, 300.0)
        variables = {"LIPSYNCD_WEIGHTS_DIR": str(weights), "PYTHONPATH": str(Path.cwd())}
        options: dict[str, Any] = {"renderers": [MUSETALK], "variables": variables, "environment": ["TEST_OPENS"]}
        child = LocalChild("cpu", lambda: timeouts, **options)
        jobs = [request(folder / f"job{number}", number) for number in range(JOBS)]
        for hinted in (False, True):
            for job, after in zip(jobs, [*jobs[1:], None], strict=True):
                hint = Next(**vars(after)) if after is not None and hinted else None
                child.render(job, progress=lambda _: None, stop=lambda: False, upcoming=lambda hint=hint: hint)
                time.sleep(0.05)  # as long as the daemon takes at least, to check and publish
            say(f"musetalk, small, {'with' if hinted else 'without'} a hint", gaps_ms(noted))
            noted.unlink()
        child.close()


if __name__ == "__main__":
    preview()
    musetalk()
