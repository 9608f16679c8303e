"""Clients that hold connections, and a daemon that may open few files: intake, renders and other clients go on."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsyncd.jobs.job import JobState
from lipsyncd.sandbox.jail import run_jailed
from tests.kits.installation import READY, Installation, picture, sound
from tests.kits.long_run_figures import report
from tests.kits.machine.processes import children_of, command_of
from tests.kits.web_kit import Api, port_of

IDLE = 1024
HARD = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 65_536)  # the most that the daemon takes
STORM_BYTES = 100_000  # of log; a daemon that tried again at once wrote 130 MB in 45 s


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    """This process itself holds more than a thousand connections."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (HARD, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def served(installation: Installation, soft: int, hard: int = HARD) -> Api:
    """A daemon that starts with these limits of open files."""
    installation.changes["web"] = {"enabled": True}
    limited = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard})); "
    command = [sys.executable, "-c", f"{limited}os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"]
    log = installation.root / "daemon.log"
    with log.open("ab") as output:
        installation.daemon = subprocess.Popen(
            [*command, "-m", "lipsyncd", "--config", str(installation.config), "run"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=installation.environment(),
        )
    installation.until(lambda: READY in installation.log, "the daemon's start")
    return Api(installation, port_of(installation))


def pid_of(installation: Installation) -> int:
    assert installation.daemon is not None
    return installation.daemon.pid


def limit_of(pid: int) -> tuple[int, int]:
    text = Path(f"/proc/{pid}/limits").read_text()
    found = re.search(r"Max open files\s+(\d+)\s+(\d+)", text)
    assert found is not None
    return int(found[1]), int(found[2])


def connected(stack: contextlib.ExitStack, api: Api, address: str = "127.0.0.1") -> socket.socket:
    line = stack.enter_context(socket.socket())
    line.settimeout(30)
    line.bind((address, 0))
    line.connect(("127.0.0.1", api.port))
    return line


GET = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


def is_open(line: socket.socket) -> bool:
    """Does the server still answer on that connection?"""
    try:
        line.sendall(GET)
        return line.recv(65_536).startswith(b"HTTP/1.1 200 ")
    except OSError:
        return False


@pytest.mark.parametrize("hard", [HARD, 1024], ids=["a hard limit above", "a hard limit of 1024"])
def test_a_thousand_idle_connections_stop_neither_intake_nor_other_clients(
    installation: Installation, hard: int
) -> None:
    api = served(installation, 1024, hard)
    assert limit_of(pid_of(installation)) == (hard, hard)
    with contextlib.ExitStack() as stack:
        before = len(installation.log)
        for _ in range(IDLE):
            with contextlib.suppress(OSError):
                connected(stack, api)
        longest_s = 0.0
        for number in range(5):
            installation.drop_pair(f"dropped {number}", seed=number)
            began_s = time.monotonic()
            assert api.get("/health/live").status == 200
            longest_s = max(longest_s, time.monotonic() - began_s)
            installation.until_done(f"dropped {number}")
        image, voice = ("a.png", picture(9)), ("a.wav", sound())
        assert api.done(api.form("/generate-video", source_image=image, audio_data=voice).json["id"])
        held = len(os.listdir(f"/proc/{pid_of(installation)}/fd"))
        logged = len(installation.log) - before
    assert held < 600
    assert longest_s < 5
    assert logged < STORM_BYTES
    report(
        f"{IDLE} idle connections, hard limit {hard}",
        f"{held} descriptors, an answer after {longest_s:.2f} s, {logged} B of log",
    )
    assert installation.stop() == 0


def test_one_address_that_holds_idle_connections_closes_only_its_own(installation: Installation) -> None:
    """Neither an idle connection of another address nor a request of its own that is under way."""
    api = served(installation, 1024)
    with contextlib.ExitStack() as stack:
        other = [connected(stack, api, "127.0.0.3") for _ in range(20)]
        assert all(map(is_open, other))
        job = api.form(
            "/generate-video", renderer="hang", source_image=("a.png", picture()), audio_data=("a.wav", sound())
        ).json["id"]
        waiting = [connected(stack, api, "127.0.0.2") for _ in range(30)]
        for line in waiting:
            line.sendall(f"GET /talk-status/{job}?wait=12 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        idle = []
        for _ in range(4):
            time.sleep(1.1)  # what was just accepted is never closed
            idle += [connected(stack, api, "127.0.0.2") for _ in range(100)]
        time.sleep(1.1)
        idle += [connected(stack, api, "127.0.0.2") for _ in range(100)]
        left = sum(map(is_open, idle))
        assert 100 <= left <= 250, left
        assert all(map(is_open, other))
        assert all(line.recv(65_536).startswith(b"HTTP/1.1 200 ") for line in waiting)
    assert installation.stop() == 0


def test_children_start_with_the_limit_that_the_daemon_started_with(installation: Installation) -> None:
    served(installation, 1024)
    installation.drop_manifest("held", image="held.png", audio="held.wav", renderer="hang")
    installation.drop_pair("held")
    installation.until_state("held", JobState.RUNNING)
    daemon = pid_of(installation)

    def rendering() -> list[int]:
        return [pid for pid in children_of(daemon) if b"lipsyncd.renderers" in command_of(pid)]

    [child] = installation.until(rendering, "the render child")
    installation.until(lambda: limit_of(child)[0] == 1024, "its limit")
    assert limit_of(daemon)[0] == HARD
    installation.stop()


def test_a_daemon_without_a_free_descriptor_waits_quietly_and_goes_on(installation: Installation) -> None:
    """Every accept, every scan and every status file fails for a while. Nothing ends, nothing fills the log."""
    api = served(installation, 1024)
    installation.drop_pair("before")
    installation.until_done("before")
    pid = pid_of(installation)
    before = len(installation.log)
    with contextlib.ExitStack() as stack:
        used = set(map(int, os.listdir(f"/proc/{pid}/fd")))
        lowest = next(number for number in range(HARD) if number not in used)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, HARD))
        lines = [connected(stack, api) for _ in range(50)]
        for line in lines:
            line.sendall(GET)
        installation.drop_pair("meanwhile")
        time.sleep(8)
        assert "no connection can be accepted: Too many open files" in installation.log[before:]
        logged = len(installation.log) - before
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (HARD, HARD))
        installation.until_done("meanwhile")
        assert api.get("/health/live").status == 200
    assert logged < STORM_BYTES
    assert "Traceback" not in installation.log[before:]
    report("no free descriptor for 8 s", f"{logged} B of log")
    assert installation.stop() == 0


def test_a_jailed_program_runs_with_more_than_a_thousand_files_open() -> None:
    """`select` refuses a descriptor from 1024 on."""
    with contextlib.ExitStack() as stack:
        for _ in range(1100):
            stack.enter_context(open(os.devnull))
        assert run_jailed(["/bin/true"], timeout_s=30).returncode == 0
