"""What one job costs inside the daemon: `python -m benchmarks.job_trace` prints a table, one column for each length.

A `Daemon` runs in this process under `sys.setprofile`, with the renderer `preview` slowed down to real time, so that a
sound of 40 s also renders for 40 s. A first job warms everything up. Then the daemon idles for a while, which gives the
rates of its periodic work, and the traced job runs from its drop into the inbox until its spool folder is gone. What
an idle daemon does in that time is taken off; the rest is the job.

    files             files of lipsyncd/ of which some function ran
    moves             calls from a function of one of these files to a function of another
    different moves   the same, each pair of files counted once
    ledger statements SQL statements on the ledger in this process, without BEGIN, COMMIT and pragmas
    JSON reads        texts parsed in this process, without the messages of the render child

To trace an older version, copy this file into its `benchmarks/` and run it there with `PYTHONPATH=.`; `--daemon` names
the module of its class `Daemon`.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import re
import sqlite3
import sys
import tempfile
import threading
import time
import wave
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import lipsyncd
from lipsyncd.renderers import Scene, Shot
from lipsyncd.settings import Settings, load

PACKAGE = f"{Path(lipsyncd.__file__).parent}{os.sep}"
IDLE_S = 6.0
WAIT_S = 300.0
TRANSACTION = ("BEGIN", "COMMIT", "ROLLBACK", "PRAGMA", "--")  # a trigger's statements begin with --
LITERAL = re.compile(r"'[^']*'|\b\d[\d.]*")
MESSAGES = "protocol.py"  # parses what the render child sends


class RealTime:
    """The renderer `preview`, which gives each frame at the time at which the video shows it."""

    def __init__(self, device: str) -> None:
        from lipsyncd.renderers.preview import Preview

        self._preview = Preview(device)

    def open(self, scene: Scene) -> Shot:
        shot = self._preview.open(scene)
        made = shot.frames

        def frames() -> Iterator[Any]:
            started_s = time.monotonic()
            for number, frame in enumerate(made()):
                time.sleep(max(0.0, started_s + float(number / scene.fps) - time.monotonic()))
                yield frame

        shot.frames = frames  # type: ignore[method-assign]
        return shot

    def close(self) -> None:
        self._preview.close()


# -- counting ----------------------------------------------------------------------------------------------------------


@dataclass
class Counts:
    """What was counted between two moments that lie `seconds` apart."""

    seconds: float = 0.0
    files: Counter[str] = field(default_factory=Counter)
    moves: Counter[tuple[str, str]] = field(default_factory=Counter)
    statements: Counter[tuple[str, str]] = field(default_factory=Counter)  # (thread, SQL)
    json_reads: Counter[str] = field(default_factory=Counter)  # by the function that parses

    def without(self, idle: Counts) -> Counts:
        """These counts less what an idle daemon does in the same time."""
        share = self.seconds / idle.seconds
        pairs = ((self.files, idle.files), (self.moves, idle.moves))
        files, moves = (_less(ours, theirs, share) for ours, theirs in pairs)
        statements = _less(self.statements, idle.statements, share)
        return Counts(self.seconds, files, moves, statements, _less(self.json_reads, idle.json_reads, share))


def _less(counted: Counter[Any], idle: Counter[Any], share: float) -> Counter[Any]:
    return +Counter({key: count - round(idle[key] * share) for key, count in counted.items()})


class Trace:
    """Counts in all threads that start after `install`. The profile function must not raise and stays short."""

    def __init__(self) -> None:
        self.counts = Counts()
        self._began_s = time.monotonic()
        self._here = threading.local()

    def install(self, ledger: Path) -> None:
        connect = sqlite3.connect

        def traced_connect(database: Any, *arguments: Any, **options: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(database, *arguments, **options)
            if str(ledger) in os.fsdecode(database):
                connection.set_trace_callback(self._on_statement)
            return connection

        sqlite3.connect = sqlite3.dbapi2.connect = traced_connect  # type: ignore[assignment]
        threading.setprofile(self._on_event)
        sys.setprofile(self._on_event)

    def cut(self) -> Counts:
        """What was counted since the last cut."""
        now_s = time.monotonic()
        counted, self.counts = self.counts, Counts()
        counted.seconds, self._began_s = now_s - self._began_s, now_s
        return counted

    def _on_statement(self, statement: str) -> None:
        if not statement.startswith(TRANSACTION):
            shape = LITERAL.sub("?", " ".join(statement.split()))  # equal for each id and each time
            self.counts.statements[threading.current_thread().name, shape[:100]] += 1

    def _on_event(self, frame: FrameType, event: str, _argument: object) -> None:
        if event not in ("call", "return"):
            return
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE):
            if event == "call" and code.co_name == "loads" and code.co_filename.endswith("json/__init__.py"):
                self._on_json(frame)
            return
        if code.co_name == "<module>":
            return
        stack: list[str] = self._here.__dict__.setdefault("files", [])
        if event == "return":
            if stack:  # empty for functions that were entered before the profile function was set
                stack.pop()
            return
        file = code.co_filename[len(PACKAGE) :]
        self.counts.files[file] += 1
        if stack and stack[-1] != file:
            self.counts.moves[stack[-1], file] += 1
        stack.append(file)

    def _on_json(self, frame: FrameType) -> None:
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(PACKAGE):
            caller = caller.f_back
        if caller is not None and not caller.f_code.co_filename.endswith(MESSAGES):
            if caller.f_code.co_name == "read_json" and caller.f_back is not None:
                caller = caller.f_back
            self.counts.json_reads[f"{caller.f_code.co_filename[len(PACKAGE) :]}: {caller.f_code.co_name}"] += 1


# -- the jobs ----------------------------------------------------------------------------------------------------------


def settings_in(root: Path) -> Settings:
    """Defaults but for the place, the renderer, and REST, which a dropped job does not need."""
    config = root / "lipsyncd.toml"
    config.write_text(
        f'[paths]\nstorage = "{root}/storage"\n[web]\nenabled = false\n'
        f'[render]\nrenderer = "real-time"\nrenderers = ["real-time={__spec__.name}:RealTime"]\ndevices = ["cpu"]\n'
    )
    return load(config, environ={"HOME": str(root)})


def drop(inbox: Path, stem: str, seconds: float) -> None:
    from PIL import Image
    from skimage import data

    parts = {"png": inbox / f".{stem}.png.part", "wav": inbox / f".{stem}.wav.part"}
    Image.fromarray(data.astronaut()).save(parts["png"], "PNG")
    with wave.open(str(parts["wav"]), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        tone = (int(12_000 * math.sin(2 * math.pi * 220 * n / 16_000)) for n in range(round(seconds * 16_000)))
        file.writeframes(b"".join(sample.to_bytes(2, "little", signed=True) for sample in tone))
    for ending, part in parts.items():
        part.rename(inbox / f"{stem}.{ending}")


def until(done: Any, what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not done():
        if time.monotonic() > deadline_s:
            raise TimeoutError(what)
        time.sleep(0.02)


def run_job(settings: Settings, stem: str, seconds: float) -> None:
    """Drop a job and wait until its video is in the outbox and its folder is gone from the spool."""
    paths = settings.paths
    drop(paths.inbox, stem, seconds)
    until((paths.outbox / f"{stem}.json").exists, f"the sidecar of {stem}")
    until(lambda: not [name for name in os.listdir(paths.spool) if not name.startswith(".")], "an empty spool")


def trace_jobs(settings: Settings, trace: Trace, lengths: list[float]) -> list[Counts]:
    """The counts of one job of each length, without those of an idle daemon."""
    until(lambda: settings.paths.inbox.is_dir() and (settings.paths.state / "status.json").exists(), "the daemon")
    run_job(settings, "warm-up", 1.0)
    time.sleep(1.0)
    trace.cut()
    time.sleep(IDLE_S)
    idle, jobs = trace.cut(), []
    for seconds in lengths:
        trace.cut()
        run_job(settings, f"job-{seconds:g}", seconds)
        jobs.append(trace.cut().without(idle))
        time.sleep(1.0)
    return jobs


def show(lengths: list[float], jobs: list[Counts], details: bool) -> None:
    rows = {
        "took, s": [f"{job.seconds:.1f}" for job in jobs],
        "files": [len(job.files) for job in jobs],
        "moves": [job.moves.total() for job in jobs],
        "different moves": [len(job.moves) for job in jobs],
        "ledger statements": [job.statements.total() for job in jobs],
        "JSON reads": [job.json_reads.total() for job in jobs],
    }
    print(f"| a job with a sound of | {' | '.join(f'{seconds:g} s' for seconds in lengths)} |")
    print(f"|---|{'---|' * len(jobs)}")
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(map(str, values))} |")
    if details:
        for title, name in (("ledger statements", "statements"), ("JSON reads", "json_reads"), ("moves", "moves")):
            for seconds, job in zip(lengths, jobs, strict=True):
                print(f"\n{title}, sound of {seconds:g} s")
                for key, count in getattr(job, name).most_common():
                    print(f"{count:6}  {key if isinstance(key, str) else '  '.join(key)}")


def main() -> None:
    parser = argparse.ArgumentParser(description="What one job costs inside the daemon.")
    parser.add_argument("lengths", nargs="*", type=float, default=[3.0, 40.0], help="lengths of the sound, in seconds")
    parser.add_argument("--details", action="store_true", help="also print each statement, JSON read and move")
    parser.add_argument("--daemon", default="lipsyncd.daemon.daemon", help="the module that holds the class Daemon")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lipsyncd-trace-") as scratch:
        settings = settings_in(Path(scratch))
        daemon = importlib.import_module(options.daemon).Daemon(settings)
        trace, jobs, failures = Trace(), [], []

        def drive() -> None:
            try:
                jobs.extend(trace_jobs(settings, trace, options.lengths))
            except Exception as error:
                failures.append(error)
            finally:
                daemon.stop()

        threading.Thread(target=drive, name="drive").start()  # before `install`: not traced
        trace.install(settings.paths.state / "ledger.db")
        status = daemon.run()  # in the main thread, as it takes signals
        sys.setprofile(None)
        if status or failures:
            sys.exit(f"the daemon ended with {status}: {failures}")
        show(options.lengths, jobs, options.details)


if __name__ == "__main__":
    main()
