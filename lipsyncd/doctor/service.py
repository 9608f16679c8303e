"""The service: its ledger and jobs, its daemon, its port and its key."""

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

from lipsyncd import __version__
from lipsyncd.doctor.findings import Finding, Installation, Verdict
from lipsyncd.errors import LedgerTooNew
from lipsyncd.jobs.job import JobState
from lipsyncd.ledger import backups
from lipsyncd.ledger.schema import STEPS
from lipsyncd.ledger.view import LedgerView
from lipsyncd.monitor.held_lock import is_held
from lipsyncd.storage.locks import holder
from lipsyncd.web.keys import KEY_VARIABLE, is_loopback, read_keys, without_admin

# In older versions, two connections that write or checkpoint at once could damage the file. Ours has one writer.
_SQLITE_FLOOR = (3, 51, 3)
_SILENT_S = 30.0  # a daemon writes its status every five seconds
_OLD_BACKUP_S = 2 * 86_400.0
_ASK_TIMEOUT_S = 2.0
_MOST_JOBS = 1000
_HANGS = "it hangs: see its log, then restart it; no job is lost"


def _view(installation: Installation) -> LedgerView:
    """Raises PermissionError, so that an unreadable ledger does not count as a missing one."""
    path = installation.folders.state / "ledger.db"
    _require_access(path)
    return LedgerView(path)


