"""The daemon's log: one event, one line, on standard error.

Text on a terminal, lines with a priority for the journal, or JSON objects. Text that comes from users (file names, the
text of errors) is escaped, so that it cannot forge a line or send control characters to a terminal.

Owns the root logger's handler. Each module decides what it logs, and at which level.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import IO, Any

log = logging.getLogger(__name__)

_PRIORITY = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}  # sd-daemon(3)
_MOST_REPEATED = 5
_REPEATED_WITHIN_S = 60.0
_MOST_LINES = 500  # that are remembered
_ABOUT_A_JOB = re.compile(r"\bjob %s")
_PLACEHOLDER = re.compile(r"%%|%[-\d.]*[a-z]")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def setup(
    level: str = "info",
    format: str = "auto",
    stream: IO[str] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Write events of `level` and above to `stream` (standard error). A second call replaces the handler of the first.

    level    "debug", "info", "warning" or "error"; other libraries log from warning on, or everything at debug
    format   "text", "json", or "auto": with priorities if the stream leads to the journal, else text
    """
    stream = sys.stderr if stream is None else stream
    shape: logging.Formatter
    if format == "json":
        shape = JsonLines()
    elif format == "auto" and _leads_to_journal(stream, environ):
        shape = JournalLines()
    else:
        shape = TextLines()
    handler = _Handler(stream)
    handler.setFormatter(shape)
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    wanted = getattr(logging, level.upper())
    root.setLevel(wanted if wanted == logging.DEBUG else max(wanted, logging.WARNING))
    logging.getLogger("lipsyncd").setLevel(wanted)
    logging.captureWarnings(True)
    sys.excepthook = _crashed
    threading.excepthook = _thread_crashed


def _crashed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Log an uncaught exception, which ends the process."""
    if not issubclass(kind, KeyboardInterrupt):
        log.critical("unexpected end: %s", kind.__name__, exc_info=(kind, error, trace))


def _thread_crashed(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not issubclass(args.exc_type, SystemExit):
        name = args.thread.name if args.thread else "?"
        about = (args.exc_type, args.exc_value, args.exc_traceback)
        log.critical("unexpected end of thread %s: %s", name, args.exc_type.__name__, exc_info=about)


def printable(name: bytes | str) -> str:
    """A name or a message as one line without control characters: unprintable characters are escaped.

    Bytes that are not UTF-8 become `\\xff`, also if `os.fsdecode` has turned them into surrogates.
    """
    text = os.fsdecode(name)
    return text if text.isprintable() else "".join(map(_escape, text))


def _escape(char: str) -> str:
    if char.isprintable():
        return char
    if "\udc80" <= char <= "\udcff":  # a byte that was not UTF-8
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


class _Handler(logging.StreamHandler[IO[str]]):
    """Our handler, a class of its own so that a second `setup` replaces it and no other."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__(stream)
        self._repeated = _Repeated()

    def emit(self, record: logging.LogRecord) -> None:
        shown = self._repeated.shown(record)
        if shown is not None:
            super().emit(shown)


class _Repeated:
    """Drops a warning that was logged five times within a minute; the first one afterwards has the number of them.

    A fault that comes back at once, such as a machine without descriptors, must not fill the disk with its log.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int, str], tuple[float, int]] = {}  # a line -> when it came first, and how often

    def shown(self, record: logging.LogRecord) -> logging.LogRecord | None:
        """The record, perhaps with a note; None when it is dropped."""
        if record.levelno < logging.WARNING:
            return record
        cause = record.exc_info[1] if record.exc_info else None
        line, now_s = (record.name, record.levelno, f"{record.msg!r} {record.args!r} {cause!r}"), record.created
        first_s, count = self._seen.get(line, (now_s, 0))
        if 0 <= now_s - first_s < _REPEATED_WITHIN_S:
            self._seen[line] = (first_s, count + 1)
            self._bound(now_s)
            return record if count < _MOST_REPEATED else None
        self._seen[line] = (now_s, 1)
        dropped = count - _MOST_REPEATED
        return _with_note(record, f" (and {dropped} times more within a minute)") if dropped > 0 else record

    def _bound(self, now_s: float) -> None:
        """Forget what is old, and everything when that does not help: then a line is only counted anew."""
        if len(self._seen) > _MOST_LINES:
            self._seen = {line: seen for line, seen in self._seen.items() if now_s - seen[0] < _REPEATED_WITHIN_S}
            if len(self._seen) > _MOST_LINES:
                self._seen.clear()


def _with_note(record: logging.LogRecord, note: str) -> logging.LogRecord:
    """A copy with a note behind its message; its arguments stay, since one may be a job's id."""
    copied = copy.copy(record)
    copied.msg = f"{record.msg}{note}"
    return copied


class TextLines(logging.Formatter):
    """`2026-11-22 16:24:00.123 warning  the outbox is not mounted`, in local time; a traceback follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        head = f"{clock}.{int(record.msecs):03d} {record.levelname.lower():<8} {printable(record.getMessage())}"
        return "\n".join([head, *("    " + line for line in _traceback(self, record))])


class JournalLines(logging.Formatter):
    """`<4>the outbox is not mounted`: the journal adds the time. Each line of a traceback carries the priority too."""

    def format(self, record: logging.LogRecord) -> str:
        mark = f"<{_PRIORITY.get(record.levelno, 6)}>"
        lines = [printable(record.getMessage()), *("    " + line for line in _traceback(self, record))]
        return "\n".join(mark + line for line in lines)


class JsonLines(logging.Formatter):
    """One object per line: ts (UTC), level, event, logger; where they exist job_id, traceback and fields of `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: dict[str, Any] = {
            "ts": f"{clock}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": printable(record.getMessage()),
            "logger": record.name,
        }
        if job_id := _job_of(record):
            fields["job_id"] = job_id
        if lines := _traceback(self, record):
            fields["traceback"] = "\n".join(lines)
        extra = {key: _plain(value) for key, value in vars(record).items() if key not in {*_STANDARD, *fields}}
        return json.dumps({**fields, **extra}, ensure_ascii=False)


def _job_of(record: logging.LogRecord) -> str:
    """The argument for %s in "job %s", "" if there is none. Not searched in the final text, which may hold a user's."""
    format = record.msg if isinstance(record.msg, str) else ""
    at = _ABOUT_A_JOB.search(format)
    place = sum(found != "%%" for found in _PLACEHOLDER.findall(format, 0, at.start())) if at else 0
    found = record.args[place] if at and isinstance(record.args, tuple) and place < len(record.args) else ""
    return printable(str(found))


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    """The lines of the record's traceback and stack, each made printable: an error's text may contain line breaks."""
    parts = []
    if record.exc_info:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(record.stack_info)
    return [printable(line) for part in parts for line in part.split("\n")]


def _plain(value: object) -> object:
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return printable(str(value))


def _leads_to_journal(stream: IO[str], environ: Mapping[str, str]) -> bool:
    """Is the stream the journal's socket? systemd gives its device and inode, so redirected output does not match.

    Source: systemd.exec(5), $JOURNAL_STREAM.
    """
    try:
        info = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return False  # a buffer, or a closed stream
    return environ.get("JOURNAL_STREAM") == f"{info.st_dev}:{info.st_ino}"
