"""The folders: existing, marked, open to the daemon, with free space; and how changes in the inbox are noticed."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from pathlib import Path

from lipsyncd.doctor.findings import Check, Finding, Installation, Verdict
from lipsyncd.errors import DiskLow, InboxUnavailable
from lipsyncd.inbox.watch import refusal
from lipsyncd.log import printable
from lipsyncd.storage import mounts
from lipsyncd.storage.disk_space import free_mb
from lipsyncd.storage.files import NotRegular
from lipsyncd.storage.open_folder import OpenFolder
from lipsyncd.weights.auto_pull import size_text

_ENOUGH = 10  # times `paths.min_free_mb`; less free space is a warning
_LIMITS = Path("/proc/sys/fs/inotify")
_CAP_LEASE = (
    "give the daemon CAP_LEASE: the unit has it, with PrivateUsers=no; a container gets it with `--cap-add LEASE`; "
    "or let people write under a hidden name and rename"
)
_INIT = "`lipsyncd init` or the first `lipsyncd run` creates it"


def shared(kind: str) -> Check:
    """The check of a folder that users share with the daemon."""

    def check(installation: Installation) -> Finding:
        folders = installation.folders
        folder = folders.shared[kind]
        where, known = folder.where, kind in folders.known()
        try:
            with folder.open_unproved() as there:
                if not known:
                    return Finding(Verdict.NOTE, f"{where} is not marked yet", _INIT)
                if not folders.available(kind):
                    seen = f"{where} has no marker of our {kind}: it is not mounted, or it is another folder"
                    return Finding(Verdict.FAULT, seen, _mount(kind))
                return _rights(installation, kind, there) or _room(installation, there)
        except (FileNotFoundError, NotRegular):
            verdict, remedy = (Verdict.FAULT, _mount(kind)) if known else (Verdict.NOTE, _INIT)
            return Finding(verdict, f"{where} does not exist{'' if known else ' yet'}", remedy)

    return check


def _rights(installation: Installation, kind: str, there: OpenFolder) -> Finding | None:
    """Can the daemon remove what it has accepted, and can members not touch each other's files? None if both."""
    owner = installation.owner
    if not kind.startswith("inbox") or mounts.is_network(there.fileno()):
        return None
    mode, uid = there.stat().st_mode, there.stat().st_uid
    if uid == owner.uid:
        if mode & stat.S_IWGRP and not mode & stat.S_ISVTX:
            seen = f"{there.where} is not sticky: members can replace and remove the files of each other"
            return Finding(Verdict.WARNING, seen, f"sudo chmod +t {there.where}")
        return None
    if mode & stat.S_ISVTX and owner.uid != 0:
        seen = f"{there.where} is sticky and belongs to another user: no accepted file could be removed"
        return Finding(Verdict.FAULT, seen, f"sudo chown {owner.name} {there.where}, or chmod -t")
    seen = f"{there.where} belongs to another user, who can exchange what lies in it; so can those who may write it"
    return Finding(Verdict.NOTE, seen, f"sudo chown {owner.name} {there.where} && sudo chmod 3770 {there.where}")


def inboxes(installation: Installation) -> Finding:
    """The inbox and its queues in one line: the worst of them, else the first; and the files that are blocked."""
    folders = installation.folders
    found = [shared(kind)(installation) for kind in folders.inboxes]
    worst = max(found, key=lambda finding: finding.verdict.severity)
    blocked = installation.daemon_status().get("blocked") or {}
    if worst.verdict is Verdict.OK and blocked:
        name, why = next(iter(blocked.items()))
        seen = f"{worst.seen}; {len(blocked)} files blocked, such as {printable(name)}: {why}"
        return Finding(
            Verdict.WARNING, seen, "`lipsyncd status` lists them; let the daemon's user read and delete them"
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
                f"{folders.spool} is not on the disk of {folders.state}",
                "put both on one local disk",
            )
    return found


def _private(installation: Installation, path: Path) -> Finding:
    if not path.is_dir():
        if path.exists():
            return Finding(Verdict.FAULT, f"{path} is not a folder", "move that file away, or set another path")
        return Finding(Verdict.NOTE, f"{path} does not exist yet", _INIT)
    if mounts.is_network(path):
        seen = f"{path} is on {mounts.file_system_type(path) or 'an unknown file system'}"
        return Finding(Verdict.FAULT, seen, "put it on a local disk: SQLite is not safe on a network file system")
    with OpenFolder.at(path) as folder:
        return _room(installation, folder)


