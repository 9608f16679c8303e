"""The commands for jobs: submit, status, cancel, retry, priority, republish. Imports wait until one runs."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lipsyncd.cli.app import Invocation, ask_daemon, files, jobs_in, json_option
from lipsyncd.cli.job_options import check, job_options

if TYPE_CHECKING:
    from lipsyncd.cli.job_table import Row
    from lipsyncd.inbox.not_taken import NotTaken
    from lipsyncd.inbox.submit import Submission
    from lipsyncd.jobs.job import Job, JobState
    from lipsyncd.storage.control_files import Answer, Request

_ANSWER_TIMEOUT_S = 10.0
_INTERRUPTED = 130  # as a shell reports SIGINT
_MANY = 1_000_000


@click.command()
@click.argument("image", shell_complete=files)
@click.argument("audio", required=False, shell_complete=files)
@job_options
@click.option("--priority", type=int, help="-100 to 100; jobs with a higher priority run first.")
@click.option("--queue", default="", help="Queue to submit to: a folder of the inbox, configured in [queue.NAME].")
@click.option("--name", help="Name of the result, without .mp4.")
@click.option("--id", "job_id", help="UUID for the job; without it a new one.")
@click.option("--wait", is_flag=True, help="Show progress until the job has ended.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Copy the video here (implies --wait).")
@json_option
@click.pass_obj
def submit(invocation: Invocation, /, queue: str, wait: bool, out: Path | None, as_json: bool, **fields: Any) -> None:
    """Submit a job: IMAGE and AUDIO are files or http(s) URLs.

    Puts the job into the inbox and prints its id, with or without a running daemon.
    """
    from lipsyncd.cli.display import print_json
    from lipsyncd.inbox.order_rules import OrderRules, recorded
    from lipsyncd.inbox.submit import check_queue, drop, manifest_of
    from lipsyncd.monitor.held_lock import is_held

    folders, order = invocation.folders, manifest_of(**fields)
    check_queue(folders, queue)
    rules = recorded(folders.state) or OrderRules.of(invocation.settings)
    check(order, folders, rules, queue=queue, out=out)
    submission = drop(folders, order, limits=rules.limits, queue=queue)
    if wait or out is not None:
        _wait(invocation, submission, out, as_json)
        return
    if as_json:
        print_json({"id": submission.job_id, "name": submission.out_name})
    else:
        click.echo(submission.job_id)
    if not is_held(folders.state):
        note = f"lipsyncd: no daemon runs; the job waits for the next `lipsyncd run`, in {invocation.place}"
        click.echo(note, err=True)


def _wait(invocation: Invocation, submission: Submission, out: Path | None, as_json: bool) -> None:
    """Show progress until the job has ended, and print the path of its video. Exits with 1 unless it is done."""
    from lipsyncd.cli import wait
    from lipsyncd.cli.display import print_json, progress
    from lipsyncd.jobs.job import JobState
    from lipsyncd.monitor.status import jobs_json

    try:
        with progress(submission.out_name) as bar:
            job = wait.until_ended(invocation.view, invocation.folders, submission, bar.show, bar.note)
    except KeyboardInterrupt:
        from shlex import quote

        name = quote(submission.out_name)
        click.echo(f"lipsyncd: the job goes on; to see it: lipsyncd status {name}", err=True)
        click.echo(f"                       to take it back: lipsyncd cancel {name}", err=True)
        sys.exit(_INTERRUPTED)
    if job.state is not JobState.DONE:
        click.echo(f"lipsyncd: job {job.name} {job.state.value}: {job.reason or 'on request'}", err=True)
        if job.remedy:
            click.echo(f"          {job.remedy}", err=True)
    result = wait.fetch(invocation.folders, invocation.view, job, out) if job.state is JobState.DONE else None
    if as_json:
        [fields] = jobs_json(invocation.view, [job], invocation.outbox)
        print_json({**fields, "file": None if result is None else str(result)})
    elif result is not None:
        click.echo(str(result))
    if job.state is not JobState.DONE:
        sys.exit(1)


@click.command()
@click.argument("wanted", metavar="[JOB]", required=False, shell_complete=jobs_in())
@click.option("--watch", is_flag=True, help="Redraw every second until Ctrl-C.")
@click.option("--failed", is_flag=True, help="Show failed jobs only.")
@click.option("--slots", is_flag=True, help="Show the machines of the cluster and what each renders.")
@click.option("--limit", default=50, show_default=True, help="Show at most this many jobs.")
@json_option
@click.pass_obj
def status(
    invocation: Invocation, wanted: str | None, watch: bool, failed: bool, slots: bool, limit: int, as_json: bool
) -> None:
    """Show the jobs, or one job with its history.

    JOB may be a name, an id, or the end of one.
    """
    from lipsyncd.cli import display
    from lipsyncd.jobs.job import JobState
    from lipsyncd.monitor import status

    view, state = invocation.view, invocation.settings.paths.state
    states = [JobState.FAILED] if failed else []
    if slots:
        found = status.slots(state)
        if as_json:
            display.print_json(found)
        else:
            click.echo("\n".join(status.slot_lines(found)))
    elif wanted is not None:
        _show_one(invocation, wanted, as_json=as_json)
    elif as_json:
        jobs = view.jobs(states=states, limit=limit)
        display.print_json(status.as_json(view, state, jobs, invocation.outbox))
    else:

        def look() -> tuple[list[Row], list[str]]:
            return _rows(invocation, view.jobs(states=states, limit=limit)), status.notes(view, state, invocation.place)

        if watch:
            display.watch(look, every_s=1.0)
        else:
            display.print_jobs(*look())


def _rows(invocation: Invocation, jobs: Sequence[Job]) -> list[Row]:
    from lipsyncd.cli.job_table import Row
    from lipsyncd.ledger.find_job import short_ids
    from lipsyncd.monitor.status import result_paths

    view = invocation.view
    ends, paths = short_ids(view, jobs), result_paths(view, jobs, invocation.outbox)
    return [Row(job, ends[job.id], view.waits_for(job), paths.get(job.id, "")) for job in jobs]


def _show_one(invocation: Invocation, wanted: str, *, as_json: bool) -> None:
    from lipsyncd.cli import display
    from lipsyncd.jobs.job import Job
    from lipsyncd.ledger.find_job import UNFINISHED
    from lipsyncd.monitor import status

    view, found = invocation.view, _find(invocation, wanted, UNFINISHED)
    if not isinstance(found, Job):
        why = status.why_not_taken(invocation.settings.paths.state, found.file) or "the daemon has not taken it yet"
        if as_json:
            display.print_json({"id": found.job_id, "name": found.name, "state": None, "file": found.file, "why": why})
        else:
            click.echo(f"{found.name} ({found.job_id}) lies in the inbox as {found.file}: {why}")
        return
    events, deliveries = view.events(found.id), view.deliveries(found.id)
    if as_json:
        history = {"events": [status.event_json(e) for e in events], "webhooks": [d.to_json() for d in deliveries]}
        [fields] = status.jobs_json(view, [found], invocation.outbox)
        display.print_json({**fields, **history})
    else:
        [row] = _rows(invocation, [found])
        display.print_job(row, events, deliveries)


def _find(invocation: Invocation, wanted: str, preferred: Collection[JobState]) -> Job | NotTaken:
    """The job that a user means, or its manifest in an inbox. Raises `UnknownJob`, `AmbiguousJob`."""
    from lipsyncd.errors import UnknownJob
    from lipsyncd.inbox.not_taken import not_taken
    from lipsyncd.ledger.find_job import find_job

    try:
        return find_job(invocation.view, wanted, preferred=preferred)
    except UnknownJob:
        waiting = not_taken(invocation.folders, wanted)
        if len(waiting) != 1:
            raise
        return waiting[0]


@click.command()
@click.argument("wanted", metavar="[JOB]...", nargs=-1, shell_complete=jobs_in("running", "queued"))
@click.option("--all", "every", is_flag=True, help="Cancel every job that waits or runs.")
@click.option("--yes", is_flag=True, help="Do not ask before --all.")
@click.pass_obj
def cancel(invocation: Invocation, wanted: tuple[str, ...], every: bool, yes: bool) -> None:
    """Cancel JOBs that wait or run.

    JOB is a name, an id, or the end of one; it may still lie in the inbox. A running render ends within a second. A
    finished job does not change.
    """
    from lipsyncd.jobs.job import Job, JobState
    from lipsyncd.ledger.find_job import UNFINISHED
    from lipsyncd.storage.control_files import WITHDRAW, Request

    _require_one(wanted, every, "--all")
    if every:
        jobs = invocation.view.jobs(states=[JobState.QUEUED, JobState.RUNNING], limit=_MANY)
        running = sum(job.state is JobState.RUNNING for job in jobs)
        if jobs and not yes:
            _confirm(f"Cancel {_counted(len(jobs))}, {running} of which {'is' if running == 1 else 'are'} running?")
        _change(invocation, [(job.name, Request("cancel", job.id)) for job in jobs])
        return
    found = [(name, _find(invocation, name, UNFINISHED)) for name in wanted]
    requests = [
        (name, Request("cancel", one.id) if isinstance(one, Job) else Request(WITHDRAW, one.job_id))
        for name, one in found
    ]
    _change(invocation, requests)


@click.command()
@click.argument("wanted", metavar="[JOB]...", nargs=-1, shell_complete=jobs_in("failed", "cancelled"))
@click.option("--failed", is_flag=True, help="Retry every failed job.")
@click.pass_obj
def retry(invocation: Invocation, wanted: tuple[str, ...], failed: bool) -> None:
    """Queue JOBs that failed or were cancelled again.

    JOB is a name, an id, or the end of one. Its attempts are counted from zero.
    """
    from lipsyncd.jobs.job import JobState
    from lipsyncd.ledger.find_job import find_job
    from lipsyncd.storage.control_files import Request

    _require_one(wanted, failed, "--failed")
    view, ended = invocation.view, (JobState.FAILED, JobState.CANCELLED)
    if failed:
        jobs = view.jobs(states=[JobState.FAILED], limit=_MANY)
        _change(invocation, [(job.name, Request("retry", job.id)) for job in reversed(jobs)])
        return
    found = [(name, find_job(view, name, preferred=ended)) for name in wanted]
    _change(invocation, [(name, Request("retry", job.id)) for name, job in found])


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("wanted", metavar="JOB", shell_complete=jobs_in("queued"))
@click.argument("value", type=click.IntRange(-100, 100))
@click.pass_obj
def priority(invocation: Invocation, wanted: str, value: int) -> None:
    """Change the priority of the waiting JOB.

    VALUE is -100 to 100; jobs with a higher priority run first.
    """
    from lipsyncd.jobs.job import JobState
    from lipsyncd.ledger.find_job import find_job
    from lipsyncd.storage.control_files import Request

    job = find_job(invocation.view, wanted, preferred=[JobState.QUEUED])
    _change(invocation, [(wanted, Request("priority", job.id, value))])


@click.command()
@click.argument("wanted", metavar="JOB", shell_complete=jobs_in("done"))
@click.pass_obj
def republish(invocation: Invocation, wanted: str) -> None:
    """Put the video of the finished JOB into the outbox again."""
    from lipsyncd.jobs.job import JobState
    from lipsyncd.ledger.find_job import find_job
    from lipsyncd.storage.control_files import Request

    job = find_job(invocation.view, wanted, preferred=[JobState.DONE])
    _change(invocation, [(wanted, Request("republish", job.id))])


def _require_one(wanted: Sequence[str], every: bool, option: str) -> None:
    """Raises `UsageError` unless either jobs are named or the option is given."""
    from lipsyncd.errors import UsageError

    if bool(wanted) == every:
        raise UsageError(f"name jobs, or give {option}" if not every else f"name jobs or give {option}, not both")


def _confirm(question: str) -> None:
    """Ask at the terminal. Raises `UsageError` where there is none, and ends the command when the answer is no."""
    from lipsyncd.errors import UsageError

    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on", remedy="give --yes")
    if not click.confirm(question, err=True):
        click.echo("nothing was cancelled", err=True)
        sys.exit(1)


def _counted(jobs: int) -> str:
    return f"{jobs} job" if jobs == 1 else f"{jobs} jobs"


def _change(invocation: Invocation, wanted: Sequence[tuple[str, Request]]) -> None:
    """Request changes of jobs, each called as the user calls it; print the answers. Exits with 1 if one was refused."""
    if not wanted:
        click.echo(f"there are no such jobs in {invocation.place}")
        return
    answers = _carry_out(invocation, list(dict.fromkeys(request for _, request in wanted)))
    by_id = {request.job_id: answer for request, answer in answers}
    for name, request in wanted:
        answer = by_id[request.job_id]
        shown = request.job_id if name == request.job_id else f"{name} ({request.job_id})"
        click.echo(f"{shown} {answer.message}", err=not answer.ok)
    if not all(answer.ok for answer in by_id.values()):
        sys.exit(1)


def _carry_out(invocation: Invocation, requests: Sequence[Request]) -> list[tuple[Request, Answer]]:
    """Let the daemon carry them out, or do it here if none runs."""
    from lipsyncd.monitor.held_lock import is_held

    if is_held(invocation.folders.state):
        answers = ask_daemon(invocation.folders, requests, timeout_s=_ANSWER_TIMEOUT_S)
    else:
        from lipsyncd.daemon.offline import act_alone

        answers = act_alone(invocation.settings, requests)
    return list(zip(requests, answers, strict=True))
