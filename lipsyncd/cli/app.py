"""What all commands share: the invocation that they work with, how errors end them, common options, and
what a shell offers for arguments.

Owns the exit status of a command. Loads nothing but click and the tree of errors; other imports wait until they are
needed, since `lipsyncd --help` and shell completion load this module each time.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import click

from lipsyncd.errors import AnotherDaemonRuns, LipsyncdError, NotAllowed

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from lipsyncd.ledger.view import LedgerView
    from lipsyncd.settings import Settings
    from lipsyncd.storage.control_files import Answer, Request
    from lipsyncd.storage.folders import Folders

_F = TypeVar("_F", bound=Callable[..., Any])
_Completer: TypeAlias = "Callable[[click.Context, click.Parameter, str], list[CompletionItem]]"
_MOST_OFFERED = 200
_PLAIN = r"[\w.%+@:/-]+"  # what a shell takes as it stands; also, click's scripts split other words


class Invocation:
    """One run of a command: its settings, and the folders and the ledger that they name, each read on first use.

    Where neither a file nor a variable names the folders, they are those of the daemon that runs: `run`, `init` and
    `config`, which make or describe a daemon, use the settings as they were given.
    """

    def __init__(self, config: Path | None) -> None:
        self._config = config

    @cached_property
    def given(self) -> Settings:
        """The settings without a look at a running daemon. Raises `ConfigError`."""
        return self.read_settings()

    @cached_property
    def settings(self) -> Settings:
        """The settings; with the folders of the running daemon where nothing else names any. Raises `ConfigError`."""
        from lipsyncd.settings.loading import names_folders, with_folders

        if names_folders(self.given):
            return self.given
        from lipsyncd.monitor.running_daemon import find_daemon

        found = find_daemon()
        if found is None:
            return self.given
        return with_folders(self.given, found.paths, found.queues, f"the running daemon ({found.pointer})")

    def read_settings(self) -> Settings:
        """The settings as the file and the environment give them now. Raises `ConfigError`."""
        from lipsyncd.settings import load

        return load(self._config)

    @cached_property
    def folders(self) -> Folders:
        return _folders(self.settings)

    @cached_property
    def given_folders(self) -> Folders:
        return _folders(self.given)

    @property
    def place(self) -> str:
        """Where this command looks, for people: the storage, or a state folder apart from it, and what named it."""
        settings = self.settings
        apart = settings.paths.state.parent != settings.paths.storage
        origin = settings.origins.get("paths.state" if apart else "paths.storage", "default")
        named_by = "the default; --config or STORAGE_DIR names another" if origin == "default" else f"from {origin}"
        return f"{settings.paths.state if apart else settings.paths.storage} ({named_by})"

    @property
    def outbox(self) -> str:
        """Where finished videos lie, for people and programs to open."""
        return str(self.settings.paths.outbox)

    @property
    def view(self) -> LedgerView:
        from lipsyncd.ledger.view import LedgerView

        return LedgerView(self.settings.paths.state / "ledger.db")


def _folders(settings: Settings) -> Folders:
    from lipsyncd.storage.folders import folders_of

    return folders_of(settings.paths, [queue.name for queue in settings.queues])


class _Places(MutableMapping[str, click.Command]):
    """Commands by name; one that is known by its place, such as "jobs:submit", is imported when it is used."""

    def __init__(self) -> None:
        self._found: dict[str, click.Command | str] = {}

    def know(self, place: str) -> str:
        """Add the command `submit` of `lipsyncd.cli.jobs`; gives its name."""
        name = place.partition(":")[2]
        self._found[name] = place
        return name

    def __getitem__(self, name: str) -> click.Command:
        found = self._found[name]
        if isinstance(found, str):
            module, _, attribute = found.partition(":")
            loaded: click.Command = getattr(import_module(f"lipsyncd.cli.{module}"), attribute)
            self._found[name] = found = loaded
        return found

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._found[name] = command

    def __delitem__(self, name: str) -> None:
        del self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


class Commands(click.Group):
    """A group with sections in its help. One of our errors ends a command with one line and the error's status."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.commands = self._places = _Places()
        self._sections: dict[str, list[str]] = {}

    def add_section(self, title: str, *commands: click.Command | str) -> None:
        """Add commands, or places of commands such as "jobs:submit", whose modules are imported when they are used."""
        names = self._sections[title] = []
        for command in commands:
            if isinstance(command, str):
                names.append(self._places.know(command))
            else:
                self.add_command(command)
                names.append(str(command.name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        room = formatter.width - 6 - max(map(len, self.commands))
        for title, names in self._sections.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(room)) for name in names])

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
        for line in error.lines:
            click.echo(f"lipsyncd: {line}", err=True)
        return ctx.exit(error.exit_status)


def json_option(command: _F) -> _F:
    """Add the option --json, which the command gets as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")(command)


def ask_daemon(folders: Folders, requests: Sequence[Request], *, timeout_s: float) -> list[Answer]:
    """The running daemon's answers to requests. Raises `AnotherDaemonRuns` when one does not come in time."""
    from lipsyncd.storage import control_files, locks

    answers = control_files.ask_all(folders.control, requests, timeout_s=timeout_s)
    found = [answer for answer in answers if answer is not None]
    if len(found) < len(answers):
        holder = locks.holder(folders.state) or "another process"
        silent = next(request for request, answer in zip(requests, answers, strict=True) if answer is None)
        about = f" about job {silent.job_id}" if silent.job_id else ""
        raise AnotherDaemonRuns(f"{holder} did not answer within {timeout_s:g} s{about}")
    return found


# -- what a shell offers for arguments ---------------------------------------------------------------------------------


def files(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files, for an argument that may also be an address."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def jobs_in(*states: str) -> _Completer:
    """Jobs in these states, or in any: by name, or by the id's end where a name needs quotes or belongs to several."""

    def offered(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        from lipsyncd.errors import LipsyncdError
        from lipsyncd.jobs.job import JobState
        from lipsyncd.ledger.find_job import short_ids

        try:
            view = Invocation(ctx.find_root().params.get("config")).view
            found = view.jobs(states=[JobState(state) for state in states], limit=_MOST_OFFERED)
            ends = short_ids(view, found)
        except (LipsyncdError, OSError):
            return []  # a shell shows no message while one types
        names = [job.name for job in found]
        texts = [
            (job.name if names.count(job.name) == 1 and re.fullmatch(_PLAIN, job.name) else ends[job.id], job)
            for job in found
        ]
        return [CompletionItem(text, help=job.state.value) for text, job in texts if text.startswith(incomplete)]

    return offered
