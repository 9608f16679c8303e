"""Two questions that a supervisor asks: does the daemon live, and can it do its work? Pure, over `Facts`.

Live is about the process alone: a restart would help, so neither ledger nor shares nor GPU are asked. Ready is about
what it needs: a restart would not help, and whoever sends work may wait or go elsewhere. Idle and unloaded is ready.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lipsyncd.facts import Facts

TICK_LIMIT_S = 20.0  # the main loop comes round ten times a second; a write to a busy disk may hold it up
MISSED = 3  # probes or scans that may be late before that is a fault


def live(facts: Facts) -> tuple[bool, Mapping[str, Any]]:
    """Does the main loop come round? With the object to answer."""
    alive = facts.tick_age_s < TICK_LIMIT_S
    return alive, {"status": "live" if alive else "hung", "tick_age_s": round(facts.tick_age_s, 1)}


def ready(facts: Facts) -> tuple[bool, Mapping[str, Any]]:
    """Can jobs be taken, rendered and delivered? With the object to answer, which names each failing check and why."""
    failing = dict(_failing(facts))
    return not failing, {"status": "not ready" if failing else "ready", "failing": failing}


def _failing(facts: Facts) -> Iterator[tuple[str, str]]:
    if facts.draining:
        yield "draining", "the daemon stops"
    yield from ((check, why) for check, why in facts.faults.items() if why)
    if facts.probe_age_s > MISSED * facts.probe_due_s:
        # Whatever hangs, a share or the disk, holds up the probe and not this answer.
        yield facts.probing or "probe", f"no answer for {facts.probe_age_s:.0f} s"
    if not facts.faults.get("inbox") and facts.scan_age_s > MISSED * facts.scan_due_s:
        yield "scan", f"the inbox was last scanned {facts.scan_age_s:.0f} s ago; every {facts.scan_due_s:g} s is due"
    for worker in facts.workers:
        if not worker.up:
            yield f"worker-{worker.device}", "its thread has ended"
