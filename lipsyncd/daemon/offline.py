"""Commands that change jobs or folders while no daemon runs: under the same lock, by the same code."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from lipsyncd.daemon.commands import carry_out
from lipsyncd.daemon.housekeeping import Housekeeper
from lipsyncd.daemon.recovery import open_ledger
from lipsyncd.errors import NoDaemon, NotAllowed
from lipsyncd.results.finish import Finisher
from lipsyncd.results.retention import Count
from lipsyncd.results.stores import Stores, stores_of
from lipsyncd.settings import CurrentSettings, Settings
from lipsyncd.storage import control_files
from lipsyncd.storage.folders import folders_of
from lipsyncd.storage.locks import InstanceLock


@contextmanager
def alone(settings: Settings, command: str) -> Iterator[tuple[Stores, Finisher]]:
    """Hold the lock and the ledger for a command while no daemon runs.

    Raises `AnotherDaemonRuns` when one has just started, `NoDaemon` when none ever ran here, `NotAllowed` for a user
    who may send requests to a daemon but not run one.
    """
    folders = folders_of(settings.paths)
    ledger_file = folders.state / "ledger.db"
    if not ledger_file.exists():
        raise NoDaemon(f"there is no ledger {ledger_file} yet")
    if not os.access(ledger_file, os.W_OK):
        raise NotAllowed(
            f"no daemon runs, and {ledger_file} is not yours to write",
            remedy=f"start the daemon, or do this as its user: sudo -u {ledger_file.owner()} lipsyncd …",
        )
    lock = InstanceLock(folders.state)
    lock.acquire(command=f"lipsyncd {command}")
    try:
        with closing(open_ledger(ledger_file)) as ledger:
            stores = stores_of(CurrentSettings(settings), folders, ledger)
            yield stores, Finisher(stores)
    finally:
        lock.release()


def act_alone(settings: Settings, requests: Sequence[control_files.Request]) -> list[control_files.Answer]:
    """Carry out requests while no daemon runs. Raises what `alone` does."""
    with alone(settings, requests[0].action) as (stores, finisher):
        return [carry_out(request, stores, finisher) for request in requests]


def prune_alone(settings: Settings) -> list[Count]:
    """`lipsyncd prune` while no daemon runs. Raises what `alone` does."""
    with alone(settings, control_files.PRUNE) as (stores, finisher):
        return Housekeeper(stores, finisher).prune()
