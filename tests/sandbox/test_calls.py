"""The jail's list, call by call, from a program that the launcher has started; and the same calls outside of it.

Outside, each call has to reach the kernel and work, or to fail for its arguments. Otherwise its refusal in the jail
would prove nothing.
"""

from __future__ import annotations

import errno
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lipsyncd.sandbox.call_table import CallTable, table_of
from lipsyncd.sandbox.jail import run_jailed
from lipsyncd.sandbox.seccomp import program
from tests.sandbox.test_jail import PYTHON

MACHINE = os.uname().machine
TABLE = table_of(MACHINE)

pytestmark = pytest.mark.skipif(TABLE is None, reason=f"the filter does not know {MACHINE}")

# Makes each call with its arguments: a number, a text, "hex:" bytes, so many "zeros:", "=CALL", what an earlier call
# gave, or a name of `given`. Prints the error of each call by its name; 0 for none.
PROGRAM = """
import ctypes, json, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)  # a watched folder sends it
attempts, numbers, given = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
given["pgrp"], given["self"], given["pipe"] = os.getpgrp(), os.getpid(), os.pipe()[1]
given["fd"] = os.open(given["file"], os.O_RDONLY)
try:
    given["folder"] = os.open(os.path.dirname(given["file"]), os.O_RDONLY)
except PermissionError:  # in the jail
    given["folder"] = 0
results, errors, kept = {}, {}, []

def argument(value):
    if isinstance(value, int):
        return ctypes.c_long(value)
    if value.startswith("="):
        return ctypes.c_long(results[value[1:]])
    if value.startswith("hex:"):
        kept.append(ctypes.create_string_buffer(bytes.fromhex(value[4:]), max(8, len(value) // 2)))
        return kept[-1]
    if value.startswith("zeros:"):
        kept.append(ctypes.create_string_buffer(max(8, int(value[6:]))))
        return kept[-1]
    value = given.get(value, value)
    return ctypes.c_long(value) if isinstance(value, int) else ctypes.c_char_p(value.encode())

for name, arguments in attempts:
    results[name] = libc.syscall(numbers[name.split()[0]], *map(argument, arguments))
    if results[name] == 0 and name.split()[0] in ("fork", "clone", "clone3"):
        os._exit(0)
    errors[name] = ctypes.get_errno() if results[name] < 0 else 0
print(json.dumps(errors))
"""

FILE, VICTIM, HERE = "file", "victim", -100


def zeros(count: int) -> str:
    return f"zeros:{count}"


def packed(*fields: tuple[int, int]) -> str:
    """Numbers as (value, bytes)."""
    return "hex:" + b"".join(value.to_bytes(size, "little", signed=value < 0) for value, size in fields).hex()


@dataclass(frozen=True)
class Attempt:
    """One call. `outside` are the errors that it may give outside of the jail; "" is success."""

    arguments: tuple[int | str, ...] = ()
    outside: tuple[str, ...] = ("",)
    inside: int = errno.EACCES


def works(*arguments: int | str, inside: int = errno.EACCES) -> Attempt:
    return Attempt(arguments, ("",), inside)


def fails(errors: str, *arguments: int | str) -> Attempt:
    """The kernel takes the call up and refuses its arguments with one of these errors; success has no word."""
    return Attempt(arguments, tuple(errors.split()))


