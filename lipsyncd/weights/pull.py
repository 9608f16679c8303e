"""Fill the folder of weights, from another folder or from the hub.

A download is written under a hidden name that contains the expected hash, so that an interrupted one is resumed. Once
it is complete we hash it: a right file gets its name and its proof, a wrong one is removed. A downloaded pickle is
converted to safetensors in the jail and then removed. One pull at a time works on a folder; a second one waits, and
then finds the files ready.

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
from lipsyncd.extras import how_to_install
from lipsyncd.jobs.job import Identity
from lipsyncd.processes import exit_text, give_back_file_limit
from lipsyncd.storage.disk_space import says_full, shortage
from lipsyncd.storage.files import copy_hashed, fsync_file, fsync_folder, open_regular
from lipsyncd.weights.convert import convert
from lipsyncd.weights.lock_list import Weight
from lipsyncd.weights.store import Store, hash_file

# Proxies and authorities, in either case; what Python itself needs; and the variables of huggingface_hub.
_INHERITED = frozenset((
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    "PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "XDG_CACHE_HOME",
))  # fmt: skip
_HUB_PREFIXES = ("HF_", "PYTHON", "LC_")
_TRUE = ("1", "ON", "YES", "TRUE")
_POLL_S = 0.1
_LONGEST_MESSAGE = 300  # characters


class PullStopped(Exception):
    """The caller stopped the pull. The bytes fetched so far are kept for the next one."""


@dataclass(frozen=True)
class Step:
    """The progress of one weight. `doing`: waiting, checking, fetching, copying, converting, ready."""

    weight: Weight
    doing: str
    done_bytes: int = 0
    total_bytes: int = 0


def offline(environ: Mapping[str, str] = os.environ) -> bool:
    """Is access to the hub switched off, by the variables that huggingface_hub reads?"""
    return (environ.get("HF_HUB_OFFLINE") or environ.get("TRANSFORMERS_OFFLINE") or "").upper() in _TRUE


def pull(
    store: Store,
    weights: Sequence[Weight],
    *,
    source: Path | None = None,
    report: Callable[[Step], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    keep_pickles: bool = False,
    min_free_mb: float = 0.0,
) -> None:
    """Put these weights into the folder, ready to be opened. Those that are there already are only checked.

    source        a folder of the same layout, such as an original `models/`, to copy from first; it is only read
    report        gets each step
    stop          called several times a second during a download; true ends the pull
    keep_pickles  keep a downloaded pickle beside the safetensors made of it
    min_free_mb   space that has to stay free on the disk

    Raises `WeightsMissing` (offline, or a folder that cannot be written), `WeightsDamaged`, `WeightsUnreachable`,
    `DiskLow`, `RendererNotInstalled`, `PullStopped`.
    """
    pull = _Pull(store, weights, source, report, stop, keep_pickles)
    try:
        todo = [weight for weight in weights if not pull.is_ready(weight) or pull.stale_parts(weight)]
        if not todo:
            return
        store.folder.mkdir(parents=True, exist_ok=True)
        with _folder_lock(store.folder, lambda: pull.wait(todo[0])) as lock:
            for weight in todo:
                pull.remove_stale_parts(weight)
            todo = [weight for weight in todo if not pull.is_ready(weight)]
            pull.require_space(todo, min_free_mb)
            for weight in todo:
                pull.make_ready(weight, lock)
    except OSError as error:
        raise _write_error(store.folder, error) from error


def _write_error(folder: Path, error: OSError) -> WeightsMissing | DiskLow:
    if says_full(error):
        return DiskLow(f"weights do not fit into {folder}: {error.strerror}")
    return WeightsMissing(
        f"weights are missing, and {folder} cannot be filled: {error}",
        remedy="make it writable for this user, or name another folder with weights.dir (MODELS_DIR)",
    )


@contextlib.contextmanager
def _folder_lock(folder: Path, wait: Callable[[], None]) -> Iterator[int]:
    """Hold the folder's lock; yields its descriptor, and calls `wait` while another pull holds it.

    The downloading process inherits the descriptor: if it outlives a killed pull, it still keeps other pulls out.
    """
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
    """One pull: its arguments, and the steps that it consists of."""

    store: Store
    weights: Sequence[Weight]
    source: Path | None
    report: Callable[[Step], None]
    stop: Callable[[], bool]
    keep_pickles: bool

    def is_ready(self, weight: Weight) -> bool:
        """Can a render open it? A damaged file is renamed and counts as missing; raises if it cannot be renamed."""
        try:
            self.store.check(weight, self._reporter(weight, "checking"))
        except WeightsDamaged:
            if self.store.path(weight.name).exists():
                raise
            return False
        except WeightsMissing:
            return False
        self.report(Step(weight, "ready"))
        return True

    def stale_parts(self, weight: Weight) -> list[Path]:
        """Partial files that no pull will resume: of another revision, or of a pull killed before its last step."""
        path, part = self.store.original_path(weight), self._part(weight)
        parts = path.parent.glob(f".{glob.escape(path.name)}.*.part")
        return [other for other in parts if other != part or not self._missing_of(weight)]

    def _missing_of(self, weight: Weight) -> list[Weight]:
        """The weights of this pull that are still to be made of the same file."""
        return [w for w in self.weights if w.source == weight.source and not self.store.path(w.name).exists()]

    def remove_stale_parts(self, weight: Weight) -> None:
        for path in self.stale_parts(weight):
            path.unlink(missing_ok=True)

    def wait(self, weight: Weight) -> None:
        """Let a moment pass while another pull holds the folder. Raises `PullStopped`."""
        self.report(Step(weight, "waiting"))
        self._raise_if_stopped()
        time.sleep(_POLL_S)

    def require_space(self, weights: Sequence[Weight], min_free_mb: float) -> None:
        """Raises `DiskLow` when these weights do not fit on the disk."""
        first = {weight.source: weight for weight in reversed(weights)}  # its file is downloaded once
        needed_mb = sum(self._bytes_to_write(weight, first[weight.source] == weight) for weight in weights) / 1e6
        if found := shortage(self.store.folder, needed_mb + min_free_mb):
            raise DiskLow(
                f"{found}: {needed_mb:.0f} MB for the weights, and {min_free_mb:.0f} MB have to stay",
                remedy="free space there, or name another folder with weights.dir (MODELS_DIR)",
            )

    def _bytes_to_write(self, weight: Weight, downloads: bool) -> int:
        halved = weight.size_bytes // 2 if weight.dtype == "float16" else weight.size_bytes
        converted = halved if weight.becomes else 0
        if (local := self._find_local(weight)) is not None:
            return converted or (0 if self.store.is_read_only(local) else weight.size_bytes)
        return converted + (weight.size_bytes - _size(self._part(weight)) if downloads else 0)

    # -- one weight ----------------------------------------------------------------------------------------------------

    def make_ready(self, weight: Weight, lock: int) -> None:
        """Copy, link, convert or download one weight. `lock` is the descriptor of the folder's lock."""
        self._raise_if_stopped()
        part, local = self._part(weight), self._find_local(weight)
        part.parent.mkdir(parents=True, exist_ok=True)
        given = self._given_converted(weight)
        if given is not None and weight.becomes_sha256:
            self._copy(weight, given, weight.becomes_sha256)
        elif local is not None and weight.becomes:
            self._require_hash(weight, local)
            self._convert(weight, local)
        elif local is not None and self.store.is_read_only(local):
            self._require_hash(weight, local)
            self._link(weight, local)
        elif local is not None:
            self._copy(weight, local, weight.sha256)
        else:
            if _size(part) != weight.size_bytes:
                self._download(weight, part, lock, unused=given)
            self._require_hash(weight, part, downloaded=True)
            if weight.becomes:
                self._convert(weight, part)
                self._finish_pickle(weight, part)
            else:
                self._install(weight, part, weight.sha256)
        self.report(Step(weight, "ready"))

    def _find_local(self, weight: Weight) -> Path | None:
        """An existing file as the hub has it: in the folder (a pickle), in the read-only folder, or in the source."""
        if (found := self.store.find_original(weight)) is not None:
            return found
        given = None if self.source is None else self.source / weight.file
        return given if given is not None and given.is_file() else None

    def _given_converted(self, weight: Weight) -> Path | None:
        """The source's safetensors that another lipsyncd has made of a pickle. Only the lock list can prove it."""
        path = self.source / weight.becomes if self.source is not None and weight.becomes else None
        return path if path is not None and path.is_file() else None

    def _part(self, weight: Weight) -> Path:
        """The partial file of a download. Another revision of the file has another hash, and so another name."""
        path = self.store.original_path(weight)
        return path.with_name(f".{path.name}.{weight.sha256[:12]}.part")

    def _require_hash(self, weight: Weight, path: Path, *, downloaded: bool = False) -> None:
        """Raises `WeightsDamaged` for a wrong hash, and removes the file if we downloaded it."""
        found, _ = hash_file(path, self._reporter(weight, "checking"))
        if found == weight.sha256:
            return
        if not downloaded:
            folder = self.store.read_only
            remedy = f"replace it, or take it out of {folder}" if self.store.is_read_only(path) else None
            raise WeightsDamaged(f"{path} has sha256 {found}, not {weight.sha256}", remedy=remedy)
        path.unlink()
        raise WeightsDamaged(
            f"{weight.path} of {weight.repository} came with sha256 {found}, not {weight.sha256}, and was removed"
        )

    def _convert(self, weight: Weight, pickle: Path) -> None:
        self.report(Step(weight, "converting", 0, weight.size_bytes))
        new = self._new_file(weight)
        new.parent.mkdir(parents=True, exist_ok=True)
        try:
            convert(weight, pickle, new)
            found = hash_file(new)[0]
            if weight.becomes_sha256 not in ("", found):
                raise WeightsDamaged(
                    f"{pickle} was converted to a file with sha256 {found}, not {weight.becomes_sha256}",
                    remedy=f"correct becomes_sha256 of {weight.name} in the lock list (weights.lock)",
                )
            self._install(weight, new, found)
        finally:
            new.unlink(missing_ok=True)

    def _link(self, weight: Weight, file: Path) -> None:
        """Link a file of the read-only folder, so that its gigabytes are not written again."""
        new = self._new_file(weight)
        new.unlink(missing_ok=True)
        new.symlink_to(file)
        self._install(weight, new, weight.sha256)

    def _copy(self, weight: Weight, file: Path, expected: str) -> None:
        self.report(Step(weight, "copying", 0, weight.size_bytes))
        new = self._new_file(weight)
        new.unlink(missing_ok=True)
        descriptor = open_regular(file.resolve())
        try:
            _, found = copy_hashed(descriptor, new, mode=0o644)
            if found != expected:
                raise WeightsDamaged(f"{file} has sha256 {found}, not {expected}")
            self._install(weight, new, found)
        finally:
            os.close(descriptor)
            new.unlink(missing_ok=True)

    def _new_file(self, weight: Weight) -> Path:
        """The hidden path at which a file is built before `_install` renames it."""
        path = self.store.path(weight.name)
        return path.with_name(f".{path.name}.new")

    def _install(self, weight: Weight, new: Path, sha256: str) -> None:
        """Rename a file of known hash to its final name, durably, and save its proof. We hold the folder's lock."""
        path = self.store.path(weight.name)
        fsync_file(new)
        new.replace(path)
        fsync_folder(path.parent)
        self.store.save_proof(weight, sha256, Identity.of(path.stat()))

    def _finish_pickle(self, weight: Weight, part: Path) -> None:
        """Remove a converted pickle, or give it its name if pickles are kept, once all is made of it."""
        if self._missing_of(weight):
            return
        if self.keep_pickles:
            part.replace(self.store.original_path(weight))
        else:
            part.unlink()
        fsync_folder(part.parent)

    # -- the hub -------------------------------------------------------------------------------------------------------

    def _download(self, weight: Weight, part: Path, lock: int, *, unused: Path | None) -> None:
        """Run a process that completes `part`, and report its growing size.

        unused  a file that was given in its place, but whose hash the lock list does not have
        """
        if offline():
            raise WeightsMissing(
                f"{weight.name} is missing in {self.store.folder}, and HF_HUB_OFFLINE forbids fetching it"
                + (f"; {unused} cannot be checked, since the lock list has no hash of it" if unused else ""),
                remedy=f"copy {weight.file} with `lipsyncd models pull --from DIR`, or unset HF_HUB_OFFLINE",
            )
        if importlib.util.find_spec("huggingface_hub") is None:
            raise RendererNotInstalled(
                "huggingface_hub, which fetches weights, is not installed",
                remedy=how_to_install("musetalk"),
            )
        request: dict[str, object] = {"part": str(part), "parent": os.getpid()}
        request |= {key: getattr(weight, key) for key in ("repository", "revision", "path", "size_bytes")}
        process = subprocess.Popen(
            [sys.executable, "-m", "lipsyncd.weights.download", json.dumps(request)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"HF_HUB_DISABLE_TELEMETRY": "1", **_environment(), "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            pass_fds=[lock],
        )
        give_back_file_limit(process.pid)
        try:
            while process.poll() is None:
                self._raise_if_stopped()
                self.report(Step(weight, "fetching", _size(part), weight.size_bytes))
                time.sleep(_POLL_S)
            answer = process.communicate()[0]
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        _require_complete(weight, part, process.returncode, answer)

    def _raise_if_stopped(self) -> None:
        if self.stop():
            raise PullStopped

    def _reporter(self, weight: Weight, doing: str) -> Callable[[int], None]:
        """A function that reports how many bytes of this step are done."""
        return lambda done_bytes: self.report(Step(weight, doing, done_bytes, weight.size_bytes))


def _environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the downloading process inherits: how to reach the hub, and none of the daemon's secrets."""
    return {
        name: value for name, value in environ.items() if name.upper() in _INHERITED or name.startswith(_HUB_PREFIXES)
    }


def _require_complete(weight: Weight, part: Path, status: int, answer: bytes) -> None:
    """Raises `WeightsUnreachable`, with the error that the hub or its client gave, unless the file has its size."""
    size = _size(part)
    if status == 0 and size == weight.size_bytes:
        return
    try:
        error = str(json.loads(answer)["error"])[:_LONGEST_MESSAGE]
    except (ValueError, KeyError, TypeError):
        error = f"the download {exit_text(status)}"
    if size == 0 or size >= weight.size_bytes:
        part.unlink(missing_ok=True)  # nothing to resume: it is empty, or complete with wrong content
    raise WeightsUnreachable(
        f"{weight.path} of {weight.repository} at {weight.revision[:12]} was not downloaded completely"
        f" ({size} of {weight.size_bytes} bytes): {error}"
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
