"""The statements of the job store, in the SQL of each database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Statements:
    """Every statement that the job store runs. The defaults are SQLite's.

    Parameters have the names of their columns. ``page`` also takes the values that
    rows.filter_values returns, and the numbers ``before`` and ``limit``.
    """

    insert_job: str = (
        "INSERT INTO jobs (id, owner, status, request, terms, idempotency_key, created,"
        " attempts, last_event, has_inputs, batch, uploads, upload_bytes, model, folded_prompt)"
        " VALUES (:id, :owner, :status, :request, :terms, :idempotency_key, :created, 0, 0,"
        " :has_inputs, :batch, :uploads, :upload_bytes, :model, :folded_prompt)"
    )
    set_state: str = (
        "UPDATE jobs SET status = :status, started = :started, ended = :ended,"
        " attempts = :attempts, last_event = :last_event, reason = :reason, message = :message,"
        " request = COALESCE(:request, request) WHERE id = :id"
    )
    unname: str = "UPDATE jobs SET idempotency_key = NULL WHERE id = :id"
    delete_job: str = "DELETE FROM jobs WHERE id = :id"
    job: str = "SELECT * FROM jobs WHERE id = :id"
    job_of_key: str = (
        "SELECT * FROM jobs WHERE owner = :owner AND idempotency_key = :idempotency_key"
    )
    unfinished: str = "SELECT * FROM jobs WHERE ended IS NULL ORDER BY number"
    unfinished_ids: str = "SELECT id FROM jobs WHERE ended IS NULL"
    ends: str = (
        "SELECT id, ended FROM jobs WHERE ended IS NOT NULL AND NOT favorite ORDER BY ended, number"
    )
    mark: str = "UPDATE jobs SET favorite = :favorite WHERE id = :id"
    # Bytes of images and uploads: of all favorites plus one more job, and of one job.
    favorite_bytes: str = (
        "SELECT CAST(COALESCE(SUM(upload_bytes + (SELECT COALESCE(SUM(bytes), 0) FROM images"
        " WHERE job = jobs.id)), 0) AS BIGINT) AS bytes FROM jobs WHERE favorite OR id = :id"
    )
    job_bytes: str = (
        "SELECT CAST(upload_bytes + (SELECT COALESCE(SUM(bytes), 0) FROM images"
        " WHERE job = jobs.id) AS BIGINT) AS bytes FROM jobs WHERE id = :id"
    )
    with_uploads: str = "SELECT id FROM jobs WHERE upload_bytes > 0"
    # Rows of earlier releases, which lack the columns that searches use.
    unsearchable: str = (
        "SELECT number, id, request FROM jobs WHERE folded_prompt IS NULL AND number > :after"
        " ORDER BY number LIMIT :limit"
    )
    set_search: str = (
        "UPDATE jobs SET model = :model, folded_prompt = :folded_prompt WHERE id = :id"
    )
    page: str = """
        SELECT * FROM jobs WHERE owner = :owner AND number < :before
        AND (:statuses IS NULL OR status IN (SELECT value FROM json_each(:statuses)))
        AND (:batch IS NULL OR batch = :batch)
        AND (:favorite IS NULL OR favorite = :favorite)
        AND (:since IS NULL OR created >= :since)
        AND (:until IS NULL OR created < :until)
        AND (:model IS NULL OR model = :model)
        AND (:words IS NULL OR NOT EXISTS (
            SELECT 1 FROM json_each(:words) WHERE NOT instr(folded_prompt, value)
        ))
        ORDER BY number DESC LIMIT :limit
    """
    # A write is retried if the connection broke before the commit was confirmed.
    insert_image: str = (
        "INSERT INTO images (job, number, id, format, seed, bytes, steps, encode_seconds,"
        " sample_seconds, decode_seconds, flagged) VALUES (:job, :number, :id, :format, :seed,"
        " :bytes, :steps, :encode_seconds, :sample_seconds, :decode_seconds, :flagged)"
        " ON CONFLICT (job, number) DO NOTHING"
    )
    images: str = "SELECT * FROM images WHERE job = :job ORDER BY number"
    image: str = "SELECT id, format FROM images WHERE id = :id"
    image_files: str = "SELECT id, format, job FROM images WHERE id IS NOT NULL"
    all_bytes: str = (
        "SELECT CAST(COALESCE(SUM(bytes), 0) + (SELECT COALESCE(SUM(upload_bytes), 0) FROM jobs)"
        " AS BIGINT) AS bytes FROM images"
    )
    insert_delivery: str = (
        "INSERT INTO deliveries (id, url, payload, attempts, next_at)"
        " VALUES (:id, :url, :payload, :attempts, :next_at) ON CONFLICT (id) DO NOTHING"
    )
    deliveries: str = (
        "SELECT id, url, payload, attempts, next_at FROM deliveries ORDER BY next_at LIMIT :limit"
    )
    defer_delivery: str = (
        "UPDATE deliveries SET attempts = :attempts, next_at = :next_at WHERE id = :id"
    )
    delete_delivery: str = "DELETE FROM deliveries WHERE id = :id"


SQLITE: Final = Statements()
