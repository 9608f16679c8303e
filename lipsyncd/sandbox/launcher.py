"""Restrict this process, then become the jailed program.

    python -m lipsyncd.sandbox.launcher REQUEST

`jail` starts it with REQUEST, a JSON object, in a process of its own. A fresh process can set its limits step by step;
between fork and exec of a daemon with threads (`preexec_fn`) that is not safe.

Owns the order of the restrictions. Leaves the content of REQUEST to `jail`. Imports almost nothing, since every decode
waits for it.
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

from lipsyncd.sandbox import landlock, seccomp

TYPE_CHECKING = False  # as in `typing`, which takes 4 ms to import
if TYPE_CHECKING:
    from typing import Any

_SET_PARENT_DEATH_SIGNAL, _SET_NO_NEW_PRIVILEGES, _SET_WRITE_OR_EXECUTE = 1, 38, 65
_REFUSE_GAINED_EXECUTE = 1


def main(request: dict[str, Any]) -> None:
    """Apply all restrictions and exec `request["argv"]`. Never returns.

    Writes `{"landlock": ABI}` to the descriptor `request["report"]` after the last restriction, or `{"error": text}`
    when a restriction or the exec fails. The descriptor closes by itself once the program runs.
    """
    report = request["report"]
    try:
        os.set_inheritable(report, False)
        _set_parent_death_signal(request["parent"])
        os.umask(0o077)
        _reset_signals()
        _set_limits(request["limits"])
        _write(report, landlock=_restrict(request))
        os.execv(request["argv"][0], request["argv"])
    except OSError as error:
        _write(report, error=str(error))
        os._exit(127)


def _write(report: int, **facts: object) -> None:
    os.write(report, json.dumps(facts).encode() + b"\n")


def _set_parent_death_signal(parent: int) -> None:
    _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(127)


def _reset_signals() -> None:
    """Undo what the program would inherit: Python ignores two signals, and a thread of the daemon may block some."""
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


def _restrict(request: dict[str, Any]) -> int:
    _prctl(_SET_NO_NEW_PRIVILEGES, 1)
    if request["limits"]["write_or_execute"]:
        with contextlib.suppress(OSError):  # a kernel before 6.3; the other restrictions work without it
            _prctl(_SET_WRITE_OR_EXECUTE, _REFUSE_GAINED_EXECUTE)
    rules = [(path, landlock.RUN) for path in request["programs"]]
    rules += [(path, landlock.LIST) for path in request["listable"]]
    rules += [(path, landlock.READ) for path in request["readable"]]
    rules += [(path, landlock.WRITE) for path in request["writable"]]
    rules += [(path, landlock.CONTROL) for path in request["devices"]]
    abi = landlock.restrict(rules)
    with contextlib.suppress(OSError):  # a kernel without seccomp filters
        seccomp.restrict(memory_files=request["limits"]["memory_files"])
    return abi


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), zero, zero, zero):
        code = ctypes.get_errno()
        raise OSError(code, f"prctl {option}: {os.strerror(code)}")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
