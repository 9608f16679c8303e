"""A daemon whose wall clock is set while it runs: by an hour, by a day, to 1970, ten years ahead, and back.

`machine_kit.WallClock` changes the clock of a real daemon and its renderer; the programs of the jail keep the true one.
`tests/daemon/test_clock.py` tests calculations with times.
"""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lipsyncd.jobs.job import JobState
from lipsyncd.ledger.view import LedgerView
from lipsyncd.monitor.health import MAIN_STUCK_S
from tests.kits.installation import Installation, put
from tests.kits.long_run_figures import report
from tests.kits.machine.machine_kit import LONG, WallClock, needs_compiler, percentile, small_picture, small_sound
from tests.kits.machine.service_manager import listening

HOUR_S, DAY_S = 3600.0, 86_400.0
JUMPS: dict[str, Callable[[], float]] = {
    "an hour ahead": lambda: HOUR_S,
    "an hour behind": lambda: -HOUR_S,
    "a day ahead": lambda: DAY_S,
    "a day behind": lambda: -DAY_S,
    "1970": lambda: DAY_S - time.time(),
    "ten years ahead": lambda: 3653 * DAY_S,
    "right again": lambda: 0.0,
}
ROUNDS = 10 if LONG else 1
SKEWS_S = (600.0, -600.0, DAY_S, -DAY_S)  # of a file server's clock to ours
PAIR_TIMEOUT_S = 15.0
SLACK_S = 5.0  # a settle time by the wall clock would be wrong by ten minutes or more

pytestmark = needs_compiler


class Drops:
    """Drops pairs and halves into one inbox, and keeps the order of their acceptance."""

    def __init__(self, installation: Installation) -> None:
        self.home = installation
        self.accepted: list[str] = []
        self._made = 0

    def half(self, name: str, suffix: str, *, skew_s: float = 0.0) -> None:
        """Drop a file as a server does whose clock is ahead by `skew_s`."""
        self._made += 1
        content = small_picture(self._made) if suffix == "png" else small_sound(self._made, 0.2)
        path = self.home.path("inbox") / f".{name}.{suffix}.part"
        path.write_bytes(content)
        at_s = time.time() + skew_s
        os.utime(path, (at_s, at_s))
        path.rename(self.home.path("inbox") / f"{name}.{suffix}")

    def until_accepted(self, name: str) -> float:
        """Seconds from now to its acceptance."""
        began_s = time.monotonic()
        self.home.until(lambda: self.home.job(name), f"the acceptance of {name}")
        self.accepted.append(name)
        return time.monotonic() - began_s

    def pair(self, name: str, *, skew_s: float = 0.0) -> float:
        """Drop a pair; returns the seconds to its acceptance."""
        for suffix in ("png", "wav"):
            self.half(name, suffix, skew_s=skew_s)
        return self.until_accepted(name)

    def slow(self, name: str) -> None:
        """A job that renders long enough to be observed."""
        put(self.home.path("inbox"), f"{name}.json", json.dumps(
            {"image": f"{name}-face.png", "audio": f"{name}-voice.wav", "renderer": "slow"}
        ).encode())  # fmt: skip
        self.half(f"{name}-face", "png")
        self.half(f"{name}-voice", "wav")
        self.until_accepted(name)
        self.home.until_state(name, JobState.RUNNING, JobState.PUBLISHING, JobState.DONE)


class SingleHalf:
    """A half of a pair without the other: it must fail at its time, neither before it nor never."""

    def __init__(self, drops: Drops, name: str) -> None:
        self.name = name
        self._path = drops.home.path("inbox") / f"{name}.png"
        self._dropped_s = time.monotonic()
        drops.half(name, "png")

    def look(self) -> None:
        there = self._path.exists()
        assert there or time.monotonic() - self._dropped_s >= PAIR_TIMEOUT_S, "failed before its time"


def status(installation: Installation) -> dict[str, object]:
    """`status.json`, which the daemon writes every second."""
    content: dict[str, object] = json.loads((installation.path("state") / "status.json").read_text())
    return content


def until_healthy(installation: Installation, clock: WallClock) -> None:
    """Wait for a status with the time of `clock`, and for good answers of the health routes."""

    def fresh() -> bool:
        return abs(float(str(status(installation)["at_ms"])) / 1000 - clock.now_s()) < MAIN_STUCK_S

    installation.until(fresh, "a status of this time")
    server = f"http://127.0.0.1:{status(installation)['web_port']}"
    for route in ("live", "ready"):
        with urllib.request.urlopen(f"{server}/health/{route}", timeout=30) as answer:
            assert answer.status == 200


def rendered(view: LedgerView) -> list[str]:
    """The names of the jobs in the order of their claims."""
    names = {job.id: job.name for job in view.jobs(limit=10_000)}
    return [names[event.job_id] for event in view.latest_events() if event.state == JobState.RUNNING]


