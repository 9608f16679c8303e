"""The command line. Each command parses, calls one function and prints; imports wait until it runs.

Exit status: 0, 1 a job failed, 2 wrong usage, 75 another daemon runs, 77 not allowed, 78 configuration.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lipsyncd import __version__
from lipsyncd.cli.bench import bench
from lipsyncd.cli.doctor import doctor
from lipsyncd.cli.logs import logs
from lipsyncd.cli.models import models
from lipsyncd.cli.upkeep import backup, prune
from lipsyncd.errors import LipsyncdError, NotAllowed

if TYPE_CHECKING:
    from lipsyncd.jobs.job import Job
    from lipsyncd.ledger.view import LedgerView
    from lipsyncd.settings import Settings
    from lipsyncd.storage.control_files import Answer
    from lipsyncd.storage.folders import Folders

_F = TypeVar("_F", bound=Callable[..., Any])
_ANSWER_TIMEOUT_S = 10.0


class Caller:
    """What every command works with: the settings, read when the first one asks."""

    def __init__(self, config: Path | None) -> None:
        self._config = config

    @cached_property
    def settings(self) -> Settings:
        return self.read()

    def read(self) -> Settings:
        """The settings as they are now."""
        from lipsyncd.settings import load

        return load(self._config)

    @cached_property
    def folders(self) -> Folders:
        from lipsyncd.storage.folders import folders_of

        return folders_of(self.settings.paths, [queue.name for queue in self.settings.queues])

    @property
    def view(self) -> LedgerView:
        from lipsyncd.ledger.view import LedgerView

        return LedgerView(self.settings.paths.state / "ledger.db")


class Commands(click.Group):
    """Turns our errors into one line and their exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):  # a terminal that knows no "→" or no "日本" gets an escape for it
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except PermissionError as refused:
            error: LipsyncdError = NotAllowed(f"{refused.filename}: {refused.strerror}")
        except LipsyncdError as ours:
            error = ours
        click.echo(f"lipsyncd: {error}", err=True)
        return ctx.exit(error.exit_status)


def json_option(command: _F) -> _F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")(command)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=click.Path(path_type=Path), help="Settings file to use in place of the usual ones.")
@click.version_option(__version__, prog_name="lipsyncd")
@click.pass_context
def main(ctx: click.Context, config: Path | None) -> None:
    """Turn portraits and voices that are dropped into a folder into talking videos."""
    ctx.obj = Caller(config)


# -- the daemon --------------------------------------------------------------------------------------------------------


@main.command()
@click.pass_obj
def run(caller: Caller) -> None:
    """Run the daemon in the foreground, until SIGTERM or Ctrl-C; SIGHUP has it read its settings again."""
    import logging

    from lipsyncd import log

    log.setup()  # for the case that the settings cannot say how
    try:
        settings = caller.settings
        log.setup(settings.log.level, settings.log.format)
        _refuse_a_second(caller.folders)
        from lipsyncd.daemon.daemon import Daemon

        status = Daemon(settings, caller.read).run()
    except LipsyncdError as error:  # a line of the log like any other, since nobody may be at a terminal
        logging.getLogger("lipsyncd").error("%s", error)
        status = error.exit_status
    sys.exit(status)


def _refuse_a_second(folders: Folders) -> None:
    """Raises `AnotherDaemonRuns` before the daemon's imports, which take a second.

    A share may hang for minutes, and systemd is not told yet that we start: its lock is left to the daemon.
    """
    from lipsyncd.storage.locks import refuse_a_second
    from lipsyncd.storage.mounts import known_network

    with contextlib.suppress(OSError):  # told by the daemon, with its remedy
        known = folders.known()
        ours = [
            kind for kind in folders.inboxes
            if not known_network(folders.shared[kind]) and (kind not in known or folders.available(kind))
        ]  # fmt: skip
        refuse_a_second(folders.state, [folders.lock_file(kind) for kind in ours])


@main.command()
@click.option("--adopt", is_flag=True, help="Take the folders that lie there now for the right ones.")
@click.pass_obj
def init(caller: Caller, adopt: bool) -> None:
    """Make the folders and mark them. Doing it again changes nothing."""
    done = caller.folders.initialise(adopt=adopt)
    for line in done or ["nothing to do: all folders are there and marked"]:
        click.echo(line)


@main.command()
@json_option
@click.pass_obj
def config(caller: Caller, as_json: bool) -> None:
    """Show every setting: its value and where that was read."""
    from lipsyncd.settings import describe

    rows = describe(caller.settings)
    if as_json:
        from lipsyncd.cli.display import print_json

        print_json({row.name: {"value": row.value, "origin": row.origin} for row in rows})
        return
    width = max(len(row.name) for row in rows)
    for row in rows:
        origin = "" if row.origin == "default" else click.style(f"  # {row.origin}", fg="cyan")
        click.echo(f"{row.name.ljust(width)} = {row.value}{origin}")


