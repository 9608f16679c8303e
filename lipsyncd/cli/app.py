"""What all commands share: the invocation that they work with, how errors end them, and common options.

Owns the exit status of a command. Loads nothing but click and the tree of errors; other imports wait until they are
needed, since `lipsyncd --help` and shell completion load this module each time.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lipsyncd.errors import AnotherDaemonRuns, LipsyncdError, NotAllowed

if TYPE_CHECKING:
    from lipsyncd.ledger.view import LedgerView
    from lipsyncd.settings import Settings
    from lipsyncd.storage.control_files import Answer, Request
    from lipsyncd.storage.folders import Folders

_F = TypeVar("_F", bound=Callable[..., Any])


class Invocation:
    """One run of a command: its settings, and the folders and the ledger that they name, each read on first use."""

    def __init__(self, config: Path | None) -> None:
        self._config = config

    @cached_property
    def settings(self) -> Settings:
        return self.read_settings()

    def read_settings(self) -> Settings:
        """The settings as the file and the environment give them now. Raises `ConfigError`."""
        from lipsyncd.settings import load

        return load(self._config)

    @cached_property
    def folders(self) -> Folders:
        from lipsyncd.storage.folders import folders_of

        return folders_of(self.settings.paths, [queue.name for queue in self.settings.queues])

    @property
    def view(self) -> LedgerView:
        from lipsyncd.ledger.view import LedgerView

        return LedgerView(self.settings.paths.state / "ledger.db")


class Commands(click.Group):
    """A group with sections in its help. One of our errors ends a command with one line and the error's status."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._sections: dict[str, list[click.Command]] = {}

    def add_section(self, title: str, *commands: click.Command) -> None:
        self._sections[title] = list(commands)
        for command in commands:
            self.add_command(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        room = formatter.width - 6 - max(map(len, self.commands))
        for title, commands in self._sections.items():
            with formatter.section(title):
                formatter.write_dl([(str(one.name), one.get_short_help_str(room)) for one in commands])

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):  # a terminal without UTF-8 gets an escape for "→" and "日本"
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except PermissionError as refused:
            error: LipsyncdError = NotAllowed(f"{refused.filename}: {refused.strerror}")
        except LipsyncdError as ours:
            error = ours
        click.echo(f"lipsyncd: {error}", err=True)
        return ctx.exit(error.exit_status)


def json_option(command: _F) -> _F:
    """Add the option --json, which the command gets as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")(command)


def ask_daemon(folders: Folders, request: Request, *, timeout_s: float) -> Answer:
    """The running daemon's answer to a request. Raises `AnotherDaemonRuns` when none comes in time."""
    from lipsyncd.storage import control_files, locks

    answer = control_files.ask(folders.control, request, timeout_s=timeout_s)
    if answer is None:
        holder = locks.holder(folders.state) or "another process"
        about = f" about job {request.job_id}" if request.job_id else ""
        raise AnotherDaemonRuns(f"{holder} did not answer within {timeout_s:g} s{about}")
    return answer
