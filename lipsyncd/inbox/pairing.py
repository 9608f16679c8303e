"""Which files belong together: pairs, manifests with the files that they name, halves that wait.

A pure function of what the scan found: no clock, no folder. Manifests come first, and find a file by its exact name,
else by the same text in another Unicode form, else without case and blanks in front. Files that no manifest names are
paired by their stem, compared in Unicode's composed form (NFC) without case: a Mac and a share may write one name in
two ways.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from lipsyncd.errors import AmbiguousPair, InputError, MissingFile, MissingHalf
from lipsyncd.jobs.job import AUDIO, IMAGE, MANIFEST, Identity
from lipsyncd.jobs.manifest import Manifest, classify
from lipsyncd.log import printable
from lipsyncd.media import AUDIO_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES, Structure

_T = TypeVar("_T")
NEAR_NAME = "has almost that name"  # at the end of the reason of a half that waits
_SUFFIXES = IMAGE_SUFFIXES | AUDIO_SUFFIXES | VIDEO_SUFFIXES
_COPY = re.compile(r"(\(\d+\)|[-_]copy(\(\d+\))?)$")
SEVERAL_S = 60.0  # a manifest whose name fits several files waits so long for the one of exactly that name


@dataclass(frozen=True, slots=True)
class Found:
    """A file in the inbox that could be part of a job.

    role       IMAGE, AUDIO, MANIFEST or OTHER: by its suffix, and once it has settled by its bytes (`role_by_bytes`)
    settled    it has not changed for long enough; only then it is used
    taken      an accepted job has copied it already; it still lies here for another manifest, or cannot be removed
    age_s      time since it was first seen
    film       it holds pictures and may hold sound: it can be either half
    gives_way  its suffix is one of `media.SECOND_SUFFIXES`
    named_for  its role by its suffix
    left_for   the file of the same stem that was taken in its place; "" when it can be part of a pair
    """

    name: bytes
    role: str
    identity: Identity
    settled: bool = True
    taken: bool = False
    age_s: float = 0.0
    film: bool = False
    gives_way: bool = False
    left_for: str = ""
    named_for: str = ""

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


@dataclass(frozen=True, slots=True)
class Waiting:
    """A file that lies in the inbox and is no job yet, and why."""

    name: str
    why: str
    age_s: float


@dataclass
class Grouping:
    """The result of `group`: drops to take now, files that give way to a file of a drop, and files that wait."""

    drops: list[Drop] = field(default_factory=list)
    left: list[tuple[Found, str]] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)


def composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def pairing_key(name: str) -> str:
    return composed(name).casefold()


def naming_key(name: str) -> str:
    """The same of a whole name in a manifest, where a blank in front is a slip of the pen."""
    return pairing_key(name.lstrip())


def role_by_bytes(role: str, structure: Structure | None) -> tuple[str, bool]:
    """The role of one half of a pair by its content, or its suffix where that is unknown, and whether it is a film."""
    kind = None if structure is None else structure.kind
    if kind is None or role not in (IMAGE, AUDIO):
        return role, False
    return (IMAGE if kind.is_image or kind.is_video else AUDIO), kind.is_video


def group(
    found: Iterable[Found],
    manifests: Mapping[bytes, Manifest | InputError],
    *,
    unusable: Mapping[bytes, InputError],
    pair_timeout_s: float,
) -> Grouping:
    """Sort the files of a scan into drops and files that wait. A drop holds settled files only, also a refused one.

    manifests       the content of each settled manifest, by name
    unusable        names that cannot be used, with the reason: a manifest that names one is refused
    pair_timeout_s  how long a half, or a manifest without its files, may wait
    """
    files = Names({f.name: f for f in found})
    result = Grouping()
    claimed = _take_manifests(files, manifests, Names(unusable), pair_timeout_s, result)
    _take_pairs(files, claimed, pair_timeout_s, result)
    result.waiting += [Waiting(f.text, "still being written", f.age_s) for f in files.values() if not f.settled]
    return result


# -- manifests ---------------------------------------------------------------------------------------------------------


def _take_manifests(
    files: Names[Found],
    manifests: Mapping[bytes, Manifest | InputError],
    unusable: Names[InputError],
    pair_timeout_s: float,
    result: Grouping,
) -> set[bytes]:
    """Make drops of manifests; gives the names that pairs may not use."""
    claimed: set[bytes] = set()
    media: Mapping[str, list[Found]] | None = None
    for file in sorted(files.values(), key=lambda f: (-f.age_s, f.name)):
        if file.role != MANIFEST or file.taken:
            continue
        content = manifests.get(file.name)
        if isinstance(content, Manifest):
            claimed |= _take_manifest(files, file, content, unusable, pair_timeout_s, result)
            continue
        media = _media_by_key(files) if media is None else media
        same_stem = media.get(file.key, ())
        companions = {f.name: f for f in same_stem if f.name not in claimed}
        claimed |= companions.keys()
        if content is not None:
            _refuse(file, companions.values(), content, result)
        elif file.settled:
            result.waiting.append(Waiting(file.text, "cannot be read at present", file.age_s))
    return claimed


def _media_by_key(files: Names[Found]) -> Mapping[str, list[Found]]:
    """The pictures and sounds by the key of their stem."""
    found: dict[str, list[Found]] = defaultdict(list)
    for file in files.values():
        if file.role in (IMAGE, AUDIO):
            found[file.key].append(file)
    return found


def _take_manifest(
    files: Names[Found],
    file: Found,
    manifest: Manifest,
    unusable: Names[InputError],
    pair_timeout_s: float,
    result: Grouping,
) -> set[bytes]:
    wanted = {
        role: os.fsencode(source)
        for role, source in ((IMAGE, manifest.image), (AUDIO, manifest.audio))
        if source is not None and classify(source) == "file"
    }
    present = {role: found for role, name in wanted.items() if (found := files.named(name)) is not None}
    missing = [repr(os.fsdecode(name)) for role, name in wanted.items() if role not in present]
    refused = (unusable.named(name) for role, name in wanted.items() if role not in present)
    reason = next((error for error in refused if error is not None), None)
    absent = (name for role, name in wanted.items() if role not in present)
    several = next(((name, alike) for name in absent if len(alike := files.alike(name)) > 1), None)
    if reason is None and several and file.age_s >= SEVERAL_S:
        reason = AmbiguousPair(
            f"{os.fsdecode(several[0])!r} is not there, and {_listed(several[1])} fit but for their case",
            remedy="write the name in the manifest exactly as the file has it",
        )
    if reason is None and missing and file.age_s >= pair_timeout_s:
        reason = MissingFile(f"{' and '.join(missing)} did not come within {pair_timeout_s:g} s")
    if reason is not None:
        _refuse(file, present.values(), reason, result)
    elif missing:
        since = f", since {_listed(several[1])} fit but for their case" if several else ""
        result.waiting.append(Waiting(file.text, f"waits for {' and '.join(missing)}{since}", file.age_s))
    elif not all(f.settled for f in present.values()):
        result.waiting.append(Waiting(file.text, "its files are still being written", file.age_s))
    else:
        result.drops.append(Drop(file.stem, {MANIFEST: file, **present}, manifest))
    return {f.name for f in present.values()}


class Names(Mapping[bytes, _T]):
    """What lies under each name of a folder, found also by names as people write them. It is not changed once made."""

    def __init__(self, content: Mapping[bytes, _T]) -> None:
        self._content = content

    def __getitem__(self, name: bytes) -> _T:
        return self._content[name]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    def named(self, name: bytes) -> _T | None:
        """What lies under exactly that name, else under the only one that is the same text.

        First the names in Unicode's composed form are compared, then those without case and blanks in front.
        """
        if name in self._content:
            return self._content[name]
        text = os.fsdecode(name)
        for known, key in ((self._composed, composed(text)), (self._caseless, naming_key(text))):
            if len(same := known.get(key, [])) == 1:
                return self._content[same[0]]
        return None

    def alike(self, name: bytes) -> list[bytes]:
        """The names that are the same text without case, in order."""
        return sorted(self._caseless.get(naming_key(os.fsdecode(name)), ()))

    @cached_property
    def _composed(self) -> Mapping[str, list[bytes]]:
        return self._by(composed)

    @cached_property
    def _caseless(self) -> Mapping[str, list[bytes]]:
        return self._by(naming_key)

    def _by(self, key: Callable[[str], str]) -> Mapping[str, list[bytes]]:
        names: dict[str, list[bytes]] = defaultdict(list)
        for name in self._content:
            names[key(os.fsdecode(name))].append(name)
        return names


def _listed(names: Sequence[bytes]) -> str:
    """Two of the names, and how many there are more."""
    first, second = (repr(printable(name)) for name in names[:2])
    return f"{first} and {second} both" if len(names) == 2 else f"{first}, {second} and {len(names) - 2} more"


def _refuse(file: Found, companions: Iterable[Found], error: InputError, result: Grouping) -> None:
    """Make a refused drop of a file and what belongs to it, once all of that is settled."""
    here = sorted({f for f in companions if not f.taken}, key=lambda f: f.name)
    if not all(f.settled for f in here):
        result.waiting.append(Waiting(file.text, "its files are still being written", file.age_s))
        return
    extras = {f"extra-{number}": f for number, f in enumerate(here, start=1)}
    result.drops.append(Drop(file.stem, {file.role: file, **extras}, refusal=error))


# -- pairs -------------------------------------------------------------------------------------------------------------


def _take_pairs(files: Mapping[bytes, Found], claimed: set[bytes], pair_timeout_s: float, result: Grouping) -> None:
    stems: dict[str, list[Found]] = defaultdict(list)
    for file in files.values():
        if file.role in (IMAGE, AUDIO) and not (file.taken or file.left_for) and file.name not in claimed:
            stems[file.key].append(file)
    halves: list[tuple[Found, str]] = []
    for members in stems.values():
        if all(f.settled for f in members):
            halves += _take_stem(sorted(members, key=lambda f: f.name), pair_timeout_s, result)
    result.waiting += _explained(halves)


def _take_stem(members: list[Found], pair_timeout_s: float, result: Grouping) -> list[tuple[Found, str]]:
    """One stem's pictures, films and sounds: a pair, a half, or too many. Gives the files that wait, and for what.

    A film beside a sound is the picture. Beside a picture, and without another sound, it is the sound.
    """
    sounds = [f for f in members if f.role == AUDIO]
    films = [f for f in members if f.film]
    pictures = [f for f in members if f.role == IMAGE and (sounds or not f.film)]
    images, voices = _preferred(pictures), _preferred(sounds or films)
    if len(images) == 1 and len(voices) == 1:
        result.drops.append(Drop(images[0].stem, {IMAGE: images[0], AUDIO: voices[0]}))
        for chosen, of_role in ((images[0], pictures), (voices[0], sounds or films)):
            result.left += [(f, chosen.text) for f in of_role if f is not chosen]
        return []
    by_name = {f.named_for: f for f in members}
    if len(members) == 2 and not (images and voices) and by_name.keys() == {IMAGE, AUDIO}:
        # Two pictures or two sounds under the names of a pair: its check refuses them at once, with what they are.
        result.drops.append(Drop(by_name[IMAGE].stem, by_name))
        return []
    first, others = members[0], members[1:]
    half = "picture" if sounds else "sound" if pictures else "picture or a sound"
    if images and voices:
        names = ", ".join(f.text for f in members)
        _refuse(first, others, AmbiguousPair(f"{names} share a stem"), result)
    elif max(f.age_s for f in members) >= pair_timeout_s:
        late = MissingHalf(f"no {half} of that stem came for {first.text!r} within {pair_timeout_s:g} s")
        _refuse(first, others, late, result)
    else:
        return [(f, half) for f in members]
    return []


def _explained(halves: Sequence[tuple[Found, str]]) -> Iterator[Waiting]:
    """Why each half waits, with a file that its writer may have meant for the other half."""
    near: dict[tuple[str, str], Found] = {}
    for file, _ in halves:
        near.setdefault((_near_key(file.stem), file.role), file)
    for file, half in halves:
        other = near.get((_near_key(file.stem), AUDIO if file.role == IMAGE else IMAGE))
        hint = f", and {printable(other.text)!r} {NEAR_NAME}" if other and other.key != file.key else ""
        yield Waiting(file.text, f"waits for a {half} of the same stem{hint}", file.age_s)


def _near_key(stem: str) -> str:
    """A stem without what people do not see or did not write: blanks, marks, the number of a copy, a second suffix."""
    text = unicodedata.normalize("NFKC", stem).casefold()
    text = "".join(char for char in text if not char.isspace() and unicodedata.category(char) != "Cf")
    first, dot, suffix = text.rpartition(".")
    return _COPY.sub("", first if dot + suffix in _SUFFIXES else text)


def _preferred(of_role: list[Found]) -> list[Found]:
    """The one file of a first suffix, where there is one; else all."""
    first = [f for f in of_role if not f.gives_way]
    return first if len(first) == 1 else of_role
