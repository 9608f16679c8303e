"""Shared by the crash tests: an installation with jobs that end in every way, a watched outbox, and the invariants.

The invariants: each accepted drop ends in exactly one video with its sidecar or one folder with its reason (1), each
video has the digest of its sidecar (2), no visible file changes (3), the ledger is whole (4), no unfinished file is
left anywhere (5), there are no more repeated renders than kills (6), and no visible file is ever short (7).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import lipsyncd
from lipsyncd.jobs.job import Job, JobState, new_id
from lipsyncd.storage.files import write_json
from tests.kits.installation import Installation
from tests.kits.webhook_receiver import Answer, Receiver

PACKAGE = Path(lipsyncd.__file__).parent
SETTLE_S = 90.0
_DELIVERED = ("anna", "fay", "joe", "kim")
_DAY_MS = 86_400_000

_IDA = 1  # the seed of the job whose bytes are dropped again
_numbers = itertools.count(2)


def next_number() -> int:
    """A number that was not given before: the seed of new bytes."""
    return next(_numbers)


def failpoints() -> list[str]:
    """Every failpoint that the package reaches, read from its source."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        found |= set(re.findall(r'\breach\(f?"([^"]+)"\)', path.read_text()))
    return sorted({name.replace("{suffix}", suffix) for name in found for suffix in ("mp4", "json")})


class OutboxWatcher:
    """Looks into the outbox all the time and reads each new file at once.

    greedy  takes every file as soon as it is visible

    `seen` counts how often each name appeared. `faults` lists files whose size, time or inode changed under their name,
    and files that vanished though no consumer takes them.
    """

    def __init__(self, outbox: Path, *, greedy: bool) -> None:
        self.seen: Counter[str] = Counter()
        self.content: dict[str, bytes] = {}
        self.faults: list[str] = []
        self._outbox = outbox
        self._greedy = greedy
        self._known: dict[str, tuple[int, int, int]] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> OutboxWatcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(0.005):
            self._look_once()
        self._look_once()  # on a busy machine much may have appeared since

    def _look_once(self) -> None:
        with os.scandir(self._outbox) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".")]
        for name in names:
            self._see(name)
        for name in self._known.keys() - set(names):
            if not self._greedy:
                self.faults.append(f"{name} has vanished")
            del self._known[name]

    def _see(self, name: str) -> None:
        path = self._outbox / name
        stat = path.stat()
        identity = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        known = self._known.get(name)
        if known == identity:
            return
        if known is not None:
            self.faults.append(f"{name} has changed from {known} to {identity}")
        self._known[name] = identity
        self.content[name] = path.read_bytes()
        self.seen[name] += 1
        if self._greedy:
            path.unlink()
            del self._known[name]


