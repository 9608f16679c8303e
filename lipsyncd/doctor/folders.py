"""The folders: there, ours, open to the daemon, with room; and how changes in the inbox are noticed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from lipsyncd.doctor.findings import Check, Finding, Installation, Verdict
from lipsyncd.errors import DiskLow, InboxUnavailable
from lipsyncd.inbox.watch import refusal
from lipsyncd.log import printable
from lipsyncd.monitor.status import STATUS_FILE
from lipsyncd.storage import mounts
from lipsyncd.storage.disk_space import free_mb, shortage
from lipsyncd.storage.files import read_json
from lipsyncd.storage.locks import is_held
from lipsyncd.weights.auto_pull import size_text

_ROOMY = 10  # times `paths.min_free_mb`: below that somebody should look
_LIMITS = Path("/proc/sys/fs/inotify")


def shared(kind: str) -> Check:
    """The check of a folder that people share with the daemon."""

    def check(installation: Installation) -> Finding:
        folders = installation.folders
        path = folders.shared[kind]
        if kind not in folders.known():
            seen = f"{path} is not marked yet" if path.is_dir() else f"{path} is not made yet"
            return Finding(Verdict.NOTE, seen, "`lipsyncd init` does it, and so does the first `lipsyncd run`")
        if not path.is_dir():
            return Finding(Verdict.FAULT, f"{path} is not there", _mount(kind))
        if not folders.available(kind):
            seen = f"{path} has not the marker of our {kind}: it is not mounted, or is another folder"
            return Finding(Verdict.FAULT, seen, _mount(kind))
        return _room(installation, path)

    return check


def inboxes(installation: Installation) -> Finding:
    """All folders that jobs come in by as one line: the worst of them, else the first; and what lies there blocked."""
    folders = installation.folders
    found = [shared(kind)(installation) for kind in folders.inboxes]
    worst = max(found, key=lambda finding: finding.verdict.severity)
    told = (read_json(folders.state / STATUS_FILE) or {}) if is_held(folders.state) else {}
    blocked = told.get("blocked") or {}
    if worst.verdict is Verdict.OK and blocked:
        name, why = next(iter(blocked.items()))
        seen = f"{worst.seen}; {len(blocked)} blocked there, such as {printable(name)}: {why}"
        return Finding(
            Verdict.WARNING, seen, "`lipsyncd status` names each; let the daemon's user read and remove them"
        )
    if worst.verdict is Verdict.OK and len(found) > 1:
        return Finding(Verdict.OK, f"{worst.seen}, and {len(found) - 1} more")
    return worst


def _mount(kind: str) -> str:
    return InboxUnavailable.default_remedy.replace("inbox", kind)


def state(installation: Installation) -> Finding:
    """Ledger, lock and control files: private, and on a local disk."""
    return _private(installation, installation.folders.state)


def spool(installation: Installation) -> Finding:
    """Accepted jobs: private, and on the disk of the state folder."""
    folders = installation.folders
    found = _private(installation, folders.spool)
    if found.verdict is Verdict.OK and folders.state.is_dir():
        apart = folders.state.stat().st_dev != folders.spool.stat().st_dev
        if apart:
            return Finding(
                Verdict.FAULT,
                f"{folders.spool} lies on another disk than {folders.state}",
                "put both on one local disk",
            )
    return found


def _private(installation: Installation, path: Path) -> Finding:
    if not path.is_dir():
        if path.exists():
            return Finding(Verdict.FAULT, f"{path} is no folder", "move that file away, or set another path")
        remedy = "`lipsyncd init` does it, and so does the first `lipsyncd run`"
        return Finding(Verdict.NOTE, f"{path} is not made yet", remedy)
    if mounts.is_network(path):
        seen = f"{path} lies on {mounts.file_system_type(path) or 'an unknown file system'}"
        return Finding(Verdict.FAULT, seen, "put it on a local disk: SQLite's ledger is not safe on a network folder")
    return _room(installation, path)


def _room(installation: Installation, path: Path) -> Finding:
    """Open to the daemon's user, and with space left."""
    free, floor = free_mb(path), installation.settings.paths.min_free_mb
    seen = f"{path}, {mounts.file_system_type(path) or 'unknown'}, {size_text(round(free * 1e6))} free"
    if installation.closed([path]):
        owner = installation.owner.name
        remedy = f"let user {owner} read, write and enter it: `ls -ld {path}`, and is it mounted read-only?"
        return Finding(Verdict.FAULT, f"{path} is closed to user {owner}", remedy)
    if shortage(path, floor):
        return Finding(Verdict.FAULT, f"{seen}: less than {floor} MB, so jobs wait", DiskLow.default_remedy)
    if free < floor * _ROOMY:
        return Finding(Verdict.WARNING, f"{seen}: at {floor} MB jobs begin to wait", "free space there")
    return Finding(Verdict.OK, seen)


# -- how changes are noticed -------------------------------------------------------------------------------------------


def watch(installation: Installation) -> Finding:
    """By events or by polling, and why. Where events are wanted a real watch is set, and taken away again."""
    settings, folders = installation.settings.watch, installation.folders
    inbox = folders.shared["inbox"]
    polling = f"polling every {settings.poll_s:g} s"
    if settings.mode == "poll":
        return Finding(Verdict.OK, f"{polling}, as watch.mode says")
    if not inbox.is_dir():
        return Finding(Verdict.NOTE, "nothing to watch: the inbox is not there")
    kind = mounts.file_system_type(inbox) or "an unknown file system"
    if settings.mode == "auto" and mounts.is_network(inbox):
        return Finding(Verdict.OK, f"{polling}: {kind} tells nothing of what other machines write")
    instances, watches = _limit("max_user_instances"), _limit("max_user_watches")
    told = read_json(folders.state / STATUS_FILE) if is_held(folders.state) else None
    fault = _inotify_fault(inbox)
    if fault or (told or {}).get("watch") == "polling":
        why = fault or (told or {}).get("degraded") or "the daemon hears none"
        remedy = "raise fs.inotify.max_user_instances and fs.inotify.max_user_watches (`sysctl -w`)"
        limits = f"limits of this user: {instances} instances, {watches} watches"
        return Finding(Verdict.WARNING, f"{polling}, since the kernel gives no events: {why} ({limits})", remedy)
    return Finding(Verdict.OK, f"events ({kind}), a scan every {settings.rescan_s:g} s, {watches} watches allowed")


def _inotify_fault(folder: Path) -> str:
    """Why the kernel would not tell us of changes in `folder`; "" when it does."""
    error = refusal(folder)
    return "" if error is None else _words(error.errno or 0)


def _words(code: int) -> str:
    """What these two mean to inotify has little to do with the words that the system has for them."""
    known = {errno.EMFILE: "all instances are taken", errno.ENOSPC: "all watches are taken"}
    return known.get(code, os.strerror(code))


def _limit(name: str) -> str:
    try:
        return (_LIMITS / name).read_text().strip()
    except OSError:
        return "?"
