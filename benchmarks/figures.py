"""Print the figures of the daemon and the preview renderer, each beside a reference from the same run.

    python -m benchmarks.figures [start] [render] [faces] [memory] [sync] [length] [latency]

Without arguments it prints all of them, which takes some minutes on two cores. Ratios are more reliable than times:
other work on the machine affects both sides of a ratio.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from lipsyncd.jobs.job import Job, JobSpec
from lipsyncd.media.mp4 import inspect
from lipsyncd.prepare.inputs import decode_inputs
from lipsyncd.renderers.face.choose import choose_face
from lipsyncd.settings import Intake
from tests.kits.installation import Installation, picture, put, sound
from tests.kits.machine.start_cost import least_cpu_s
from tests.kits.media import portraits
from tests.kits.media.media_kit import encoded, ffmpeg, wav
from tests.kits.media.preview_kit import (
    best_lag,
    correlation,
    loudness,
    mouth_change,
    openings,
    render,
    silence,
    subjects,
    voice,
)

RUNS = 20
SENTENCE = "The quick brown fox jumps over the lazy dog, and nobody seems to mind."


def say(name: str, value: str) -> None:
    print(f"| {name} | {value} |", flush=True)


def scratch(**changes: dict[str, object]) -> Installation:
    installation = Installation(Path(tempfile.mkdtemp(prefix="lipsyncd-bench-")))
    installation.changes = {
        "render": {"renderer": "preview", "job_timeout_s": 3600},
        "output": {"preset": "veryfast"},
        **changes,
    }
    return installation


# -- the command line --------------------------------------------------------------------------------------------------


def start() -> None:
    """`lipsyncd status` against `import click`, in processor time, which other programs disturb least."""
    installation = scratch()
    commands = {
        "status": [sys.executable, "-m", "lipsyncd", "--config", str(installation.config), "status"],
        "click": [sys.executable, "-c", "import click"],
    }
    with installation.running():
        least = least_cpu_s(commands, installation.environment(), runs=RUNS)
    ours, theirs = least["status"], least["click"]
    value = f"{ours / theirs:.2f} ({ours * 1e3:.0f} / {theirs * 1e3:.0f} ms)"
    say(f"`lipsyncd status` / `import click`, processor time, least of {RUNS} runs", value)


# -- rendering ---------------------------------------------------------------------------------------------------------


def speech_wav(seconds: float) -> bytes:
    """A spoken WAV of exactly that length."""
    spoken = voice(SENTENCE)
    return wav(np.resize(spoken, round(seconds * 16_000)).astype("<i2").tobytes())


def do_job(installation: Installation, name: str, seconds: float, portrait: str = "astronaut", **fields: object) -> Job:
    put(installation.path("inbox"), f"{name}.png", encoded(Image.fromarray(portraits.picture(portrait)), "PNG"))
    put(installation.path("inbox"), f"{name}.wav", speech_wav(seconds))
    installation.drop_manifest(name, image=f"{name}.png", audio=f"{name}.wav", **fields)
    job = installation.until_state(name, *_ENDED, seconds=1200)
    assert job.state == "done", f"{job.reason_code}: {job.reason}"
    return job


def render_speed() -> None:
    """Whole jobs of 30 s in a warm child, encoding included, against real time."""
    installation = scratch()
    framings = (("whole picture", {"stitch": True}), ("square", {"stitch": False, "resolution": 512}))
    with installation.running():
        do_job(installation, "warm", 1.0)
        for portrait, (framing, fields), motion in product(("astronaut", "ada"), framings, ("none", "subtle")):
            name = f"{portrait}-{framing.split()[0]}-{motion}"
            job = do_job(installation, name, 30.0, portrait, motion=motion, **fields)
            speed = (job.duration_ms or 0) / (job.render_ms or 1)
            value = f"{speed:.1f} times real time ({job.render_fps:.0f} fps)"
            say(f"preview, 512x512, {portrait}, {framing}, motion {motion}", value)


def faces() -> None:
    """What the search for a face adds to the preparing of a job: median of wall clock, least processor time."""
    spec = JobSpec("id", "anna", "anna", "preview", False, 256, Fraction(25), 0)
    others = replace(spec, renderer="flat")  # a renderer that decides about faces itself
    cat = np.asarray(skimage.data.cat())
    with tempfile.TemporaryDirectory(prefix="lipsyncd-bench-") as scratch_folder:
        folder = Path(scratch_folder)
        (folder / "audio").write_bytes(speech_wav(5.0))
        for name, image in (("a face in the whole frame", portraits.picture("astronaut")), ("none anywhere", cat)):
            (folder / "image").write_bytes(encoded(Image.fromarray(image), "PNG"))
            took: dict[str, list[tuple[float, float]]] = {"with": [], "without": []}
            for _ in range(RUNS):
                for key, one in (("with", spec), ("without", others)):
                    began, used = time.perf_counter(), _cpu_s()
                    decode_inputs(one, folder, limits=Intake(), ffmpeg=ffmpeg())
                    took[key].append((time.perf_counter() - began, _cpu_s() - used))
            wall = [statistics.median(each[0] for each in took[key]) for key in ("with", "without")]
            cpu = [min(each[1] for each in took[key]) for key in ("with", "without")]
            more = f"{wall[0] - wall[1]:.2f} s more than the {wall[1]:.2f} s of decoding"
            say(f"search for a face, {name}", f"{more}; processor {cpu[0] - cpu[1]:.2f} of {cpu[0]:.2f} s")


def _cpu_s() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def memory() -> None:
    """The largest resident sizes of the render child and its ffmpeg during ten minutes of voice."""
    installation = scratch()
    with installation.running():
        do_job(installation, "warm", 1.0)
        child = int(installation.log.split("render child for cpu started, pid ")[1].split()[0])
        most = _Watcher(child)
        job = do_job(installation, "long", 600.0, stitch=True)
        most.end()
    speed = (job.duration_ms or 0) / (job.render_ms or 1)
    say("render child, 10 min of voice", f"{most.child_mb:.0f} MB, its ffmpeg {most.ffmpeg_mb:.0f} MB; {speed:.1f} x")


class _Watcher(threading.Thread):
    """Reads the peak resident size of a process and of its children, twice a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.child_mb = self.ffmpeg_mb = 0.0
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._over.wait(0.5):
            self.child_mb = max(self.child_mb, peak_mb(self.pid))
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
            self.ffmpeg_mb = max([self.ffmpeg_mb, *(peak_mb(int(pid)) for pid in children)])

    def end(self) -> None:
        self._over.set()
        self.join()


