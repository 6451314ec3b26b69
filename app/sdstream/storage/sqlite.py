"""SQLite in the data folder, which a lock file reserves for one server."""

from __future__ import annotations

import fcntl
import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Final, TextIO

from sdstream.storage.migrations import MIGRATIONS
from sdstream.storage.ports import Change, ImageStore, Row, StoreError, StoreInUse
from sdstream.storage.privacy import close_folder, make_file, sealed, secret_of
from sdstream.storage.statements import SQLITE

#: Longest wait of a write for another process's lock; then the write fails.
_PATIENCE_MS: Final = 2000
#: The same while writes fail: clients should not wait for a known error.
_IMPATIENCE_MS: Final = 100

#: SQLITE_CORRUPT and SQLITE_NOTADB.
_DAMAGED: Final = (11, 26)
#: SQLITE_FULL, and SQLITE_IOERR, which a full disk may also cause.
_FULL: Final = (13, 10)
#: SQLITE_CONSTRAINT and SQLITE_MISMATCH; a retry would fail again.
_HOPELESS: Final = (19, 20)

_REMEDY: Final = "restore the data folder from a backup, or move it away to start without its jobs"


class SqliteDatabase:
    """A Database in ``jobs.sqlite`` of a folder.

    Args:
        folder: Created if it does not exist.
    """

    statements = SQLITE
    errors: tuple[type[Exception], ...] = (sqlite3.Error,)
    takeover = False
    lost: str | None = None

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "jobs.sqlite"
        self._inode = 0
        self._held = ExitStack()
        self._db: sqlite3.Connection

    def open(self, images: ImageStore) -> bytes:
        """Lock the folder and open its database; see ports.Database."""
        try:
            close_folder(self._folder, "jobs.sqlite*", "lock", "secret")
            with ExitStack() as opening:
                opening.enter_context(_locked(self._folder / "lock"))
                db = opening.enter_context(closing(_open_database(self._path, images)))
                secret = secret_of(self._folder)
                _migrate(db, secret)
                self._db, self._inode = db, self._path.stat().st_ino
                self.touch()  # a locked or read-only database must fail now, not at the first job
                self.hurry(hurried=False)
                self._held = opening.pop_all()
        except (OSError, ValueError, sqlite3.Error) as error:
            raise StoreError(f"the data folder {self._folder} cannot be used: {error}") from None
        return secret

    def close(self) -> None:
        """Close the database and unlock the folder."""
        self._held.close()

    def rows(self, statement: str, values: Mapping[str, object] = {}) -> Sequence[Row]:
        """Return the rows that a statement selects."""
        return [dict(row) for row in self._db.execute(statement, dict(values))]

    def change(self, *changes: Change) -> None:
        """Run statements in one transaction."""
        with self._db:
            for statement, values in changes:
                self._db.execute(statement, dict(values))

    def check(self) -> None:
        """Raise OSError if the database's file was deleted or replaced."""
        if self._path.stat().st_ino != self._inode:
            raise FileNotFoundError(f"{self._path} was replaced by another file")

    def touch(self) -> None:
        """Write the stored version again: a complete transaction without any effect."""
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        self._db.execute(f"PRAGMA user_version = {version}")

    def hurry(self, *, hurried: bool) -> None:
        """Set how long a write waits for another process's lock."""
        patience = _IMPATIENCE_MS if hurried else _PATIENCE_MS
        self._db.execute(f"PRAGMA busy_timeout = {patience}")

    def is_hopeless(self, error: Exception) -> bool:
        """Return whether a write that failed will fail again."""
        return _code(error) in _HOPELESS

    def is_full(self, error: Exception) -> bool:
        """Return whether a write failed because the disk is full."""
        return _code(error) in _FULL

    def free_bytes(self) -> float:
        """Return the free space of the folder's disk."""
        return shutil.disk_usage(self._folder).free


def _locked(path: Path) -> TextIO:
    """Lock the lock file of a folder and return it; raises StoreInUse if another process has it."""
    make_file(path)
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise StoreInUse(
            f"the data folder {path.parent} is in use by another server; "
            "give this server another one with --data-dir"
        ) from None
    return file


def _open_database(path: Path, images: ImageStore) -> sqlite3.Connection:
    """Open the database of a data folder; create it if it does not exist.

    Args:
        path: Path of the database.
        images: The image store with the files that the rows name.

    Raises:
        StoreError: The database is damaged, or it is empty and the image store is not.
        OSError, sqlite3.Error: The database cannot be opened.
    """
    if path.is_file() and not path.stat().st_size and not images.is_empty():
        # A start deletes all files that no row names: without rows, all of them.
        raise StoreError(f"{path} is empty but the image store is not; {_REMEDY}")
    make_file(path)
    # One thread opens the connection, then only the store's thread uses it.
    db = sqlite3.connect(path, check_same_thread=False)
    db.row_factory = sqlite3.Row
    # A damaged text must not make a query fail that also selects other rows.
    db.text_factory = partial(str, encoding="utf-8", errors="replace")
    try:
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        verdict = str(error) if _code(error) in _DAMAGED else "ok"
    if verdict != "ok":
        db.close()
        found = " ".join(verdict.split())
        raise StoreError(f"the database {path} is damaged ({found}); {_REMEDY}")
    return db


def _migrate(db: sqlite3.Connection, secret: bytes) -> None:
    """Migrate a database to the newest version.

    Args:
        db: A database that this program wrote, or an empty one.
        secret: Secret from which the owners of jobs are derived.

    Raises:
        StoreError: A newer release or another program wrote the database.
    """
    db.create_function("sealed", 1, partial(sealed, secret), deterministic=True)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA foreign_keys = ON")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise StoreError("the data folder was written by a newer release of this program")
    for number, step in enumerate(MIGRATIONS[version:], start=version + 1):
        # Set the version in the same transaction: a crash leaves the database as it was before.
        db.executescript(f"BEGIN; {step.sqlite} PRAGMA user_version = {number}; COMMIT;")
    _check_columns(db)


def _check_columns(db: sqlite3.Connection) -> None:
    """Raise StoreError if a table or a column of the newest version is missing."""
    with closing(sqlite3.connect(":memory:")) as fresh:
        fresh.create_function("sealed", 1, str)
        fresh.executescript("".join(step.sqlite for step in MIGRATIONS))
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


def _code(error: Exception) -> int:
    """Return SQLite's primary result code, 0 for other errors."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF if isinstance(error, sqlite3.Error) else 0
