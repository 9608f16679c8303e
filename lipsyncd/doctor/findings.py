"""The findings of checks, and how checks are run: all at the same time, within a time limit.

A dead file server blocks a check for minutes. So each check has a thread of its own, and one that does not return in
time becomes a finding, too.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

from lipsyncd.errors import LipsyncdError
from lipsyncd.ledger.live_progress import STATUS_FILE
from lipsyncd.monitor.held_lock import is_held
from lipsyncd.settings import Settings
from lipsyncd.storage.files import read_json
from lipsyncd.storage.folders import Folders, folders_of
from lipsyncd.storage.open_folder import OpenFolder

LIMIT_S = 10.0  # for all checks together
_FULL_LIMIT_S = 3600.0
_ACCESS_TIMEOUT_S = 5.0
# Run as the daemon's user: may it read, write and enter that folder?
_IS_OPEN = 'test -r "$1" && test -w "$1" && test -x "$1"'


class Verdict(StrEnum):
    """The result of a check, from best to worst. The worst of all decides the exit status."""

    OK = "ok"
    NOTE = "note"  # worth knowing
    WARNING = "warning"  # works, but less well than it could, or not for ever
    FAULT = "fault"  # jobs wait or fail until it is repaired

    @property
    def severity(self) -> int:
        return list(Verdict).index(self)

    @property
    def exit_status(self) -> int:
        """0, 1 or 2, as plugins of Nagios and similar programs exit."""
        return max(0, self.severity - 1)


@dataclass(frozen=True)
class Finding:
    """What one check saw, in one line, and the remedy."""

    verdict: Verdict
    seen: str
    remedy: str = ""


@dataclass(frozen=True)
class Report:
    """All findings by the names of their checks, in the order in which they are printed."""

    findings: Mapping[str, Finding]

    @property
    def verdict(self) -> Verdict:
        return max((found.verdict for found in self.findings.values()), key=lambda verdict: verdict.severity)

    def count(self, verdict: Verdict) -> int:
        return sum(found.verdict is verdict for found in self.findings.values())


@dataclass(frozen=True)
class User:
    """A user of this machine."""

    uid: int
    gid: int
    name: str


@dataclass(frozen=True)
class Installation:
    """The installation to check: its settings and folders, and the users concerned.

    full  also hash the weights and read the whole ledger
    """

    settings: Settings
    full: bool = False
    folders: Folders = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folders", folders_of(self.settings.paths))

    @cached_property
    def user(self) -> User:
        """The user of this process."""
        return _user(os.geteuid(), os.getegid())

    @cached_property
    def owner(self) -> User:
        """The daemon's user: the owner of the state folder, or the user of this process while there is none."""
        try:
            info = self.folders.state.stat()
        except OSError:
            return self.user
        return _user(info.st_uid, info.st_gid)

    @property
    def as_owner(self) -> str:
        """The `sudo` that runs a command with the daemon's rights."""
        return "sudo" if self.owner.uid in (0, self.user.uid) else f"sudo -u {self.owner.name}"

    def daemon_status(self) -> Mapping[str, Any]:
        """The status that the running daemon wrote last; {} if none runs, or if it has not written one."""
        state = self.folders.state
        return (read_json(state / STATUS_FILE) if is_held(state) else None) or {}

    def is_closed(self, folder: OpenFolder) -> bool:
        """Is it one that the daemon's user may not read, write and enter? False if this user cannot find out.

        The kernel decides: mode bits alone say nothing of access lists, read-only mounts and file servers. For another
        user the way to the folder counts, too, so that one is asked by the folder's name. Nothing is done in it.
        """
        if self.owner.uid == self.user.uid:
            return not os.access(folder.watchable, os.R_OK | os.W_OK | os.X_OK, effective_ids=True)
        if self.user.uid != 0:
            return False
        owner = self.owner
        answer = subprocess.run(
            ["/bin/sh", "-c", _IS_OPEN, "sh", folder.where],
            user=owner.uid,
            group=owner.gid,
            extra_groups=os.getgrouplist(owner.name, owner.gid) if owner.name else [],
            cwd="/",
            capture_output=True,
            timeout=_ACCESS_TIMEOUT_S,
            check=False,
        )
        return answer.returncode != 0


Check: TypeAlias = Callable[[Installation], Finding]


def run_checks(
    checks: Mapping[str, Check], installation: Installation, *, limit_s: float | None = None
) -> Mapping[str, Finding]:
    """The finding of each check, in their order. A check without a result after `limit_s` is a fault."""
    if limit_s is None:
        limit_s = _FULL_LIMIT_S if installation.full else LIMIT_S
    deadline = time.monotonic() + limit_s
    answers: dict[str, SimpleQueue[Finding]] = {name: SimpleQueue() for name in checks}
    for name, check in checks.items():
        # A daemon thread: one that hangs in a dead share must not keep this process alive.
        threading.Thread(target=_answer, args=(check, installation, answers[name]), name=name, daemon=True).start()
    return {name: _within(deadline, answer, limit_s) for name, answer in answers.items()}


def _answer(check: Check, installation: Installation, answer: SimpleQueue[Finding]) -> None:
    answer.put(_guarded(check, installation))


def _guarded(check: Check, installation: Installation) -> Finding:
    try:
        return check(installation)
    except LipsyncdError as error:
        return Finding(Verdict.FAULT, error.message, error.remedy)
    except PermissionError as error:
        # A warning only: the daemon's user may well have the right.
        remedy = f"`{installation.as_owner} lipsyncd doctor` checks with the daemon's rights"
        return Finding(Verdict.WARNING, f"{error.filename}: not readable for you", remedy)
    except OSError as error:
        return Finding(Verdict.FAULT, str(error), "look into the kernel's log (`dmesg`) and the file system's")
    except Exception as error:
        fault = f"{type(error).__name__}: {error}".splitlines()[0]
        return Finding(Verdict.FAULT, fault, "this is a bug in the check: report it")


def _within(deadline: float, answer: SimpleQueue[Finding], limit_s: float) -> Finding:
    try:
        return answer.get(timeout=max(0.0, deadline - time.monotonic()))
    except Empty:
        remedy = "something hangs, most likely a file server: see `dmesg` and `mount`"
        return Finding(Verdict.FAULT, f"no answer within {limit_s:g} s", remedy)


def _user(uid: int, gid: int) -> User:
    try:
        return User(uid, gid, pwd.getpwuid(uid).pw_name)
    except KeyError:  # in a container a user may be a number without a name
        return User(uid, gid, str(uid))
