"""The migrations of both kinds of databases; a released migration never changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Migration:
    """One step, in the SQL of each database. A database stores how many steps it has applied.

    Attributes:
        sqlite: Statements for SQLite; they may call ``sealed(digest)``, which returns the owner
            for the digest of an API key.
        postgres: Statements for PostgreSQL; empty if there is nothing to do.
    """

    sqlite: str
    postgres: str


MIGRATIONS: Final = (
    Migration(
        sqlite="""
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
        postgres="""
        CREATE TABLE jobs (
            number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            owner TEXT NOT NULL,
            status TEXT NOT NULL,
            request TEXT NOT NULL,
            terms TEXT NOT NULL,
            idempotency_key TEXT,
            created DOUBLE PRECISION NOT NULL,
            started DOUBLE PRECISION,
            ended DOUBLE PRECISION,
            attempts INTEGER NOT NULL,
            last_event BIGINT NOT NULL,
            reason TEXT,
            message TEXT
        );
        CREATE UNIQUE INDEX jobs_by_key ON jobs (owner, idempotency_key)
            WHERE idempotency_key IS NOT NULL;
        CREATE INDEX jobs_by_end ON jobs (ended) WHERE ended IS NOT NULL;
        CREATE TABLE images (
            job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
            number INTEGER NOT NULL,
            id TEXT UNIQUE,
            format TEXT NOT NULL,
            seed BIGINT NOT NULL,
            bytes BIGINT NOT NULL,
            steps INTEGER NOT NULL,
            encode_seconds DOUBLE PRECISION NOT NULL,
            sample_seconds DOUBLE PRECISION NOT NULL,
            decode_seconds DOUBLE PRECISION NOT NULL,
            flagged BOOLEAN NOT NULL,
            PRIMARY KEY (job, number)
        );
        CREATE TABLE deliveries (
            id TEXT NOT NULL PRIMARY KEY,
            url TEXT NOT NULL,
            payload BYTEA NOT NULL,
            attempts INTEGER NOT NULL,
            next_at DOUBLE PRECISION NOT NULL
        );
        """,
    ),
    Migration(
        sqlite="ALTER TABLE jobs ADD COLUMN has_inputs INTEGER NOT NULL DEFAULT 0;",
        postgres="ALTER TABLE jobs ADD COLUMN has_inputs BOOLEAN NOT NULL DEFAULT FALSE;",
    ),
    Migration(
        # Owners were digests of API keys before. PostgreSQL never stored those.
        sqlite="""
        UPDATE jobs SET owner = sealed(owner), terms = json_set(terms, '$.owner', sealed(owner))
            WHERE owner <> '';
        """,
        postgres="",
    ),
    # The column of a job's group is named batch, because GROUP is a keyword of SQL.
    Migration(
        sqlite="""
        ALTER TABLE jobs ADD COLUMN batch TEXT;
        ALTER TABLE jobs ADD COLUMN favorite INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE jobs ADD COLUMN uploads TEXT NOT NULL DEFAULT '{}';
        ALTER TABLE jobs ADD COLUMN upload_bytes INTEGER NOT NULL DEFAULT 0;
        """,
        postgres="""
        ALTER TABLE jobs ADD COLUMN batch TEXT;
        ALTER TABLE jobs ADD COLUMN favorite BOOLEAN NOT NULL DEFAULT FALSE;
        ALTER TABLE jobs ADD COLUMN uploads TEXT NOT NULL DEFAULT '{}';
        ALTER TABLE jobs ADD COLUMN upload_bytes BIGINT NOT NULL DEFAULT 0;
        """,
    ),
    # NULL until the server has filled them from the request at its start (job_rows.py): SQL cannot
    # fold case as Python does.
    Migration(
        sqlite="""
        ALTER TABLE jobs ADD COLUMN model TEXT;
        ALTER TABLE jobs ADD COLUMN folded_prompt TEXT;
        """,
        postgres="""
        ALTER TABLE jobs ADD COLUMN model TEXT;
        ALTER TABLE jobs ADD COLUMN folded_prompt TEXT;
        """,
    ),
)
