"""What a strace record says about the walls around every decode: who opened what, before Landlock and behind it.

`complaints` holds each call against what its program may do. The lists are those of what programs really open, which is
less than the jail allows them. Paths are those of the kernel's own descriptors, so no link leads around them.
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
from tests.kits.faults.trace_kit import MAKES_A_CHILD, Doer, Event, with_doers
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
    r"inbox/(?!\.lipsyncd/)[^/]+|spool/[^/]+/(?:image|audio|manifest)|(?:failed|archive)/.+\.(?:png|wav|mp4|mov|webm)"
)
# What the daemon itself does with users' files, each as its path and flags: look, hash and copy; nothing is followed.
_DAEMON_OPENS = re.compile(
    r"inbox/[^/]+ O_RDONLY\|O_NOCTTY\|O_NONBLOCK\|O_NOFOLLOW\|O_CLOEXEC"
    r"|spool/\.tmp-[^/]+/\w+ O_WRONLY\|O_CREAT\|O_EXCL\|O_NOFOLLOW\|O_CLOEXEC"
    r"|spool/[^/.]+/\w+ O_RDONLY(?:\|O_NOCTTY\|O_NONBLOCK\|O_NOFOLLOW)?\|O_CLOEXEC"
    r"|(?:failed|archive)/\.lipsyncd/[^/]+\.keep/[^/]+ O_WRONLY\|O_CREAT\|O_EXCL\|O_NOFOLLOW\|O_CLOEXEC"
)
_INTERNET = re.compile(r"AF_INET|AF_NETLINK|AF_PACKET")
_DECODER = re.compile(
    r"/(?:PIL|pillow\.libs|cv2|av|torchaudio|soundfile)\S*/.*\.so|/lib(?:av|snd|png|jpeg|webp)\S*\.so"
)

_SITE = Path(PIL.__file__).resolve().parent.parent
_PACKAGE = Path(lipsyncd.__file__).resolve().parent
_STANDARD = Path(sysconfig.get_path("stdlib")).resolve()
_TREES = "|".join(re.escape(str(path)) for path in (_STANDARD, _PACKAGE, _SITE / "PIL", _SITE / "pillow.libs"))
_ALL_READ = re.compile(
    r"(?:/usr|/usr/local)?/lib(?:32|64)?/.*\.so(?:\.[\w.]+)?"
    rf"|{re.escape(str(_STANDARD.parent))}/[^/]*\.so(?:\.[\w.]+)?"
    r"|/etc/ld\.so\.cache|/dev/(?:null|urandom)"
)
_PYTHON_READS = re.compile(
    rf"(?:{_TREES})(?:/.*)?"
    r"|/usr/lib/locale/(?:C\.(?:utf8|UTF-8)/LC_\w+|locale-archive)|/usr/lib/.*/gconv/gconv-modules(?:\.cache)?"
)
_PYTHON_LISTS = (str(_SITE), str(_PACKAGE.parent))


def programs() -> set[str]:
    """The two programs that a user's file is decoded with."""
    return {os.path.realpath(program) for program in (ffmpeg(), decoder_process.interpreter())}


def complaints(events: Iterable[Event], storage: Path) -> list[str]:
    """What was done that nobody may do in an installation with that storage.

    The first program of the record is the daemon.
    """
    found: list[str] = []
    daemon: tuple[str, ...] = ()
    for doer, event in with_doers(events):
        if not daemon and event.name == "execve":
            daemon = event.paths[1:]
        if not event.error:
            said = _of_jailed(doer, event, storage) if doer.walls else _of_free(doer, event, storage, daemon)
            found += (f"{doer} {what}: {event.name} {event.led_to or event.path}" for what in said)
    return found


# -- before the walls --------------------------------------------------------------------------------------------------


def _of_free(doer: Doer, event: Event, storage: Path, daemon: tuple[str, ...]) -> Iterator[str]:
    """The daemon may copy, hash and look at what was dropped, but has no decoder; others may not even open it."""
    path, own = event.led_to, event.led_to.removeprefix(f"{storage}/")
    if event.name == "execve" and ("-i" in event.paths or "lipsyncd.prepare.picture_child" in event.paths):
        yield "decodes without walls"
    if event.name in OPENS and doer.program == daemon and _DECODER.search(path):
        yield "loads a decoder"
    is_users = event.name in OPENS and own != path and _USERS_FILE.fullmatch(own)
    if is_users and doer.program == daemon and not _DAEMON_OPENS.fullmatch(f"{own} {_flags(event)}"):
        yield "opens a file of a user in another way"
    if event.name in OPENS and doer.program != daemon and own != path:
        # The launcher names files to the kernel for the walls. Nothing can be read from such a descriptor.
        named = "O_PATH" in event.arguments and "lipsyncd.sandbox.launcher" in doer.program
        if not named and not (_is_in_spool(path, storage) and path.rpartition("/")[2] in _MADE_IN_THE_JAIL):
            yield "opens a file of a user without walls"
    if event.name in ("connect", "bind", "listen", "accept", "accept4"):
        yield "uses the network"
    if event.name == "socket" and _INTERNET.search(event.arguments):
        yield "makes a socket"


def _flags(event: Event) -> str:
    found = re.search(r"O_\w+(?:\|O_\w+)*", event.arguments)
    return found[0] if found else ""


def _is_in_spool(path: str, storage: Path) -> bool:
    return Path(path).parent.parent == storage / "spool"


# -- behind the walls --------------------------------------------------------------------------------------------------


def _of_jailed(doer: Doer, event: Event, storage: Path) -> Iterator[str]:
    """Reading and writing what its own command line names; reading what a program is made of; nothing else at all."""
    path = event.led_to
    if event.name in OPENS:
        writes = event.name == "creat" or _WRITES.search(event.arguments) is not None
        if path in files_of(doer, storage):
            if writes and path.rpartition("/")[2] in _INPUTS:
                yield "writes an input"
        elif writes and path != "/dev/null":
            yield "writes outside its job"
        elif not writes and not _may_read(doer, event):
            yield "reads outside its job"
    elif event.name == "execve":
        if "lipsyncd.sandbox.launcher" not in doer.program or os.path.realpath(event.path) not in programs():
            yield "becomes another program"
    elif event.name not in (*MAKES_A_CHILD, "landlock_restrict_self"):
        yield "does what a decoder has no use for"


def files_of(doer: Doer, storage: Path) -> set[str]:
    """The files of one job that a command line names; none when it names files of two."""
    named = {path for word in doer.program for path in re.findall(rf'{re.escape(str(storage))}/[^"]+', word)}
    jobs = {os.path.dirname(path) for path in named}
    return named if len(jobs) == 1 and all(_is_in_spool(path, storage) for path in named) else set()


def _may_read(doer: Doer, event: Event) -> bool:
    if _ALL_READ.fullmatch(event.led_to):
        return True
    if "lipsyncd.prepare.picture_child" not in doer.program:
        return False
    listed = "O_DIRECTORY" in event.arguments and event.led_to in _PYTHON_LISTS
    return listed or _PYTHON_READS.fullmatch(event.led_to) is not None
