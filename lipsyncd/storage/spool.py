"""Our private copy of every accepted job: one folder each, self-describing, on a local disk.

    <id>/job.json       what was accepted (`JobSpec`); the folder's rename into place is the moment of acceptance
    <id>/image, audio, manifest, extra-N      the inputs, byte for byte
    <id>/prepared.json  the jail's output: picture.rgb, speech.s16, sound.s16 and their sizes
    <id>/.out.*.mp4     a render in progress
    <id>/out.mp4, out.json    the finished video and its size, hash and notes: it is never rendered again
    <id>/staged         the outbox holds hidden copies of it: from here their absence means "published"
    <id>/fail.json      why the job ended without a video, until its inputs have been moved out

The spool is the truth; the ledger is its index and can be made again from it. Owns this folder, knows no database.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lipsyncd.errors import InputsLost
from lipsyncd.jobs.job import Job, JobSpec
from lipsyncd.jobs.prepared import Output, Prepared
from lipsyncd.storage.failpoints import reach
from lipsyncd.storage.files import (
    Finish,
    fsync_file,
    fsync_folder,
    fsync_opened,
    open_folder,
    read_json,
    remove_tree,
    write_json,
    write_new,
)

_STAGING = ".tmp-"
_AT_ONCE = 8  # fsyncs side by side
_MOST_OPEN = 64  # descriptors of one `Unsynced`
_MOST_SPEC_BYTES = 16_000_000  # ours; a manifest may grow sixfold when it is written as ASCII


@dataclass
class JobUnderWay:
    """One job between acceptance and its end: its row, and what its spool folder holds, read once and handed on.

    staged_as  the name noted by `Spool.set_staged`
    """

    job: Job
    spec: JobSpec
    prepared: Prepared | None = None
    output: Output | None = None
    staged_as: str | None = None

    @property
    def id(self) -> str:
        return self.job.id


@dataclass
class Staged:
    """A job in its staging folder. `fault` is the reason why it was not accepted."""

    spec: JobSpec
    folder: Path
    unsynced: Unsynced
    fault: OSError | None = None


class Spool:
    """The job folders under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, job_id: str) -> Path:
        return self.root / job_id

    # -- acceptance ----------------------------------------------------------------------------------------------------

    def accept(self, job_id: str, fill: Callable[[Path], JobSpec]) -> JobSpec:
        """`stage` and `accept_all` for one job, whose files `fill` makes durable itself. Raises OSError."""
        staged = self.stage(job_id, lambda folder, _: fill(folder))
        self.accept_all([staged])
        if staged.fault is not None:
            raise staged.fault
        return staged.spec

    def stage(self, job_id: str, fill: Callable[[Path, Finish], JobSpec]) -> Staged:
        """Let `fill` put the inputs into a staging folder and describe them. It is no job yet: see `accept_all`.

        fill  is given the folder, and what takes over each file that it has written there

        When `fill` raises, nothing is left here.
        """
        folder, unsynced = self.root / f"{_STAGING}{job_id}", Unsynced()
        remove_tree(folder)
        folder.mkdir(mode=0o750)
        try:
            reach("accept-staging")
            spec = fill(folder, unsynced.add)
            reach("accept-copied")
            write_new(folder / "job.json", _dump(spec), finish=unsynced.add)
            unsynced.add_folder(folder)
        except BaseException:
            unsynced.close()
            remove_tree(folder)
            raise
        return Staged(spec, folder, unsynced)

    def accept_all(self, staged: Sequence[Staged]) -> None:
        """Commit these folders, with shared fsyncs. Those without a `fault` are jobs then, also after a power cut.

        Of the others nothing is left here: what fails with one of them concerns that one alone, but for the last
        fsync, which all of them need.
        """
        sync_all([one.unsynced for one in staged])
        reach("accept-before-commit")
        for one in staged:
            one.fault = one.unsynced.fault or self._rename(one.folder, one.spec.id)
        renamed = [one for one in staged if one.fault is None]
        if renamed:
            self._keep_names(renamed)
        for one in staged:
            if one.fault is not None:
                self.discard(one)
        reach("accept-committed")

    def _rename(self, folder: Path, job_id: str) -> OSError | None:
        try:
            folder.rename(self.folder(job_id))
        except OSError as error:
            return error
        reach("accept-renamed")
        return None

    def _keep_names(self, renamed: Sequence[Staged]) -> None:
        """Make the names of these job folders durable, or take them all back: a power cut could lose them."""
        try:
            fsync_folder(self.root)
        except OSError as error:
            for one in renamed:
                one.fault = error
                with contextlib.suppress(OSError):
                    self.folder(one.spec.id).rename(one.folder)

    def discard(self, staged: Staged) -> None:
        """Remove a job that was not accepted. Where the disk refuses that, the next start does it."""
        staged.unsynced.close()
        with contextlib.suppress(OSError):
            remove_tree(staged.folder)

    def rewrite(self, spec: JobSpec) -> None:
        """Give a job that no worker has claimed other options."""
        write_json(self.folder(spec.id) / "job.json", spec.to_json(), mode=0o640)

    def spec(self, job_id: str) -> JobSpec | None:
        """What was accepted under that id; None when the folder is gone or its `job.json` is damaged."""
        data = read_json(self.folder(job_id) / "job.json", most_bytes=_MOST_SPEC_BYTES)
        try:
            return None if data is None else JobSpec.from_json(data)
        except (KeyError, TypeError, ValueError):
            return None

    def open(self, job: Job) -> JobUnderWay:
        """Read the folder of a job. Raises `InputsLost` when it is gone, or its `job.json` is damaged."""
        spec = self.spec(job.id)
        if spec is None:
            raise InputsLost(f"the spool folder of job {job.id} is gone or damaged")
        return JobUnderWay(job, spec, self.prepared(job.id), self.output(job.id), self.staged_name(job.id))

    def ids(self) -> list[str]:
        """Every accepted job that still has a folder, oldest id first."""
        return sorted(entry.name for entry in self.root.iterdir() if entry.is_dir() and not entry.name.startswith("."))

    def sweep(self) -> int:
        """Remove what a crash left before its commit point; gives the number of folders. Only at start."""
        torn = [entry for entry in self.root.iterdir() if entry.name.startswith(_STAGING)]
        for entry in torn:
            remove_tree(entry)
        for job_id in self.ids():
            self.drop_partial_renders(job_id)
        return len(torn)

    # -- preparation ---------------------------------------------------------------------------------------------------

    def set_prepared(self, job_id: str, prepared: Prepared) -> None:
        """Note what the jail wrote, once that is durable: after a power cut the note would speak of empty files."""
        folder = self.folder(job_id)
        for name in (prepared.picture.file, prepared.sound.speech_file, prepared.sound.file):
            fsync_file(folder / name)
        write_json(folder / "prepared.json", asdict(prepared))

    def prepared(self, job_id: str) -> Prepared | None:
        data = read_json(self.folder(job_id) / "prepared.json")
        try:
            return None if data is None else Prepared.from_json(data)
        except (KeyError, TypeError, ValueError):
            return None

    # -- the finished video --------------------------------------------------------------------------------------------

    def partial_render(self, job_id: str, token: str) -> Path:
        return self.folder(job_id) / f".out.{token}.mp4"

    def drop_partial_renders(self, job_id: str) -> None:
        for path in self.folder(job_id).glob(".out.*"):
            path.unlink(missing_ok=True)

    def keep_output(self, job_id: str, rendered: Path, output: Output) -> None:
        """Make a validated render the job's result. After the return it is never rendered again."""
        folder = self.folder(job_id)
        reach("render-before-fsync")
        fsync_file(rendered)
        (folder / "out.json").unlink(missing_ok=True)  # of a try that could not be finished: another video's facts
        rendered.rename(folder / "out.mp4")
        reach("render-renamed")
        write_json(folder / "out.json", asdict(output))
        reach("render-kept")

    def keep_facts(self, job_id: str, output: Output) -> None:
        """Make another job's video, as it lies in the outbox, the result of this one."""
        write_json(self.folder(job_id) / "out.json", asdict(output))

    def video(self, job_id: str) -> Path:
        return self.folder(job_id) / "out.mp4"

    def output(self, job_id: str) -> Output | None:
        """The finished video's facts; None while there is none, or when file and facts disagree.

        Once it is staged the video itself is no longer needed here, and may have been moved on already.
        """
        data = read_json(self.folder(job_id) / "out.json")
        try:
            output = None if data is None else Output(**data)
            if output is None or output.shown_as is not None or self.staged_name(job_id) is not None:
                return output
            return output if self.video(job_id).stat().st_size == output.size else None
        except (TypeError, FileNotFoundError):
            return None

    def set_staged(self, job_id: str, out_name: str, made: str) -> None:
        """Note that the outbox holds hidden copies, and under which name they are about to be shown.

        made  the id of the hidden folder that holds them (`Outbox.made`)
        """
        write_json(self.folder(job_id) / "staged", {"out_name": out_name, "made": made})

    def staged_in(self, job_id: str) -> str:
        """The hidden folder noted by `set_staged`; "" when it is not known."""
        return str((read_json(self.folder(job_id) / "staged") or {}).get("made", ""))

    def staged_name(self, job_id: str) -> str | None:
        """The name noted by `set_staged`; None before that."""
        data = read_json(self.folder(job_id) / "staged")
        return None if data is None else str(data["out_name"])

    def drop_output(self, job_id: str) -> None:
        """Forget a finished video, so that the job can be rendered again. The note of its staging goes first."""
        folder = self.folder(job_id)
        for name in ("staged", "out.json", "out.mp4"):
            (folder / name).unlink(missing_ok=True)
        if folder.is_dir():
            fsync_folder(folder)

    # -- the end -------------------------------------------------------------------------------------------------------

    def set_ending(self, job_id: str, ending: Mapping[str, Any]) -> None:
        """Record why there will be no video (`state`, `code`, `message`, `remedy`, `at_ms`)."""
        write_json(self.folder(job_id) / "fail.json", ending)

    def ending(self, job_id: str) -> dict[str, Any] | None:
        return read_json(self.folder(job_id) / "fail.json")

    def clear_ending(self, job_id: str) -> None:
        folder = self.folder(job_id)
        (folder / "fail.json").unlink(missing_ok=True)
        if folder.is_dir():
            fsync_folder(folder)

    def remove(self, job_id: str) -> None:
        """Forget a job whose result and inputs lie elsewhere by now.

        The folder loses its name first, so that a crash in the middle leaves nothing that looks like a job.
        """
        doomed = self.root / f"{_STAGING}{job_id}"
        remove_tree(doomed)
        try:
            self.folder(job_id).rename(doomed)
        except FileNotFoundError:
            return
        fsync_folder(self.root)
        reach("removed-name")
        remove_tree(doomed)


