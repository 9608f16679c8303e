"""The order of one job's file calls in strace's record: each step is durable before the next one begins.

`rules_of` lists the fsync or the commit of the ledger that must lie between two steps of a job's life. The record
comes from the real daemon. The rules are strict: without any one of its fsyncs the record breaks one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lipsyncd.jobs.job import new_id
from tests.kits.faults.trace_kit import CALLS, Event, is_commit, read, traced
from tests.kits.installation import Installation

Match = Callable[[Event], bool]


@dataclass(frozen=True)
class Rule:
    """Between `after` and the first `before` that follows it there must be a `need`.

    Of several `after` in front of that `before` the last one counts. Only commits of the same thread count, since other
    threads commit at any time.
    """

    text: str
    after: Match
    need: Match
    before: Match


@dataclass(frozen=True)
class Record:
    """The calls on an installation's files, from the job's first copy to the removal of its folder."""

    events: tuple[Event, ...]
    installation: Installation
    job_id: str


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """One pair with a manifest, from the inbox to the outbox and the archive."""
    installation = Installation(tmp_path_factory.mktemp("order"))
    installation.folders.initialise()
    job_id = new_id()
    installation.drop_manifest("anna", id=job_id, image="anna.png", audio="anna.wav")
    installation.drop_pair("anna")
    trace = installation.root / "trace"
    with traced(installation, trace, CALLS, "-s", "64"):
        installation.until_done("anna")
        installation.until(lambda: not any(installation.path("spool").iterdir()), "an empty spool")
    events = [e for e in read(trace) if any(p.startswith(str(installation.root / "storage")) for p in e.paths)]
    staging, spool = str(installation.path("spool") / f".tmp-{job_id}"), installation.path("spool")
    begin = next(e.begin for e in events if e.name == "mkdir" and e.path == staging)
    end = max(e.end for e in events if e.name == "rmdir" and e.path == staging)
    ours = [e for e in events if begin <= e.begin and e.end <= end and not _is_elsewhere(e, installation)]
    assert any(e.path == str(spool) for e in ours)
    return Record(tuple(ours), installation, job_id)


def _is_elsewhere(event: Event, installation: Installation) -> bool:
    """Is it the status file, which is written every second and belongs to no job?"""
    return event.path == str(installation.path("state")) or "status.json" in event.path


# -- the rules ---------------------------------------------------------------------------------------------------------


def rules_of(record: Record) -> Iterator[Rule]:
    installation, job_id = record.installation, record.job_id
    spool, inbox, outbox = (str(installation.path(kind)) for kind in ("spool", "inbox", "outbox"))
    staging, folder, hidden = f"{spool}/.tmp-{job_id}", f"{spool}/{job_id}", f"{outbox}/.lipsyncd"
    accepted = moved(staging, folder)
    roles = ("manifest", "image", "audio")
    for role in roles:
        yield Rule(
            f"{role} is durable before the job is accepted",
            made(f"{staging}/{role}"),
            synced(f"{staging}/{role}"),
            accepted,
        )
    yield Rule(
        "job.json is durable before the job is accepted",
        made(f"{staging}/job.json"),
        synced(f"{staging}/job.json"),
        accepted,
    )
    yield Rule(
        "all names in its folder are durable before it is accepted",
        made(f"{staging}/job.json"),
        synced(staging),
        accepted,
    )
    yield Rule("the acceptance is durable before there is a row", accepted, synced(spool), is_commit)
    yield Rule("the row is committed before the inbox is changed", synced(spool), is_commit, taken_from(inbox))
    yield Rule(
        "the removal from the inbox is durable before it is recorded", taken_from(inbox), synced(inbox), is_commit
    )
    yield Rule(
        "what was taken from the inbox is gone for good before that is recorded",
        lambda e: e.name == "unlinkat" and e.path.startswith(f"{inbox}/.lipsyncd/gone-"),
        synced_like(f"{inbox}/.lipsyncd/gone-"),
        is_commit,
    )
    for name in ("picture.rgb", "speech.s16", "sound.s16"):
        yield Rule(
            f"{name} is durable before prepared.json names it",
            accepted,
            synced(f"{folder}/{name}"),
            written(folder, "prepared.json"),
        )
    yield from replaced(folder, "prepared.json", is_commit)
    yield Rule(
        "the video is durable before it has its name",
        accepted,
        synced_like(f"{folder}/.out.", ".mp4"),
        moved_to(f"{folder}/out.mp4"),
    )
    yield from replaced(folder, "out.json", is_commit)
    yield Rule(
        "`publishing` is committed before anything goes to the outbox",
        moved_to(f"{folder}/out.json"),
        is_commit,
        written(hidden, f"{job_id}.json.part"),
    )
    unfinished, token = f"{hidden}/.{job_id}.mp4.part", f"{hidden}/{job_id}.mp4.part"
    yield from replaced(hidden, f"{job_id}.json.part", made(unfinished))
    yield Rule("the hidden video is durable before it counts", made(unfinished), synced(unfinished), moved_to(token))
    yield Rule(
        "the hidden names are durable before they count", moved_to(token), synced(hidden), written(folder, "staged")
    )
    yield from replaced(folder, "staged", is_commit)
    yield Rule(
        "the staging is committed before the video is shown",
        moved_to(f"{folder}/staged"),
        is_commit,
        moved_to(f"{outbox}/anna.mp4"),
    )
    for place in (outbox, hidden):
        yield Rule(
            f"the name of the video is durable in {Path(place).name}",
            moved_to(f"{outbox}/anna.mp4"),
            synced(place),
            moved_to(f"{outbox}/anna.json"),
        )
        yield Rule(
            f"the name of the sidecar is durable in {Path(place).name}",
            moved_to(f"{outbox}/anna.json"),
            synced(place),
            is_commit,
        )
    done = moved(folder, staging)
    results = str(installation.path("state") / "results")
    yield Rule(
        "`done` is committed before anything is removed",
        moved_to(f"{outbox}/anna.json"),
        is_commit,
        written(results, f"{job_id}.json"),
    )
    yield from replaced(results, f"{job_id}.json", moved_to(f"{results}/{job_id}.mp4"))
    yield Rule("the kept video is durable", moved_to(f"{results}/{job_id}.mp4"), synced(results), done)
    archive = str(installation.path("archive"))
    kept = f"{archive}/.lipsyncd/{job_id}.keep"
    for name in ("anna.json", "anna.png", "anna.wav", "job.json"):
        yield Rule(
            f"{name} is durable before it is archived",
            made(f"{kept}/{name}"),
            synced(f"{kept}/{name}"),
            moved_from(kept),
        )
    yield Rule(
        "all names in the archived folder are durable", synced(f"{kept}/job.json"), synced(kept), moved_from(kept)
    )
    yield Rule(
        "the folder of a new day is durable",
        lambda e: e.name == "mkdirat" and Path(e.path).parent == Path(archive),
        synced(archive),
        moved_from(kept),
    )
    yield Rule(
        "the archived folder is durable before the spool's is removed",
        moved_from(kept),
        lambda e: e.is_sync and Path(e.path).parent == Path(archive) and e.path != f"{archive}/.lipsyncd",
        done,
    )
    yield Rule("its path is committed before the spool's folder is removed", moved_from(kept), is_commit, done)
    yield Rule("the rename of the folder is durable before it is emptied", done, synced(spool), removed_from(staging))


def replaced(folder: str, name: str, before: Match) -> Iterator[Rule]:
    """A replaced file is durable before the rename, and the rename before what follows."""
    hidden = f"{folder}/.{name}."
    yield Rule(
        f"{name} is durable before it has its name",
        written(folder, name),
        synced_like(hidden),
        moved_to(f"{folder}/{name}"),
    )
    yield Rule(f"the name of {name} is durable", moved_to(f"{folder}/{name}"), synced(folder), before)


def made(path: str) -> Match:
    return lambda e: e.name in ("open", "openat") and e.path == path and "O_CREAT" in e.arguments


def written(folder: str, name: str) -> Match:
    """The hidden file is made that will replace `name`."""
    return lambda e: (
        e.name in ("open", "openat") and e.path.startswith(f"{folder}/.{name}.") and "O_CREAT" in e.arguments
    )


def synced(path: str) -> Match:
    return lambda e: e.is_sync and e.path == path


def synced_like(begin: str, end: str = "") -> Match:
    return lambda e: e.is_sync and e.path.startswith(begin) and e.path.endswith(end)


def moved(source: str, target: str) -> Match:
    return lambda e: e.moves(source, target)


def moved_to(target: str) -> Match:
    return lambda e: e.name.startswith("rename") and e.paths[1:] == (target,)


def moved_from(source: str) -> Match:
    return lambda e: e.name.startswith("rename") and e.paths[:1] == (source,)


def taken_from(folder: str) -> Match:
    """A name is moved out of that folder, to be removed."""
    return lambda e: e.name.startswith("rename") and str(Path(e.path).parent) == folder


def removed_from(folder: str) -> Match:
    return lambda e: e.name in ("unlink", "unlinkat") and str(Path(e.path).parent) == folder


def violations(record: Record, events: Sequence[Event]) -> list[str]:
    """Every rule that these events break."""
    found = [f"not true: {rule.text}" for rule in rules_of(record) if not _holds(rule, events)]
    return [*found, *_commits_without_sync(events)]


def _holds(rule: Rule, events: Sequence[Event]) -> bool:
    first = next((e for e in events if rule.after(e)), None)
    if first is None:
        return False

    def meets(match: Match, event: Event) -> bool:
        return match(event) and (match is not is_commit or event.thread == first.thread)

    end = next((e for e in events if e.begin > first.end and meets(rule.before, e)), None)
    if end is None:
        return False
    start = [e for e in events if rule.after(e) and e.end < end.begin][-1]
    return any(meets(rule.need, e) and e.begin > start.end and e.end < end.begin for e in events)


def _commits_without_sync(events: Sequence[Event]) -> list[str]:
    """Transactions whose last frame was not made durable by their own thread before the next commit."""
    commits = [e for e in events if is_commit(e)]
    nexts = [*(e.begin for e in commits[1:]), events[-1].end + 1]
    return [
        f"the commit in line {commit.begin} is not durable"
        for commit, until in zip(commits, nexts, strict=True)
        if not any(
            e.is_sync and e.path == commit.path and e.thread == commit.thread and commit.end < e.begin and e.end < until
            for e in events
        )
    ]


# -- the tests ---------------------------------------------------------------------------------------------------------


def test_every_step_of_a_job_is_durable_before_the_next_one(record: Record) -> None:
    found = violations(record, record.events)
    assert found == [], "\n".join(found)


def test_without_any_one_of_its_fsyncs_a_rule_is_broken(record: Record) -> None:
    syncs = [e for e in record.events if e.is_sync and _is_of_a_job(e, record)]
    assert len(syncs) > 40
    unnoticed = [str(s) for s in syncs if not violations(record, [e for e in record.events if e is not s])]
    assert unnoticed == []


def _is_of_a_job(sync: Event, record: Record) -> bool:
    """Not an fsync of the daemon's own records or of SQLite's housekeeping, which run at the same time.

    Of the ledger's, those at the end of a transaction count.
    """
    state = str(record.installation.path("state"))
    if not sync.path.endswith("-wal"):
        return not sync.path.startswith(state) or sync.path.startswith(f"{state}/results")
    before = [e for e in record.events if e.path == sync.path and e.begin < sync.begin and (e.is_sync or is_commit(e))]
    return bool(before) and is_commit(before[-1]) and before[-1].thread == sync.thread


def test_an_fsync_that_comes_too_late_is_not_enough(record: Record) -> None:
    """Move each fsync of a file that is renamed afterwards behind that rename."""
    late = [e for e in record.events if e.is_sync and e.path.endswith(".part") and _is_of_a_job(e, record)]
    assert len(late) >= 5
    unnoticed = [str(sync) for sync in late if not violations(record, _behind_next_rename(record.events, sync))]
    assert unnoticed == []


def _behind_next_rename(events: Sequence[Event], sync: Event) -> list[Event]:
    rename = next(e for e in events if e.begin > sync.end and e.name.startswith("rename") and e.path == sync.path)
    return [replace(sync, begin=rename.begin, end=rename.end) if e is sync else e for e in events]
