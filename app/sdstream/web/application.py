"""Builds the HTTP application from the settings."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final, Literal

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute
from starlette.types import ExceptionHandler

from sdstream.clocks import SteadyClock
from sdstream.core.ask import Hints
from sdstream.core.errors import ImageServiceError
from sdstream.imaging.ocr import TextReader
from sdstream.service.assembly import Assembly, assemble
from sdstream.settings import Settings, origin_of
from sdstream.tools.toolbox import Toolbox
from sdstream.web import respond
from sdstream.web.addresses import Links, PlainSlashes
from sdstream.web.credentials import digest_of
from sdstream.web.hosts import host_layers
from sdstream.web.middleware import (
    CrossOrigin,
    RequestLog,
    RequireKey,
    SameOrigin,
    StoreGate,
)
from sdstream.web.routes import page
from sdstream.web.routes.a1111 import A1111Routes
from sdstream.web.routes.chat import ChatRoutes
from sdstream.web.routes.cluster import ClusterRoute
from sdstream.web.routes.fireworks import FireworksRoutes
from sdstream.web.routes.huggingface import HuggingFaceRoutes
from sdstream.web.routes.images import ImageRoutes
from sdstream.web.routes.job_sets import JobSetRoutes
from sdstream.web.routes.jobs import JobRoutes
from sdstream.web.routes.mcp import McpRoute
from sdstream.web.routes.models import ModelRoutes
from sdstream.web.routes.ocr import OcrRoute
from sdstream.web.routes.parameters import ParametersRoute
from sdstream.web.routes.sdcpp import SdcppRoutes
from sdstream.web.routes.xinference import XinferenceRoutes
from sdstream.web.tokens import Tokens
from sdstream.web.turns import OneByOne

logger = logging.getLogger(__name__)

_HANDLERS: Final[Mapping[Any, ExceptionHandler]] = {
    ImageServiceError: respond.on_service_error,
    HTTPException: respond.on_http_error,
    ClientDisconnect: respond.on_disconnect,
    Exception: respond.on_fault,
}


def build_app(
    settings: Settings,
    *,
    on_death: Callable[[], None] = lambda: None,
    on_loss: Callable[[], None] = lambda: None,
) -> Starlette:
    """Build the application and the service behind it.

    Args:
        settings: The server's settings.
        on_death: Called when the service's own task fails; the server must then stop.
        on_loss: Called when another server has taken over; this server must then stop at once.

    Raises:
        CatalogError: models.yaml cannot be used.
        ModelError: The default model cannot be used.
        SafetyCheckerError: The safety checker cannot be used.
        WebhookSettingsError: The webhook settings cannot be used.
    """
    parts = assemble(
        settings,
        priority_digests=[digest_of(key.get_secret_value()) for key in settings.high_priority_keys],
    )
    tokens = Tokens(parts.store.token_secret, SteadyClock(time.time()))
    draw = _image_routes(settings, parts, tokens)
    hints = Hints(options_in_prompt=settings.options_in_prompt)
    toolbox = Toolbox(parts.service, parts.store, settings.keepalive_seconds, hints)
    mcp = McpRoute(draw, toolbox)
    app = Starlette(
        routes=_routes(settings, parts, draw, tokens, mcp),
        middleware=_middleware(settings, parts, tokens),
        exception_handlers=_HANDLERS,
        lifespan=_lifespan(parts, mcp, on_death, on_loss),
    )
    # PlainSlashes handles the paths that Starlette would redirect.
    app.router.redirect_slashes = False
    app.state.service = parts.service
    app.state.store = parts.store
    app.state.handling = settings.unknown_fields
    app.state.options_in_prompt = settings.options_in_prompt
    return app


def _image_routes(settings: Settings, parts: Assembly, tokens: Tokens) -> ImageRoutes:
    public_url = str(settings.public_url).rstrip("/") if settings.public_url else None
    return ImageRoutes(
        parts.service,
        Links(public_url, settings.trusted_proxies),
        settings.keepalive_seconds,
        settings.max_body_mb * 2**20,
        parts.webhooks.check,
        settings.default_response_format,
        tokens if settings.api_keys else None,
    )


def _routes(
    settings: Settings, parts: Assembly, draw: ImageRoutes, tokens: Tokens, mcp: McpRoute
) -> list[BaseRoute]:
    service, max_form_bytes = parts.service, draw.max_form_bytes
    has_keys = bool(settings.api_keys)
    return [
        *draw.routes(),
        *JobSetRoutes(draw).routes(),
        *JobRoutes(draw, tokens).routes(),
        *ChatRoutes(draw).routes(),
        *FireworksRoutes(draw).routes(),
        *A1111Routes(draw).routes(),
        *SdcppRoutes(draw, settings.queue_images).routes(),
        *OcrRoute(TextReader(), max_form_bytes, settings.max_input_pixels).routes(),
        *ParametersRoute(service.processor, max_form_bytes).routes(),
        *XinferenceRoutes(draw).routes(),
        *ModelRoutes(
            service, parts.store, parts.metrics, has_keys=has_keys, cluster=parts.cluster
        ).routes(),
        *ClusterRoute(service.pool, parts.cluster, time.time()).routes(),
        *mcp.routes(),
        # Their paths end with a model name of any form, so more specific routes stand above them.
        *HuggingFaceRoutes(draw).routes(),
        *page.routes(lambda: service.catalog.default),
    ]


def _middleware(settings: Settings, parts: Assembly, tokens: Tokens) -> list[Middleware]:
    store = parts.store
    layers = [
        Middleware(PlainSlashes),
        Middleware(OneByOne),
        Middleware(RequestLog, metrics=parts.metrics, tracing=parts.tracing),
    ]
    # Outside of all layers that reject requests, so that pages can read the errors.
    if settings.cors_origins:
        layers.append(Middleware(CrossOrigin, allow_origins=settings.cors_origins))
    if settings.standby or parts.store.takeover:
        layers.append(Middleware(StoreGate, service=parts.service))
    keys = [key.get_secret_value() for key in settings.api_keys]
    layers += host_layers(settings)
    # A proxy may send its own address as Host, but the page's origin is then the public URL.
    own = [origin_of(settings.public_url)] if settings.public_url else []
    layers.append(Middleware(SameOrigin, allowed=[*settings.cors_origins, *own]))
    layers.append(
        Middleware(
            RequireKey,
            keys=keys,
            tokens=tokens,
            owner_of=lambda key: store.owner_of(digest_of(key)),
        )
    )
    return layers


def _lifespan(
    parts: Assembly,
    mcp: McpRoute,
    on_death: Callable[[], None],
    on_loss: Callable[[], None],
) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with parts.running(on_death, on_loss), mcp.running():
            yield

    return lifespan


class JsonLines(logging.Formatter):
    """Formats a record as a JSON object: time, level, logger, message, and a request's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields: dict[str, Any] = {
            "time": moment,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def configure_logging(level: str, form: Literal["text", "json"] = "text") -> None:
    """Log one line per record to stderr, for the server's own loggers and uvicorn's."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler.setFormatter(JsonLines() if form == "json" else plain)
    logging.basicConfig(handlers=[handler], force=True)
    set_log_level(level)
    # httpx2 logs complete URLs, and the hub's download URLs contain signatures.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    # mcp logs session ids. On a server without keys, an id is enough to use the session.
    logging.getLogger("mcp").setLevel(logging.WARNING)


def set_log_level(level: str) -> None:
    """Set the lowest level of the log, at the start or while the server runs.

    Running workers keep the level with which they started.
    """
    logging.getLogger().setLevel(level.upper())
    # At debug, sse_starlette would log every frame with its base64 data.
    logging.getLogger("sse_starlette").setLevel(logging.INFO if level == "debug" else level.upper())