def _room(installation: Installation, folder: OpenFolder) -> Finding:
    """Is it open to the daemon's user, with enough free space?"""
    free, floor, path = free_mb(folder.fileno()), installation.settings.paths.min_free_mb, folder.where
    kind = mounts.file_system_type(folder.fileno()) or "unknown"
    seen = f"{path}, {kind}, {size_text(round(free * 1e6))} free"
    if installation.is_closed(folder):
        owner = installation.owner.name
        remedy = f"let user {owner} read, write and enter it: see `ls -ld {path}`, and whether it is mounted read-only"
        return Finding(Verdict.FAULT, f"{path} is closed to user {owner}", remedy)
    if free < floor:
        return Finding(Verdict.FAULT, f"{seen}: less than {floor} MB, so jobs wait", DiskLow.default_remedy)
    if free < floor * _ENOUGH:
        return Finding(Verdict.WARNING, f"{seen}; jobs wait when less than {floor} MB are free", "free space there")
    return Finding(Verdict.OK, seen)


# -- how changes are noticed -------------------------------------------------------------------------------------------


def watch(installation: Installation) -> Finding:
    """Is the inbox watched by events or by polling, and why? If by events, a real watch is set and removed again."""
    settings, folders = installation.settings.watch, installation.folders
    inbox = folders.shared["inbox"]
    kind = inbox.file_system() or "an unknown file system"
    polling = f"polling every {settings.poll_s:g} s"
    if settings.mode == "poll":
        return Finding(Verdict.OK, f"{polling}, since watch.mode is poll")
    try:
        with inbox.open_unproved() as there:
            network, fault = mounts.is_network(there.fileno()), _inotify_fault(there)
    except OSError:
        return Finding(Verdict.NOTE, "nothing to watch: the inbox does not exist")
    if settings.mode == "auto" and network:
        return Finding(Verdict.OK, f"{polling}, since {kind} gives no events for writes of other machines")
    instances, watches = _limit("max_user_instances"), _limit("max_user_watches")
    status = installation.daemon_status()
    if fault or status.get("watch") == "polling":
        why = fault or status.get("degraded") or "the daemon gets none"
        remedy = "raise fs.inotify.max_user_instances and fs.inotify.max_user_watches (`sysctl -w`)"
        limits = f"limits of this user: {instances} instances, {watches} watches"
        return Finding(Verdict.WARNING, f"{polling}, since the kernel gives no events: {why} ({limits})", remedy)
    return Finding(Verdict.OK, f"events ({kind}), a scan every {settings.rescan_s:g} s, {watches} watches allowed")


def writers(installation: Installation) -> Finding:
    """Does the kernel tell the daemon whether another user still writes a file? The daemon itself has tried it."""
    settings, inbox = installation.settings.watch, installation.folders.shared["inbox"]
    if settings.mode == "poll" or (settings.mode == "auto" and inbox.is_network()):
        return Finding(Verdict.OK, f"every file waits {settings.settle_network_s:g} s, since inboxes are polled")
    known = installation.daemon_status().get("leases")
    if known:
        return Finding(Verdict.OK, "the kernel tells whether a file is open for writing, also those of other users")
    if known is None:
        return Finding(Verdict.NOTE, "whether the kernel tells who writes a file is tried by a running daemon")
    waits = f"{settings.settle_network_s:g} s, or {settings.settle_s:g} s if their structure proves them whole"
    seen = f"the kernel does not tell whether other users still write a file: theirs wait {waits}"
    with inbox.open_unproved() as folder:
        return Finding(Verdict.WARNING if _is_shared(folder.stat()) else Verdict.NOTE, seen, _CAP_LEASE)


def _is_shared(info: os.stat_result) -> bool:
    """May users besides a folder's owner write there? A group without a name may have any members."""
    if not info.st_mode & stat.S_IWGRP or info.st_mode & stat.S_IWOTH:
        return bool(info.st_mode & stat.S_IWOTH)
    try:
        return any(name != pwd.getpwuid(info.st_uid).pw_name for name in grp.getgrgid(info.st_gid).gr_mem)
    except KeyError:
        return True


def _inotify_fault(folder: OpenFolder) -> str:
    """Why the kernel gives no events for `folder`; "" if it does."""
    error = refusal(folder)
    return "" if error is None else _inotify_text(error.errno or 0)


def _inotify_text(code: int) -> str:
    """An error of inotify in words. The system's text does not fit two of them ("No space left on device")."""
    known = {errno.EMFILE: "all inotify instances are in use", errno.ENOSPC: "all inotify watches are in use"}
    return known.get(code, os.strerror(code))


def _limit(name: str) -> str:
    try:
        return (_LIMITS / name).read_text().strip()
    except OSError:
        return "?"
