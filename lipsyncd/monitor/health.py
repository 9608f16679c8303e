"""Three questions that a supervisor asks: does the daemon live, can it do its work, would a restart help? Pure.

Live is about the process alone, so neither ledger nor shares nor GPU are asked. Ready is about what it needs: a restart
would not help, and whoever sends work may wait or go elsewhere. Idle and unloaded is ready. Stuck is what systemd's
watchdog acts on, so it is slow to say so: whoever waits for a dead file server would wait for it again after a restart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lipsyncd.monitor.facts import Facts

TICK_LIMIT_S = 20.0  # the main loop comes round ten times a second; a write to a busy disk may hold it up
MISSED = 3  # probes or scans that may be late before that is a fault

# How long a part may make no step at all before it counts as stuck. A step of the main loop may copy a video to a slow
# archive, one of the scan a drop out of a slow inbox; writing the ledger gives up by itself after seconds.
MAIN_STUCK_S = 300.0
SCAN_STUCK_S = 900.0
LEDGER_STUCK_S = 60.0
RENDER_STUCK_S = 60.0
_ON_SHARES = ("inbox", "outbox", "disk")  # probes that may hang with a file server


def live(facts: Facts) -> tuple[bool, Mapping[str, Any]]:
    """Does the main loop come round? With the object to answer."""
    alive = facts.tick_age_s < TICK_LIMIT_S
    return alive, {"status": "live" if alive else "hung", "tick_age_s": round(facts.tick_age_s, 1)}


def ready(facts: Facts) -> tuple[bool, Mapping[str, Any]]:
    """Can jobs be taken, rendered and delivered? With the object to answer, which names each failing check and why."""
    failing = dict(_failing(facts))
    body: dict[str, Any] = {"status": "not ready" if failing else "ready", "failing": failing}
    if facts.inflow.degraded:
        body["degraded"] = facts.inflow.degraded  # slower, and nothing that a supervisor could mend
    return not failing, body


def _failing(facts: Facts) -> Iterator[tuple[str, str]]:
    if facts.draining:
        yield "draining", "the daemon stops"
    yield from ((check, why) for check, why in facts.faults.items() if why)
    if facts.probe_age_s > MISSED * facts.probe_due_s:
        # Whatever hangs, a share or the disk, holds up the probe and not this answer.
        yield facts.probing or "probe", f"no answer for {facts.probe_age_s:.0f} s"
    waits = facts.faults.get("inbox") or facts.inflow.paused
    if not waits and facts.scan_age_s > MISSED * facts.scan_due_s:
        yield "scan", f"the inbox was last scanned {facts.scan_age_s:.0f} s ago; every {facts.scan_due_s:g} s is due"
    for worker in facts.workers:
        if not worker.up:
            yield f"worker-{worker.device}", "its thread has ended"


def stuck(facts: Facts) -> str:
    """What a restart would mend, for people; "" while everything moves, or waits for what a restart would wait for."""
    late = facts.probe_age_s > MISSED * facts.probe_due_s
    if facts.probing == "ledger" and facts.probe_age_s > LEDGER_STUCK_S:
        return f"the ledger has taken no write for {facts.probe_age_s:.0f} s"
    for worker in facts.workers:
        if not worker.up and not facts.draining:
            return f"the thread of the worker for {worker.device} has ended"
        if worker.unwatched_s > RENDER_STUCK_S:
            return f"nobody has looked after the render on {worker.device} for {worker.unwatched_s:.0f} s"
    if late and facts.probing in _ON_SHARES:
        return ""
    if facts.tick_age_s > MAIN_STUCK_S:
        return f"the main loop has not come round for {facts.tick_age_s:.0f} s"
    waiting = facts.faults.get("inbox") or facts.faults.get("disk") or facts.inflow.paused
    if facts.scan_age_s > max(SCAN_STUCK_S, MISSED * facts.scan_due_s) and not waiting and not facts.draining:
        return f"the inbox was last scanned {facts.scan_age_s:.0f} s ago, and it is there"
    return ""
