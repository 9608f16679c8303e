"""Run a jailed speaker and read the lines that it prints, until it ends, is no longer wanted, or falls silent.

Each line is one JSON object. The speaker may have been taken over by the file of a voice, so lines are bounded, and
their content is checked by the caller.

Owns the clocks. Leaves the jail to `sandbox`.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lipsyncd.errors import SpeechFailed
from lipsyncd.sandbox.jail import JailedProcess, ResourceLimits, end, popen_jailed

Line = Mapping[str, Any]

_LOOK_S = 0.1  # how soon a speaker ends that is no longer wanted
_MOST_STDOUT_BYTES = 4 << 20
_STDERR_BYTES = 1 << 14
_BLOCK_BYTES = 1 << 16


class SpeakingStopped(Exception):
    """The text is not wanted any more: its job was cancelled, or the daemon stops."""


@dataclass(frozen=True)
class Ended:
    """How a speaker ended: its status as in `subprocess`, and the end of what it wrote to stderr."""

    returncode: int
    stderr_tail: str


@dataclass
class _Output:
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    taken: int = 0


def follow(
    argv: Sequence[str],
    *,
    readable: Sequence[Path],
    writable: Sequence[Path] = (),
    python_path: Sequence[Path],
    limits: ResourceLimits,
    stdin: IO[bytes],
    silence_s: float,
    longest_s: float,
    on_line: Callable[[Line], None],
    unwanted: Callable[[], bool] = lambda: False,
) -> Ended:
    """Run a speaker to its end and give each line of its stdout to `on_line`.

    silence_s  the longest time without a line
    longest_s  the longest time of all
    unwanted   asked every tenth of a second: True ends the speaker

    The process does not outlive the call. Raises `SpeakingStopped`, `SpeechFailed` when a time is over or a line is
    none, `JailFailed`, and whatever `on_line` raises.
    """
    process = popen_jailed(
        argv,
        readable=readable,
        writable=writable,
        python_path=python_path,
        limits=limits,
        stdin=stdin,
        stdout=subprocess.PIPE,
    )
    try:
        stderr = _follow(process, silence_s, longest_s, on_line, unwanted)
    finally:
        end(process)
    return Ended(process.returncode, stderr)


def _follow(
    process: JailedProcess,
    silence_s: float,
    longest_s: float,
    on_line: Callable[[Line], None],
    unwanted: Callable[[], bool],
) -> str:
    assert process.stdout is not None
    assert process.stderr is not None
    output, started = _Output(), time.monotonic()
    heard = started
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, output.stdout)
        selector.register(process.stderr, selectors.EVENT_READ, output.stderr)
        while selector.get_map() or not _has_ended(process):
            if unwanted():
                raise SpeakingStopped
            now = time.monotonic()
            if now - heard > silence_s:
                raise SpeechFailed(f"speaking a sentence took longer than {silence_s:g} s")
            if now - started > longest_s:
                raise SpeechFailed(f"speaking the text took longer than {longest_s:g} s")
            for key, _ in selector.select(_LOOK_S) if selector.get_map() else ():
                _read(selector, key, output)
            for line in _lines(output.stdout):
                heard = time.monotonic()
                on_line(line)
            if not selector.get_map():
                time.sleep(_LOOK_S / 10)
    return output.stderr.decode(errors="replace")


def _read(selector: selectors.BaseSelector, key: selectors.SelectorKey, output: _Output) -> None:
    block = os.read(key.fd, _BLOCK_BYTES)
    if not block:
        selector.unregister(key.fileobj)
    key.data.extend(block)
    del output.stderr[:-_STDERR_BYTES]
    output.taken += len(block)
    if output.taken > _MOST_STDOUT_BYTES:
        raise SpeechFailed("the speaker writes without end")


def _has_ended(process: JailedProcess) -> bool:
    """Reaps nothing: `end` kills the group by a number that is ours only until then."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _lines(buffer: bytearray) -> list[Line]:
    """Take the whole lines out of a buffer."""
    *whole, rest = bytes(buffer).split(b"\n")
    buffer[:] = rest
    lines = list[Line]()
    for text in whole:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict):
            raise SpeechFailed("the speaker wrote a line that is no answer")
        lines.append(line)
    return lines
