"""The only wiring: settings in, application out."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import random
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from sdstream.core.catalog import Catalog
from sdstream.core.errors import ImageServiceError
from sdstream.core.locations import BUILTIN
from sdstream.core.messages import Load
from sdstream.core.model_spec import ModelSpec
from sdstream.core.request import Extras, Limits
from sdstream.engine.pool import WorkerPool
from sdstream.engine.worker import Worker, WorkerOptions
from sdstream.imaging.ocr import TextReader
from sdstream.imaging.processor import Studio
from sdstream.imaging.safety import load_checker
from sdstream.service.metrics import Metrics
from sdstream.service.service import ImageService, Policy
from sdstream.service.webhooks import Webhooks, delivery_of
from sdstream.settings import Settings, worker_environment
from sdstream.storage.job_store import JobStore
from sdstream.web import respond
from sdstream.web.credentials import digest_of
from sdstream.web.middleware import (
    LocalNames,
    RequestLog,
    RequireKey,
    SameOrigin,
    is_local_name,
)
from sdstream.web.routes import page
from sdstream.web.routes.a1111 import A1111Routes
from sdstream.web.routes.fireworks import FireworksRoutes
from sdstream.web.routes.images import ImageRoutes
from sdstream.web.routes.jobs import JobRoutes
from sdstream.web.routes.models import OpsRoutes
from sdstream.web.routes.ocr import OcrRoute
from sdstream.web.routes.parameters import ParametersRoute
from sdstream.web.tokens import Tokens
from sdstream.weights.discovery import absolute, load_catalog, look_again
from sdstream.weights.folders import weight_files
from sdstream.weights.inspection import upscaler_factor

logger = logging.getLogger(__name__)

#: Seeds drawn by the server stay exact in every JSON reader, JavaScript's among them.
_MAX_RANDOM_SEED = 2**53 - 1

_TIDY_SECONDS = 60

#: Variables that choose among GPUs -> the devices of models.yaml that they are for.
_GPU_VARIABLES: Final = {
    "CUDA_VISIBLE_DEVICES": ("cuda",),
    "HIP_VISIBLE_DEVICES": ("rocm",),
    "GGML_VK_VISIBLE_DEVICES": ("vulkan",),
}


def build_app(settings: Settings, *, on_death: Callable[[], None] = lambda: None) -> Starlette:
    """Put the parts together.

    Args:
        settings: Frozen.
        on_death: Called when the service's own task ends by a fault: the server must go down.

    Raises:
        CatalogError: models.yaml cannot be used.
        ModelError: The default model is not here.
        SafetyCheckerError: The safety checker cannot be used.
        WebhookSettingsError: The settings of webhooks do not go together.
    """
    catalog = load_catalog(settings)
    metrics = Metrics()
    store = JobStore(
        settings.data_dir,
        ttl_seconds=settings.job_ttl_seconds,
        max_bytes=settings.image_store_mb * 2**20,
        min_free_bytes=settings.min_free_mb * 2**20,
        clock=time.time,
        delivery_of=delivery_of,
    )
    tokens = Tokens(secrets.token_bytes(32), time.time)
    secret = settings.webhook_secret
    webhooks = Webhooks(
        store,
        hosts=settings.webhook_hosts,
        secret=secret.get_secret_value() if secret else None,
        private=settings.webhook_private,
        clock=time.time,
    )
    service = _service(settings, catalog, metrics, store, webhooks)
    max_form_bytes = settings.max_body_mb * 2**20
    public_url = str(settings.public_url).rstrip("/") if settings.public_url else None
    draw = ImageRoutes(
        service,
        public_url,
        settings.keepalive_seconds,
        max_form_bytes,
        webhooks.check,
    )
    app = Starlette(
        routes=[
            *draw.routes(),
            *JobRoutes(draw, tokens).routes(),
            *FireworksRoutes(draw).routes(),
            *A1111Routes(draw).routes(),
            *OcrRoute(TextReader(), max_form_bytes, settings.max_input_pixels).routes(),
            *ParametersRoute(service.studio, max_form_bytes).routes(),
            *OpsRoutes(service, store, metrics, has_keys=bool(settings.api_keys)).routes(),
            *page.routes(),
        ],
        middleware=_middleware(settings, metrics, tokens, store),
        exception_handlers={
            ImageServiceError: respond.on_service_error,
            HTTPException: respond.on_http_error,
            ClientDisconnect: respond.on_disconnect,
            Exception: respond.on_fault,
        },
        lifespan=_lifespan(service, store, webhooks, on_death),
    )
    app.state.service = service
    app.state.store = store
    return app


def _service(
    settings: Settings, catalog: Catalog, metrics: Metrics, store: JobStore, webhooks: Webhooks
) -> ImageService:
    options = WorkerOptions(
        engine=settings.engine,
        environment=worker_environment(),
        hang_seconds=settings.hang_seconds,
        cancel_seconds=settings.cancel_seconds,
    )

    def make_pool(on_change: Callable[[], None]) -> WorkerPool:
        return WorkerPool(
            lambda spec, changed: Worker(
                _load_command(settings, spec), _on_device(options, spec.device), changed
            ),
            file_bytes=lambda spec: _file_bytes(settings, spec),
            can_load=lambda spec: _are_there(settings, spec),
            budget_bytes=settings.memory_mb * 2**20 or _usual_memory(),
            on_change=on_change,
        )

    return ImageService(
        catalog=catalog,
        look_again=lambda: look_again(settings, catalog),
        make_pool=make_pool,
        studio=Studio(
            shelf=store,
            checker=load_checker(settings.safety_checker) if settings.safety_checker else None,
            max_input_pixels=settings.max_input_pixels,
            embed_parameters=settings.embed_parameters,
        ),
        store=store,
        metrics=metrics,
        policy=Policy(
            queue_images=settings.queue_images,
            queue_images_per_key=settings.queue_images_per_key,
            high_priority_owners=lambda: frozenset(
                store.owner_of(digest_of(key.get_secret_value()))
                for key in settings.high_priority_keys
            ),
            limits=Limits(settings.max_pixels, settings.max_upscaled_pixels),
            grace_seconds=settings.grace_seconds,
        ),
        new_id=lambda: f"job_{secrets.token_urlsafe(16)}",
        extras=lambda: _extras(settings),
        on_end=webhooks.notify,
        random_seed=lambda: random.SystemRandom().randint(0, _MAX_RANDOM_SEED),
    )


def _file_bytes(settings: Settings, spec: ModelSpec) -> int:
    """Size of a model's files, what built-in ones have aside; a model that never ran needs that."""
    paths = (absolute(settings, place) for _, place in spec.files.items())
    return sum(path.stat().st_size for path in paths if path.is_file())


