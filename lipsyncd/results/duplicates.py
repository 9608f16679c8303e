"""A job with the same bytes and options as an earlier one gets the earlier video instead of a second render.

`intake.on_redrop` decides: `link` publishes the first video once more under the new name, `skip` leaves only a sidecar
that names the first video, `render` renders again. A redrop waits while the first is under way. When the
first failed, was cancelled, was made with other settings, or its video is gone, the redrop is rendered.

A linked video is copied into the job's own spool folder and published like any other, so a crash loses nothing.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lipsyncd.errors import IllegalTransition
from lipsyncd.jobs.job import Job
from lipsyncd.jobs.prepared import Output
from lipsyncd.results.find_video import FoundVideo, videos
from lipsyncd.results.finish import Finisher
from lipsyncd.results.outbox import VIDEO
from lipsyncd.results.publish import Publisher
from lipsyncd.results.recipe import recipe_of
from lipsyncd.results.stores import Stores
from lipsyncd.settings import Settings
from lipsyncd.storage.failpoints import reach
from lipsyncd.storage.files import copy_hashed

log = logging.getLogger(__name__)

_TOKEN = "link"  # in place of a run's token in the name of the unfinished file


class Duplicates:
    """Handles the redrops of one daemon; called by the thread that prepares jobs."""

    def __init__(self, stores: Stores, finisher: Finisher, publisher: Publisher) -> None:
        self._stores = stores
        self._finisher = finisher
        self._publisher = publisher

    def serve(self, job: Job, settings: Settings, voice: Callable[[], str] = str) -> bool:
        """Try to give a waiting job an earlier video; True when there is nothing to prepare, for now or at all.

        voice  which voice would speak its text, as `recipe_of` wants it; asked only if there is an earlier job

        Raises OSError of the disk, and what `voice` raises.
        """
        policy = settings.intake.on_redrop
        if policy == "render":
            return False
        duplicates = self._stores.ledger.duplicates
        key = duplicates.key(job)
        if not key and job.duplicate_of is None:
            return False
        for first in duplicates.finished(job, key):
            for video, facts in self._results(first, recipe_of(settings, voice())):
                try:
                    if self._take(job, first, video, facts, skip=policy == "skip"):
                        return True
                finally:
                    video.close()
        under_way = duplicates.under_way(job, key)
        if under_way is not None:
            log.info("job %s repeats job %s and waits for it", job.id, under_way.id)
            self._stores.thumbnails.share(under_way.id, job.id)
            return duplicates.link(job, under_way, note=f"the same work as job {under_way.id}: waits for it")
        if job.duplicate_of is not None:
            duplicates.unlink(job.id)
        return False

    def _results(self, first: Job, recipe: str) -> Iterator[tuple[FoundVideo, Output]]:
        """A finished job's video, where it lies, and its facts, if the current settings would make the same one."""
        for video in videos(self._stores.folders, first):
            facts = self._stores.spool.output(first.id) if video.facts is None else _facts(first, video.facts)
            if facts is not None and facts.recipe == recipe:
                yield video, replace(facts, duplicate_of=first.id)
            else:
                video.close()

    def _take(self, job: Job, first: Job, video: FoundVideo, facts: Output, *, skip: bool) -> bool:
        """Make the video of `first` the result of `job` and publish it; False when it is gone."""
        stores, spool = self._stores, self._stores.spool
        if skip:
            seen_from = job.queue or "."  # where the sidecar will lie
            facts = replace(facts, shown_as=os.path.relpath(f"{first.place}.{VIDEO}", seen_from))
        partial = spool.partial_render(job.id, _TOKEN)
        if not (_copy(video, partial, facts) if facts.shown_as is None else _sha256(video) == facts.sha256):
            return False
        reach("link-copied")
        if not stores.ledger.duplicates.link(job, first, note=f"the same work as job {first.id}: its video is taken"):
            return True  # cancelled meanwhile
        reach("link-noted")
        stores.thumbnails.share(first.id, job.id)
        if facts.shown_as is None:
            spool.keep_output(job.id, partial, facts)
        else:
            spool.keep_facts(job.id, facts)
        reach("link-kept")
        try:
            self._publish(job, facts)
        except IllegalTransition:
            log.info("job %s: cancelled, or given other options, while it got the video of %s", job.id, first.id)
            spool.drop_output(job.id)
        return True

    def _publish(self, job: Job, facts: Output) -> None:
        shown = {**facts.facts, "render_ms": 0}
        moved = self._stores.ledger.to_publishing(job.id, token=None, **shown, linked_to=facts.duplicate_of)
        reach("link-publishing")
        self._publisher.try_publish(moved)


def _facts(first: Job, recorded: Mapping[str, Any]) -> Output | None:
    """The facts of a video from its sidecar; None when that is gone, damaged, or another job's."""
    if recorded.get("id") != first.id or first.out_sha256 is None:
        return None
    try:
        return Output(
            sha256=first.out_sha256,
            size=int(recorded["bytes"]),
            frames=int(recorded["frames"]),
            width=int(recorded["width"]),
            height=int(recorded["height"]),
            render_ms=round(recorded["render_s"] * 1000),
            duration_ms=round(recorded["duration_s"] * 1000),
            attempt=int(recorded["attempt"]),
            notes=dict(recorded["notes"]),
            recipe=str(recorded["recipe"]),
            duplicate_of=first.id,
        )
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None


def _copy(video: FoundVideo, target: Path, facts: Output) -> bool:
    """Copy a video, if it is still the one that was published. Raises OSError of the spool's disk."""
    target.unlink(missing_ok=True)
    if copy_hashed(video.descriptor, target) == (facts.size, facts.sha256):
        return True
    target.unlink()
    return False


def _sha256(video: FoundVideo) -> str:
    with os.fdopen(os.dup(video.descriptor), "rb") as file:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()
