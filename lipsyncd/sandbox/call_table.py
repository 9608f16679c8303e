"""The system calls that a jailed program may not make, and their numbers on each machine that we know.

Landlock guards the content of files and TCP. What it leaves open is refused here: new processes, all other sockets,
signals and limits of other processes, modes, owners, times and attributes of files outside, memory that no limit
counts, and parts of the kernel where most escapes were found.

Owns the lists. Leaves the filter that is made of them to `seccomp`.
Source of the numbers: Linux, arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

# name  number on x86_64  number on aarch64; "-": that machine has no such call.
_REFUSED = """
    fork                57    -
    vfork               58    -
    setsid             112  157
    setpgid            109  154
    execveat           322  281

    socket              41  198
    socketpair          53  199

    ptrace             101  117
    process_vm_readv   310  270
    process_vm_writev  311  271
    process_madvise    440  440
    process_mrelease   448  448
    kcmp               312  272
    pidfd_open         434  434
    pidfd_getfd        438  438
    pidfd_send_signal  424  424
    tkill              200  130
    setpriority        141  140
    sched_setparam     142  118
    sched_setscheduler 144  119
    sched_setaffinity  203  122
    sched_setattr      314  274
    ioprio_set         251   30
    migrate_pages      256  238
    move_pages         279  239

    chmod               90    -
    fchmod              91   52
    fchmodat           268   53
    fchmodat2          452  452
    chown               92    -
    fchown              93   55
    lchown              94    -
    fchownat           260   54
    utime              132    -
    utimes             235    -
    futimesat          261    -
    utimensat          280   88
    truncate            76   45
    setxattr           188    5
    lsetxattr          189    6
    fsetxattr          190    7
    getxattr           191    8
    lgetxattr          192    9
    fgetxattr          193   10
    listxattr          194   11
    llistxattr         195   12
    flistxattr         196   13
    removexattr        197   14
    lremovexattr       198   15
    fremovexattr       199   16
    setxattrat         463  463
    getxattrat         464  464
    listxattrat        465  465
    removexattrat      466  466
    file_setattr       469  469
    open_by_handle_at  304  265
    inotify_init       253    -
    inotify_init1      294   26
    fanotify_init      300  262

    shmget              29  194
    shmctl              31  195
    shmat               30  196
    shmdt               67  197
    semget              64  190
    semctl              66  191
    semtimedop         220  192
    semop               65  193
    msgget              68  186
    msgctl              71  187
    msgrcv              70  188
    msgsnd              69  189
    mq_open            240  180
    mq_unlink          241  181
    mq_timedsend       242  182
    mq_timedreceive    243  183
    mq_notify          244  184
    mq_getsetattr      245  185
    memfd_secret       447  447

    unshare            272   97
    setns              308  268
    io_uring_setup     425  425
    io_uring_enter     426  426
    io_uring_register  427  427
    bpf                321  280
    perf_event_open    298  241
    userfaultfd        323  282
    add_key            248  217
    request_key        249  218
    keyctl             250  219
"""

# Refused for some of their arguments, or to some programs; see `seccomp`.
_CONDITIONAL = """
    clone               56  220
    clone3             435  435
    kill                62  129
    tgkill             234  131
    rt_sigqueueinfo    129  138
    rt_tgsigqueueinfo  297  240
    prlimit64          302  261
    prctl              157  167
    fcntl               72   25
    memfd_create       319  279
    execve              59  221
"""

_AUDIT_NUMBERS = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


class CallTable:
    """The calls of one machine. No dataclass, since every jailed program waits for its imports.

    audit    its number in the kernel's audit interface
    refused  calls that are always refused, by name
    others   calls that are refused only sometimes, by name
    """

    def __init__(self, audit: int, refused: Mapping[str, int], others: Mapping[str, int]) -> None:
        self.audit, self.refused, self.others = audit, refused, others


@cache
def table_of(machine: str) -> CallTable | None:
    """The table of a machine as `uname -m` names it; None for one that we do not know."""
    audit = _AUDIT_NUMBERS.get(machine)
    if audit is None:
        return None
    column = list(_AUDIT_NUMBERS).index(machine)
    return CallTable(audit, dict(_numbers(_REFUSED, column)), dict(_numbers(_CONDITIONAL, column)))


def _numbers(text: str, column: int) -> Iterator[tuple[str, int]]:
    for line in text.split("\n"):
        name, *numbers = line.split() or [""]
        if name and numbers[column] != "-":
            yield name, int(numbers[column])
