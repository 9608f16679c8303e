"""Processes that outlive the thread that asked for them, and go with the program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from lipsyncd.sandbox.lasting_thread import in_lasting_thread

# A process that the kernel kills when the thread that started it ends.
BOUND = "import ctypes, time; ctypes.CDLL(None).prctl(1, 9); print('bound', flush=True); time.sleep(60)"


def bound() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", BOUND], stdout=subprocess.PIPE)


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def started_in_a_thread_that_ends(*, lasting: bool) -> subprocess.Popen[bytes]:
    made: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        made.append(in_lasting_thread(bound, undo=end) if lasting else bound())
        assert made[0].stdout is not None
        assert made[0].stdout.readline() == b"bound\n"

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    return made[0]


def test_a_process_outlives_the_thread_that_asked_for_it() -> None:
    mortal, lasting = (started_in_a_thread_that_ends(lasting=lasting) for lasting in (False, True))
    try:
        assert mortal.wait(10) == -signal.SIGKILL  # so the kernel does what this guards against
        assert lasting.poll() is None
    finally:
        end(mortal)
        end(lasting)


def test_errors_come_back_and_the_thread_goes_on() -> None:
    with pytest.raises(FileNotFoundError):
        in_lasting_thread(lambda: os.stat("/nonexistent"), undo=lambda _: None)
    assert in_lasting_thread(lambda: 5, undo=lambda _: None) == 5


def test_an_interrupted_call_undoes_what_it_made() -> None:
    undone = threading.Event()
    begun = threading.Event()

    def slow() -> int:
        begun.set()
        time.sleep(0.3)
        return 7

    def interrupt() -> None:
        begun.wait()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        in_lasting_thread(slow, undo=lambda made: undone.set() if made == 7 else None)
    assert undone.wait(5)


def test_a_fork_starts_a_thread_of_its_own() -> None:
    assert in_lasting_thread(threading.get_native_id, undo=lambda _: None) != threading.get_native_id()
    pid = os.fork()
    if not pid:
        os._exit(int(in_lasting_thread(lambda: 3, undo=lambda _: None)))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
