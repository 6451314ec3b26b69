"""The database's tables: locking a folder, opening its database, and bringing it up to date."""

from __future__ import annotations

import fcntl
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final, TextIO

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


#: SQLITE_CORRUPT and SQLITE_NOTADB.
_DAMAGED: Final = (11, 26)

_REMEDY: Final = "restore the data folder from a backup, or move it away to start without its jobs"


class StoreError(ConfigurationError):
    """The data folder cannot be used; the message says why."""


def locked(path: Path) -> TextIO:
    """The open lock file of a folder; raises StoreError when another process has it."""
    make_file(path)
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise StoreError(
            f"the data folder {path.parent} is in use by another server; "
            "give this one its own with --data-dir"
        ) from None
    return file


def open_database(path: Path, images: Path) -> sqlite3.Connection:
    """Open the database of a data folder, or make it.

    Args:
        path: Of the database.
        images: The folder of finished images.

    Raises:
        StoreError: It is damaged.
        OSError, sqlite3.Error: It cannot be opened.
    """
    if path.is_file() and not path.stat().st_size and any(images.iterdir()):
        # A start without rows deletes the files that no row names.
        raise StoreError(f"{path} is empty but {images} is not; {_REMEDY}")
    make_file(path)
    # Made here and used in the store's thread, one after the other.
    db = sqlite3.connect(path, check_same_thread=False)
    db.row_factory = sqlite3.Row
    # One damaged text must not make a query fail that finds other rows too.
    db.text_factory = partial(str, encoding="utf-8", errors="replace")
    try:
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        verdict = str(error) if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED else "ok"
    if verdict != "ok":
        db.close()
        found = " ".join(verdict.split())
        raise StoreError(f"the database {path} is damaged ({found}); {_REMEDY}")
    return db


def migrate(db: sqlite3.Connection, secret: bytes) -> None:
    """Bring a database to the newest version.

    Args:
        db: Any that this program wrote, or an empty one.
        secret: What the owners of jobs are sealed with.

    Raises:
        StoreError: It is beyond the newest version, or another program's.
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
    _check_columns(db)


def _check_columns(db: sqlite3.Connection) -> None:
    """Raise StoreError when a table or a column of the newest version is missing."""
    with closing(sqlite3.connect(":memory:")) as fresh:
        fresh.create_function("sealed", 1, str)
        fresh.executescript("".join(MIGRATIONS))
        missing = sorted(_columns(fresh) - _columns(db))
    if missing:
        names = ", ".join(f"{table}.{column}" for table, column in missing)
        raise StoreError(f"the database lacks {names}; {_REMEDY}")


def _columns(db: sqlite3.Connection) -> set[tuple[str, str]]:
    query = (
        "SELECT tables.name, columns.name FROM sqlite_master AS tables,"
        " pragma_table_info(tables.name) AS columns WHERE tables.type = 'table'"
    )
    return {(table, column) for table, column in db.execute(query)}