def _require_access(path: Path) -> None:
    """Raises PermissionError. A missing file is no error."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.stat()


def ledger(installation: Installation) -> Finding:
    """Can the ledger be read, does it have our schema, and with `full`, is every page of it intact?"""
    view = _view(installation)
    sqlite = f"SQLite {sqlite3.sqlite_version}"
    found = view.schema()
    if found is None:
        return Finding(Verdict.NOTE, f"none yet, {sqlite}", "the first `lipsyncd run` creates it")
    if found > len(STEPS):
        seen = f"schema {found}; this version reads at most schema {len(STEPS)}"
        return Finding(Verdict.FAULT, seen, LedgerTooNew.default_remedy)
    if damage := view.damage() if installation.full else "":
        remedy = "stop the daemon, move ledger.db away and start it again: it restores open jobs from the spool"
        return Finding(Verdict.FAULT, f"{view.path} is damaged: {damage}", remedy)
    seen = f"schema {found}{f' (the next start migrates it to {len(STEPS)})' if found < len(STEPS) else ''}, {sqlite}"
    if sqlite3.sqlite_version_info < _SQLITE_FLOOR:
        floor = ".".join(map(str, _SQLITE_FLOOR))
        return Finding(Verdict.NOTE, f"{seen}, older than {floor}: harmless, since the ledger has one writer")
    return Finding(Verdict.OK, seen)


def backup(installation: Installation) -> Finding:
    """How old is the newest copy of the ledger?"""
    copies = backups.copies(installation.folders.state / backups.FOLDER)
    if not copies:
        return Finding(Verdict.NOTE, "none yet; a running daemon makes one every night")
    age_s = time.time() - copies[-1].stat().st_mtime
    seen = f"{copies[-1].name}, {age_s / 3600:.0f} h old, {len(copies)} kept"
    if age_s > _OLD_BACKUP_S:
        return Finding(Verdict.WARNING, seen, "a running daemon makes one every night: see its log")
    return Finding(Verdict.OK, seen)


def jobs(installation: Installation) -> Finding:
    """How many jobs there are, and the most frequent reason for which jobs wait."""
    view = _view(installation)
    counts = view.counts()
    text = ", ".join(f"{n} {state.value}" for state, n in counts.items() if n) or "none yet"
    waiting = [job for job in view.jobs(states=[JobState.QUEUED, JobState.PUBLISHING], limit=_MOST_JOBS) if job.reason]
    if not waiting:
        return Finding(Verdict.OK, text)
    [(code, number), *_] = Counter(job.reason_code for job in waiting).most_common()
    first = next(job for job in waiting if job.reason_code == code)
    return Finding(Verdict.WARNING, f"{text}; {number} blocked ({code}): {first.reason}", first.remedy or "")


# -- the daemon --------------------------------------------------------------------------------------------------------


def daemon(installation: Installation) -> Finding:
    """Which process holds the lock, and is its status recent?"""
    state = installation.folders.state
    _require_access(state / "lock")
    if not is_held(state):
        return Finding(Verdict.NOTE, "not running", "start it with `systemctl start lipsyncd` or `lipsyncd run`")
    who = holder(state) or "a process without a name in the lock file"
    status = installation.daemon_status()
    if not status:
        return Finding(Verdict.NOTE, f"{who}; it is starting, or it is another command")
    age_s = time.time() - status.get("at_ms", 0) / 1000
    if age_s > _SILENT_S:
        return Finding(Verdict.FAULT, f"{who}, no status for {age_s:.0f} s", _HANGS)
    version = status.get("version")
    if version != __version__:
        return Finding(Verdict.WARNING, f"{who}, version {version}; version {__version__} is installed", "restart it")
    return Finding(Verdict.OK, f"{who}, version {version}")


# -- its port and key --------------------------------------------------------------------------------------------------


def web(installation: Installation) -> Finding:
    """Is the port free, or used by our daemon? If so, is the daemon ready?"""
    settings = installation.settings.web
    if not settings.enabled:
        return Finding(Verdict.OK, "switched off (web.enabled = false)")
    port = installation.daemon_status().get("web_port")
    if port is not None:
        return _readiness(settings.host, port)
    place = _place(settings.host, settings.port)
    fault = _bind_fault(settings.host, settings.port)
    if fault == errno.EADDRINUSE and _is_lipsyncd(settings.host, settings.port):
        if _is_hidden(installation):
            return _readiness(settings.host, settings.port)
        remedy = "name its settings with --config, or choose another web.port"
        return Finding(Verdict.FAULT, f"{place} is used by a lipsyncd with other folders", remedy)
    if fault == errno.EADDRINUSE:
        return Finding(
            Verdict.FAULT,
            f"{place} is used by another program",
            f"find it with `ss -ltnp 'sport = :{settings.port}'`, or choose another web.port",
        )
    if fault:
        remedy = "correct web.host and web.port; ports below 1024 need root"
        return Finding(Verdict.FAULT, f"{place} cannot be opened: {os.strerror(fault)}", remedy)
    return Finding(Verdict.OK, f"{place} is free")


def _is_lipsyncd(host: str, port: int) -> bool:
    answer = _ask(host, port, "/health")
    try:
        return answer is not None and json.loads(answer[1]).get("service") == "lipsyncd"
    except (ValueError, AttributeError):
        return False


def _is_hidden(installation: Installation) -> bool:
    """May this user not see whether the daemon of these folders runs?"""
    try:
        (installation.folders.state / "lock").open("rb").close()
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _readiness(host: str, port: int) -> Finding:
    place = _place(host, port)
    answer = _ask(host, port, "/health/ready")
    if answer is None:
        return Finding(Verdict.FAULT, f"the daemon on {place} does not answer", _HANGS)
    status, body = answer
    if status == 200:
        return Finding(Verdict.OK, f"the daemon on {place} is ready")
    try:
        failing = json.loads(body).get("failing", {})
    except (ValueError, AttributeError):
        failing = {"answer": str(status)}
    text = "; ".join(f"{check}: {why}" for check, why in failing.items())
    return Finding(Verdict.WARNING, f"the daemon on {place} is not ready: {text}", "see the other checks")


def key(installation: Installation) -> Finding:
    """Does access need a key? A running daemon is asked, since only it can read the unit's credential."""
    settings = installation.settings.web
    if not settings.enabled:
        return Finding(Verdict.OK, "none needed")
    status = installation.daemon_status()
    port = status.get("web_port")
    answer = None if port is None else _ask(settings.host, port, "/metrics")
    if answer is not None and answer[0] == http.HTTPStatus.UNAUTHORIZED:
        number, admin = status.get("web_keys", 1), status.get("web_admin", True)
        return _without_admin(number) if number > 1 and not admin else Finding(Verdict.OK, "the daemon requires one")
    if answer is None and (keys := read_keys(settings)):
        return _without_admin(len(keys)) if without_admin(keys) else Finding(Verdict.OK, f"{len(keys)} configured")
    if is_loopback(settings.host):
        return Finding(Verdict.OK, "none; only this machine has access")
    remedy = f"set web.api_key_file or {KEY_VARIABLE}, or let a proxy check access"
    return Finding(Verdict.WARNING, f"none: every client that reaches {settings.host} has access", remedy)


def _without_admin(number: int) -> Finding:
    seen = f"{number} configured, none of an administrator: no client sees the jobs of the folder or of before"
    return Finding(Verdict.WARNING, seen, "write the word admin behind one of them, as in user:password admin")


def _ask(host: str, port: int, path: str) -> tuple[int, bytes] | None:
    """Status and body of an answer; None if none comes in time. A wildcard host stands for loopback."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        with closing(http.client.HTTPConnection(reached, port, timeout=_ASK_TIMEOUT_S)) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read(1 << 20)
    except (OSError, http.client.HTTPException):
        return None


def _bind_fault(host: str, port: int) -> int:
    """The error number that binding the address and port gives; 0 if it works."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with closing(socket.socket(family, kind, protocol)) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            trial.listen(1)  # with SO_REUSEADDR two sockets may bind, but only one may listen
    except socket.gaierror:
        return errno.EADDRNOTAVAIL
    except OSError as error:
        return error.errno or errno.EADDRNOTAVAIL
    return 0


def _place(host: str, port: int) -> str:
    return f"{f'[{host}]' if ':' in host else host}:{port}"
