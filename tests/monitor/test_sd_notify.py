"""The datagrams to systemd, over real sockets."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from lipsyncd.monitor.systemd import Notifier
from tests.kits.machine.service_manager import ServiceManager
from tests.kits.webhook_receiver import until


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_each_message_arrives_as_one_datagram(tmp_path: Path, abstract: bool) -> None:
    address = f"@lipsyncd-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    manager = ServiceManager(address)
    try:
        notifier = Notifier({"NOTIFY_SOCKET": address})
        assert notifier.has_listener
        notifier.send("READY=1", "STATUS=idle")
        notifier.send("STATUS=two\nSTOPPING=1 of a forger")
        until(lambda: len(manager.messages) == 2, "both messages")
        assert manager.messages == [["READY=1", "STATUS=idle"], ["STATUS=two STOPPING=1 of a forger"]]
    finally:
        manager.close()


def test_children_do_not_get_the_socket_or_the_watchdog() -> None:
    environ = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "PATH": "/bin"}
    assert Notifier(environ).watchdog_s == 30.0
    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize(
    ("environ", "limit_s"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "2000000"}, 2.0),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
    ],
)
def test_the_watchdog_is_ours_only_if_it_names_us_or_no_process(environ: dict[str, str], limit_s: float) -> None:
    assert Notifier(dict(environ)).watchdog_s == limit_s


def test_without_systemd_nothing_is_sent() -> None:
    notifier = Notifier({})
    assert not notifier.has_listener
    notifier.send("READY=1")


@pytest.mark.parametrize("address", ["/nowhere/at/all", "@no-listener-here", "vsock:2:9999", "/dev/null"])
def test_a_systemd_that_does_not_listen_costs_no_time(address: str) -> None:
    Notifier({"NOTIFY_SOCKET": address}).send("WATCHDOG=1")


def test_a_systemd_that_reads_nothing_costs_two_seconds_at_most(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "notify"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filling:
            filling.setblocking(False)
            with pytest.raises(BlockingIOError):
                for _ in range(100_000):
                    filling.sendto(b"STATUS=more", str(tmp_path / "notify"))
        began_s = time.monotonic()
        notifier.send("WATCHDOG=1")
        assert 1.0 < time.monotonic() - began_s < 20.0
