"""Opens the ledger's file: one connection, its pragmas, and the migration of its schema.

The driver's handling of transactions is switched off: it begins them late, so a read and the write after it would be
two transactions. Ours begin with `BEGIN IMMEDIATE`. Those that only read begin with `BEGIN`, which takes no write lock:
they neither wait for a writer in another process nor delay it.

Pragmas: `synchronous=FULL` in WAL mode means that committed changes survive a power cut.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.pool import StaticPool

from lipsyncd.errors import LedgerTooNew
from lipsyncd.ledger import backups
from lipsyncd.ledger.schema import APPLICATION_ID, statements

log = logging.getLogger(__name__)

_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "busy_timeout=5000",
    "foreign_keys=ON",
    "temp_store=MEMORY",
    "trusted_schema=OFF",
    "cell_size_check=ON",
)


READ_ONLY = "lipsyncd_read_only"  # execution option of a transaction that writes nothing


def open_engine(path: Path, steps: Sequence[str]) -> Engine:
    """An engine with one connection for all threads, with the schema of `steps`, one step for each version.

    Before a migration the file is copied into `backups/` beside it. Raises `LedgerTooNew` when the file has a later
    version than the last step, `BackupFailed` when it cannot be copied, DatabaseError when it is damaged.
    """
    url = URL.create("sqlite", database=str(path))  # as text, a "?" in the path would begin its options
    engine = create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False, "timeout": 5.0})
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    try:
        _migrate(engine, path, steps)
    except BaseException:
        engine.dispose()
        raise
    return engine


def _on_connect(dbapi: sqlite3.Connection, _record: object) -> None:
    dbapi.isolation_level = None
    for pragma in _PRAGMAS:
        dbapi.execute(f"PRAGMA {pragma}")


def _on_begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get(READ_ONLY) else "BEGIN IMMEDIATE")


def _migrate(engine: Engine, path: Path, steps: Sequence[str]) -> None:
    """Apply all missing steps in one transaction: if a step fails, the file is unchanged."""
    with engine.connect() as connection:
        found = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
        if found > len(steps):
            raise LedgerTooNew(f"the ledger {path} has schema {found}; this program knows up to {len(steps)}")
        if 0 < found < len(steps):
            kept = backups.make(path, path.parent / backups.FOLDER, version=found)
            log.info("ledger: kept a copy of schema %d as %s", found, kept)
        for script in steps[found:]:
            for statement in statements(script):
                connection.exec_driver_sql(statement)
        connection.exec_driver_sql(f"PRAGMA user_version={len(steps)}")
        connection.exec_driver_sql(f"PRAGMA application_id={APPLICATION_ID}")
        connection.commit()
