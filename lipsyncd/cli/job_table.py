"""The table of `lipsyncd status`: one line for each job, below it why it waits or failed, or where its video is.

In a terminal it fits into the width, and only the column of names gives way. Elsewhere nothing is shortened or wrapped,
and the lines below a job begin with blanks, so that programs can leave them out.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import click

from lipsyncd.jobs.job import Job, JobState, now_ms
from lipsyncd.jobs.waits import SAME_WORK

COLOURS = {
    JobState.QUEUED: "yellow",
    JobState.RUNNING: "cyan",
    JobState.PUBLISHING: "blue",
    JobState.DONE: "green",
    JobState.FAILED: "red",
    JobState.CANCELLED: "bright_black",
}
_HEADINGS = ("NAME", "ID", "STATE", "AGE", "RENDERER", "RENDER FPS")
_RIGHT = ("AGE", "RENDER FPS")
_GAP = "  "
_SHORTEST_NAME = 12
_INDENT = "    "


@dataclass(frozen=True)
class Row:
    """One job as it is shown.

    short      its short id
    waits_for  code, message and remedy of what it waits for besides its turn
    video      where its video was published; "" while there is none
    """

    job: Job
    short: str
    waits_for: Mapping[str, str] | None = None
    video: str = ""


def age(ms: int) -> str:
    """The time since `ms` (milliseconds since 1970): 12s, 3m05s, 2h10m, 4d."""
    seconds = max(0, (now_ms() - ms) // 1000)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    if seconds < 86_400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 86_400}d"


def state_of(job: Job, waits_for: Mapping[str, str] | None = None) -> str:
    """The state in one or two words; a running job has its stage and how far it is."""
    if job.state is JobState.RUNNING:
        stage = job.stage or job.state.value
        return f"{stage} {job.fraction:.0%}" if job.fraction else stage
    blocked = job.state is JobState.QUEUED and waits_for is not None and waits_for["code"] != SAME_WORK
    return "blocked" if blocked and job.attempt == 0 else job.state.value


def name_of(job: Job) -> str:
    return f"{job.queue}/{job.name}" if job.queue else job.name


def lines(rows: Sequence[Row], width: int | None) -> Iterator[str]:
    """The lines of the table, with colours. `width` is the terminal's; None: no line is shortened or wrapped."""
    table = [_HEADINGS, *map(_cells, rows)]
    widths = [max(cells_wide(cells[n]) for cells in table) for n in range(len(_HEADINGS))]
    if width is not None:
        others = sum(widths[1:]) + len(_GAP) * (len(_HEADINGS) - 1)
        widths[0] = max(_SHORTEST_NAME, min(widths[0], width - others))
    yield click.style(_line(_HEADINGS, widths), bold=True)
    named: set[str] = set()
    for row, cells in zip(rows, table[1:], strict=True):
        yield _line(cells, widths, COLOURS[row.job.state])
        yield from _below(row, width, named)


def _cells(row: Row) -> tuple[str, ...]:
    job, speed = row.job, row.job.render_fps
    state = state_of(job, row.waits_for)
    return (
        name_of(job),
        row.short,
        state,
        age(job.accepted_ms),
        job.renderer,
        "-" if speed is None else f"{speed:.0f}",
    )


def _line(cells: Sequence[str], widths: Sequence[int], colour: str = "") -> str:
    padded = []
    for cell, width, heading in zip(cells, widths, _HEADINGS, strict=True):
        text = shortened(cell, width)
        blanks = " " * (width - cells_wide(text))
        styled = click.style(text, fg=colour) if colour and heading == "STATE" else text
        padded.append(blanks + styled if heading in _RIGHT else styled + blanks)
    return _GAP.join(padded).rstrip()


def _below(row: Row, width: int | None, named: set[str]) -> Iterator[str]:
    """What stands below a job. A reason that stands in full for a job before is only named."""
    if row.video:
        yield _INDENT + row.video
    job, reason = row.job, row.waits_for
    if job.state is JobState.FAILED:
        reason = {"code": job.reason_code or "unknown", "message": job.reason or "", "remedy": job.remedy or ""}
    if reason is None:
        return
    whole = f"{reason['code']}: {reason['message']}"
    colour = "red" if job.state is JobState.FAILED else "yellow"
    if whole in named:
        yield click.style(f"{_INDENT}{reason['code']}, as above", fg=colour)
        return
    named.add(whole)
    yield from (click.style(line, fg=colour) for line in wrapped(whole, width, _INDENT))
    if reason["remedy"]:
        yield from wrapped(f"→ {reason['remedy']}", width, _INDENT)


def wrapped(text: str, width: int | None, indent: str) -> list[str]:
    """The text in lines of at most `width` columns, each behind `indent`. A path or command is never broken."""
    if width is None:
        return [indent + text] if text else []
    import textwrap

    return textwrap.wrap(
        text,
        max(width, len(indent) + 20),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def shortened(text: str, width: int) -> str:
    """The text in at most `width` columns of a terminal."""
    if cells_wide(text) <= width:
        return text
    kept, used = "", 1
    for char in text:
        used += _wide(char)
        if used > width:
            break
        kept += char
    return f"{kept}…"


def cells_wide(text: str) -> int:
    """How many columns of a terminal a text takes: Chinese characters take two, accents none."""
    return sum(map(_wide, text))


def _wide(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Cf", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1
