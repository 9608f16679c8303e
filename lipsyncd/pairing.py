"""Which of the files that lie there belong together: pairs, manifests with what they name, halves that wait.

A pure function of what the inbox found: no clock, no folder. A manifest comes first; what no manifest names pairs by
stem, compared in Unicode's composed form (NFC) without case, because a Mac and a share may spell one name in two ways.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lipsyncd.errors import AmbiguousPair, InputError, MissingFile, MissingHalf, UnsafePath
from lipsyncd.job import Identity
from lipsyncd.manifest import Manifest, classify

IMAGE, AUDIO, MANIFEST = "image", "audio", "manifest"


@dataclass(frozen=True)
class Found:
    """A file in the inbox that could be part of a job.

    role      by its suffix: IMAGE, AUDIO or MANIFEST
    settled   nobody has changed it for long enough; only then it is used
    taken     an accepted job has copied it already; it still lies here for another manifest, or cannot be removed
    age_s     time since it was first seen
    """

    name: bytes
    role: str
    identity: Identity
    settled: bool = True
    taken: bool = False
    age_s: float = 0.0

    @property
    def text(self) -> str:
        return os.fsdecode(self.name)

    @property
    def stem(self) -> str:
        return self.text.rpartition(".")[0]

    @property
    def key(self) -> str:
        return pairing_key(self.stem)


@dataclass(frozen=True)
class Drop:
    """Files that make one job, or that are refused together. The keys of `files` are roles; "extra-N" for the rest."""

    name: str
    files: Mapping[str, Found]
    manifest: Manifest | None = None
    refusal: InputError | None = None


@dataclass(frozen=True)
class Waiting:
    """Something that lies in the inbox and is no job yet, and why."""

    name: str
    why: str
    age_s: float


@dataclass
class Grouping:
    """What `group` found out: drops to take now, and what waits."""

    drops: list[Drop] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)


def pairing_key(stem: str) -> str:
    return unicodedata.normalize("NFC", stem).casefold()


def group(
    found: Iterable[Found],
    manifests: Mapping[bytes, Manifest | InputError],
    *,
    odd: frozenset[bytes],
    pair_timeout_s: float,
) -> Grouping:
    """Sort what was found into drops and what has to wait.

    manifests       the content of each settled manifest, by name
    odd             names of links, FIFOs, folders: a manifest that names one is refused
    pair_timeout_s  how long a half, or a manifest without its files, may wait
    """
    files = {f.name: f for f in found}
    result = Grouping()
    spoken_for = _take_manifests(files, manifests, odd, pair_timeout_s, result)
    _take_pairs(files, spoken_for, pair_timeout_s, result)
    return result


# -- manifests ---------------------------------------------------------------------------------------------------------


def _take_manifests(
    files: Mapping[bytes, Found],
    manifests: Mapping[bytes, Manifest | InputError],
    odd: frozenset[bytes],
    pair_timeout_s: float,
    result: Grouping,
) -> set[bytes]:
    """Make drops of manifests; gives the names that no pair may use any more."""
    spoken_for: set[bytes] = set()
    for file in sorted(files.values(), key=lambda f: (-f.age_s, f.name)):
        if file.role != MANIFEST or file.taken:
            continue
        content = manifests.get(file.name)
        if content is None:
            spoken_for |= _same_stem(files, file)
            result.waiting.append(Waiting(file.text, "still being written", file.age_s))
        elif isinstance(content, InputError):
            companions = _same_stem(files, file)
            spoken_for |= companions
            result.drops.append(_refused(file, [files[name] for name in sorted(companions)], content))
        else:
            spoken_for |= _take_manifest(files, file, content, odd, pair_timeout_s, result)
    return spoken_for


def _take_manifest(
    files: Mapping[bytes, Found],
    file: Found,
    manifest: Manifest,
    odd: frozenset[bytes],
    pair_timeout_s: float,
    result: Grouping,
) -> set[bytes]:
    wanted = {
        role: os.fsencode(source)
        for role, source in ((IMAGE, manifest.image), (AUDIO, manifest.audio))
        if source is not None and classify(source) == "file"
    }
    present = {role: _lookup(files, name) for role, name in wanted.items()}
    names = {f.name for f in present.values() if f is not None}
    missing = [os.fsdecode(wanted[role]) for role, f in present.items() if f is None]
    here = [f for f in present.values() if f is not None and not f.taken]
    linked = next((name for name in wanted.values() if name in odd), None)
    if linked is not None:
        error: InputError = UnsafePath(f"the manifest names {os.fsdecode(linked)!r}, which is no regular file")
        result.drops.append(_refused(file, here, error))
    elif missing and file.age_s >= pair_timeout_s:
        late = MissingFile(f"{' and '.join(map(repr, missing))} did not come within {pair_timeout_s:g} s")
        result.drops.append(_refused(file, here, late))
    elif missing:
        result.waiting.append(Waiting(file.text, f"waits for {' and '.join(map(repr, missing))}", file.age_s))
    elif not all(f.settled for f in present.values() if f is not None):
        result.waiting.append(Waiting(file.text, "its files are still being written", file.age_s))
    else:
        members = {MANIFEST: file, **{role: f for role, f in present.items() if f is not None}}
        result.drops.append(Drop(file.stem, members, manifest))
    return names


def _lookup(files: Mapping[bytes, Found], name: bytes) -> Found | None:
    """The file of that very name, else the only one whose name is the same text in another Unicode form."""
    if name in files:
        return files[name]
    text = unicodedata.normalize("NFC", os.fsdecode(name))
    same = [f for f in files.values() if unicodedata.normalize("NFC", f.text) == text]
    return same[0] if len(same) == 1 else None


def _same_stem(files: Mapping[bytes, Found], manifest: Found) -> set[bytes]:
    return {f.name for f in files.values() if f.key == manifest.key and f.name != manifest.name and f.role != MANIFEST}


def _refused(file: Found, companions: Iterable[Found], error: InputError) -> Drop:
    extras = {f"extra-{n}": f for n, f in enumerate((c for c in companions if not c.taken), start=1)}
    return Drop(file.stem, {file.role: file, **extras}, refusal=error)


# -- pairs -------------------------------------------------------------------------------------------------------------


def _take_pairs(files: Mapping[bytes, Found], spoken_for: set[bytes], pair_timeout_s: float, result: Grouping) -> None:
    stems: dict[str, list[Found]] = defaultdict(list)
    for file in files.values():
        if file.role != MANIFEST and not file.taken and file.name not in spoken_for:
            stems[file.key].append(file)
    for members in stems.values():
        _take_stem(sorted(members, key=lambda f: f.name), pair_timeout_s, result)


def _take_stem(members: list[Found], pair_timeout_s: float, result: Grouping) -> None:
    """One stem's pictures and sounds: a pair, a half, or too many."""
    images = [f for f in members if f.role == IMAGE]
    sounds = [f for f in members if f.role == AUDIO]
    first, age_s = members[0], max(f.age_s for f in members)
    unsettled = [f.text for f in members if not f.settled]
    if unsettled:
        result.waiting.append(Waiting(", ".join(unsettled), "still being written", age_s))
    elif len(images) == 1 and len(sounds) == 1:
        result.drops.append(Drop(images[0].stem, {IMAGE: images[0], AUDIO: sounds[0]}))
    elif images and sounds:
        names = ", ".join(f.text for f in members)
        result.drops.append(_refused(first, members[1:], AmbiguousPair(f"{names} share a stem")))
    elif age_s >= pair_timeout_s:
        half = "sound" if images else "picture"
        error = MissingHalf(f"no {half} of that stem came for {first.text!r} within {pair_timeout_s:g} s")
        result.drops.append(_refused(first, members[1:], error))
    else:
        half = "sound" if images else "picture"
        for file in members:
            result.waiting.append(Waiting(file.text, f"waits for a {half} of the same stem", file.age_s))
