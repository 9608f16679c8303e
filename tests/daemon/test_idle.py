"""What a daemon costs that has nothing to do; `benchmarks/idle.py` measures it for longer."""

from __future__ import annotations

import signal
import time

import pytest

from benchmarks.idle import SETTINGS, Cost, cost, imports_mb
from lipsyncd.daemon.wakeup import Wakeup
from tests.kits.installation import Installation
from tests.kits.web_kit import port_of

MOST_WAKES = 4.0  # a second; 1.0 to 1.8 were measured, and 15 to 26 while its threads polled
LOOKS = 5  # on a busy machine a start may go on during the first one, and in another one the daemon may get no turn


def watched(installation: Installation, seconds: float, *, fresh: bool) -> Cost:
    """What the daemon costs as soon as it is idle."""
    installation.changes |= SETTINGS
    with installation.running(fresh=fresh):
        port_of(installation)
        time.sleep(2.0)  # until the start is over
        assert installation.daemon is not None
        for _ in range(LOOKS):
            found = cost(installation.daemon.pid, seconds)
            if 0 < found.wakes.total() <= MOST_WAKES:
                break
        return found


@pytest.mark.inotify
def test_an_idle_daemon_hardly_ever_wakes_up(installation: Installation) -> None:
    found = watched(installation, 3.0, fresh=False)
    assert 0 < found.wakes.total() <= MOST_WAKES, found.wakes


@pytest.mark.slow
@pytest.mark.inotify
def test_an_idle_daemon_costs_a_third_of_a_percent_and_little_memory(installation: Installation) -> None:
    found = watched(installation, 30.0, fresh=True)
    assert found.of_core <= 0.003, found
    assert found.wakes.total() <= MOST_WAKES, found.wakes
    assert found.resident_mb <= imports_mb(installation) + 15, found


def test_a_wait_ends_with_a_signal_a_call_or_its_time() -> None:
    wakeup, heard = Wakeup(), list[int]()
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: heard.append(number))
    try:
        wakeup.expect_signals()
        signal.raise_signal(signal.SIGUSR1)  # before the wait begins: its handler has run already
        assert heard == [signal.SIGUSR1]
        began_s = time.monotonic()
        wakeup.wait(20)
        wakeup.set()
        wakeup.set()
        wakeup.wait(20)
        assert time.monotonic() - began_s < 10
        wakeup.wait(0.05)
        assert time.monotonic() - began_s >= 0.05
    finally:
        signal.signal(signal.SIGUSR1, before)
        wakeup.close()
    wakeup.set()  # a thread that is late does no harm
