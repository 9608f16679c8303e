"""What Ray runs on each machine of the cluster: the probe, and the owner of a render child.

Nothing here imports `ray`, torch or the ledger. The machine's own settings say where its shared folder, its weights
and its ffmpeg are; what they leave open is as on the daemon's machine.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import takewhile
from pathlib import Path

from lipsyncd import __version__
from lipsyncd.cluster.share import PART, VIDEO
from lipsyncd.errors import LipsyncdError, ShareUnavailable
from lipsyncd.media.ffmpeg import find as find_ffmpeg
from lipsyncd.monitor import gpu
from lipsyncd.sandbox import subreaper
from lipsyncd.settings import Settings, load
from lipsyncd.settings.rules import UNSET
from lipsyncd.storage.files import fsync_file, fsync_folder
from lipsyncd.weights import RENDERER, Store, store_of
from lipsyncd.worker.child_process import LocalChild, RenderCancelled, Timeouts
from lipsyncd.worker.gpu_lock import WAITING, gpu_lock
from lipsyncd.worker.local_child import places_of
from lipsyncd.worker.protocol import CANCELLED, Batch, Failure, Progress, Render, Result, from_line, to_line

_MOST_GPUS = 64  # of one machine
_LIBRARIES = ("numpy", "opencv-python-headless", "torch", "diffusers", "transformers")


@dataclass(frozen=True)
class Fence:
    """Which part of which attempt at which job: what a machine answers counts for this one only.

    unit  number of the part, from 1; 0 for a whole video
    """

    job: str
    attempt: str
    unit: int = 0

    @classmethod
    def of(cls, request: Render) -> Fence:
        """The fence of a request, whose file is named `.out.ATTEMPT.mp4` or `.out.ATTEMPT.UNIT.mp4`."""
        _, attempt, *unit = request.out_file.strip(".").removesuffix(".mp4").split(".")
        return cls(request.job_id, attempt, int(unit[0]) if unit else 0)

    @property
    def folder(self) -> str:
        """The name of its folder in that of its job, which no other fence has."""
        return f"{self.attempt}.{self.unit}" if self.unit else self.attempt


@dataclass(frozen=True)
class Terms:
    """What the daemon decides for all machines, and its own folders for machines that name none.

    alone  a render has its GPU for itself; else the settings let several share one
    """

    share: str
    weights: str
    renderers: Sequence[str]
    environment: Sequence[str]
    variables: Mapping[str, str]
    alone: bool = True


@dataclass(frozen=True)
class Probed:
    """What one machine answers to the probe; `fault` is why it cannot work with this daemon.

    build  equal on machines where equal requests give equal frames in equal packets
    mixed  its GPUs are of several models
    """

    fault: str = ""
    uid: int = -1
    lipsyncd: str = ""
    python: str = ""
    weights: str = ""
    free_mb: int = 0
    clock_s: float = 0.0
    build: str = ""
    mixed: bool = False


def probe(terms: Terms, nonce: str) -> Probed:
    """Read the nonce that the daemon wrote into the shared folder, and write an answer beside it."""
    try:
        settings = load()
        folder = share_of(settings, terms) / "work" / "probe" / nonce
        found = (folder / "question").read_text()
        (folder / "answer").write_text(f"{found}:answered")
        space = os.statvfs(folder)
        weights, gpus = weights_of(settings, terms).fingerprint, gpu_models()
        return Probed(
            uid=os.geteuid(),
            lipsyncd=__version__,
            python=platform.python_version(),
            weights=weights,
            build=build_of(find_ffmpeg(settings.render.ffmpeg), weights, gpus),
            mixed=len(gpus) > 1,
            free_mb=space.f_bavail * space.f_frsize >> 20,
            clock_s=time.time(),
        )
    except (LipsyncdError, OSError, UnicodeError) as error:
        return Probed(fault=str(error))


def gpu_models() -> list[str]:
    """The models of this machine's GPUs, each once."""
    found = (gpu.find(f"cuda:{number}") for number in range(_MOST_GPUS))
    return sorted({one.name for one in takewhile(bool, found) if one is not None})


