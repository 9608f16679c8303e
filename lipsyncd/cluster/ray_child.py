"""The executor of one slot of a Ray cluster: an actor on that machine, which owns the same render child as here.

Ray repeats nothing: an actor that is lost ends the render, and the ledger decides about the job. A cancelled render
ends with the actor's help, else with the actor itself; the kernel ends the child with it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipsyncd.cluster.connection import bounded
from lipsyncd.cluster.on_node import Fence, RenderOwner, Terms
from lipsyncd.cluster.share import WorkFolder
from lipsyncd.errors import DeviceMissing, LostTwice, RenderTimeout, SlotLost, from_reason
from lipsyncd.worker.child_process import RenderCancelled, Timeouts
from lipsyncd.worker.protocol import CANCELLED, Batch, Failure, Next, Progress, Render, Result, from_line, to_line

log = logging.getLogger(__name__)

_TICK_S = 0.1
_ASK_S = 1.0  # between two questions for progress
_FIRST_ASK_S = 0.2
_CANCEL_S = 0.95  # a cancelled render ends within a second, with or without the machine's help
_LATE_S = 30.0  # the machine watches deadline and silence itself; this much later it counts as lost
_KILL_S = 5.0
_ACTOR_S = 30.0  # longest wait for an actor on a machine that is there


@dataclass(frozen=True)
class Slot:
    """A place for one render: part `number` of the GPUs of one machine."""

    name: str
    node: str
    host: str
    number: int


class Losses:
    """On which machines each job was lost, while this daemon runs: a job that ends machines must not go on."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._nodes: dict[str, set[str]] = {}

    def record(self, job_id: str, node: str) -> int:
        """How many machines have been lost with that job, this one included."""
        with self._guard:
            nodes = self._nodes.setdefault(job_id, set())
            nodes.add(node)
            return len(nodes)

    def forget(self, job_id: str) -> None:
        with self._guard:
            self._nodes.pop(job_id, None)


