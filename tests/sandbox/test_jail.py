"""What a jailed program can and cannot do. Each test runs a real program, mostly a Python that tries something."""

import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import lipsyncd
from lipsyncd.errors import JailFailed
from lipsyncd.sandbox import landlock
from lipsyncd.sandbox.jail import Completed, ResourceLimits, end, landlock_abi, popen_jailed, run_jailed
from tests.kits.machine.processes import is_alive
from tests.kits.media.media_kit import ffmpeg

PYTHON = [str(getattr(sys, "_base_executable", sys.executable)), "-P", "-S", "-c"]

PACKAGE = Path(lipsyncd.__file__).parent

needs_landlock = pytest.mark.skipif(not landlock.abi(), reason="this kernel has no Landlock")


# Prepended to a program: a system call filter makes this kernel look like one without Landlock.
WITHOUT_LANDLOCK = """
import ctypes, os
from lipsyncd.sandbox import call_table, seccomp
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
table = call_table.table_of(os.uname().machine)
seccomp._install(seccomp._assembled(table, [seccomp._refusal(444, 13)]))
"""


def inside(code: str, *, timeout_s: float = 20.0, **given) -> Completed:
    """Run Python code in the jail."""
    return run_jailed([*PYTHON, textwrap.dedent(code)], timeout_s=timeout_s, **given)


def output_of(code: str, **given) -> str:
    """What Python code prints in the jail; it has to succeed."""
    ended = inside(code, **given)
    assert ended.returncode == 0, ended.stderr_tail
    return ended.stdout.decode().strip()


# -- files -------------------------------------------------------------------------------------------------------------


@needs_landlock
@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/self/status", "/proc/cpuinfo", "/bin/sh", str(Path.home())])
def test_files_that_are_not_listed_cannot_be_opened(path):
    ended = inside(f"import os; os.open({path!r}, os.O_RDONLY)")
    assert "PermissionError" in ended.stderr_tail


@needs_landlock
def test_a_file_next_to_a_listed_one_cannot_be_opened(tmp_path):
    listed, other = tmp_path / "listed", tmp_path / "other"
    listed.write_text("mine")
    other.write_text("yours")

    assert output_of(f"print(open({str(listed)!r}).read())", readable=[listed]) == "mine"
    assert "PermissionError" in inside(f"open({str(other)!r})", readable=[listed]).stderr_tail


@needs_landlock
@pytest.mark.parametrize(
    "attempt",
    [
        "open(outside, 'w')",
        "open(listed, 'a')",
        "os.symlink('/etc/passwd', os.path.join(folder, 'link'))",
        "os.mkdir(os.path.join(folder, 'sub'))",
        "os.mkfifo(os.path.join(folder, 'fifo'))",
        "os.rename(os.path.join(folder, 'mine'), outside)",
        "os.link(listed, os.path.join(folder, 'stolen'))",
        "os.truncate(listed, 0)",
    ],
)
def test_nothing_is_written_outside_its_folder_and_only_regular_files_inside(tmp_path, attempt):
    folder, listed = tmp_path / "job", tmp_path / "listed"
    folder.mkdir()
    listed.write_text("input")
    names = f"import os; folder, listed, outside = {str(folder)!r}, {str(listed)!r}, {str(tmp_path / 'new')!r}\n"
    mine = "open(os.path.join(folder, 'mine'), 'w').write('result')\n"

    ended = inside(names + mine + attempt, readable=[listed], writable=[folder])

    assert "PermissionError" in ended.stderr_tail or "Invalid cross-device link" in ended.stderr_tail
    assert sorted(os.listdir(tmp_path)) == ["job", "listed"]
    assert (listed.read_text(), (folder / "mine").read_text()) == ("input", "result")


def test_a_program_may_fill_a_file_made_for_it_and_create_none_beside_it(tmp_path):
    target = tmp_path / "target"
    target.touch(0o600)

    ended = inside(f"open({str(target)!r}, 'w').write('x'); open({str(target)!r} + '2', 'w')", writable=[target])

    assert target.read_text() == "x"
    assert ("PermissionError" in ended.stderr_tail) is (landlock_abi() > 0)