def each_once(installation: Installation, names: list[str]) -> None:
    """Exactly these jobs were accepted and delivered, once each, in this order."""
    installation.until(lambda: not os.listdir(installation.path("spool")), "an empty spool")
    jobs = sorted(
        (job for job in installation.view.jobs(limit=10_000) if job.state is JobState.DONE), key=lambda job: job.seq
    )
    assert [job.name for job in jobs] == names
    assert installation.renders == len(names)
    expected = sorted(f"{name}.{suffix}" for name in names for suffix in ("mp4", "json"))
    assert sorted(name for name in os.listdir(installation.path("outbox")) if name != ".lipsyncd") == expected


@contextmanager
def overloaded_server() -> Iterator[tuple[str, threading.Event]]:
    """A web server that answers 503 until the event is set; gives its address and the event."""
    is_ready = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = small_picture(1_000_000) if is_ready.is_set() else b""
            self.send_response(200 if is_ready.is_set() else 503)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}", is_ready
        http.shutdown()


def test_nothing_waits_or_hurries_or_changes_its_turn_when_the_clock_is_set(installation: Installation) -> None:
    installation.changes = {"web": {"enabled": True}, "watch": {"pair_timeout_s": PAIR_TIMEOUT_S}}
    clock, drops = WallClock(installation.root), Drops(installation)
    after = []
    with listening(installation.root) as systemd:
        watchdog = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "3000000"}
        with installation.running(**clock.environment, **watchdog):
            before = [drops.pair(f"still{number}", skew_s=SKEWS_S[number % 4]) for number in range(5)]
            for round in range(ROUNDS):
                single = []
                for number, (what, ahead_s) in enumerate(JUMPS.items()):
                    at = f"{round}-{number}"
                    single += [SingleHalf(drops, f"single{at}")] if number < 2 else []
                    drops.half(f"half{at}", "png")
                    drops.slow(f"slow{at}")
                    clock.set(ahead_s())
                    fed = systemd.lines.count("WATCHDOG=1")
                    after.append(drops.pair(f"next{at}", skew_s=SKEWS_S[number % 4]))
                    drops.half(f"half{at}", "wav")
                    drops.until_accepted(f"half{at}")
                    for one in single:
                        one.look()
                    until_healthy(installation, clock)
                    installation.until(lambda fed=fed: systemd.lines.count("WATCHDOG=1") > fed, f"a message, {what}")
                for name in drops.accepted:
                    installation.until_done(name)
                for one in single:
                    assert installation.until_failed(one.name).reason_code == "missing-half"
            assert rendered(installation.view) == drops.accepted
            each_once(installation, drops.accepted)
    assert max(after) <= 5 * max(before) + SLACK_S
    assert "the clock was set by -" in installation.log
    assert "Traceback" not in installation.log
    with_s, without_s = percentile(after, 0.5), percentile(before, 0.5)
    report(
        f"clock set {len(after)} times by hours, days and years, both ways; files from servers 10 min and a day off",
        f"{len(drops.accepted)} jobs, each once and in turn; accepted after {with_s:.2f} s, before {without_s:.2f} s",
    )


@pytest.mark.parametrize("ahead_s", [HOUR_S, -HOUR_S, DAY_S, -DAY_S] if LONG else [-HOUR_S, DAY_S])
def test_a_job_that_waits_is_tried_again_soon_after_the_clock_was_set(
    installation: Installation, ahead_s: float
) -> None:
    installation.changes = {"fetch": {"allow": ["127.0.0.1"]}}
    clock = WallClock(installation.root)
    with overloaded_server() as (address, is_ready), installation.running(**clock.environment):
        put(installation.path("inbox"), "anna.wav", small_sound(1, 0.2))
        installation.drop_manifest("anna", image=f"{address}/face", audio="anna.wav")
        installation.until(
            lambda: (job := installation.job("anna")) and job.not_before_ms > clock.now_s() * 1000, "the back-off"
        )
        clock.set(ahead_s)
        is_ready.set()
        installation.until_done("anna")
    assert installation.renders == 1


def test_what_was_begun_at_another_time_goes_on_after_a_restart(installation: Installation) -> None:
    """Killed a day ahead, started a day behind, and once more at the right time."""
    clock, drops = WallClock(installation.root), Drops(installation)
    clock.set(DAY_S)
    installation.start(**clock.environment)
    drops.slow("first")
    drops.pair("second")
    installation.kill()
    for ahead_s in (-DAY_S, 0.0):
        clock.set(ahead_s)
        with installation.running(**clock.environment):
            drops.pair(f"at{ahead_s:+.0f}")
            for name in drops.accepted:
                installation.until_done(name)
    assert [job.name for job in sorted(installation.view.jobs(), key=lambda job: job.seq)] == drops.accepted
    assert installation.renders - len(drops.accepted) <= 1  # the one that the kill may have cut off
