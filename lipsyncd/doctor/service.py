"""The service itself: its ledger and jobs, the daemon that runs or not, its port and its key."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import socket
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from lipsyncd import __version__
from lipsyncd.doctor.findings import Finding, Installation, Verdict
from lipsyncd.errors import LedgerTooNew
from lipsyncd.jobs.job import JobState
from lipsyncd.ledger import backups
from lipsyncd.ledger.schema import STEPS
from lipsyncd.ledger.view import LedgerView
from lipsyncd.monitor.status import STATUS_FILE
from lipsyncd.storage.files import read_json
from lipsyncd.storage.locks import holder, is_held
from lipsyncd.web.keys import KEY_VARIABLE, is_loopback, read_keys

# Before that, two connections that write or checkpoint at once could damage the file. Ours is written by one.
_SQLITE_FLOOR = (3, 51, 3)
_SILENT_S = 30.0  # a daemon tells every second that it lives
_OLD_BACKUP_S = 2 * 86_400.0
_ASK_TIMEOUT_S = 2.0
_MOST_JOBS = 1000


def _view(installation: Installation) -> LedgerView:
    """Raises PermissionError: a folder that may not be entered is not one without a ledger."""
    path = installation.folders.state / "ledger.db"
    _look(path)
    return LedgerView(path)


def _look(path: Path) -> None:
    """Raises PermissionError; that nothing is there is no error."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.stat()


def ledger(installation: Installation) -> Finding:
    """Can it be read, is it of our schema, and with `full`, is every page of it whole?"""
    view = _view(installation)
    sqlite = f"SQLite {sqlite3.sqlite_version}"
    found = view.schema()
    if found is None:
        return Finding(Verdict.NOTE, f"none yet, {sqlite}", "the first `lipsyncd run` makes it")
    if found > len(STEPS):
        seen = f"schema {found}; this program knows up to {len(STEPS)}"
        return Finding(Verdict.FAULT, seen, LedgerTooNew.default_remedy)
    if damage := view.damage() if installation.full else "":
        remedy = "stop the daemon, move ledger.db away and start it: open jobs come back from the spool"
        return Finding(Verdict.FAULT, f"{view.path} is damaged: {damage}", remedy)
    seen = f"schema {found}{f' (the next start makes it {len(STEPS)})' if found < len(STEPS) else ''}, {sqlite}"
    if sqlite3.sqlite_version_info < _SQLITE_FLOOR:
        floor = ".".join(map(str, _SQLITE_FLOOR))
        return Finding(Verdict.NOTE, f"{seen} < {floor}: harmless with one writer")
    return Finding(Verdict.OK, seen)


def backup(installation: Installation) -> Finding:
    """How old is the newest copy of the ledger?"""
    copies = backups.made(installation.folders.state / backups.FOLDER)
    if not copies:
        return Finding(Verdict.NOTE, "none yet; a running daemon makes one each night")
    age_s = time.time() - copies[-1].stat().st_mtime
    seen = f"{copies[-1].name}, {age_s / 3600:.0f} h old, {len(copies)} kept"
    if age_s > _OLD_BACKUP_S:
        return Finding(Verdict.WARNING, seen, "a running daemon makes one each night: see its log")
    return Finding(Verdict.OK, seen)


def jobs(installation: Installation) -> Finding:
    """How many there are, and which reasons hold some of them up."""
    view = _view(installation)
    counts = view.counts()
    told = ", ".join(f"{n} {state.value}" for state, n in counts.items() if n) or "none yet"
    waiting = [job for job in view.jobs(states=[JobState.QUEUED, JobState.PUBLISHING], limit=_MOST_JOBS) if job.reason]
    if not waiting:
        return Finding(Verdict.OK, told)
    [(code, number), *_] = Counter(job.reason_code for job in waiting).most_common()
    first = next(job for job in waiting if job.reason_code == code)
    return Finding(Verdict.WARNING, f"{told}; {number} wait: {code}: {first.reason}", first.remedy or "")


# -- the daemon --------------------------------------------------------------------------------------------------------


