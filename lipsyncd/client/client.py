"""`lipsyncd.Client`: submit jobs to a daemon, follow them, and get their videos."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from lipsyncd.client.facts import Event, JobFacts, Way
from lipsyncd.errors import Unreachable, UsageError
from lipsyncd.inbox.submit import manifest_of, natural_name
from lipsyncd.jobs.job import JobState
from lipsyncd.jobs.manifest import Manifest
from lipsyncd.results.video_file import Video
from lipsyncd.standalone.target import arriving, check_target, target_of

Source: TypeAlias = str | os.PathLike[str]  # a file of this machine, or an http(s) address
_T = TypeVar("_T")

_WAIT_S = 10.0  # of one question
_PATIENCE_S = 60.0  # with a server that does not answer while a job is followed: it may restart
_AGAIN_S = 1.0


class Client:
    """A daemon, over HTTP or through its storage folder. Threads may share it.

        Client("http://box:8003", key="anna:secret")
        Client(storage="/srv/lipsyncd")

    key  of the server, as it stands in its `web.api_key_file`

    Nothing is asked of the daemon yet. Errors are the classes of `lipsyncd.errors`: `Unreachable`, `KeyRefused`,
    `Busy` with its `retry_after_s`, and those of the job itself. Raises `UsageError` for wrong arguments.
    """

    def __init__(self, url: str | None = None, *, key: str | None = None, storage: Source | None = None) -> None:
        if (url is None) == (storage is None) or (key is not None and url is None):
            raise UsageError("give the address of a server, with its key if it has one, or storage=FOLDER")
        self._way = _way(url, key, storage)

    def submit(
        self,
        image: Source,
        audio: Source | None = None,
        *,
        text: str | None = None,
        voice: str | None = None,
        renderer: str | None = None,
        stitch: bool | None = None,
        resolution: int | None = None,
        fps: int | float | str | Fraction | None = None,
        motion: str | None = None,
        av_offset_ms: int | None = None,
        priority: int | None = None,
        name: str | None = None,
        user_data: str | None = None,
        webhook: str | None = None,
        options: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Make a job; returns as soon as the daemon has its files.

        image, audio     files of this machine, which are sent, or addresses that the daemon fetches
        text, voice      spoken in place of `audio`
        name             of the video, without .mp4
        options          of the renderer
        idempotency_key  the same key gives the same job, however often this is called: after a lost answer, again

        What is None is decided by the daemon's settings. Raises what is wrong with the arguments or the files.
        """
        picture, sound = os.fspath(image), None if audio is None else os.fspath(audio)
        manifest = manifest_of(
            image=picture,
            audio=sound,
            text=text,
            voice=voice,
            renderer=renderer,
            stitch=stitch,
            resolution=resolution,
            fps=fps,
            motion=motion,
            av_offset_ms=av_offset_ms,
            priority=priority,
            name=name or natural_name(Manifest(picture, sound)),
            user_data=user_data,
            webhook=webhook,
            options=options or {},
        )
        return Job(self._way, self._way.submit(manifest, idempotency_key))

    def job(self, job_id: str) -> Job:
        """The job with that id. Asks nothing yet."""
        return Job(self._way, job_id)

    def jobs(self, *, state: str | None = None, limit: int = 50) -> list[Job]:
        """The newest jobs that this client sees, of all states or in one: queued, running, publishing, done, failed,
        cancelled.
        """
        if state is not None and state not in list(JobState):
            raise UsageError(f"state is {state!r}; allowed is one of {', '.join(JobState)}")
        found = self._way.jobs(None if state is None else JobState(state), limit)
        return [Job(self._way, facts.id, facts) for facts in found]


