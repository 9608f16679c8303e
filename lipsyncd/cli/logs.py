"""`lipsyncd logs`: what happened to one job or to all, out of the ledger. Imports wait until the command runs.

Owns the looks of a line. Leaves reading to `ledger_view`, and what events mean together to `history`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click

from lipsyncd.cli.app import Invocation

if TYPE_CHECKING:
    from lipsyncd.jobs.job import Job, JobEvent
    from lipsyncd.ledger.history import Entry, Historian
    from lipsyncd.ledger.view import LedgerView

_LOOK_EVERY_S = 0.3
_NEWEST = 50
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_NAME_WIDTH = 20
_TOOK_WIDTH = 20


def _since(_ctx: click.Context, _param: click.Parameter, said: str | None) -> int:
    """A time as milliseconds since 1970: how long ago (90s, 30m, 2h, 3d), or local time in ISO 8601. 0 for none."""
    text = (said or "").strip()
    if not text:
        return 0
    if ago := re.fullmatch(r"(\d{1,6})([smhd])", text):
        return round((time.time() - int(ago[1]) * _UNITS_S[ago[2]]) * 1000)
    try:
        return round(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is no time; say 30m, 2h, 3d, or 2026-11-22T19:40") from None


@click.command()
@click.argument("job_id", required=False)
@click.option(
    "--since", metavar="TIME", callback=_since, help="Nothing before that: 30m, 2h, 3d ago, or 2026-11-22T19:40."
)
@click.option(
    "--limit", type=click.IntRange(1), help=f"Newest events to show  [default: {_NEWEST}, or all with --since]"
)
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens; of one job, until it has ended.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object on each line.")
@click.pass_obj
def logs(
    invocation: Invocation, job_id: str | None, since: int, limit: int | None, follow: bool, as_json: bool
) -> None:
    """Show what happened to JOB_ID, or to all jobs: when, how long each stage took, and why something went wrong.

    JOB_ID may be the beginning or the end of an id. A column tells which stage ended there, and after how long.
    """
    from lipsyncd.ledger.history import Historian

    view = invocation.view
    job = None if job_id is None else view.get(job_id)
    wanted = limit if limit is not None else _NEWEST if job is None and not since else -1
    events = view.latest_events(job_id="" if job is None else job.id, since_ms=since, limit=wanted)
    historian = Historian()
    if events:
        for earlier in view.events_before(events[0].number, sorted({event.job_id for event in events})):
            historian.read(earlier)
    show = _shower(historian, as_json=as_json, alone=job is not None)
    show(events)
    if follow:
        _follow(view, job, show, after=events[-1].number if events else 0)
    if job is not None and not as_json:
        _tell_remedy(view.find(job.id))


def _shower(historian: Historian, *, as_json: bool, alone: bool) -> Callable[[Sequence[JobEvent]], None]:
    import json

    def show(events: Sequence[JobEvent]) -> None:
        for event in events:
            entry = historian.read(event)
            click.echo(json.dumps(entry.to_json(), ensure_ascii=False) if as_json else _line(entry, alone=alone))

    return show


def _follow(view: LedgerView, job: Job | None, show: Callable[[Sequence[JobEvent]], None], *, after: int) -> None:
    """Show what is new until Ctrl-C, or until the one job has ended and all of its events were shown."""
    try:
        for events in _news(view, job, after):
            show(events)
    except KeyboardInterrupt:
        return


def _news(view: LedgerView, job: Job | None, after: int) -> Iterator[list[JobEvent]]:
    while True:
        now = None if job is None else view.find(job.id)  # first: its last event is committed together with its end
        events = view.latest_events(job_id="" if job is None else job.id, after=after)
        if events:
            after = events[-1].number
            yield events
        if job is not None and (now is None or now.state.ended):
            return
        time.sleep(_LOOK_EVERY_S)


def _line(entry: Entry, *, alone: bool) -> str:
    """One event: time, of several jobs which one, state, what ended here and how long it took, the note."""
    from lipsyncd.cli.display import COLOURS
    from lipsyncd.jobs.job import JobState
    from lipsyncd.log import printable

    event = entry.event
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at_ms / 1000)) + f".{event.at_ms % 1000:03d}"
    name = printable(event.name)
    whose = f"{event.job_id[-12:]}  {name if len(name) <= _NAME_WIDTH else name[: _NAME_WIDTH - 1] + '…':{_NAME_WIDTH}}"
    took = "" if entry.took_s is None else f"{entry.stage} {_duration(entry.took_s)}"
    state = click.style(f"{event.state:10}", fg=COLOURS[JobState(event.state)])
    cells = [clock, *(() if alone else (whose,)), state, f"{took:{_TOOK_WIDTH}}", printable(event.note)]
    return "  ".join(cells).rstrip()


def _duration(seconds: float) -> str:
    """Three digits of it in a unit that fits."""
    if seconds < 60:
        return f"{seconds:.2f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def _tell_remedy(job: Job | None) -> None:
    """What is to be done about a job that waits or has failed."""
    if job is not None and job.reason_code and job.remedy:
        click.echo(f"→ {job.remedy}")
