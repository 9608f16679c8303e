"""How much sooner one long job is done on several slots: `python -m benchmarks.long_job` prints tables.

The job is drawn in parts on 1, 2 and 4 slots of one Ray node on this machine, with a renderer that waits 0.2 s for each
frame, as a GPU would keep it waiting. So this measures placing, copying, joining, checking and publishing, and neither
GPUs nor a network. The time runs from the claim, when all render children are up, to the publication. The second table
compares a joined video with its parts.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np

from lipsyncd.media.mp4 import inspect
from lipsyncd.renderers.encoder import Encoder
from lipsyncd.storage.files import read_json
from lipsyncd.worker.split.join import Part, join
from tests.kits.installation import Installation
from tests.kits.media.video_kit import FFMPEG, chirp, decoded_frames, decoded_sound, drifting, encoding, packets
from tests.system.executors.ray_kit import RayMachines, installation_on, ray_machines, start_on_ray

LONG_S = 16.0  # 400 frames of 0.2 s: 80 s for the long job
PART = 100  # frames
SLOTS = (1, 2, 4)
PARTS, SIDE = (0, 250, 500, 750, 1000), 256  # of the video that is compared with its parts


def long_job_s(machines: RayMachines, root: Path, slots: int) -> float:
    """Seconds from the claim to the publication of one long job, which all slots may draw."""
    root.mkdir()
    daemon = installation_on(machines, Installation(root), workers=slots)
    daemon.changes["render"] = {"renderer": "slow", "lazy_load": False}
    daemon.changes["executor.split"] = {"mode": "auto", "min_frames": 2 * PART, "segment_frames": PART}
    start_on_ray(daemon)

    def loaded() -> bool:
        found = (read_json(daemon.path("state") / "status.json") or {}).get("slots", [])
        return sum(slot["state"] == "loaded" for slot in found) == slots

    try:
        daemon.until(loaded, "all render children")
        daemon.drop_pair("long", seconds=LONG_S)
        job = daemon.until_done("long")
        parts = (read_json(daemon.path("outbox") / "long.json") or {})["notes"].get("segments", 1)
        assert (parts > 1) == (slots > 1), parts
        assert job.finished_ms is not None and job.started_ms is not None
        return (job.finished_ms - job.started_ms) / 1000
    finally:
        daemon.stop()


def joined_rows(folder: Path) -> list[tuple[str, str]]:
    """What a joined video has of its parts, and of a video that is encoded in one piece."""
    fps = Fraction(25)
    how = encoding(folder, fps, chirp(PARTS[-1] * 1920, 1), SIDE, SIDE)
    shown = [picture.copy() for picture in drifting(PARTS[-1], SIDE, SIDE)]

    def encode(name: str, start: int, stop: int, sound: bool) -> Path:
        with Encoder(FFMPEG, how if sound else replace(how, sound=None, channels=0), folder / name) as encoder:
            for picture in shown[start:stop]:
                encoder.write(picture)
            encoder.finish()
        return folder / name

    parts = [
        Part(encode(f"part.{number}.mp4", start, stop, sound=False), stop - start)
        for number, (start, stop) in enumerate(pairwise(PARTS))
    ]
    whole, target = encode("whole.mp4", 0, PARTS[-1], sound=True), folder / "joined.mp4"
    began_s = time.perf_counter()
    join(parts, how, target, ffmpeg=FFMPEG)
    took_s = time.perf_counter() - began_s
    first = 0
    equal = 0
    frames = decoded_frames(target, SIDE, SIDE)
    for part in parts:
        own = decoded_frames(part.path, SIDE, SIDE)
        equal += sum(map(np.array_equal, frames[first : first + part.frames], own))
        first += part.frames
    steps = [after[0] - before[0] for before, after in pairwise(packets(target, "0:v"))]
    sound, source = decoded_sound(target, 1), decoded_sound(whole, 1)
    assert inspect(target).audio == inspect(whole).audio
    return [
        ("frames equal to those of the parts", f"{equal} of {len(frames)}"),
        ("packet steps of exactly 1/25 s", f"{sum(step == 1 / fps for step in steps)} of {len(steps)}"),
        ("samples of sound, and in a video encoded in one piece", f"{len(sound)}, {len(source)}"),
        ("samples that are equal", f"{int((sound == source).sum()) if len(sound) == len(source) else 0}"),
        ("bytes, and of a video encoded in one piece", f"{target.stat().st_size}, {whole.stat().st_size}"),
        ("time to join", f"{took_s:.1f} s"),
    ]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        home = root / "home"
        home.mkdir()
        with ray_machines(root, home, head_gpus=max(SLOTS)) as machines:
            took_s = {slots: long_job_s(machines, root / str(slots), slots) for slots in SLOTS}
        print("| slots | one long job | efficiency |\n|---|---|---|")
        for slots, seconds in took_s.items():
            print(f"| {slots} | {seconds:.1f} s | {took_s[1] / slots / seconds:.3f} |")
        print(f"\n| a video of {len(PARTS) - 1} parts of {PARTS[1]} frames, joined | |\n|---|---|")
        for what, seen in joined_rows(root):
            print(f"| {what} | {seen} |")


if __name__ == "__main__":
    main()
