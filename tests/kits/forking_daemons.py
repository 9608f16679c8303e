"""Daemons without the cost of their imports: a process that has imported everything forks one for each request.

    python -m tests.kits.forking_daemons   reads one JSON request a line, answers on the same socket (its stdin)

The imports cost more processor time than the whole life of a small job, and the tests start thousands of daemons. The
fork runs the command line's `main` with the same arguments, environment, output and session as a new interpreter would
have, so its threads, locks, signals and children are real.
"""

from __future__ import annotations

import atexit
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60.0

_shared: ForkingDaemons | None = None
_sharing = threading.Lock()


class Forked:
    """A forked daemon, with the part of `subprocess.Popen` that tests use."""

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

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkingDaemons:
    """The process that forks, as seen by the tests. Several threads may use it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "TMPDIR", "LD_LIBRARY_PATH")}
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.kits.forking_daemons"],
                stdin=theirs,
                cwd=ROOT,
                env={**kept, "PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )
        self._socket = ours
        self._requesting = threading.Lock()
        self._started = threading.Semaphore(0)
        self._newest: Forked | None = None
        self._living: dict[int, Forked] = {}
        self._reader = threading.Thread(target=self._read, name="forking daemons", daemon=True)
        self._reader.start()

    def start(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> Forked:
        """Run `lipsyncd` with these arguments; its output is appended to `log`."""
        request = {
            "arguments": list(arguments),
            "log": str(log),
            "environment": dict(environment),
            "folder": os.getcwd(),
        }
        with self._requesting:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            if not self._started.acquire(timeout=WAIT_S):
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
                report = json.loads(line)
                if "started" in report:
                    self._newest = self._living[report["started"]] = Forked(report["started"])
                    self._started.release()
                else:
                    daemon = self._living.pop(report["ended"])
                    daemon.returncode = report["status"]
                    daemon.ended.set()
        self._newest = None
        self._started.release()


def shared() -> ForkingDaemons:
    """One for all tests of this process. It ends with this process."""
    global _shared
    with _sharing:
        if _shared is None:
            _shared = ForkingDaemons()
            atexit.register(_shared.close)
        return _shared


# -- in the process that forks ----------------------------------------------------------------------------------------


def serve(line: socket.socket) -> None:
    """Fork for each request and report each end, until the other side closes; then kill every daemon that lives."""
    wake_reader, wake_writer = os.pipe()
    os.set_blocking(wake_writer, False)
    os.set_blocking(wake_reader, False)
    signal.set_wakeup_fd(wake_writer)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    living: set[int] = set()
    buffer = b""
    while True:
        ready, _, _ = select.select([line, wake_reader], [], [])
        if wake_reader in ready:
            os.read(wake_reader, 4096)
            for pid, status in _reaped(living):
                line.sendall(json.dumps({"ended": pid, "status": status}).encode() + b"\n")
        if line in ready:
            block = line.recv(1 << 16)
            if not block:
                _end(living)
                return
            *requests, buffer = (buffer + block).split(b"\n")
            for request in requests:
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for descriptor in (line.fileno(), wake_reader, wake_writer):
                        os.close(descriptor)
                    os._exit(_run(json.loads(request)))
                living.add(pid)
                line.sendall(json.dumps({"started": pid}).encode() + b"\n")


def _end(living: set[int]) -> None:
    for pid in living:
        os.kill(pid, signal.SIGKILL)
    for pid in living:
        os.waitpid(pid, 0)


def _reaped(living: set[int]) -> list[tuple[int, int]]:
    found = []
    for pid in list(living):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            living.discard(pid)
            found.append((pid, os.waitstatus_to_exitcode(status)))
    return found


def _run(request: Mapping[str, Any]) -> int:
    """What `python -m lipsyncd` does, in a fork; gives the exit status."""
    from lipsyncd.cli.main import main
    from lipsyncd.storage import failpoints

    try:
        os.setsid()
        os.chdir(request["folder"])
        output = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        os.close(output)
        os.environ.clear()
        os.environ.update(request["environment"])
        failpoints.arm(os.environ.get("LIPSYNCD_FAIL", ""))
        main(request["arguments"], prog_name="lipsyncd")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def import_all() -> None:
    """Import what every fork would import again."""
    import lipsyncd.cli.main
    import lipsyncd.daemon.daemon  # noqa: F401


def main() -> None:
    import_all()
    with socket.socket(fileno=os.dup(0)) as line:
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.close(nothing)
        serve(line)


if __name__ == "__main__":
    main()
