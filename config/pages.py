"""Man pages and shell completions, made of the command line itself: `python config/pages.py FOLDER`.

The build of a wheel runs this (config/build_backend.py). It imports click and the modules of commands, which are light.

    man/man1/lipsyncd.1, lipsyncd-COMMAND.1    the help of the commands
    man/man5/lipsyncd.toml.5                   every setting
    bash-completion/completions/lipsyncd, zsh/site-functions/_lipsyncd, fish/vendor_completions.d/lipsyncd.fish

Source of the format: man-pages(7), groff_man(7); of the completions: click, "Shell Completion".
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import FishComplete, ShellComplete, ZshComplete, get_completion_class

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lipsyncd import __version__  # noqa: E402
from lipsyncd.cli.main import main as lipsyncd  # noqa: E402
from lipsyncd.settings.reference import reference_toml  # noqa: E402

FILES = {
    "/etc/lipsyncd/lipsyncd.toml": "Settings of the service. lipsyncd.toml(5) lists all of them.",
    "~/.config/lipsyncd/lipsyncd.toml, ./lipsyncd.toml": "Settings of a user, if there are none of the service.",
    "/srv/lipsyncd": "Inbox, outbox, failed jobs and archive of the service.",
    "/var/lib/lipsyncd": "Ledger, accepted jobs and weights of the service.",
}
VARIABLES = {
    "LIPSYNCD_CONFIG": "The settings file to use.",
    "LIPSYNCD_SECTION_KEY": "Any setting, such as LIPSYNCD_RENDER_RENDERER=preview.",
    "STORAGE_DIR": "Parent of all folders that the settings do not name.",
}


# -- man pages ---------------------------------------------------------------------------------------------------------


def escaped(text: str) -> str:
    r"""Plain text for troff: no character of it is a request, and a hyphen stays one that can be copied."""
    text = (
        text.replace("\\", r"\e").replace("-", r"\-").replace("^", r"\(ha").replace("~", r"\(ti").replace("`", r"\(ga")
    )
    text = "".join(char if ord(char) < 128 else rf"\[u{ord(char):04X}]" for char in text)
    return re.sub(r"^(?=[.'])", r"\\&", text, flags=re.MULTILINE)


def prose(text: str) -> str:
    """One paragraph as lines of troff; `code` becomes bold."""
    parts = re.split(r"`([^`]+)`", " ".join(text.split()))
    marked = (rf"\fB{escaped(part)}\fR" if odd % 2 else escaped(part) for odd, part in enumerate(parts))
    return re.sub(r"^(?=[.'])", r"\\&", "".join(marked))


def paragraphs(help_text: str | None) -> Iterator[str]:
    for number, block in enumerate(inspect.cleandoc(help_text or "").split("\n\n")):
        if block.startswith("\b"):  # click's mark for lines that stay as they are
            yield f".PP\n.nf\n{escaped(block.removeprefix(chr(8)).strip(chr(10)))}\n.fi"
        else:
            yield (".PP\n" if number else "") + prose(block)


def items(rows: dict[str, str]) -> Iterator[str]:
    for term, text in rows.items():
        yield f".TP\n.B {escaped(term)}\n{prose(text)}"


def head(name: str, number: int, purpose: str) -> Iterator[str]:
    yield f'.TH "{escaped(name).upper()}" {number} "" "lipsyncd {__version__}" "lipsyncd"'
    yield f".SH NAME\n{escaped(name)} \\- {prose(purpose[:1].lower() + purpose[1:])}"


def context(command: click.Command, parent: click.Context | None = None) -> click.Context:
    name = "lipsyncd" if command is lipsyncd else command.name
    return click.Context(command, parent, info_name=name, **command.context_settings)


def options(ctx: click.Context) -> dict[str, str]:
    """Each option with its help; arguments have theirs in the text of the command."""
    found = [param for param in ctx.command.get_params(ctx) if isinstance(param, click.Option)]
    return dict(record for param in found if (record := param.get_help_record(ctx)))


def command_text(ctx: click.Context) -> Iterator[str]:
    """Synopsis, description and options of one command; those of its subcommands, too."""
    command = ctx.command
    yield f".SH SYNOPSIS\n.B {escaped(ctx.command_path)}"
    yield escaped(" ".join(command.collect_usage_pieces(ctx)))
    yield ".SH DESCRIPTION"
    yield from paragraphs(command.help)
    if isinstance(command, click.Group):
        yield ".SH COMMANDS"
        for part in command.commands.values():
            inner = context(part, ctx)
            yield f".SS {escaped(' '.join((str(part.name), *part.collect_usage_pieces(inner))))}"
            yield from paragraphs(part.help)
            yield from items(options(inner))
    yield ".SH OPTIONS"
    yield from items(options(ctx))


def command_page(command: click.Command) -> str:
    lines = [
        *head(f"lipsyncd-{command.name}", 1, command.get_short_help_str(200).rstrip(".")),
        *command_text(context(command, context(lipsyncd))),
        ".SH SEE ALSO\n.BR lipsyncd (1),\n.BR lipsyncd.toml (5)",
    ]
    return "\n".join(lines) + "\n"


def main_page() -> str:
    lines = [
        *head("lipsyncd", 1, "turn portraits and voices into talking videos"),
        ".SH SYNOPSIS\n.B lipsyncd\n[OPTIONS] COMMAND [ARGS]...",
        ".SH DESCRIPTION",
        *paragraphs(lipsyncd.help),
        *items(options(context(lipsyncd))),
        ".SH COMMANDS",
        ".PP\nEach has a page of its own, such as\n.BR lipsyncd\\-submit (1).",
        *items({str(one.name): one.get_short_help_str(200) for one in lipsyncd.commands.values()}),
        ".SH EXIT STATUS",
        *paragraphs(lipsyncd.epilog.removeprefix("Exit status: ")),
        ".SH ENVIRONMENT",
        *items(VARIABLES),
        ".SH FILES",
        *items(FILES),
        ".SH SEE ALSO\n.BR lipsyncd.toml (5)",
    ]
    return "\n".join(lines) + "\n"


def settings_page() -> str:
    lines = [
        *head("lipsyncd.toml", 5, "settings of lipsyncd"),
        ".SH DESCRIPTION",
        prose(
            "The first of these files that exists is read: `--config`, $LIPSYNCD_CONFIG, /etc/lipsyncd/lipsyncd.toml, "
            "~/.config/lipsyncd/lipsyncd.toml, ./lipsyncd.toml. `lipsyncd config` shows each value and its origin."
        ),
        ".SH SETTINGS\n.nf",
        escaped(reference_toml().strip()),
        ".fi\n.SH SEE ALSO\n.BR lipsyncd (1)",
    ]
    return "\n".join(lines) + "\n"


# -- completions -------------------------------------------------------------------------------------------------------


class _Bash(ShellComplete):
    """click's own class asks the bash of this machine for its version when it is made; a build may have none."""

    name = "bash"
    source_template = get_completion_class("bash").source_template  # type: ignore[union-attr]


