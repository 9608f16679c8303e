"""The command render: a video, or those of a folder, without a daemon. Imports wait until it runs."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lipsyncd.cli.app import Invocation, files, json_option
from lipsyncd.cli.job_options import job_options
from lipsyncd.errors import LipsyncdError, NameTaken, UsageError

if TYPE_CHECKING:
    from lipsyncd.results.video_file import Video
    from lipsyncd.standalone.session import Progress, Session

_STOPPED = 128  # plus the signal's number, as a shell reports it


@click.command()
@click.argument("image", shell_complete=files)
@click.argument("audio", required=False, shell_complete=files)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="The video, or a folder for it.  [default: NAME.mp4]"
)
@click.option("--force", is_flag=True, help="Replace videos that exist.")
@job_options
@json_option
@click.pass_obj
def render(
    invocation: Invocation,
    /,
    image: str,
    audio: str | None,
    out: Path | None,
    force: bool,
    as_json: bool,
    **fields: Any,
) -> None:
    """Make a video here and now, without a daemon.

    IMAGE and AUDIO are files or http(s) URLs. With a folder as IMAGE, and one for --out, each pair of files of the same
    stem in it becomes a video. Ctrl-C leaves nothing behind.
    """
    with _ending_cleanly():
        if Path(image).is_dir():
            out = _folder_for_videos(Path(image), audio, out, fields)
            rows = _folder(invocation, Path(image), out, force, as_json, fields)
            if any("code" in row for row in rows):
                sys.exit(1)
        else:
            _one(invocation, image, audio, out, force, as_json, fields)


def _one(
    invocation: Invocation,
    image: str,
    audio: str | None,
    out: Path | None,
    force: bool,
    as_json: bool,
    fields: dict[str, Any],
) -> None:
    from lipsyncd.cli.display import print_json
    from lipsyncd.inbox.submit import manifest_of, natural_name
    from lipsyncd.standalone.session import Session
    from lipsyncd.standalone.target import target_of

    manifest = manifest_of(image=image, audio=audio, **fields)
    name = natural_name(manifest)
    with Session(invocation.settings) as session:
        video = _make(session, manifest, name, target_of(out, name), force=force)
    if as_json:
        print_json(video.to_json())
    else:
        click.echo(str(video.path))


def _folder(
    invocation: Invocation, folder: Path, out: Path, force: bool, as_json: bool, fields: dict[str, Any]
) -> list[dict[str, Any]]:
    """Make the videos of a folder, one after another; gives for each its facts, or the reason why there is none."""
    from lipsyncd.cli.display import print_json
    from lipsyncd.inbox.submit import manifest_of
    from lipsyncd.standalone.folder import pairs_of
    from lipsyncd.standalone.session import Session

    pairs = pairs_of(folder)
    targets = {pair.name: out / f"{pair.name}.mp4" for pair in pairs if pair.fault is None}
    taken = [str(target) for target in targets.values() if target.exists()]
    if taken and not force:
        raise NameTaken(
            f"{len(taken)} of the videos exist already, such as {taken[0]}",
            remedy="name another folder, or overwrite them with --force",
        )
    rows: list[dict[str, Any]] = []
    with Session(invocation.settings) as session:
        session.accepted(manifest_of(image="any", audio="any", **fields), folder.name)  # else all would fail alike
        out.mkdir(exist_ok=True)
        for pair in pairs:
            try:
                if pair.fault is not None:
                    raise pair.fault
                manifest = manifest_of(image=str(pair.image), audio=str(pair.audio), **fields)
                video = _make(session, manifest, pair.name, targets[pair.name], force=force)
            except LipsyncdError as error:
                click.echo(f"lipsyncd: {pair.name}: {error}", err=True)
                rows.append({"name": pair.name, **error.reason()})
            else:
                rows.append({"name": pair.name, **video.to_json()})
                if not as_json:
                    click.echo(str(video.path))
    if as_json:
        print_json(rows)
    made = sum("path" in row for row in rows)
    click.echo(f"{made} of {len(rows)} videos made", err=True)
    return rows


def _folder_for_videos(folder: Path, audio: str | None, out: Path | None, fields: dict[str, Any]) -> Path:
    if audio is not None or fields["text"] is not None:
        what = "AUDIO" if audio is not None else "--text"
        raise UsageError(f"{folder} is a folder, whose pairs have their own sounds; leave {what} out")
    if out is None:
        raise UsageError(f"{folder} is a folder; name one for its videos with -o FOLDER")
    if out.exists() and (not out.is_dir() or out.samefile(folder)):
        raise UsageError(f"the videos of {folder} cannot go to {out}", remedy="name another folder")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {str(out.absolute().parent)!r}", remedy="make it, or name another one")
    return out


def _make(session: Session, manifest: Any, name: str, target: Path, *, force: bool) -> Video:
    """Make one video with a bar on stderr."""
    from lipsyncd.cli.display import progress
    from lipsyncd.jobs.job import JobState

    began_s = time.monotonic()
    with progress(name) as bar:

        def report(now: Progress) -> None:
            if now.note:
                click.echo(f"{name} waits: {now.note}", err=True)
            bar.show(JobState.RUNNING, now.stage, now.fraction, now.eta_s)

        video = session.video(manifest, name, target, force=force, report=report)
        bar.show(JobState.DONE, "", 1.0)
    took_s = time.monotonic() - began_s
    click.echo(f"{name}: {video.frames} frames, {video.duration_s:.1f} s of video in {took_s:.1f} s", err=True)
    for note in video.notes.get("inputs", ()):  # such as a picture that is too small to look good
        click.echo(f"{name}: {note}", err=True)
    return video


@contextlib.contextmanager
def _ending_cleanly() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and a closed terminal end the work in order, once: a second one would leave files behind."""
    from lipsyncd.sandbox import subreaper

    subreaper.become()
    ended_by: list[int] = []

    def stop(number: int, _frame: object) -> None:
        if not ended_by:
            ended_by.append(number)
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt:
        click.echo("lipsyncd: stopped; nothing is left behind", err=True)
        sys.exit(_STOPPED + (ended_by[0] if ended_by else signal.SIGINT))
