"""Helpers for tests of the doctor: run one check, and require a bad finding."""

from __future__ import annotations

import socket
from contextlib import closing

from lipsyncd.doctor import CHECKS, Finding, Verdict
from lipsyncd.doctor.findings import Installation as Examined
from lipsyncd.doctor.findings import run_checks
from tests.kits.installation import Installation


def seen(installation: Installation, name: str, *, full: bool = False) -> Finding:
    """The finding of one check, run as the command runs it."""
    examined = Examined(installation.settings, full=full)
    return run_checks({name: CHECKS[name]}, examined)[name]


def fault(
    installation: Installation, name: str, *words: str, verdict: Verdict = Verdict.FAULT, full: bool = False
) -> Finding:
    """As `seen`; the finding must have that verdict, contain these words and have a remedy."""
    found = seen(installation, name, full=full)
    assert found.verdict is verdict, found
    assert all(word in f"{found.seen}\n{found.remedy}" for word in words), found
    assert found.remedy or verdict is Verdict.NOTE
    return found


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as trial:
        return int(trial.getsockname()[1])
