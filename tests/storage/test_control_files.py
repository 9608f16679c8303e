"""Asking the daemon by small files, and the lock that says whether there is one."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lipsyncd.errors import AnotherDaemonRuns
from lipsyncd.jobs.job import new_id
from lipsyncd.monitor.held_lock import is_held
from lipsyncd.storage.control_files import ACTIONS, REQUEST, Answer, Request, answer, ask, pending, sweep
from lipsyncd.storage.files import write_json
from lipsyncd.storage.locks import InstanceLock, holder
from tests.kits.core_kit import as_nobody
from tests.kits.installation import ROOT
from tests.kits.machine.users_kit import DAEMON, MEMBER, needs_users
from tests.kits.shared_kit import acting_as, folder_of_daemon


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "control").mkdir()
    return tmp_path / "control"


@contextmanager
def answering(folder: Path, reply: Callable[[Request | None], Answer]) -> Iterator[list[Request | None]]:
    """Answers like the daemon's main thread."""
    seen: list[Request | None] = []
    end = threading.Event()

    def serve() -> None:
        while not end.is_set():
            for name, request in pending(folder):
                seen.append(request)
                answer(folder, name, reply(request))
            time.sleep(0.005)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield seen
    finally:
        end.set()
        thread.join()


# -- requests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ACTIONS)
def test_a_request_is_answered_and_nothing_is_left(folder: Path, action: str) -> None:
    request = Request(action, new_id(), value=-7)
    with answering(folder, lambda r: Answer(True, f"did {r.action if r else '?'}")) as seen:
        assert ask(folder, request, timeout_s=10) == Answer(True, f"did {action}")
    assert seen == [request]
    assert list(folder.iterdir()) == []


def test_without_an_answer_the_request_is_taken_back(folder: Path) -> None:
    started = time.monotonic()
    assert ask(folder, Request("cancel", new_id()), timeout_s=0.2) is None
    assert time.monotonic() - started < 2
    assert list(folder.iterdir()) == []


def test_many_who_ask_at_once_each_get_their_own_answer(folder: Path) -> None:
    answers: dict[str, str | None] = {}

    def one(job_id: str) -> None:
        got = ask(folder, Request("cancel", job_id), timeout_s=20)
        answers[job_id] = None if got is None else got.message

    ids = [new_id() for _ in range(30)]
    with answering(folder, lambda r: Answer(True, r.job_id if r else "")):
        threads = [threading.Thread(target=one, args=(job_id,)) for job_id in ids]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == {job_id: job_id for job_id in ids}
    assert list(folder.iterdir()) == []


def test_requests_are_served_in_the_order_in_which_they_came(folder: Path) -> None:
    ids = []
    for _ in range(5):
        ids.append(new_id())
        time.sleep(0.002)
        write_json(folder / f"{new_id()}.json", {"action": "cancel", "job_id": ids[-1], "value": 0})
        time.sleep(0.002)
    assert [request.job_id for _, request in pending(folder) if request] == ids


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"action": "shutdown", "job_id": "x"}',
        b'{"action": ["cancel"], "job_id": "x"}',
        b'{"action": "cancel"}',
        b'{"action": "cancel", "job_id": 7}',
        b'{"action": "priority", "job_id": "x", "value": "high"}',
        b'{"action": "priority", "job_id": "x", "value": true}',
        b'{"action": "priority", "job_id": "x", "value": 1.5}',
    ],
)
def test_what_is_no_request_is_handed_over_as_none(folder: Path, content: bytes) -> None:
    (folder / "x.json").write_bytes(content)
    [(name, request)] = pending(folder)
    assert request is None
    assert answer(folder, name, Answer(False, "no"))
    assert pending(folder) == []


def test_a_file_that_may_not_be_read_is_no_request_and_no_accident(folder: Path) -> None:
    (folder / "x.json").write_text(json.dumps({"action": "cancel", "job_id": "x"}))
    (folder / "x.json").chmod(0)
    assert as_nobody(lambda: [request for _, request in pending(folder)], folder) == [None]


