"""The command line: the group of all commands, and those that concern the installation as a whole.

Each command parses, calls one function and prints; imports wait until it runs.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lipsyncd import __version__
from lipsyncd.cli.app import Commands, Invocation, json_option
from lipsyncd.cli.bench import bench
from lipsyncd.cli.doctor import doctor
from lipsyncd.cli.jobs import cancel, priority, republish, retry, status, submit
from lipsyncd.cli.logs import logs
from lipsyncd.cli.models import models
from lipsyncd.cli.upkeep import backup, prune
from lipsyncd.errors import LipsyncdError

if TYPE_CHECKING:
    from lipsyncd.storage.folders import Folders


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=click.Path(path_type=Path), help="Settings file to use in place of the usual ones.")
@click.version_option(__version__, prog_name="lipsyncd")
@click.pass_context
def main(ctx: click.Context, config: Path | None) -> None:
    """Turn portraits and voices that are dropped into a folder into talking videos."""
    ctx.obj = Invocation(config)


# -- the daemon --------------------------------------------------------------------------------------------------------


@main.command()
@click.pass_obj
def run(invocation: Invocation) -> None:
    """Run the daemon in the foreground, until SIGTERM or Ctrl-C; SIGHUP has it read its settings again."""
    import logging

    from lipsyncd import log

    log.setup()  # for the case that the settings cannot say how
    try:
        settings = invocation.settings
        log.setup(settings.log.level, settings.log.format)
        _refuse_a_second(invocation.folders)
        from lipsyncd.daemon.daemon import Daemon

        status = Daemon(settings, invocation.read_settings).run()
    except LipsyncdError as error:  # a line of the log like any other, since nobody may be at a terminal
        logging.getLogger("lipsyncd").error("%s", error)
        status = error.exit_status
    sys.exit(status)


def _refuse_a_second(folders: Folders) -> None:
    """Raises `AnotherDaemonRuns` before the daemon's imports, which take a second.

    A share may hang for minutes, and systemd is not told yet that we start: its lock is left to the daemon.
    """
    from lipsyncd.storage.locks import refuse_a_second
    from lipsyncd.storage.mounts import known_network

    with contextlib.suppress(OSError):  # told by the daemon, with its remedy
        known = folders.known()
        ours = [
            kind for kind in folders.inboxes
            if not known_network(folders.shared[kind]) and (kind not in known or folders.available(kind))
        ]  # fmt: skip
        refuse_a_second(folders.state, [folders.lock_file(kind) for kind in ours])


@main.command()
@click.option("--adopt", is_flag=True, help="Take the folders that lie there now for the right ones.")
@click.pass_obj
def init(invocation: Invocation, adopt: bool) -> None:
    """Make the folders and mark them. Doing it again changes nothing."""
    done = invocation.folders.initialise(adopt=adopt)
    for line in done or ["nothing to do: all folders are there and marked"]:
        click.echo(line)


@main.command()
@json_option
@click.pass_obj
def config(invocation: Invocation, as_json: bool) -> None:
    """Show every setting: its value and where that was read."""
    from lipsyncd.settings import describe

    rows = describe(invocation.settings)
    if as_json:
        from lipsyncd.cli.display import print_json

        print_json({row.name: {"value": row.value, "origin": row.origin} for row in rows})
        return
    width = max(len(row.name) for row in rows)
    for row in rows:
        origin = "" if row.origin == "default" else click.style(f"  # {row.origin}", fg="cyan")
        click.echo(f"{row.name.ljust(width)} = {row.value}{origin}")


# -- trying it out -----------------------------------------------------------------------------------------------------


@main.command()
@click.argument("text", required=False)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("demo-out"), show_default=True)
@click.pass_obj
def demo(invocation: Invocation, text: str | None, out: Path) -> None:
    """Make two videos of a spoken sentence with a daemon of its own, and show where they lie (extra `demo`)."""
    from lipsyncd.cli.demo import DEFAULT_TEXT, show

    show(text or DEFAULT_TEXT, out)


# -- the commands that live elsewhere ----------------------------------------------------------------------------------

for command in (submit, status, cancel, retry, priority, republish, logs, doctor, models, backup, prune, bench):
    main.add_command(command)
