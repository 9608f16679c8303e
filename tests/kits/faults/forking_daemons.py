"""Daemons by the dozen: a process that has imported everything once and forks a daemon for each request.

    python -m tests.kits.faults.forking_daemons   reads one JSON request a line, answers on the same socket (its stdin)

Importing costs more than the whole life of a small job, and the crash tests start thousands of daemons. What runs in
the fork is `Daemon.run()` itself, with real threads, locks, signals and children of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
WAIT_S = 60.0


class Forked:
    """A forked daemon, with what tests use of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.ended = threading.Event()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self.ended.wait(timeout):
            raise subprocess.TimeoutExpired(["daemon", str(self.pid)], timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkingDaemons:
    """Our end. Safe to use from several threads."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "TMPDIR", "LD_LIBRARY_PATH")}
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.kits.faults.forking_daemons"],
                stdin=theirs,
                cwd=ROOT,
                env={**kept, "PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )
        self._socket = ours
        self._asking = threading.Lock()
        self._born = threading.Semaphore(0)
        self._newest: Forked | None = None
        self._living: dict[int, Forked] = {}
        self._reader = threading.Thread(target=self._read, name="forking daemons")
        self._reader.start()

    def start(self, config: Path, log: Path, environment: Mapping[str, str], *, fail: str = "") -> Forked:
        """Begin a daemon with those settings; its output goes behind what `log` has."""
        request = {"config": str(config), "log": str(log), "environment": dict(environment), "fail": fail}
        with self._asking:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            if not self._born.acquire(timeout=WAIT_S):
                raise AssertionError("the process that forks daemons does not answer")
            assert self._newest is not None, "the process that forks daemons has ended"
            return self._newest

    def close(self) -> None:
        """End this process with every daemon that still lives."""
        for daemon in list(self._living.values()):
            daemon.kill()
        self._socket.shutdown(socket.SHUT_WR)
        self._process.wait(WAIT_S)
        self._reader.join()
        self._socket.close()

    def _read(self) -> None:
        with self._socket.makefile("rb") as lines:
            for line in lines:
                said = json.loads(line)
                if "born" in said:
                    self._newest = self._living[said["born"]] = Forked(said["born"])
                    self._born.release()
                else:
                    daemon = self._living.pop(said["ended"])
                    daemon.returncode = said["status"]
                    daemon.ended.set()
        self._newest = None
        self._born.release()


# -- in the process that forks ----------------------------------------------------------------------------------------


def serve(line: socket.socket) -> None:
    """Fork for each request, and tell of each end; until the other side closes, then kill what lives."""
    ear, voice = os.pipe()
    os.set_blocking(voice, False)
    os.set_blocking(ear, False)
    signal.set_wakeup_fd(voice)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    living: set[int] = set()
    buffer = b""
    while True:
        ready, _, _ = select.select([line, ear], [], [])
        if ear in ready:
            os.read(ear, 4096)
            for pid, status in _reaped(living):
                line.sendall(json.dumps({"ended": pid, "status": status}).encode() + b"\n")
        if line in ready:
            block = line.recv(1 << 16)
            if not block and not living:
                return
            if not block:
                for pid in living:
                    os.kill(pid, signal.SIGKILL)
                for pid in living:
                    os.waitpid(pid, 0)
                return
            *requests, buffer = (buffer + block).split(b"\n")
            for request in requests:
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for descriptor in (line.fileno(), ear, voice):
                        os.close(descriptor)
                    os._exit(_live(json.loads(request)))
                living.add(pid)
                line.sendall(json.dumps({"born": pid}).encode() + b"\n")


def _reaped(living: set[int]) -> list[tuple[int, int]]:
    found = []
    for pid in list(living):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            living.discard(pid)
            found.append((pid, os.waitstatus_to_exitcode(status)))
    return found


def _live(request: Mapping[str, Any]) -> int:
    """What `lipsyncd run` does, in a fork."""
    from lipsyncd import log
    from lipsyncd.daemon.daemon import Daemon
    from lipsyncd.settings import load
    from lipsyncd.storage import failpoints

    try:
        os.setsid()
        output = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        os.environ.clear()
        os.environ.update(request["environment"])
        failpoints.arm(request["fail"])
        settings = load(Path(request["config"]), environ=request["environment"])
        log.setup(settings.log.level, settings.log.format)
        return Daemon(settings).run()
    except BaseException:
        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def main() -> None:
    import lipsyncd.daemon.daemon  # noqa: F401 - what every fork would import again

    with socket.socket(fileno=os.dup(0)) as line:
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        serve(line)


if __name__ == "__main__":
    main()
