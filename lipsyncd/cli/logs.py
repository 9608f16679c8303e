"""`lipsyncd logs`: the events of one job or of all jobs, from the ledger. Imports wait until the command runs.

Owns the format of a line. Leaves reading to `ledger.view`, and the stages between events to `ledger.history`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click

from lipsyncd.cli.app import Invocation, jobs_in

if TYPE_CHECKING:
    from lipsyncd.jobs.job import Job, JobEvent
    from lipsyncd.ledger.history import Entry, HistoryReader
    from lipsyncd.ledger.view import LedgerView

_POLL_S = 0.3
_NEWEST = 50
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_NAME_WIDTH = 20
_TOOK_WIDTH = 20


def _since(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int:
    """Milliseconds since 1970 of an age (90s, 30m, 2h, 3d) or of a local time in ISO 8601; 0 for no value."""
    text = (value or "").strip()
    if not text:
        return 0
    if ago := re.fullmatch(r"(\d{1,6})([smhd])", text):
        return round((time.time() - int(ago[1]) * _UNITS_S[ago[2]]) * 1000)
    try:
        return round(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is neither an age (30m, 2h, 3d) nor a time (2026-11-22T19:40)") from None


@click.command()
@click.argument("job_id", metavar="[JOB]", required=False, shell_complete=jobs_in())
@click.option(
    "--since", metavar="TIME", callback=_since, help="Start at an age (30m, 2h, 3d) or at a time (2026-11-22T19:40)."
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    help=f"Show at most this many events, the newest.  [default: {_NEWEST}; all for one job or with --since]",
)
@click.option("--follow", "-f", is_flag=True, help="Keep printing new events; for one job, until it has ended.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.pass_obj
def logs(
    invocation: Invocation, job_id: str | None, since: int, limit: int | None, follow: bool, as_json: bool
) -> None:
    """Show what happened to JOB, or to all jobs.

    Each line has the time, the new state, the stage that ended with its duration, and a note such as the reason of a
    failure. JOB may be a name, an id, or the end of one.
    """
    from lipsyncd.ledger.find_job import find_job
    from lipsyncd.ledger.history import HistoryReader

    view = invocation.view
    job = None if job_id is None else find_job(view, job_id)
    most = limit if limit is not None else _NEWEST if job is None and not since else -1
    events = view.latest_events(job_id="" if job is None else job.id, since_ms=since, limit=most)
    reader = HistoryReader()
    if events:
        for earlier in view.events_before(events[0].number, sorted({event.job_id for event in events})):
            reader.read(earlier)
    show = _printer(reader, as_json=as_json, one_job=job is not None)
    show(events)
    if not events and not follow and not as_json:
        click.echo(f"no events in {invocation.place}", err=True)
    if follow:
        _follow(view, job, show, after=events[-1].number if events else 0)
    if job is not None and not as_json:
        _print_remedy(view.find(job.id))


def _printer(reader: HistoryReader, *, as_json: bool, one_job: bool) -> Callable[[Sequence[JobEvent]], None]:
    """A function that prints events, one line each."""
    import json

    def show(events: Sequence[JobEvent]) -> None:
        for event in events:
            entry = reader.read(event)
            click.echo(json.dumps(entry.to_json(), ensure_ascii=False) if as_json else _line(entry, one_job=one_job))

    return show


def _follow(view: LedgerView, job: Job | None, show: Callable[[Sequence[JobEvent]], None], *, after: int) -> None:
    """Print new events until Ctrl-C, or until the one job has ended and its last event is printed."""
    try:
        for events in _new_events(view, job, after):
            show(events)
    except KeyboardInterrupt:
        return


def _new_events(view: LedgerView, job: Job | None, after: int) -> Iterator[list[JobEvent]]:
    while True:
        # The job is read before its events: its end and its last event are committed together.
        now = None if job is None else view.find(job.id)
        events = view.latest_events(job_id="" if job is None else job.id, after=after)
        if events:
            after = events[-1].number
            yield events
        if job is not None and (now is None or now.state.ended):
            return
        time.sleep(_POLL_S)


def _line(entry: Entry, *, one_job: bool) -> str:
    """One event: time, job (unless there is only one), state, the stage that ended with its duration, the note."""
    from lipsyncd.cli.job_table import COLOURS
    from lipsyncd.jobs.job import JobState
    from lipsyncd.log import printable

    event = entry.event
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at_ms / 1000)) + f".{event.at_ms % 1000:03d}"
    name = printable(event.name)
    about = f"{event.job_id[-12:]}  {name if len(name) <= _NAME_WIDTH else name[: _NAME_WIDTH - 1] + '…':{_NAME_WIDTH}}"
    took = "" if entry.took_s is None else f"{entry.stage} {_duration(entry.took_s)}"
    state = click.style(f"{event.state:10}", fg=COLOURS[JobState(event.state)])
    cells = [clock, *(() if one_job else (about,)), state, f"{took:{_TOOK_WIDTH}}", printable(event.note)]
    return "  ".join(cells).rstrip()


def _duration(seconds: float) -> str:
    """A duration in the unit that suits its size: 0.42 s, 1.5 min, 2.3 h."""
    if seconds < 60:
        return f"{seconds:.2f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def _print_remedy(job: Job | None) -> None:
    """Print what to do about a blocked or failed job."""
    if job is not None and job.reason_code and job.remedy:
        click.echo(f"→ {job.remedy}")
