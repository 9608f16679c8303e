"""Fill the folder of weights: from a folder that somebody has, or from the hub, whatever breaks on the way.

A download grows under a hidden name that carries its hash, so that the next try goes on where this one ended. When it
is whole, our hash decides: it gets its name and its proof, or it is removed. A pickle never gets a name: it becomes
safetensors in the jail and goes. One pull at a time works on a folder; a second one waits and then finds the work done.

Owns the order of these steps and the process that downloads. Leaves the proofs to `store`.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lipsyncd.errors import DiskLow, RendererNotInstalled, WeightsDamaged, WeightsMissing, WeightsUnreachable
from lipsyncd.jobs.job import Identity
from lipsyncd.processes import exit_text
from lipsyncd.storage.disk_space import says_full, shortage
from lipsyncd.storage.files import copy_hashed, fsync_file, fsync_folder, open_regular
from lipsyncd.weights.convert import convert
from lipsyncd.weights.lock_list import Weight
from lipsyncd.weights.store import Store, digest_of

_TRUE = ("1", "ON", "YES", "TRUE")
_POLL_S = 0.1
_LONGEST_MESSAGE = 300  # characters


class PullStopped(Exception):
    """The caller asked to stop. What was fetched so far is kept for the next pull."""


@dataclass(frozen=True)
class Step:
    """How far one weight is. `doing`: waiting, checking, fetching, copying, converting, ready."""

    weight: Weight
    doing: str
    done_bytes: int = 0
    total_bytes: int = 0


def offline(environ: Mapping[str, str] = os.environ) -> bool:
    """Has somebody forbidden to ask the hub, in the way that huggingface_hub understands?"""
    return (environ.get("HF_HUB_OFFLINE") or environ.get("TRANSFORMERS_OFFLINE") or "").upper() in _TRUE


def pull(
    store: Store,
    weights: Sequence[Weight],
    *,
    source: Path | None = None,
    tell: Callable[[Step], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    keep_pickles: bool = False,
    min_free_mb: float = 0.0,
) -> None:
    """Bring these weights into the folder, proved and ready to be opened. What is there already is only checked.

    source        a folder of the same layout, such as an original `models/`, that is asked first; it stays as it is
    stop          asked several times a second while something is fetched
    keep_pickles  leave a fetched pickle beside what it became
    min_free_mb   what has to stay free on the disk

    Raises `WeightsMissing` (offline, or a folder that cannot be written), `WeightsDamaged`, `WeightsUnreachable`,
    `DiskLow`, `RendererNotInstalled`, `PullStopped`.
    """
    pull = _Pull(store, source, tell, stop, keep_pickles)
    try:
        wanted = [weight for weight in weights if not pull.is_ready(weight) or pull.leftovers(weight)]
        if not wanted:
            return
        store.folder.mkdir(parents=True, exist_ok=True)
        with _alone(store.folder, lambda: pull.wait(wanted[0])) as lock:
            for weight in wanted:
                pull.sweep(weight)
            wanted = [weight for weight in wanted if not pull.is_ready(weight)]
            pull.require_space(wanted, min_free_mb)
            for weight in wanted:
                pull.bring(weight, lock)
    except OSError as error:
        raise _no_room(store.folder, error) from error


def _no_room(folder: Path, error: OSError) -> WeightsMissing | DiskLow:
    if says_full(error):
        return DiskLow(f"weights do not fit into {folder}: {error.strerror}")
    return WeightsMissing(
        f"weights are missing, and {folder} cannot be filled: {error}",
        remedy="make it writable for this user, or name another folder with weights.dir (MODELS_DIR)",
    )


@contextlib.contextmanager
def _alone(folder: Path, wait: Callable[[], None]) -> Iterator[int]:
    """Hold the folder's lock. The downloading process inherits it, so the orphan of a killed pull keeps others out."""
    descriptor = os.open(folder / ".pull.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o664)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                wait()
        yield descriptor
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class _Pull:
    """One pull: its arguments, and the steps that it is made of."""

    store: Store
    source: Path | None
    tell: Callable[[Step], None]
    stop: Callable[[], bool]
    keep_pickles: bool

    def is_ready(self, weight: Weight) -> bool:
        """Is it there and proved? A damaged file is set aside and counts as missing, unless it cannot be moved."""
        try:
            self.store.check(weight, self._counted(weight, "checking"))
        except WeightsDamaged:
            if self.store.path(weight.name).exists():
                raise
            return False
        except WeightsMissing:
            return False
        self.tell(Step(weight, "ready"))
        return True

    def leftovers(self, weight: Weight) -> list[Path]:
        """Partial files that no pull goes on from: of another revision, or of a pull that died before its last step."""
        path, part = self.store.original(weight), self._part(weight)
        parts = path.parent.glob(f".{glob.escape(path.name)}.*.part")
        return [other for other in parts if other != part or self.store.path(weight.name).exists()]

    def sweep(self, weight: Weight) -> None:
        for path in self.leftovers(weight):
            path.unlink(missing_ok=True)

    def wait(self, weight: Weight) -> None:
        self.tell(Step(weight, "waiting"))
        self._heed()
        time.sleep(_POLL_S)

    def require_space(self, weights: Sequence[Weight], min_free_mb: float) -> None:
        """Raises `DiskLow` when what is still to be written does not fit."""
        needed_mb = sum(self._to_write_bytes(weight) for weight in weights) / 1e6
        if found := shortage(self.store.folder, needed_mb + min_free_mb):
            raise DiskLow(
                f"{found}: {needed_mb:.0f} MB for the weights, and {min_free_mb:.0f} MB have to stay",
                remedy="free space there, or name another folder with weights.dir (MODELS_DIR)",
            )

    def _to_write_bytes(self, weight: Weight) -> int:
        halved = weight.size_bytes // 2 if weight.dtype == "float16" else weight.size_bytes
        converted = halved if weight.becomes else 0
        if (lying := self._lying(weight)) is not None:
            return converted or (0 if self.store.shelves(lying) else weight.size_bytes)
        part = self._part(weight)
        return converted + weight.size_bytes - (part.stat().st_size if part.exists() else 0)

    # -- one weight ----------------------------------------------------------------------------------------------------

    def bring(self, weight: Weight, lock: int) -> None:
        """Make one weight ready."""
        self._heed()
        part, lying = self._part(weight), self._lying(weight)
        part.parent.mkdir(parents=True, exist_ok=True)
        if (converted := self._converted_in_source(weight)) is not None:
            self._copy(weight, *converted)
        elif lying is not None and weight.becomes:
            self._require_hash(weight, lying)
            self._convert(weight, lying)
        elif lying is not None and self.store.shelves(lying):
            self._require_hash(weight, lying)
            self._link(weight, lying)
        elif lying is not None:
            self._copy(weight, lying, weight.sha256)
        else:
            self._fetch(weight, part, lock)
            self._require_hash(weight, part, ours=True)
            if weight.becomes:
                self._convert(weight, part)
                self._let_go(weight, part)
            else:
                self._place(weight, part, weight.sha256)
        self.tell(Step(weight, "ready"))

    def _lying(self, weight: Weight) -> Path | None:
        """The file as the hub has it, where somebody has put it: here (a pickle), on the shelf, or in the source."""
        if (there := self.store.lying(weight)) is not None:
            return there
        given = None if self.source is None else self.source / weight.file
        return given if given is not None and given.is_file() else None

    def _converted_in_source(self, weight: Weight) -> tuple[Path, str] | None:
        """What another lipsyncd has made of a pickle, with the hash that it noted."""
        if self.source is None or not weight.becomes:
            return None
        other = Store(self.source, self.store.weights)
        path, noted = other.path(weight.name), other.wanted(weight)
        return (path, noted) if noted and path.is_file() else None

    def _part(self, weight: Weight) -> Path:
        """Where the download grows. Another revision of the file has another hash, and so another name."""
        path = self.store.original(weight)
        return path.with_name(f".{path.name}.{weight.sha256[:12]}.part")

    def _require_hash(self, weight: Weight, path: Path, *, ours: bool = False) -> None:
        """Raises `WeightsDamaged` for a wrong hash; a file that we fetched is removed."""
        found, _ = digest_of(path, self._counted(weight, "checking"))
        if found == weight.sha256:
            return
        if not ours:
            remedy = f"bring the right one, or take it out of {self.store.shelf}" if self.store.shelves(path) else None
            raise WeightsDamaged(f"{path} has sha256 {found}, not {weight.sha256}", remedy=remedy)
        path.unlink()
        raise WeightsDamaged(
            f"{weight.path} of {weight.repository} came with sha256 {found}, not {weight.sha256}, and was removed"
        )

    def _convert(self, weight: Weight, pickle: Path) -> None:
        self.tell(Step(weight, "converting", 0, weight.size_bytes))
        hidden = self._hidden(weight)
        hidden.parent.mkdir(parents=True, exist_ok=True)
        try:
            convert(weight, pickle, hidden)
            self._place(weight, hidden, digest_of(hidden)[0])
        finally:
            hidden.unlink(missing_ok=True)

    def _link(self, weight: Weight, lying: Path) -> None:
        """Use a file of the shelf in place: gigabytes that lie there already are not written again."""
        hidden = self._hidden(weight)
        hidden.unlink(missing_ok=True)
        hidden.symlink_to(lying)
        self._place(weight, hidden, weight.sha256)

    def _copy(self, weight: Weight, lying: Path, wanted: str) -> None:
        self.tell(Step(weight, "copying", 0, weight.size_bytes))
        hidden = self._hidden(weight)
        hidden.unlink(missing_ok=True)
        descriptor = open_regular(lying.resolve())
        try:
            _, found = copy_hashed(descriptor, hidden, mode=0o644)
            if found != wanted:
                raise WeightsDamaged(f"{lying} has sha256 {found}, not {wanted}")
            self._place(weight, hidden, found)
        finally:
            os.close(descriptor)
            hidden.unlink(missing_ok=True)

    def _hidden(self, weight: Weight) -> Path:
        path = self.store.path(weight.name)
        return path.with_name(f".{path.name}.new")

    def _place(self, weight: Weight, hidden: Path, sha256: str) -> None:
        """Give a file whose hash we know its name, durably, and note its proof. Nobody else writes it: we are alone."""
        path = self.store.path(weight.name)
        fsync_file(hidden)
        hidden.replace(path)
        fsync_folder(path.parent)
        self.store.prove(weight, sha256, Identity.of(path.stat()))

    def _let_go(self, weight: Weight, part: Path) -> None:
        if self.keep_pickles:
            part.replace(self.store.original(weight))
        else:
            part.unlink()
        fsync_folder(part.parent)

    # -- the hub -------------------------------------------------------------------------------------------------------

    def _fetch(self, weight: Weight, part: Path, lock: int) -> None:
        """Have `part` made whole by a process of its own; its growth is the progress."""
        if offline():
            raise WeightsMissing(
                f"{weight.name} is missing in {self.store.folder}, and HF_HUB_OFFLINE forbids to fetch it",
                remedy="unset HF_HUB_OFFLINE, or bring it with `lipsyncd models pull --from DIR`",
            )
        if importlib.util.find_spec("huggingface_hub") is None:
            raise RendererNotInstalled(
                "huggingface_hub, which fetches weights, is not installed",
                remedy="install the extra: pip install 'lipsyncd[musetalk]'",
            )
        request: dict[str, object] = {"part": str(part), "parent": os.getpid()}
        request |= {key: getattr(weight, key) for key in ("repository", "revision", "path", "size_bytes")}
        process = subprocess.Popen(
            [sys.executable, "-m", "lipsyncd.weights.download", json.dumps(request)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"HF_HUB_DISABLE_TELEMETRY": "1", **os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            pass_fds=[lock],
        )
        try:
            while process.poll() is None:
                self._heed()
                self.tell(Step(weight, "fetching", _size(part), weight.size_bytes))
                time.sleep(_POLL_S)
            answer = process.communicate()[0]
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        _judge(weight, part, process.returncode, answer)

    def _heed(self) -> None:
        if self.stop():
            raise PullStopped

    def _counted(self, weight: Weight, doing: str) -> Callable[[int], None]:
        return lambda done: self.tell(Step(weight, doing, done, weight.size_bytes))


def _judge(weight: Weight, part: Path, status: int, answer: bytes) -> None:
    """Return when the file is as long as it should be; else say what the hub or its client said."""
    got = _size(part)
    if status == 0 and got == weight.size_bytes:
        return
    try:
        said = str(json.loads(answer)["error"])[:_LONGEST_MESSAGE]
    except (ValueError, KeyError, TypeError):
        said = f"the download {exit_text(status)}"
    if got == 0 or got >= weight.size_bytes:
        part.unlink(missing_ok=True)  # no beginning to go on from: nothing, or whole and yet not what was promised
    raise WeightsUnreachable(
        f"{weight.path} of {weight.repository} at {weight.revision[:12]} did not come whole"
        f" ({got} of {weight.size_bytes} bytes): {said}"
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