def bad_request(folder: Path, kind: str) -> None:
    """Something in the folder that is called like a request, older than any real one."""
    path = folder / "0.json"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        (folder.parent / "elsewhere").write_text('{"action": "cancel", "job_id": "x"}')
        path.symlink_to(folder.parent / "elsewhere")
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(5_000_000_000)
    elif kind == "deep":
        path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    elif kind == "closed":
        path.write_text("{}")
        path.chmod(0)
    elif kind == "long":
        path.write_text(json.dumps({"action": "cancel", "job_id": "x" * 100_000}))


@pytest.mark.parametrize("kind", ["fifo", "link", "dangling", "huge", "deep", "closed", "long"])
def test_one_bad_request_is_none_at_once_and_holds_up_no_other(folder: Path, kind: str) -> None:
    bad_request(folder, kind)
    write_json(folder / "1.json", {"action": "cancel", "job_id": "y", "value": 0})
    started = time.monotonic()
    [(bad, none), (good, request)] = pending(folder)
    assert time.monotonic() - started < 2
    assert (bad, none) == ("0.json", None)
    assert request == Request("cancel", "y")
    assert answer(folder, bad, Answer(False, "no request"))
    assert answer(folder, good, Answer(True, ""))
    assert pending(folder) == []
    assert sorted(os.listdir(folder)) == ["0.answer", "1.answer"]
    if kind == "link":
        assert (folder.parent / "elsewhere").exists()


def test_a_folder_that_is_called_like_a_request_is_none(folder: Path) -> None:
    (folder / "0.json").mkdir()
    write_json(folder / "1.json", {"action": "cancel", "job_id": "y", "value": 0})
    assert [name for name, _ in pending(folder)] == ["1.json"]


def test_an_answer_replaces_no_file_behind_a_link(folder: Path) -> None:
    """A member makes the name of the answer a link to a file of the daemon."""
    precious = folder.parent / "precious"
    precious.write_text("precious")
    (folder / "0.answer").symlink_to(precious)
    write_json(folder / "0.json", {"action": "cancel", "job_id": "y", "value": 0})
    assert answer(folder, "0.json", Answer(True, "done"))
    assert precious.read_text() == "precious"
    assert json.loads((folder / "0.answer").read_text())["message"] == "done"


@needs_users
def test_a_request_that_cannot_be_removed_is_carried_out_once_and_left_out(tmp_path: Path) -> None:
    """In a sticky folder of another user: the daemon can answer, and remove nothing that a member wrote."""
    with folder_of_daemon(0o3777) as folder:
        os.chown(folder, 0, 0)
        with acting_as(MEMBER):
            write_json(folder / "0.json", {"action": "cancel", "job_id": "y", "value": 0})
        with acting_as(DAEMON):
            [(name, _)] = pending(folder)
            assert not answer(folder, name, Answer(True, ""))
            assert pending(folder, {name}) == []


def test_many_requests_are_looked_at_in_parts(folder: Path) -> None:
    """A member may leave any number: the main loop does other things in between."""
    for number in range(250):
        (folder / f"{number:03}.json").write_text("{}")
    seen = []
    while found := pending(folder):
        assert len(found) <= 100
        for name, _ in found:
            seen.append(name)
            answer(folder, name, Answer(False, ""))
    assert seen == [f"{number:03}.json" for number in range(250)]


def test_half_written_requests_are_not_looked_at(folder: Path) -> None:
    (folder / f".{new_id()}.json").write_text("{")
    (folder / f".{new_id()}.json.ab12.part").write_text("{")
    assert pending(folder) == []


def test_a_request_whose_answer_cannot_be_written_is_not_carried_out_again(folder: Path) -> None:
    write_json(folder / "x.json", {"action": "republish", "job_id": "x", "value": 0})

    def answer_on_a_full_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        [(name, _)] = pending(folder)
        os._exit(0 if answer(folder, name, Answer(True, "published again")) else 1)

    process = multiprocessing.get_context("fork").Process(target=answer_on_a_full_disk)
    process.start()
    process.join(20)
    assert process.exitcode == 0
    assert list(folder.iterdir()) == []


def test_answers_that_no_client_fetched_are_swept_after_a_while(folder: Path) -> None:
    for name, age_s in (("old", 400), ("new", 10)):
        path = folder / f"{name}.answer"
        path.write_text("{}")
        os.utime(path, (time.time() - age_s,) * 2)
    sweep(folder)
    assert [p.name for p in folder.iterdir()] == ["new.answer"]


