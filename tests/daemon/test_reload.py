"""SIGHUP: which settings a running daemon takes over, what it logs about the others; and how it stops."""

from __future__ import annotations

import os
import pty
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lipsyncd.daemon.daemon import Daemon
from lipsyncd.errors import AnotherDaemonRuns
from lipsyncd.jobs.job import JobState
from lipsyncd.media.mp4 import inspect
from lipsyncd.monitor import reload_request
from lipsyncd.monitor.held_lock import is_held
from lipsyncd.monitor.reload_request import Outcome
from lipsyncd.settings import Settings, load
from lipsyncd.settings.changes import LIVE, merge, value_of
from lipsyncd.settings.values import SETTINGS, attribute
from lipsyncd.storage.locks import InstanceLock
from tests.kits.faults.faulty_renderers import NAMES
from tests.kits.installation import READY, Installation, picture, put, sound
from tests.kits.machine.service_manager import listening
from tests.kits.machine.users_kit import DAEMON, MEMBER, needs_users, python, shared_installation
from tests.kits.web_kit import serving


def read_again(installation: Installation, **changes: dict[str, Any]) -> str:
    """Change the settings file, send SIGHUP, and wait for the answer; gives what was logged."""
    assert installation.daemon is not None
    for section, values in changes.items():
        installation.changes.setdefault(section, {}).update(values)
    assert installation.config.exists()  # written anew
    before = len(installation.log)
    installation.daemon.send_signal(signal.SIGHUP)
    answers = ("settings read again:", "the settings stay as they were:")
    installation.until(lambda: any(answer in installation.log[before:] for answer in answers), "the reload")
    return installation.log[before:]


# -- what is taken over ------------------------------------------------------------------------------------------------


def test_the_live_settings_exist_and_the_places_are_not_among_them() -> None:
    assert SETTINGS.keys() >= LIVE
    fixed = {"paths.inbox", "render.devices", "web.port", "web.host", "weights.dir", "watch.mode", "output.crf"}
    assert not fixed & LIVE


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_is_taken_over_or_waits_for_a_restart(name: str) -> None:
    old = load(environ={"HOME": "/nonexistent"}, cwd=Path("/"), system_file=Path("/nonexistent"))
    section, _, key = name.rpartition(".")
    held = attribute(section)
    other: Any = {bool: lambda v: not v, tuple: lambda v: ("x",), Path: lambda v: Path("/x")}.get(
        SETTINGS[name].kind, lambda v: type(v)(f"{v}1")
    )(value_of(old, name))
    new = replace(old, **{held: replace(getattr(old, held), **{key: other})})
    changes = merge(old, new)
    assert (changes.taken, changes.waiting) == (((name,), ()) if name in LIVE else ((), (name,)))
    assert value_of(changes.settings, name) == (other if name in LIVE else value_of(old, name))
    assert _others(changes.settings, name) == _others(old, name)


def _others(settings: Settings, name: str) -> dict[str, object]:
    return {other: value_of(settings, other) for other in SETTINGS if other != name}


# -- in a running daemon -----------------------------------------------------------------------------------------------


def test_what_counts_at_once_counts_for_the_next_job(installation: Installation) -> None:
    with installation.running():
        installation.drop_pair("before")
        installation.until_done("before")
        logged = read_again(
            installation, output={"resolution": 96}, log={"level": "warning"}, render={"devices": ["cuda:0"]}
        )
        assert "output.resolution is 96 now, was 64" in logged
        assert "log.level is 'warning' now, was 'info'" in logged
        assert 'render.devices stays ["cpu"]: the new value needs a restart' in logged
        assert "settings read again: 2 taken over, 1 need a restart" in logged
        installation.drop_pair("after", seed=1)
        installation.until_done("after")
    assert "before, flat" in installation.log
    assert "after, flat" not in installation.log
    assert inspect(installation.path("outbox") / "before.mp4").video.width == 64
    assert inspect(installation.path("outbox") / "after.mp4").video.width == 96


def test_a_deadline_that_is_shortened_holds_for_the_next_render(installation: Installation) -> None:
    installation.changes["render"] = {"renderer": "slow", "max_attempts": 1}
    with installation.running():
        read_again(installation, render={"job_timeout_s": 1})
        installation.drop_pair("long", seconds=4)
        assert installation.until_failed("long").reason_code == "render-timeout"


def test_a_limit_of_the_inbox_holds_at_once(installation: Installation) -> None:
    with installation.running():
        read_again(installation, intake={"max_audio_s": 1})
        installation.drop_pair("long", seconds=3)
        assert installation.until_failed("long").reason_code == "audio-too-long"


def test_a_renderer_that_only_a_restart_adds_changes_nothing(installation: Installation) -> None:
    with installation.running():
        renderers = [*NAMES, "new=tests.kits.faults.faulty_renderers:Flat"]
        logged = read_again(installation, output={"resolution": 96}, render={"renderer": "new", "renderers": renderers})
        assert "the settings stay as they were: render.renderer is 'new'" in logged
        assert "now, was" not in logged


