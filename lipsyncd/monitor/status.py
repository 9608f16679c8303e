"""The output of `lipsyncd status` besides single jobs: the daemon, the files that wait in the inbox, the faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lipsyncd.jobs.job import Job, JobEvent, JobState
from lipsyncd.ledger.live_progress import STATUS_FILE
from lipsyncd.ledger.view import LedgerView
from lipsyncd.monitor.held_lock import is_held
from lipsyncd.storage.files import read_json

_MOST_NOTES = 20
_MOST_ALIKE = 3


def as_json(view: LedgerView, state: Path, jobs: Sequence[Job], outbox: str) -> dict[str, Any]:
    """The whole status with these jobs, for programs."""
    running = is_held(state)
    return {
        "daemon": {"running": running, **(_reported(state) if running else {})},
        "counts": {s.value: n for s, n in view.counts().items()},
        "jobs": jobs_json(view, jobs, outbox),
    }


def jobs_json(view: LedgerView, jobs: Sequence[Job], outbox: str) -> list[dict[str, Any]]:
    """Each job with what it waits for besides its turn, and with the path of its video; null where there is none."""
    paths = result_paths(view, jobs, outbox)
    return [{**job.to_json(), "waits_for": view.waits_for(job), "result_path": paths.get(job.id)} for job in jobs]


def result_paths(view: LedgerView, jobs: Sequence[Job], outbox: str) -> dict[str, str]:
    """The id of each finished job -> where its video was published; no disk is asked whether it still lies there."""
    repeated = view.published_without_video(jobs)
    paths = {}
    for job in jobs:
        if job.state is JobState.DONE:
            shown = view.find(job.duplicate_of) if job.id in repeated and job.duplicate_of else job
            if shown is not None:
                paths[job.id] = str(Path(outbox, f"{shown.place}.mp4"))
    return paths


def why_not_taken(state: Path, file: str) -> str:
    """Why the daemon has not taken a file, which has its queue before it; "" when it has, or says nothing."""
    if not is_held(state):
        return "no daemon runs"
    reported, queue = _reported(state), file.rpartition("/")[0]
    faults = {"": reported.get("inbox_fault"), **{q["name"]: q["fault"] for q in reported.get("queues", [])}}
    waits = {w["name"]: w["why"] for w in reported.get("waiting", [])}
    unused = reported.get("blocked", {}).get(file) or reported.get("ignored", {}).get(file) or waits.get(file)
    return str(reported.get("paused") or faults.get(queue) or unused or "")


def slots(state: Path) -> dict[str, Any]:
    """The slots of the cluster, and why there is none; `slots` is null without a daemon or a cluster."""
    reported = _reported(state) if is_held(state) else {}
    return {"slots": reported.get("slots"), "fault": reported.get("cluster_fault", "")}


def slot_lines(found: Mapping[str, Any]) -> list[str]:
    """The same as a table: one line for each slot, and for each machine that has none."""
    if found["slots"] is None:
        return ["no daemon renders on a cluster here"]
    rows = [("slot", "machine", "GPUs", "state", "job")]
    for one in found["slots"]:
        machine = f"{one['host']} ({one['address']})"
        rows.append((one["name"] or "-", machine, f"{one['gpus']:g}", one["state"], one["job"] or one["fault"]))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[4]]).rstrip() for row in rows]
    return [*lines, *([f"the cluster: {found['fault']}"] if found["fault"] else [])]


def event_json(event: JobEvent) -> dict[str, Any]:
    return {"at_ms": event.at_ms, "state": event.state, "note": event.note}


def notes(view: LedgerView, state: Path, place: str = "") -> list[str]:
    """Lines below the table, for people.

    place  where it was looked, and why there: named when no daemon runs there
    """
    counts = view.counts()
    blocked = sum(job.blocked for job in view.jobs(states=[JobState.QUEUED], limit=1000))
    more = {JobState.QUEUED: f" ({blocked} blocked)" if blocked else ""}
    total = ", ".join(f"{n} {s.value}{more.get(s, '')}" for s, n in counts.items() if n) or "no jobs yet"
    if not is_held(state):
        return [f"no daemon runs ({total}); start it with `lipsyncd run`", *([f"looked in {place}"] if place else [])]
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
    files = [
        *_grouped(blocked_files, lambda name, why: f"{name}: blocked, {why}"),
        *_grouped(
            {name: w["why"] for name, w in waits.items()},
            lambda name, why: f"{name}: {why} ({waits[name]['age_s']:.0f} s)",
        ),
        *_grouped(reported.get("ignored", {}), lambda name, why: f"{name}: left in the inbox, since it {why}"),
    ]
    lines += files[:_MOST_NOTES]
    counted = sum(reported.get(f"{name}_more", 0) for name in ("waiting", "ignored", "blocked"))
    if left_out := max(0, len(files) - _MOST_NOTES) + counted:
        lines.append(f"... and {left_out} more in the inbox")
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