def build_of(ffmpeg: Path, weights: str, gpus: Sequence[str]) -> str:
    """16 hex digits of what frames and their packets depend on besides the request: programs, weights, processor."""
    programs = [__version__, platform.python_version(), platform.machine(), _processor()]
    for name in _LIBRARIES:
        try:
            programs.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    encoder = subprocess.run(
        [ffmpeg, "-version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False
    )
    facts = [*programs, encoder.stdout.decode(errors="replace"), weights, *gpus]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _processor() -> str:
    """The model of the processor: libraries choose their code by it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith("model name")), "")


def share_of(settings: Settings, terms: Terms) -> Path:
    """The shared folder on this machine."""
    return Path(terms.share) if settings.roots.share == UNSET else settings.roots.share


def weights_of(settings: Settings, terms: Terms) -> Store:
    """The weights on this machine."""
    if settings.origins.get("weights.dir", "default") == "default":
        settings = replace(settings, weights=replace(settings.weights, dir=Path(terms.weights)))
    return store_of(settings)


class RenderOwner:
    """The actor of one slot. `render` runs in one thread; the other methods answer meanwhile, in threads of their own.

    It holds no memory of the GPU: only its child does.
    """

    def __init__(self, terms: Terms) -> None:
        subreaper.become()
        settings = load()
        self._work = share_of(settings, terms) / "work"
        self._store = weights_of(settings, terms)
        self._ffmpeg = str(find_ffmpeg(settings.render.ffmpeg))
        self._timeouts = Timeouts(0.0, 0.0, 0.0)
        self._child = LocalChild(
            "auto",  # Ray shows this process its own GPU only
            lambda: self._timeouts,
            renderers=terms.renderers,
            environment=terms.environment,
            variables={**terms.variables, **places_of(self._store.folder, settings)},
        )
        self._alone = terms.alone
        self._busy = threading.Lock()
        self._guard = threading.Lock()
        self._cancelled: set[Fence] = set()
        self._news: list[bytes] = []

    def start(self, timeouts: Timeouts) -> int:
        """Start the child; returns its process id."""
        with self._busy:
            self._timeouts = timeouts
            self._child.start()
            return self._child.pid or 0

    def render(self, fence: Fence, line: bytes, timeouts: Timeouts) -> tuple[Fence, bytes]:
        """Render a request into this attempt's folder; the answer is a `Result` or a `Failure`, as of a child."""
        with self._busy:
            self._timeouts = timeouts
            try:
                answer: Result | Failure = self._render(fence, line)
            except RenderCancelled:
                answer = Failure(fence.job, CANCELLED, "", "")
            except LipsyncdError as error:
                answer = Failure(fence.job, error.code, error.message, error.remedy)
            except OSError as error:
                answer = Failure(fence.job, ShareUnavailable.code, str(error), ShareUnavailable.default_remedy)
            finally:
                self._cancelled.discard(fence)
            return fence, to_line(answer)

    def _render(self, fence: Fence, line: bytes) -> Result:
        request = from_line(line)
        assert isinstance(request, Render)
        with self._guard:
            self._news = []
        folder = self._work / fence.job / fence.folder
        if not folder.is_dir():
            raise ShareUnavailable(f"{folder} does not exist on {platform.node()}")
        if request.renderer == RENDERER:
            self._store.require(request.options)
        stop = lambda: fence in self._cancelled  # noqa: E731
        request = replace(request, folder=str(folder), out_file=PART, encode={**request.encode, "ffmpeg": self._ffmpeg})
        lock = gpu_lock("auto", request.renderer, stop=stop, waits_for=lambda _: self._waits(fence))
        with lock if self._alone else nullcontext():
            result = self._child.render(request, progress=self._tell, stop=stop, batch=self._tell)
        fsync_file(folder / PART)
        (folder / PART).rename(folder / VIDEO)
        fsync_folder(folder)
        return result

    def _waits(self, fence: Fence) -> None:
        self._tell(Progress(fence.job, WAITING, 0, 1))

    def _tell(self, message: Progress | Batch) -> None:
        with self._guard:
            self._news.append(to_line(message))

    # -- while a render runs -------------------------------------------------------------------------------------------

    def news(self) -> tuple[int, list[bytes]]:
        """The child's process id, 0 without one, and its messages since the last call."""
        with self._guard:
            news, self._news = self._news, []
        return self._child.pid or 0, news

    def cancel(self, fence: Fence) -> None:
        """End the render of that fence, if it is the one that runs or begins later."""
        self._cancelled.add(fence)

    def unload(self) -> None:
        """End the child, which frees all memory of the GPU; not while it renders."""
        with self._busy:
            self._child.close()
