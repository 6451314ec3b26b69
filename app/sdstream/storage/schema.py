"""The database's tables: opening a database and bringing it to the newest version."""

from __future__ import annotations

import sqlite3
from functools import partial
from pathlib import Path
from typing import Final

from sdstream.core.errors import ConfigurationError
from sdstream.storage.privacy import make_file, sealed

#: Each brings the database one version further; only ever appended to.
MIGRATIONS: Final = (
    """
    CREATE TABLE jobs (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL,
        status TEXT NOT NULL,
        request TEXT NOT NULL,
        terms TEXT NOT NULL,
        idempotency_key TEXT,
        created REAL NOT NULL,
        started REAL,
        ended REAL,
        attempts INTEGER NOT NULL,
        last_event INTEGER NOT NULL,
        reason TEXT,
        message TEXT
    ) STRICT;
    CREATE UNIQUE INDEX jobs_by_key ON jobs (owner, idempotency_key)
        WHERE idempotency_key IS NOT NULL;
    CREATE INDEX jobs_by_end ON jobs (ended) WHERE ended IS NOT NULL;
    CREATE TABLE images (
        job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        id TEXT UNIQUE,
        format TEXT NOT NULL,
        seed INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        steps INTEGER NOT NULL,
        encode_seconds REAL NOT NULL,
        sample_seconds REAL NOT NULL,
        decode_seconds REAL NOT NULL,
        flagged INTEGER NOT NULL,
        PRIMARY KEY (job, number)
    ) STRICT;
    CREATE TABLE deliveries (
        id TEXT NOT NULL PRIMARY KEY,
        url TEXT NOT NULL,
        payload BLOB NOT NULL,
        attempts INTEGER NOT NULL,
        next_at REAL NOT NULL
    ) STRICT;
    """,
    "ALTER TABLE jobs ADD COLUMN has_inputs INTEGER NOT NULL DEFAULT 0;",
    # Owners were digests of API keys before.
    """
    UPDATE jobs SET owner = sealed(owner), terms = json_set(terms, '$.owner', sealed(owner))
        WHERE owner <> '';
    """,
)


class StoreError(ConfigurationError):
    """The data folder cannot be used; the message says why."""


def open_database(path: Path) -> sqlite3.Connection:
    make_file(path)
    # Made here and used in the store's thread, one after the other.
    db = sqlite3.connect(path, check_same_thread=False)
    db.row_factory = sqlite3.Row
    return db


def migrate(db: sqlite3.Connection, secret: bytes) -> None:
    """Bring a database to the newest version.

    Args:
        db: Any that this program wrote, or an empty one.
        secret: What the owners of jobs are sealed with.

    Raises:
        StoreError: It is beyond the newest version.
    """
    db.create_function("sealed", 1, partial(sealed, secret), deterministic=True)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA foreign_keys = ON")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise StoreError("the data folder was written by a newer release of this program")
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        # One transaction with its version: a crash in the middle leaves the old one.
        db.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")