def test_a_mistake_in_the_file_changes_nothing_and_is_logged(installation: Installation) -> None:
    with installation.running():
        logged = read_again(installation, output={"resolution": 97, "fps": 12})
        assert "the settings stay as they were: output.resolution is 97" in logged
        installation.changes["output"]["resolution"] = 64
        logged = read_again(installation, fetch={"allow": ["10.0.0.0/33"]})
        assert 'the settings stay as they were: fetch.allow is ["10.0.0.0/33"]' in logged
        installation.changes["fetch"]["allow"] = []
        installation.drop_pair("anna")
        installation.until_done("anna")
        logged = read_again(installation, output={"resolution": 128})
        assert "output.resolution is 128 now, was 64" in logged
        assert "output.fps" in logged
    assert inspect(installation.path("outbox") / "anna.mp4").video.width == 64


def test_the_command_waits_for_the_outcome_and_fails_with_a_wrong_setting(installation: Installation) -> None:
    none = installation.cli("reload")
    assert (none.returncode, "no daemon runs" in none.stderr) == (1, True), none
    with installation.running():
        installation.changes["output"] = {"resolution": 96}
        installation.changes["render"] = {"devices": ["cuda:1"]}
        done = installation.cli("reload")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == [
            "output.resolution is 96 now, was 64",
            'render.devices stays ["cpu"]: the new value needs a restart',
            "settings read again: 1 taken over, 1 need a restart",
        ]
        again = installation.cli("reload", "--quiet")
        assert (again.returncode, again.stdout, again.stderr) == (0, "", "")

        installation.changes["output"]["resolution"] = 97
        wrong = installation.cli("reload")
        assert wrong.returncode == 78
        assert "output.resolution is 97" in wrong.stderr

        installation.changes["output"]["resolution"] = 96
        new = "new=tests.kits.faults.faulty_renderers:Flat"  # right for a start, and not for a reload
        installation.changes["render"].update(renderer="new", renderers=[*NAMES, new])
        refused = installation.cli("reload")
        assert refused.returncode == 78
        assert "the settings stay as they were: render.renderer is 'new'" in refused.stderr

        installation.changes["render"].update(renderer="flat", renderers=list(NAMES))
        installation.changes["paths"] = {"state": str(installation.root / "elsewhere")}
        moved = installation.cli("reload")  # finds the daemon where it is
        assert (moved.returncode, "paths.state stays" in moved.stdout) == (0, True), moved
        installation.changes["paths"] = {}


def test_an_older_answer_is_not_taken_for_ours(tmp_path: Path) -> None:
    """A reload that began before the signal may have read the file before it was changed."""
    lock = InstanceLock(tmp_path)
    lock.acquire(command="lipsyncd run")
    received: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda *_: received.append(time.monotonic_ns()))
    try:
        reload_request.answer(tmp_path, Outcome(0, ["old"]), begun_ns=time.monotonic_ns())
        with pytest.raises(AnotherDaemonRuns, match="did not read its settings within"):
            reload_request.ask(tmp_path, timeout_s=0.2)
        reload_request.answer(tmp_path, Outcome(78, ["new"]), begun_ns=time.monotonic_ns() + 10**9)
        assert reload_request.ask(tmp_path, timeout_s=5) == Outcome(78, ["new"])
        assert len(received) == 2
    finally:
        signal.signal(signal.SIGHUP, before)
        lock.release()


@needs_users
def test_only_the_daemons_user_may_ask_for_a_reload() -> None:
    with shared_installation() as installation:
        installation.run_as = DAEMON.command()
        with installation.running():
            for user, status in ((MEMBER, 77), (DAEMON, 0)):
                command = [python(), "-m", "lipsyncd", "--config", str(installation.config), "reload"]
                done = user.run("env", *(f"{k}={v}" for k, v in installation.environment().items()), *command)
                assert done.returncode == status, done
            assert installation.log.count("settings read again") == 1


def test_keys_are_read_again_and_a_removed_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("old-key-of-anna\n")
    file.chmod(0o600)
    with serving(tmp_path, changes={"web": {"api_key_file": str(file)}}) as api:
        assert api.get("/credits", Authorization="Bearer old-key-of-anna").status == 200
        file.write_text("new-key-of-anna\n")
        logged = read_again(api.installation)
        assert "REST: keys: 1 now, were 1" in logged
        assert api.get("/credits", Authorization="Bearer old-key-of-anna").status == 401
        assert api.get("/credits", Authorization="Bearer new-key-of-anna").status == 200
        file.write_text("")
        assert "holds no key" in read_again(api.installation)
        assert api.get("/credits", Authorization="Bearer new-key-of-anna").status == 200
        assert api.get("/credits").status == 401
        assert "key-of-anna" not in api.installation.log