def _dump(spec: JobSpec) -> bytes:
    return (json.dumps(spec.to_json()) + "\n").encode()  # without `indent`: only then json's fast encoder is used


# -- shared fsyncs ----------------------------------------------------------------------------------------------------


class Unsynced:
    """Files and folders that belong together, are written, and are not durable yet.

    Their descriptors stay open from the write to the fsync: only an open one is sure to report that a write has failed.

    fault  the first error of their fsyncs; none of them may be relied on then
    """

    def __init__(self) -> None:
        self.fault: OSError | None = None
        self._open: deque[tuple[int, Callable[[int], None]]] = deque()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, descriptor: int, fsync: Callable[[int], None] = os.fsync) -> None:
        """Take over the descriptor of something that is written. Of very many the first are made durable early."""
        self._open.append((descriptor, fsync))
        if len(self._open) >= _MOST_OPEN:
            sync_all([self])

    def add_folder(self, folder: Path) -> None:
        """The names in a folder are to become durable. Raises OSError."""
        self.add(open_folder(folder), fsync_opened)

    def close(self) -> None:
        """Close what is open, without making it durable."""
        while self._open:
            os.close(self._open.popleft()[0])

    def sync_next(self) -> None:
        """Make one of them durable and close it; an error goes to `fault`."""
        descriptor, fsync = self._open.popleft()
        try:
            fsync(descriptor)
        except OSError as error:
            self.fault = self.fault or error
        finally:
            os.close(descriptor)


def sync_all(written: Iterable[Unsynced]) -> None:
    """Make all of these durable; the errors are in each one's `fault`.

    A file system commits all that is pending when it serves an fsync, so that calls side by side share one commit: on
    ext4 some thousand files a second in place of some hundred.
    """
    due = deque(one for one in written for _ in range(len(one)))

    def work() -> None:
        while True:
            try:
                one = due.popleft()
            except IndexError:
                return
            one.sync_next()

    helpers = []
    for _ in range(min(_AT_ONCE, len(due)) - 1):
        helper = threading.Thread(target=work, name="fsync", daemon=True)
        try:
            helper.start()
        except RuntimeError:  # no more threads can be started: the ones that there are do it all
            break
        helpers.append(helper)
    work()
    for helper in helpers:
        helper.join()
