"""Manifests that come after their files, which were accepted as a pair already.

Within `watch.manifest_grace_s`, and while no worker has the job, such a manifest replaces the job's options. Later it
is refused.
"""

from __future__ import annotations

import logging
import os

from lipsyncd.errors import InputsAlreadyTaken
from lipsyncd.inbox.pairing import Drop, Names
from lipsyncd.inbox.release import unlink_same
from lipsyncd.inbox.scan import Inbox
from lipsyncd.jobs.job import AUDIO, IMAGE, MANIFEST, Job, JobState, idempotency_key, now_ms
from lipsyncd.jobs.manifest import Manifest, classify, with_manifest
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.settings import CurrentSettings
from lipsyncd.storage.spool import Spool

log = logging.getLogger(__name__)

_LOOKBACK_MS = 600_000  # a manifest that comes this late for its files is refused with the job that took them


class LateManifests:
    """The late manifests of one inbox."""

    def __init__(self, settings: CurrentSettings, inbox: Inbox, spool: Spool, ledger: Ledger, queue: str) -> None:
        self._settings = settings
        self._inbox = inbox
        self._spool = spool
        self._ledger = ledger
        self._queue = queue

    def serve(self, drop: Drop) -> InputsAlreadyTaken | None:
        """Give a manifest without files to the job that took them; the reason when it is too late for that.

        Raises OSError when the manifest cannot be removed.
        """
        job = None if drop.manifest is None else self._pair_of(drop.manifest)
        manifest = None if job is None else self._inbox.whole(drop).manifest
        if job is None or manifest is None or self._replace_options(job, manifest):
            if job is not None:
                log.info("job %s takes the options of %s", job.id, drop.name)
                unlink_same(self._inbox, drop.files[MANIFEST])
            return None
        return InputsAlreadyTaken(f"the files of {drop.name} were accepted as job {job.id}, which is {job.state}")

    def _pair_of(self, manifest: Manifest) -> Job | None:
        """The job that took exactly the files that a manifest names, as a pair and not long ago."""
        names = [s for s in (manifest.image, manifest.audio) if s is not None and classify(s) == "file"]
        latest = [self._ledger.latest_with_source(name, queue=self._queue) for name in self._as_taken(names)]
        jobs = {job.id: job for job in latest if job is not None}
        if len(jobs) != 1 or len(names) != 2:
            return None
        [job] = jobs.values()
        recent = now_ms() - job.accepted_ms <= _LOOKBACK_MS
        return job if recent and self._ledger.source_hashes(job.id).keys() == {IMAGE, AUDIO} else None

    def _as_taken(self, names: list[str]) -> list[bytes]:
        """The names as the files had them that were taken not long ago: a manifest may write them in another case."""
        since_ms = now_ms() - _LOOKBACK_MS
        taken = Names({name: name for name in self._ledger.sources_since(since_ms, queue=self._queue)})
        return [taken.named(name) or name for name in map(os.fsencode, names)]

    def _replace_options(self, job: Job, manifest: Manifest) -> bool:
        """Give a job the options of a late manifest; False when it is too late, or it asks for an id of its own."""
        in_time = now_ms() - job.accepted_ms <= self._settings.now.watch.manifest_grace_s * 1000
        old = self._spool.spec(job.id)
        waits = job.state is JobState.QUEUED and job.attempt == 0
        if old is None or not in_time or not waits or manifest.id not in (None, job.id):
            return False
        spec = with_manifest(old, manifest)
        self._spool.rewrite(spec)
        if not self._ledger.set_options(spec, idem_key=idempotency_key(spec)):
            self._spool.rewrite(old)
            return False
        return True