# -- jobs --------------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("image")
@click.argument("audio", required=False)
@click.option("--text", help="Speak this in place of a sound file (needs the extra `tts`).")
@click.option("--voice", help="Voice for --text.")
@click.option("--stitch/--square", default=None, help="The whole picture, or the square around the face.")
@click.option("--resolution", type=int, help="Side of the square in pixels.")
@click.option("--fps", help="Frame rate, such as 25, 29.97 or 30000/1001.")
@click.option("--renderer", help="Renderer to use.")
@click.option("--priority", type=int, help="-100 to 100; higher comes first.")
@click.option("--queue", default="", help="Folder of the inbox to drop it into: one with a table [queue.NAME].")
@click.option("--name", help="Name of the result, without .mp4.")
@click.option("--id", "job_id", help="UUID that the job gets.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="Option of the renderer; VALUE is JSON.")
@click.option("--wait", is_flag=True, help="Show progress and end with the job.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Copy the result there (implies --wait).")
@json_option
@click.pass_obj
def submit(caller: Caller, /, queue: str, wait: bool, out: Path | None, as_json: bool, **said: Any) -> None:
    """Drop a job into the inbox: IMAGE and AUDIO are files or http(s) addresses.

    Works whether the daemon runs or not. Prints the job's id.
    """
    from lipsyncd.cli.display import print_json
    from lipsyncd.inbox import submit as submitting

    submission = submitting.drop(caller.folders, submitting.manifest_of(**said), queue=queue)
    if wait or out is not None:
        _wait(caller, submission.job_id, out, as_json)
    elif as_json:
        print_json({"id": submission.job_id, "name": submission.out_name})
    else:
        click.echo(submission.job_id)


def _wait(caller: Caller, job_id: str, out: Path | None, as_json: bool) -> None:
    from lipsyncd.cli import wait
    from lipsyncd.cli.display import print_json, progress
    from lipsyncd.jobs.job import JobState

    with progress(job_id[-12:]) as told:
        job = wait.until_ended(caller.view, caller.folders, job_id, told.tell)
    if job.state is not JobState.DONE:
        click.echo(f"lipsyncd: job {job.id} {job.state.value}: {job.reason or 'on request'}", err=True)
        if job.remedy:
            click.echo(f"          {job.remedy}", err=True)
    result = wait.fetch(caller.folders, job, out) if job.state is JobState.DONE else None
    if as_json:
        print_json({**job.to_json(), "file": None if result is None else str(result)})
    elif result is not None:
        click.echo(str(result))
    if job.state is not JobState.DONE:
        sys.exit(1)


@main.command()
@click.argument("job_id", required=False)
@click.option("--watch", is_flag=True, help="Redraw every second.")
@click.option("--limit", default=50, show_default=True, help="How many jobs to show.")
@json_option
@click.pass_obj
def status(caller: Caller, job_id: str | None, watch: bool, limit: int, as_json: bool) -> None:
    """Show the jobs, or one job with its history. JOB_ID may be the beginning or the end of an id."""
    from lipsyncd.cli import display
    from lipsyncd.monitor import status

    view, state = caller.view, caller.settings.paths.state
    if job_id is not None:
        job = view.get(job_id)
        events, deliveries = view.events(job.id), view.deliveries(job.id)
        if as_json:
            told = {"events": [status.event_json(e) for e in events], "webhooks": [d.to_json() for d in deliveries]}
            display.print_json({**job.to_json(), **told})
        else:
            display.print_job(job, events, deliveries)
    elif as_json:
        display.print_json(status.as_json(view, state, limit=limit))
    elif watch:
        display.watch(lambda: (view.jobs(limit=limit), status.notes(view, state)), every_s=1.0)
    else:
        display.print_jobs(view.jobs(limit=limit), status.notes(view, state))


@main.command()
@click.argument("job_id")
@click.pass_obj
def cancel(caller: Caller, job_id: str) -> None:
    """Stop JOB_ID. A render in progress ends within a second; a finished job is left as it is."""
    _ask(caller, "cancel", job_id)


@main.command()
@click.argument("job_id")
@click.pass_obj
def retry(caller: Caller, job_id: str) -> None:
    """Queue JOB_ID again, which failed or was cancelled, with a fresh set of attempts."""
    _ask(caller, "retry", job_id)


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("job_id")
@click.argument("value", type=click.IntRange(-100, 100))
@click.pass_obj
def priority(caller: Caller, job_id: str, value: int) -> None:
    """Give the waiting JOB_ID another priority, -100 to 100; higher comes first."""
    _ask(caller, "priority", job_id, value)


@main.command()
@click.argument("job_id")
@click.pass_obj
def republish(caller: Caller, job_id: str) -> None:
    """Put the video of the finished JOB_ID into the outbox once more."""
    _ask(caller, "republish", job_id)


def _ask(caller: Caller, action: str, job_id: str, value: int = 0) -> None:
    """Have the daemon do it, or do it here when none runs."""
    from lipsyncd.storage.control_files import Request

    job = caller.view.get(job_id)
    answer = _answer(caller, Request(action, job.id, value), job)
    click.echo(f"{job.id} {answer.message}", err=not answer.ok)
    if not answer.ok:
        sys.exit(1)


def _answer(caller: Caller, request: Any, job: Job) -> Answer:
    from lipsyncd.errors import AnotherDaemonRuns
    from lipsyncd.storage import control_files, locks

    folders = caller.folders
    if not locks.is_held(folders.state):
        from lipsyncd.daemon.offline import act_alone

        return act_alone(caller.settings, request)
    answer = control_files.ask(folders.control, request, timeout_s=_ANSWER_TIMEOUT_S)
    if answer is None:
        held_by = locks.holder(folders.state) or "another process"
        raise AnotherDaemonRuns(f"{held_by} did not answer within {_ANSWER_TIMEOUT_S:g} s about job {job.id}")
    return answer


main.add_command(backup)
main.add_command(models)
main.add_command(prune)
main.add_command(bench)
main.add_command(doctor)
main.add_command(logs)


# -- trying it out -----------------------------------------------------------------------------------------------------


@main.command()
@click.argument("text", required=False)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("demo-out"), show_default=True)
@click.pass_obj
def demo(caller: Caller, text: str | None, out: Path) -> None:
    """Make two videos of a spoken sentence with a daemon of its own, and show where they lie (extra `demo`)."""
    from lipsyncd.cli.demo import DEFAULT_TEXT, show

    show(text or DEFAULT_TEXT, out)
