"""PostgreSQL, for servers on several machines, of which one serves and the others stand by.

A server owns the rows while it holds an advisory lock. It writes in the same database session that
holds the lock, so a server that lost its session cannot write. Each server that takes over the rows
increments a number, the generation. A server that lost its session connects again and tries to get
the lock. If the generation is unchanged, no other server owned the rows meanwhile, and the server
continues.

Needs the extra ``postgres`` (psycopg 3); storage/choice.py imports this module when it is used.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import DiskFull
from psycopg.rows import DictRow, dict_row

from sdstream.storage.migrations import MIGRATIONS
from sdstream.storage.ports import (
    Change,
    ImageStore,
    Row,
    StoreError,
    StoreInUse,
    StoreUnreachable,
)
from sdstream.storage.privacy import SECRET_BYTES
from sdstream.storage.statements import SQLITE, Statements

logger = logging.getLogger(__name__)

#: Defaults for parameters that the address omits: a lost machine is noticed within seconds.
_CONNECTION: Final = {
    "application_name": "sdstream",
    "connect_timeout": "3",
    "keepalives_idle": "3",
    "keepalives_interval": "1",
    "keepalives_count": "3",
    "tcp_user_timeout": "5000",
    "target_session_attrs": "read-write",
}

#: The same settings for PostgreSQL, which then releases the lock of a lost or stopped server. A
#: running server sends a statement every second.
SESSION: Final = (
    "SET tcp_keepalives_idle = 3; SET tcp_keepalives_interval = 1; SET tcp_keepalives_count = 3;"
    " SET tcp_user_timeout = 5000; SET idle_session_timeout = '{seconds}s'"
)
_IDLE_SECONDS: Final = 15

#: The lock of a schema, because each schema holds one service.
_LOCK: Final = (
    "SELECT pg_backend_pid() AS process,"
    " pg_try_advisory_lock(hashtext('sdstream'), hashtext(current_schema())) AS locked"
)

_LOCK_TRIES: Final = 10
_LOCK_PAUSE_SECONDS: Final = 0.1

#: Seconds that a standby server waits after PostgreSQL was unreachable.
_COURTESY_SECONDS: Final = 2.0

_SERVICE: Final = """
    CREATE TABLE IF NOT EXISTS service (
        single BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (single),
        version INTEGER NOT NULL,
        generation BIGINT NOT NULL,
        secret BYTEA NOT NULL
    )
