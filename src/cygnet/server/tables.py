"""The job file's tables: made whole, checked when it is opened, and brought up from earlier versions."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from cygnet.errors import CygnetError
from cygnet.media.files import sync

VERSION = 2
"""Of the tables below. An earlier file is brought up to it, and kept as it was beside; a later one is refused."""

TABLES = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE jobs (
  id TEXT PRIMARY KEY,
  place REAL NOT NULL,            -- lower runs first
  sequence INTEGER NOT NULL,      -- order of submission
  state TEXT NOT NULL,
  body TEXT NOT NULL,             -- prompt, outputs, extra and client as JSON
  digest TEXT NOT NULL,           -- of the submission, to tell a repeated one from another
  workflow_id TEXT,
  attempts INTEGER NOT NULL DEFAULT 0,
  fence INTEGER NOT NULL DEFAULT 0,
  created_ms INTEGER NOT NULL,
  started_ms INTEGER,
  ended_ms INTEGER,
  result TEXT,                    -- outputs, messages and error as JSON, once it has ended
  ended INTEGER                   -- order of endings, which no clock disturbs
) STRICT;
CREATE INDEX jobs_by_place ON jobs (state, place, sequence);
CREATE INDEX jobs_by_end ON jobs (ended);
"""
STEPS = {
    1: """
ALTER TABLE jobs ADD COLUMN ended INTEGER;
UPDATE jobs SET ended = (SELECT COUNT(*) FROM jobs AS it WHERE it.ended_ms IS NOT NULL
  AND (it.ended_ms, it.sequence) <= (jobs.ended_ms, jobs.sequence)) WHERE ended_ms IS NOT NULL;
DROP INDEX jobs_by_time;
CREATE INDEX jobs_by_end ON jobs (ended);
""",
}
"""What makes a file of each earlier version one of the next."""


class StoreError(CygnetError):
    """The job file cannot be used."""

    code = "store_unusable"


def create(path: Path) -> None:
    """The file with its tables, whole or not at all: an empty one under its name is damage, not a beginning."""
    beside = path.with_name(f"{path.name}.new")
    beside.unlink(missing_ok=True)
    with closing(sqlite3.connect(beside, isolation_level=None)) as db:
        db.executescript(f"BEGIN; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
    sync(beside)
    os.replace(beside, path)
    sync(path.absolute().parent)


def check(db: sqlite3.Connection, name: str) -> None:
    """Raises sqlite3.DatabaseError for a damaged file, :class:`StoreError` for one of a version that is not known."""
    (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)
    if version != VERSION and version not in STEPS:
        db.close()
        later = "a later" if version > VERSION else "an unknown"
        raise StoreError(
            f"the job file {name} was written by {later} version of cygnet (format {version}, this one reads "
            f"{VERSION}); it was left as it is. Install that version, or move the file away"
        )


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Bring an earlier file up to this version, whole or not at all; a copy of it as it was stays beside it."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version == VERSION:
        return
    kept = path.with_name(f"{path.name}.format-{version}")
    beside = kept.with_name(f"{kept.name}.new")
    beside.unlink(missing_ok=True)
    db.execute("VACUUM INTO ?", (str(beside),))
    sync(beside)
    os.replace(beside, kept)
    db.executescript(f"BEGIN IMMEDIATE; {STEPS[version]} PRAGMA user_version = {version + 1}; COMMIT;")
    migrate(db, path)