def daemon(installation: Installation) -> Finding:
    """Who holds the lock, and does it still tell that it lives?"""
    state = installation.folders.state
    _look(state / "lock")
    if not is_held(state):
        return Finding(Verdict.NOTE, "none runs", "start it: `systemctl start lipsyncd`, or `lipsyncd run`")
    who = holder(state) or "a process that has not said who it is"
    said = _said(installation)
    if said is None:
        return Finding(Verdict.NOTE, f"{who}; it has just begun, or is no daemon")
    age_s = time.time() - said.get("at_ms", 0) / 1000
    if age_s > _SILENT_S:
        remedy = "it hangs: see its log, then restart it; no job is lost"
        return Finding(Verdict.FAULT, f"{who}, silent for {age_s:.0f} s", remedy)
    version = said.get("version")
    if version != __version__:
        return Finding(Verdict.WARNING, f"{who}, version {version}; installed is {__version__}", "restart it")
    return Finding(Verdict.OK, f"{who}, version {version}")


def _said(installation: Installation) -> dict[str, Any] | None:
    """What the running daemon has last told about itself; None without one."""
    state = installation.folders.state
    return read_json(state / STATUS_FILE) if is_held(state) else None


# -- its door ----------------------------------------------------------------------------------------------------------


def web(installation: Installation) -> Finding:
    """Is the port ours or free? A daemon of ours is asked whether it is ready."""
    settings = installation.settings.web
    if not settings.enabled:
        return Finding(Verdict.OK, "switched off (web.enabled = false)")
    port = (_said(installation) or {}).get("web_port")
    if port is not None:
        return _readiness(settings.host, port)
    place = _place(settings.host, settings.port)
    fault = _bind_fault(settings.host, settings.port)
    if fault == errno.EADDRINUSE:
        return Finding(
            Verdict.FAULT,
            f"{place} is taken by another program",
            f"see whose it is (`ss -ltnp 'sport = :{settings.port}'`), or choose another web.port",
        )
    if fault:
        remedy = "correct web.host and web.port; ports below 1024 are root's"
        return Finding(Verdict.FAULT, f"{place} cannot be had: {os.strerror(fault)}", remedy)
    return Finding(Verdict.OK, f"{place} is free")


def _readiness(host: str, port: int) -> Finding:
    place = _place(host, port)
    answer = _ask(host, port, "/health/ready")
    if answer is None:
        remedy = "it hangs: see its log, then restart it; no job is lost"
        return Finding(Verdict.FAULT, f"{place} is the daemon's, which does not answer", remedy)
    status, body = answer
    if status == 200:
        return Finding(Verdict.OK, f"{place} is the daemon's, which is ready")
    try:
        failing = json.loads(body).get("failing", {})
    except (ValueError, AttributeError):
        failing = {"answer": str(status)}
    told = "; ".join(f"{check}: {why}" for check, why in failing.items())
    return Finding(Verdict.WARNING, f"{place} is the daemon's, which is not ready: {told}", "the other lines say more")


def key(installation: Installation) -> Finding:
    """Does a stranger get in? A running daemon is tried, since a unit's credential shows nowhere else."""
    settings = installation.settings.web
    if not settings.enabled:
        return Finding(Verdict.OK, "none needed")
    port = (_said(installation) or {}).get("web_port")
    answer = None if port is None else _ask(settings.host, port, "/metrics")
    if answer is not None and answer[0] == http.HTTPStatus.UNAUTHORIZED:
        return Finding(Verdict.OK, "the daemon asks for one")
    if answer is None and (keys := read_keys(settings)):
        return Finding(Verdict.OK, f"{len(keys)} configured")
    if is_loopback(settings.host):
        return Finding(Verdict.OK, "none, and only this machine gets in")
    remedy = f"set web.api_key_file or {KEY_VARIABLE}, or let a proxy ask for one"
    return Finding(Verdict.WARNING, f"none: anybody who reaches {settings.host} gets in", remedy)


def _ask(host: str, port: int, path: str) -> tuple[int, bytes] | None:
    """Status and body; None when nobody answers in time. Any address that the daemon listens on will do."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        with closing(http.client.HTTPConnection(reached, port, timeout=_ASK_TIMEOUT_S)) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read(1 << 20)
    except (OSError, http.client.HTTPException):
        return None


def _bind_fault(host: str, port: int) -> int:
    """The error that the server would get for its address and port; 0 when it would get none."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with closing(socket.socket(family, kind, protocol)) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            trial.listen(1)  # two may bind under SO_REUSEADDR, and only one may listen
    except socket.gaierror:
        return errno.EADDRNOTAVAIL
    except OSError as error:
        return error.errno or errno.EADDRNOTAVAIL
    return 0


def _place(host: str, port: int) -> str:
    return f"{f'[{host}]' if ':' in host else host}:{port}"
