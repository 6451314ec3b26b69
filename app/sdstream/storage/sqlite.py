"""SQLite in the data folder, which a lock file keeps for one server."""

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

#: A write waits so long for another process' lock before it counts as failed.
_PATIENCE_MS: Final = 2000
#: The same while writes fail anyway: a known fault keeps no client waiting.
_IMPATIENCE_MS: Final = 100

#: SQLITE_CORRUPT and SQLITE_NOTADB.
_DAMAGED: Final = (11, 26)
#: SQLITE_FULL, and SQLITE_IOERR, which is how a full disk may show too.
_FULL: Final = (13, 10)
#: SQLITE_CONSTRAINT and SQLITE_MISMATCH, which no repetition mends.
_HOPELESS: Final = (19, 20)

_REMEDY: Final = "restore the data folder from a backup, or move it away to start without its jobs"


class SqliteDatabase:
    """A Database in ``jobs.sqlite`` of a folder.

    Args:
        folder: Made when it does not exist.
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
        """Lock the folder and open its database; see the port."""
        try:
            close_folder(self._folder, "jobs.sqlite*", "lock", "secret")
            with ExitStack() as opening:
                opening.enter_context(_locked(self._folder / "lock"))
                db = opening.enter_context(closing(_open_database(self._path, images)))
                secret = secret_of(self._folder)
                _migrate(db, secret)
                self._db, self._inode = db, self._path.stat().st_ino
                self.touch()  # one that is locked or read-only would fail with the first job
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
        """Raise OSError when another file, or none, is where the database was opened."""
        if self._path.stat().st_ino != self._inode:
            raise FileNotFoundError(f"{self._path} is another file now")

    def touch(self) -> None:
        """Write the version that is there already: a whole transaction without any effect."""
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        self._db.execute(f"PRAGMA user_version = {version}")

    def hurry(self, *, hurried: bool) -> None:
        """Choose how long a write waits for another process's lock."""
        patience = _IMPATIENCE_MS if hurried else _PATIENCE_MS
        self._db.execute(f"PRAGMA busy_timeout = {patience}")

    def is_hopeless(self, error: Exception) -> bool:
        """Return whether a write that failed will fail again."""
        return _code(error) in _HOPELESS

    def is_full(self, error: Exception) -> bool:
        """Return whether a write failed because the disk has no room."""
        return _code(error) in _FULL

    def free_bytes(self) -> float:
        """Return the free space of the folder's disk."""
        return shutil.disk_usage(self._folder).free


def _locked(path: Path) -> TextIO:
    """The open lock file of a folder; raises StoreInUse when another process has it."""
    make_file(path)
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise StoreInUse(
            f"the data folder {path.parent} is in use by another server; "
            "give this one its own with --data-dir"
        ) from None
    return file


def _open_database(path: Path, images: ImageStore) -> sqlite3.Connection:
    """Open the database of a data folder, or make it.

    Args:
        path: Of the database.
        images: That its rows name.

    Raises:
        StoreError: It is damaged.
        OSError, sqlite3.Error: It cannot be opened.
    """
    if path.is_file() and not path.stat().st_size and not images.is_empty():
        # A start without rows deletes the files that no row names.
        raise StoreError(f"{path} is empty but the image store is not; {_REMEDY}")
    make_file(path)
    # Made here and used in the store's thread, one after the other.
    db = sqlite3.connect(path, check_same_thread=False)
    db.row_factory = sqlite3.Row
    # One damaged text must not make a query fail that finds other rows too.
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
    for number, step in enumerate(MIGRATIONS[version:], start=version + 1):
        # One transaction with its version: a crash in the middle leaves the old one.
        db.executescript(f"BEGIN; {step.sqlite} PRAGMA user_version = {number}; COMMIT;")
    _check_columns(db)


def _check_columns(db: sqlite3.Connection) -> None:
    """Raise StoreError when a table or a column of the newest version is missing."""
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
    """SQLite's primary result code, 0 for other errors."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF if isinstance(error, sqlite3.Error) else 0
