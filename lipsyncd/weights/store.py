"""The folder of weights: what lies there, and whether it has been proved to be what the lock list says.

A proof is a small file beside the weight: the SHA-256 that was found, and the identity of the file that had it. As long
as size, times and inode are the same, a start trusts the proof and does not read 2 GB again; any change means another
hash. Where the folder cannot be written, proofs are kept in the daemon's state folder.

Owns the proofs and the setting aside of damaged files. Leaves bringing files to `pulling`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipsyncd.errors import WeightsDamaged, WeightsMissing
from lipsyncd.jobs.job import Identity
from lipsyncd.settings import Settings
from lipsyncd.storage.files import open_regular, read_json, write_json
from lipsyncd.weights.lock_list import Weight, read_lock

OWN_FOLDER = "weights"  # in the storage folder, beside a folder of weights that cannot be written
_BLOCK_BYTES = 1 << 20
_CLOCK_TICK_NS = 20_000_000  # a file that changes twice within one tick of the kernel's clock keeps its times

NOT_READY = ("missing", "unconverted", "on the shelf")

Told = Callable[[int], None]  # how many bytes have been read


@dataclass(frozen=True)
class Present:
    """What there is of one weight.

    path        the file that renders open; for "unconverted" the pickle; on the shelf either; None when there is none
    size_bytes  of that file
    state       "verified", "unverified" (another hash is due), "unconverted" (only the pickle is there), "on the shelf"
                (neither hashed nor linked yet), "missing"
    """

    weight: Weight
    path: Path | None
    size_bytes: int
    state: str


def store_of(settings: Settings) -> Store:
    """The folder, the lock list and the second place for proofs that the settings name. Raises `ConfigError`.

    A folder that this user cannot fill, such as a mount that is read-only or a clone of somebody else's, becomes a
    shelf: what lies there is used in place, and `weights` in the storage folder takes the rest. Once that exists it
    stays in use, so that everybody who asks sees the same.
    """
    weights, folder = read_lock(settings.weights.lock), settings.weights.dir
    proofs, own = settings.paths.state / "weights", settings.paths.storage / OWN_FOLDER
    if own != folder and (own.is_dir() or not _can_be_filled(folder, weights)):
        return Store(own, weights, proofs=proofs, shelf=folder)
    return Store(folder, weights, proofs=proofs)


def _can_be_filled(folder: Path, weights: Sequence[Weight]) -> bool:
    """May this user write wherever a weight may have to go? A folder that is not there yet is no obstacle."""
    wanted = {(folder / file).parent for weight in weights for file in (weight.file, weight.used_file)}
    return not folder.is_dir() or all(
        os.access(place, os.W_OK | os.X_OK) for place in wanted | {folder} if place.exists()
    )


def digest_of(path: Path, told: Told = lambda _: None) -> tuple[str, Identity]:
    """SHA-256 of a file as hex, and which file had it. Links are followed: hub caches are made of them.

    Raises OSError, also when the file changes meanwhile.
    """
    descriptor = open_regular(path.resolve())
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        before = _grown_old(descriptor)
        digest, done = hashlib.sha256(), 0
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            done += len(block)
            told(done)
        if Identity.of(os.fstat(descriptor)) != before:
            raise OSError(f"{path} changes while it is read")
    return digest.hexdigest(), before


def _grown_old(descriptor: int) -> Identity:
    """Identity of an open file, once its times are so old that another change will show."""
    stat = os.fstat(descriptor)
    if 0 <= time.time_ns() - stat.st_ctime_ns < _CLOCK_TICK_NS:
        time.sleep(_CLOCK_TICK_NS / 1e9)
    return Identity.of(stat)


class Store:
    """A folder of weights.

    folder   the layout of the original's `models/`: musetalkV15/, sd-vae/, whisper/, dwpose/, face-parse-bisent/, and
             yunet/
    weights  the lock list
    proofs   folder that takes the proofs where they cannot lie beside the weights
    shelf    a folder of the same layout that is only read: what lies there with the right hash is linked into `folder`
    """

    def __init__(
        self,
        folder: Path,
        weights: Sequence[Weight] | None = None,
        *,
        proofs: Path | None = None,
        shelf: Path | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.weights = tuple(read_lock() if weights is None else weights)
        self.shelf = None if shelf is None else shelf.absolute()
        self._proofs = proofs

    @property
    def mark(self) -> str:
        """Twelve hex digits that stand for the bytes of every weight in the lock list."""
        return hashlib.sha256("".join(weight.sha256 for weight in self.weights).encode()).hexdigest()[:12]

    def weight(self, name: str) -> Weight:
        """The weight of that name. Raises KeyError."""
        return {weight.name: weight for weight in self.weights}[name]

    def path(self, name: str) -> Path:
        """The file that a renderer opens for that weight, there or not."""
        return self.folder / self.weight(name).used_file

    def original(self, weight: Weight) -> Path:
        """Where the file as the hub has it would lie."""
        return self.folder / weight.file

    def lying(self, weight: Weight) -> Path | None:
        """The file as the hub has it, where somebody has put it: a pickle beside what it becomes, or on the shelf."""
        places = [self.original(weight)] if weight.becomes else []
        if self.shelf is not None:
            places.append(self.shelf / weight.file)
        return next((place for place in places if place.is_file()), None)

    def needed(self, options: Mapping[str, object] | None = None) -> list[Weight]:
        """The weights that a render with these options opens; without options, those that every render opens."""
        return [weight for weight in self.weights if weight.needed(options or {})]

    # -- looking -------------------------------------------------------------------------------------------------------

    def status(self) -> list[Present]:
        """What there is of every weight. Reads no weight, so it takes a millisecond."""
        return [self._look(weight) for weight in self.weights]

    def missing(self, options: Mapping[str, object] | None = None) -> list[Weight]:
        """What is needed, and cannot be opened yet by a render: missing, still a pickle, or not yet taken over."""
        found = [self._look(weight) for weight in self.needed(options)]
        return [there.weight for there in found if there.state in NOT_READY]

    def require(self, options: Mapping[str, object] | None = None) -> None:
        """Return when a render with these options may open its weights. What has no proof yet is hashed now.

        Raises `WeightsMissing`, `WeightsDamaged`.
        """
        if missing := self.missing(options):
            names = ", ".join(weight.name for weight in missing)
            raise WeightsMissing(f"weights are missing in {self.folder}: {names}")
        for weight in self.needed(options):
            self.check(weight)

    def _look(self, weight: Weight) -> Present:
        used = self.folder / weight.used_file
        identity = _identity(used)
        if identity is not None:
            state = "verified" if self._proved(weight, identity) else "unverified"
            return Present(weight, used, identity.size, state)
        lying = self.lying(weight)
        there = None if lying is None else _identity(lying)
        if there is None:
            return Present(weight, None, 0, "missing")
        return Present(weight, lying, there.size, "on the shelf" if self.shelves(lying) else "unconverted")

    def shelves(self, path: Path | None) -> bool:
        """Does that file lie on the shelf, and so stays where it is?"""
        return self.shelf is not None and path is not None and path.is_relative_to(self.shelf)

    # -- proving -------------------------------------------------------------------------------------------------------

    def check(self, weight: Weight, told: Told = lambda _: None, *, again: bool = False) -> Path:
        """The file of a weight, proved; `again` hashes it even where there is a proof.

        A file with a wrong hash is set aside as `.damaged`: it may be somebody's own. Raises `WeightsMissing`,
        `WeightsDamaged`.
        """
        path = self.folder / weight.used_file
        identity = _identity(path)
        if identity is None:
            raise WeightsMissing(f"{path} is missing")
        if not again and self._proved(weight, identity):
            return path
        try:
            found, identity = digest_of(path, told)
        except OSError as error:
            raise WeightsMissing(f"{path} cannot be read: {error}") from error
        wanted = self.wanted(weight)
        if found != wanted:
            fault = f"has sha256 {found}, not {wanted}" if wanted else f"(sha256 {found}) has no record of what made it"
            kept = _set_aside(path)
            raise WeightsDamaged(f"{path} {fault}" + (f", and was renamed to {kept.name}" if kept else ""))
        self.prove(weight, found, identity)
        return path

    def wanted(self, weight: Weight) -> str:
        """The SHA-256 that the used file has to have: of a converted one the noted one, "" if there is no note."""
        if not weight.becomes:
            return weight.sha256
        known = [proof["sha256"] for proof in self._proofs_of(weight) if isinstance(proof.get("sha256"), str)]
        return known[0] if known else ""

    def wanted_bytes(self, weight: Weight) -> int | None:
        """The size that the used file has to have: of a converted one the noted one, None if there is no note."""
        if not weight.becomes:
            return weight.size_bytes
        sizes = [file.get("size") for proof in self._proofs_of(weight) if isinstance(file := proof.get("file"), dict)]
        return next((size for size in sizes if isinstance(size, int)), None)

    def prove(self, weight: Weight, sha256: str, identity: Identity) -> None:
        """Note that the used file with that identity has that hash. Where nothing can be written nothing is kept."""
        proof = {"sha256": sha256, "from": weight.sha256, "file": _marks(identity)}
        for place in self._places(weight):
            with contextlib.suppress(OSError):
                place.parent.mkdir(exist_ok=True)
                write_json(place, proof, mode=0o644)
                return

    def _proved(self, weight: Weight, identity: Identity) -> bool:
        wanted, marks = self.wanted(weight), _marks(identity)
        return any(proof.get("file") == marks and proof.get("sha256") == wanted for proof in self._proofs_of(weight))

    def _proofs_of(self, weight: Weight) -> list[dict[str, Any]]:
        """The proofs that can be read and belong to this entry of the lock list."""
        found = []
        for place in self._places(weight):
            with contextlib.suppress(OSError):
                found.append(read_json(place) or {})
        return [proof for proof in found if proof.get("from") == weight.sha256]

    def _places(self, weight: Weight) -> list[Path]:
        """Where the proof may lie: beside the file, and in the second place under a name of the whole path."""
        path = self.folder / weight.used_file
        places = [path.with_name(f".{path.name}.proof")]
        if self._proofs is not None:
            places.append(self._proofs / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}.json")
        return places


def total_bytes(weights: Iterable[Weight]) -> int:
    return sum(weight.size_bytes for weight in weights)


def _identity(path: Path) -> Identity | None:
    try:
        return Identity.of(path.stat())
    except OSError:
        return None


def _marks(identity: Identity) -> dict[str, int]:
    """What of an identity survives a reboot: device numbers do not."""
    return {
        "ino": identity.ino,
        "size": identity.size,
        "mtime_ns": identity.mtime_ns,
        "ctime_ns": identity.ctime_ns,
    }


def _set_aside(path: Path) -> Path | None:
    """Take a file out of the way under another name; None where the folder cannot be written."""
    target = path.with_name(f"{path.name}.damaged")
    try:
        return path.replace(target)
    except OSError:
        return None