"""


def _own(statement: str) -> str:
    """Return a statement of SQLite with parameters in the form of psycopg."""
    return re.sub(r":(\w+)", r"%(\1)s", statement)


STATEMENTS: Final = Statements(
    **{field.name: _own(getattr(SQLITE, field.name)) for field in fields(Statements)}
    | {
        # PostgreSQL needs the type of a parameter that may be NULL.
        "page": """
            SELECT * FROM jobs WHERE owner = %(owner)s AND number < %(before)s
            AND (CAST(%(statuses)s AS jsonb) IS NULL OR status IN
                (SELECT jsonb_array_elements_text(CAST(%(statuses)s AS jsonb))))
            AND (CAST(%(batch)s AS text) IS NULL OR batch = %(batch)s)
            AND (CAST(%(favorite)s AS boolean) IS NULL OR favorite = %(favorite)s)
            AND (CAST(%(since)s AS float) IS NULL OR created >= %(since)s)
            AND (CAST(%(until)s AS float) IS NULL OR created < %(until)s)
            AND (CAST(%(model)s AS text) IS NULL OR model = %(model)s)
            AND (CAST(%(words)s AS jsonb) IS NULL OR NOT EXISTS (
                SELECT 1 FROM jsonb_array_elements_text(CAST(%(words)s AS jsonb)) AS word
                WHERE position(word IN folded_prompt) = 0
            ))
            ORDER BY number DESC LIMIT %(limit)s
        """
    }
)


class PostgresDatabase:
    """A Database in a schema of PostgreSQL 14 or newer.

    Args:
        url: ``postgresql://user@host:port/database``; libpq reads parameters that it omits from
            environment variables (PGPASSWORD, PGSSLMODE …) and files.
        idle_seconds: PostgreSQL ends a session that is idle for this long.

    Raises:
        StoreError: The URL cannot be read.
    """

    statements = STATEMENTS
    errors: tuple[type[Exception], ...] = (psycopg.Error,)
    takeover = True

    def __init__(self, url: str, *, idle_seconds: int = _IDLE_SECONDS) -> None:
        try:
            given = conninfo_to_dict(url)
        except psycopg.Error:
            # The message of psycopg may contain the password.
            raise StoreError(
                "--database is not a valid address; write postgresql://user@host:5432/database"
            ) from None
        self._address = make_conninfo("", **{**_CONNECTION, **given})
        self._name = f"{given.get('host') or 'localhost'}/{given.get('dbname') or ''}"
        self._session = SESSION.format(seconds=idle_seconds)
        self._db: psycopg.Connection[DictRow] | None = None
        self._generation = 0
        self._stands_by = False
        self.lost: str | None = None

    def open(self, images: ImageStore) -> bytes:
        """Take the lock, migrate the tables and increment the generation; see ports.Database."""
        try:
            if self._stands_by and not self._is_connected:
                # PostgreSQL was unreachable: let the server that had the lock take it again.
                self._connect()
                time.sleep(_COURTESY_SECONDS)
            if not self._lock_soon():
                # The session stays open for the next attempt.
                self._stands_by = True
                raise StoreInUse(
                    f"the database {self._name} is in use by another server; start this one with "
                    "--standby to have it take over, or give it a database of its own"
                )
            return self._take(self._connected(), images)
        except StoreInUse:
            raise
        except StoreError:
            self.close()
            raise
        except psycopg.Error as error:
            self.close()
            words = " ".join(str(error).split())
            kind = StoreUnreachable if isinstance(error, psycopg.OperationalError) else StoreError
            raise kind(f"the database {self._name} cannot be used: {words}") from None

    def close(self) -> None:
        """End the session, which releases the lock."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def rows(self, statement: str, values: Mapping[str, object] = {}) -> Sequence[Row]:
        """Return the rows that a statement selects."""
        return self._connected().execute(statement, _storable(values)).fetchall()

    def change(self, *changes: Change) -> None:
        """Run statements in one transaction."""
        db = self._connected()
        if len(changes) == 1:
            ((statement, values),) = changes
            db.execute(statement, _storable(values))
            return
        with db.transaction():
            for statement, values in changes:
                db.execute(statement, _storable(values))

    def check(self) -> None:
        """Connect and take the lock again if the session is lost.

        Raises:
            psycopg.Error: PostgreSQL cannot be reached.
            ConnectionError: Another session holds the lock, or another server took over (``lost``).
        """
        if self.lost is not None:
            raise ConnectionError(self.lost)
        if self._is_connected:
            return
        locked = self._lock()
        (service,) = self.rows("SELECT generation FROM service")
        if service["generation"] != self._generation:
            self.close()
            self.lost = (
                f"another server took over the database {self._name} while this one had no "
                "connection to it; this server exits"
            )
            raise ConnectionError(self.lost)
        if not locked:  # this server's own lost session may still hold it
            self.close()
            raise ConnectionError("another session holds the lock of the database")
        logger.warning("this server has the lock of the database again; no other server held it")

    def touch(self) -> None:
        """Write the stored version again."""
        self._connected().execute("UPDATE service SET version = version")

    def hurry(self, *, hurried: bool) -> None:
        """Do nothing: no other process locks the rows."""

    def is_hopeless(self, error: Exception) -> bool:
        """Return whether a write that failed will fail again."""
        return isinstance(error, psycopg.IntegrityError | psycopg.DataError)

    def is_full(self, error: Exception) -> bool:
        """Return whether PostgreSQL's disk has no room."""
        return isinstance(error, DiskFull)

    def free_bytes(self) -> float:
        """Return infinity: PostgreSQL itself reports a full disk as an error."""
        return float("inf")

    @property
    def _is_connected(self) -> bool:
        return self._db is not None and not self._db.closed

    def _connect(self) -> None:
        self._db = psycopg.connect(self._address, autocommit=True, row_factory=dict_row)
        self._db.execute(self._session)

    def _connected(self) -> psycopg.Connection[DictRow]:
        if self._db is None:
            raise psycopg.OperationalError("the connection is closed")
        return self._db

    def _lock_soon(self) -> bool:
        """Try the lock for a second: PostgreSQL needs a moment to end a closed session."""
        for _ in range(_LOCK_TRIES):
            if self._lock():
                return True
            time.sleep(_LOCK_PAUSE_SECONDS)
        return False

    def _lock(self) -> bool:
        """Connect if necessary and try the lock; return whether this session holds it."""
        if not self._is_connected:
            self._connect()
        db = self._connected()
        row = db.execute(_LOCK).fetchone()
        assert row is not None
        if row["process"] != db.info.backend_pid:
            self.close()
            raise StoreError(
                f"the database {self._name} is behind a connection pooler, which does not keep "
                "locks; give --database the address of PostgreSQL itself"
            )
        return bool(row["locked"])

    def _take(self, db: psycopg.Connection[DictRow], images: ImageStore) -> bytes:
        """Migrate the tables and increment the generation; return the secret."""
        with db.transaction():
            db.execute(_SERVICE)
            db.execute(
                "INSERT INTO service (version, generation, secret) VALUES (0, 0, %s)"
                " ON CONFLICT DO NOTHING",
                (secrets.token_bytes(SECRET_BYTES),),
            )
            (found,) = self.rows("SELECT version FROM service")
            if not found["version"] and not images.is_empty():
                # A start deletes all files that no row names: without rows, all of them.
                raise StoreError(
                    f"the database {self._name} is new but the image store is not empty; restore "
                    "the database, or choose another --data-dir or --images"
                )
            if found["version"] > len(MIGRATIONS):
                raise StoreError("the database was written by a newer release of this program")
            for step in MIGRATIONS[found["version"] :]:
                if step.postgres:
                    db.execute(step.postgres)
            (service,) = self.rows(
                "UPDATE service SET version = %(version)s, generation = generation + 1"
                " RETURNING generation, secret",
                {"version": len(MIGRATIONS)},
            )
        self._generation = service["generation"]
        return bytes(service["secret"])


def _storable(values: Mapping[str, object]) -> dict[str, Any]:
    """Replace NUL characters in values, because PostgreSQL cannot store them."""
    return {
        name: value.replace("\0", "\ufffd") if isinstance(value, str) else value
        for name, value in values.items()
    }