XATTR = "user.x"
UNSUPPORTED = "ENOTSUP"  # of attributes, by the file system of the temporary folder
SIGNAL_INFO = packed((0, 4), (0, 4), (-1, 4), (0, 116))  # si_code SI_QUEUE
ATTEMPTS = {
    # -- processes
    "fork": works(inside=errno.EPERM),
    "clone": works(17, 0, 0, 0, 0, inside=errno.EPERM),
    "clone NEWUSER": Attempt((0x10000000 | 17, 0, 0, 0, 0), ("", "EPERM", "EUSERS", "ENOSPC"), errno.EPERM),
    "clone3": works(packed((0, 32), (17, 8), (0, 24)), 64, inside=errno.ENOSYS),
    "setpgid": works(0, "pgrp"),
    "setsid": works(),
    "execveat": fails("ENOENT", HERE, "/none", 0, 0, 0),
    # -- sockets
    "socket": works(1, 2, 0),
    "socketpair": works(1, 2, 0, zeros(8)),
    # -- other processes
    "ptrace": fails("ESRCH", 7, VICTIM, 0, 0),
    "process_vm_readv": works(VICTIM, 0, 0, 0, 0, 0),
    "process_vm_writev": works(VICTIM, 0, 0, 0, 0, 0),
    "process_madvise": fails("EBADF", -1, 0, 0, 0, 0),
    "process_mrelease": fails("EBADF", -1, 0),
    "kcmp": works("self", "self", 1, 0, 0),
    "pidfd_open": works(VICTIM, 0),
    "pidfd_getfd": fails("EBADF", -1, 0, 0),
    "pidfd_send_signal": fails("EBADF", -1, 0, 0, 0),
    "tkill": works(VICTIM, 0),
    "kill": works(VICTIM, 0),
    "kill its group": works(0, 0),
    "tgkill": works(VICTIM, VICTIM, 0),
    "rt_sigqueueinfo": works(VICTIM, 0, SIGNAL_INFO),
    "rt_tgsigqueueinfo": works(VICTIM, VICTIM, 0, SIGNAL_INFO),
    "prlimit64": works(VICTIM, 4, packed((0, 8), (0, 8)), 0),
    "sched_setparam": works(VICTIM, zeros(4)),
    "sched_setscheduler": works(VICTIM, 0, zeros(4)),
    "sched_setaffinity": works(VICTIM, 128, "hex:" + "ff" * 128),
    "sched_setattr": works(VICTIM, packed((48, 4), (0, 4), (0x18, 8), (0, 32)), 0),
    "setpriority": works(0, VICTIM, 1),
    "ioprio_set": works(1, VICTIM, 2 << 13 | 7),
    "migrate_pages": Attempt((VICTIM, 0, 0, 0), ("", "EINVAL", "EPERM")),
    "move_pages": works(VICTIM, 0, 0, 0, 0, 0),
    "prctl PDEATHSIG": works(1, 0, 0, 0, 0),
    "fcntl SETOWN": works("fd", 8, VICTIM),
    "fcntl SETOWN_EX": works("fd", 15, packed((1, 4), (0, 4))),
    "fcntl NOTIFY": works("folder", 1026, 2),
    "fcntl SETPIPE_SZ": works("pipe", 1031, 1 << 17),
    # -- files outside
    "chmod": works(FILE, 0o644),
    "fchmod": works("fd", 0o644),
    "fchmodat": works(HERE, FILE, 0o644),
    "fchmodat2": works(HERE, FILE, 0o644, 0),
    "chown": works(FILE, -1, -1),
    "fchown": works("fd", -1, -1),
    "lchown": works(FILE, -1, -1),
    "fchownat": works(HERE, FILE, -1, -1, 0),
    "utime": works(FILE, 0),
    "utimes": works(FILE, 0),
    "futimesat": works(HERE, FILE, 0),
    "utimensat": works(HERE, FILE, 0, 0),
    "truncate": works(FILE, 1),
    **{
        f"{how}{what}xattr": Attempt((place, *arguments), ("", UNSUPPORTED))
        for how, place in (("", FILE), ("l", FILE), ("f", "fd"))
        for what, arguments in (
            ("set", (XATTR, "1", 1, 0)),
            ("get", (XATTR, zeros(16), 16)),
            ("list", (zeros(256), 256)),
            ("remove", (XATTR,)),
        )
    },
    "setxattrat": fails("EINVAL", HERE, FILE, 0, XATTR, 0, 0),
    "getxattrat": fails("EINVAL", HERE, FILE, 0, XATTR, 0, 0),
    "listxattrat": Attempt((HERE, FILE, 0, zeros(256), 256), ("", UNSUPPORTED)),
    "removexattrat": fails(f"ENODATA {UNSUPPORTED}", HERE, FILE, 0, "user.none"),
    "file_setattr": fails("EINVAL", HERE, FILE, zeros(8), 0, 0),
    "open_by_handle_at": fails("EBADF EINVAL EPERM ESTALE", -1, zeros(64), 0),
    "inotify_init": works(),
    "inotify_init1": works(0),
    "fanotify_init": Attempt((0, 0), ("", "EPERM")),
    # -- memory that no limit counts, and messages
    "shmget": works(0, 4096, 0o1600),
    "shmat": works("=shmget", 0, 0),
    "shmdt": works("=shmat"),
    "shmctl": works("=shmget", 0, 0),
    "semget": works(0, 1, 0o1600),
    "semop": works("=semget", zeros(6), 1),
    "semtimedop": works("=semget", zeros(6), 1, 0),
    "semctl": works("=semget", 0, 0, 0),
    "msgget": works(0, 0o1600),
    "msgsnd": works("=msgget", packed((1, 8), (1, 8)), 1, 0),
    "msgrcv": works("=msgget", zeros(16), 1, 0, 0),
    "msgctl": works("=msgget", 0, 0),
    "mq_open": works("name", 0o102, 0o600, 0),
    "mq_timedsend": works("=mq_open", "x", 1, 0, 0),
    "mq_timedreceive": works("=mq_open", zeros(65536), 65536, 0, 0),
    "mq_getsetattr": works("=mq_open", 0, zeros(64)),
    "mq_notify": works("=mq_open", 0),
    "mq_unlink": works("name"),
    "memfd_create": works("x", 0),
    "memfd_secret": works(0),
    # -- the kernel
    "unshare": works(0),
    "setns": fails("EBADF", -1, 0),
    "io_uring_setup": Attempt((1, zeros(120)), ("", "EPERM")),
    "io_uring_enter": fails("EBADF EPERM", -1, 0, 0, 0, 0, 0),
    "io_uring_register": fails("EBADF EINVAL EPERM", -1, 0, 0, 0),
    "bpf": fails("EINVAL EPERM EFAULT", 0, 0, 0),
    "perf_event_open": fails("EINVAL", 0, 0, -1, -1, 1 << 20),
    "userfaultfd": fails("EINVAL EPERM", 1 << 20),
    "add_key": works("user", "x", "y", 1, -2),
    "request_key": fails("ENOKEY", "user", "none", 0, 0),
    "keyctl": works(0, -2, 0),
}


