"""What the routes under `/jobs` tell of a job, as JSON."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Iterable
from typing import Any

from lipsyncd.jobs import did_talk
from lipsyncd.jobs.job import Job, JobState, utc_text
from lipsyncd.results.thumbnails import Thumbnails
from lipsyncd.web.jobs import Jobs
from lipsyncd.web.links import Links
from lipsyncd.web.views.queue import NO_QUEUE, Queue, Size, frame_times_s, is_in_line

_MEASURED_FOR_S = 10.0  # how long recorded times are used before they are read again
_QUEUE_FOR_S = 0.5  # and the queue; longer where it is so long that reading it takes a while
_COST = 20  # no more than a twentieth of the time goes into reading it
_NONE_ENDED = (1 << 62) - 1  # more than the number of any event
_CHANGE_BYTES = 6  # a number that JavaScript can hold


class JobBodies:
    """Makes the answers of one server about jobs."""

    def __init__(self, jobs: Jobs, links: Links) -> None:
        self._view = jobs.view
        self.slots = jobs.slots
        self._links = links
        self._thumbnails = Thumbnails(jobs.folders.state)
        self._lock = threading.Lock()
        self._frame_times_s: tuple[float, dict[Size, float]] = (-math.inf, {})
        self._line: tuple[float, Queue] = (-math.inf, NO_QUEUE)

    def queue(self, jobs: Iterable[Job]) -> Queue:
        """Places and expected ends of these jobs, which are all that have not ended. Blocks."""
        now_s = time.monotonic()
        if now_s >= self._frame_times_s[0]:
            self._frame_times_s = now_s + _MEASURED_FOR_S, frame_times_s(self._view.rendered())
        return Queue(jobs, self._frame_times_s[1], devices=self.slots().every, paused=bool(self._view.paused))

    def current_queue(self, jobs: Iterable[Job]) -> Queue:
        """The queue as it was a moment ago, so that many clients that ask cost one query; with these jobs. Blocks."""
        with self._lock:
            began_s = time.monotonic()
            is_new = any(job.seq and is_in_line(job) and self._line[1].position(job) is None for job in jobs)
            if is_new or began_s >= self._line[0]:
                queue = self.queue(self._view.changed_since(_NONE_ENDED)[0])
                took_s = time.monotonic() - began_s
                self._line = began_s + max(_QUEUE_FOR_S, took_s * _COST), queue
            return self._line[1]

    def of(self, job: Job, queue: Queue | None = None) -> dict[str, Any]:
        """All that is known of a job. `change` is another number after each change of anything but `eta_s`."""
        line = queue or NO_QUEUE
        facts = {**self._facts(job), "position": line.position(job)}
        change = hashlib.blake2b(json.dumps(facts).encode(), digest_size=_CHANGE_BYTES).digest()
        return {**facts, "eta_s": line.eta_s(job), "change": int.from_bytes(change)}

    def _facts(self, job: Job) -> dict[str, Any]:
        created_ms = did_talk.rest_of(job).get("created_ms", job.accepted_ms)
        failed = job.state is JobState.FAILED
        error = {"code": job.reason_code or "internal-error", "message": job.reason or "", "remedy": job.remedy or ""}
        return {
            "id": job.id,
            "name": job.name,
            "queue": job.queue,
            "state": job.state.value,
            "stage": job.stage,
            "fraction": round(job.fraction, 3),
            "waits_for": self._view.waits_for(job),
            "cancel_requested": job.cancel_requested,
            "error": error if failed else None,
            "priority": job.priority,
            "attempt": job.attempt,
            "max_attempts": job.max_attempts,
            "renderer": job.renderer,
            "stitch": job.stitch,
            "resolution": job.resolution,
            "fps": job.fps,
            "frames": job.frames,
            "duration": None if job.duration_ms is None else job.duration_ms / 1000,
            "created_at": utc_text(created_ms),
            "started_at": utc_text(job.started_ms),
            "finished_at": utc_text(job.finished_ms),
            "result_url": self._links.video(job.id) if job.state is JobState.DONE else None,
            "thumbnail_url": f"/jobs/{job.id}/thumbnail" if self._thumbnails.has(job.id) else None,
        }
