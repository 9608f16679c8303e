"""Explain in the inbox itself why a file is left there: `NAME.why.txt`, in plain words and with what to do.

People who see only the share cannot ask `lipsyncd status`. An explanation appears once its reason has lasted two
minutes, and goes when the reason goes. It is written and removed only through the descriptor of the marked inbox. A
file of that name that is not byte for byte ours is never touched.

Owns the files *.why.txt. Leaves the reasons to `scan` and `settle`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lipsyncd.errors import FolderNotOurs
from lipsyncd.inbox.pairing import NEAR_NAME
from lipsyncd.log import printable
from lipsyncd.storage.files import NotRegular
from lipsyncd.storage.open_folder import Name, OpenFolder
from lipsyncd.storage.shared_folders import SharedFolder

log = logging.getLogger(__name__)

SUFFIX = ".why.txt"
AFTER_S = 120.0
MOST = 100  # in one folder
_MARK = "lipsyncd wrote this file. It goes by itself when its reason is gone."
_MOST_BYTES = 4000
_LONGEST_NAME = 220  # bytes; the hidden name of the file while it is written is longer
_MODE = 0o644
_PASSES = (  # no reasons to explain
    "still being written", "its files are still being written", "a program has it open", "is not finished, as ",
    "its format does not show where it ends", "its end is zeros",
)  # fmt: skip
_SAME_NAME = "If they belong together, give both the same name in front of the suffix."
# What to do with a file of no suffix of ours, by the end of its name.
_BY_NAME = (
    (".lnk", "Drop the file itself: this is a shortcut to it."),
    (".url", "Drop the file itself: this is a shortcut to it."),
    (".json.txt", "Rename it to {stem}: some programs hide the last suffix."),
    (".txt", 'To have it spoken, drop a manifest such as {{"image": "{stem}.jpg", "text": "Hello."}}, or a sound.'),
)
# What to do, by the beginning of the reason. {stem} is the file's name without its suffix.
_REMEDIES = (
    ("waits for a sound", "Drop a sound of the same name into this folder, such as {stem}.wav."),
    ("waits for a picture", "Drop a picture of the same name into this folder, such as {stem}.jpg."),
    ("waits for ", "Drop the files that it names into this folder, or correct the names in it."),
    ("has no suffix", "Save it as what is taken, such as a JPEG or a WAV, with that suffix; or delete it."),
    ("is a folder", "Drop the files themselves: folders are not looked into."),
    ("is no regular file", "Drop a copy of the file itself, no link."),
    ("is a second name", "Drop a file of your own."),
    ("cannot be read", "Let the group read it, or drop it again."),
    ("has ", "Drop a smaller file, or ask the administrator to raise the limit."),
    ("is empty", "If its copy was interrupted, drop it again."),
    ("its content ends", "If its copy was interrupted, drop it again."),
)


@dataclass
class _Reason:
    why: str
    since_s: float
    logged: bool = False


class Explainer:
    """The explanations in one inbox. Used by one thread, with the folder open."""

    def __init__(self, shared: SharedFolder, clock: Callable[[], float] = time.monotonic) -> None:
        self._shared = shared
        self._clock = clock
        self._reasons: dict[str, _Reason] = {}
        self._there: dict[str, bytes] | None = None  # what we have written; None before the first look
        self._off = ""

    def update(self, folder: OpenFolder, reasons: Mapping[str, str]) -> None:
        """Write and remove what the reasons of the last scan ask for; {} removes everything. Raises nothing.

        reasons  why each file is left alone, by its printable name
        """
        now_s = self._clock()
        lasting = {name: why for name, why in reasons.items() if not why.startswith(_PASSES)}
        self._reasons = {
            name: known if (known := self._reasons.get(name)) and known.why == why else _Reason(why, now_s)
            for name, why in lasting.items()
        }
        due = {name: reason for name, reason in self._reasons.items() if now_s - reason.since_s >= AFTER_S}
        self._log(due)
        wanted = {f"{name}{SUFFIX}": text_for(name, due[name].why) for name in sorted(due)[:MOST] if _has_room(name)}
        if wanted != self._there:
            self._bring_about(folder, wanted)

    def _log(self, due: Mapping[str, _Reason]) -> None:
        for name, reason in due.items():
            if not reason.logged:
                log.info("inbox: %s is left alone: it %s", name, reason.why)
                reason.logged = True

    def _bring_about(self, folder: OpenFolder, wanted: Mapping[str, bytes]) -> None:
        """Remove ours that are not wanted any more, then write what is missing."""
        try:
            there = self._ours(folder) if self._there is None else self._there
            with self._shared.removal(folder) as removal:
                for name, content in there.items():
                    if wanted.get(name) != content:
                        removal.take(folder, name, is_ours)
            for name, content in wanted.items():
                if there.get(name) != content:
                    _write(folder, name, content)
            self._there = dict(wanted)
        except (FolderNotOurs, OSError) as error:
            if self._off != str(error):
                self._off = str(error)
                log.info("inbox: nothing is explained in %s: %s", folder.where, error)

    @staticmethod
    def _ours(folder: OpenFolder) -> dict[str, bytes]:
        """What an earlier run left, with its content."""
        names = [entry.name for entry in folder.files() if entry.name.endswith(SUFFIX)]
        return {name: folder.read(name, _MOST_BYTES) for name in names if is_ours(folder, name)}


def text_for(name: str, why: str) -> bytes:
    """The content of an explanation: our mark, the reason, what to do, and a sum over all that."""
    stem = name.rpartition(".")[0] or name
    by_name = _BY_NAME if why.startswith("has no suffix") else ()
    known = [_SAME_NAME] if why.endswith(NEAR_NAME) else [text for end, text in by_name if name.lower().endswith(end)]
    known += [text for begin, text in _REMEDIES if why.startswith(begin)]
    remedy = next(iter(known), "Delete it, or ask the administrator.")
    sentence = f"{name}: {why}." if why.startswith("its ") else f"{name} {why}."
    body = f"{_MARK}\n\n{sentence}\n{remedy.format(stem=stem)}\n\n"
    return f"{body}{_sum(body)}\n".encode("utf-8", "replace")


def is_ours(folder: OpenFolder, name: Name) -> bool:
    """Is it a file with our mark, byte for byte as we wrote it?"""
    try:
        text = folder.read(name, _MOST_BYTES).decode()
    except (FileNotFoundError, NotRegular, PermissionError, UnicodeDecodeError):
        return False
    body, _, seal = text.rstrip("\n").rpartition("\n")
    return text.startswith(f"{_MARK}\n") and text == f"{body}\n{seal}\n" and seal == _sum(f"{body}\n")


def _sum(body: str) -> str:
    return hashlib.sha256(body.encode("utf-8", "replace")).hexdigest()[:16]


def _has_room(name: str) -> bool:
    """Can an explanation have a name beside it? Not beside a name that cannot be printed as it is."""
    return printable(name) == name and "\\" not in name and len(os.fsencode(name)) <= _LONGEST_NAME


def _write(folder: OpenFolder, name: str, content: bytes) -> None:
    hidden = f".{name}.{secrets.token_hex(4)}.part"
    folder.write(hidden, content, mode=_MODE, prepare=lambda descriptor: os.fchmod(descriptor, _MODE))
    try:
        with contextlib.suppress(FileExistsError):  # it is another's, or the file of that name is gone meanwhile
            folder.rename(hidden, folder, name)
    finally:
        folder.remove(hidden)


def is_explanation(name: bytes) -> bool:
    """Is it called like one, also while it is written? Such a name is no drop, and wakes no scan."""
    return name.endswith(os.fsencode(SUFFIX)) or (name.startswith(b".") and os.fsencode(SUFFIX) + b"." in name)
