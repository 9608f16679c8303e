"""Inbox to spool to ledger: take what is ready, as private copies, each drop exactly once.

The order is what makes it safe: nothing before the spool's commit touches the inbox, nothing after it can lose the job.
Copy into a staging folder by descriptor while hashing; look again that nobody wrote meanwhile; `job.json`, fsync,
rename: accepted. Then the row. Then the inbox's names are unlinked, if they still stand for the bytes that were copied.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lipsyncd.errors import (
    AudioNotRecognised,
    AudioUndecodable,
    ImageNotRecognised,
    ImageUndecodable,
    InputError,
    InputsAlreadyTaken,
)
from lipsyncd.inbox.pairing import AUDIO, IMAGE, MANIFEST, Drop, Found
from lipsyncd.inbox.scan import Inbox
from lipsyncd.jobs.job import Identity, Job, JobSpec, JobState, SourceFile, new_id, now_ms
from lipsyncd.jobs.manifest import Manifest, classify, clean_out_name
from lipsyncd.ledger.ledger import DropKnown, Ledger
from lipsyncd.log import printable
from lipsyncd.media import Completeness, Structure, check_image_size, video_frames
from lipsyncd.settings import CurrentSettings
from lipsyncd.storage.failpoints import reach
from lipsyncd.storage.files import SourceChanged, copy_unchanged, fsync_opened, identity, sha256_of
from lipsyncd.storage.spool import Spool

log = logging.getLogger(__name__)

_BATCH = 32  # jobs whose rows share one commit
_SHORTEST_PASS_S = 2.0
_PASS_PER_LOOK = 4.0  # a large inbox takes long to look through: then more is taken before the next look
_TAKEN_LOOKBACK_MS = 600_000  # a manifest that comes this late for its files is told which job took them
_NOT_RECOGNISED = {IMAGE: ImageNotRecognised, AUDIO: AudioNotRecognised}
_UNDECODABLE = {IMAGE: ImageUndecodable, AUDIO: AudioUndecodable}


@dataclass(frozen=True)
class Accepted:
    """What became of one drop."""

    job: Job
    refused: bool


class Intake:
    """Takes the drops of one inbox. Runs in one thread.

    queue      whose folder that is, "" for the inbox itself: its preset is what jobs get when they do not say it
    cut_short  the last scan left drops behind that could have been taken: look again at once
    blocked    files that could not be taken in the last scan, or not be removed after they were, and why
    """

    def __init__(self, settings: CurrentSettings, inbox: Inbox, spool: Spool, ledger: Ledger, queue: str = "") -> None:
        self.settings = settings
        self.inbox = inbox
        self.queue = queue
        self.spool = spool
        self.ledger = ledger
        self.cut_short = False
        self._refused: dict[str, str] = {}
        self._stuck: dict[str, str] = {}
        self._rowless: list[JobSpec] = []
        self._unreleased: dict[str, tuple[SourceFile, ...]] = {}
        for job_id in ledger.unreleased():
            spec = spool.spec(job_id)
            if spec is None and not queue:
                self._unreleased[job_id] = ()
            elif spec is not None and spec.queue == queue:
                self._unreleased[job_id] = spec.sources

    def scan(self, stop: Callable[[], bool] = lambda: False) -> list[Accepted]:
        """Look once and take what is ready, until `stop`; gives the jobs that are new.

        A burst is taken in passes, so that names are given back, and newcomers seen, while it lasts. Raises OSError
        when the folder cannot be listed; what one drop brings up stays with that drop.
        """
        accepted = self._register_rowless()
        began_s = time.monotonic()
        drops = self.inbox.ready(self._taken())
        looked_s = time.monotonic()
        until_s = looked_s + max(_SHORTEST_PASS_S, _PASS_PER_LOOK * (looked_s - began_s))
        self.cut_short = False
        refused, self._refused = self._refused, {}
        for drop in drops:
            if stop() or time.monotonic() > until_s:
                self.cut_short = True
                break
            if len(self._rowless) >= _BATCH or self._asks_for_id_of_rowless(drop):
                accepted += self._register_rowless()
            spec = self._try_accept(drop, refused)
            if spec is not None:
                self._rowless.append(spec)
        accepted += self._register_rowless()
        if not self.cut_short:
            self._serve_late_manifests()
        self.release()
        return accepted

    @property
    def blocked(self) -> dict[str, str]:
        return {**self._refused, **self._stuck}

    def _taken(self) -> dict[bytes, Identity]:
        """Files of accepted jobs that may still lie in the inbox."""
        return {os.fsencode(s.name): s.identity for sources in self._unreleased.values() for s in sources}

    # -- one drop ------------------------------------------------------------------------------------------------------

    def _try_accept(self, drop: Drop, known: Mapping[str, str]) -> JobSpec | None:
        """`_accept`, or a note why the drop has to wait; in the log when it is not `known` from the scan before."""
        try:
            return self._accept(drop)
        except SourceChanged as changed:
            log.info("intake: %s changed while it was copied; looking again", changed)
        except OSError as error:
            name, why = printable(drop.name), f"cannot be taken: {error.strerror or error}"
            self._refused[name] = why
            if known.get(name) != why:
                log.warning("intake: %s waits: %s", name, error)
        return None

    def _accept(self, drop: Drop) -> JobSpec | None:
        """Copy a drop into the spool, which makes it a job; None when it is one already."""
        refusal = drop.refusal or self._judge(drop)
        asked_id = drop.manifest.id if drop.manifest else None
        job_id, known = asked_id or new_id(), self.ledger.find(asked_id) if asked_id else None
        if known is not None and self._is_repetition(drop, job_id):
            self._clear_repetition(drop, job_id)
            return None
        if known is not None:
            taken = f"{drop.name} asks for the id of job {job_id}, which has other inputs or options"
            refusal = InputsAlreadyTaken(taken, remedy="give the job another id")
            job_id = new_id()
        return self.spool.accept(job_id, lambda folder: self._fill(job_id, drop, refusal, folder))

    def _take(self, drop: Drop) -> Accepted | None:
        spec = self._accept(drop)
        return None if spec is None else self.register(spec)

    def _asks_for_id_of_rowless(self, drop: Drop) -> bool:
        return drop.manifest is not None and any(spec.id == drop.manifest.id for spec in self._rowless)

    def _register_rowless(self) -> list[Accepted]:
        """Give what was accepted its rows, all in one commit. What fails here is not forgotten but tried again."""
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
        except DropKnown:
            self.spool.remove(spec.id)
            return None
        return None if job is None else self._note_accepted(job, spec)

    def _note_accepted(self, job: Job, spec: JobSpec) -> Accepted:
        self._unreleased[spec.id] = spec.sources
        reach("intake-inserted")
        log.info("job %s accepted: %s, %s", job.id, spec.name, "refused" if spec.refusal else spec.renderer)
        return Accepted(job, refused=spec.refusal is not None)

    def _fill(self, job_id: str, drop: Drop, refusal: InputError | None, folder: Path) -> JobSpec:
        sources = []
        for role, file in drop.files.items():
            digest = copy_unchanged(self.inbox.path(file.name), file.identity, folder / role)
            sources.append(SourceFile(role, file.text, file.identity, digest))
        if refusal is not None:
            log.info("job %s refused: %s", job_id, refusal)
        return self._spec(job_id, drop, tuple(sources), refusal)

    def _spec(self, job_id: str, drop: Drop, sources: tuple[SourceFile, ...], refusal: InputError | None) -> JobSpec:
        preset = self.settings.now.queue(self.queue)
        spec = JobSpec(
            id=job_id,
            name=printable(drop.name),
            out_name=clean_out_name(drop.name),
            renderer=preset.renderer,
            stitch=preset.stitch,
            resolution=preset.resolution,
            fps=preset.rate,
            priority=preset.priority,
            queue=self.queue,
            accepted_ms=now_ms(),
            sources=sources,
            refusal=None if refusal is None else refusal.reason(),
        )
        return spec if drop.manifest is None else with_manifest(spec, drop.manifest)

    def _judge(self, drop: Drop) -> InputError | None:
        """The reason why these files cannot become a video, as far as their structure tells."""
        for role in (IMAGE, AUDIO):
            file = drop.files.get(role)
            if file is None:
                continue
            structure = self.inbox.structure(file.name)
            error = None if structure is None else self._judge_file(role, file, structure)
            if error is not None:
                return error
        return None

    def _judge_file(self, role: str, file: Found, structure: Structure) -> InputError | None:
        name = repr(printable(file.text))
        kind = structure.kind
        shows = kind is not None and (kind.is_image or kind.is_video)
        if kind is None or not (shows if role == IMAGE else kind.is_audio):
            seen = f"is {kind}" if kind else f"is none that we know ({file.identity.size} bytes)"
            return _NOT_RECOGNISED[role](f"{name} {seen}")
        if structure.completeness in (Completeness.INVALID, Completeness.TRUNCATED):
            cut = structure.completeness is Completeness.TRUNCATED
            return _UNDECODABLE[role](f"{name} {'is cut short' if cut else 'is damaged'}: {structure.note}")
        if role == IMAGE and structure.width and structure.height:
            limits = self.settings.now.intake
            most = video_frames.MAX_MEGAPIXELS if kind.is_video else limits.max_megapixels
            try:
                check_image_size(structure.width, structure.height, min_side=limits.min_side_px, max_megapixels=most)
            except InputError as error:
                return error
        return None

    # -- an id that is known already -----------------------------------------------------------------------------------

    def _is_repetition(self, drop: Drop, job_id: str) -> bool:
        """Was that very work accepted as that job? Somebody who got no answer has then simply asked again."""
        taken = self.ledger.source_hashes(job_id)
        sources = tuple(
            SourceFile(role, file.text, file.identity, sha256_of(self.inbox.path(file.name)))
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
                self._unlink_same(file)

    def _unlink_same(self, file: Found) -> None:
        path = self.inbox.path(file.name)
        if identity(path) == file.identity:
            os.unlink(path)  # noqa: PTH108 - names are bytes

    # -- manifests that come after their files -------------------------------------------------------------------------

    def _serve_late_manifests(self) -> None:
        """A manifest whose files were just accepted as a pair replaces that job's options; later it is refused."""
        for drop in self.inbox.without_files(self._taken()):
            job = None if drop.manifest is None else self._pair_of(drop.manifest)
            if job is None:
                continue
            try:
                if not self._replace_options(job, drop):
                    late = f"the files of {drop.name} were accepted as job {job.id}, which is {job.state}"
                    self._take(replace(drop, manifest=None, refusal=InputsAlreadyTaken(late)))
            except (SourceChanged, OSError) as error:
                log.info("intake: %s waits: %s", drop.name, error)

    def _pair_of(self, manifest: Manifest) -> Job | None:
        """The job that took exactly the files that a manifest names, as a pair and not long ago."""
        names = [s for s in (manifest.image, manifest.audio) if s is not None and classify(s) == "file"]
        latest = [self.ledger.latest_with_source(os.fsencode(name), queue=self.queue) for name in names]
        jobs = {job.id: job for job in latest if job is not None}
        if len(jobs) != 1 or len(names) != 2:
            return None
        [job] = jobs.values()
        recent = now_ms() - job.accepted_ms <= _TAKEN_LOOKBACK_MS
        return job if recent and self.ledger.source_hashes(job.id).keys() == {IMAGE, AUDIO} else None

    def _replace_options(self, job: Job, drop: Drop) -> bool:
        """Let a job do what a late manifest says; False when it is too late, or when that asks for an id of its own."""
        in_time = now_ms() - job.accepted_ms <= self.settings.now.watch.manifest_grace_s * 1000
        old, manifest = self.spool.spec(job.id), drop.manifest
        waits = job.state is JobState.QUEUED and job.attempt == 0
        if manifest is None or old is None or not in_time or not waits or manifest.id not in (None, job.id):
            return False
        spec = with_manifest(old, manifest)
        self.spool.rewrite(spec)
        if not self.ledger.set_options(spec, idem_key=idempotency_key(spec)):
            self.spool.rewrite(old)
            return False
        log.info("job %s takes the options of %s", job.id, drop.name)
        self._unlink_same(drop.files[MANIFEST])
        return True

    # -- giving the names back -----------------------------------------------------------------------------------------

    def release(self) -> None:
        """Unlink the inputs of accepted jobs from the inbox, except those that a waiting manifest names as well.

        All through one descriptor: in the folder that has come in place of an unmounted one no input can be found, and
        one that is believed to be gone would be another drop when its folder is back.
        """
        if not self._unreleased:
            return
        with self.inbox.opened() as folder:
            if folder is not None:
                self._release_in(folder)

    def _release_in(self, folder: int) -> None:
        needed = self.inbox.named_by_manifests(self._taken())
        known, self._stuck = self._stuck, {}
        left = {
            job_id: tuple(
                s for source in sources if (s := self._release_file(folder, job_id, source, needed, known)) is not None
            )
            for job_id, sources in self._unreleased.items()
        }
        released = [job_id for job_id, sources in left.items() if not sources]
        if released:
            fsync_opened(folder)
            reach("intake-unlinked")
            self.ledger.set_released(released)
        self._unreleased = {job_id: sources for job_id, sources in left.items() if sources}

    def _release_file(
        self, folder: int, job_id: str, source: SourceFile, needed: Container[bytes], known: Mapping[str, str]
    ) -> SourceFile | None:
        """None when the name no longer stands for the bytes that were copied, else what still lies there."""
        name = os.fsencode(source.name)
        try:
            now = identity(name, folder=folder)
            if now is None or not self._is_same(folder, name, source, now):
                return None
            source = replace(source, identity=now)
            if name in needed:
                return source
            reach("intake-before-unlink")
            os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            shown, why = printable(source.name), f"job {job_id} has it, and it cannot be removed: {error.strerror}"
            if known.get(shown) != why:
                log.warning("intake: cannot remove %s from the inbox: %s", shown, error.strerror)
            self._stuck[shown] = why
            return source
        return None

    @staticmethod
    def _is_same(folder: int, name: bytes, source: SourceFile, now: Identity) -> bool:
        """The bytes we copied, also when only the inode's own data changed (a chmod, a backup tool)."""
        if now == source.identity:
            return True
        unchanged = replace(now, ctime_ns=0) == replace(source.identity, ctime_ns=0)
        return unchanged and sha256_of(name, folder=folder) == source.sha256


