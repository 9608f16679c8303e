"""`lipsyncd doctor`: the state of an installation on one screen. Imports wait until the command runs.

Owns the format of that screen. Leaves the checks to `lipsyncd.doctor`.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

import click

from lipsyncd import __version__
from lipsyncd.cli.app import Invocation, json_option
from lipsyncd.errors import ConfigError

if TYPE_CHECKING:
    from lipsyncd.doctor import Report
    from lipsyncd.settings import Settings

_COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "fault": "red"}
_VERDICT_WIDTH = max(map(len, _COLOURS))
_NARROWEST = 60


@click.command()
@click.option("--full", is_flag=True, help="Also hash all weights and read the whole ledger; takes minutes.")
@click.option("--executor", type=click.Choice(["ray"]), help="Also join this cluster and ask its machines.")
@json_option
@click.pass_obj
def doctor(invocation: Invocation, full: bool, executor: str | None, as_json: bool) -> None:
    """Check the installation and give a remedy for each fault.

    Prints one line for each check. Exits with 0 if all is well, 1 with warnings, 2 with faults.
    """
    from lipsyncd.cli.display import print_json
    from lipsyncd.doctor import examine

    report = examine(_settings(invocation), full=full, executor=executor or "")
    if as_json:
        print_json(_as_json(report))
    else:
        for line in _lines(report, _width()):
            click.echo(line)
    sys.exit(report.verdict.exit_status)


def _settings(invocation: Invocation) -> Settings | ConfigError:
    try:
        return invocation.settings
    except ConfigError as error:
        return error


def _width() -> int | None:
    """Columns of the terminal; None if the output is no terminal, and lines are not wrapped."""
    return max(_NARROWEST, shutil.get_terminal_size().columns) if sys.stdout.isatty() else None


def _lines(report: Report, width: int | None) -> list[str]:
    names = max(map(len, report.findings))
    margin = _VERDICT_WIDTH + names + 4
    lines = []
    findings = list(report.findings.items())
    for (name, found), (_, after) in zip(findings, [*findings[1:], ("", None)], strict=True):
        verdict = click.style(found.verdict.value.ljust(_VERDICT_WIDTH), fg=_COLOURS[found.verdict.value])
        first, *more = _wrapped(found.seen, width, margin)
        lines.append(f"{verdict}  {click.style(name.ljust(names), bold=True)}  {first}")
        lines += [" " * margin + line for line in more]
        if not found.remedy or (after and after.remedy == found.remedy):
            continue  # a remedy that several lines share is printed below the last of them
        for number, line in enumerate(_wrapped(found.remedy, width, margin + 2)):
            lines.append(" " * margin + ("  " if number else "→ ") + line)
    return [*lines, _summary(report)]


def _wrapped(text: str, width: int | None, margin: int) -> list[str]:
    if width is None or margin + 20 > width:
        return [text]
    return textwrap.wrap(text, width - margin, break_on_hyphens=False) or [""]


def _summary(report: Report) -> str:
    counts = ", ".join(f"{n} {name if n == 1 or name == 'ok' else name + 's'}" for name, n in _counts(report))
    result = {"fault": "faults found", "warning": "works, with warnings"}.get(report.verdict.value, "all is well")
    return f"lipsyncd {__version__}: {click.style(result, fg=_COLOURS[report.verdict.value], bold=True)} ({counts})"


def _counts(report: Report) -> list[tuple[str, int]]:
    from lipsyncd.doctor import Verdict

    return [(verdict.value, n) for verdict in Verdict if (n := report.count(verdict))]


def _as_json(report: Report) -> dict[str, object]:
    return {
        "version": __version__,
        "verdict": report.verdict.value,
        "checks": [
            {"name": name, "verdict": found.verdict.value, "seen": found.seen, "remedy": found.remedy or None}
            for name, found in report.findings.items()
        ],
    }