@needs_landlock
def test_a_file_outside_cannot_be_reached_through_a_link_inside(tmp_path):
    folder = tmp_path / "job"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")

    assert "PermissionError" in inside(f"open({str(folder / 'link')!r})", readable=[folder]).stderr_tail


# -- network and other processes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"])
@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM"])
def test_no_socket_can_be_opened(family, kind):
    ended = inside(f"import socket; socket.socket(socket.{family}, socket.{kind})")
    assert "PermissionError" in ended.stderr_tail or "not supported" in ended.stderr_tail


def test_ffmpeg_cannot_reach_a_server_on_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        command = [str(ffmpeg()), "-nostdin", "-f", "wav", "-i", address, "-f", "null", "-"]

        ended = run_jailed(command, timeout_s=20)

        assert ended.returncode > 0
        assert "Permission denied" in ended.stderr_tail
        server.settimeout(0.3)
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.skipif(landlock.abi() < 4, reason="Landlock refuses TCP since ABI 4")
def test_landlock_alone_refuses_tcp():
    """What is left on an architecture that the system call filter does not know."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"""
            import ctypes, socket
            from lipsyncd.sandbox import landlock
            socket.create_connection(("127.0.0.1", {port})).close()
            ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
            print(landlock.restrict([]))
            for act in (lambda s: s.connect(("127.0.0.1", {port})), lambda s: s.bind(("127.0.0.1", 0))):
                try:
                    act(socket.socket())
                except PermissionError:
                    print("refused")
        """
        ended = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=20
        )
        assert ended.stdout.split() == [str(landlock.abi()), "refused", "refused"], ended.stderr


# -- programs and threads ----------------------------------------------------------------------------------------------


@needs_landlock
def test_a_program_in_a_writable_folder_does_not_run(tmp_path):
    program = tmp_path / "echo"
    code = f"""
        import os
        descriptor = os.open({str(program)!r}, os.O_WRONLY | os.O_CREAT, 0o700)
        os.write(descriptor, open("/bin/echo", "rb").read())
        os.close(descriptor)
        os.execv({str(program)!r}, ["echo", "ran"])
    """
    ended = inside(code, readable=[Path("/bin/echo")], writable=[tmp_path])
    assert "PermissionError" in ended.stderr_tail
    assert subprocess.check_output([program, "ran"]) == b"ran\n", "it does not run at all, so the test proves nothing"


@needs_landlock
def test_no_other_program_of_the_system_runs():
    assert "PermissionError" in inside("import os; os.execv('/bin/sh', ['sh', '-c', 'echo ran'])").stderr_tail


RUN_FROM_MEMORY = """
import os
descriptor = os.memfd_create("x")
os.write(descriptor, open("/bin/echo", "rb").read())
os.execv(f"/proc/self/fd/{descriptor}", ["echo", "ran"])
"""


def test_a_program_makes_no_file_in_memory_and_runs_none():
    ended = inside(RUN_FROM_MEMORY, readable=[Path("/bin/echo"), Path("/proc")])
    assert "line 3" in ended.stderr_tail
    assert "PermissionError" in ended.stderr_tail
    outside = subprocess.check_output([*PYTHON, RUN_FROM_MEMORY])
    assert outside == b"ran\n", "it does not run at all, so the test proves nothing"


def test_a_program_that_may_make_a_file_in_memory_gives_that_up_before_it_reads_anything():
    limits = ResourceLimits(memory_files=True)
    given = {"readable": [Path("/bin/echo"), Path("/proc")], "limits": limits}
    given_up = "from lipsyncd.sandbox import seccomp; seccomp.give_up('execve', 'memfd_create')\n"
    package = {"readable": [*given["readable"], PACKAGE], "python_path": [PACKAGE.parent]}
    assert "PermissionError" in inside(given_up + RUN_FROM_MEMORY, **{**given, **package}).stderr_tail
    assert (
        "PermissionError"
        in inside(
            f"import os; d = os.memfd_create('x')\n{given_up}os.execv('/bin/echo', ['echo'])", **{**given, **package}
        ).stderr_tail
    )


def test_threads_start_and_processes_do_not():
    code = """
        import os, subprocess, threading
        started = [threading.Thread(target=print, args=("thread",)) for _ in range(3)]
        for each in started:
            each.start()
        for each in started:
            each.join()
        for make in (os.fork, os.forkpty, lambda: subprocess.run(["/bin/true"])):
            try:
                make()
            except PermissionError:
                print("refused")
    """
    assert output_of(code).split() == ["thread"] * 3 + ["refused"] * 3


def test_a_program_may_signal_and_limit_itself():
    code = """
        import os, resource, signal
        signal.signal(signal.SIGUSR1, lambda *_: print("heard"))
        os.kill(os.getpid(), signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        resource.prlimit(0, resource.RLIMIT_CORE, (0, 0))
        resource.prlimit(os.getpid(), resource.RLIMIT_CORE, (0, 0))
    """
    assert output_of(code).split() == ["heard", "heard"]


def test_an_abort_still_ends_it():
    assert inside("import os; os.abort()").returncode == -signal.SIGABRT


# -- what a program starts with ----------------------------------------------------------------------------------------


def test_it_starts_with_three_descriptors_a_bare_environment_and_no_new_privileges(monkeypatch):
    monkeypatch.setenv("API_KEY", "secret")
    leaked = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    try:
        code = """
            import ctypes, os
            open_now = []
            for number in range(64):
                try:
                    os.fstat(number)
                    open_now.append(number)
                except OSError:
                    pass
            print(open_now, "API_KEY" in os.environ, "HOME" in os.environ, oct(os.umask(0)), os.getcwd())
            print(ctypes.CDLL(None).prctl(39, 0, 0, 0, 0), os.getsid(0) == os.getpgid(0) == os.getpid())
        """
        assert output_of(code).splitlines() == ["[0, 1, 2] False False 0o77 /", "1 True"]
    finally:
        os.close(leaked)


def test_its_signals_are_reset_although_a_thread_of_ours_blocks_some():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        code = "import signal; print(len(signal.pthread_sigmask(signal.SIG_BLOCK, ())))"
        assert output_of(code) == "0"
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def test_memory_is_never_writable_and_executable_unless_asked_for():
    code = "import mmap; mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC); print('both')"
    probe = "import ctypes; print(ctypes.CDLL(None).prctl(66, 0, 0, 0, 0))"
    if output_of(probe) != "1":
        pytest.skip("a kernel before 6.3 cannot refuse it")
    assert "PermissionError" in inside(code).stderr_tail
    assert output_of(code, limits=ResourceLimits(write_or_execute=False)) == "both"


# -- limits ------------------------------------------------------------------------------------------------------------


def test_processor_time_is_limited():
    ended = inside("while True: pass", limits=ResourceLimits(cpu_s=1))
    assert ended.returncode in (-signal.SIGXCPU, -signal.SIGKILL)
    assert not ended.timed_out


def test_memory_is_limited():
    assert "MemoryError" in inside("bytearray(600 << 20)", limits=ResourceLimits(memory_bytes=512 << 20)).stderr_tail


def test_the_size_of_a_file_is_limited(tmp_path):
    code = f"import signal; f = open({str(tmp_path / 'f')!r}, 'wb')\nwhile True: f.write(b'x' * 65536)"
    ended = inside(code, writable=[tmp_path], limits=ResourceLimits(file_bytes=1 << 20))
    # Python ignores SIGXFSZ and sees an error; other programs are killed by it.
    assert "File too large" in ended.stderr_tail
    assert (tmp_path / "f").stat().st_size == 1 << 20


def test_open_files_and_core_dumps_are_limited():
    code = "import resource as r; print(r.getrlimit(r.RLIMIT_NOFILE), r.getrlimit(r.RLIMIT_CORE))"
    assert output_of(code, limits=ResourceLimits(open_files=20)) == "(20, 20) (0, 0)"


def test_the_timeout_kills_it():
    started = time.monotonic()
    ended = inside("import time; time.sleep(60)", timeout_s=1.5)

    assert ended.timed_out
    assert ended.returncode == -signal.SIGKILL
    assert time.monotonic() - started < 10


def test_it_is_killed_when_its_parent_dies(tmp_path):
    pid = tmp_path / "pid"
    code = f"""
        import sys, time
        from pathlib import Path
        from lipsyncd.sandbox.jail import popen_jailed
        process = popen_jailed([*{PYTHON!r}, "import time; time.sleep(60)"])
        Path({str(pid)!r}).write_text(str(process.pid))
        time.sleep(60)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    try:
        _wait_until(lambda: pid.exists() and pid.read_text())
    finally:
        parent.kill()
        parent.wait()
    assert _gone([int(pid.read_text())])


# -- input and output --------------------------------------------------------------------------------------------------


def test_of_much_output_only_a_part_is_kept():
    ended = inside("import sys; sys.stdout.write('o' * 9_000_000); sys.stderr.write('e' * 9_000_000 + 'end')")
    assert ended.stdout == b"o" * 65_536
    assert len(ended.stderr_tail) == 16_384
    assert ended.stderr_tail.endswith("eend")
    lines = inside("import sys; sys.stderr.write('a line of text\\n' * 9_000)").stderr_tail.splitlines()
    assert set(lines) == {"a line of text"}


def test_a_long_running_program_reads_from_our_pipe_and_is_ended_by_us(tmp_path):
    target = tmp_path / "copy"
    code = f"import shutil, sys; shutil.copyfileobj(sys.stdin.buffer, open({str(target)!r}, 'wb'))"
    process = popen_jailed([*PYTHON, code], writable=[tmp_path])
    assert process.stdin is not None
    process.stdin.write(b"frames" * 1000)
    process.stdin.close()
    assert process.wait(20) == 0
    end(process)
    assert target.read_bytes() == b"frames" * 1000

    idle = popen_jailed([*PYTHON, "import sys; sys.stdin.read()"])
    end(idle)
    end(idle)
    assert idle.returncode == -signal.SIGKILL


def test_many_threads_start_jails_at_once():
    results: list[str] = []
    threads = [threading.Thread(target=lambda n=n: results.append(output_of(f"print({n})"))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [str(n) for n in range(8)]


def test_a_missing_program_is_a_failure_of_the_jail(tmp_path):
    with pytest.raises(JailFailed, match=r"no-such-program does not start in the jail: .*No such file"):
        run_jailed([str(tmp_path / "no-such-program")], timeout_s=5)


@needs_landlock
def test_a_missing_listed_file_is_a_failure_of_the_jail(tmp_path):
    with pytest.raises(JailFailed, match="No such file"):
        run_jailed(["/bin/true"], readable=[tmp_path / "missing"], timeout_s=5)


def test_a_kernel_without_landlock_is_logged_once_and_work_goes_on():
    code = """
        import logging
        logging.basicConfig(format="%(levelname)s %(message)s")
        from lipsyncd.sandbox.jail import run_jailed
        for _ in range(2):
            ended = run_jailed(["/bin/true"], timeout_s=10)
            print(ended.returncode, ended.landlock)
    """
    command = [sys.executable, "-c", WITHOUT_LANDLOCK + textwrap.dedent(code)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert ended.stdout.splitlines() == ["0 False", "0 False"], ended.stderr
    assert ended.stderr.count("WARNING this kernel has no Landlock") == 1


@needs_landlock
def test_the_result_tells_that_landlock_was_active(caplog):
    with caplog.at_level(logging.WARNING):
        assert run_jailed(["/bin/true"], timeout_s=10).landlock
    assert not caplog.records


def _wait_until(condition, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def _gone(pids: list[int]) -> bool:
    """True once none of them runs; a zombie that is not reaped yet counts as gone."""
    _wait_until(lambda: not any(map(is_alive, pids)))
    return True
