"""An inbox with a clock of its own, and the intake that takes from it into spool and ledger."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lipsyncd.inbox.accept import Accepted, Intake
from lipsyncd.inbox.pairing import Drop
from lipsyncd.inbox.scan import Inbox
from lipsyncd.inbox.settle import InboxRules
from lipsyncd.jobs.job import AUDIO, IMAGE, MANIFEST, Identity, Job, JobSpec
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.settings import CurrentSettings, Paths, Settings, Watch
from lipsyncd.storage import leases
from lipsyncd.storage.private_folder import HIDDEN
from lipsyncd.storage.spool import Spool
from tests.kits.core_kit import Clock
from tests.kits.installation import picture, put, sound
from tests.kits.shared_kit import shared_folder

RULES = InboxRules(
    settle_s=1.0,
    settle_proven_s=0.2,
    settle_network_s=5.0,
    incomplete_timeout_s=60.0,
    pair_timeout_s=86_400.0,
    incomplete_network_s=1800.0,
    max_bytes={IMAGE: 64_000_000, AUDIO: 512_000_000, MANIFEST: 65_536},
)
NOTHING: Mapping[bytes, Identity] = {}
GRACE_S = 60.0  # by the real clock, which goes on while a busy machine does other things


class InboxWithClock:
    """An inbox and its clock."""

    def __init__(self, root: Path, *, network: bool = False) -> None:
        leases.expect_lease_signals()
        self.root = root
        self.clock = Clock()
        self.inbox = Inbox(shared_folder(root), RULES, network=network, clock=self.clock)

    def scan(self, after_s: float = 0.0, taken: Mapping[bytes, Identity] = NOTHING) -> list[str]:
        """Names of the drops that are ready after so many seconds."""
        self.clock.wait(after_s)
        return [drop.name for drop in self.drops(taken)]

    def drops(self, taken: Mapping[bytes, Identity] = NOTHING) -> list[Drop]:
        with self.inbox.open():
            return self.inbox.ready(taken)

    @property
    def waits(self) -> dict[str, str]:
        return {w.name: w.why for w in self.inbox.waiting}

    def ready_after(self, limit_s: float) -> float:
        """Seconds until the first drop is ready, with a scan at each moment that the inbox asks for."""
        begun_s = self.clock.now_s
        while not self.scan():
            assert self.inbox.settling.next_scan_s is not None, self.waits
            assert self.inbox.settling.next_scan_s > 0
            self.clock.wait(self.inbox.settling.next_scan_s + 0.001)
            assert self.clock.now_s - begun_s <= limit_s, self.waits
        return round(self.clock.now_s - begun_s, 1)


class InboxByHand:
    """An inbox, a spool and a ledger with the intake between them. `again` makes what a restarted daemon has."""

    def __init__(self, root: Path, settings: Settings | None = None) -> None:
        leases.expect_lease_signals()
        self.root = root
        self.settings = settings or Settings(Paths(storage=root), Watch(manifest_grace_s=GRACE_S))
        self.clock = Clock()
        self.inbox_folder = root / "inbox"
        self.spool = Spool(root / "spool")
        self.spool.root.mkdir(exist_ok=True)
        self.ledger = Ledger(root / "ledger.db")
        self.inbox = Inbox(shared_folder(self.inbox_folder), RULES, network=False, clock=self.clock)
        self.intake = Intake(CurrentSettings(self.settings), self.inbox, self.spool, self.ledger)

    def again(self) -> InboxByHand:
        self.ledger.close()
        return InboxByHand(self.root, self.settings)

    def scan(self, after_s: float = 0.0) -> list[Accepted]:
        self.clock.wait(after_s)
        return self.intake.scan()

    def take(self) -> list[Accepted]:
        """Scan, wait until everything has settled, scan again."""
        return [*self.scan(), *self.scan(after_s=2.0)]

    def take_one(self) -> Job:
        [accepted] = self.take()
        return accepted.job

    def put(self, name: str | bytes, content: bytes) -> None:
        put(self.inbox_folder, name, content)

    def pair(self, stem: str = "anna", seed: int = 0) -> None:
        self.put(f"{stem}.png", picture(seed))
        self.put(f"{stem}.wav", sound(seed=seed))

    def manifest(self, name: str = "order", **fields: Any) -> None:
        self.put(f"{name}.json", json.dumps({"image": "anna.png", "audio": "anna.wav", **fields}).encode())

    def spec(self, job: Job) -> JobSpec:
        spec = self.spool.spec(job.id)
        assert spec is not None
        return spec

    @property
    def left(self) -> list[str]:
        return sorted(name for name in os.listdir(self.inbox_folder) if name != HIDDEN)


def reason(job: Job, inbox_by_hand: InboxByHand) -> str:
    refusal = inbox_by_hand.spec(job).refusal
    assert refusal is not None
    return refusal["code"]
