"""What a setting is: a field of a section with its bounds and its one sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Any

from lipsyncd.settings.section import Section

UNSET = Path()  # a folder that is placed by another setting


class Rule(Section):
    """What a setting means and what it may be.

    variable  its name in the original service
    number    a number is taken as its text
    plain     turns several ways to write a value into one; `check` gets the result
    """

    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    variable: str = ""
    check: Callable[[Any], bool] | None = None
    allowed: str = ""
    number: bool = False
    plain: Callable[[Any], Any] | None = None


def setting(default: Any, help: str, **rule: Any) -> Any:
    """A field of a section. The default's type is the setting's type."""
    return field(default=default, metadata={"rule": Rule(help, **rule)})
