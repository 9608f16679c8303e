"""Judges a strace record of a daemon: which process opened which file, outside the jail and inside it.

`violations` compares each call with the calls that its program may make. The lists hold what programs really open,
which is less than the jail allows. Paths are those of the kernel's descriptors, so a link cannot hide a file.
"""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import PIL

import lipsyncd
from lipsyncd.prepare import decoder_process
from tests.kits.faults.trace_kit import MAKES_A_CHILD, Event, Origin, with_origins
from tests.kits.media.media_kit import ffmpeg

OPENS = ("open", "openat", "openat2", "creat")
NETWORK = ("socket", "connect", "bind", "listen", "accept", "accept4", "sendto", "sendmsg", "sendmmsg", "recvmsg")
CALLS = ",".join([
    "landlock_restrict_self", "execve", "execveat", *MAKES_A_CHILD, *OPENS, *NETWORK, "socketpair",
    "open_by_handle_at", "name_to_handle_at", "io_uring_setup", "ptrace", "process_vm_readv", "process_vm_writev",
    "pidfd_getfd", "mount", "move_mount", "unshare", "setns", "truncate", "rename", "renameat", "renameat2",
    "link", "linkat", "symlink", "symlinkat", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "mknod", "mknodat",
    "chmod", "fchmodat", "chown", "lchown", "fchownat", "setxattr", "lsetxattr",
])  # fmt: skip
OPTIONS = ("-s", "8192", "-e", "signal=none")  # command lines as a whole

_WRITES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND")
_INPUTS = ("image", "audio", "manifest")
_MADE_IN_THE_JAIL = ("picture.rgb", "speech.s16", "sound.s16")
_USERS_FILE = re.compile(
    r"inbox/(?!\.lipsyncd)[^/]+|spool/[^/]+/(?:image|audio|manifest)|(?:failed|archive)/.+\.(?:png|wav|mp4|mov|webm)"
)
# How the daemon itself opens users' files, as path and flags: to examine, hash and copy; links are not followed.
_DAEMON_OPENS = re.compile(
    r"inbox/[^/]+ O_RDONLY\|O_NOCTTY\|O_NONBLOCK\|O_NOFOLLOW\|O_CLOEXEC"
    r"|spool/\.tmp-[^/]+/\w+ O_WRONLY\|O_CREAT\|O_EXCL\|O_NOFOLLOW\|O_CLOEXEC"
    r"|spool/[^/.]+/\w+ O_RDONLY(?:\|O_NOCTTY\|O_NONBLOCK\|O_NOFOLLOW)?\|O_CLOEXEC"
    r"|(?:failed|archive)/\.lipsyncd/[^/]+\.keep/[^/]+ O_WRONLY\|O_CREAT\|O_EXCL\|O_NOFOLLOW\|O_CLOEXEC"
)
_INTERNET = re.compile(r"AF_INET|AF_NETLINK|AF_PACKET")
_DECODER = re.compile(
    r"/(?:PIL|pillow\.libs|pi_heif|cv2|av|torchaudio|soundfile)\S*/.*\.so|/lib(?:av|snd|png|jpeg|webp)\S*\.so"
)

_SITE = Path(PIL.__file__).resolve().parent.parent
_PACKAGE = Path(lipsyncd.__file__).resolve().parent
_STANDARD = Path(sysconfig.get_path("stdlib")).resolve()
_LIBRARIES = ("PIL", "pillow.libs", "pi_heif", "pi_heif.libs")
_TREES = "|".join(re.escape(str(path)) for path in (_STANDARD, _PACKAGE, *(_SITE / name for name in _LIBRARIES)))
_ALL_READ = re.compile(
    r"(?:/usr|/usr/local)?/lib(?:32|64)?/.*\.so(?:\.[\w.]+)?"
    rf"|{re.escape(str(_STANDARD.parent))}/[^/]*\.so(?:\.[\w.]+)?"
    r"|/etc/ld\.so\.cache|/dev/(?:null|urandom)"
)
_PYTHON_READS = re.compile(
    rf"(?:{_TREES})(?:/.*)?|{re.escape(str(_SITE))}/_pi_heif\.[\w.-]*so"
    r"|/usr/lib/locale/(?:C\.(?:utf8|UTF-8)/LC_\w+|locale-archive)|/usr/lib/.*/gconv/gconv-modules(?:\.cache)?"
)
_PYTHON_LISTS = (str(_SITE), str(_PACKAGE.parent))


