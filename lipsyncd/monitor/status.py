"""The output of `lipsyncd status` besides single jobs: the daemon, the files that wait in the inbox, the faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lipsyncd.jobs.job import JobEvent, JobState
from lipsyncd.ledger.live_progress import STATUS_FILE
from lipsyncd.ledger.view import LedgerView
from lipsyncd.storage.files import read_json
from lipsyncd.storage.locks import is_held

_MOST_NOTES = 20
_MOST_ALIKE = 3


def as_json(view: LedgerView, state: Path, *, limit: int) -> dict[str, Any]:
    """The whole status, for programs."""
    running = is_held(state)
    return {
        "daemon": {"running": running, **(_reported(state) if running else {})},
        "counts": {s.value: n for s, n in view.counts().items()},
        "jobs": [job.to_json() for job in view.jobs(limit=limit)],
    }


def event_json(event: JobEvent) -> dict[str, Any]:
    return {"at_ms": event.at_ms, "state": event.state, "note": event.note}


def notes(view: LedgerView, state: Path) -> list[str]:
    """Lines below the table, for people."""
    counts = view.counts()
    total = ", ".join(f"{n} {s.value}" for s, n in counts.items() if n) or "no jobs yet"
    if not is_held(state):
        return [f"no daemon runs ({total}); start it with `lipsyncd run`"]
    reported = _reported(state)
    lines = [total]
    if reported.get("inbox_fault"):
        lines.append(f"the inbox waits: {reported['inbox_fault']}")
    lines += [f"the queue {q['name']} waits: {q['fault']}" for q in reported.get("queues", []) if q["fault"]]
    if reported.get("paused"):
        lines.append(f"nothing is taken in or rendered: {reported['paused']}")
    if reported.get("degraded"):
        lines.append(f"polling, since the kernel gives no events: {reported['degraded']}")
    if reported.get("leases") is False:
        lines.append("files of other users wait longer: the kernel does not tell whether they are still being written")
    if reported.get("outbox_available") is False:
        lines.append("the outbox is not mounted: finished videos wait")
    blocked_files = reported.get("blocked", {})
    waits = {w["name"]: w for w in reported.get("waiting", []) if w["name"] not in blocked_files}
    more = [
        *_grouped(blocked_files, lambda name, why: f"{name}: blocked, {why}"),
        *_grouped(
            {name: w["why"] for name, w in waits.items()},
            lambda name, why: f"{name}: {why} ({waits[name]['age_s']:.0f} s)",
        ),
        *_grouped(reported.get("ignored", {}), lambda name, why: f"{name}: left in the inbox, since it {why}"),
    ]
    lines += more[:_MOST_NOTES]
    counted = sum(reported.get(f"{name}_more", 0) for name in ("waiting", "ignored", "blocked"))
    if left_out := max(0, len(more) - _MOST_NOTES) + counted:
        lines.append(f"... and {left_out} more in the inbox")
    blocked = sum(job.blocked for job in view.jobs(states=[JobState.QUEUED], limit=1000))
    if blocked:
        lines.append(
            f"{blocked} waiting {'job is' if blocked == 1 else 'jobs are'} blocked: `lipsyncd status ID` says why"
        )
    return lines


def _grouped(files: Mapping[str, str], line: Callable[[str, str], str]) -> Iterator[str]:
    """A line for each file; when many have one reason, the count and the first of them."""
    names: dict[str, list[str]] = {}
    for name, why in files.items():
        names.setdefault(why, []).append(name)
    for why, alike in names.items():
        if len(alike) <= _MOST_ALIKE:
            yield from (line(name, why) for name in alike)
        else:
            others = f"{len(alike) - 1} others, such as {', '.join(alike[1:_MOST_ALIKE])}"
            yield f"{line(alike[0], why)}; the same holds for {others}"


def _reported(state: Path) -> dict[str, Any]:
    """What the daemon last wrote about itself."""
    return read_json(state / STATUS_FILE) or {}
