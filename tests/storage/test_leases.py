"""Who else writes a file, as the kernel tells it: for our own files, for other users' files, and without the right."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lipsyncd.storage import leases, mounts
from lipsyncd.storage.files import open_regular
from lipsyncd.storage.leases import sees_other_users_writers, written_by_others
from tests.kits.core_kit import as_nobody
from tests.kits.installation import ROOT
from tests.kits.machine.machine_kit import needs_root
from tests.kits.machine.users_kit import CAP_LEASE, DAEMON, MEMBER, capabilities, needs_users, python

_WRITER = "import sys; f = open(sys.argv[1], 'ab'); print('open', flush=True); sys.stdin.read(); f.close()"


@contextmanager
def open_for_writing(path: Path, *before: str) -> Iterator[None]:
    """Another process has the file open for writing; `before` runs it as another user."""
    command = [*before, python() if before else sys.executable, "-P", "-S", "-c", _WRITER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/") as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"open\n"
        yield
        writer.stdin.close()
        writer.wait(10)


def ask(path: Path) -> bool | None:
    leases.expect_lease_signals()
    descriptor = open_regular(path)
    try:
        return written_by_others(descriptor)
    finally:
        os.close(descriptor)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that all users may enter and write."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


def members_file(folder: Path) -> Path:
    path = folder / "a.wav"
    path.write_bytes(b"RIFF")
    os.chown(path, MEMBER.uid, MEMBER.gid)
    path.chmod(0o644)
    return path


def printed(program: str, *before: str) -> str:
    """The output of a program that may import the package; `before` runs it as another user."""
    begin = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from lipsyncd.storage import leases
leases.expect_lease_signals()
"""
    command = [*before, python() if before else sys.executable, "-P", "-c", begin + program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def asked_by(path: Path, *before: str) -> str:
    return printed(f"print(leases.written_by_others(os.open({str(path)!r}, os.O_RDONLY)))", *before)


# -- our own files -----------------------------------------------------------------------------------------------------


def test_a_writer_in_another_process_is_noticed_while_it_has_the_file_open(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF")
    with open_for_writing(path):
        assert ask(path) is True
    assert ask(path) is False
    # The lease was given back: a process that opens it to write now does not wait for us.
    subprocess.run(
        [sys.executable, "-c", "import sys; open(sys.argv[1], 'ab').write(b'x')", path], timeout=10, check=True
    )


def test_a_reader_is_no_writer(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF")
    with path.open("rb"):
        assert ask(path) is False


def test_a_lease_that_breaks_does_not_kill_us(tmp_path: Path) -> None:
    """The kernel sends SIGIO to the holder of a lease when a process opens the file to write: by default that kills."""
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF")
    program = f"""
import threading
path = Path({str(path)!r})
def write():
    for _ in range(2000):
        path.open("ab").close()
writer = threading.Thread(target=write)
writer.start()
while writer.is_alive():
    descriptor = os.open(path, os.O_RDONLY)
    leases.written_by_others(descriptor)
    os.close(descriptor)
print("alive")
"""
    assert printed(program) == "alive"


@pytest.mark.parametrize("open_elsewhere", [False, True])
def test_on_a_file_system_that_leases_only_what_its_server_delegated_a_refusal_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_elsewhere: bool
) -> None:
    """NFS and CIFS answer EAGAIN for a file that no one writes. None can be mounted here: this folder counts as one."""
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF")
    monkeypatch.setitem(mounts._NETWORK_MAGIC, mounts._magic(tmp_path), "nfs")
    if not open_elsewhere:
        assert ask(path) is False
        return
    with open_for_writing(path):
        assert ask(path) is None


# -- other users' files ------------------------------------------------------------------------------------------------


def test_another_users_file_gives_no_answer_without_the_right(tmp_path: Path) -> None:
    """Then nothing is known, and the settle time decides."""
    if os.geteuid() != 0:
        path = Path("/etc/passwd")
    else:
        path = tmp_path / "a.wav"
        path.write_bytes(b"RIFF")
        path.chmod(0o644)
    assert as_nobody(lambda: ask(path), tmp_path) is None


@needs_users
def test_with_the_right_another_users_writer_is_noticed(shared: Path) -> None:
    path = members_file(shared)
    with_lease, without = DAEMON.command(lease=True), DAEMON.command()
    with open_for_writing(path, *MEMBER.command()):
        assert (asked_by(path, *with_lease), asked_by(path, *without)) == ("True", "None")
    assert (asked_by(path, *with_lease), asked_by(path, *without)) == ("False", "None")


_TRY = "print(leases.sees_other_users_writers(Path('/nowhere')))"


@needs_users
def test_the_right_is_tried_and_not_read_from_a_list_of_capabilities() -> None:
    """In a user namespace the process has every capability by its own account, and the kernel grants no lease."""
    assert printed(_TRY, *DAEMON.command(lease=True)) == "True"
    assert printed(_TRY, *DAEMON.command()) == "False"
    inside = ["unshare", "--user", "--map-root-user"]
    has = f"print(bool(int(open('/proc/self/status').read().split('CapEff:')[1].split()[0], 16) >> {CAP_LEASE} & 1))\n"
    assert printed(has + _TRY, *MEMBER.command(), *inside).split() == ["True", "False"]


@needs_root
def test_root_tries_it_on_a_file_that_it_gives_away(tmp_path: Path) -> None:
    leases.expect_lease_signals()
    assert sees_other_users_writers(tmp_path) is True
    assert os.listdir(tmp_path) == []


# -- the right stays with us -------------------------------------------------------------------------------------------


@needs_users
def test_the_right_stays_and_no_child_gets_it(shared: Path) -> None:
    path = members_file(shared)
    show = "import sys; print(*(l.split()[1] for l in open('/proc/self/status') if l[:3] == 'Cap' and l[3:6] != 'Bnd'))"
    program = f"""
import subprocess
show = [sys.executable, "-S", "-c", {show!r}]
print(subprocess.run(show, capture_output=True, text=True).stdout.strip())
leases.keep_rights_from_children()
print(subprocess.run(show, capture_output=True, text=True).stdout.strip())
print(leases.written_by_others(os.open({str(path)!r}, os.O_RDONLY)))
"""
    before, after, answer = printed(program, *DAEMON.command(lease=True)).splitlines()
    lease, none = f"{1 << CAP_LEASE:016x}", f"{0:016x}"
    assert before.split() == [lease] * 4, "inheritable, permitted, effective, ambient: the child would have it"
    assert after.split() == [none] * 4
    assert answer == "False"


def test_a_process_without_capabilities_may_call_it_too() -> None:
    def work() -> int:
        leases.keep_rights_from_children()
        return capabilities("self")["Eff"]

    assert as_nobody(work) == 0