def known(table: CallTable) -> dict[str, int]:
    return {**table.refused, **table.others}


def attempted() -> dict[str, Attempt]:
    """Those that this machine has. `vfork` cannot be made from Python, see below."""
    assert TABLE is not None
    return {name: attempt for name, attempt in ATTEMPTS.items() if name.split()[0] in known(TABLE)}


@pytest.fixture
def victim() -> Iterator[int]:
    """A process of the same user."""
    process = subprocess.Popen(["sleep", "60"])
    yield process.pid
    assert process.poll() is None, "it was ended"
    process.kill()
    process.wait()


@pytest.fixture
def request_text(tmp_path: Path, victim: int) -> str:
    assert TABLE is not None
    (tmp_path / "file").write_text("content")
    given = {FILE: str(tmp_path / "file"), VICTIM: victim, "name": f"lipsyncd-test-{os.getpid()}"}
    return json.dumps([[(name, each.arguments) for name, each in attempted().items()], known(TABLE), given])


def name_of(error: int) -> str:
    return errno.errorcode[error] if error else "works"


def test_every_call_of_the_list_is_refused_in_the_jail(tmp_path: Path, request_text: str) -> None:
    ended = run_jailed([*PYTHON, PROGRAM, request_text], readable=[tmp_path / "file"], timeout_s=20)
    assert ended.returncode == 0, ended.stderr_tail
    found = {name: name_of(error) for name, error in json.loads(ended.stdout).items()}
    assert found == {name: name_of(attempt.inside) for name, attempt in attempted().items()}
    assert (tmp_path / "file").read_text() == "content"


def test_outside_of_the_jail_the_same_calls_reach_the_kernel(request_text: str) -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM, request_text], capture_output=True, text=True, timeout=20)
    assert ended.returncode == 0, ended.stderr
    found = {name: name_of(error) for name, error in json.loads(ended.stdout).items()}
    missing = [name for name, result in found.items() if result == "ENOSYS"]  # younger than this kernel, or left out
    assert len(missing) < 20
    allowed = {name: [error or "works" for error in attempt.outside] for name, attempt in attempted().items()}
    surprises = {name: result for name, result in found.items() if name not in missing and result not in allowed[name]}
    assert surprises == {}
    for name, attempt in attempted().items():
        assert found[name] != name_of(attempt.inside), f"{name} gives the same without the jail"


def test_nothing_of_the_list_is_left_out_here() -> None:
    assert TABLE is not None
    tried = {name.split()[0] for name in attempted()}
    assert tried == known(TABLE).keys() - {"vfork", "execve"}  # each has a test of its own


def test_vfork_is_refused_in_the_jail() -> None:
    if TABLE is None or "vfork" not in TABLE.refused:
        pytest.skip("this machine has no vfork")
    call = f"libc.syscall({TABLE.refused['vfork']})"
    code = f"import ctypes, os; libc = ctypes.CDLL(None, use_errno=True); made = {call}\n"
    ended = run_jailed([*PYTHON, f"{code}print(made, ctypes.get_errno())"], timeout_s=20)
    assert ended.stdout.split() == [b"-1", str(errno.EPERM).encode()], ended.stderr_tail
    # Outside the child writes and ends; afterwards its parent, whose stack it has used, may crash.
    outside = subprocess.run(
        [sys.executable, "-c", f"{code}if not made: os.write(1, b'child'); os._exit(0)"],
        capture_output=True,
        timeout=20,
    )
    assert outside.stdout == b"child"