def completion(kind: type[ShellComplete]) -> str:
    return kind(lipsyncd, {}, "lipsyncd", "_LIPSYNCD_COMPLETE").source().strip() + "\n"


def zsh_completion() -> str:
    """click's file, with another end: its own completes nothing the second time that zsh calls an autoloaded file."""
    functions, found, _ = completion(ZshComplete).partition("\nif [[ $zsh_eval_context")
    assert found, "click's file for zsh has changed"
    return f'{functions}\n_lipsyncd_completion "$@"\n'


def fish_completion() -> str:
    """click's file ends a description at its first comma."""
    text = completion(FishComplete)
    assert 'string split ","' in text, "click's file for fish has changed"
    return text.replace('string split ","', 'string split --max 1 ","')


# -- the files ---------------------------------------------------------------------------------------------------------


def pages() -> dict[str, str]:
    """Each file by its place below `share`."""
    found = {f"man/man1/lipsyncd-{name}.1": command_page(one) for name, one in lipsyncd.commands.items()}
    return {
        **found,
        "man/man1/lipsyncd.1": main_page(),
        "man/man5/lipsyncd.toml.5": settings_page(),
        "bash-completion/completions/lipsyncd": completion(_Bash),
        "zsh/site-functions/_lipsyncd": zsh_completion(),
        "fish/vendor_completions.d/lipsyncd.fish": fish_completion(),
    }


def write(folder: Path) -> None:
    for name, text in pages().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
