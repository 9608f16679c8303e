"""Pull missing weights in the background of a daemon, while other jobs go on.

A worker calls `require` before each render. While weights are missing it raises `WeightsMissing`, which blocks that job
and costs no attempt. If pulling is allowed, it also starts a thread that fetches them; the message gives its progress.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from lipsyncd.errors import Blocked, WeightsMissing, from_reason
from lipsyncd.weights.lock_list import Weight
from lipsyncd.weights.pull import PullStopped, Step, offline, pull
from lipsyncd.weights.store import Store

log = logging.getLogger(__name__)

_FIRST_WAIT_S = 60.0  # after a pull that failed; doubled each time
_LONGEST_WAIT_S = 3600.0


class AutoPull:
    """Pulls missing weights in a thread of its own, one pull at a time. Any thread may call it.

    allowed      `weights.auto_pull`
    min_free_mb  space that has to stay free on the disk
    clock        seconds, never going back
    """

    def __init__(
        self, store: Store, *, allowed: bool, min_free_mb: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.store = store
        self._allowed = allowed
        self._min_free_mb = min_free_mb
        self._clock = clock
        self._guard = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._step: Step | None = None
        self._failure: Blocked | None = None
        self._failures = 0
        self._not_before_s = 0.0

    def require(self, options: Mapping[str, object] | None = None) -> None:
        """Return if a render with these options may open its weights; otherwise start a pull, if that is allowed.

        Raises `WeightsMissing` while the pull runs or if none is allowed, and afterwards the error that ended it.
        """
        missing = self.store.missing(options)
        if not missing:
            self.store.require(options)
            return
        obtainable = self._obtainable(missing)
        if not obtainable:
            raise self._cannot_pull(missing)
        self._start(obtainable)
        names = ", ".join(weight.name for weight in missing)
        if self._failure is not None and not self.busy:
            raise from_reason(self._failure.reason())
        raise WeightsMissing(
            f"weights are being pulled: {self.progress() or names}", remedy="the job goes on by itself"
        )

    def fault(self) -> str:
        """Why renders will not get their weights; "" if they are there, or if the first job pulls them."""
        missing = self.store.missing()
        return "" if not missing or self._obtainable(missing) else str(self._cannot_pull(missing))

    def _obtainable(self, missing: list[Weight]) -> list[Weight]:
        """Those that a pull can make ready: all from the hub, or only local files to be converted or linked."""
        may_download = self._allowed and not offline()
        return missing if may_download else [weight for weight in missing if self.store.find_original(weight)]

    def _cannot_pull(self, missing: list[Weight]) -> WeightsMissing:
        why = "HF_HUB_OFFLINE forbids fetching them" if self._allowed else "weights.auto_pull is off"
        names = ", ".join(weight.name for weight in missing)
        return WeightsMissing(f"weights are missing in {self.store.folder}, and {why}: {names}")

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def progress(self) -> str:
        """The step under way, such as "unet fetching, 37 % of 3.4 GB"; "" when no pull runs."""
        step = self._step
        if step is None or not self.busy:
            return ""
        if not step.total_bytes:
            return f"{step.weight.name} {step.doing}"
        percent = 100 * step.done_bytes // step.total_bytes
        return f"{step.weight.name} {step.doing}, {percent} % of {size_text(step.total_bytes)}"

    def stop(self, timeout_s: float = 5.0) -> None:
        """End a running pull; the bytes that it fetched are kept."""
        self._stop.set()
        thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _start(self, missing: list[Weight]) -> None:
        with self._guard:
            if self.busy or self._stop.is_set() or self._clock() < self._not_before_s:
                return
            self._step = self._failure = None
            self._thread = threading.Thread(target=self._run, args=(missing,), name="weights", daemon=True)
            self._thread.start()

    def _run(self, missing: list[Weight]) -> None:
        log.info("pulling weights into %s: %s", self.store.folder, ", ".join(weight.name for weight in missing))
        started_s = self._clock()
        try:
            pull(self.store, missing, report=self._report, stop=self._stop.is_set, min_free_mb=self._min_free_mb)
        except PullStopped:
            log.info("pulling weights was stopped; the fetched bytes are kept")
        except Exception as error:
            self._failed(error)
        else:
            self._failures = 0
            log.info("weights are complete after %.0f s", self._clock() - started_s)

    def _failed(self, error: Exception) -> None:
        wait_s = min(_FIRST_WAIT_S * 2**self._failures, _LONGEST_WAIT_S)
        self._failures += 1
        self._not_before_s = self._clock() + wait_s
        if isinstance(error, Blocked):
            self._failure = error
            log.warning("pulling weights failed, next attempt in %.0f s: %s", wait_s, error)
        else:
            self._failure = WeightsMissing(f"weights cannot be pulled: {type(error).__name__}: {error}")
            log.exception("pulling weights failed unexpectedly, next attempt in %.0f s", wait_s)

    def _report(self, step: Step) -> None:
        self._step = step


def size_text(size_bytes: int) -> str:
    """A size for people: 232.6 kB, 134.4 MB, 3.4 GB."""
    value = float(size_bytes)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
