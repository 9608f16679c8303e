"""Settings for people: the rows of `lipsyncd config`, and the text of lipsyncd.toml."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from lipsyncd.settings.rules import UNSET
from lipsyncd.settings.sections import Settings
from lipsyncd.settings.values import QUEUE_KEYS, SECTIONS, SETTINGS, Setting, attribute


class Row(NamedTuple):
    """One setting for `lipsyncd config`; `value` is plain JSON."""

    name: str
    value: str | int | float | bool | list[str]
    origin: str
    help: str


def describe(settings: Settings) -> list[Row]:
    """Every effective value and where it came from, in the order of the reference."""
    rows = []
    for name, setting in SETTINGS.items():
        value = getattr(getattr(settings, attribute(setting.section)), setting.key)
        plain = str(value) if setting.kind is Path else list(value) if setting.kind is tuple else value
        rows.append(Row(name, plain, settings.origins.get(name, "default"), setting.rule.help))
    for queue in settings.queues:
        for key, setting in QUEUE_KEYS.items():
            rows.append(Row(f"queue.{queue.name}.{key}", getattr(queue, key), str(settings.file), setting.rule.help))
    return rows


def reference_toml() -> str:
    """The text of `lipsyncd.toml`: every setting at its default, under its help."""
    lines = [
        "# Every setting of lipsyncd at its default. Copy what you change; what is left out stays as it is here.",
        "# Any of them can also be given as LIPSYNCD_<SECTION>_<KEY>, for example LIPSYNCD_RENDER_RENDERER=preview.",
        "# A name in capitals is the original service's variable for the same; where both are set, LIPSYNCD_ wins.",
        "# Relative paths start at the folder of this file.",
    ]
    for section, kind in SECTIONS.items():
        lines += ["", f"# {kind.__doc__}", f"[{section}]"]
        for setting in SETTINGS.values():
            if setting.section == section:
                lines += ["", f"# {setting.rule.help}", *_fine_print(setting)]
                lines.append(f"{setting.key} = {_toml(setting.default)}")
    lines += [
        "",
        "# A folder in the inbox whose jobs have a priority and options of their own; their videos go to the folder of",
        "# the same name in the outbox. Any number of them; the sections above decide what it leaves open.",
        "# [queue.urgent]",
        "# priority = 50  (from -100 to 100)",
        *(f"# {key} = {_toml(setting.default)}" for key, setting in QUEUE_KEYS.items() if key != "priority"),
    ]
    return "\n".join(lines) + "\n"


def _fine_print(setting: Setting) -> list[str]:
    """What is allowed, where the default does not show it, and the original service's name."""
    plain = setting.kind in (bool, Path) or setting.allowed == "text"
    parts = ([] if plain else [setting.allowed]) + ([setting.rule.variable] if setting.rule.variable else [])
    return [f"# ({'; '.join(parts)})"] if parts else []


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(part) for part in value) + "]"
    return json.dumps("" if value == UNSET else value, ensure_ascii=False)
