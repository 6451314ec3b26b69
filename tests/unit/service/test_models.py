"""Changes to the catalogue while the server runs."""

from __future__ import annotations

import asyncio
import threading
from typing import cast

from sdstream.core.catalog import Catalog
from sdstream.engine.pool import WorkerPool
from sdstream.service.models import Models

ONE = "models: [{id: a, family: sd3, files: {model: x}}]"
TWO = "models: [{id: a, family: sd3, files: {model: x}}, {id: b, family: sd3, files: {model: x}}]"
ON_HUB = """
models: [{id: a, family: sd3, files: {model: 'hf:o/r/x-{quant}.gguf'}, quants: {Q8_0: 1}}]
"""


class NoPool:
    """A pool without workers that starts none."""

    def is_ready(self, _spec: object) -> bool:
        """Return true for any model."""
        return True

    def workers(self, _model: str) -> list[object]:
        """Return no workers."""
        return []

    def start(self, _spec: object) -> bool:
        """Start nothing."""
        return False

    def adopt(self, _models: object) -> None:
        """Do nothing."""


def test_a_default_model_that_was_removed_is_not_ready() -> None:
    """A default model whose files were deleted is not ready, and no exception is raised."""
    here = Catalog.parse(ON_HUB).on_machine(lambda _: "/x.gguf")
    models = Models(
        here,
        refresh=lambda known: known.on_machine(lambda _: None),
        read=lambda: here,
        pool=cast(WorkerPool, NoPool()),
        on_change=lambda: None,
        checksum_of=lambda _spec: None,
    )
    assert models.ready
    asyncio.run(models.refresh())
    assert not models.ready


def test_a_look_at_the_hub_takes_no_reload_back() -> None:
    """A refresh that began before a reload and ends after it keeps the reloaded models."""
    began, go_on = threading.Event(), threading.Event()

    def refresh(known: Catalog) -> Catalog:
        began.set()
        go_on.wait(10)
        return known

    models = Models(
        Catalog.parse(ONE),
        refresh=refresh,
        read=lambda: Catalog.parse(TWO),
        pool=cast(WorkerPool, NoPool()),
        on_change=lambda: None,
        checksum_of=lambda _spec: None,
    )

    async def both() -> None:
        looking = asyncio.create_task(models.refresh())
        await asyncio.to_thread(began.wait, 10)
        assert (await models.reload()).added == ("b",)
        go_on.set()
        assert [*(await looking).models] == ["a", "b"]

    asyncio.run(both())
    assert [*models.catalog.models] == ["a", "b"]
