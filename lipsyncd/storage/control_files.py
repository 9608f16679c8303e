"""Small files in `state/control/`: requests of the CLI and the web to the running daemon, and its answers.

    <id>.json     {"action": "cancel", "job_id": …, "value": …}, written whole and renamed into place
    <id>.answer   {"ok": true, "message": …, "facts": …}, written by the daemon, removed by the client

Only the daemon writes the ledger. Owns that folder; `daemon/commands.py` carries the requests out.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lipsyncd.jobs.job import new_id
from lipsyncd.storage.files import open_to_group, read_json, write_json, write_new

PRUNE = "prune"  # names no job
ACTIONS = ("cancel", "retry", "priority", "republish", "delete", PRUNE)
_MODE = 0o660
_STALE_S = 300.0
_LOOK_AGAIN_S = 0.05


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


def ask(folder: Path, request: Request, *, timeout_s: float) -> Answer | None:
    """Write a request for the daemon and wait for its answer; None when none came in time."""
    name = new_id()
    answer_file = folder / f"{name}.answer"
    hidden = folder / f".{name}.part"
    write_new(hidden, json.dumps(asdict(request)).encode(), mode=_MODE)
    open_to_group(hidden)
    hidden.rename(folder / f"{name}.json")
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = read_json(answer_file)
        if found is not None:
            with contextlib.suppress(OSError):
                answer_file.unlink()
            facts = found.get("facts")
            return Answer(
                bool(found.get("ok")), str(found.get("message", "")), facts if isinstance(facts, dict) else {}
            )
        time.sleep(_LOOK_AGAIN_S)
    with contextlib.suppress(OSError):
        (folder / f"{name}.json").unlink()
    return None


def pending(folder: Path) -> list[tuple[Path, Request | None]]:
    """Requests that wait, oldest first; None for a file that is no valid request."""
    found: list[tuple[Path, Request | None]] = []
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith("."):
            continue
        try:
            body = read_json(path) or {}
        except OSError:
            body = {}  # its mode was changed
        value = body.get("value", 0)
        known = body.get("action") in ACTIONS and isinstance(body.get("job_id"), str) and type(value) is int
        found.append((path, Request(body["action"], body["job_id"], value, path.stem) if known else None))
    return found


def answer(path: Path, reply: Answer) -> None:
    """Answer a request and remove it, also when the answer cannot be written: it must not be carried out again."""
    try:
        write_json(path.with_suffix(".answer"), asdict(reply), mode=_MODE)
    finally:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove answers that no client has fetched."""
    for path in folder.glob("*.answer"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink()