class Job:
    """One job of a daemon. `id` names it for ever: `client.job(id)` in another program gives it again."""

    def __init__(self, way: Way, job_id: str, facts: JobFacts | None = None) -> None:
        self.id = job_id
        self._way = way
        self._facts = facts

    def __repr__(self) -> str:
        return f"<lipsyncd job {self.id}{f' {self._facts.state}' if self._facts else ''}>"

    @property
    def facts(self) -> JobFacts:
        """What was known of it at the last question; the first use asks."""
        return self._facts or self.refresh()

    @property
    def state(self) -> JobState:
        """Its state at the last question: one of six words, which are equal to their texts."""
        return self.facts.state

    def refresh(self, wait_s: float = 0.0) -> JobFacts:
        """Ask for it now; with `wait_s`, once it has ended or that time is over."""
        self._facts = self._way.look(self.id, wait_s)
        return self._facts

    def known(self) -> JobFacts:
        """What was known at the last question. Raises `UsageError` before the first."""
        if self._facts is None:
            raise UsageError(f"nothing is known of job {self.id} yet; call refresh() first")
        return self._facts

    def look(self) -> JobFacts:
        """As `refresh`, and for a minute again while no server answers: it may be starting anew."""
        return _patiently(self.refresh)

    def events(self, *, every_s: float = 0.5) -> Iterator[Event]:
        """Its state, stage and progress, its place in the queue and its expected end: now, and after each change.

        The server tells of changes. Through a storage folder, and with a server that tells nothing, it asks every
        `every_s` seconds. Ends with the job, and raises nothing about its end: `result` does.
        """
        last, changed = None, True
        while True:
            if changed:
                changed = False
                with suppress(Unreachable):  # it may be starting anew
                    for event in self._way.follow(self.id) or ():
                        changed = True
                        if event != last and not event.state.ended:
                            last = event
                            yield event
            facts = self.look()
            if facts.event != last:
                last = facts.event
                yield last
            if facts.state.ended:
                return
            time.sleep(every_s)

    def result(self, *, timeout_s: float | None = None) -> Result:
        """Wait for its end and give its result.

        Raises why it has none, as the class of its error: `NoFaceFound`, `JobCancelled`, …; TimeoutError after
        `timeout_s` seconds; `NoDaemon` when it waits in a storage folder and no daemon runs.
        """
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = _WAIT_S if until_s is None else max(0.0, min(_WAIT_S, until_s - time.monotonic()))
            facts = _patiently(partial(self.refresh, left_s))
            if facts.error is not None:
                raise facts.error
            if facts.state is JobState.DONE:
                return Result(self._way, facts)
            if until_s is not None and time.monotonic() >= until_s:
                raise TimeoutError(f"job {self.id} is {facts.state} after {timeout_s:g} s")

    def cancel(self) -> None:
        """Take it back while it waits or runs. Raises `IllegalTransition` once it is being published or has ended."""
        self._way.cancel(self.id)


class Result:
    """The result of a finished job. Its video stays with the daemon until it is downloaded or expires."""

    def __init__(self, way: Way, facts: JobFacts) -> None:
        self._way = way
        self.facts = facts

    def download(self, out: Source | None = None, *, force: bool = False) -> Video:
        """Write the video to a file, or into a folder as NAME.mp4; whole or not at all.

        Raises `NameTaken` for a file that exists, unless `force`; `ResultGone` when the daemon has it no more.
        """
        target = target_of(None if out is None else Path(out), self.facts.name or self.facts.id)
        check_target(target, (), force=force)
        with arriving(target, force=force) as hidden:
            self._way.fetch(self.facts, hidden)
        return Video.read(target, renderer=self.facts.renderer)


def _way(url: str | None, key: str | None, storage: Source | None) -> Way:
    if url is not None:
        from lipsyncd.client.over_http import OverHttp

        return OverHttp(url, key)
    from lipsyncd.client.over_storage import OverStorage

    return OverStorage(Path(os.fspath(storage or "")))


def _patiently(ask: Callable[[], _T]) -> _T:
    """Ask, and ask again for a minute while no server answers: it may be starting anew."""
    until_s = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return ask()
        except Unreachable:
            if time.monotonic() >= until_s:
                raise
            time.sleep(_AGAIN_S)