def test_a_host_that_is_taken_off_the_list_is_refused_at_once(tmp_path: Path) -> None:
    """It was remembered as one of ours until the next start."""
    with serving(tmp_path, changes={"web": {"allowed_hosts": ["media.example.org"]}}) as api:
        assert api.get("/credits", Host="media.example.org").status == 200
        read_again(api.installation, web={"allowed_hosts": []})
        api.get("/credits", Host="media.example.org").refused(403, "PermissionError")


def test_the_reload_and_its_end_are_reported_to_systemd(installation: Installation) -> None:
    with listening(installation.root) as manager, installation.running(NOTIFY_SOCKET=manager.address):
        manager.wait_for("READY=1".__eq__)
        read_again(installation)
        manager.wait_for(lambda _: manager.lines.count("READY=1") == 2)
        [reloading] = [message for message in manager.messages if "RELOADING=1" in message]
        [at_us] = [int(line.partition("=")[2]) for line in reloading if line.startswith("MONOTONIC_USEC=")]
        assert 0 < time.monotonic_ns() // 1000 - at_us < 60_000_000
        assert manager.lines.index("RELOADING=1") < len(manager.lines) - manager.lines[::-1].index("READY=1")


# -- the two meanings of SIGHUP ----------------------------------------------------------------------------------------


@contextmanager
def in_a_terminal(installation: Installation, *, nohup: bool = False) -> Iterator[tuple[int, int]]:
    """A daemon in the foreground of a terminal of its own; gives its pid and the terminal's other end."""
    config = str(installation.config)
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
            log = os.open(installation.root / "daemon.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.execve(
                sys.executable,
                [sys.executable, "-m", "lipsyncd", "--config", config, "run"],
                installation.environment(),
            )
        finally:
            os._exit(70)
    try:
        installation.until(
            lambda: (installation.root / "daemon.log").exists() and READY in installation.log,
            "the daemon's start",
        )
        yield pid, terminal
    finally:
        if is_held(installation.path("state")):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_a_terminal_that_closes_stops_the_daemon_that_ran_in_it(installation: Installation) -> None:
    with in_a_terminal(installation) as (pid, terminal):
        os.kill(pid, signal.SIGHUP)  # from another process, while the terminal is there
        installation.until(lambda: "settings read again" in installation.log, "the reload")
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert installation.log.rstrip().endswith("stopped")


def test_nohup_keeps_the_daemon_when_the_terminal_closes(installation: Installation) -> None:
    with in_a_terminal(installation, nohup=True) as (pid, terminal):
        os.close(terminal)
        installation.until(lambda: "settings read again" in installation.log, "the reload")
        os.kill(pid, signal.SIGTERM)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


# -- stopping ----------------------------------------------------------------------------------------------------------


def test_a_second_ctrl_c_does_not_wait_for_the_job(installation: Installation) -> None:
    installation.changes["render"] = {"stop_grace_s": 3600, "renderer": "slow"}
    installation.start()
    installation.drop_pair("long", seconds=20)
    installation.until_state("long", JobState.RUNNING)
    assert installation.daemon is not None
    installation.daemon.send_signal(signal.SIGINT)
    installation.until(lambda: "stopping: " in installation.log, "the first signal")
    installation.daemon.send_signal(signal.SIGINT)
    assert installation.daemon.wait(30) == 0
    installation.daemon = None
    job = installation.job("long")
    assert job is not None
    assert (job.state, job.attempt) == (JobState.QUEUED, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_comes_while_the_main_thread_holds_a_lock_does_not_wait_for_it(
    installation: Installation, number: int
) -> None:
    """It did for ever, since the lock is its own: one stop in some thousands hung."""
    daemon = Daemon(installation.settings)
    events = [each for each in vars(daemon).values() if isinstance(each, threading.Event)]
    assert len(events) >= 2
    handler = threading.Thread(target=daemon._on_signal, args=(number, None), daemon=True)
    with ExitStack() as held:
        for event in events:
            held.enter_context(event._cond)  # type: ignore[attr-defined]
        handler.start()
        handler.join(20)
        assert not handler.is_alive()
    daemon._obey()
    assert daemon._stop.is_set() == (number == signal.SIGTERM)


@pytest.mark.parametrize("after_s", [0.05, 0.3, 0.8])
def test_a_stop_at_any_moment_leaves_whole_videos_only(installation: Installation, after_s: float) -> None:
    installation.changes["render"] = {"stop_grace_s": 0}
    installation.start()
    for number in range(6):
        put(installation.path("inbox"), f"job{number}.png", picture(number))
        put(installation.path("inbox"), f"job{number}.wav", sound(0.3, number))
    installation.until(lambda: installation.view.jobs(), "the first job")
    time.sleep(after_s)
    assert installation.stop() == 0
    videos = sorted(installation.path("outbox").glob("*.mp4"))
    assert all(inspect(video).video.frames == 8 for video in videos)
    assert not list((installation.path("outbox") / ".lipsyncd").glob("*.part"))
    with installation.running():
        for number in range(6):
            installation.until_done(f"job{number}")
    assert len(list(installation.path("outbox").glob("*.mp4"))) == 6
    assert all(job.attempt == 1 for job in installation.view.jobs())
