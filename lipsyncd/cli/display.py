"""What commands print: JSON, the table of jobs, one job, and progress, for which `rich` draws a bar in a terminal."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from lipsyncd.cli.job_table import Row, lines, name_of, shortened, state_of, wrapped
from lipsyncd.jobs.job import JobEvent, JobState, now_ms

if TYPE_CHECKING:
    from lipsyncd.jobs.webhook_delivery import Delivery

_BAR_WIDTH, _LONGEST_OF_A_BAR = 20, 24  # so that a line of 80 columns has room for stage and times


def is_terminal() -> bool:
    return sys.stdout.isatty()


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))


def width() -> int | None:
    """The columns of the terminal; None when standard output is none."""
    if not is_terminal():
        return None
    from shutil import get_terminal_size

    return get_terminal_size().columns


def say(line: str) -> None:
    """Print a line with colours, where a terminal shows them and NO_COLOR is not set."""
    click.echo(line, color=False if os.environ.get("NO_COLOR") else None)


def print_jobs(rows: Sequence[Row], notes: Sequence[str]) -> None:
    """Print the table of jobs, and the notes below it."""
    for line in _screen(rows, notes, width()):
        say(line)


def _screen(rows: Sequence[Row], notes: Sequence[str], columns: int | None) -> Iterator[str]:
    yield from lines(rows, columns) if rows else ["no jobs"]
    if columns is not None:
        yield ""
    for note in notes:
        yield from (click.style(line, fg="yellow") for line in wrapped(note, columns, ""))


def watch(look: Callable[[], tuple[Sequence[Row], Sequence[str]]], *, every_s: float) -> None:
    """Redraw the table and the notes that `look` returns, until Ctrl-C."""
    from shutil import get_terminal_size

    from rich.live import Live
    from rich.text import Text

    def screen() -> Text:
        return Text.from_ansi("\n".join(_screen(*look(), get_terminal_size().columns)))

    try:
        with Live(screen(), auto_refresh=False, screen=is_terminal()) as live:
            while True:
                time.sleep(every_s)
                live.update(screen(), refresh=True)
    except KeyboardInterrupt:
        return


def print_job(row: Row, events: Sequence[JobEvent], deliveries: Sequence[Delivery] = ()) -> None:
    """Print one job with its history and its webhooks."""
    job, waits_for = row.job, row.waits_for or {}
    look = "whole picture" if job.stitch else f"{job.resolution} px square"
    failed = job.state is JobState.FAILED
    facts = [
        ("id", job.id),
        ("name", name_of(job)),
        ("state", state_of(job, row.waits_for)),
        ("waits for", f"{waits_for['code']}: {waits_for['message']}" if waits_for else ""),
        ("reason", f"{job.reason_code}: {job.reason}" if failed else ""),
        ("remedy", waits_for.get("remedy") or (job.remedy if failed else "") or ""),
        ("video", row.video),
        ("same as", job.duplicate_of or ""),
        ("renderer", f"{job.renderer}, {look}, {job.fps} fps"),
        ("length", f"{job.duration_ms / 1000:.2f} s, {job.frames} frames" if job.duration_ms else ""),
        (
            "rendered",
            f"{job.render_ms / 1000:.1f} s, {job.render_fps:.0f} fps" if job.render_fps and job.render_ms else "",
        ),
        ("attempts", f"{job.attempt} of {job.max_attempts}"),
        ("priority", str(job.priority) if job.priority else ""),
        ("inputs", job.kept or ""),
        *(("webhook", delivery_line(delivery)) for delivery in deliveries),
    ]
    indent = " " * 11
    for label, value in facts:
        if value:
            text = wrapped(value, width(), indent)
            say(f"{click.style(label.rjust(9), bold=True)}  {text[0].removeprefix(indent)}")
            for line in text[1:]:
                say(line)
    say("")
    for event in events:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at_ms / 1000))
        first, *more = wrapped(event.note, width(), " " * 33) or [""]
        say(f"{stamp}  {event.state.ljust(10)}  {first.strip()}".rstrip())
        for line in more:
            say(line)


def delivery_line(delivery: Delivery) -> str:
    """A webhook in one line, without its URL, which may contain a secret."""
    attempts = f"{delivery.attempt} {'attempt' if delivery.attempt == 1 else 'attempts'}"
    parts = [delivery.state.value, attempts, delivery.last_error or ""]
    from lipsyncd.jobs.webhook_delivery import DeliveryState

    if delivery.state is DeliveryState.WAITING and delivery.attempt:
        wait_s = max(0, delivery.next_at_ms - now_ms()) / 1000
        parts.append(f"next in {wait_s:.0f} s")
    return ", ".join(part for part in parts if part) + f" ({delivery.webhook_id})"


class Progress:
    """Shows the progress of a job: a bar in a terminal, else a line for each change of state and each quarter."""

    def __init__(self, name: str, bar: Any, task: Any) -> None:
        self._name = name
        self._bar = bar
        self._task = task
        self._printed: tuple[str, int] | None = None

    def show(self, state: str, stage: str, fraction: float, left_s: float | None = None) -> None:
        """`left_s` is the time until its end, where that is known."""
        label = stage if state == JobState.RUNNING else state
        if self._bar is not None:
            self._bar.start()  # with the first call, so that an error before it stands alone
            left = "" if left_s is None else f"{math.ceil(left_s)} s left"
            self._bar.update(self._task, completed=fraction, stage=label, left=left)
        elif (label, int(fraction * 4)) != self._printed:
            self._printed = (label, int(fraction * 4))
            click.echo(f"{self._name}: {label} {fraction:.0%}", err=True)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, style="yellow", markup=False, highlight=False)
        else:
            click.echo(text, err=True)


@contextmanager
def progress(name: str) -> Iterator[Progress]:
    """A `Progress` on stderr, so that stdout has only results."""
    if not sys.stderr.isatty():
        yield Progress(name, None, None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=_BAR_WIDTH),
        TaskProgressColumn(),
        TextColumn("{task.fields[stage]}", style="cyan", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", style="bright_black"),
    )
    bar = Bar(*columns, console=Console(stderr=True))
    try:
        shown = shortened(name, _LONGEST_OF_A_BAR)
        yield Progress(name, bar, bar.add_task(shown, total=1.0, stage="waiting", left=""))
    finally:
        bar.stop()
