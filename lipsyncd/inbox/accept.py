"""Inbox to spool to ledger: take what is ready, as private copies, each drop exactly once.

The order is what makes it safe: nothing before the spool's commit touches the inbox, nothing after it can lose the job.
Copy into a staging folder by descriptor while hashing; check that no file has changed meanwhile; `job.json`, fsync,
rename: accepted. Then the row. Then `release` removes the files from the inbox.

Drops that are ready together take each of these steps together, so that they share fsyncs and commits. Such a batch is
bounded in jobs, open files, bytes and time, so that it needs little memory and no drop waits long for the others. Large
drops come last, one in a pass: a copy from a slow server may take minutes, and what is dropped meanwhile goes before
the next one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lipsyncd.errors import InputError, InputsAlreadyTaken
from lipsyncd.inbox.late_manifest import LateManifests
from lipsyncd.inbox.pairing import Drop, Found
from lipsyncd.inbox.release import Release, unlink_same
from lipsyncd.inbox.scan import Inbox
from lipsyncd.inbox.shown import Shown, together
from lipsyncd.jobs.job import AUDIO, IMAGE, MANIFEST, Job, JobSpec, SourceFile, idempotency_key, new_id, now_ms
from lipsyncd.jobs.manifest import clean_out_name, with_manifest
from lipsyncd.ledger.ledger import AlreadyAccepted, Ledger
from lipsyncd.log import printable
from lipsyncd.media import Structure, check_input
from lipsyncd.settings import CurrentSettings
from lipsyncd.storage.failpoints import reach
from lipsyncd.storage.files import Finish, SourceChanged, copy_unchanged
from lipsyncd.storage.spool import Spool, Staged

log = logging.getLogger(__name__)

_MOST_JOBS = 64
_MOST_FILES = 160  # descriptors that are open until the commit
_MOST_BYTES = 32_000_000
_MOST_S = 0.25
_SLOW_BYTES = 4_000_000  # before a drop of this size is copied, the others are committed
_LARGE_BYTES = 16_000_000
_SHORTEST_PASS_S = 2.0
_PASS_PER_SCAN = 4.0  # a large inbox takes long to scan: then more is taken before the next scan


@dataclass(frozen=True)
class Accepted:
    """One drop that has become a job."""

    job: Job
    refused: bool


class Intake:
    """Takes the drops of one inbox. Runs in one thread.

    queue      the queue of that folder, "" for the inbox itself: its preset holds for what a manifest leaves open
    cut_short  the last scan left drops behind that could have been taken: scan again at once
    """

    def __init__(self, settings: CurrentSettings, inbox: Inbox, spool: Spool, ledger: Ledger, queue: str = "") -> None:
        self.settings = settings
        self.inbox = inbox
        self.queue = queue
        self.spool = spool
        self.ledger = ledger
        self.cut_short = False
        self.release = Release(inbox, spool, ledger, queue)
        self._late_manifests = LateManifests(settings, inbox, spool, ledger, queue)
        self._stuck = Shown()
        self._late_from = 0
        self._late_remain = False
        self._batch = Batch(spool)
        self._rowless: list[JobSpec] = []
        self._began = False

    def scan(self, stop: Callable[[], bool] = lambda: False) -> list[Accepted]:
        """Scan once and take what is ready, until `stop`; gives the new jobs.

        A burst is taken in passes, so that files are released, and new ones noticed, while it lasts. Raises OSError
        when the folder cannot be listed; an error with one drop concerns that drop alone.
        """
        accepted = self._register_rowless()
        with self.inbox.open() as is_open:
            return [*accepted, *self._scan(stop)] if is_open else accepted

    def _scan(self, stop: Callable[[], bool]) -> list[Accepted]:
        accepted: list[Accepted] = []
        if not self._began:
            self.inbox.shared.sweep_removals()
            self.release.refresh()
            self._began = True
        began_s = time.monotonic()
        drops = self.inbox.ready(self.release.taken)
        scanned_s = time.monotonic()
        until_s = scanned_s + max(_SHORTEST_PASS_S, _PASS_PER_SCAN * (scanned_s - began_s))
        self.cut_short = False
        small, large = by_size(drops)
        known, self._stuck = self._stuck, Shown()
        try:
            for drop in small:
                if stop() or time.monotonic() > until_s:
                    self.cut_short = True
                    break
                if self._batch.must_end_before(drop):
                    accepted += self._commit(known)
                self._try_stage(drop, known)
            accepted += self._commit(known)
            accepted += self._take_a_large_one(large, stop, known)
        finally:
            self._batch.discard()
        if not self.cut_short and (self._late_remain or not self.inbox.unchanged):
            accepted += self._serve_late_manifests()
        self.release.run()
        return accepted

    def _take_a_large_one(self, large: Sequence[Drop], stop: Callable[[], bool], known: Shown) -> list[Accepted]:
        """Accept the first of the large drops that can be accepted now."""
        for number, drop in enumerate(large, start=1):
            if stop():
                break
            self._try_stage(drop, known)
            if accepted := self._commit(known):
                self.cut_short = self.cut_short or number < len(large)
                return accepted
        return []

    @property
    def stuck(self) -> Shown:
        """Files that could not be taken in the last scan, or not be removed after they were, and why."""
        return together(self._stuck, self.release.stuck)

    # -- one drop ------------------------------------------------------------------------------------------------------

    def _try_stage(self, drop: Drop, known: Shown) -> None:
        """`_stage`, or record why the drop has to wait; logged when it is not `known` from the scan before."""
        try:
            self._stage(drop)
        except SourceChanged as changed:
            log.info("intake: %s changed while it was copied; scanning again", changed)
        except OSError as error:
            self._note_stuck(drop, error, known)

    def _note_stuck(self, drop: Drop, error: OSError, known: Shown) -> None:
        name, why = printable(drop.name), f"cannot be taken: {error.strerror or error}"
        if self._stuck.note(name, why) and known.get(name) != why:
            log.warning("intake: %s waits: %s", name, error)

    def _stage(self, drop: Drop) -> None:
        """Copy a drop into the spool, where `_commit` makes it a job; nothing when it is one already."""
        drop = self.inbox.whole(drop)
        refusal = drop.refusal or self._check(drop)
        asked_id = drop.manifest.id if drop.manifest else None
        job_id, known = asked_id or new_id(), self.ledger.find(asked_id) if asked_id else None
        if known is not None and self._is_repetition(drop, job_id):
            self._clear_repetition(drop, job_id)
            return
        if known is not None:
            taken = f"{drop.name} asks for the id of job {job_id}, which has other inputs or options"
            refusal = InputsAlreadyTaken(taken, remedy="give the job another id")
            job_id = new_id()
        self._batch.stage(job_id, drop, lambda folder, finish: self._fill(job_id, drop, refusal, folder, finish))

    def _commit(self, known: Shown) -> list[Accepted]:
        """Accept what is staged, and give it its rows. What could not be accepted waits."""
        specs, failed = self._batch.commit()
        for drop, error in failed:
            self._note_stuck(drop, error, known)
        self._rowless += specs
        return self._register_rowless()

    def _take(self, drop: Drop) -> Accepted | None:
        """Accept one drop by itself; None when it is a job already. Raises `SourceChanged` or OSError."""
        try:
            self._stage(drop)
            specs, failed = self._batch.commit()
        finally:
            self._batch.discard()
        for _, error in failed:
            raise error
        return self.register(specs[0]) if specs else None

    def _register_rowless(self) -> list[Accepted]:
        """Give what was accepted its rows, all in one commit. What fails is tried again."""
        new = [(spec, idempotency_key(spec)) for spec in self._rowless]
        jobs = self.ledger.insert_all(new, max_attempts=self.settings.now.render.max_attempts)
        accepted = [self._note_accepted(job, spec) for job, (spec, _) in zip(jobs, new, strict=False)]
        if jobs:
            self._rowless = []
        while self._rowless:
            taken = self.register(self._rowless[0])
            accepted += [] if taken is None else [taken]
            del self._rowless[0]
        return accepted

    def register(self, spec: JobSpec) -> Accepted | None:
        """Give an accepted job its row; also at start, for jobs that a crash left without one."""
        try:
            job = self.ledger.insert(
                spec, max_attempts=self.settings.now.render.max_attempts, idem_key=idempotency_key(spec)
            )
        except AlreadyAccepted:
            self.spool.remove(spec.id)
            return None
        return None if job is None else self._note_accepted(job, spec)

    def _note_accepted(self, job: Job, spec: JobSpec) -> Accepted:
        self.release.add(spec)
        reach("intake-inserted")
        log.info("job %s accepted: %s, %s", job.id, spec.name, "refused" if spec.refusal else spec.renderer)
        return Accepted(job, refused=spec.refusal is not None)

    def _fill(self, job_id: str, drop: Drop, refusal: InputError | None, folder: Path, finish: Finish) -> JobSpec:
        sources, inbox = [], self.inbox.folder.fileno()
        for role, file in drop.files.items():
            digest = copy_unchanged(file.name, file.identity, folder / role, folder=inbox, finish=finish)
            sources.append(SourceFile(role, file.text, file.identity, digest))
        if refusal is not None:
            log.info("job %s refused: %s", job_id, refusal)
        return self._spec(job_id, drop, tuple(sources), refusal)

    def _spec(self, job_id: str, drop: Drop, sources: tuple[SourceFile, ...], refusal: InputError | None) -> JobSpec:
        spec = JobSpec(
            id=job_id,
            name=printable(drop.name),
            out_name=clean_out_name(drop.name),
            accepted_ms=now_ms(),
            sources=sources,
            refusal=None if refusal is None else refusal.reason(),
            **self.settings.now.queue(self.queue).of_a_job,
        )
        if drop.manifest is None:
            return spec
        spec = with_manifest(spec, drop.manifest)
        return spec if spec.rest is None else replace(spec, queue=self.settings.now.web.outbox_folder)

    def _check(self, drop: Drop) -> InputError | None:
        """The reason why these files cannot become a video, as far as their structure shows."""
        for role in (IMAGE, AUDIO):
            file = drop.files.get(role)
            if file is None:
                continue
            structure = self.inbox.structure(file.name)
            error = None if structure is None else self._check_file(role, file, structure)
            if error is not None:
                return error
        return None

    def _check_file(self, role: str, file: Found, structure: Structure) -> InputError | None:
        size_bytes = file.identity.size
        if role == AUDIO:
            return check_input.sound_fault(structure, file.text, size_bytes=size_bytes)
        return check_input.picture_fault(structure, file.text, size_bytes=size_bytes, limits=self.settings.now.intake)

    # -- a drop whose id is known --------------------------------------------------------------------------------------

    def _is_repetition(self, drop: Drop, job_id: str) -> bool:
        """Was that very work accepted as that job? Then a client that got no answer has sent its request again."""
        taken = self.ledger.source_hashes(job_id)
        sources = tuple(
            SourceFile(role, file.text, file.identity, self.inbox.folder.sha256(file.name))
            for role, file in drop.files.items()
        )
        if any(taken.get(s.role) != s.sha256 for s in sources if s.role != MANIFEST):
            return False
        if any(taken.get(s.role) == s.sha256 for s in sources if s.role == MANIFEST):
            return True
        key = idempotency_key(self._spec(job_id, drop, sources, None))
        return key is not None and key == self.ledger.idem_key(job_id)

    def _clear_repetition(self, drop: Drop, job_id: str) -> None:
        log.info("intake: %s repeats job %s, which is accepted already", drop.name, job_id)
        for file in drop.files.values():
            if not file.taken:
                unlink_same(self.inbox, file)

    def _serve_late_manifests(self) -> list[Accepted]:
        """Give late manifests to the jobs that took their files; gives the jobs that only refuse one.

        The ledger is asked about each of them. Where there are too many for one pass, the next scan goes on with them.
        """
        refused = []
        drops = self.inbox.without_files(self.release.taken)
        until_s, start = time.monotonic() + _SHORTEST_PASS_S, self._late_from if self._late_from < len(drops) else 0
        self._late_from, self._late_remain = 0, False
        for number, drop in enumerate(drops[start:], start=start):
            if time.monotonic() > until_s:
                self._late_from, self._late_remain = number, True
                break
            try:
                refusal = self._late_manifests.serve(drop)
                if refusal is not None:
                    refused.append(self._take(replace(drop, manifest=None, refusal=refusal)))
            except (SourceChanged, OSError) as error:
                log.info("intake: %s waits: %s", drop.name, error)
                self._late_remain = True
        return [one for one in refused if one is not None]


class Batch:
    """Jobs that are staged in the spool and not committed yet."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._staged: list[tuple[Staged, Drop]] = []
        self._bytes = self._files = 0
        self._began_s = 0.0

    def stage(self, job_id: str, drop: Drop, fill: Callable[[Path, Finish], JobSpec]) -> None:
        """Add a drop; raises what `fill` raises, and OSError."""
        began_s = time.monotonic()
        staged = self._spool.stage(job_id, fill)
        self._began_s = self._began_s if self._staged else began_s
        self._staged.append((staged, drop))
        self._bytes += size_of(drop)
        self._files += len(staged.unsynced)

    def must_end_before(self, drop: Drop) -> bool:
        """Is it to be committed before that drop is staged?"""
        if not self._staged:
            return False
        asked_id = drop.manifest.id if drop.manifest else None
        asks_for_id = asked_id is not None and any(one.spec.id == asked_id for one, _ in self._staged)
        size = size_of(drop)
        return asks_for_id or size >= _SLOW_BYTES or self._bytes + size > _MOST_BYTES or self._is_full()

    def _is_full(self) -> bool:
        late = time.monotonic() - self._began_s > _MOST_S
        return late or len(self._staged) >= _MOST_JOBS or self._files >= _MOST_FILES

    def commit(self) -> tuple[list[JobSpec], list[tuple[Drop, OSError]]]:
        """Accept all of them; gives the new jobs, and the drops that could not be accepted. The batch is empty then."""
        staged = self._emptied()
        if staged:
            self._spool.accept_all([one for one, _ in staged])
        failed = [(drop, one.fault) for one, drop in staged if one.fault is not None]
        return [one.spec for one, _ in staged if one.fault is None], failed

    def discard(self) -> None:
        """Forget them; the inbox still has everything."""
        for one, _ in self._emptied():
            self._spool.discard(one)

    def _emptied(self) -> list[tuple[Staged, Drop]]:
        staged, self._staged, self._bytes, self._files = self._staged, [], 0, 0
        return staged


def size_of(drop: Drop) -> int:
    """Bytes that are copied for it."""
    return sum(file.identity.size for file in drop.files.values())


def by_size(drops: Sequence[Drop]) -> tuple[list[Drop], list[Drop]]:
    """The drops that share batches, and the large ones, which are taken by themselves; each in the order given."""
    large = [drop for drop in drops if size_of(drop) >= _LARGE_BYTES]
    if not large:
        return list(drops), []
    return [drop for drop in drops if size_of(drop) < _LARGE_BYTES], large
