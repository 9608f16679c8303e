"""What all decoders share: the files that a jailed process fills, and what its failure means.

Nothing else in lipsyncd opens a user's picture or sound with a decoder. The jailed process gets one file to read, and
its output files already made: a decoder that hostile bytes have taken over reaches nothing else, and its output is
checked before anything uses it.

Leaves the jail itself to `sandbox`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from lipsyncd.errors import InputError, JailFailed
from lipsyncd.extras import how_to_install_package
from lipsyncd.log import printable
from lipsyncd.processes import exit_text, last_line
from lipsyncd.sandbox.jail import Completed

_LONGEST_MESSAGE = 200  # characters


def interpreter() -> str:
    """The real Python: that of a virtual environment would look for the environment's own files first."""
    return str(getattr(sys, "_base_executable", "") or sys.executable)


def installed(module: str, *beside: str, package: str) -> tuple[Path, list[Path]]:
    """The folder of an installed module, and what the jail has to read there. Raises `JailFailed` without it."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise JailFailed(f"{package} is not installed", remedy=how_to_install_package(package))
    site = Path(found.origin).resolve().parent.parent
    return site, [site / module, *(path for pattern in beside for path in site.glob(pattern))]


@contextlib.contextmanager
def new_files(*targets: Path) -> Iterator[tuple[Path, ...]]:
    """Empty files for the jail to fill, private to this user; removed again when the decode fails.

    Made here, so that the jailed process needs no right to make any.
    """
    try:
        for target in targets:
            target.unlink(missing_ok=True)
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        yield targets
    except BaseException:
        for target in targets:
            with contextlib.suppress(OSError):
                os.truncate(target, 0)  # the jailed process may hold the file, and its room, a moment longer
            target.unlink(missing_ok=True)
        raise


def crash(ended: Completed, undecodable: type[InputError], what: str) -> InputError | JailFailed:
    """The error for a decoder that ended without an answer: the file's fault, or the machine's."""
    if ended.returncode == -signal.SIGKILL:
        return JailFailed(f"the {what}'s decoder was killed from outside, perhaps for want of memory")
    if ended.returncode < 0:
        return undecodable(f"the {what}'s decoder crashed on it: it {exit_text(ended.returncode)}")
    return JailFailed(f"the {what}'s decoder does not run: {as_message(last_line(ended.stderr_tail)) or 'no message'}")


# Lines that are no complaint: repetitions, clocks that begin anew where sounds are joined, and streams that no job
# uses, which no listed codec may decode.
_HARMLESS = re.compile(r"Last message repeated|non monotonically increasing dts|Codec \(\w+\) not on whitelist")
_SOURCE = re.compile(r"^(\[[^\]]*\]\s*)+")  # [wav @ 0x55d0c8a0b2c0]


def complaint(stderr: str) -> str:
    """The first thing that ffmpeg complained about, which is the cause; what follows are consequences."""
    for line in stderr.splitlines():
        text = _SOURCE.sub("", line).strip()
        if text and not _HARMLESS.search(line):
            return as_message(text)
    return ""


def as_message(text: str) -> str:
    """A decoder's text for a message: printable, and of a bounded length."""
    return printable(text)[:_LONGEST_MESSAGE]