def with_manifest(spec: JobSpec, manifest: Manifest) -> JobSpec:
    """What the settings say, overruled by what the manifest says."""
    said = {
        "renderer": manifest.renderer,
        "stitch": manifest.stitch,
        "resolution": manifest.resolution,
        "fps": manifest.fps,
        "priority": manifest.priority,
        "out_name": manifest.out_name,
        "name": manifest.out_name,
    }
    changes: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
    return replace(
        spec,
        **changes,
        image_url=manifest.image if classify(manifest.image) != "file" else None,
        audio_url=manifest.audio if manifest.audio is not None and classify(manifest.audio) != "file" else None,
        text=manifest.text,
        voice=manifest.voice,
        ssml=manifest.ssml,
        user_data=manifest.user_data,
        webhook=manifest.webhook,
        options=dict(manifest.options),
        pad_s=manifest.pad_s or 0.0,
        rest=manifest.rest,
    )


def idempotency_key(spec: JobSpec) -> str | None:
    """Equal for equal work: the same bytes with the same options. None when what is fetched may differ each time."""
    if spec.image_url or spec.audio_url or spec.refusal:
        return None
    content: Mapping[str, object] = {s.role: s.sha256 for s in spec.sources if s.role in (IMAGE, AUDIO)}
    asked = {
        "renderer": spec.renderer,
        "stitch": spec.stitch,
        "resolution": None if spec.stitch else spec.resolution,
        "fps": str(spec.fps),
        "text": spec.text,
        "voice": spec.voice,
        "ssml": spec.ssml,
        "options": spec.options,
        "pad_s": spec.pad_s,
    }
    return hashlib.sha256(json.dumps([content, asked], sort_keys=True).encode()).hexdigest()