class CrashScenario:
    """One installation whose daemons are killed, with jobs that end in seven ways.

    anna   a pair with a manifest and a webhook: delivered
    bert   a manifest with a path out of the inbox: fails, with a reason
    fay    failed for a reason that no longer holds, and is retried: delivered
    gus    was delivered, and is deleted
    hal    waits, and is cancelled
    joe    the same bytes as ida, which was delivered: gets that video without a render
    kim    was delivered and taken, and is published again: delivered once more
    """

    def __init__(self, installation: Installation, *, greedy: bool) -> None:
        self.installation = installation
        self.kills = 0
        self.receiver = Receiver("127.0.0.1", [Answer()])
        installation.changes.setdefault("web", {})["webhook_allow"] = [f"127.0.0.1:{self.receiver.port}"]
        self.watcher = OutboxWatcher(installation.path("outbox"), greedy=greedy)

    def __enter__(self) -> CrashScenario:
        self.watcher.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.watcher.__exit__()
        if self.installation.daemon is not None:
            self.installation.daemon.kill()
            self.installation.daemon.wait(10)
        self.receiver.close()

    @property
    def storage(self) -> Path:
        return self.installation.root / "storage"

    # -- what is done --------------------------------------------------------------------------------------------------

    def drop(self) -> None:
        """Drop new jobs, and request actions on those that exist."""
        installation = self.installation
        installation.drop_manifest("anna", image="anna.png", audio="anna.wav", webhook=self.receiver.url)
        installation.drop_pair("anna", seed=next_number())
        installation.drop_pair("joe", seed=_IDA)
        installation.drop_manifest("bert", image="../anna.png", audio="anna.wav", user_data=str(next_number()))
        for action, name in (("retry", "fay"), ("delete", "gus"), ("cancel", "hal"), ("republish", "kim")):
            job = installation.job(name)
            assert job is not None
            request = {"action": action, "job_id": job.id, "value": 0}
            write_json(installation.folders.control / f"{new_id()}.json", request, mode=0o660)

    def crash_at(self, name: str) -> bool:
        """Let a daemon work until it dies at the failpoint, or has nothing left to do; did it die?"""
        daemon = self.installation.start(wait=False, TEST_FACE_IN_VIEW="yes", LIPSYNCD_FAIL=name)
        self.until(lambda: daemon.poll() is not None or self.is_settled(), f"the crash at {name}")
        if daemon.poll() is None:
            time.sleep(0.05)  # the last failpoints are reached a moment after a job has ended
            daemon.send_signal(signal.SIGTERM)
        died = daemon.wait(SETTLE_S) == -signal.SIGKILL
        self.installation.daemon = None
        self.kills += died
        return died

    def finish(self) -> None:
        """Let a daemon do all that is left, and stop it."""
        daemon = self.installation.start(TEST_FACE_IN_VIEW="yes")
        self.until(lambda: daemon.poll() is not None or self.is_settled(), "the end of all work")
        daemon.send_signal(signal.SIGTERM)
        status = daemon.wait(SETTLE_S)
        self.installation.daemon = None
        assert status == 0, f"the daemon ended with {status}\n{self.log}"

    def is_settled(self) -> bool:
        """Has every job ended, with its folder removed and its webhook delivered?"""
        installation = self.installation
        if visible(installation.path("inbox")) or any(installation.path("spool").iterdir()) or _requests(installation):
            return False
        try:
            jobs = installation.view.jobs(limit=100)
        except sqlite3.OperationalError:
            return False  # it is being rebuilt
        return len(jobs) >= 7 and all(job.state.ended for job in jobs) and self._webhooks_are_delivered()

    def _webhooks_are_delivered(self) -> bool:
        with closing(sqlite3.connect(f"file:{self.installation.path('state')}/ledger.db?mode=ro", uri=True)) as ledger:
            (waiting,) = ledger.execute("SELECT count(*) FROM webhook_delivery WHERE state = 'waiting'").fetchone()
        return int(waiting) == 0

    @property
    def log(self) -> str:
        return self.installation.log

    def until(self, done: Callable[[], Any], what: str, *, seconds: float = SETTLE_S) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, f"{what} did not come within {seconds} s\n{self._story()}"
            time.sleep(0.03)

    def _story(self) -> str:
        left = sorted(str(p.relative_to(self.storage)) for p in self.storage.rglob("*") if p.is_file())
        return "\n".join([*left, self.log[-6000:]])

    def clear(self) -> None:
        """Remove the files of a case that has passed: thousands of them would fill the disk."""
        shutil.rmtree(self.installation.root)

    # -- invariants ------------------------------------------------------------------------------------------------

    def check(self) -> list[str]:
        """Every invariant that does not hold, in words. No daemon may run."""
        faults = [
            *self.watcher.faults,
            *leftovers(self.storage),
            *damage(self.installation.path("state") / "ledger.db"),
        ]
        faults += self._ends()
        faults += deliveries(self.watcher, [job for name in _DELIVERED if (job := self.installation.job(name))])
        faults += self._folders()
        faults += self._webhooks()
        if self.installation.renders > 2 + self.kills:
            faults.append(f"{self.installation.renders} renders of 2 jobs with {self.kills} kills")
        if "Traceback" in self.log:
            faults.append("the daemon has logged a failure that it did not expect")
        return faults

    def _ends(self) -> list[str]:
        done = dict.fromkeys(("anna", "fay", "ida", "joe", "kim"), "done")
        wanted = {**done, "bert": "failed", "hal": "cancelled"}
        jobs = self.installation.view.jobs(limit=100)
        found = Counter((job.name, job.state.value) for job in jobs)
        linked = {job.name: job.duplicate_of for job in jobs if job.duplicate_of}
        faults = [] if found == Counter(wanted.items()) else [f"jobs ended as {dict(found)}"]
        ids = [job.id for job in jobs if job.name == "ida"]
        return faults if linked == dict(zip(["joe"], ids, strict=True)) else [*faults, f"linked jobs: {linked}"]

    def _folders(self) -> list[str]:
        faults = []
        failed = [json.loads((p / "job.json").read_text())["name"] for p in visible(self.installation.path("failed"))]
        if failed != ["bert"]:
            faults.append(f"failed/ holds {failed}")
        archived = Counter(
            json.loads(path.read_text())["name"] for path in self.installation.path("archive").glob("*/*/job.json")
        )
        if archived != Counter(["anna", "fay", "gus", "hal", "ida", "joe", "kim"]):
            faults.append(f"the archive holds {dict(archived)}")
        results = {path.name for path in (self.installation.path("state") / "results").iterdir()}
        done = [job for job in self.installation.view.jobs(limit=100) if job.state is JobState.DONE]
        if results != {f"{job.id}.{suffix}" for job in done for suffix in ("mp4", "json")}:
            faults.append(f"state/results holds {sorted(results)} for {[job.id for job in done]}")
        faults += [
            f"the kept video of {job.name} is another one"
            for job in done
            if _sha256(self.installation.path("state") / "results" / f"{job.id}.mp4") != job.out_sha256
        ]
        return faults

    def _webhooks(self) -> list[str]:
        received = Counter(hit.headers["webhook-id"] for hit in self.receiver.hits)
        if len(received) != 1 or received.total() > 1 + self.kills:
            return [f"the receiver got {dict(received)} with {self.kills} kills"]
        return []


