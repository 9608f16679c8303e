"""The command line: the group of all commands, and the commands run, init, config and demo.

Each command parses, calls one function and prints; imports wait until it runs, and so do the modules of the commands
that are named by their places below.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lipsyncd import __version__
from lipsyncd.cli.app import Commands, Invocation, json_option
from lipsyncd.errors import LipsyncdError

if TYPE_CHECKING:
    from lipsyncd.storage.folders import Folders


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 done; 1 a job failed or a request was refused; 2 wrong usage; 75 another daemon runs; "
    "77 not allowed; 78 a wrong setting.",
)
@click.option("--config", type=click.Path(path_type=Path), help="Settings file to use instead of the default ones.")
@click.version_option(__version__, prog_name="lipsyncd")
@click.pass_context
def main(ctx: click.Context, config: Path | None) -> None:
    """Turn portraits and voices that are dropped into a folder into talking videos."""
    ctx.obj = Invocation(config)


@click.command()
@click.pass_obj
def run(invocation: Invocation) -> None:
    """Run the daemon in the foreground until SIGTERM or Ctrl-C.

    SIGHUP or `lipsyncd reload` makes it read its settings again.
    """
    import logging

    from lipsyncd import log

    log.setup()  # until the settings are read
    try:
        settings = invocation.given
        log.setup(settings.log.level, settings.log.format)
        _refuse_a_second(invocation.given_folders)
        from lipsyncd.daemon.daemon import Daemon

        status = Daemon(settings, invocation.read_settings).run()
    except LipsyncdError as error:  # into the log, since a service has no terminal
        for line in error.lines:
            logging.getLogger("lipsyncd").error("%s", line)
        status = error.exit_status
    sys.exit(status)


def _refuse_a_second(folders: Folders) -> None:
    """Raises `AnotherDaemonRuns` early, before the daemon's imports, which take a second.

    The lock of an inbox on a share is left to the daemon: a share may hang for minutes, and only the daemon asks
    systemd for that time.
    """
    from lipsyncd.storage.locks import refuse_a_second

    with contextlib.suppress(OSError):  # the daemon reports it, with its remedy
        known = folders.known()
        checked = [
            kind for kind in folders.inboxes
            if not folders.shared[kind].known_network() and (kind not in known or folders.available(kind))
        ]  # fmt: skip
        refuse_a_second(folders.state, [folders.shared[kind] for kind in checked])


@click.command()
@click.option("--adopt", is_flag=True, help="Accept the folders that are there now, and mark those without a marker.")
@click.pass_obj
def init(invocation: Invocation, adopt: bool) -> None:
    """Create the folders and mark them.

    Running it again changes nothing. A folder that has lost its marker counts as not mounted, until --adopt.
    """
    done = invocation.given_folders.initialise(adopt=adopt)
    for line in done or ["nothing to do: all folders exist and are marked"]:
        click.echo(line)


@click.command()
@json_option
@click.pass_obj
def config(invocation: Invocation, as_json: bool) -> None:
    """Show every setting, its value and where it was read."""
    from lipsyncd.settings.reference import describe

    rows = describe(invocation.given)
    if as_json:
        from lipsyncd.cli.display import print_json

        print_json({row.name: {"value": row.value, "origin": row.origin} for row in rows})
        return
    width = max(len(row.name) for row in rows)
    for row in rows:
        origin = "" if row.origin == "default" else click.style(f"  # {row.origin}", fg="cyan")
        click.echo(f"{row.name.ljust(width)} = {row.value}{origin}")


@click.command()
@click.argument("text", required=False)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-out"),
    show_default=True,
    help="Folder for the videos and a contact sheet.",
)
@click.pass_obj
def demo(invocation: Invocation, text: str | None, out: Path) -> None:
    """Make two sample videos with a temporary daemon.

    TEXT is the sentence to speak. The configured folders are not used. Needs the extra `demo`.
    """
    from lipsyncd.cli.demo import DEFAULT_TEXT, show

    show(text or DEFAULT_TEXT, out)


_ON_JOBS = ("jobs:cancel", "jobs:retry", "jobs:priority", "jobs:republish")
main.add_section("Start", demo, "render:render", init, config, "doctor:doctor", run)
main.add_section("Jobs", "jobs:submit", "jobs:status", "logs:logs", *_ON_JOBS)
main.add_section(
    "Maintenance", "upkeep:reload", "voices:voices", "models:models", "upkeep:backup", "upkeep:prune", "bench:bench"
)
