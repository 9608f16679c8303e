"""The folder of weights: which files it has, and whether each is the file that the lock list names.

A proof is a small file beside the weight: the SHA-256 that was found, and the identity of the file that had it. While
size, times and inode stay the same, a start trusts the proof and does not read 2 GB again; after any change the file is
hashed again. If the folder cannot be written, the proofs go into the daemon's state folder.

Owns the proofs, and renames damaged files. Leaves fetching files to `pull`.
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

NOT_READY = ("missing", "unconverted", "unlinked")

OnRead = Callable[[int], None]  # gets the number of bytes read so far


@dataclass(frozen=True)
class Present:
    """Which file there is of one weight.

    path        the file that renders open; the pickle when "unconverted"; the read-only file when "unlinked"; else None
    size_bytes  of that file
    state       "verified", "unverified" (has to be hashed again), "unconverted" (only the pickle exists), "unlinked"
                (in the read-only folder, neither hashed nor linked yet), "missing"
    """

    weight: Weight
    path: Path | None
    size_bytes: int
    state: str


def store_of(settings: Settings) -> Store:
    """The folder of weights, the lock list and the second folder for proofs, as configured. Raises `ConfigError`.

    If this user cannot write the configured folder, such as a read-only mount or another user's clone, its files are
    used in place, and all others go into `weights` in the storage folder. Once that folder exists it stays in use, so
    that daemon and commands agree.
    """
    weights, folder = read_lock(settings.weights.lock), settings.weights.dir
    proofs, own = settings.paths.state / "weights", settings.paths.storage / OWN_FOLDER
    if own != folder and (own.is_dir() or not _is_writable(folder, weights)):
        return Store(own, weights, proofs=proofs, read_only=folder)
    return Store(folder, weights, proofs=proofs)


def _is_writable(folder: Path, weights: Sequence[Weight]) -> bool:
    """May this user write every sub-folder that a weight may go into? A folder that does not exist counts as yes."""
    needed = {(folder / file).parent for weight in weights for file in (weight.file, weight.used_file)}
    return not folder.is_dir() or all(
        os.access(place, os.W_OK | os.X_OK) for place in needed | {folder} if place.exists()
    )


def hash_file(path: Path, on_read: OnRead = lambda _: None) -> tuple[str, Identity]:
    """SHA-256 of a file as hex, and the identity of the file. Links are followed, since hub caches consist of them.

    Raises OSError, also when the file changes meanwhile.
    """
    descriptor = open_regular(path.resolve())
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        before = _settled_identity(descriptor)
        digest, done = hashlib.sha256(), 0
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            done += len(block)
            on_read(done)
        if Identity.of(os.fstat(descriptor)) != before:
            raise OSError(f"{path} changes while it is read")
    return digest.hexdigest(), before


def _settled_identity(descriptor: int) -> Identity:
    """Identity of an open file, taken when its times are old enough for a further change to alter them."""
    stat = os.fstat(descriptor)
    if 0 <= time.time_ns() - stat.st_ctime_ns < _CLOCK_TICK_NS:
        time.sleep(_CLOCK_TICK_NS / 1e9)
    return Identity.of(stat)


class Store:
    """A folder of weights.

    folder     the layout of the original's `models/`: musetalkV15/, sd-vae/, whisper/, dwpose/, face-parse-bisent/
    weights    the lock list
    proofs     folder for the proofs that cannot be written beside their weights
    read_only  a folder of the same layout that is only read: its files with the right hash are linked into `folder`
    """

    def __init__(
        self,
        folder: Path,
        weights: Sequence[Weight] | None = None,
        *,
        proofs: Path | None = None,
        read_only: Path | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.weights = tuple(read_lock() if weights is None else weights)
        self.read_only = None if read_only is None else read_only.absolute()
        self._proofs = proofs

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that change with the bytes of any weight in the lock list."""
        return hashlib.sha256("".join(weight.sha256 for weight in self.weights).encode()).hexdigest()[:12]

    def weight(self, name: str) -> Weight:
        """The weight of that name. Raises KeyError."""
        return {weight.name: weight for weight in self.weights}[name]

    def path(self, name: str) -> Path:
        """The file that a renderer opens for that weight, whether it exists or not."""
        return self.folder / self.weight(name).used_file

    def original_path(self, weight: Weight) -> Path:
        """The path in the folder for the file as the hub has it."""
        return self.folder / weight.file

    def find_original(self, weight: Weight) -> Path | None:
        """An existing file as the hub has it: a pickle in the folder, or any file in the read-only folder."""
        places = [self.original_path(weight)] if weight.becomes else []
        if self.read_only is not None:
            places.append(self.read_only / weight.file)
        return next((place for place in places if place.is_file()), None)

    def needed(self, options: Mapping[str, object] | None = None) -> list[Weight]:
        """The weights that a render with these options needs; without options, those that every render needs."""
        return [weight for weight in self.weights if weight.needed(options or {})]

    def wanted_for(self, extra: str) -> list[Weight]:
        """All weights that renders with this option of `EXTRAS` open, also those without which they run."""
        options = {extra: True}
        return [weight for weight in self.weights if weight.needed(options) or weight.welcome(options)]

    # -- what is there -------------------------------------------------------------------------------------------------

    def status(self) -> list[Present]:
        """The file and state of every weight. Reads no weight, so it takes a millisecond."""
        return [self._status_of(weight) for weight in self.weights]

    def missing(self, options: Mapping[str, object] | None = None) -> list[Weight]:
        """The needed weights that a render cannot open yet: missing, not converted, or not linked."""
        found = [self._status_of(weight) for weight in self.needed(options)]
        return [present.weight for present in found if present.state in NOT_READY]

    def require(self, options: Mapping[str, object] | None = None) -> None:
        """Return when a render with these options may open its weights. Files without a proof are hashed now.

        Raises `WeightsMissing`, `WeightsDamaged`.
        """
        if missing := self.missing(options):
            names = ", ".join(weight.name for weight in missing)
            raise WeightsMissing(f"weights are missing in {self.folder}: {names}")
        for weight in self.needed(options):
            self.check(weight)
        for weight in self.weights:
            if weight.welcome(options or {}) and self.path(weight.name).exists():
                self.check(weight)

    def _status_of(self, weight: Weight) -> Present:
        used = self.folder / weight.used_file
        identity = _identity(used)
        if identity is not None:
            state = "verified" if self._has_proof(weight, identity) else "unverified"
            return Present(weight, used, identity.size, state)
        original = self.find_original(weight)
        identity = None if original is None else _identity(original)
        if identity is None:
            return Present(weight, None, 0, "missing")
        return Present(weight, original, identity.size, "unlinked" if self.is_read_only(original) else "unconverted")

    def is_read_only(self, path: Path | None) -> bool:
        """Is that file in the read-only folder, so that it has to stay there?"""
        return self.read_only is not None and path is not None and path.is_relative_to(self.read_only)

    # -- proofs --------------------------------------------------------------------------------------------------------

    def check(self, weight: Weight, on_read: OnRead = lambda _: None, *, again: bool = False) -> Path:
        """The file of a weight, with a proof; `again` hashes it even if there is one.

        A file with a wrong hash is renamed to `.damaged` and not deleted: it may be the operator's own. Raises
        `WeightsMissing`, `WeightsDamaged`.
        """
        path = self.folder / weight.used_file
        identity = _identity(path)
        if identity is None:
            raise WeightsMissing(f"{path} is missing")
        if not again and self._has_proof(weight, identity):
            return path
        try:
            found, identity = hash_file(path, on_read)
        except OSError as error:
            raise WeightsMissing(f"{path} cannot be read: {error}") from error
        expected = self.expected_sha256(weight)
        if found != expected:
            fault = (
                f"has sha256 {found}, not {expected}" if expected else f"(sha256 {found}) was made from an unknown file"
            )
            kept = _rename_damaged(path)
            raise WeightsDamaged(f"{path} {fault}" + (f", and was renamed to {kept.name}" if kept else ""))
        self.save_proof(weight, found, identity)
        return path

    def expected_sha256(self, weight: Weight) -> str:
        """The SHA-256 that the used file has to have, by the lock list.

        Of a converted file the list may have none: then it is that of our own proof, "" without a proof.
        """
        if not weight.becomes:
            return weight.sha256
        if weight.becomes_sha256:
            return weight.becomes_sha256
        known = [proof["sha256"] for proof in self._proofs_of(weight) if isinstance(proof.get("sha256"), str)]
        return known[0] if known else ""

    def expected_bytes(self, weight: Weight) -> int | None:
        """The size that the used file has to have: that of its proof if it was converted, None without a proof."""
        if not weight.becomes:
            return weight.size_bytes
        sizes = [file.get("size") for proof in self._proofs_of(weight) if isinstance(file := proof.get("file"), dict)]
        return next((size for size in sizes if isinstance(size, int)), None)

    def save_proof(self, weight: Weight, sha256: str, identity: Identity) -> None:
        """Record that the used file with that identity has that hash. Without a writable folder nothing is kept."""
        proof = {"sha256": sha256, "from": weight.sha256, "file": _lasting(identity)}
        for place in self._proof_paths(weight):
            with contextlib.suppress(OSError):
                place.parent.mkdir(exist_ok=True)
                write_json(place, proof, mode=0o644)
                return

    def _has_proof(self, weight: Weight, identity: Identity) -> bool:
        expected, file = self.expected_sha256(weight), _lasting(identity)
        return any(proof.get("file") == file and proof.get("sha256") == expected for proof in self._proofs_of(weight))

    def _proofs_of(self, weight: Weight) -> list[dict[str, Any]]:
        """The proofs that can be read and belong to this entry of the lock list."""
        found = []
        for place in self._proof_paths(weight):
            with contextlib.suppress(OSError):
                found.append(read_json(place) or {})
        return [proof for proof in found if proof.get("from") == weight.sha256]

    def _proof_paths(self, weight: Weight) -> list[Path]:
        """The paths of the proof: beside the file, else in the second folder, named for the file's whole path."""
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


def _lasting(identity: Identity) -> dict[str, int]:
    """The parts of an identity that survive a reboot: device numbers do not."""
    return {
        "ino": identity.ino,
        "size": identity.size,
        "mtime_ns": identity.mtime_ns,
        "ctime_ns": identity.ctime_ns,
    }


def _rename_damaged(path: Path) -> Path | None:
    """Rename a damaged file; returns the new path, or None if the folder cannot be written."""
    target = path.with_name(f"{path.name}.damaged")
    try:
        return path.replace(target)
    except OSError:
        return None
