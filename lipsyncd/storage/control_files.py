"""Small files in `state/control/`: requests of the CLI and the web to the running daemon, and its answers.

    <id>.json     {"action": "cancel", "job_id": …, "value": …}, written whole and renamed into place
    <id>.answer   {"ok": true, "message": …, "facts": …}, written by the daemon, removed by the client

Only the daemon writes the ledger. Members of the group write this folder, so nothing in it is trusted: see
`open_folder`. What is no request stays where it is, and holds up no other. `daemon/commands.py` carries requests out.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lipsyncd.jobs.job import new_id
from lipsyncd.log import printable
from lipsyncd.storage.open_folder import OpenFolder, open_to_group

log = logging.getLogger(__name__)

PRUNE = "prune"  # names no job
WITHDRAW = "withdraw"  # "cancel" for a job that may have no row yet
ACTIONS = ("cancel", WITHDRAW, "retry", "priority", "republish", "delete", PRUNE)
REQUEST, ANSWER = ".json", ".answer"
_MODE = 0o660
_STALE_S = 300.0
_LOOK_AGAIN_S = 0.05
_MOST_PENDING = 100  # in one look; the rest waits for the next one
_LONGEST_TEXT = 300  # characters of a job's id or a name of a file


@dataclass(frozen=True)
class Request:
    """One request. `value` is the new priority; `order` is the name of the request's file, once it has one."""

    action: str
    job_id: str
    value: int = 0
    order: str = field(default="", compare=False)


@dataclass(frozen=True)
class Answer:
    """The answer to a request. `facts` are for programs."""

    ok: bool
    message: str
    facts: Mapping[str, Any] = field(default_factory=dict)


# -- clients -----------------------------------------------------------------------------------------------------------


def ask(folder: Path, request: Request, *, timeout_s: float) -> Answer | None:
    """Write a request for the daemon and wait for its answer; None when none came in time. Raises OSError."""
    [answer] = ask_all(folder, [request], timeout_s=timeout_s)
    return answer


def ask_all(folder: Path, requests: Sequence[Request], *, timeout_s: float) -> list[Answer | None]:
    """As `ask` for several requests at once; `timeout_s` begins anew with each answer that comes."""
    answers: dict[str, Answer | None] = {}
    with OpenFolder.at(folder) as control:
        for request in requests:
            name = new_id()
            answers[name] = None
            hidden = f".{name}.part"
            control.write(hidden, json.dumps(asdict(request)).encode(), mode=_MODE, prepare=open_to_group)
            control.rename(hidden, control, name + REQUEST)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and (open_ones := [name for name, found in answers.items() if found is None]):
            came = {name: answer for name in open_ones if (answer := _take_answer(control, name)) is not None}
            answers.update(came)
            if came:
                deadline = time.monotonic() + timeout_s
            else:
                time.sleep(_LOOK_AGAIN_S)
        for name, found in answers.items():
            if found is None:
                with contextlib.suppress(OSError):
                    control.remove(name + REQUEST)
    return [*answers.values()]


def _take_answer(control: OpenFolder, name: str) -> Answer | None:
    found = control.read_json(name + ANSWER)
    if found is None:
        return None
    with contextlib.suppress(OSError):
        control.remove(name + ANSWER)
    facts = found.get("facts")
    return Answer(bool(found.get("ok")), str(found.get("message", "")), facts if isinstance(facts, dict) else {})


# -- the daemon --------------------------------------------------------------------------------------------------------


def opened(folder: Path) -> OpenFolder:
    """The folder itself, to watch it; close it."""
    return OpenFolder.at(folder)


def pending(folder: Path, without: Container[str] = ()) -> list[tuple[str, Request | None]]:
    """Requests that wait, each with the name of its file, oldest first; None for one that is not valid.

    without  names that are left out: see `answer`
    """
    with OpenFolder.at(folder) as control:
        files = sorted(entry.name for entry in control.entries() if _is_request(entry) and entry.name not in without)
        found = [(name, _read(control, name)) for name in files[:_MOST_PENDING]]
        # Another thread may answer a request, and remove it, after it was listed.
        return [(name, request) for name, request in found if request is not None or control.status(name) is not None]


def is_pending(folder: Path, order: str) -> bool:
    """Does the file of that order still lie there?"""
    with OpenFolder.at(folder) as control:
        return control.status(order + REQUEST) is not None


def answer(folder: Path, name: str, reply: Answer) -> bool:
    """Answer a request and remove it, also when the answer cannot be written: it must not be carried out again.

    False when the request cannot be removed: then leave it out from now on.
    """
    with OpenFolder.at(folder) as control:
        try:
            control.write_json(name.removesuffix(REQUEST) + ANSWER, asdict(reply), mode=_MODE)
        except OSError as error:
            log.warning("the answer to request %s cannot be written: %s", printable(name), error.strerror)
        try:
            control.remove(name)
        except OSError as error:
            log.warning("request %s cannot be removed, and is left out: %s", printable(name), error.strerror)
            return False
    return True


def sweep(folder: Path) -> None:
    """Remove answers that no client has fetched."""
    with OpenFolder.at(folder) as control:
        for entry in control.entries():
            with contextlib.suppress(OSError):
                stale = time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_S
                if entry.name.endswith(ANSWER) and stale and not entry.is_dir(follow_symlinks=False):
                    control.remove(entry.name)


def sweep_torn(folder: Path) -> int:
    """Remove what a crash left of answers under way; gives their number. Clients may be writing requests."""
    with OpenFolder.at(folder) as control:
        torn = [e.name for e in control.entries() if e.name.startswith(".") and f"{ANSWER}." in e.name]
        for name in torn:
            control.remove(name)
    return len(torn)


def _is_request(entry: os.DirEntry[str]) -> bool:
    """A file, or a link, that is called like a request. A folder of such a name is none and stays."""
    called_so = entry.name.endswith(REQUEST) and not entry.name.startswith(".") and len(entry.name) < _LONGEST_TEXT
    return called_so and not entry.is_dir(follow_symlinks=False)


def _read(control: OpenFolder, name: str) -> Request | None:
    body = control.read_json(name) or {}
    action, job_id, value = body.get("action"), body.get("job_id"), body.get("value", 0)
    known = action in ACTIONS and isinstance(job_id, str) and len(job_id) < _LONGEST_TEXT and type(value) is int
    return Request(str(action), str(job_id), value, name.removesuffix(REQUEST)) if known else None
