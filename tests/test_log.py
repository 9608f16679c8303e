"""One event is one line, whatever text a user puts into it, in the format that fits the output."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import threading
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipsyncd.log import printable, setup

log = logging.getLogger("lipsyncd.test")
FORGED = "a.png\n<0>2026-01-01 00:00:00.000 error    all is lost\x1b[2J\r\u2028\u202eend"


@pytest.fixture
def lines_of(tmp_path):
    """A function that runs `act` under `setup` with these options, and returns the lines written to a real file."""
    root, ours = logging.getLogger(), logging.getLogger("lipsyncd")
    before = (root.level, ours.level, root.handlers[:])
    hooks = (sys.excepthook, threading.excepthook)

    def run(act, **options) -> list[str]:
        with open(tmp_path / "log", "w+", encoding="utf-8") as stream:
            if options.pop("journal", False):
                info = os.fstat(stream.fileno())
                options["environ"] = {"JOURNAL_STREAM": f"{info.st_dev}:{info.st_ino}"}
            setup(stream=stream, **options)
            act()
            stream.seek(0)
            return stream.read().split("\n")[:-1]

    yield run
    root.handlers[:] = before[2]
    root.setLevel(before[0])
    ours.setLevel(before[1])
    logging.captureWarnings(False)
    sys.excepthook, threading.excepthook = hooks


def crash() -> None:
    """Log an error whose text contains a line break."""
    try:
        raise ValueError(FORGED)
    except ValueError:
        log.exception("job %s failed", "7")


def test_a_text_line_has_time_level_and_message(lines_of):
    [line] = lines_of(lambda: log.warning("job %s failed, next in %d s", "7", 30), format="text")

    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} warning  job 7 failed, next in 30 s", line)


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_hostile_name_makes_one_line_and_no_control_characters(lines_of, format):
    [line] = lines_of(lambda: log.info("accepted %s", FORGED), format=format)

    assert line.isprintable()
    assert line.count("all is lost") == 1


def test_a_hostile_name_in_the_journal_cannot_choose_its_own_priority(lines_of):
    [line] = lines_of(lambda: log.info("accepted %s", FORGED), journal=True)

    assert line.startswith("<6>accepted a.png\\n<0>")
    assert line.isprintable()


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3), (logging.CRITICAL, 2)],
)
def test_the_journal_gets_a_priority_and_no_time(lines_of, level, priority):
    assert lines_of(lambda: log.log(level, "hello"), journal=True, level="debug") == [f"<{priority}>hello"]


def test_every_line_of_a_traceback_in_the_journal_carries_the_priority(lines_of):
    lines = lines_of(crash, journal=True)

    assert len(lines) > 3
    assert all(line.startswith("<3>") for line in lines)


def test_in_text_no_line_of_a_traceback_looks_like_an_event(lines_of):
    head, *rest = lines_of(crash, format="text")

    assert head.endswith("job 7 failed")
    assert any("ValueError" in line for line in rest)
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


def test_a_json_line_holds_the_event_its_extras_and_its_traceback(lines_of):
    def act() -> None:
        log.info("job done", extra={"job_id": "7", "duration_s": 1.5, "stage": "a\nb", "late": float("nan"), "ts": "x"})
        crash()

    plain, crashed = map(json.loads, lines_of(act, format="json"))

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", plain.pop("ts"))
    assert plain == {
        "level": "info",
        "event": "job done",
        "logger": "lipsyncd.test",
        "job_id": "7",
        "duration_s": 1.5,
        "stage": "a\\nb",
        "late": "nan",
    }
    assert crashed["event"] == "job 7 failed"
    assert crashed["traceback"].startswith("Traceback")
    assert "ValueError: a.png" in crashed["traceback"]


def test_a_json_line_names_the_job_and_is_not_misled_by_file_names(lines_of):
    def act() -> None:
        log.info("job %s accepted: %s", "0190-7", "anna")
        log.info("intake: %s repeats job %s, which is accepted already", "job 666", "0190-8")
        log.info("intake: %s waits", "job 666")
        log.info("100 %% of job %s", "0190-9")

    assert [json.loads(line).get("job_id") for line in lines_of(act, format="json")] == [
        "0190-7",
        "0190-8",
        None,
        "0190-9",
    ]


def test_an_uncaught_exception_is_one_line(tmp_path):
    program = """
