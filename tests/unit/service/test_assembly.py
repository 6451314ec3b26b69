"""The tasks that a running service has, and how they end."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import NoReturn

import pytest

from sdstream.core.errors import Reason, Unavailable
from sdstream.service import assembly
from sdstream.service.webhooks import Webhooks
from sdstream.settings import Settings
from sdstream.storage.job_store import JobStore


def test_faults_of_background_tasks_do_not_keep_the_store_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tidying goes on after a fault, and the folder is closed whatever a task ended by."""
    looks: list[str] = []
    closed: list[bool] = []
    close = JobStore.close

    async def expire(_store: JobStore) -> NoReturn:
        looks.append("expire")
        raise sqlite3.OperationalError("disk I/O error")

    async def run(_webhooks: Webhooks) -> NoReturn:
        raise ValueError("a fault")

    async def noted_close(store: JobStore) -> None:
        await close(store)
        closed.append(True)

    monkeypatch.setattr(assembly, "_TIDY_SECONDS", 0.01)
    monkeypatch.setattr(JobStore, "expire", expire)
    monkeypatch.setattr(JobStore, "close", noted_close)
    monkeypatch.setattr(Webhooks, "run", run)
    parts = assembly.assemble(Settings(data_dir=tmp_path, cache_dir=tmp_path, engine="fake"))

    async def live() -> None:
        async with parts.running(), asyncio.timeout(20):
            while len(looks) < 3:
                await asyncio.sleep(0.01)

    asyncio.run(live())
    assert closed == [True]


def test_a_database_that_is_locked_delays_tidying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has a sentence and no traceback."""
    looks: list[str] = []

    async def expire(_store: JobStore) -> NoReturn:
        looks.append("expire")
        raise Unavailable("The database is locked.", reason=Reason.STORAGE_UNAVAILABLE)

    monkeypatch.setattr(assembly, "_TIDY_SECONDS", 0.01)
    monkeypatch.setattr(JobStore, "expire", expire)
    parts = assembly.assemble(Settings(data_dir=tmp_path, cache_dir=tmp_path, engine="fake"))

    async def live() -> None:
        async with parts.running(), asyncio.timeout(20):
            while len(looks) < 2:
                await asyncio.sleep(0.01)

    asyncio.run(live())
    told = [record for record in caplog.records if "expired jobs" in record.message]
    assert told[0].message == "expired jobs could not be deleted: The database is locked."
    assert not any(record.exc_info for record in told)