def peak_mb(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0")
    return int(line.split()[1]) / 1024


def sync() -> None:
    """How well the mouth follows the voice, for each portrait."""
    speech = voice(SENTENCE)
    for subject in subjects():
        frames = render(subject.picture, speech)
        level = loudness(speech, len(frames))
        still = render(subject.picture, silence(0.2))[0]
        change = mouth_change(frames, still, choose_face(subject.picture).box)
        heights = openings(frames, subject)[:, 0]
        figures = f"r = {correlation(change, level):.2f}, lag {best_lag(change, level)} frames"
        say(f"sync, {subject.name}", f"{figures}; height of the opening r = {correlation(heights, level):.2f}")


def length() -> None:
    """Picture against sound after five minutes, at each rate."""
    installation = scratch(render={"renderer": "flat", "renderers": list(_FLAT)}, output={"resolution": 64})
    with installation.running():
        for fps in ("24", "25", "29.97", "30", "60"):
            name = f"five-{fps}"
            put(installation.path("inbox"), f"{name}.png", picture())
            put(installation.path("inbox"), f"{name}.wav", sound(300.01))
            installation.drop_manifest(name, image=f"{name}.png", audio=f"{name}.wav", fps=fps)
            installation.until_state(name, *_ENDED, seconds=600)
            facts = inspect(installation.path("outbox") / f"{name}.mp4")
            late_ms = float(facts.video.duration - facts.audio.duration) * 1000
            frame_ms = float(1000 / facts.video.rate)
            say(f"5 min at {fps} fps: picture longer than sound by", f"{late_ms:.1f} ms (a frame is {frame_ms:.1f} ms)")


# -- the inbox ---------------------------------------------------------------------------------------------------------


def latency() -> None:
    """From the rename into the inbox to the row in the ledger, for 200 pairs one after another."""
    installation = scratch(render={"renderer": "missing", "renderers": list(_FLAT)}, watch={"settle_proven_s": 0.2})
    waits = []
    with installation.running():
        for number in range(200):
            put(installation.path("inbox"), f"p{number}.png", picture(number))
            put(installation.path("inbox"), f"p{number}.wav", sound(0.3, number))
            dropped_ms = time.time() * 1000
            job = installation.until(lambda n=f"p{number}": installation.job(n), "the acceptance")
            waits.append(job.accepted_ms - dropped_ms)
    waits.sort()
    say("drop to accepted, local rename-in", f"p50 {waits[100]:.0f} ms, p99 {waits[197]:.0f} ms (settle 200 ms)")


_ENDED = ("done", "failed", "cancelled")
_FLAT = ("flat=tests.kits.faults.faulty_renderers:Flat", "missing=tests.no_such_module:Nothing")
FIGURES: dict[str, Callable[[], None]] = {
    "start": start,
    "render": render_speed,
    "faces": faces,
    "memory": memory,
    "sync": sync,
    "length": length,
    "latency": latency,
}


def main(wanted: Sequence[str]) -> None:
    unknown = set(wanted) - set(FIGURES)
    if unknown:
        sys.exit(f"no figure {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")
    versions = f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}"
    print(f"{time.strftime('%Y-%m-%d')}, {versions}, load {os.getloadavg()[0]:.1f}\n\n| figure | value |\n|---|---|")
    for name in wanted or FIGURES:
        FIGURES[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