# -- the lock ----------------------------------------------------------------------------------------------------------


def test_there_is_one_holder_and_the_second_gets_its_name(tmp_path: Path) -> None:
    first, second = InstanceLock(tmp_path), InstanceLock(tmp_path)
    assert not is_held(tmp_path)
    first.acquire(command="lipsyncd run")
    assert is_held(tmp_path)
    started = time.monotonic()
    with pytest.raises(AnotherDaemonRuns, match=f"lipsyncd run, pid {os.getpid()}") as caught:
        second.acquire(command="lipsyncd cancel")
    assert time.monotonic() - started < 1
    assert caught.value.exit_status == 75
    first.release()
    first.release()
    assert not is_held(tmp_path)
    assert holder(tmp_path) == ""
    second.acquire(command="lipsyncd cancel")
    assert holder(tmp_path).startswith("lipsyncd cancel")
    second.release()


def test_a_refusal_keeps_nothing_open(tmp_path: Path) -> None:
    first, second = InstanceLock(tmp_path), InstanceLock(tmp_path)
    first.acquire(command="lipsyncd run")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(AnotherDaemonRuns):
        second.acquire(command="lipsyncd run")
    assert len(os.listdir("/proc/self/fd")) == before
    first.release()


def test_the_lock_goes_with_its_holder_however_that_ends(tmp_path: Path) -> None:
    program = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from lipsyncd.storage.locks import InstanceLock
lock = InstanceLock(Path({str(tmp_path)!r}))
lock.acquire(command="lipsyncd run")
print(flush=True)
time.sleep(60)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()
        assert is_held(tmp_path)
        assert holder(tmp_path) == f"lipsyncd run, pid {daemon.pid}"
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
    assert not is_held(tmp_path)


def test_a_child_does_not_inherit_it(tmp_path: Path) -> None:
    lock = InstanceLock(tmp_path)
    lock.acquire(command="lipsyncd run")
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        close_fds=False,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        lock.release()
        assert not is_held(tmp_path)
        child.stdin.close()


def test_a_look_at_the_lock_never_makes_a_start_fail(tmp_path: Path) -> None:
    """`lipsyncd status` looks by trying the lock: for that moment it has it."""
    InstanceLock(tmp_path).release()
    end, looks = threading.Event(), [0]

    def look() -> None:
        while not end.is_set():
            is_held(tmp_path)
            looks[0] += 1

    looker = threading.Thread(target=look)
    looker.start()
    try:
        starts, deadline = 0, time.monotonic() + 60
        while starts < 300 or (looks[0] <= 100 and time.monotonic() < deadline):
            lock = InstanceLock(tmp_path)
            lock.acquire(command="lipsyncd run")
            lock.release()
            starts += 1
    finally:
        end.set()
        looker.join()
    assert looks[0] > 100


def test_a_look_that_lasts_is_outlasted(tmp_path: Path) -> None:
    lock = InstanceLock(tmp_path)
    lock.acquire(command="lipsyncd run")
    lock.release()
    with (tmp_path / "lock").open() as looker:
        fcntl.flock(looker, fcntl.LOCK_SH | fcntl.LOCK_NB)
        end = threading.Timer(0.6, lambda: fcntl.flock(looker, fcntl.LOCK_UN))
        end.start()
        lock.acquire(command="lipsyncd run")
        assert is_held(tmp_path)
        lock.release()
        end.join()


def test_a_state_folder_that_is_not_there_is_not_held(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "nowhere")
    assert holder(tmp_path / "nowhere") == ""


def test_a_request_that_another_thread_has_just_answered_is_not_taken_for_an_invalid_one(folder: Path) -> None:
    """The housekeeper answers and removes requests to prune while the main thread lists what waits."""
    stop = threading.Event()

    def ask_and_answer() -> None:
        while not stop.is_set():
            waiting = folder / f"{new_id()}{REQUEST}"
            write_json(waiting, {"action": "prune", "job_id": "", "value": 0})
            waiting.unlink()

    other = threading.Thread(target=ask_and_answer)
    other.start()
    try:
        until_s = time.monotonic() + 0.5
        found = [request for _ in iter(lambda: time.monotonic() < until_s, False) for _, request in pending(folder)]
    finally:
        stop.set()
        other.join()
    assert len(found) > 10
    assert None not in found
