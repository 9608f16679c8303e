"""Notice finished files in the inbox and hand each drop over once.

File events are only a hint to look. `Inbox.ready()` scans the folder and is the truth, so a missed event costs one
rescan interval and never a job. A file is finished when nothing has changed it for a while, no process of this machine
holds it open for writing, and its own structure does not say that more must come. A structure that proves the end
(a PNG's IEND, a WAV of the length that its header says) needs only a short while.

Times are differences of one monotonic clock: the file server's clock and ours may disagree by any amount.
Owns the inbox folder as a reader. Leaves copying, the ledger and the renderers alone.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lipsyncd.errors import BadManifest, InputError, UnsafePath
from lipsyncd.inbox.pairing import AUDIO, IMAGE, MANIFEST, OTHER, Drop, Found, Listing, Waiting, group, lookup
from lipsyncd.jobs.job import Identity
from lipsyncd.jobs.manifest import Manifest, classify, parse
from lipsyncd.log import printable
from lipsyncd.media import AUDIO_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES, Completeness, Structure, examine
from lipsyncd.storage.files import NotRegular, open_folder, open_regular, written_by_others

log = logging.getLogger(__name__)

# What writers and file servers leave beside the real files: never looked at, never reported. Compared without case.
_TEMPORARY = (
    ".*",
    "*~",
    "~*",
    "*.part",
    "*.partial",
    "*.tmp",
    "*.temp",
    "*.crdownload",
    "*.opdownload",
    "*.download",
    "*.filepart",
    "*.aria2",
    "*.swp",
    "*.lock",
    "*.!sync",
    "*.bak",
    "desktop.ini",
    "thumbs.db",
    "ehthumbs.db",
    "@eadir",
    "#recycle",
    "#snapshot",
    "lost+found",
    "$recycle.bin",
    "system volume information",
)
_IS_TEMPORARY = re.compile("|".join(map(fnmatch.translate, _TEMPORARY)))
_ROLES = {
    **{os.fsencode(suffix): IMAGE for suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES},
    **{os.fsencode(suffix): AUDIO for suffix in AUDIO_SUFFIXES},
    b".json": MANIFEST,
}
_VIDEOS = tuple(os.fsencode(suffix) for suffix in VIDEO_SUFFIXES)
VIDEO = "video"  # an image by its role, with a limit of its own
_NEW_MANIFEST_S = 60.0
_NOT_SEEN = Identity(0, 0, 0, 0, 0)  # no file's: the next look finds another one, and waits for it to settle


@dataclass(frozen=True)
class Rules:
    """How long things may take and how large they may be; the settings of the same names."""

    settle_s: float
    settle_proven_s: float
    settle_network_s: float
    incomplete_timeout_s: float
    pair_timeout_s: float
    max_bytes: Mapping[str, int]


@dataclass
class _Seen:
    """What we remember of a name between scans."""

    identity: Identity
    first_s: float
    still_since_s: float
    structure: Structure | None = None
    settled: bool = False
    why: str = "still being written"
    look_again_s: float = 0.0


class Inbox:
    """The folder `root`.

    network  other machines may write there, whom no lease shows
    queues   names of folders in it that are inboxes of their own
    opened   gives a descriptor of the folder, or None while another one lies in its place
    """

    def __init__(
        self,
        root: Path,
        rules: Rules,
        *,
        network: bool,
        queues: Iterable[str] = (),
        opened: Callable[[], AbstractContextManager[int | None]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.root = root
        self.rules = rules
        self.network = network
        self.waiting: list[Waiting] = []
        self.ignored: dict[str, str] = {}
        self.unreadable: dict[str, str] = {}
        self.next_look_s: float | None = None
        self.opened = opened or self._opened
        self._clock = clock
        self._queues = frozenset(map(os.fsencode, queues))
        self._root = os.fsencode(root)
        self._seen: dict[bytes, _Seen] = {}
        self._parsed: dict[bytes, tuple[Identity, Manifest | InputError]] = {}
        self._unusable: dict[bytes, InputError] = {}
        self._left_alone: set[bytes] = set()
        self._found = Listing()

    def path(self, name: bytes) -> bytes:
        return os.path.join(self._root, name)  # noqa: PTH118 - names are bytes

    @contextmanager
    def _opened(self) -> Iterator[int | None]:
        folder = open_folder(self.root)
        try:
            yield folder
        finally:
            os.close(folder)

    def ready(self, taken: Mapping[bytes, Identity]) -> list[Drop]:
        """Scan the folder; gives the drops that can be taken now.

        taken  files of accepted jobs that still lie here: no pair is made of them, a manifest may name them again

        `waiting`, `ignored` and `unreadable` (names and why), and `next_look_s` (seconds until something may be ready)
        are as of this scan.
        Raises OSError when the folder cannot be listed.
        """
        now_s = self._clock()
        self.next_look_s = None
        self.unreadable = {}
        found = [self._observe(name, role, identity, now_s, taken) for name, role, identity in self._candidates()]
        usable = [f for f in found if f.role == MANIFEST and f.settled and not f.taken]
        manifests = {f.name: self._manifest(f.name, f.identity) for f in usable}
        self._found = Listing({f.name: f for f in found})
        self._forget()
        grouping = group(
            found,
            {name: content for name, content in manifests.items() if content is not None},
            unusable=self._unusable,
            pair_timeout_s=self.rules.pair_timeout_s,
        )
        self.waiting = [self._explained(w) for w in grouping.waiting]
        if self._left_alone & self._named_somewhere():
            self._look_in(0.0)  # one of them was read in this scan
        return grouping.drops

    def structure(self, name: bytes) -> Structure | None:
        """What the last look into that file found; None for manifests."""
        seen = self._seen.get(name)
        return None if seen is None else seen.structure

    def without_files(self, taken: Mapping[bytes, Identity]) -> list[Drop]:
        """Manifests of this scan that wait for files, each as a drop of itself alone."""
        return [
            Drop(f.stem, {MANIFEST: f}, content)
            for f in self._manifests(taken)
            if isinstance(content := self._content(f.name), Manifest)
            and any(lookup(self._found, name) is None for name in _named(content))
        ]

    def named_by_manifests(self, taken: Mapping[bytes, Identity]) -> Container[bytes]:
        """Files that a waiting manifest wants to have; every file, while a new one is still being written."""
        waiting = self._manifests(taken)
        if any(not f.settled and f.age_s < _NEW_MANIFEST_S for f in waiting):
            return _Everything()
        contents = [self._content(f.name) for f in waiting]
        names = [name for c in contents if isinstance(c, Manifest) for name in _named(c)]
        return frozenset(f.name for name in names if (f := lookup(self._found, name)) is not None)

    def _content(self, name: bytes) -> Manifest | InputError | None:
        known = self._parsed.get(name)
        return None if known is None else known[1]

    def _manifests(self, taken: Mapping[bytes, Identity]) -> list[Found]:
        """The manifests of the last scan that no job has taken."""
        return [f for f in self._found.values() if f.role == MANIFEST and taken.get(f.name) != f.identity]

    # -- one scan ------------------------------------------------------------------------------------------------------

    def _candidates(self) -> Iterator[tuple[bytes, str, Identity]]:
        """Every name that may be part of a job. What is left out, and why, is in `ignored`."""
        self.ignored = {}
        self._unusable = {}
        self._left_alone = set()
        named = {
            name for _, content in self._parsed.values() if isinstance(content, Manifest) for name in _named(content)
        }
        with os.scandir(self._root) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        for entry in listed:
            if _is_temporary(entry.name) or entry.name in self._queues:
                continue
            role = _role(entry.name) or (OTHER if entry.name in named else None)
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._ignore(entry.name, f"cannot be looked at: {error.strerror}")
                if role == MANIFEST:  # it is there, and its files are not a pair without it
                    yield entry.name, role, _NOT_SEEN
                continue
            shown = repr(printable(entry.name))
            if not stat.S_ISREG(status.st_mode):
                self._unusable[entry.name] = UnsafePath(f"the manifest names {shown}, which is no regular file")
                self._ignore(entry.name, "is no regular file")
            elif role is None:
                self._left_alone.add(entry.name)
                self._ignore(entry.name, "has no suffix of a picture, a sound or a manifest")
            elif status.st_size > (limit := self._limit(role, entry.name)):
                why = f"has {status.st_size / 1e6:.0f} MB; at most {limit / 1e6:.0f} MB are taken"
                self._unusable[entry.name] = BadManifest(f"the manifest names {shown}, which {why}")
                self._ignore(entry.name, why)
            else:
                yield entry.name, role, Identity.of(status)

    def _named_somewhere(self) -> set[bytes]:
        """Every name that a manifest speaks of, as far as we have read them."""
        return {n for _, content in self._parsed.values() if isinstance(content, Manifest) for n in _named(content)}

    def _limit(self, role: str, name: bytes) -> int:
        """Bytes above which a file is left alone. A manifest is refused long before, and kept with its reason."""
        sizes = self.rules.max_bytes
        if role == IMAGE and name.lower().endswith(_VIDEOS):
            return sizes.get(VIDEO, sizes[IMAGE])
        return sizes[role] if role in (IMAGE, AUDIO) else max(sizes[IMAGE], sizes[AUDIO] if role == OTHER else 0)

    def _ignore(self, name: bytes, why: str) -> None:
        self.ignored[printable(name)] = why

    def _observe(
        self, name: bytes, role: str, identity: Identity, now_s: float, taken: Mapping[bytes, Identity]
    ) -> Found:
        seen = self._seen.get(name)
        if seen is None:
            seen = self._seen[name] = _Seen(identity, first_s=now_s, still_since_s=now_s)
        elif seen.identity != identity:
            replaced = seen.identity.ino != identity.ino
            first_s = now_s if replaced else seen.first_s
            seen = self._seen[name] = _Seen(identity, first_s=first_s, still_since_s=now_s)
        if taken.get(name) == identity:
            return Found(name, role, identity, settled=True, taken=True, age_s=now_s - seen.first_s)
        if not seen.settled:
            self._settle(name, role, seen, now_s)
        return Found(name, role, identity, settled=seen.settled, age_s=now_s - seen.first_s)

    def _settle(self, name: bytes, role: str, seen: _Seen, now_s: float) -> None:
        """Decide whether a file is finished, and when to look again if not."""
        still_s = now_s - seen.still_since_s
        shortest_s = self.rules.settle_network_s if self.network else self.rules.settle_proven_s
        if still_s < shortest_s:
            self._look_in(shortest_s - still_s)
            return
        try:
            descriptor = open_regular(self.path(name))
        except (FileNotFoundError, NotRegular):
            return
        except OSError as error:
            seen.why = f"cannot be read: {error.strerror}"
            self.unreadable[printable(name)] = seen.why
            return
        try:
            # An open also makes an NFS client ask the server again: only then fstat is the truth.
            if Identity.of(os.fstat(descriptor)) != seen.identity:
                self._look_in(self.rules.settle_s)
                return
            busy = written_by_others(descriptor)
            if role != MANIFEST:
                seen.structure = examine(descriptor, seen.identity.size)
        finally:
            os.close(descriptor)
        seen.settled = self._finished(self._completeness(name, role, seen), seen, still_s, busy)

    def _completeness(self, name: bytes, role: str, seen: _Seen) -> Completeness:
        """What the content itself says about its end. A manifest that parses is whole: its last brace is there."""
        if role != MANIFEST:
            return Completeness.PLAUSIBLE if seen.structure is None else seen.structure.completeness
        whole = isinstance(self._manifest(name, seen.identity), Manifest)
        return Completeness.COMPLETE if whole else Completeness.PLAUSIBLE

    def _finished(self, completeness: Completeness, seen: _Seen, still_s: float, busy: bool | None) -> bool:
        if busy:
            seen.why = "a program has it open for writing"
            self._look_in(self.rules.settle_s)
            return False
        if completeness is Completeness.TRUNCATED:
            seen.why = "its content ends before its own header says"
            return self._after(self.rules.incomplete_timeout_s, still_s)
        if self.network:
            return self._after(self.rules.settle_network_s, still_s)
        proven = completeness is Completeness.COMPLETE and busy is False
        return self._after(self.rules.settle_proven_s if proven else self.rules.settle_s, still_s)

    def _after(self, needed_s: float, still_s: float) -> bool:
        if still_s >= needed_s:
            return True
        self._look_in(needed_s - still_s)
        return False

    def _look_in(self, seconds: float) -> None:
        self.next_look_s = seconds if self.next_look_s is None else min(self.next_look_s, seconds)

    def _manifest(self, name: bytes, identity: Identity) -> Manifest | InputError | None:
        """The content of a manifest; None when it cannot be read just now."""
        known = self._parsed.get(name)
        if known is not None and known[0] == identity:
            return known[1]
        try:
            descriptor = open_regular(self.path(name))
        except OSError:
            return None
        with os.fdopen(descriptor, "rb") as opened:
            data = opened.read(self.rules.max_bytes[MANIFEST] + 1)
        try:
            content: Manifest | InputError = parse(data, max_bytes=self.rules.max_bytes[MANIFEST])
        except InputError as error:
            content = error
        self._parsed[name] = (identity, content)
        return content

    def _forget(self) -> None:
        for name in self._seen.keys() - self._found.keys():
            del self._seen[name]
        for name in self._parsed.keys() - self._found.keys():
            del self._parsed[name]

    def _explained(self, waiting: Waiting) -> Waiting:
        """The same with the better reason that we know of a file that has not settled."""
        seen = self._seen.get(os.fsencode(waiting.name))
        why = waiting.why if seen is None or seen.settled else seen.why
        return Waiting(printable(waiting.name), why, round(waiting.age_s, 1))


def _is_temporary(name: bytes) -> bool:
    return _IS_TEMPORARY.match(os.fsdecode(name).lower()) is not None


def _role(name: bytes) -> str | None:
    """What a file is for by its suffix."""
    _, dot, suffix = name.rpartition(b".")
    return _ROLES.get(dot + suffix.lower()) if dot else None


def _named(manifest: Manifest) -> list[bytes]:
    """The names in the inbox that a manifest speaks of."""
    sources = [s for s in (manifest.image, manifest.audio) if s is not None]
    return [os.fsencode(s) for s in sources if classify(s) == "file"]


class _Everything(Container[bytes]):
    def __contains__(self, _item: object) -> bool:
        return True