# -- the numbers -------------------------------------------------------------------------------------------------------

HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"),
    "aarch64": ("/usr/include/asm-generic/unistd.h",),
}


@pytest.mark.parametrize("machine", HEADERS)
def test_the_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    header = next((Path(path) for path in HEADERS[machine] if Path(path).exists()), None)
    if header is None:
        pytest.skip("the kernel's headers are not installed")
    lines = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", header.read_text(), re.MULTILINE)
    theirs = {name: int(number) for name, number in lines}
    table = table_of(machine)
    assert table is not None
    ours = known(table)
    assert {name: ours[name] for name in ours if name in theirs} == {n: theirs[n] for n in ours if n in theirs}
    younger = ours.keys() - theirs.keys()
    assert all(ours[name] > 446 for name in younger), younger
    assert len(younger) < 10


def test_a_machine_that_we_do_not_know_has_no_table() -> None:
    assert table_of("riscv64") is None


# -- the filters of both machines, one of which is not this one --------------------------------------------------------

ALLOWED, OWN, OTHER = "allowed", 4242, 17


def verdict(filter_of: list[bytes], number: int, *arguments: int, audit: int) -> str:
    """What a filter answers to a call, as the kernel computes it: "allowed" or the name of an error.

    Source: Linux, Documentation/userspace-api/seccomp_filter.rst and Documentation/networking/filter.rst.
    """
    data = struct.pack("<iIQ6Q", number, audit, 0, *(value % 2**64 for value in (*arguments, *[0] * 6)[:6]))
    accumulator = at = 0
    while True:
        code, then, otherwise, value = struct.unpack("=HBBI", filter_of[at])
        at += 1
        if code == 0x20:
            accumulator = int.from_bytes(data[value : value + 4], "little")
        elif code == 0x06:
            return ALLOWED if value == 0x7FFF0000 else errno.errorcode[value & 0xFFFF]
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: accumulator & value != 0}[code]
            at += then if holds else otherwise


@pytest.mark.parametrize("machine", HEADERS)
def test_the_filter_of_each_machine_refuses_its_list_and_nothing_else(machine: str) -> None:
    table = table_of(machine)
    assert table is not None
    made = program(table, OWN, memory_files=False)
    assert len(made) < 4096

    def asked(number: int, *arguments: int) -> str:
        return verdict(made, number, *arguments, audit=table.audit)

    for name, number in table.refused.items():
        assert asked(number) == ("EPERM" if name in ("fork", "vfork") else "EACCES"), name
    others = set(range(512)) - set(known(table).values())
    assert {asked(number) for number in others} == {ALLOWED}
    assert verdict(made, 0, audit=0x40000003) == "EACCES", "32 bit calls"
    assert asked(0x40000000) == "EACCES", "x32 calls"


@pytest.mark.parametrize("machine", HEADERS)
def test_calls_that_are_sometimes_refused_go_by_their_arguments(machine: str) -> None:
    table = table_of(machine)
    assert table is not None
    made, more = (program(table, OWN, memory_files=allowed) for allowed in (False, True))

    def asked(name: str, *arguments: int) -> str:
        return verdict(made, table.others[name], *arguments, audit=table.audit)

    threads = 0x3D0F00  # what the C library uses
    assert (asked("clone", threads), asked("clone", threads & ~0x10000), asked("clone", 17)) == (
        ALLOWED,
        "EPERM",
        "EPERM",
    )
    assert asked("clone3", 1, 88) == "ENOSYS"
    assert [asked("prlimit64", pid) for pid in (0, OWN, OTHER, 1 << 32 | OTHER)] == [
        ALLOWED,
        ALLOWED,
        "EACCES",
        "EACCES",
    ]
    for name in ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"):
        assert [asked(name, pid) for pid in (OWN, OTHER, 0, -1, -OWN)] == [ALLOWED, *["EACCES"] * 4], name
    assert [asked("prctl", option) for option in (1, 15, 22, 38)] == ["EACCES", ALLOWED, ALLOWED, ALLOWED]
    assert [asked("fcntl", 0, command) for command in (8, 15, 1026, 1031)] == ["EACCES"] * 4
    assert {asked("fcntl", 8, command) for command in (0, 1, 2, 3, 4, 5, 6, 7, 9, 1030, 1032, 1033)} == {ALLOWED}
    memory = table.others["memfd_create"]
    assert verdict(made, memory, audit=table.audit) == "EACCES"
    assert verdict(more, memory, audit=table.audit) == ALLOWED
    assert asked("execve") == ALLOWED  # of what Landlock lets it run
