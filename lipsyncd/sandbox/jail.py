"""Run a program that can reach only the files it needs: every decode of a user's file, and each encode.

A jailed program has a bare environment, only the files that its caller lists, no network, no way to new privileges and
no memory that is both writable and executable. It may start threads and no process, and reaches no other process. Its
processor time, memory, file size and open files are limited. It has a process group of its own and is killed when we
end. Where the kernel has no Landlock it runs all the same, after one warning.

Owns starting, watching and killing jailed processes. Leaves the restrictions to `launcher`, `landlock` and `seccomp`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO

from lipsyncd.errors import JailFailed
from lipsyncd.processes import last_line
from lipsyncd.sandbox import landlock, subreaper

log = logging.getLogger(__name__)

# Libraries and other files that programs need and all users may read. Those that a machine does not have are left out.
_SYSTEM = (
    "/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib", "/nix/store", "/gnu/store",
    "/etc/ld.so.cache", "/dev/urandom",
)  # fmt: skip
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]
_START_TIMEOUT_S = 30.0
_STDOUT_BYTES = 1 << 16
_STDERR_BYTES = 1 << 14
_BLOCK_BYTES = 1 << 16
_POLL_S = 0.005


@dataclass(frozen=True)
class ResourceLimits:
    """What one jailed process may use.

    cpu_s             processor time of all its threads together; after that it is killed
    file_bytes        largest file that it may write
    memory_bytes      of address space; a program maps more than it uses
    open_files        descriptors
    write_or_execute  memory that was writable never becomes executable; a program with a JIT compiler needs False
    memory_files      it may make files in memory, which `memory_bytes` does not count
    """

    cpu_s: int = 600
    file_bytes: int = 4 << 30
    memory_bytes: int = 4 << 30
    open_files: int = 64
    write_or_execute: bool = True
    memory_files: bool = False


@dataclass(frozen=True)
class Completed:
    """How a jailed process ended.

    returncode   as in `subprocess`: minus the signal's number when a signal killed it
    stdout       the first 64 KiB
    stderr_tail  the whole lines in the last 16 KiB, undecodable bytes replaced
    landlock     False: this kernel has no Landlock, so the files were not restricted
    timed_out    it was killed at `timeout_s`
    """

    returncode: int
    stdout: bytes
    stderr_tail: str
    landlock: bool
    timed_out: bool


class JailedProcess(subprocess.Popen[bytes]):
    """A running program. `landlock_abi` is the Landlock version that restricts it; 0 without Landlock."""

    landlock_abi = 0


def run_jailed(
    argv: Sequence[str],
    *,
    readable: Sequence[Path] = (),
    writable: Sequence[Path] = (),
    limits: ResourceLimits = ResourceLimits(),
    python_path: Sequence[Path] = (),
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    timeout_s: float,
) -> Completed:
    """Run `argv` to its end, or until `timeout_s`, and return its output. Its working folder is `/`.

    argv         the program by its absolute path, then its arguments
    readable     files and folders that exist, with everything below them
    writable     the same, also for writing; in a folder only regular files may be created and removed, so give a folder
                 only if all that it holds is the program's own
    python_path  folders that a jailed Python imports from; it may list them, but read only what `readable` covers
    stdin        an open file, or nothing

    The process does not outlive the call. Raises `JailFailed` when the program cannot be started.
    """
    deadline = time.monotonic() + timeout_s
    process = popen_jailed(
        argv,
        readable=readable,
        writable=writable,
        limits=limits,
        python_path=python_path,
        stdin=stdin,
        stdout=subprocess.PIPE,
    )
    try:
        stdout, stderr, timed_out = _collect(process, deadline)
    finally:
        end(process)
    return Completed(process.returncode, stdout, stderr, process.landlock_abi > 0, timed_out)


def popen_jailed(
    argv: Sequence[str],
    *,
    readable: Sequence[Path] = (),
    writable: Sequence[Path] = (),
    limits: ResourceLimits = ResourceLimits(),
    python_path: Sequence[Path] = (),
    stdin: int | IO[bytes] = subprocess.PIPE,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.PIPE,
    devices: Sequence[Path] = (),
    descriptors: Sequence[int] = (),
) -> JailedProcess:
    """Start `argv` as `run_jailed` does and return once it runs; the caller kills and reaps it with `end`.

    devices      device files that it may also control
    descriptors  open ones that the program keeps under their numbers

    The kernel kills the program when the *thread* that called this ends: call from a thread that outlives it.
    """
    landlock_abi()  # for its warning
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    with os.fdopen(read_end, "rb", buffering=0) as report:
        try:
            request = {
                "argv": [os.fspath(part) for part in argv],
                "programs": _program_files(argv[0]),
                "listable": [os.fspath(path) for path in python_path],
                "readable": [os.fspath(path) for path in readable],
                "writable": [*(os.fspath(path) for path in writable), "/dev/null"],
                "devices": [os.fspath(path) for path in devices],
                "limits": asdict(limits),
                "parent": os.getpid(),
                "report": write_end,
            }
            process = subreaper.start(
                lambda: JailedProcess(
                    # -P and -S: neither the current folder nor a site configuration decides what is imported.
                    [sys.executable, "-P", "-S", "-m", "lipsyncd.sandbox.launcher", json.dumps(request)],
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    cwd="/",
                    env=_environment(python_path),
                    pass_fds=(write_end, *descriptors),
                    start_new_session=True,
                )
            )
        except OSError as error:
            raise JailFailed(f"{sys.executable} does not start: {error.strerror or error}") from error
        finally:
            os.close(write_end)
        try:
            process.landlock_abi = _await_start(process, str(argv[0]), report)
        except BaseException:
            end(process)
            raise
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill the whole process group and reap the process. Harmless when it has ended already."""
    if process.returncode is None:  # once it is reaped, its number may belong to another process
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):  # stdin may still hold data that can no longer be written
                stream.close()


