"""One render child of this machine: start it, give it a job, read its messages, and end it with everything it started.

The child keeps what it has loaded between jobs; only its end gives all GPU memory back. Two clocks guard a render: the
deadline, and the longest silence. Whatever goes wrong, the whole process group is killed, then what has left that
group, and the next job gets a new child.

Owns the process. Leaves the choice of the next job to the worker.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Protocol

from lipsyncd.errors import (
    EncodeFailed,
    OutOfMemory,
    RenderCrashed,
    RenderError,
    RenderStalled,
    RenderTimeout,
    from_reason,
)
from lipsyncd.log import printable
from lipsyncd.processes import exit_text, give_back_file_limit
from lipsyncd.sandbox import subreaper
from lipsyncd.sandbox.jail import end
from lipsyncd.sandbox.lasting_thread import in_lasting_thread
from lipsyncd.worker.child_environment import inherited
from lipsyncd.worker.oom_kills import OomCount, oom_count_of
from lipsyncd.worker.protocol import (
    CANCELLED,
    LOADING,
    MAX_LINE_BYTES,
    Batch,
    Cancel,
    Failure,
    Message,
    Next,
    Progress,
    ProtocolError,
    Ready,
    Render,
    Result,
    from_line,
    to_line,
)

log = logging.getLogger(__name__)

_TICK_S = 0.1
_CANCEL_GRACE_S = 0.7  # a cancelled render ends within a second, with or without the child's help
_TAIL_LINES = 12
_MAX_LINE_CHARS = 400
# What libraries print before they end a process without memory: the C library's loader, C++, and torch.
_NO_MEMORY = ("cannot allocate memory", "bad_alloc", "out of memory")


class RenderCancelled(Exception):
    """The render was ended on request."""


@dataclass(frozen=True)
class Timeouts:
    """How long a child may take: to start, to render one job, and between two messages.

    Loading a renderer counts as the start, also when the first job that needs it causes it: reading gigabytes from a
    slow disk, or compiling once, takes long without a message.
    """

    start_s: float
    deadline_s: float
    silence_s: float


class Executor(Protocol):
    """Where renders happen. `LocalChild` is a process of this machine; a cluster could have another."""

    def start(self) -> None: ...

    def render(
        self,
        request: Render,
        *,
        progress: Callable[[Progress], None],
        stop: Callable[[], bool],
        batch: Callable[[Batch], None] = ...,
        upcoming: Callable[[], Next | None] = ...,
    ) -> Result: ...

    def idle_s(self) -> float: ...

    def close(self) -> None: ...


@dataclass
class _Process:
    """A live child, our end of its socket, and the counter that shows whether the kernel ended it."""

    popen: subprocess.Popen[bytes]
    line: socket.socket
    oom_count: OomCount | None = None
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL_LINES))
    buffer: bytearray = field(default_factory=bytearray)


class _Hints:
    """When the child gets to know which job comes next: once half of the present one is drawn, or else nine tenths."""

    def __init__(self, request: Render, upcoming: Callable[[], Next | None]) -> None:
        self._frames, self._upcoming = request.frames, upcoming
        self._asked = 0

    def at(self, progress: Progress) -> Next | None:
        wanted = (2 * progress.done >= self._frames) + (10 * progress.done >= 9 * self._frames)
        if self._asked >= wanted:
            return None
        self._asked = wanted
        hint = self._upcoming()
        if hint is not None:
            self._asked = 2
        return hint


def any_of(*asked: Callable[[], bool]) -> Callable[[], bool]:
    """True once one of these is."""
    return lambda: any(one() for one in asked)


class LocalChild:
    """The render child for one device. Used by one thread.

    renderers    more renderers than the built-in ones, each as "name=module:Class"
    preload      a renderer to load at the start instead of with its first job
    variables    of its environment, in addition to those that it inherits
    environment  names of variables that it inherits besides those of `child_environment`
    starts       how many processes were started until now
    """

    def __init__(
        self,
        device: str,
        timeouts: Callable[[], Timeouts],
        *,
        renderers: Sequence[str] = (),
        preload: str = "",
        variables: Mapping[str, str] | None = None,
        environment: Sequence[str] = (),
    ) -> None:
        self.device = device
        self.timeouts = timeouts
        self._variables = variables or {}
        self._environment = environment
        self._arguments = [f"--renderer={entry}" for entry in renderers]
        if preload:
            self._arguments.append(f"--preload={preload}")
        self.starts = 0
        self._process: _Process | None = None
        self._last_used_s = time.monotonic()
        self._watched_s: float | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.popen.pid

    def idle_s(self) -> float:
        """How long a live child has had no job; 0 while there is none."""
        return 0.0 if self._process is None else time.monotonic() - self._last_used_s

    @property
    def busy(self) -> bool:
        """Does it render?"""
        return self._watched_s is not None

    def unwatched_s(self) -> float:
        """How long ago the render under way was last checked; 0 without a render."""
        watched_s = self._watched_s
        return 0.0 if watched_s is None else time.monotonic() - watched_s

    # -- start and end -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the child, unless there is one, and wait until it can take work.

        Raises `RenderCrashed` when it ends instead, `RenderStalled` when it takes too long.
        """
        if self._process is not None and self._process.popen.poll() is None:
            return
        self.close()
        mark = subreaper.new_mark()
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "lipsyncd.renderers", f"--device={self.device}", f"--line={theirs.fileno()}"]
        with theirs:

            def popen_child() -> subprocess.Popen[bytes]:
                return subprocess.Popen(
                    [*command, *self._arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env={**inherited(os.environ, self._environment), **self._variables, subreaper.MARK: mark},
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )

            popen = in_lasting_thread(partial(subreaper.start, popen_child, mark), undo=end)
        give_back_file_limit(popen.pid)
        ours.settimeout(_TICK_S)
        self._process = _Process(popen, ours, oom_count_of(popen.pid))
        self.starts += 1
        assert popen.stdout is not None
        threading.Thread(target=_follow, args=(popen.stdout, self._process.tail), daemon=True).start()
        try:
            self._wait_ready(self._process)
        except BaseException:
            self.close()
            raise
        self._last_used_s = time.monotonic()
        log.info("render child for %s started, pid %d", self.device, popen.pid)

    def _wait_ready(self, process: _Process) -> None:
        start_s = self.timeouts().start_s
        deadline = time.monotonic() + start_s
        while True:
            message = self._receive(process)
            if isinstance(message, Ready):
                return
            if isinstance(message, Failure):
                raise from_reason({"code": message.code, "message": message.message, "remedy": message.remedy})
            if time.monotonic() > deadline:
                raise RenderStalled(f"the render child was not ready after {start_s:g} s{_last_output(process)}")

    def close(self) -> None:
        """End the child and everything that it started; nothing happens when there is none."""
        process, self._process = self._process, None
        if process is None:
            return
        process.line.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.popen.wait(timeout=0.0 if process.popen.poll() is not None else 0.5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.popen.pid, signal.SIGKILL)
        process.popen.wait()
        subreaper.sweep()
        log.info("render child for %s ended, pid %d", self.device, process.popen.pid)

    # -- one job -------------------------------------------------------------------------------------------------------

    def render(
        self,
        request: Render,
        *,
        progress: Callable[[Progress], None],
        stop: Callable[[], bool],
        batch: Callable[[Batch], None] = lambda _: None,
        upcoming: Callable[[], Next | None] = lambda: None,
    ) -> Result:
        """Render one job. `stop` is called several times a second and returns True to end the render.

        upcoming  which job most likely comes next, so that the child can open it; called at most twice: when half of
                  the frames are drawn, and when nine tenths are

        Raises `RenderCancelled` after a stop; `RenderTimeout`, `RenderStalled`, `RenderCrashed`, `OutOfMemory`; or
        the error that the renderer itself reported.
        """
        self.start()
        process = self._process
        assert process is not None
        process.oom_count = oom_count_of(process.popen.pid)
        try:
            process.line.settimeout(None)
            process.line.sendall(to_line(request))
            process.line.settimeout(_TICK_S)
            answer = self._listen(process, request, progress, batch, stop, _Hints(request, upcoming))
        except OSError as error:
            raise self._crash(process) from error
        except BaseException:
            self.close()
            raise
        finally:
            self._last_used_s, self._watched_s = time.monotonic(), None
            subreaper.sweep()  # what has ended by itself; a child may live for days
        if isinstance(answer, Result):
            return answer
        if answer.code == CANCELLED:
            raise RenderCancelled(request.job_id)
        if answer.code == EncodeFailed.code and _kernel_kills(process):
            raise OutOfMemory(f"the kernel ended the encoder for want of memory: {answer.message}")
        raise from_reason({"code": answer.code, "message": answer.message, "remedy": answer.remedy})

    def _listen(
        self,
        process: _Process,
        request: Render,
        progress: Callable[[Progress], None],
        batch: Callable[[Batch], None],
        stop: Callable[[], bool],
        hints: _Hints,
    ) -> Result | Failure:
        started = heard = time.monotonic()
        timeouts = self.timeouts()
        silence_s = timeouts.start_s
        asked_to_stop: float | None = None
        while True:
            message = self._receive(process)
            now = self._watched_s = time.monotonic()
            if message is not None:
                heard = now
            if isinstance(message, Result | Failure) and message.job_id == request.job_id:
                return message
            if isinstance(message, Progress) and message.job_id == request.job_id:
                progress(message)
                if (hint := hints.at(message)) is not None:
                    process.line.sendall(to_line(hint))
                timeouts = self.timeouts()
                silence_s = timeouts.start_s if message.stage == LOADING else timeouts.silence_s
            if isinstance(message, Batch) and message.job_id == request.job_id:
                batch(message)
            if asked_to_stop is None and stop():
                asked_to_stop = now
                process.line.sendall(to_line(Cancel(request.job_id)))
            if asked_to_stop is not None and now - asked_to_stop > _CANCEL_GRACE_S:
                raise RenderCancelled(request.job_id)
            if now - started > timeouts.deadline_s:
                raise RenderTimeout(f"job {request.job_id} was not rendered within {timeouts.deadline_s:g} s")
            if now - heard > silence_s:
                silence = f"the render child sent nothing for {silence_s:g} s"
                raise RenderStalled(silence + _last_output(process))

    def _receive(self, process: _Process) -> Message | None:
        """The next message; None when none came within a tick. Raises `RenderCrashed` when the line is cut."""
        while b"\n" not in process.buffer:
            try:
                data = process.line.recv(65536)
            except TimeoutError:
                return None
            if not data:
                raise self._crash(process)
            if len(process.buffer) > MAX_LINE_BYTES:
                raise RenderCrashed(f"the render child sent a line of more than {MAX_LINE_BYTES} bytes")
            process.buffer += data
        line, _, rest = bytes(process.buffer).partition(b"\n")
        process.buffer = bytearray(rest)
        try:
            return from_line(line)
        except ProtocolError as error:
            raise RenderCrashed(f"the render child does not speak our protocol: {error}") from error

    def _crash(self, process: _Process) -> RenderError:
        """The error for a child that ended by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.popen.wait(timeout=1.0)
        status = process.popen.poll()
        self.close()
        how = "closed its line" if status is None else exit_text(status)
        if status == -signal.SIGKILL:
            kills = _kernel_kills(process)
            if kills:
                return OutOfMemory("the kernel ended the render child for want of memory")
            if kills is None:
                return OutOfMemory("the render child was killed from outside, most likely for want of memory")
            return RenderCrashed(f"the render child {how} from outside, and not by the kernel for want of memory")
        output = _last_output(process)
        if any(sign in output.lower() for sign in _NO_MEMORY):
            return OutOfMemory(f"the render child {how} for want of memory{output}")
        return RenderCrashed(f"the render child {how}{output}")


def _kernel_kills(process: _Process) -> int | None:
    """How many processes the kernel has ended for want of memory since this render began; None if it does not count."""
    return None if process.oom_count is None else process.oom_count.kills()


def _last_output(process: _Process) -> str:
    """The last lines that the child printed, for the message."""
    time.sleep(0.05)  # the thread that reads them needs a moment
    return ": " + " | ".join(process.tail) if process.tail else ""


def _follow(output: IO[bytes], tail: deque[str]) -> None:
    """Keep the last lines of what the child prints."""
    with contextlib.suppress(ValueError, OSError), output:
        for line in iter(lambda: output.readline(_MAX_LINE_CHARS), b""):
            text = printable(line.rstrip())
            if text:
                tail.append(text)
                log.debug("render child: %s", text)
