"""The system's PostgreSQL for tests, with its data in a temporary folder."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg

from tests.support.programs import needed
from tests.support.servers import free_port, wait_until

_FOLDERS: Final = ("usr/lib/postgresql/*/bin", "opt/homebrew/opt/postgresql@*/bin")


@dataclass
class Postgres:
    """A PostgreSQL server on a port of the loopback interface.

    Attributes:
        folder: Folder of the server's data.
        program: Path of the server's program.
        port: Port on which the server listens.
    """

    folder: Path
    program: Path
    port: int
    _process: subprocess.Popen[bytes] | None = None
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def start(self) -> None:
        """Start the server and wait until it responds."""
        flags = ["-D", str(self.folder), "-p", str(self.port), "-k", str(self.folder)]
        flags += ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "max_connections=60"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.program, *flags], stdout=log, stderr=log, **_identity()
            )
        wait_until(self._answers, 20, (self.folder / "log").read_text()[-2000:])

    def stop(self, number: int = signal.SIGINT) -> None:
        """Stop the server: SIGINT ends all sessions, SIGQUIT simulates a crash."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(60)
            self._process = None

    @property
    def url(self) -> str:
        """The address of the default database."""
        return f"postgresql://tester@127.0.0.1:{self.port}/postgres"

    def new(self) -> str:
        """Create a schema, which takes less time and space than a database; return its address."""
        name = f"test_{next(self._numbers)}"
        self.run(self.url, f"CREATE SCHEMA {name}")
        return f"{self.url}?options=-csearch_path%3D{name}"

    def run(self, address: str, statement: str) -> list[Any]:
        """Run a statement in a separate session; return its rows."""
        with psycopg.connect(address, autocommit=True) as session:
            cursor = session.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def lock_holder(self, url: str) -> int | None:
        """Return the process id of the session that has the advisory lock of a schema."""
        rows = self.run(
            url,
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted"
            " AND objid = (hashtext(current_schema())::bigint & 4294967295)::oid",
        )
        return rows[0][0] if rows else None

    def terminate_lock(self, url: str) -> int:
        """End the session that has the lock; return its process id."""
        holder = self.lock_holder(url)
        assert holder is not None
        self.run(url, f"SELECT pg_terminate_backend({holder})")
        return holder

    def _answers(self) -> bool:
        try:
            return bool(self.run(self.url, "SELECT 1"))
        except psycopg.OperationalError:
            time.sleep(0.05)
            return False


@contextmanager
def started_postgres() -> Iterator[Postgres]:
    """Run PostgreSQL as another user than root, and delete its data at the end."""
    program = needed("postgres", "postgresql", *_FOLDERS)
    folder = Path(tempfile.mkdtemp(prefix="sdstream-postgres-"))
    identity = _identity()
    if identity:
        shutil.chown(folder, identity["user"], identity["group"])
    try:
        data = folder / "data"
        subprocess.run(
            [program.parent / "initdb", "-D", data, "-U", "tester", "-A", "trust", "--no-sync"],
            check=True,
            capture_output=True,
            **identity,
        )
        server = Postgres(data, program, free_port())
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _identity() -> dict[str, Any]:
    """The user and groups to run as, since PostgreSQL does not start as root."""
    if os.geteuid() != 0:
        return {}
    names = {entry.pw_name for entry in pwd.getpwall()}
    name = "postgres" if "postgres" in names else "nobody"
    entry = pwd.getpwnam(name)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
