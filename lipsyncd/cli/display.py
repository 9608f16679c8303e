"""Tables and progress of jobs: drawn by `rich` in a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from lipsyncd.jobs.job import Job, JobEvent, JobState, now_ms
from lipsyncd.jobs.webhook_delivery import Delivery, DeliveryState

_HEADINGS = ("ID", "NAME", "STATE", "STAGE", "%", "AGE", "RENDERER", "FPS")
_RIGHT = ("%", "AGE", "FPS")
COLOURS = {
    JobState.QUEUED: "yellow",
    JobState.RUNNING: "cyan",
    JobState.PUBLISHING: "blue",
    JobState.DONE: "green",
    JobState.FAILED: "red",
    JobState.CANCELLED: "bright_black",
}
_LONGEST_NAME = 32


def is_terminal() -> bool:
    return sys.stdout.isatty()


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))


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


def row(job: Job) -> tuple[str, ...]:
    """The cells of a job; a blocked or failed job has the code of its reason as its stage."""
    stage = job.reason_code if job.reason_code and job.state in (JobState.QUEUED, JobState.FAILED) else job.stage
    speed, name = job.render_fps, f"{job.queue}/{job.name}" if job.queue else job.name
    return (
        job.id,
        name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…",
        job.state.value,
        stage or "",
        f"{job.fraction * 100:.0f}",
        age(job.accepted_ms),
        job.renderer,
        f"{speed:.0f}" if speed is not None else "-",
    )


def plain_table(jobs: Sequence[Job]) -> str:
    """The table as text with aligned columns."""
    rows = [_HEADINGS, *map(row, jobs)]
    widths = [max(len(r[n]) for r in rows) for n in range(len(_HEADINGS))]
    lines = []
    for cells in rows:
        padded = [
            cell.rjust(width) if heading in _RIGHT else cell.ljust(width)
            for cell, width, heading in zip(cells, widths, _HEADINGS, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def drawn_table(jobs: Sequence[Job]) -> Any:
    """The table for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right" if heading in _RIGHT else "left", no_wrap=heading != "NAME")
    for job in jobs:
        cells: list[Any] = [Text(cell) for cell in row(job)]
        cells[2] = Text(job.state.value, style=COLOURS[job.state])
        table.add_row(*cells)
    return table


def print_jobs(jobs: Sequence[Job], notes: Sequence[str]) -> None:
    """Print the table of jobs, and the notes below it."""
    if not is_terminal():
        click.echo(plain_table(jobs) if jobs else "no jobs")
        for note in notes:
            click.echo(note)
        return
    from rich.console import Console

    console = Console()
    if jobs:
        console.print(drawn_table(jobs))
    else:
        console.print("no jobs", style="bright_black")
    for note in notes:
        console.print(note, style="yellow", markup=False, highlight=False)


def watch(look: Callable[[], tuple[Sequence[Job], Sequence[str]]], *, every_s: float) -> None:
    """Redraw the table and the notes that `look` returns, until Ctrl-C."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    def screen() -> Group:
        jobs, notes = look()
        body = drawn_table(jobs) if jobs else Text("no jobs", style="bright_black")
        return Group(body, *(Text(note, style="yellow") for note in notes))

    try:
        with Live(screen(), auto_refresh=False, screen=is_terminal()) as live:
            while True:
                time.sleep(every_s)
                live.update(screen(), refresh=True)
    except KeyboardInterrupt:
        return


def print_job(job: Job, events: Sequence[JobEvent], deliveries: Sequence[Delivery] = ()) -> None:
    """Print one job with its history and its webhooks."""
    facts = [
        ("id", job.id),
        ("name", job.name),
        ("state", job.state.value + (f" ({job.stage}, {job.fraction:.0%})" if job.state is JobState.RUNNING else "")),
        ("queue", job.queue),
        ("result", f"{job.place}.mp4" if job.state is JobState.DONE else ""),
        ("same as", job.duplicate_of or ""),
        (
            "renderer",
            f"{job.renderer}, {'whole picture' if job.stitch else f'{job.resolution} px square'}, {job.fps} fps",
        ),
        ("length", f"{job.duration_ms / 1000:.2f} s, {job.frames} frames" if job.duration_ms else ""),
        (
            "rendered",
            f"{job.render_ms / 1000:.1f} s, {job.render_fps:.0f} fps" if job.render_fps and job.render_ms else "",
        ),
        ("attempts", f"{job.attempt} of {job.max_attempts}"),
        ("priority", str(job.priority) if job.priority else ""),
        ("reason", f"{job.reason_code}: {job.reason}" if job.reason_code else ""),
        ("remedy", job.remedy or ""),
        ("inputs", job.kept or ""),
        *(("webhook", delivery_line(delivery)) for delivery in deliveries),
    ]
    for label, value in facts:
        if value:
            click.echo(f"{click.style(label.rjust(9), bold=True)}  {value}")
    click.echo("")
    for event in events:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at_ms / 1000))
        click.echo(f"{stamp}  {event.state.ljust(10)}  {event.note}")


def delivery_line(delivery: Delivery) -> str:
    """A webhook in one line, without its URL, which may contain a secret."""
    attempts = f"{delivery.attempt} {'attempt' if delivery.attempt == 1 else 'attempts'}"
    parts = [delivery.state.value, attempts, delivery.last_error or ""]
    if delivery.state is DeliveryState.WAITING and delivery.attempt:
        wait_s = max(0, delivery.next_at_ms - now_ms()) / 1000
        parts.append(f"next in {wait_s:.0f} s")
    return ", ".join(part for part in parts if part) + f" ({delivery.webhook_id})"


class Progress:
    """Shows the progress of a job: a bar in a terminal, else a line for each change of state and each quarter."""

    def __init__(self, bar: Any, task: Any) -> None:
        self._bar = bar
        self._task = task
        self._printed: tuple[str, int] | None = None

    def show(self, state: str, stage: str, fraction: float) -> None:
        label = stage if state == JobState.RUNNING else state
        if self._bar is not None:
            self._bar.update(self._task, completed=fraction, stage=label)
        elif (label, int(fraction * 4)) != self._printed:
            self._printed = (label, int(fraction * 4))
            click.echo(f"{label} {fraction:.0%}", err=True)


@contextmanager
def progress(name: str) -> Iterator[Progress]:
    """A `Progress` on stderr, so that stdout has only results."""
    if not sys.stderr.isatty():
        yield Progress(None, None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=40),
        TaskProgressColumn(),
        TextColumn("{task.fields[stage]}", style="cyan"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        yield Progress(bar, bar.add_task(name, total=1.0, stage="waiting"))