@cache
def landlock_abi() -> int:
    """The kernel's version of Landlock; 0 when it has none, which is logged once."""
    abi = landlock.abi()
    if not abi:
        log.warning("this kernel has no Landlock: jailed programs can reach every file that this user can")
    return abi


def _environment(python_path: Sequence[Path]) -> Mapping[str, str]:
    path = os.pathsep.join(os.fspath(part) for part in (_PACKAGE_ROOT, *python_path))
    fixed = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
    # numpy would start a thread on each core, and nothing in here multiplies large matrices.
    return {**fixed, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": path}


def _program_files(program: str) -> list[str]:
    """The files that `program` may read and run: itself, the system's libraries, and those installed beside it."""
    real = Path(program).resolve()
    return [os.fspath(path) for path in (real, real.parent.parent / "lib", *map(Path, _SYSTEM)) if path.exists()]


def _await_start(process: JailedProcess, program: str, report: IO[bytes]) -> int:
    """Read the launcher's report to its end: the pipe closes when the program starts. Returns the Landlock version."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    text = b""
    while block := _read_before(deadline, report):
        text += block
    facts: dict[str, object] = {}
    for line in text.splitlines():
        facts.update(json.loads(line))
    abi = facts.get("landlock")
    if "error" in facts or not isinstance(abi, int):
        why = facts.get("error") or _launcher_error(process) or "its launcher ended without a report"
        raise JailFailed(f"{program} does not start in the jail: {why}")
    return abi


def _read_before(deadline: float, stream: IO[bytes]) -> bytes:
    waiting = select.poll()  # not `select`, which knows only the first 1,024 descriptors
    waiting.register(stream, select.POLLIN)
    if not waiting.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise JailFailed(f"the jail's launcher reported nothing for {_START_TIMEOUT_S:.0f} s")
    return os.read(stream.fileno(), _BLOCK_BYTES)


def _launcher_error(process: subprocess.Popen[bytes]) -> str:
    """Why a launcher ended without a report: the last line that Python itself printed."""
    if process.stderr is None:
        return ""
    os.killpg(process.pid, signal.SIGKILL)
    return last_line(process.stderr.read().decode(errors="replace"))


def _collect(process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, str, bool]:
    """Read both outputs until the process ends or time is up, keeping the start of stdout and the end of stderr."""
    assert process.stdout is not None
    assert process.stderr is not None
    stdout, stderr = bytearray(), bytearray()
    cut = False
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, stdout)
        selector.register(process.stderr, selectors.EVENT_READ, stderr)
        while selector.get_map() and (left_s := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                block = os.read(key.fd, _BLOCK_BYTES)
                if not block:
                    selector.unregister(key.fileobj)
                key.data.extend(block)
                cut = cut or len(stderr) > _STDERR_BYTES
                del stdout[_STDOUT_BYTES:], stderr[:-_STDERR_BYTES]
    timed_out = not _ended_before(deadline, process.pid)
    if cut and b"\n" in stderr:
        del stderr[: stderr.index(b"\n") + 1]  # half a line, which would read as another message
    return bytes(stdout), stderr.decode(errors="replace"), timed_out


def _ended_before(deadline: float, pid: int) -> bool:
    """Wait without reaping: the group may hold more processes, and its number is only ours until we reap the first."""
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True
