"""The commands for one job: submit, status, cancel, retry, priority, republish. Imports wait until one runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lipsyncd.cli.app import Invocation, ask_daemon, json_option

if TYPE_CHECKING:
    from lipsyncd.storage.control_files import Answer, Request

_ANSWER_TIMEOUT_S = 10.0


@click.command()
@click.argument("image")
@click.argument("audio", required=False)
@click.option("--text", help="Text to speak in place of AUDIO (extra `tts`).")
@click.option("--voice", help="Voice for --text.")
@click.option("--stitch/--square", default=None, help="Show the whole picture, or the square around the face.")
@click.option("--resolution", type=int, help="Side of the square in pixels: even, 64 to 2048.")
@click.option("--fps", help="Frame rate, such as 25, 29.97 or 30000/1001.")
@click.option("--renderer", help="Renderer, such as preview or musetalk.")
@click.option("--priority", type=int, help="-100 to 100; jobs with a higher priority run first.")
@click.option("--queue", default="", help="Queue to submit to: a folder of the inbox, configured in [queue.NAME].")
@click.option("--name", help="Name of the result, without .mp4.")
@click.option("--id", "job_id", help="UUID for the job; without it a new one.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="Option of the renderer; VALUE is JSON.")
@click.option("--wait", is_flag=True, help="Show progress until the job has ended.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Copy the video here (implies --wait).")
@json_option
@click.pass_obj
def submit(invocation: Invocation, /, queue: str, wait: bool, out: Path | None, as_json: bool, **fields: Any) -> None:
    """Submit a job: IMAGE and AUDIO are files or http(s) URLs.

    Puts the job into the inbox and prints its id, with or without a running daemon.
    """
    from lipsyncd.cli.display import print_json
    from lipsyncd.inbox.submit import drop, manifest_of

    submission = drop(invocation.folders, manifest_of(**fields), queue=queue)
    if wait or out is not None:
        _wait(invocation, submission.job_id, out, as_json)
    elif as_json:
        print_json({"id": submission.job_id, "name": submission.out_name})
    else:
        click.echo(submission.job_id)


def _wait(invocation: Invocation, job_id: str, out: Path | None, as_json: bool) -> None:
    """Show progress until the job has ended, and print the path of its video. Exits with 1 unless it is done."""
    from lipsyncd.cli import wait
    from lipsyncd.cli.display import print_json, progress
    from lipsyncd.jobs.job import JobState

    with progress(job_id[-12:]) as bar:
        job = wait.until_ended(invocation.view, invocation.folders, job_id, bar.show)
    if job.state is not JobState.DONE:
        click.echo(f"lipsyncd: job {job.id} {job.state.value}: {job.reason or 'on request'}", err=True)
        if job.remedy:
            click.echo(f"          {job.remedy}", err=True)
    result = wait.fetch(invocation.folders, invocation.view, job, out) if job.state is JobState.DONE else None
    if as_json:
        print_json({**job.to_json(), "file": None if result is None else str(result)})
    elif result is not None:
        click.echo(str(result))
    if job.state is not JobState.DONE:
        sys.exit(1)


@click.command()
@click.argument("job_id", required=False)
@click.option("--watch", is_flag=True, help="Redraw every second until Ctrl-C.")
@click.option("--limit", default=50, show_default=True, help="Show at most this many jobs.")
@json_option
@click.pass_obj
def status(invocation: Invocation, job_id: str | None, watch: bool, limit: int, as_json: bool) -> None:
    """Show the jobs, or one job with its history.

    JOB_ID may be the beginning or the end of an id.
    """
    from lipsyncd.cli import display
    from lipsyncd.monitor import status

    view, state = invocation.view, invocation.settings.paths.state
    if job_id is not None:
        job = view.get(job_id)
        events, deliveries = view.events(job.id), view.deliveries(job.id)
        if as_json:
            history = {"events": [status.event_json(e) for e in events], "webhooks": [d.to_json() for d in deliveries]}
            display.print_json({**job.to_json(), **history})
        else:
            display.print_job(job, events, deliveries)
    elif as_json:
        display.print_json(status.as_json(view, state, limit=limit))
    elif watch:
        display.watch(lambda: (view.jobs(limit=limit), status.notes(view, state)), every_s=1.0)
    else:
        display.print_jobs(view.jobs(limit=limit), status.notes(view, state))


@click.command()
@click.argument("job_id")
@click.pass_obj
def cancel(invocation: Invocation, job_id: str) -> None:
    """Cancel the waiting or running JOB_ID.

    A running render ends within a second. A finished job does not change.
    """
    _change(invocation, "cancel", job_id)


@click.command()
@click.argument("job_id")
@click.pass_obj
def retry(invocation: Invocation, job_id: str) -> None:
    """Queue the failed or cancelled JOB_ID again.

    Its attempts are counted from zero.
    """
    _change(invocation, "retry", job_id)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("job_id")
@click.argument("value", type=click.IntRange(-100, 100))
@click.pass_obj
def priority(invocation: Invocation, job_id: str, value: int) -> None:
    """Change the priority of the waiting JOB_ID.

    VALUE is -100 to 100; jobs with a higher priority run first.
    """
    _change(invocation, "priority", job_id, value)


@click.command()
@click.argument("job_id")
@click.pass_obj
def republish(invocation: Invocation, job_id: str) -> None:
    """Put the video of the finished JOB_ID into the outbox again."""
    _change(invocation, "republish", job_id)


def _change(invocation: Invocation, action: str, job_id: str, value: int = 0) -> None:
    """Request an action on a job, print the answer, and exit with 1 when it was refused."""
    from lipsyncd.storage.control_files import Request

    job = invocation.view.get(job_id)
    answer = _carry_out(invocation, Request(action, job.id, value))
    click.echo(f"{job.id} {answer.message}", err=not answer.ok)
    if not answer.ok:
        sys.exit(1)


def _carry_out(invocation: Invocation, request: Request) -> Answer:
    """Let the daemon carry it out, or do it here if none runs."""
    from lipsyncd.storage import locks

    if not locks.is_held(invocation.folders.state):
        from lipsyncd.daemon.offline import act_alone

        return act_alone(invocation.settings, request)
    return ask_daemon(invocation.folders, request, timeout_s=_ANSWER_TIMEOUT_S)
