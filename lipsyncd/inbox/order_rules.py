"""By which rules a job is judged before it is dropped: those of the daemon that runs, as it has recorded them.

A command that submits a job may have other settings than the daemon. So the daemon writes what decides about a job into
`state/order-rules.json`, at its start and with each change, for the members of its group to read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lipsyncd.errors import NameTaken
from lipsyncd.jobs import options
from lipsyncd.jobs.manifest import Manifest
from lipsyncd.monitor.held_lock import is_held
from lipsyncd.settings import Intake, Settings
from lipsyncd.storage.files import read_json, write_json
from lipsyncd.storage.folders import Folders

FILE = "order-rules.json"


@dataclass(frozen=True)
class OrderRules:
    """What decides whether a job can be done.

    renderers       the renderer of jobs that name none, by queue; "" is the inbox itself
    of_users        names of the operator's own renderers
    keeps_names     a video is never published under another name than the wanted one
    any_voice       the operator's program speaks: it alone knows its voices
    voices          folder of Piper's voices
    limits          of pictures and sounds
    """

    renderers: Mapping[str, str]
    of_users: tuple[str, ...] = ()
    keeps_names: bool = False
    any_voice: bool = False
    voices: str = ""
    limits: Intake = field(default_factory=Intake)

    @classmethod
    def of(cls, settings: Settings) -> OrderRules:
        queues = ["", *(queue.name for queue in settings.queues)]
        return cls(
            renderers={name: settings.queue(name).renderer for name in queues},
            of_users=tuple(options.names_of(settings.render.renderers)),
            keeps_names=settings.output.on_name_conflict == "fail",
            any_voice=bool(settings.speech.command),
            voices=str(settings.speech.voices),
            limits=settings.intake,
        )


def record(settings: Settings) -> None:
    """Write the rules of this daemon. Raises OSError."""
    write_json(settings.paths.state / FILE, asdict(OrderRules.of(settings)), mode=0o640)


def recorded(state: Path) -> OrderRules | None:
    """The rules of the daemon that runs there; None when none runs, or when this user may not read them."""
    with contextlib.suppress(OSError):
        found = read_json(state / FILE) if is_held(state) else None
        return None if found is None else _parsed(found)
    return None


def _parsed(found: Mapping[str, Any]) -> OrderRules | None:
    """The rules in a file; None when another version has written it."""
    known = {item.name for item in fields(Intake)}
    try:
        limits = Intake(**{name: value for name, value in found["limits"].items() if name in known})
        return OrderRules(
            renderers=dict(found["renderers"]),
            of_users=tuple(found["of_users"]),
            keeps_names=bool(found["keeps_names"]),
            any_voice=bool(found["any_voice"]),
            voices=str(found["voices"]),
            limits=limits,
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def check_order(manifest: Manifest, rules: OrderRules, *, queue: str = "") -> None:
    """Raise `UnknownRenderer` or `BadOption` for a job that would fail for it. The queue has to exist."""
    renderer = manifest.renderer or rules.renderers.get(queue)
    if renderer is not None:
        options.check(renderer, manifest.options, of_users=rules.of_users)


def check_name(folders: Folders, name: str, rules: OrderRules, *, queue: str = "") -> None:
    """Raise `NameTaken` when a video of that name lies in the outbox and no other name may be used.

    An outbox that is away, or that this user may not read, is left to the daemon.
    """
    if not rules.keeps_names:
        return
    with contextlib.suppress(OSError), folders.shared["outbox"].opened() as root:
        if root is None:
            return
        with root.walk([queue] if queue else []) as folder:
            taken = next((n for n in (f"{name}.mp4", f"{name}.json") if folder.status(n) is not None), None)
        if taken is not None:
            raise NameTaken(
                f"the outbox has a file named {taken} already",
                remedy='choose another name, or take that file out of the outbox; output.on_name_conflict is "fail"',
            )
