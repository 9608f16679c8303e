"""Lock this process in, then become another program: the inside of the jail's door.

    python -m lipsyncd.sandbox.launcher REQUEST

`jail` starts it with REQUEST, a JSON object, in a process of its own. A fresh program may set its limits one after the
other; between fork and exec of a daemon with threads (`preexec_fn`) it could not do so safely.

Owns the order in which the walls go up. Leaves what goes into REQUEST to `jail`. Imports almost nothing: this is paid
for each decode.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from typing import Any

from lipsyncd.sandbox import landlock, seccomp

_SET_PARENT_DEATH_SIGNAL, _SET_NO_NEW_PRIVILEGES, _SET_WRITE_OR_EXECUTE = 1, 38, 65
_REFUSE_GAINED_EXECUTE = 1


def main(request: dict[str, Any]) -> None:
    """Put up the walls and exec `request["argv"]`. Returns never.

    Says `{"landlock": ABI}` on the descriptor `request["report"]` after the last wall, and `{"error": text}` when one
    of them or the program fails. The descriptor closes by itself once the program runs.
    """
    report = request["report"]
    try:
        os.set_inheritable(report, False)
        _die_with(request["parent"])
        os.umask(0o077)
        _forget_signals()
        _set_limits(request["limits"])
        _tell(report, landlock=_lock_in(request))
        os.execv(request["argv"][0], request["argv"])
    except OSError as error:
        _tell(report, error=str(error))
        os._exit(127)


def _tell(report: int, **said: object) -> None:
    os.write(report, json.dumps(said).encode() + b"\n")


def _die_with(parent: int) -> None:
    _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(127)


def _forget_signals() -> None:
    """Undo what a program inherits: Python ignores two signals, and a thread of the daemon may block some."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _set_limits(limits: Mapping[str, int]) -> None:
    _limit(resource.RLIMIT_CPU, limits["cpu_s"])
    _limit(resource.RLIMIT_FSIZE, limits["file_bytes"])
    _limit(resource.RLIMIT_AS, limits["memory_bytes"])
    _limit(resource.RLIMIT_NOFILE, limits["open_files"])
    _limit(resource.RLIMIT_CORE, 0)


def _limit(which: int, wanted: int) -> None:
    _, hard = resource.getrlimit(which)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(which, (allowed, allowed))


def _lock_in(request: dict[str, Any]) -> int:
    _prctl(_SET_NO_NEW_PRIVILEGES, 1)
    if request["limits"]["write_or_execute"]:
        with contextlib.suppress(OSError):  # a kernel before 6.3; the other walls stand without it
            _prctl(_SET_WRITE_OR_EXECUTE, _REFUSE_GAINED_EXECUTE)
    rules = [(path, landlock.RUN) for path in request["programs"]]
    rules += [(path, landlock.LIST) for path in request["listable"]]
    rules += [(path, landlock.READ) for path in request["readable"]]
    rules += [(path, landlock.WRITE) for path in request["writable"]]
    abi = landlock.restrict(rules)
    with contextlib.suppress(OSError):  # a kernel without filters
        seccomp.restrict()
    return abi


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), zero, zero, zero):
        code = ctypes.get_errno()
        raise OSError(code, f"prctl {option}: {os.strerror(code)}")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