def programs() -> set[str]:
    """The two programs that decode users' files."""
    return {os.path.realpath(program) for program in (ffmpeg(), decoder_process.interpreter())}


def violations(events: Iterable[Event], storage: Path) -> list[str]:
    """The calls that no process of an installation with this storage may make, in words.

    The first program of the record is the daemon.
    """
    found: list[str] = []
    daemon: tuple[str, ...] = ()
    for origin, event in with_origins(events):
        if not daemon and event.name == "execve":
            daemon = event.paths[1:]
        if not event.error:
            jailed = origin.jailed_at > 0
            faults = _of_jailed(origin, event, storage) if jailed else _of_free(origin, event, storage, daemon)
            found += (f"{origin} {fault}: {event.name} {event.led_to or event.path}" for fault in faults)
    return found


# -- outside the jail --------------------------------------------------------------------------------------------------


def _of_free(origin: Origin, event: Event, storage: Path, daemon: tuple[str, ...]) -> Iterator[str]:
    """The daemon may examine, hash and copy dropped files, but loads no decoder; other programs may not open them."""
    path, own = event.led_to, event.led_to.removeprefix(f"{storage}/")
    if event.name == "execve" and ("-i" in event.paths or "lipsyncd.prepare.picture_child" in event.paths):
        yield "decodes outside the jail"
    if event.name in OPENS and origin.program == daemon and _DECODER.search(path):
        yield "loads a decoder"
    is_users = event.name in OPENS and own != path and _USERS_FILE.fullmatch(own)
    if is_users and origin.program == daemon and not _DAEMON_OPENS.fullmatch(f"{own} {_flags(event)}"):
        yield "opens a file of a user in another way"
    if event.name in OPENS and origin.program != daemon and own != path:
        # The launcher opens files to name them in Landlock rules. Such a descriptor cannot be read.
        named = "O_PATH" in event.arguments and "lipsyncd.sandbox.launcher" in origin.program
        if not named and not (_is_in_spool(path, storage) and path.rpartition("/")[2] in _MADE_IN_THE_JAIL):
            yield "opens a file of a user outside the jail"
    if event.name in ("connect", "bind", "listen", "accept", "accept4"):
        yield "uses the network"
    if event.name == "socket" and _INTERNET.search(event.arguments):
        yield "makes a socket"


def _flags(event: Event) -> str:
    found = re.search(r"O_\w+(?:\|O_\w+)*", event.arguments)
    return found[0] if found else ""


def _is_in_spool(path: str, storage: Path) -> bool:
    return Path(path).parent.parent == storage / "spool"


# -- inside the jail --------------------------------------------------------------------------------------------------


def _of_jailed(origin: Origin, event: Event, storage: Path) -> Iterator[str]:
    """It may read and write the files of its command line, and read the files of its program; nothing else."""
    path = event.led_to
    if event.name in OPENS:
        writes = event.name == "creat" or _WRITES.search(event.arguments) is not None
        if path in files_of(origin, storage):
            if writes and path.rpartition("/")[2] in _INPUTS:
                yield "writes an input"
        elif writes and path != "/dev/null":
            yield "writes outside its job"
        elif not writes and not _may_read(origin, event):
            yield "reads outside its job"
    elif event.name == "execve":
        if "lipsyncd.sandbox.launcher" not in origin.program or os.path.realpath(event.path) not in programs():
            yield "becomes another program"
    elif event.name not in (*MAKES_A_CHILD, "landlock_restrict_self"):
        yield "makes a call that no decoder needs"


def files_of(origin: Origin, storage: Path) -> set[str]:
    """The files of one job in a command line; none if it has files of two jobs."""
    named = {path for word in origin.program for path in re.findall(rf'{re.escape(str(storage))}/[^"]+', word)}
    jobs = {os.path.dirname(path) for path in named}
    return named if len(jobs) == 1 and all(_is_in_spool(path, storage) for path in named) else set()


def _may_read(origin: Origin, event: Event) -> bool:
    if _ALL_READ.fullmatch(event.led_to):
        return True
    if "lipsyncd.prepare.picture_child" not in origin.program:
        return False
    listed = "O_DIRECTORY" in event.arguments and event.led_to in _PYTHON_LISTS
    return listed or _PYTHON_READS.fullmatch(event.led_to) is not None
