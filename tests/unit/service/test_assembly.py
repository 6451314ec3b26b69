"""The background tasks of a running service, and how they end."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, cast

import pytest

from sdstream.cluster.port import Cluster
from sdstream.core.errors import Reason, Unavailable
from sdstream.core.job import Job
from sdstream.service import assembly
from sdstream.service.webhooks import Webhooks
from sdstream.settings import Settings
from sdstream.storage.job_store import JobStore
from tests.support.weight_files import gguf, gguf_tensor


def tidy(folder: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception, times: int) -> None:
    """Run a service until it has tried this often to delete expired jobs and met the fault."""
    tries: list[Exception] = []

    async def expire(_store: JobStore) -> NoReturn:
        tries.append(fault)
        raise fault

    monkeypatch.setattr(assembly, "_TIDY_SECONDS", 0.01)
    monkeypatch.setattr(JobStore, "expire", expire)
    parts = assembly.assemble(Settings(data_dir=folder, cache_dir=folder, engine="fake"))

    async def live() -> None:
        async with parts.running(), asyncio.timeout(20):
            while len(tries) < times:
                await asyncio.sleep(0.01)

    asyncio.run(live())


def test_faults_of_background_tasks_do_not_keep_the_store_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expiry is retried after a fault, and the store is closed however a task ended."""
    closed: list[bool] = []
    close = JobStore.close

    async def run(_webhooks: Webhooks) -> NoReturn:
        raise ValueError("a fault")

    async def noted_close(store: JobStore) -> None:
        await close(store)
        closed.append(True)

    monkeypatch.setattr(JobStore, "close", noted_close)
    monkeypatch.setattr(Webhooks, "run", run)
    tidy(tmp_path, monkeypatch, sqlite3.OperationalError("disk I/O error"), 3)
    assert closed == [True]


def test_a_database_that_is_locked_delays_tidying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log contains one line without a traceback."""
    locked = Unavailable("The database is locked.", reason=Reason.STORAGE_UNAVAILABLE)
    tidy(tmp_path, monkeypatch, locked, 2)
    told = [record for record in caplog.records if "expired jobs" in record.message]
    assert told[0].message == "expired jobs could not be deleted: The database is locked."
    assert not any(record.exc_info for record in told)


class Machines:
    """The part of a cluster that a front uses until its jobs are recovered."""

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def begin(self, _service: str) -> Sequence[str]:
        """Report a worker of another front."""
        self._calls.append("begin")
        return ["theirs"]

    def end_workers(self, names: Sequence[str]) -> None:
        """Record the call."""
        self._calls.append(f"end {names}")

    async def watch(self, *_: object) -> None:
        """Report no change."""
        await asyncio.Event().wait()

    def leave(self) -> None:
        """Record the call."""
        self._calls.append("leave")


@pytest.mark.parametrize("lost", [False, True])
def test_workers_of_another_front_end_only_while_the_store_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """The workers are listed before the jobs are recovered, so those of a later front stay."""
    calls: list[str] = []
    recover = JobStore.recover

    async def noted(store: JobStore) -> list[Job]:
        calls.append("recover")
        if lost:
            raise Unavailable("Another server took over.", reason=Reason.STORAGE_UNAVAILABLE)
        return await recover(store)

    monkeypatch.setattr(JobStore, "recover", noted)
    parts = assembly.assemble(Settings(data_dir=tmp_path, cache_dir=tmp_path, engine="fake"))
    parts = replace(parts, cluster=cast(Cluster, Machines(calls)))

    async def live() -> None:
        async with parts.running():
            calls.append("serve")

    if lost:
        with pytest.raises(Unavailable):
            asyncio.run(live())
    else:
        asyncio.run(live())
    rest = [] if lost else ["end ['theirs']", "serve"]
    assert calls == ["begin", "recover", *rest, "leave"]


def test_a_watch_of_the_machines_that_ends_is_noticed(tmp_path: Path) -> None:
    """A service that no longer sees its machines stops, so that its supervisor restarts it."""

    blind = asyncio.Event()

    class Blind(Machines):
        async def watch(self, *_: object) -> None:
            """Fail when the test says so."""
            await blind.wait()
            raise ValueError("a fault")

    parts = assembly.assemble(Settings(data_dir=tmp_path, cache_dir=tmp_path, engine="fake"))
    parts = replace(parts, cluster=cast(Cluster, Blind([])))

    async def live() -> None:
        died = asyncio.Event()
        async with parts.running(died.set), asyncio.timeout(20):
            while not any(worker.is_up for worker in parts.service.pool.workers()):
                await asyncio.sleep(0.01)
            blind.set()
            await died.wait()

    asyncio.run(live())


def test_the_hash_of_a_built_in_model_that_does_not_exist(tmp_path: Path) -> None:
    """An entry that names an unknown built-in model has no hash; lists of models still work."""
    models = tmp_path / "models.yaml"
    entry = "  - {id: %s, family: ovis_image, files: {model: 'builtin:%s'}}\n"
    models.write_text("models:\n" + entry % ("known", "drawings") + entry % ("other", "nope"))
    settings = Settings(data_dir=tmp_path, cache_dir=tmp_path, engine="fake", models=models)
    service = assembly.assemble(settings).service
    assert len(service.checksum("known") or "") == 64
    assert service.checksum("other") is None


def test_a_file_whose_name_no_request_can_contain(tmp_path: Path) -> None:
    """A file with a name that is not UTF-8 is listed as unusable, with the reason."""
    name = os.fsdecode(b"\xff.gguf")
    (tmp_path / name).write_bytes(gguf(gguf_tensor()))
    settings = Settings(data_dir=tmp_path, cache_dir=tmp_path, engine="fake", lora_dir=tmp_path)
    assets = assembly.assemble(settings).service.assets()
    assert not assets.loras
    assert "not UTF-8" in assets.unusable["lora"][name]
