"""`lipsyncd backup` and `lipsyncd prune`: by hand what the daemon does every night. Imports wait until one runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lipsyncd.results.retention import Count
    from lipsyncd.settings import Settings
    from lipsyncd.storage.folders import Folders


_ANSWER_TIMEOUT_S = 3600.0  # a share with many files takes its time


class Caller(Protocol):
    """What the command line hands to each command."""

    @property
    def settings(self) -> Settings: ...

    @property
    def folders(self) -> Folders: ...


@click.command()
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Put the copy there, and remove no older one.",
)
@click.pass_obj
def backup(caller: Caller, folder: Path | None) -> None:
    """Copy the ledger, whether a daemon runs or not, and print where the copy is.

    It goes into state/backups, where the newest retention.backups copies stay.
    """
    from lipsyncd.ledger import backups

    state = caller.settings.paths.state
    copy = backups.make(state / "ledger.db", folder or state / backups.FOLDER)
    if folder is None:
        backups.turn_over(copy.parent, keep=max(1, caller.settings.retention.backups))
    click.echo(str(copy))


@click.command()
@click.option("--dry-run", is_flag=True, help="Only print what would go.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.pass_obj
def prune(caller: Caller, dry_run: bool, as_json: bool) -> None:
    """Remove what is older or larger than [retention] allows, as every night. Prints how much of each kind."""
    from lipsyncd.ledger.view import LedgerView
    from lipsyncd.results.retention import Retention

    if dry_run:
        view = LedgerView(caller.settings.paths.state / "ledger.db")
        counts: Sequence[Count] = Retention(caller.settings, caller.folders, view).count(time.time())
    else:
        counts = _pruned(caller)
    if as_json:
        from lipsyncd.cli.display import print_json

        print_json({"dry_run": dry_run, "counts": [count.to_json() for count in counts]})
    else:
        _print(counts, "would free" if dry_run else "freed")


def _pruned(caller: Caller) -> Sequence[Count]:
    """Have the daemon prune, or do it here when none runs."""
    from lipsyncd.errors import AnotherDaemonRuns, LipsyncdError
    from lipsyncd.results.retention import Count
    from lipsyncd.storage import control_files, locks

    if not locks.is_held(caller.folders.state):
        from lipsyncd.daemon.offline import prune_alone

        return prune_alone(caller.settings)
    request = control_files.Request(control_files.PRUNE, "")
    answer = control_files.ask(caller.folders.control, request, timeout_s=_ANSWER_TIMEOUT_S)
    if answer is None:
        raise AnotherDaemonRuns(f"{locks.holder(caller.folders.state) or 'another process'} did not answer")
    if not answer.ok:
        raise LipsyncdError(answer.message)
    return [Count(**count) for count in answer.facts["counts"]]


def _print(counts: Sequence[Count], verb: str) -> None:
    rows = [("KIND", "GOES", "FREES", "OF", "HOLDING")]
    for count in counts:
        sizes = (_size(count.frees_bytes), _size(count.holds_bytes)) if count.kind != "ledger" else ("-", "-")
        rows.append((count.kind, str(count.goes), sizes[0], str(count.holds), sizes[1]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for kind, *numbers in rows:
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
        click.echo("  ".join([kind.ljust(widths[0]), *cells]))
    click.echo(f"{verb} {_size(sum(count.frees_bytes for count in counts))}")


def _size(size_bytes: int) -> str:
    """In the unit that reads best: 0 B, 340 kB, 12.1 MB, 3.4 GB."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    if size_bytes < 1_000_000:
        return f"{size_bytes / 1000:.0f} kB"
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes < 1_000_000_000 else f"{size_bytes / 1e9:.1f} GB"
