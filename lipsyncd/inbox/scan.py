"""Scan the inbox folder for finished files, and hand each drop over once.

Events are only a hint to scan. `Inbox.ready()` lists the folder and is the truth, so a missed event costs one rescan
interval and never a job. `settle` decides which files are finished, `pairing` which of them belong together.

Each scan looks at each file. Where all of them are as they were, and none waits for a time that has come, a scan ends
there: ten thousand files may wait for their partners for a day.

Owns the inbox folder as a reader. Leaves copying, the ledger and the renderers alone.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import inf

from lipsyncd.errors import BadManifest, InputError, UnsafePath
from lipsyncd.inbox.beside import is_temporary
from lipsyncd.inbox.first_seen import LONG_S
from lipsyncd.inbox.pairing import SEVERAL_S, Drop, Found, Names, Waiting, group, naming_key
from lipsyncd.inbox.settle import InboxRules, Settling
from lipsyncd.inbox.shown import MOST, Shown
from lipsyncd.jobs import manifest_mac
from lipsyncd.jobs.job import AUDIO, IMAGE, MANIFEST, OTHER, Identity
from lipsyncd.jobs.manifest import Manifest, classify, parse
from lipsyncd.log import printable
from lipsyncd.media import AUDIO_SUFFIXES, IMAGE_SUFFIXES, SECOND_SUFFIXES, VIDEO_SUFFIXES, Structure
from lipsyncd.settings import Settings
from lipsyncd.storage.files import SourceChanged, is_second_name
from lipsyncd.storage.open_folder import OpenFolder
from lipsyncd.storage.private_folder import HIDDEN
from lipsyncd.storage.shared_folders import SharedFolder

log = logging.getLogger(__name__)

_ROLES = {
    **{os.fsencode(suffix): IMAGE for suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES},
    **{os.fsencode(suffix): AUDIO for suffix in AUDIO_SUFFIXES},
    b".json": MANIFEST,
}
_SECOND = tuple(os.fsencode(suffix) for suffix in SECOND_SUFFIXES)
_VIDEOS = tuple(os.fsencode(suffix) for suffix in VIDEO_SUFFIXES)
VIDEO = "video"  # an image by its role, with a limit of its own
_NEW_MANIFEST_S = 60.0
_SURELY_S = 300.0  # at most between two scans that also judge each file
_KEPT_BYTES = 512  # of a manifest; of a larger one an outline is kept
_NOT_SEEN = Identity(0, 0, 0, 0, 0)  # no file's: the next scan finds another one, and waits until that is finished


class Inbox:
    """The folder `root`.

    network   other machines may write there, and no lease shows their writers
    queues    names of folders in it that are inboxes of their own
    folder    the folder itself, while it is `open`
    waiting   what lies there and is no job yet, and why, as of the last scan: the first of it; `more_waiting` the rest
    ignored   what is left alone, and why, as of the last scan
    settling  the files that are not finished
    unchanged the last scan found nothing new: it gave no drop, and all it left is as the scan before left it
    secret    proves the manifests of REST (`manifest_mac`)
    """

    def __init__(
        self,
        shared: SharedFolder,
        rules: InboxRules,
        *,
        network: bool,
        queues: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
        secret: bytes = b"",
    ) -> None:
        self.shared = shared
        self._secret = secret or os.urandom(32)  # without one, no manifest can be proved
        self.waiting: list[Waiting] = []
        self.more_waiting = 0
        self.ignored = Shown()
        self.settling = Settling(self._open_file, self._manifest, rules, network=network)
        self._clock = clock
        queues = frozenset(queues)
        self._queues = frozenset(map(os.fsencode, queues))
        self._folder: OpenFolder | None = None
        self._parsed: dict[bytes, tuple[Identity, Manifest | InputError]] = {}
        self._unusable: dict[bytes, Callable[[], InputError]] = {}
        self._left_alone: set[bytes] = set()
        self._left: dict[bytes, tuple[Identity, str]] = {}  # files that gave way, and to which one
        self._found: Names[Found] = Names({})
        self.unchanged = False
        self._apart = frozenset([HIDDEN, *queues])
        self._looked: _Look | None = None
        self._scanned_s = 0.0
        self._quiet_until_s = -inf
        self._waiting_then: list[Waiting] = []

    @contextmanager
    def open(self) -> Iterator[bool]:
        """Open the folder for one piece of work; gives False while another one lies in its place."""
        with self.shared.opened() as folder:
            self._folder = folder
            try:
                yield folder is not None
            finally:
                self._folder = None

    @property
    def folder(self) -> OpenFolder:
        assert self._folder is not None, "the inbox is not open"
        return self._folder

    def _open_file(self, name: bytes) -> int:
        return self.folder.open(name)

    def ready(self, taken: Mapping[bytes, Identity]) -> list[Drop]:
        """Scan the folder; gives the drops that can be taken now.

        taken  files of accepted jobs that still lie here: no pair is made of them, a manifest may name them again

        Raises OSError when the folder cannot be listed. Called while the folder is `open`.
        """
        now_s = self._clock()
        self.settling.begin(now_s)
        look = self._look(taken) if now_s < self._quiet_until_s else None
        self.unchanged = look is not None and look == self._looked and not self.settling.hears_writes
        if self.unchanged:
            passed_s = now_s - self._scanned_s
            self.waiting = [replace(w, age_s=round(w.age_s + passed_s, 1)) for w in self._waiting_then]
            return []
        drops = self._judge(taken)
        self._looked, self._scanned_s, self._waiting_then = look, now_s, self.waiting
        self._quiet_until_s = -inf if drops else now_s + self._quiet_s()
        return drops

    def _look(self, taken: Mapping[bytes, Identity]) -> _Look | None:
        """Everything that decides about the files here, besides time; None when one of them cannot be looked at."""
        try:
            return _Look(self.folder.fingerprint(apart=self._apart), taken, self.settling.rules, self.settling.network)
        except OSError:
            return None

    def _quiet_s(self) -> float:
        """Seconds in which the scan that ends would find the same again, as long as no file changes."""
        if self.settling.next_scan_s is not None or self.settling.unreadable:
            return -inf
        ages = (SEVERAL_S, LONG_S, self.settling.rules.pair_timeout_s)  # at which a file is treated in another way
        quiet_s = _SURELY_S
        for file in self._found.values():
            if not (file.taken or (file.settled and (file.role != MANIFEST or file.name in self._parsed))):
                return -inf
            for age_s in ages:
                if file.age_s < age_s < file.age_s + quiet_s:
                    quiet_s = age_s - file.age_s
        return quiet_s

    def _judge(self, taken: Mapping[bytes, Identity]) -> list[Drop]:
        """`ready`, when something may have changed."""
        if self.settling.first_seen:
            self._left.update(self.settling.first_seen.left())
        self.settling.whole = whole = self._known_whole()
        found = [
            self._judged(self.settling.observe(name, role, identity, taken=taken.get(name) == identity))
            for name, role, identity in self._candidates()
        ]
        usable = [f for f in found if f.role == MANIFEST and f.settled and not f.taken]
        manifests = {f.name: self._manifest(f.name, f.identity) for f in usable}
        self._found = Names({f.name: f for f in found})
        self.settling.end(self._found, self._clock())
        self._parsed = {name: parsed for name, parsed in self._parsed.items() if name in self._found}
        grouping = group(
            found,
            {name: content for name, content in manifests.items() if content is not None},
            unusable=self._unusable_that_are_named(),
            pair_timeout_s=self.settling.rules.pair_timeout_s,
        )
        self.waiting = [self._explained(w) for w in grouping.waiting[:MOST]]
        self.more_waiting = len(grouping.waiting) - len(self.waiting)
        self._left = {f.name: (f.identity, f.left_for) for f in found if f.left_for}
        self._left |= {f.name: (f.identity, chosen) for f, chosen in grouping.left}
        self.settling.remember(self._left)
        if {naming_key(os.fsdecode(name)) for name in self._left_alone} & self._named_somewhere():
            self.settling.scan_in(0.0)  # one of them was read in this scan
        if any(not f.settled and f.name not in whole for f in map(self._found.named, self._known_whole()) if f):
            self.settling.scan_in(0.0)
        self._unusable, self._left_alone = {}, set()
        return grouping.drops

    def _judged(self, file: Found) -> Found:
        """The file with what its suffix and the scans before tell of it."""
        if not file.name.lower().endswith(_SECOND):
            return file
        identity, left_for = self._left.get(file.name, (None, ""))
        if identity != file.identity or file.taken:
            left_for = ""
        return replace(file, gives_way=True, left_for=left_for)

    def structure(self, name: bytes) -> Structure | None:
        """What the last look into that file found; None for manifests."""
        return self.settling.structure(name)

    def without_files(self, taken: Mapping[bytes, Identity]) -> list[Drop]:
        """Manifests of this scan that wait for files, each as a drop of itself alone."""
        return [
            Drop(f.stem, {MANIFEST: f}, content)
            for f in self._manifests(taken)
            if isinstance(content := self._content(f.name), Manifest)
            and any(self._found.named(name) is None for name in _named(content))
        ]

    def named_by_manifests(self, taken: Mapping[bytes, Identity]) -> Container[bytes]:
        """The files that waiting manifests name; every file, while a new manifest is still being written."""
        waiting = self._manifests(taken)
        if any(not f.settled and f.age_s < _NEW_MANIFEST_S for f in waiting):
            return _Everything()
        contents = [self._content(f.name) for f in waiting]
        names = [name for c in contents if isinstance(c, Manifest) for name in _named(c)]
        return frozenset(f.name for name in names if (f := self._found.named(name)) is not None)

    def _content(self, name: bytes) -> Manifest | InputError | None:
        known = self._parsed.get(name)
        return None if known is None else known[1]

    def _manifests(self, taken: Mapping[bytes, Identity]) -> list[Found]:
        """The manifests of the last scan that no job has taken."""
        return [f for f in self._found.values() if f.role == MANIFEST and taken.get(f.name) != f.identity]

    def _known_whole(self) -> frozenset[bytes]:
        """The files of the last scan that are whole, as a manifest declares."""
        contents = [content for _, content in self._parsed.values() if isinstance(content, Manifest)]
        names = [name for content in contents if content.whole for name in _named(content)]
        return frozenset(f.name for name in names if (f := self._found.named(name)) is not None)

    # -- one scan ------------------------------------------------------------------------------------------------------

    def _candidates(self) -> Iterator[tuple[bytes, str, Identity]]:
        """Every name that may be part of a job. What is left out, and why, is in `ignored`."""
        ignored = Shown()  # shown when it is complete
        named = self._named_somewhere()
        names = self.folder.names()
        self.settling.look_beside(names, self.folder.status)
        for name in names:
            if is_temporary(name) or name in self._queues:
                continue
            role = named_role(name) or (OTHER if naming_key(os.fsdecode(name)) in named else None)
            try:
                status = self.folder.status(name)
            except OSError as error:
                ignored.note(printable(name), f"cannot be read: {error.strerror}")
                if role == MANIFEST:  # it is there, and its files are not a pair without it
                    yield name, role, _NOT_SEEN
                continue
            if status is None:
                continue
            shown = repr(printable(name))
            if stat.S_ISDIR(status.st_mode):
                self._unusable[name] = partial(UnsafePath, f"the manifest names {shown}, which is a folder")
                ignored.note(printable(name), "is a folder, and folders are not looked into")
            elif not stat.S_ISREG(status.st_mode):
                self._unusable[name] = partial(UnsafePath, f"the manifest names {shown}, which is no regular file")
                ignored.note(printable(name), "is no regular file")
            elif is_second_name(status):
                why = "is a private file of the daemon"
                self._unusable[name] = partial(UnsafePath, f"the manifest names {shown}, which {why}")
                ignored.note(printable(name), "is a second name of a private file of the daemon")
            elif role is None:
                self._left_alone.add(name)
                ignored.note(printable(name), "has no suffix of a picture, a sound or a manifest")
            elif status.st_size > (limit := self._limit(role, name)):
                why = f"has {status.st_size / 1e6:.0f} MB; at most {limit / 1e6:.0f} MB are taken"
                self._unusable[name] = partial(BadManifest, f"the manifest names {shown}, which {why}")
                ignored.note(printable(name), why)
            else:
                identity = Identity.of(status)
                if name in self._left and self._left[name][0] == identity:
                    taken = repr(printable(self._left[name][1]))
                    ignored.note(printable(name), f"gives way to {taken} of the same stem; drop it again to use it")
                yield name, role, identity
        self.ignored = ignored

    def _named_somewhere(self) -> set[str]:
        """The `naming_key` of every name that a manifest names, as far as we have read them."""
        contents = [content for _, content in self._parsed.values() if isinstance(content, Manifest)]
        return {naming_key(os.fsdecode(name)) for content in contents for name in _named(content)}

    def _unusable_that_are_named(self) -> dict[bytes, InputError]:
        """Why a manifest that names such a file is refused; made for those only, since there may be very many."""
        named = self._named_somewhere() if self._unusable else set()
        return {name: make() for name, make in self._unusable.items() if naming_key(os.fsdecode(name)) in named}

    def _limit(self, role: str, name: bytes) -> int:
        """Bytes above which a file is left alone. A manifest is refused long before, and kept with its reason."""
        sizes = self.settling.rules.max_bytes
        if role == IMAGE and name.lower().endswith(_VIDEOS):
            return sizes.get(VIDEO, sizes[IMAGE])
        return sizes[role] if role in (IMAGE, AUDIO) else max(sizes[IMAGE], sizes[AUDIO] if role == OTHER else 0)

    def _manifest(self, name: bytes, identity: Identity) -> Manifest | InputError | None:
        """The content of a manifest; None when it cannot be read at present."""
        known = self._parsed.get(name)
        if known is not None and known[0] == identity:
            return known[1]
        try:
            data = self.folder.read(name, self.settling.rules.max_bytes[MANIFEST] + 1)
        except OSError:
            return None
        try:
            content: Manifest | InputError = self._parse(data)
        except InputError as error:
            content = error
        if isinstance(content, Manifest) and len(data) > _KEPT_BYTES:
            content = _outline(content)
        self._parsed[name] = (identity, content)
        return content

    def _parse(self, data: bytes) -> Manifest:
        """Raises `InputError`."""
        manifest = parse(data, max_bytes=self.settling.rules.max_bytes[MANIFEST])
        manifest_mac.check(manifest, self._secret)
        return manifest

    def whole(self, drop: Drop) -> Drop:
        """The drop with its whole manifest, of which only an outline is kept while it waits. Raises `SourceChanged`."""
        file = drop.files.get(MANIFEST)
        if drop.manifest is None or file is None or file.identity.size <= _KEPT_BYTES:
            return drop
        try:
            return replace(drop, manifest=self._parse(self.folder.read(file.name, file.identity.size + 1)))
        except (InputError, FileNotFoundError):
            raise SourceChanged(printable(file.name)) from None

    def _explained(self, waiting: Waiting) -> Waiting:
        """The same, with the more exact reason of a file that is not finished."""
        why = self.settling.why(os.fsencode(waiting.name)) or waiting.why
        return Waiting(printable(waiting.name), why, round(waiting.age_s, 1))


def _outline(manifest: Manifest) -> Manifest:
    """Its sources and its id: all that is needed until its files are there. Many large ones may wait for a day."""
    spoken = None if manifest.text is None else manifest.text[:1]
    return Manifest(image=manifest.image, audio=manifest.audio, text=spoken, id=manifest.id)


def named_role(name: bytes) -> str | None:
    """What a file is for by its suffix."""
    _, dot, suffix = name.rpartition(b".")
    return _ROLES.get(dot + suffix.lower()) if dot else None


def _named(manifest: Manifest) -> list[bytes]:
    """The files in the inbox that a manifest names."""
    sources = [s for s in (manifest.image, manifest.audio) if s is not None]
    return [os.fsencode(s) for s in sources if classify(s) == "file"]


@dataclass(frozen=True)
class _Look:
    """What decides about the files of an inbox, besides time: `fingerprint` stands for all that lies there."""

    fingerprint: int
    taken: Mapping[bytes, Identity]
    rules: InboxRules
    network: bool


class _Everything(Container[bytes]):
    def __contains__(self, _item: object) -> bool:
        return True


def rules_of(settings: Settings) -> InboxRules:
    """The rules that the settings give."""
    watch, intake = settings.watch, settings.intake
    return InboxRules(
        settle_s=watch.settle_s,
        settle_proven_s=watch.settle_proven_s,
        settle_network_s=watch.settle_network_s,
        incomplete_timeout_s=watch.incomplete_timeout_s,
        incomplete_network_s=watch.incomplete_network_s,
        pair_timeout_s=watch.pair_timeout_s,
        max_bytes={
            IMAGE: intake.max_image_mb * 1_000_000,
            VIDEO: intake.max_video_mb * 1_000_000,
            AUDIO: intake.max_audio_mb * 1_000_000,
            MANIFEST: intake.max_manifest_kb * 1024,
        },
    )
