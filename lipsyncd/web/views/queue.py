"""The order in which waiting jobs will run, and when each is expected to end.

The expected end is computed from how long the last jobs of the same renderer and size took on this machine. It is
absent rather than wrong: without three such jobs that took about the same time for a frame, for every job ahead, there
is none.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from lipsyncd.jobs.job import Job, JobState

_FEWEST, _MOST_SAMPLES = 3, 20
_MOST_SPREAD = 2.0  # between the slow ones and the quick ones


class SlotCount(NamedTuple):
    """How many jobs can be rendered at a time, on this machine or on a cluster, and how many are."""

    every: int
    busy: int = 0


class Size(NamedTuple):
    """What decides how long a frame takes. The size of a whole picture (`stitch`) is not recorded: 0."""

    renderer: str
    stitch: bool
    resolution: int

    @classmethod
    def of(cls, job: Job) -> Size:
        return cls(job.renderer, job.stitch, 0 if job.stitch else job.resolution)


class Rendered(NamedTuple):
    """How long a finished job took from its start to its end."""

    renderer: str
    stitch: bool
    resolution: int
    frames: int
    took_ms: int


def frame_times_s(rendered: Iterable[Rendered]) -> dict[Size, float]:
    """Seconds for each frame by size, out of the newest jobs; without sizes of which too little is known."""
    samples: dict[Size, list[float]] = defaultdict(list)
    for one in rendered:
        mine = samples[Size(one.renderer, bool(one.stitch), 0 if one.stitch else one.resolution)]
        if len(mine) < _MOST_SAMPLES:
            mine.append(one.took_ms / 1000 / one.frames)
    found = {}
    for size, times in samples.items():
        times.sort()
        quick, slow = times[len(times) // 5], times[-1 - len(times) // 5]
        if len(times) >= _FEWEST and slow <= quick * _MOST_SPREAD:
            found[size] = times[len(times) // 2]
    return found


class Queue:
    """Places and expected ends of the jobs that have not ended.

    jobs           all of them
    frame_times_s  seconds for each frame, by size
    devices        how many jobs run at a time
    paused         nothing is rendered at present
    """

    def __init__(
        self, jobs: Iterable[Job], frame_times_s: Mapping[Size, float], *, devices: int, paused: bool = False
    ) -> None:
        live = [job for job in jobs if not job.state.ended]
        waiting = sorted((job for job in live if is_in_line(job)), key=lambda job: (-job.priority, job.seq))
        running = [job for job in live if job.state is JobState.RUNNING]
        self._positions = {job.id: place for place, job in enumerate(waiting, start=1)}
        self._ends_s = {} if paused else _expected_ends_s(running, waiting, frame_times_s, devices)

    def position(self, job: Job) -> int | None:
        """Its place among the jobs that wait for their turn, from 1; None for all others."""
        return self._positions.get(job.id) if is_in_line(job) else None

    def eta_s(self, job: Job) -> int | None:
        """Seconds until its expected end; None when nothing reliable is known."""
        return self._ends_s.get(job.id) if is_in_line(job) or job.state is JobState.RUNNING else None


def is_in_line(job: Job) -> bool:
    """Does it wait for its turn and nothing else?"""
    waits_otherwise = job.reason_code is not None or job.duplicate_of is not None or job.cancel_requested
    return job.state is JobState.QUEUED and not waits_otherwise


def _expected_ends_s(
    running: Sequence[Job], waiting: Sequence[Job], frame_times_s: Mapping[Size, float], devices: int
) -> dict[str, int]:
    """Each device takes the next job as soon as it is free."""
    ends: dict[str, int] = {}
    free_at_s: list[float] = []
    for job in running:
        whole_s = _takes_s(job, frame_times_s)
        if whole_s is not None:
            free_at_s.append(whole_s * (1 - job.fraction))
            ends[job.id] = math.ceil(free_at_s[-1])
    if len(free_at_s) < len(running):
        return ends  # when that device is free is not known
    free_at_s += [0.0] * (devices - len(running))
    heapq.heapify(free_at_s)
    for job in waiting:
        whole_s = _takes_s(job, frame_times_s)
        if whole_s is None or not free_at_s:
            break
        end_s = heapq.heappop(free_at_s) + whole_s
        heapq.heappush(free_at_s, end_s)
        ends[job.id] = math.ceil(end_s)
    return ends


def _takes_s(job: Job, frame_times_s: Mapping[Size, float]) -> float | None:
    for_each = frame_times_s.get(Size.of(job))
    return None if for_each is None or job.frames is None else for_each * job.frames


NO_QUEUE = Queue((), {}, devices=1)
