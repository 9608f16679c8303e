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
def submit(invocation: Invocation, /, queue: str, wait: bool, out: Path | None, as_json: bool, **said: Any) -> None:
    """Drop a job into the inbox: IMAGE and AUDIO are files or http(s) addresses.

    Works whether the daemon runs or not. Prints the job's id.
    """
    from lipsyncd.cli.display import print_json
    from lipsyncd.inbox import submit as submitting

    submission = submitting.drop(invocation.folders, submitting.manifest_of(**said), queue=queue)
    if wait or out is not None:
        _wait(invocation, submission.job_id, out, as_json)
    elif as_json:
        print_json({"id": submission.job_id, "name": submission.out_name})
    else:
        click.echo(submission.job_id)


def _wait(invocation: Invocation, job_id: str, out: Path | None, as_json: bool) -> None:
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
@click.option("--watch", is_flag=True, help="Redraw every second.")
@click.option("--limit", default=50, show_default=True, help="How many jobs to show.")
@json_option
@click.pass_obj
def status(invocation: Invocation, job_id: str | None, watch: bool, limit: int, as_json: bool) -> None:
    """Show the jobs, or one job with its history. JOB_ID may be the beginning or the end of an id."""
    from lipsyncd.cli import display
    from lipsyncd.monitor import status

    view, state = invocation.view, invocation.settings.paths.state
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


@click.command()
@click.argument("job_id")
@click.pass_obj
def cancel(invocation: Invocation, job_id: str) -> None:
    """Stop JOB_ID. A render in progress ends within a second; a finished job is left as it is."""
    _change(invocation, "cancel", job_id)


@click.command()
@click.argument("job_id")
@click.pass_obj
def retry(invocation: Invocation, job_id: str) -> None:
    """Queue JOB_ID again, which failed or was cancelled, with a fresh set of attempts."""
    _change(invocation, "retry", job_id)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("job_id")
@click.argument("value", type=click.IntRange(-100, 100))
@click.pass_obj
def priority(invocation: Invocation, job_id: str, value: int) -> None:
    """Give the waiting JOB_ID another priority, -100 to 100; higher comes first."""
    _change(invocation, "priority", job_id, value)


@click.command()
@click.argument("job_id")
@click.pass_obj
def republish(invocation: Invocation, job_id: str) -> None:
    """Put the video of the finished JOB_ID into the outbox once more."""
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
    """Have the daemon carry it out, or do it here when none runs."""
    from lipsyncd.storage import locks

    if not locks.is_held(invocation.folders.state):
        from lipsyncd.daemon.offline import act_alone

        return act_alone(invocation.settings, request)
    return ask_daemon(invocation.folders, request, timeout_s=_ANSWER_TIMEOUT_S)
