"""Three checks for supervisors: is the daemon live, is it ready, is it stuck? Pure.

Live is about the process alone: ledger, shares and GPU do not count. Ready is about everything that the daemon needs: a
restart would not help, and clients may wait or use another server. A daemon without jobs or a loaded renderer is ready.
Stuck makes systemd's watchdog restart the daemon, so its limits are long: a daemon that waits for a dead file server
would wait for it again after a restart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lipsyncd.monitor.facts import Facts

TICK_LIMIT_S = 20.0  # the main loop has a round every five seconds; a write to a busy disk may delay one
MISSED = 3  # probes or scans that may be late before that is a fault

# How long a part may stay at one step before it is stuck. A step of the main loop may copy a video to a slow archive, a
# step of the scan may copy files out of a slow inbox; a write to the ledger fails by itself after seconds.
MAIN_STUCK_S = 300.0
SCAN_STUCK_S = 900.0
LEDGER_STUCK_S = 60.0
RENDER_STUCK_S = 60.0
_ON_SHARES = ("inbox", "outbox", "disk")  # probes that may hang with a file server


def live(facts: Facts) -> tuple[bool, Mapping[str, Any]]:
    """Does the main loop run? With the object to answer."""
    alive = facts.tick_age_s < TICK_LIMIT_S
    return alive, {"status": "live" if alive else "hung", "tick_age_s": round(facts.tick_age_s, 1)}


def ready(facts: Facts) -> tuple[bool, Mapping[str, Any]]:
    """Can jobs be accepted, rendered and delivered? With the object to answer: each check that fails, and why."""
    failing = dict(_failing(facts))
    body: dict[str, Any] = {"status": "not ready" if failing else "ready", "failing": failing}
    if facts.inbox.degraded:
        body["degraded"] = facts.inbox.degraded  # slower, but no supervisor could mend it
    return not failing, body


def _failing(facts: Facts) -> Iterator[tuple[str, str]]:
    if facts.draining:
        yield "draining", "the daemon is stopping"
    yield from ((check, why) for check, why in facts.faults.items() if why)
    if facts.probe_age_s > MISSED * facts.probe_due_s:
        # A share or a disk that hangs delays the probe, not this answer.
        yield facts.probing or "probe", f"no answer for {facts.probe_age_s:.0f} s"
    waiting = facts.faults.get("inbox") or facts.inbox.paused
    if not waiting and facts.scan_age_s > MISSED * facts.scan_due_s:
        yield "scan", f"the inbox was last scanned {facts.scan_age_s:.0f} s ago; every {facts.scan_due_s:g} s is due"
    for worker in facts.workers:
        if not worker.up:
            yield f"worker-{worker.device}", "its thread has ended"
    yield from {step.part: step.shown for step in reversed(facts.steps) if step.late}.items()


def stuck(facts: Facts) -> str:
    """The fault that a restart would mend, in words; "" if there is none."""
    late = facts.probe_age_s > MISSED * facts.probe_due_s
    if facts.probing == "ledger" and facts.probe_age_s > LEDGER_STUCK_S:
        return f"the ledger has taken no write for {facts.probe_age_s:.0f} s"
    for worker in facts.workers:
        if not worker.up and not facts.draining:
            return f"the thread of the worker for {worker.device} has ended"
        if worker.unwatched_s > RENDER_STUCK_S:
            return f"no thread has checked the render on {worker.device} for {worker.unwatched_s:.0f} s"
    late_steps = [step for step in facts.steps if step.late]
    if (late and facts.probing in _ON_SHARES) or any(step.on_share for step in late_steps):
        return ""  # a restart would wait for the same file server
    for step in late_steps:
        return f"{step.part} {step.shown}"
    if facts.tick_age_s > MAIN_STUCK_S:
        return f"the main loop has made no round for {facts.tick_age_s:.0f} s"
    waiting = facts.faults.get("inbox") or facts.faults.get("disk") or facts.inbox.paused
    if facts.scan_age_s > max(SCAN_STUCK_S, MISSED * facts.scan_due_s) and not waiting and not facts.draining:
        return f"the inbox was last scanned {facts.scan_age_s:.0f} s ago, although it is mounted"
    return ""