class RayChild:
    """One slot. `render` is called by one thread; idle actors are released by another.

    ray       the connected module
    timeouts  as for a child of this machine
    starts    how many actors were started until now
    build     of `Probed`, of its machine
    """

    def __init__(
        self,
        ray: Any,
        slot: Slot,
        terms: Terms,
        timeouts: Callable[[], Timeouts],
        work: WorkFolder,
        losses: Losses,
        *,
        gpus: float,
        resource: str = "",
        build: str = "",
    ) -> None:
        self.slot = slot
        self.build = build
        self.device = slot.name
        self.timeouts = timeouts
        self.starts = 0
        self.pid: int | None = None  # of the child on its machine
        self.job_id = ""  # that is being rendered
        self.gone = threading.Event()  # its machine has left the cluster
        self._ray = ray
        self._terms = terms
        self._work = work
        self._losses = losses
        self._gpus = gpus
        self._resource = resource
        self._actor: Any = None
        self._guard = threading.RLock()  # held while an actor starts, renders or ends
        self._last_used_s = time.monotonic()
        self._watched_s: float | None = None

    def idle_s(self) -> float:
        """How long the child has had no job; 0 while there is none."""
        return 0.0 if self.pid is None else time.monotonic() - self._last_used_s

    @property
    def busy(self) -> bool:
        """Does it render, or wait for its machine?"""
        return bool(self.job_id)

    def unwatched_s(self) -> float:
        watched_s = self._watched_s
        return 0.0 if watched_s is None else time.monotonic() - watched_s

    @property
    def has_actor(self) -> bool:
        return self._actor is not None

    # -- start and end -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Have the actor and its child started. Raises `DeviceMissing`, `SlotLost`, and what a child raises."""
        with self._guard:
            actor, timeouts = self._have_actor(lambda: False), self.timeouts()
            try:
                self.pid = self._ray.get(actor.start.remote(timeouts), timeout=timeouts.start_s + _LATE_S)
            except self._ray.exceptions.RayTaskError as error:
                raise self._as_ours(error) from None
            except (self._ray.exceptions.RayError, TimeoutError) as error:
                raise self._lost("", error) from error
            self._last_used_s = time.monotonic()

    def close(self) -> None:
        """End the child. The actor stays, for the next job, until `release`."""
        with self._guard:
            if self._actor is None:
                return
            self.pid, self._last_used_s = None, time.monotonic()
            try:
                self._ray.get(self._actor.unload.remote(), timeout=_ACTOR_S)
            except (self._ray.exceptions.RayError, TimeoutError):
                self._end_actor()

    def release(self) -> None:
        """End the actor, which gives the GPU back to Ray; nothing happens while it renders."""
        if self._guard.acquire(blocking=False):
            try:
                self._end_actor()
            finally:
                self._guard.release()

    def release_if_idle(self, limit_s: float) -> None:
        """End the actor when its child has ended and no job came for this long."""
        if self._actor is not None and self.pid is None and time.monotonic() - self._last_used_s > limit_s:
            log.info("slot %s: no job for %g s, its GPU goes back to Ray", self.device, limit_s)
            self.release()

    def _end_actor(self) -> None:
        actor, self._actor, self.pid = self._actor, None, None
        if actor is not None:
            try:
                bounded(lambda: self._ray.kill(actor, no_restart=True), "ending an actor", _KILL_S)
            except (self._ray.exceptions.RayError, ValueError, ConnectionError) as error:
                log.debug("slot %s: its actor had ended: %s", self.device, error)

    def _have_actor(self, stop: Callable[[], bool]) -> Any:
        """The actor, once it answers.

        Raises `DeviceMissing` when Ray gives its GPU to no actor or to another one, and `SlotLost`.
        """
        if self._actor is not None:
            return self._actor
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(self.slot.node, soft=False)
        kind = self._ray.remote(concurrency_groups={"ctl": 2})(RenderOwner)
        options = kind.options(
            num_gpus=self._gpus,
            num_cpus=0,
            resources={self._resource: 0.001} if self._resource else None,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=strategy,
        )
        try:
            self._actor = bounded(lambda: options.remote(self._terms), "the start of an actor")
        except ConnectionError as error:
            raise SlotLost(f"slot {self.device} was lost: {error}") from error
        self.starts += 1
        first = self._actor.news.options(concurrency_group="ctl").remote()
        deadline = time.monotonic() + _ACTOR_S
        while True:
            self._watched_s = time.monotonic()
            done, _ = self._ray.wait([first], timeout=_TICK_S)
            if done:
                break
            if stop():
                self._end_actor()
                raise RenderCancelled(self.device)
            if self.gone.is_set():
                self._end_actor()
                raise SlotLost(f"slot {self.device} was lost: its machine has left the cluster")
            if time.monotonic() > deadline:
                self._end_actor()
                raise DeviceMissing(f"Ray gave slot {self.device} no GPU within {_ACTOR_S:g} s: others may use it")
        try:
            self._ray.get(first)
        except self._ray.exceptions.RayActorError as error:
            self._end_actor()
            raise DeviceMissing(f"slot {self.device} cannot be used: {_first_line(error)}") from error
        return self._actor

    # -- one job -------------------------------------------------------------------------------------------------------

    def render(
        self,
        request: Render,
        *,
        progress: Callable[[Progress], None],
        stop: Callable[[], bool],
        batch: Callable[[Batch], None] = lambda _: None,
        upcoming: Callable[[], Next | None] = lambda: None,
    ) -> Result:
        """As `LocalChild.render`: inputs and video lie in the request's folder, and travel by the shared folder.

        upcoming  not called: the inputs of the next job come to the other machine only with its request

        Raises `SlotLost`, and `LostTwice` when two machines were lost with this job; `ShareUnavailable`.
        """
        target = Path(request.folder, request.out_file)
        fence = Fence.of(request)
        with self._guard:
            folder = None
            try:
                self.job_id = request.job_id
                folder = self._work.send(request, fence.folder)
                answer = self._run(self._have_actor(stop), fence, request, progress, batch, stop)
                self._watched_s = None  # copying may take long
                if isinstance(answer, Result):
                    self._work.fetch(folder, target)
                    self._losses.forget(request.job_id)
                    return answer
            except (SlotLost, LostTwice):
                folder = None  # a lost machine may still write there: it is swept later
                raise
            finally:
                self.job_id, self._last_used_s, self._watched_s = "", time.monotonic(), None
                if folder is not None:
                    self._work.remove(folder)
        if answer.code == CANCELLED:
            raise RenderCancelled(request.job_id)
        raise from_reason({"code": answer.code, "message": answer.message, "remedy": answer.remedy})

    def _run(
        self,
        actor: Any,
        fence: Fence,
        request: Render,
        progress: Callable[[Progress], None],
        batch: Callable[[Batch], None],
        stop: Callable[[], bool],
    ) -> Result | Failure:
        ray, timeouts, started_s = self._ray, self.timeouts(), time.monotonic()
        under_way = actor.render.remote(fence, to_line(request), timeouts)
        asked: Any = None
        asked_s, heard_s = started_s + _FIRST_ASK_S - _ASK_S, started_s
        stopped_s: float | None = None
        try:
            while True:
                done, _ = ray.wait([under_way], timeout=_TICK_S)
                now_s = self._watched_s = time.monotonic()
                if asked is None and (done or now_s - asked_s > _ASK_S):
                    asked, asked_s = actor.news.options(concurrency_group="ctl").remote(), now_s
                if asked is not None and (done or ray.wait([asked], timeout=0)[0]):
                    pid, lines = ray.get(asked, timeout=_ACTOR_S)
                    self.pid, asked, heard_s = pid or None, None, now_s
                    _pass_on(lines, request.job_id, progress, batch)
                if done:
                    return answer_for(ray.get(under_way), fence)
                if stopped_s is None and stop():
                    stopped_s = now_s
                    actor.cancel.options(concurrency_group="ctl").remote(fence)
                if stopped_s is not None and now_s - stopped_s > _CANCEL_S:
                    self._end_actor()
                    raise RenderCancelled(request.job_id)
                if now_s - started_s > timeouts.start_s + timeouts.deadline_s + _LATE_S:
                    self._end_actor()
                    raise RenderTimeout(f"job {request.job_id} was not rendered within {timeouts.deadline_s:g} s")
                if self.gone.is_set():
                    raise TimeoutError("its machine has left the cluster")
                if now_s - heard_s > max(timeouts.silence_s, _LATE_S):
                    raise TimeoutError(f"the machine has not answered for {now_s - heard_s:.0f} s")
        except ray.exceptions.RayTaskError as error:
            raise self._as_ours(error) from None
        except (ray.exceptions.RayError, TimeoutError) as error:
            if stopped_s is not None:
                self._end_actor()
                raise RenderCancelled(request.job_id) from error
            raise self._lost(request.job_id, error) from error
        except Exception as error:
            if self.gone.is_set():  # the connection was closed, which has no error of its own
                raise self._lost(request.job_id, error) from error
            raise

    def _lost(self, job_id: str, error: Exception) -> SlotLost | LostTwice:
        self._end_actor()
        if job_id and self._losses.record(job_id, self.slot.node) > 1:
            return LostTwice(f"job {job_id} was lost with two machines, last with {self.device}")
        return SlotLost(f"slot {self.device} was lost: {_first_line(error)}")

    def _as_ours(self, error: Any) -> Exception:
        cause = getattr(error, "cause", None)
        return cause if isinstance(cause, Exception) else SlotLost(_first_line(error))


def answer_for(reply: tuple[Fence, bytes], fence: Fence) -> Result | Failure:
    """The answer, if it is for this fence. Raises `SlotLost` for any other."""
    answered, line = reply
    message = from_line(line)
    if answered != fence or not isinstance(message, Result | Failure) or message.job_id != fence.job:
        raise SlotLost(f"a machine answered for {answered} where {fence} was asked for")
    return message


def _pass_on(
    lines: list[bytes], job_id: str, progress: Callable[[Progress], None], batch: Callable[[Batch], None]
) -> None:
    for line in lines:
        message = from_line(line)
        if isinstance(message, Progress) and message.job_id == job_id:
            progress(message)
        elif isinstance(message, Batch) and message.job_id == job_id:
            batch(message)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