import threading, lipsyncd.log
lipsyncd.log.setup(format="json")
def fall(): raise ValueError("one\\ntwo")
thread = threading.Thread(target=fall, name="worker-cpu")
thread.start()
thread.join()
fall()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    thread, main = map(json.loads, done.stderr.splitlines())
    assert (thread["event"], main["event"]) == (
        "unexpected end of thread worker-cpu: ValueError",
        "unexpected end: ValueError",
    )
    assert thread["level"] == main["level"] == "critical"
    assert "ValueError: one" in main["traceback"]


def test_output_that_does_not_go_to_the_inherited_journal_is_text(lines_of):
    [line] = lines_of(lambda: log.info("hello"), environ={"JOURNAL_STREAM": "1:1"})

    assert line.endswith("info     hello")


def test_a_daemon_under_the_journal_adds_priorities_by_default(tmp_path):
    with open(tmp_path / "log", "w+") as stream:
        info = os.fstat(stream.fileno())
        environ = {**os.environ, "JOURNAL_STREAM": f"{info.st_dev}:{info.st_ino}"}
        program = "import logging, lipsyncd.log as l; l.setup(); logging.getLogger('lipsyncd').error('late')"
        subprocess.run([sys.executable, "-c", program], stderr=stream, env=environ, check=True, timeout=60)
        stream.seek(0)
        assert stream.read() == "<3>late\n"


def test_the_level_applies_to_us_and_other_libraries_log_warnings_only(lines_of):
    def act() -> None:
        log.debug("quiet")
        log.info("shown")
        logging.getLogger("aiohttp.access").info("GET /health")
        logging.getLogger("aiohttp.access").warning("slow client")

    assert [line[33:] for line in lines_of(act)] == ["shown", "slow client"]
    assert len(lines_of(act, level="debug")) == 4
    assert len(lines_of(act, level="error")) == 0


def test_a_warning_of_the_interpreter_is_logged(lines_of):
    [line] = lines_of(lambda: warnings.warn("old habits", DeprecationWarning, stacklevel=1), format="text")

    assert "DeprecationWarning: old habits" in line


def test_a_second_setup_does_not_log_everything_twice(lines_of):
    def act() -> None:
        [ours] = [handler for handler in logging.getLogger().handlers if type(handler).__module__ == "lipsyncd.log"]
        setup(stream=ours.stream)
        log.info("once")

    assert len(lines_of(act)) == 1


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a b.png", "a b.png"),
        ("日本.png", "日本.png"),
        ("a\nb", "a\\nb"),
        (b"caf\xe9.png", "caf\\xe9.png"),
        (os.fsdecode(b"caf\xe9.png"), "caf\\xe9.png"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\ud800", "\\ud800"),
    ],
)
def test_an_odd_file_name_is_escaped(name, shown):
    assert printable(name) == shown


@given(st.binary(max_size=80) | st.text(st.characters(exclude_categories=()), max_size=40))
def test_any_name_becomes_one_printable_line(name):
    line = printable(name)

    assert line.isprintable()
    assert printable(line) == line
    assert line.encode().decode() == line


def test_a_warning_that_comes_back_at_once_is_counted_and_not_written_each_time(lines_of):
    """Others, and lines that are no warning, are not held up by it. Each record carries its own time."""

    def write(at_s: float, level: int, text: str, *arguments: object) -> None:
        record = log.makeRecord(log.name, level, __file__, 1, text, arguments, None)
        record.created = at_s
        log.handle(record)

    def storm() -> None:
        full = (logging.WARNING, "cannot accept: %s", "too many open files")
        for number in range(10_000):
            write(1_000_000.0, *full)
            if number % 1000 == 0:
                write(1_000_000.0, logging.WARNING, "job %s waits", number)
                write(1_000_000.0, logging.INFO, "the same")
        write(1_000_061.0, *full)
        write(1_000_061.0, *full)

    lines = [line.split("  ", 1)[1] for line in lines_of(storm, format="text")]
    assert lines.count("cannot accept: too many open files") == 5 + 1
    assert lines.count("cannot accept: too many open files (and 9995 times more within a minute)") == 1
    assert sum("waits" in line for line in lines) == 10
    assert sum("the same" in line for line in lines) == 10
    assert len(lines) == 27


def test_many_different_warnings_are_all_written(lines_of):
    def act() -> None:
        for number in range(3000):
            log.warning("file %d cannot be read", number)

    assert len(lines_of(act, format="text")) == 3000
