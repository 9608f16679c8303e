"""Named places where a test may end the process, as a power cut would.

`LIPSYNCD_FAIL=name` kills this process with SIGKILL the first time that it reaches `name`; `name:3` the third time.
Without the variable a failpoint costs one comparison. `tests/kits/faults/crash_kit.py` finds the names that exist.
"""

from __future__ import annotations

import os

_armed, _left = "", 1


def arm(where: str) -> None:
    """End this process at `where`, written as in the variable; an empty text disarms."""
    global _armed, _left
    _armed, _, count = where.partition(":")
    _left = int(count) if count.isdigit() else 1


def reach(name: str) -> None:
    """The work has come this far."""
    if name == _armed:
        _die_when_due()


def _die_when_due() -> None:
    global _left
    _left -= 1
    if _left <= 0:
        import signal

        os.kill(os.getpid(), signal.SIGKILL)


arm(os.environ.get("LIPSYNCD_FAIL", ""))
