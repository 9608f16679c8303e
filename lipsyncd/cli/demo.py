"""`lipsyncd demo`: a real daemon in a temporary folder makes two videos of a portrait and a spoken sentence.

It takes no short cut: lipsyncd speaks the sentence, the two files go into the inbox as a user's would, and the videos
come out of the outbox.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from lipsyncd.cli.display import progress
from lipsyncd.cli.wait import fetch, until_ended
from lipsyncd.errors import LipsyncdError, UsageError
from lipsyncd.extras import how_to_install
from lipsyncd.inbox.submit import drop
from lipsyncd.jobs.job import Job, JobState
from lipsyncd.jobs.manifest import Manifest
from lipsyncd.ledger.view import LedgerView
from lipsyncd.media.ffmpeg import find as find_ffmpeg
from lipsyncd.monitor.held_lock import is_held
from lipsyncd.prepare import speech
from lipsyncd.settings import Settings, load
from lipsyncd.storage.files import MOST_JSON_BYTES
from lipsyncd.storage.folders import Folders, folders_of

DEFAULT_TEXT = (
    "Hello! My name is Eileen. I was a photograph a moment ago, and now I am talking to you. "
    "Maybe we may go to the moon, above the blue sea, before autumn."
)
_KEPT_VARIABLES = ("HOME", "LANG", "PATH", "TMPDIR", "VIRTUAL_ENV")
_START_S = 30.0
_STOP_S = 40.0
_SHEET_COLUMNS, _SHEET_ROWS = 6, 3
_SHEET_FIRST, _SHEET_EVERY = 3, 2
_SHEET_TILE_PX = 240


def show(text: str, target: Path) -> None:
    """Make the videos and the contact sheet in `target`, and print their paths."""
    portrait = _portrait()
    started_s = time.monotonic()
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lipsyncd-demo-") as scratch:
        settings = _settings(Path(scratch))
        folders = folders_of(settings.paths)
        voice = Path(scratch) / "voice.wav"
        speech.speak(text, voice, voice=settings.speech.voice, words_per_minute=settings.speech.words_per_minute)
        with _daemon(settings):
            made = [
                _make(folders, settings, portrait, voice, target, name="demo-square", stitch=False),
                _make(folders, settings, portrait, voice, target, name="demo-whole", stitch=True),
            ]
    sheet = target / "contact-sheet.png"
    _contact_sheet(find_ffmpeg(), made[0][1], sheet)
    for (job, path), remark in zip(made, (", loading included", ""), strict=True):
        click.echo(f"{path}  {job.frames} frames in {(job.render_ms or 0) / 1000:.1f} s{remark}")
    click.echo(f"{sheet}")
    click.echo(f"total time {time.monotonic() - started_s:.0f} s")


def _portrait() -> Path:
    """The astronaut Eileen Collins (NASA, public domain), a picture that comes with scikit-image."""
    found = importlib.util.find_spec("skimage")
    picture = None if found is None or found.origin is None else Path(found.origin).parent / "data" / "astronaut.png"
    if picture is None or not picture.exists():
        raise UsageError("the demo needs a picture that comes with scikit-image", remedy=how_to_install("demo"))
    return picture


def _settings(scratch: Path) -> Settings:
    """Defaults, except for the folders, the renderer and the resolution. The user's own settings do not count."""
    config = scratch / "demo.toml"
    config.write_text(
        f'[paths]\nstorage = "{scratch}/storage"\n[render]\nrenderer = "preview"\n[output]\nresolution = 512\n'
        "[web]\nenabled = false\n"  # another daemon may have the port
    )
    return load(config, environ=_clean_environment())


@contextlib.contextmanager
def _daemon(settings: Settings) -> Iterator[None]:
    """A daemon in a process of its own, stopped with SIGTERM."""
    log = settings.paths.storage.parent / "daemon.log"
    command = [sys.executable, "-m", "lipsyncd", "--config", str(settings.file), "run"]
    with log.open("wb") as lines:
        # Commands beside the demo look for the daemon of their user, so this one leaves its pointer in its own folder.
        variables = {**_clean_environment(), "XDG_RUNTIME_DIR": str(log.parent)}
        daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=lines, env=variables)
    try:
        deadline_s = time.monotonic() + _START_S
        while not is_held(settings.paths.state):
            if daemon.poll() is not None or time.monotonic() > deadline_s:
                raise LipsyncdError(f"the daemon did not start: {log.read_text(errors='replace')[-800:]}")
            time.sleep(0.05)
        yield
    finally:
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            daemon.kill()


def _clean_environment() -> dict[str, str]:
    """The variables that any program needs, and none that would change the demo's settings."""
    return {name: value for name, value in os.environ.items() if name in _KEPT_VARIABLES or name.startswith("PYTHON")}


def _make(
    folders: Folders, settings: Settings, portrait: Path, voice: Path, target: Path, *, name: str, stitch: bool
) -> tuple[Job, Path]:
    """Submit one job, wait for it with a progress bar, and copy its video and sidecar."""
    order = Manifest(image=str(portrait), audio=str(voice), out_name=name, stitch=stitch)
    submission = drop(folders, order, limits=settings.intake)
    view = LedgerView(settings.paths.state / "ledger.db")
    with progress(name) as bar:
        job = until_ended(view, folders, submission, bar.show, bar.note)
    if job.state is not JobState.DONE:
        raise LipsyncdError(f"the demo's job is {job.state.value}: {job.reason}", remedy=job.remedy)
    path = fetch(folders, view, job, target / f"{name}.mp4")
    with folders.shared["outbox"].opened() as outbox:
        if outbox is not None:
            (target / f"{name}.json").write_bytes(outbox.read(f"{job.out_name}.json", MOST_JSON_BYTES))
    return job, path


def _contact_sheet(ffmpeg: Path, video: Path, sheet: Path) -> None:
    """Write every second frame of the first words into one PNG, in reading order."""
    chosen = rf"select=gte(n\,{_SHEET_FIRST})*not(mod(n-{_SHEET_FIRST}\,{_SHEET_EVERY}))"
    picked = f"{chosen},scale={_SHEET_TILE_PX}:-2,tile={_SHEET_COLUMNS}x{_SHEET_ROWS}:padding=4"
    command: Sequence[str | Path] = (
        *(ffmpeg, "-nostdin", "-loglevel", "error", "-y", "-f", "mp4", "-i", video),
        *("-vf", picked, "-fps_mode", "passthrough", "-frames:v", "1", sheet),
    )
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
