"""`lipsyncd backup` and `lipsyncd prune`: by hand what the daemon does every night. Imports wait until one runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

if TYPE_CHECKING:
    from lipsyncd.settings import Settings


class Caller(Protocol):
    """What the command line hands to each command."""

    @property
    def settings(self) -> Settings: ...


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
    from lipsyncd import backups

    state = caller.settings.paths.state
    copy = backups.make(state / "ledger.db", folder or state / backups.FOLDER)
    if folder is None:
        backups.turn_over(copy.parent, keep=max(1, caller.settings.retention.backups))
    click.echo(str(copy))