def deliveries(watcher: OutboxWatcher, jobs: Sequence[Job]) -> list[str]:
    """Faults in the deliveries of these finished jobs: not once each, or not the recorded bytes."""
    wanted = Counter(f"{job.out_name}.{suffix}" for job in jobs for suffix in ("mp4", "json"))
    if watcher.seen != wanted:
        lost, twice = wanted - watcher.seen, watcher.seen - wanted
        return [f"delivered too seldom: {dict(lost)}, too often: {dict(twice)}"]
    faults = []
    for job in jobs:
        sidecar = json.loads(watcher.content[f"{job.out_name}.json"])
        found = hashlib.sha256(watcher.content[f"{job.out_name}.mp4"]).hexdigest()
        if not found == sidecar["sha256"] == job.out_sha256 or sidecar["id"] != job.id:
            faults.append(f"{job.out_name}.mp4 is {found[:12]}, its sidecar says {sidecar['sha256'][:12]}")
    return faults


def leftovers(storage: Path) -> list[str]:
    """Unfinished files anywhere in an installation whose daemon has stopped."""
    begins, ends = (".tmp-", "gone-", ".lipsyncd-"), (".part", ".keep")
    torn = [p for p in storage.rglob("*") if p.name.endswith(ends) or p.name.startswith(begins)]
    return [f"left behind: {path.relative_to(storage)}" for path in torn]


def damage(ledger: Path) -> list[str]:
    with closing(sqlite3.connect(ledger)) as connection:
        (found,) = connection.execute("PRAGMA integrity_check").fetchone()
    return [] if found == "ok" else [f"the ledger: {found}"]


# -- the installation that every case begins with ----------------------------------------------------------------------


def make_template(root: Path) -> Installation:
    """An installation in which fay has failed, gus, ida and kim were delivered, and hal waits."""
    installation = Installation(root)
    installation.start()
    installation.drop_manifest("fay", image="fay.png", audio="fay.wav", renderer="shy")
    installation.drop_pair("fay", seed=next_number())
    installation.until_failed("fay")
    for name in ("gus", "kim"):
        installation.drop_pair(name, seed=next_number())
        installation.until_done(name)
    installation.drop_pair("ida", seed=_IDA)
    installation.until_done("ida")
    installation.drop_manifest("hal", image="hal.png", audio="hal.wav", renderer="missing")
    installation.drop_pair("hal", seed=next_number())
    installation.until(
        lambda: (job := installation.job("hal")) and job.reason_code == "renderer-not-installed", "the waiting job"
    )
    installation.until(lambda: not visible(installation.path("inbox")), "an empty inbox")
    assert installation.stop() == 0
    with closing(sqlite3.connect(installation.path("state") / "ledger.db")) as ledger:
        ledger.execute("UPDATE job SET not_before_ms = not_before_ms + ? WHERE state = 'queued'", (_DAY_MS,))
        ledger.commit()
    for path in visible(installation.path("outbox")):
        path.unlink()
    (root / "renders").unlink()
    return installation


def copied(template: Installation, root: Path) -> Installation:
    """A copy of the installation for one case, with the ledger's paths changed."""
    shutil.copytree(template.root / "storage", root / "storage")
    installation = Installation(root)
    with closing(sqlite3.connect(installation.path("state") / "ledger.db")) as ledger:
        ledger.execute("UPDATE job SET kept = replace(kept, ?, ?)", (str(template.root), str(root)))
        ledger.commit()
    return installation


def visible(folder: Path) -> list[Path]:
    """The visible entries of a folder."""
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _requests(installation: Installation) -> list[Path]:
    return list((installation.path("state") / "control").glob("*.json"))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
