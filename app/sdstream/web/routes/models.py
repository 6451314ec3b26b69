"""Routes for models, stored images, health, metrics and the OpenAPI document."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from sdstream.cluster.port import Cluster, MachineState
from sdstream.core.errors import (
    CatalogRejected,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    Reason,
    Unavailable,
    UnsupportedMediaType,
)
from sdstream.core.messages import Loaded
from sdstream.core.model_options import defaults_of, options_of, schedules_of, sizes_of
from sdstream.core.model_spec import CPU, ModelSpec
from sdstream.core.runtime_options import RuntimeOptionError, RuntimeOptions
from sdstream.core.samplers import SAMPLERS
from sdstream.dialects.rendering import compact
from sdstream.imaging import ocr
from sdstream.imaging.codecs import MEDIA_TYPES
from sdstream.service.live_jobs import standing_by
from sdstream.service.metrics import Metrics
from sdstream.service.service import ImageService
from sdstream.storage.job_store import JobStore
from sdstream.web import bodies, respond
from sdstream.web.openapi import openapi_document
from sdstream.web.route import ApiRoute, Operation
from sdstream.web.schemas import (
    BOOLEAN,
    IMAGES,
    INTEGER,
    OBJECT,
    STRING,
    json_of,
    listing,
    page_of,
    record,
    ref,
)

#: OpenAI's clients require a creation time, which the catalogue does not contain.
_CREATED = 0

#: Largest body with runtime options, in bytes.
_MAX_OPTIONS_BYTES: Final = 2**16


MODELS_PATHS: Final = ("/v1/models", "/v1-openai/models", "/v3/models")

_NAMED: Final = {"id": STRING, "object": STRING}
_MODEL: Final = {200: json_of(ref("Model"))}
_STATUS: Final = json_of(record({"status": STRING}))
_IMAGE: Final = Operation("Get a stored image", {200: IMAGES}, errors=(NotFound,))
_MODELS: Final = Operation("List the models", {200: json_of(ref("Models"))})
_ONE_MODEL: Final = Operation("Get a model with its options", _MODEL, errors=(NotFound,))
_LOAD: Final = Operation(
    "Load a model; an optional body contains runtime options",
    _MODEL,
    json_of(
        {
            "type": "object",
            "additionalProperties": False,
            "properties": RuntimeOptions.model_json_schema()["properties"],
            "example": {},
        }
    ),
    (NotFound, InvalidRequest, PayloadTooLarge, UnsupportedMediaType, Unavailable),
    body_required=False,
)
_IDS: Final = {"type": "array", "items": STRING}
_RELOAD: Final = Operation(
    "Read models.yaml again",
    {
        200: json_of(
            record(
                {"object": STRING, "added": _IDS, "removed": _IDS, "changed": _IDS}
                | {"default": STRING}
            )
        )
    },
    errors=(CatalogRejected,),
)
_UNLOAD: Final = Operation("Unload a model", _MODEL, errors=(NotFound,))
_UNUSABLE: Final = {"unusable": listing(record({"file": STRING, "error": STRING}))}
_LORAS: Final = Operation(
    "List the LoRAs, and the files that cannot be used",
    {200: json_of(page_of(record(_NAMED), **_UNUSABLE))},
)
_UPSCALERS: Final = Operation(
    "List the upscalers, and the files that cannot be used",
    {200: json_of(page_of(record({**_NAMED, "factor": INTEGER}), **_UNUSABLE))},
)
_CONFIG: Final = Operation("Get model states (OpenVINO Model Server)", {200: json_of(OBJECT)})
_AUTH: Final = Operation(
    "Check whether clients need a key (Xinference)", {200: json_of(record({"auth": BOOLEAN}))}
)
_LIVE: Final = Operation("Check that the process answers", {200: _STATUS})
_READY: Final = Operation("Check that the default model can generate", {200: _STATUS, 503: _STATUS})
_METRICS: Final = Operation("Get metrics for Prometheus", {200: {"text/plain": STRING}})
_OPENAPI: Final = Operation("Get the OpenAPI document", {200: json_of(OBJECT)})


@dataclass(frozen=True)
class ModelRoutes:
    """The routes for models, stored images, health and metrics.

    Attributes:
        service, store, metrics: The objects whose state the routes return.
        has_keys: Clients must send a key.
        cluster: The cluster of machines; None without a cluster.
    """

    service: ImageService
    store: JobStore
    metrics: Metrics
    has_keys: bool
    cluster: Cluster | None

    def routes(self) -> list[ApiRoute]:
        """Return the routes of this class."""
        every = {path: f"{path}/{{model:path}}" for path in MODELS_PATHS}
        return [
            ApiRoute("/v1/images/{image}/content", self.image, _IMAGE),
            *(ApiRoute(path, self.models, _MODELS) for path in every),
            ApiRoute("/v1/models/reload", self.reload, _RELOAD, method="POST"),
            ApiRoute("/v1/models/{model:path}/load", self.load, _LOAD, method="POST"),
            ApiRoute("/v1/models/{model:path}/unload", self.unload, _UNLOAD, method="POST"),
            *(ApiRoute(path, self.model, _ONE_MODEL) for path in every.values()),
            ApiRoute("/v1/loras", self.loras, _LORAS),
            ApiRoute("/v1/upscalers", self.upscalers, _UPSCALERS),
            ApiRoute("/v1/config", self.config, _CONFIG),
            ApiRoute("/v1/cluster/auth", self.cluster_auth, _AUTH, is_probe=True),
            ApiRoute("/livez", self.live, _LIVE, is_probe=True),
            ApiRoute("/readyz", self.ready, _READY, is_probe=True),
            ApiRoute("/health", self.ready, _READY, is_probe=True),
            ApiRoute("/metrics", self.scrape, _METRICS),
            ApiRoute("/openapi.json", self.openapi, _OPENAPI),
        ]

    async def models(self, _request: Request) -> Response:
        """GET /v1/models."""
        catalog = await self.service.refresh_catalog()
        data = [self._model(spec) for spec in catalog.models.values()]
        own = {fields["id"]: fields for fields in data}
        data += [
            {**own[spec], "id": alias, "alias_of": spec, "default": False}
            for alias, spec in catalog.aliases().items()
        ]
        return respond.json_bytes(compact({"object": "list", "data": data}))

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{id}."""
        if not request.path_params["model"]:  # /v1/models/
            return await self.models(request)
        if request.path_params["model"] == ocr.MODEL and ocr.installed():
            return respond.json_bytes(compact(_TEXT_READER))
        spec = await self.service.get_model(request.path_params["model"])
        assets = await asyncio.to_thread(self.service.assets)
        fields = {**self._model(spec), "options": options_of(spec, assets, self.service.limits)}
        return respond.json_bytes(compact(fields))

    async def reload(self, _request: Request) -> Response:
        """POST /v1/models/reload: read models.yaml again."""
        change = await self.service.reload_catalog()
        return respond.json_bytes(compact({"object": "models.reload", **asdict(change)}))

    async def load(self, request: Request) -> Response:
        """POST /v1/models/{id}/load: load a model, and answer when it is loaded."""
        spec = await self.service.get_model(request.path_params["model"])
        runtime = await bodies.read_optional_json(request, _MAX_OPTIONS_BYTES)
        try:
            await self.service.load(spec, runtime)
        except RuntimeOptionError as error:
            unknown = error.name and error.name not in RuntimeOptions.model_fields
            reason = Reason.UNKNOWN_FIELD if unknown else Reason.INVALID_VALUE
            raise InvalidRequest(str(error), reason=reason, param=error.name or None) from None
        spec = await self.service.get_model(spec.id)
        return respond.json_bytes(compact(self._model(spec)))

    async def unload(self, request: Request) -> Response:
        """POST /v1/models/{id}/unload: unload a model at once, or after its running job."""
        spec = await self.service.get_model(request.path_params["model"])
        self.service.unload(spec)
        return respond.json_bytes(compact(self._model(spec)))

    async def loras(self, _request: Request) -> Response:
        """GET /v1/loras: list the names that a request may use in lora."""
        assets = await asyncio.to_thread(self.service.assets)
        data = [{"id": name, "object": "lora"} for name in assets.loras]
        return _listed(data, assets.unusable.get("lora", {}))

    async def upscalers(self, _request: Request) -> Response:
        """GET /v1/upscalers: list the names that a request may use in upscaler."""
        assets = await asyncio.to_thread(self.service.assets)
        data = [
            {"id": name, "object": "upscaler", "factor": factor}
            for name, factor in assets.upscalers.items()
        ]
        return _listed(data, assets.unusable.get("upscaler", {}))

    async def image(self, request: Request) -> Response:
        """GET /v1/images/{id}/content."""
        found = await self.store.image(request.path_params["image"])
        if found is None:
            raise NotFound("Image not found; it may have expired.", reason=Reason.IMAGE_NOT_FOUND)
        data, output_format = found
        # The bytes of an image id never change.
        headers = {"Cache-Control": "private, max-age=31536000, immutable"}
        return Response(data, 200, headers, media_type=MEDIA_TYPES[output_format])

    async def config(self, _request: Request) -> Response:
        """GET /v1/config: return the state of each model in OpenVINO Model Server's form."""
        states = {}
        for name in self.service.catalog.models:
            workers = self.service.pool.workers(name)
            why = self.service.why_unavailable(name)
            loaded = any(worker.is_up for worker in workers)
            state = "AVAILABLE" if loaded else "LOADING" if workers and not why else "END"
            status = {"error_code": "OK" if not why else "UNKNOWN", "error_message": why or "OK"}
            versions = [{"version": "1", "state": state, "status": status}]
            states[name] = {"model_version_status": versions}
        return respond.json_bytes(compact(states))

    async def cluster_auth(self, _request: Request) -> Response:
        """GET /v1/cluster/auth: Xinference's client sends its key only if ``auth`` is true."""
        return respond.json_bytes(compact({"auth": self.has_keys}))

    async def live(self, _request: Request) -> Response:
        """GET /livez: report that the process answers."""
        return respond.json_bytes(compact({"status": "ok"}))

    async def ready(self, _request: Request) -> Response:
        """GET /readyz and /health: report whether requests for the default model are served."""
        service = self.service
        if not service.took_over:
            body = {"status": "standby", "message": standing_by().message}
            return respond.json_bytes(compact(body), {"Retry-After": "1"}, 503)
        fault = await self.store.fault()
        if service.ready and fault is None:
            return respond.json_bytes(compact({"status": "ok"}))
        model = service.catalog.default
        why = fault.message if fault else service.why_unavailable(model)
        status = "draining" if service.draining else "failed" if why else "loading"
        body = {"status": status, "model": model}
        if why:
            body["message"] = why
        return respond.json_bytes(compact(body), {"Retry-After": "1"}, 503)

    async def scrape(self, _request: Request) -> Response:
        """GET /metrics."""
        self.service.measure()
        room = await self.store.room()
        self.metrics.store_bytes.set(room.used)
        self.metrics.store_limit.set(room.limit)
        self.metrics.disk_free.set(room.free)
        if self.cluster is not None:
            states = Counter(machine.state for machine in self.cluster.machines())
            self.metrics.measure_machines({s.value: states[s] for s in MachineState})
        return Response(self.metrics.render(), media_type=self.metrics.content_type)

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        return respond.json_bytes(compact(openapi_document(request.app.routes)))

    def _model(self, spec: ModelSpec) -> dict[str, Any]:
        workers = self.service.pool.workers(spec.id)
        why = self.service.why_unavailable(spec.id)
        loaded = self.service.pool.loaded(spec.id)
        fields: dict[str, Any] = {
            "id": spec.id,
            "object": "model",
            "created": _CREATED,
            "owned_by": "sdstream",
            "description": spec.description,
            "model_type": "image",
            "model_ability": ["text2image", "image2image", "inpainting"],
            "family": spec.family,
            "default": spec.id == self.service.catalog.default,
            "state": self.service.model_state(spec.id),
            "workers": len(workers),
            "replicas": spec.replicas,
            "keep_alive": self.service.pool.keep_alive(spec),
            "resident_bytes": sum(worker.resident_bytes for worker in workers),
            "defaults": defaults_of(spec, self.service.limits),
            "size": sizes_of(spec),
            "capabilities": _capabilities(spec),
            "embeddings": [*loaded.embeddings] if loaded else [],
            "device": _device(spec, loaded),
            "device_name": (loaded.device_name or None) if loaded else None,
            "runtime": spec.runtime.model_dump(),
            "kernels": loaded.kernels if loaded else None,
        }
        if why:
            fields["error"] = why
        return fields


def _listed(data: list[dict[str, Any]], unusable: Mapping[str, str]) -> Response:
    files = [{"file": file, "error": problem} for file, problem in unusable.items()]
    return respond.json_bytes(compact({"object": "list", "data": data, "unusable": files}))


#: The model that Xinference's client looks up before it sends images to /v1/images/ocr.
_TEXT_READER: Final = {
    "id": ocr.MODEL,
    "object": "model",
    "created": _CREATED,
    "owned_by": "sdstream",
    "description": "Reads text from images: POST /v1/images/ocr.",
    "model_type": "image",
    "model_ability": ["ocr"],
    "state": "ready",
}


def _device(spec: ModelSpec, loaded: Loaded | None) -> str | None:
    """Return the device that a loaded model uses, else the one in its entry."""
    if loaded is None:
        return spec.device
    return CPU if loaded.on_cpu else spec.device or "gpu"


def _capabilities(spec: ModelSpec) -> dict[str, Any]:
    return {
        "tasks": ["text-to-image", "image-to-image", "inpainting"],
        "reference_images": spec.traits.references,
        "samplers": list(SAMPLERS),
        "schedules": schedules_of(spec),
        "guidance": spec.traits.distilled_guidance,
        "control": spec.files.control_net is not None,
    }
