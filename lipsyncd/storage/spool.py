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

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lipsyncd.errors import InputsLost
from lipsyncd.jobs.job import Job, JobSpec
from lipsyncd.jobs.prepared import Output, Prepared
from lipsyncd.storage.failpoints import reach
from lipsyncd.storage.files import fsync_file, fsync_folder, read_json, remove_tree, write_json, write_new

_STAGING = ".tmp-"
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


class Spool:
    """The job folders under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, job_id: str) -> Path:
        return self.root / job_id

    # -- acceptance ----------------------------------------------------------------------------------------------------

    def accept(self, job_id: str, fill: Callable[[Path], JobSpec]) -> JobSpec:
        """Let `fill` put the inputs into a staging folder and describe them, then commit the folder.

        When `fill` raises, nothing is left here. After the return the job exists, also after a power cut.
        """
        staging = self.root / f"{_STAGING}{job_id}"
        remove_tree(staging)
        staging.mkdir(mode=0o750)
        try:
            reach("accept-staging")
            spec = fill(staging)
            reach("accept-copied")
            write_new(staging / "job.json", _dump(spec))
            fsync_folder(staging)
            reach("accept-before-commit")
            staging.rename(self.folder(job_id))
        except BaseException:
            remove_tree(staging)
            raise
        try:
            fsync_folder(self.root)
        except OSError:  # the name may be lost in a power cut: the inbox still has everything, so start again
            self.folder(job_id).rename(staging)
            remove_tree(staging)
            raise
        reach("accept-committed")
        return spec

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
    return (json.dumps(spec.to_json(), indent=1) + "\n").encode()
