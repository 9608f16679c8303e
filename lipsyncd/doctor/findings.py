"""What a check found, and the running of all checks: at once, and each for a limited time.

A dead file server holds whoever asks for minutes. So each check has a thread of its own, and one that does not come
back is a finding like any other.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeAlias

from lipsyncd.errors import LipsyncdError
from lipsyncd.settings import Settings
from lipsyncd.storage.folders import Folders, folders_of

LIMIT_S = 10.0  # for all checks together
_FULL_LIMIT_S = 3600.0
_ACCESS_TIMEOUT_S = 5.0
# Run as the service's user: names, NUL after each, what it may not read, write and enter.
_MAY_NOT = 'for f; do test -r "$f" && test -w "$f" && test -x "$f" || printf "%s\\0" "$f"; done'


class Verdict(StrEnum):
    """How it stands with one thing, from best to worst. The worst of all decides the exit status."""

    OK = "ok"
    NOTE = "note"  # good to know
    WARNING = "warning"  # works, and will not for ever, or less well than it could
    FAULT = "fault"  # jobs wait or fail until somebody does something

    @property
    def severity(self) -> int:
        return list(Verdict).index(self)

    @property
    def exit_status(self) -> int:
        """0, 1 or 2, which is also what plugins of Nagios and its relatives end with."""
        return max(0, self.severity - 1)


@dataclass(frozen=True)
class Finding:
    """What one check saw, in one line, and what to do about it."""

    verdict: Verdict
    seen: str
    remedy: str = ""


@dataclass(frozen=True)
class Report:
    """All findings by the names of their checks, in the order in which they are told."""

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
    """What is looked at: settings, and who works with them.

    full  nothing is taken on trust, however long that takes
    """

    settings: Settings
    full: bool = False
    folders: Folders = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folders", folders_of(self.settings.paths))

    @cached_property
    def user(self) -> User:
        """Whoever runs this."""
        return _user(os.geteuid(), os.getegid())

    @cached_property
    def owner(self) -> User:
        """The daemon's user: whose the state folder is. Before there is one, whoever runs this."""
        try:
            info = self.folders.state.stat()
        except OSError:
            return self.user
        return _user(info.st_uid, info.st_gid)

    @property
    def as_owner(self) -> str:
        """What comes before a command to see what the daemon sees."""
        return "sudo" if self.owner.uid in (0, self.user.uid) else f"sudo -u {self.owner.name}"

    def closed(self, folders: Sequence[Path]) -> list[Path]:
        """Those that the daemon's user may not read, write and enter. Who is neither that user nor root cannot tell.

        Asked of the kernel, not read from modes: of access lists, read-only mounts and file servers those know nothing.
        """
        if self.owner.uid == self.user.uid:
            wanted = os.R_OK | os.W_OK | os.X_OK
            return [folder for folder in folders if not os.access(folder, wanted, effective_ids=True)]
        if self.user.uid != 0:
            return []
        owner = self.owner
        answer = subprocess.run(
            ["/bin/sh", "-c", _MAY_NOT, "sh", *folders],
            user=owner.uid,
            group=owner.gid,
            extra_groups=os.getgrouplist(owner.name, owner.gid) if owner.name else [],
            cwd="/",
            capture_output=True,
            timeout=_ACCESS_TIMEOUT_S,
            check=True,
        )
        return [Path(os.fsdecode(name)) for name in answer.stdout.split(b"\0") if name]


Check: TypeAlias = Callable[[Installation], Finding]


def run_checks(
    checks: Mapping[str, Check], installation: Installation, *, limit_s: float | None = None
) -> Mapping[str, Finding]:
    """What each check finds, in their order. One that does not come back within `limit_s` is a fault."""
    if limit_s is None:
        limit_s = _FULL_LIMIT_S if installation.full else LIMIT_S
    deadline = time.monotonic() + limit_s
    answers: dict[str, SimpleQueue[Finding]] = {name: SimpleQueue() for name in checks}
    for name, check in checks.items():
        # Not waited for at the end: a thread that hangs in a dead share must not keep this process.
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
        # Says nothing about the daemon, whose user may look there.
        remedy = f"`{installation.as_owner} lipsyncd doctor` sees more"
        return Finding(Verdict.WARNING, f"{error.filename}: you may not look there", remedy)
    except OSError as error:
        return Finding(Verdict.FAULT, str(error), "see the kernel's log (`dmesg`) and the file system's")
    except Exception as error:
        fault = f"{type(error).__name__}: {error}".splitlines()[0]
        return Finding(Verdict.FAULT, fault, "this check itself is at fault: report it")


def _within(deadline: float, answer: SimpleQueue[Finding], limit_s: float) -> Finding:
    try:
        return answer.get(timeout=max(0.0, deadline - time.monotonic()))
    except Empty:
        remedy = "something there hangs, a file server most likely: see `dmesg` and `mount`"
        return Finding(Verdict.FAULT, f"no answer within {limit_s:g} s", remedy)


def _user(uid: int, gid: int) -> User:
    try:
        return User(uid, gid, pwd.getpwuid(uid).pw_name)
    except KeyError:  # containers run as numbers without a name
        return User(uid, gid, str(uid))