def _are_there(settings: Settings, spec: ModelSpec) -> bool:
    """True when a model's files are there; the fake engine and built-in models need none."""
    places = [place for _, place in spec.files.items() if not place.startswith(BUILTIN)]
    return settings.engine == "fake" or all(absolute(settings, p).is_file() for p in places)


def _usual_memory() -> int:
    """Four fifths of the memory that this machine, or its container, has."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    with suppress(OSError, ValueError):
        memory = min(memory, int(limit.read_text()))
    return memory * 4 // 5


def _load_command(settings: Settings, spec: ModelSpec) -> Load:
    keep = settings.engine == "fake"
    files = {
        component: location
        if keep or location.startswith(BUILTIN)
        else str(absolute(settings, location))
        for component, location in spec.files.items()
    }
    folders = {
        name: str(folder.resolve())
        for name in ("lora_dir", "embedding_dir", "upscaler_dir")
        if (folder := getattr(settings, name)) is not None
    }
    return Load(
        model=spec.id,
        family=spec.family,
        files=files,
        cache_dir=str(settings.cache_dir),
        runtime=spec.runtime.model_dump(),
        device=spec.device or "",
        **folders,
    )


def _on_device(options: WorkerOptions, device: str | None) -> WorkerOptions:
    """Let a worker see one GPU alone, or none: the runtime takes the first that it sees."""
    if device is None:
        return options
    kind, _, number = device.partition(":")
    seen = {name: number if kind in kinds else "-1" for name, kinds in _GPU_VARIABLES.items()}
    return replace(options, environment={**options.environment, **seen})


def _extras(settings: Settings) -> Extras:
    """What the operator's folders hold at this moment."""
    factors = {
        name: upscaler_factor(path) for name, path in weight_files(settings.upscaler_dir).items()
    }
    return Extras(
        loras=[*weight_files(settings.lora_dir)],
        lora_in_prompt=settings.lora_in_prompt,
        upscalers={name: factor for name, factor in factors.items() if factor is not None},
    )


def _middleware(
    settings: Settings, metrics: Metrics, tokens: Tokens, store: JobStore
) -> list[Middleware]:
    layers = [Middleware(RequestLog, metrics=metrics)]
    if settings.cors_origins:
        layers.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=["X-Request-Id", "X-Job-Id", "Location", "Seed", "Finish-Reason"],
            )
        )
    keys = [key.get_secret_value() for key in settings.api_keys]
    if not keys and _is_loopback(settings.host):
        name = settings.public_url.host if settings.public_url else None
        layers.append(Middleware(LocalNames, allowed=[name] if name else []))
    layers.append(Middleware(SameOrigin, allowed=settings.cors_origins))
    layers.append(
        Middleware(
            RequireKey,
            keys=keys,
            tokens=tokens,
            owner_of=lambda key: store.owner_of(digest_of(key)),
        )
    )
    return layers


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return is_local_name(host)


def _lifespan(
    service: ImageService, store: JobStore, webhooks: Webhooks, on_death: Callable[[], None]
) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await asyncio.to_thread(store.open)
        # Before the first request: a browser that reconnects must find its job.
        await service.recover()
        task = asyncio.create_task(service.run())
        others = [asyncio.create_task(_tidy(store)), asyncio.create_task(webhooks.run())]

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                logger.critical("the service stopped by a fault", exc_info=task.exception())
                on_death()

        task.add_done_callback(ended)
        yield
        for one in (task, *others):
            one.cancel()
            await asyncio.wait((one,))  # which raises nothing: whatever it ended by, close
        await store.close()

    return lifespan


async def _tidy(store: JobStore) -> None:
    """Delete expired jobs on a server that has no others whose end would do it."""
    while True:
        await asyncio.sleep(_TIDY_SECONDS)
        try:
            await store.expire()
        except Exception:
            logger.exception("expired jobs could not be deleted")


def configure_logging(level: str) -> None:
    """One line per record on stderr, for the server's own loggers and uvicorn's."""
    logging.basicConfig(
        stream=sys.stderr,
        level=level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        force=True,
    )
    # It logs whole addresses, and those of the hub's contents are signed.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    if level == "debug":
        # This one would log every frame, base64 and all.
        logging.getLogger("sse_starlette").setLevel(logging.INFO)
