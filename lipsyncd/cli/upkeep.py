"""`lipsyncd backup` and `prune`, the daemon's nightly work on request, and `reload`. Imports wait until one runs."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lipsyncd.cli.app import Invocation, ask_daemon, json_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lipsyncd.results.retention import Count


_ANSWER_TIMEOUT_S = 3600.0  # a share with many files may take long
_RELOAD_TIMEOUT_S = 30.0  # the main thread may wait for a slow disk first


@click.command()
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the copy into this folder, and delete no older copies.",
)
@click.pass_obj
def backup(invocation: Invocation, folder: Path | None) -> None:
    """Copy the ledger, with or without a running daemon.

    Prints the path of the copy: in state/backups, which keeps the newest retention.backups copies, or in --to.
    """
    from lipsyncd.errors import BackupFailed
    from lipsyncd.ledger import backups

    state = invocation.settings.paths.state
    try:
        copy = backups.make(state / "ledger.db", folder or state / backups.FOLDER)
    except BackupFailed as error:
        if isinstance(error.__cause__, PermissionError):
            raise error.__cause__ from error  # which ends every command with the remedy for rights
        raise
    if folder is None:
        backups.rotate(copy.parent, keep=max(1, invocation.settings.retention.backups))
    click.echo(str(copy))


@click.command()
@click.option("--quiet", is_flag=True, help="Print only what is wrong.")
@click.pass_obj
def reload(invocation: Invocation, quiet: bool) -> None:
    """Have the running daemon read its settings again.

    Prints what changed and what needs a restart. If a setting is wrong, the daemon keeps the old ones, and the exit
    status is 78. Needs the rights of the daemon's user, or root's.
    """
    from lipsyncd.monitor import reload_request
    from lipsyncd.monitor.held_lock import is_held
    from lipsyncd.monitor.running_daemon import find_daemon

    state = invocation.settings.paths.state
    if not is_held(state) and (found := find_daemon()):  # the new settings may name other folders
        state = found.paths["state"]
    outcome = reload_request.ask(state, timeout_s=_RELOAD_TIMEOUT_S)
    for line in outcome.lines:
        if outcome.status:
            click.echo(f"lipsyncd: the settings stay as they were: {line}", err=True)
        elif not quiet:
            click.echo(line)
    sys.exit(outcome.status)


@click.command()
@click.option("--dry-run", is_flag=True, help="Only print what would be deleted.")
@json_option
@click.pass_obj
def prune(invocation: Invocation, dry_run: bool, as_json: bool) -> None:
    """Delete what is older or larger than [retention] allows.

    The daemon does the same every night. Prints number and size for each kind.
    """
    from lipsyncd.results.retention import Retention

    if dry_run:
        retention = Retention(invocation.settings, invocation.folders, invocation.view)
        counts: Sequence[Count] = retention.count(time.time())
    else:
        counts = _pruned(invocation)
    if as_json:
        from lipsyncd.cli.display import print_json

        print_json({"dry_run": dry_run, "counts": [count.to_json() for count in counts]})
    else:
        _print(counts, "would free" if dry_run else "freed")
        if not any(count.holds for count in counts):
            click.echo(f"nothing lies in {invocation.place}", err=True)


def _pruned(invocation: Invocation) -> Sequence[Count]:
    """Let the daemon prune, or do it here if none runs."""
    from lipsyncd.errors import LipsyncdError
    from lipsyncd.monitor.held_lock import is_held
    from lipsyncd.results.retention import Count
    from lipsyncd.storage import control_files

    if not is_held(invocation.folders.state):
        from lipsyncd.daemon.offline import prune_alone

        return prune_alone(invocation.settings)
    request = control_files.Request(control_files.PRUNE, "")
    [answer] = ask_daemon(invocation.folders, [request], timeout_s=_ANSWER_TIMEOUT_S)
    if not answer.ok:
        raise LipsyncdError(answer.message)
    return [Count(**count) for count in answer.facts["counts"]]


def _print(counts: Sequence[Count], verb: str) -> None:
    rows = [("KIND", "DELETED", "SIZE", "OF", "SIZE")]
    for count in counts:
        sizes = (_size(count.frees_bytes), _size(count.holds_bytes)) if count.kind != "ledger" else ("-", "-")
        rows.append((count.kind, str(count.goes), sizes[0], str(count.holds), sizes[1]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for kind, *numbers in rows:
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
        click.echo("  ".join([kind.ljust(widths[0]), *cells]))
    click.echo(f"{verb} {_size(sum(count.frees_bytes for count in counts))}")


def _size(size_bytes: int) -> str:
    """A size in the unit that suits it: 0 B, 340 kB, 12.1 MB, 3.4 GB."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    if size_bytes < 1_000_000:
        return f"{size_bytes / 1000:.0f} kB"
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes < 1_000_000_000 else f"{size_bytes / 1e9:.1f} GB"
