"""The ledger's tables as SQL, one numbered step for each schema version.

A step is never changed after its release; a later step alters its tables. `tests/ledger/test_migrations.py` opens a
database of every older version, and `test_file.py` compares the columns with `tables.JobRow`.
"""

from __future__ import annotations

import sqlite3

from lipsyncd.jobs.job import SOURCES, JobState

APPLICATION_ID = 0x6C697073  # "lips"

_LEGAL = " OR ".join(
    f"(OLD.state='{source}' AND NEW.state='{to}')" for to, sources in SOURCES.items() for source in sources
)
_STATES = ",".join(f"'{state}'" for state in JobState)
_LIVE = "'queued','running','publishing'"

_VERSION_1 = f"""
CREATE TABLE job(
  id TEXT PRIMARY KEY CHECK(length(id)=36),
  seq INTEGER NOT NULL UNIQUE,
  name TEXT NOT NULL,
  state TEXT NOT NULL CHECK(state IN({_STATES})),
  stage TEXT NOT NULL DEFAULT '',
  fraction REAL NOT NULL DEFAULT 0 CHECK(fraction BETWEEN 0 AND 1),
  priority INTEGER NOT NULL DEFAULT 0 CHECK(priority BETWEEN -100 AND 100),
  attempt INTEGER NOT NULL DEFAULT 0,
  max_attempts INTEGER NOT NULL,
  not_before_ms INTEGER NOT NULL DEFAULT 0,
  run_token TEXT,
  device TEXT,
  prepared INTEGER NOT NULL DEFAULT 0 CHECK(prepared IN(0,1)),
  cancel_requested INTEGER NOT NULL DEFAULT 0 CHECK(cancel_requested IN(0,1)),
  renderer TEXT NOT NULL,
  stitch INTEGER NOT NULL CHECK(stitch IN(0,1)),
  resolution INTEGER NOT NULL,
  fps TEXT NOT NULL,
  out_name TEXT NOT NULL,
  out_key TEXT NOT NULL,
  out_sha256 TEXT,
  out_size INTEGER,
  staged INTEGER NOT NULL DEFAULT 0 CHECK(staged IN(0,1)),
  source_sig TEXT NOT NULL,
  idem_key TEXT,
  duplicate_of TEXT REFERENCES job(id),
  inputs_released INTEGER NOT NULL DEFAULT 0 CHECK(inputs_released IN(0,1)),
  kept TEXT,
  frames INTEGER,
  duration_ms INTEGER,
  render_ms INTEGER,
  reason_code TEXT,
  reason TEXT,
  remedy TEXT,
  user_data TEXT,
  webhook TEXT,
  accepted_ms INTEGER NOT NULL,
  started_ms INTEGER,
  finished_ms INTEGER,
  CHECK((state='running')=(run_token IS NOT NULL)),
  CHECK((state='running')=(device IS NOT NULL)),
  CHECK(state<>'publishing' OR out_sha256 IS NOT NULL),
  CHECK(staged=0 OR out_sha256 IS NOT NULL),
  CHECK(state<>'failed' OR reason_code IS NOT NULL),
  CHECK(attempt<=max_attempts)
) STRICT;
CREATE INDEX job_ready ON job(priority DESC, seq) WHERE state='queued';
CREATE INDEX job_attention ON job(state, seq) WHERE state NOT IN('queued','done');
CREATE INDEX job_idem ON job(idem_key);
CREATE UNIQUE INDEX job_one_running ON job(device) WHERE state='running';
CREATE UNIQUE INDEX job_out_live ON job(out_key) WHERE state IN({_LIVE});
CREATE UNIQUE INDEX job_source_live ON job(source_sig) WHERE inputs_released=0;
CREATE TABLE job_source(
  job_id TEXT NOT NULL REFERENCES job(id) ON DELETE CASCADE,
  role TEXT NOT NULL,
  name BLOB NOT NULL,
  sha256 TEXT NOT NULL,
  PRIMARY KEY(job_id, role)
) STRICT;
CREATE INDEX job_source_name ON job_source(name);
CREATE TABLE job_event(
  id INTEGER PRIMARY KEY,
  job_id TEXT NOT NULL REFERENCES job(id) ON DELETE CASCADE,
  at_ms INTEGER NOT NULL,
  state TEXT NOT NULL,
  note TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX job_event_job ON job_event(job_id, id);
CREATE TRIGGER job_moves BEFORE UPDATE OF state ON job WHEN OLD.state<>NEW.state AND NOT ({_LEGAL})
BEGIN SELECT RAISE(ABORT, 'illegal move'); END;
"""

# The stored fields of a REST request as JSON; NULL for every other job.
_VERSION_2 = """
ALTER TABLE job ADD COLUMN rest TEXT;
CREATE INDEX job_rest_waiting ON job(id) WHERE rest IS NOT NULL AND state='queued';
"""

# Messages to the receivers of webhooks, and the result of each delivery.
_VERSION_3 = """
CREATE TABLE webhook_delivery(
  webhook_id TEXT PRIMARY KEY,
  job_id TEXT NOT NULL REFERENCES job(id) ON DELETE CASCADE,
  url TEXT NOT NULL,
  body TEXT NOT NULL,
  state TEXT NOT NULL CHECK(state IN('waiting','delivered','gone','refused','exhausted','superseded')),
  attempt INTEGER NOT NULL DEFAULT 0,
  next_at_ms INTEGER NOT NULL,
  last_status INTEGER,
  last_error TEXT,
  made_ms INTEGER NOT NULL,
  ended_ms INTEGER,
  CHECK((state='waiting')=(ended_ms IS NULL))
) STRICT;
CREATE INDEX webhook_due ON webhook_delivery(next_at_ms) WHERE state='waiting';
CREATE INDEX webhook_job ON webhook_delivery(job_id);
"""

# The folder in the inbox that a job came from, and in the outbox that its video goes to. Output names are unique in it.
_VERSION_4 = f"""
ALTER TABLE job ADD COLUMN queue TEXT NOT NULL DEFAULT '';
DROP INDEX job_out_live;
CREATE UNIQUE INDEX job_out_live ON job(queue, out_key) WHERE state IN({_LIVE});
"""

# Whose job it is, among the clients of REST. NULL: only administrators' keys see it, as all jobs of older versions.
_VERSION_5 = """
ALTER TABLE job ADD COLUMN tenant TEXT;
CREATE INDEX job_tenant ON job(tenant, seq) WHERE tenant IS NOT NULL;
"""

# What a claim reads: without the jobs that are not prepared, of which a burst may put tens of thousands in front.
_VERSION_6 = """
CREATE INDEX job_prepared ON job(priority DESC, seq) WHERE state='queued' AND prepared=1;
"""

STEPS: tuple[str, ...] = (_VERSION_1, _VERSION_2, _VERSION_3, _VERSION_4, _VERSION_5, _VERSION_6)


def statements(script: str) -> list[str]:
    """The statements of a script, one by one; a semicolon inside a trigger does not end a statement."""
    found, pending = [], ""
    for piece in script.split(";"):
        pending += piece + ";"
        if sqlite3.complete_statement(pending):
            found.append(pending.strip())
            pending = ""
    return [s for s in found if s != ";"]
