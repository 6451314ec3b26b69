"""AUTOMATIC1111's routes, /sdapi/v1/….

AUTOMATIC1111 has one user and one job at a time, so its requests for progress, interrupt and skip
do not name a job. Here they apply to the oldest unfinished job of these routes, so that they do not
stop jobs of other APIs. The checkpoint that a client sets in the options also applies to these
routes only. Each API key counts as a separate user.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from sdstream.core import infotext
from sdstream.core.errors import (
    CatalogRejected,
    InvalidRequest,
    NotAvailable,
    NotFound,
    PayloadTooLarge,
    Reason,
    Unavailable,
    UnsupportedMediaType,
)
from sdstream.core.model_spec import ModelSpec
from sdstream.dialects import pictures
from sdstream.dialects.a1111 import answers, controlnet, extras, generation, settings
from sdstream.dialects.a1111.settings import Settings
from sdstream.dialects.fields import take
from sdstream.dialects.rendering import JsonObject, compact
from sdstream.service.live_jobs import LiveJob
from sdstream.system import free_memory, total_memory
from sdstream.web import bodies, negotiation, respond
from sdstream.web.route import ApiRoute, Content, Dialect, Operation, Schema
from sdstream.web.routes.images import JOB_ERRORS, JOB_HEADERS, ImageRoutes
from sdstream.web.schemas import EXAMPLE_IMAGE, OBJECT, STRING, json_of, listing, record, ref

_NULL: Final = b"null"
_PREFIX: Final = "/sdapi/v1/"
A1111: Final = Dialect(answers.problem, "A1111Error", _PREFIX)

#: Name of a resource that AUTOMATIC1111's clients request but this server lacks -> the answer.
EMPTY: Final[dict[str, list[str] | dict[str, Any]]] = {
    "sd-vae": [],
    "hypernetworks": [],
    "face-restorers": [],
    "realesrgan-models": [],
    "prompt-styles": [],
    "script-info": [],
    "extensions": [],
    "scripts": {"txt2img": [], "img2img": []},
    "cmd-flags": {},
}

#: POSTs that make AUTOMATIC1111 look for new files. This server looks for them at every request.
REFRESHES: Final = ("refresh-loras", "refresh-vae", "refresh-embeddings")

_NULL_ANSWER: Final = json_of({"type": "null"})
_IMAGES: Final = json_of(record({"images": listing(STRING), "parameters": OBJECT, "info": STRING}))
_BODY_ERRORS: Final = (InvalidRequest, NotFound, PayloadTooLarge, UnsupportedMediaType)


def _image_operation(summary: str, answer: Content, example: JsonObject) -> Operation:
    """Return an operation whose body is described in AUTOMATIC1111's own documentation only."""
    answers = {200: answer, 202: json_of(ref("Job"))}
    body = json_of({**OBJECT, "example": example})
    return Operation(summary, answers, body, JOB_ERRORS, JOB_HEADERS)


_EXAMPLE: Final = {"prompt": "a red circle", "steps": 4}
_UPSCALE_EXAMPLE: Final = {"upscaling_resize": 2, "upscaler_1": "Lanczos"}


_POSTS: Final = {
    "txt2img": _image_operation(
        "Generate images from a prompt (AUTOMATIC1111)", _IMAGES, _EXAMPLE
    ),
    "img2img": _image_operation(
        "Edit an image (AUTOMATIC1111)", _IMAGES, {**_EXAMPLE, "init_images": [EXAMPLE_IMAGE]}
    ),
    "extra-single-image": _image_operation(
        "Upscale an image (AUTOMATIC1111)",
        json_of(record({"html_info": STRING, "image": STRING})),
        {**_UPSCALE_EXAMPLE, "image": EXAMPLE_IMAGE},
    ),
    "extra-batch-images": _image_operation(
        "Upscale images (AUTOMATIC1111)",
        json_of(record({"html_info": STRING, "images": listing(STRING)})),
        {**_UPSCALE_EXAMPLE, "imageList": [{"data": EXAMPLE_IMAGE, "name": "circle.png"}]},
    ),
    "unload-checkpoint": Operation("Unload the chosen checkpoint", {200: json_of(OBJECT)}),
    "reload-checkpoint": Operation("Load the chosen checkpoint", {200: json_of(OBJECT)},
                                   errors=(Unavailable,)),
    "interrogate": Operation("Not available: no model here describes images", {},
                             json_of(OBJECT), (NotAvailable,)),
    "refresh-checkpoints": Operation(
        "Read models.yaml again", {200: _NULL_ANSWER}, errors=(CatalogRejected,)
    ),
    **{
        name: Operation(f"{name}: no operation, because lists always include new files",
                        {200: _NULL_ANSWER})
        for name in REFRESHES
    },
    "interrupt": Operation("Cancel the running job; its own request returns the finished images",
                           {200: json_of(OBJECT)}),
    "skip": Operation("Leave out the last image of the running job", {200: _NULL_ANSWER},
                      errors=(InvalidRequest,)),
    "options": Operation("Set the checkpoint and clip skip of later requests", {200: _NULL_ANSWER},
                         json_of({**OBJECT, "example": {"CLIP_stop_at_last_layers": 1}}),
                         _BODY_ERRORS),
    "png-info": Operation("Read the generation parameters in an image file",
                          {200: json_of(record({"info": STRING, "items": OBJECT,
                                                "parameters": OBJECT}))},
                          json_of({**record({"image": STRING}),
                                   "example": {"image": EXAMPLE_IMAGE}}),
                          _BODY_ERRORS),
}  # fmt: skip


def _get(summary: str, schema: Schema) -> Operation:
    return Operation(summary, {200: json_of(schema)})


_GETS: Final = {
    "progress": _get("Get the progress of the oldest unfinished job", OBJECT),
    "samplers": _get("List samplers by AUTOMATIC1111's names", listing(OBJECT)),
    "schedulers": _get("List schedules by AUTOMATIC1111's names", listing(OBJECT)),
    "sd-models": _get("List the models", listing(OBJECT)),
    "options": _get("Get the checkpoint, clip skip and fixed settings", OBJECT),
    "upscalers": _get("List the upscalers", listing(OBJECT)),
    "loras": _get("List the LoRAs", listing(OBJECT)),
    "embeddings": _get("List the embeddings of the loaded checkpoint", OBJECT),
    "latent-upscale-modes": _get("List the latent upscalers of a hires fix", listing(OBJECT)),
    "memory": _get("Get the memory of the machine", OBJECT),
    **{
        name: _get(f"List {name}: always empty", listing(OBJECT) if answer == [] else OBJECT)
        for name, answer in EMPTY.items()
    },
}


_DETECT: Final = Operation(
    "Not available: only the option control_canny computes control images",
    {},
    json_of(OBJECT),
    (NotAvailable,),
)


def _control_net(name: str) -> Operation:
    return _get(f"Get {name} of AUTOMATIC1111's ControlNet extension", OBJECT)


@dataclass(eq=False)
class _Run:
    """A job that clients wait for, and whether one interrupted it or skipped its image."""

    live: LiveJob
    interrupted: bool = False
    skipped: bool = False


@dataclass
class _User:
    """The state of an owner between requests.

    Attributes:
        runs: Jobs whose clients wait, oldest first; a job with two waiting clients is there twice.
        idle: The state that GET progress reports while there is no job.
        chosen: Settings that apply to later requests.
    """

    runs: list[_Run] = field(default_factory=list)
    idle: answers.Standing = field(default_factory=answers.Standing)
    chosen: Settings = field(default_factory=Settings)

    @property
    def current(self) -> _Run | None:
        """The oldest job that has not ended."""
        return next((run for run in self.runs if not run.live.job.terminal), None)


class A1111Routes:
    """The routes and their state between requests: the jobs and the settings of each owner."""

    def __init__(self, draw: ImageRoutes) -> None:
        self._draw = draw
        self._service = draw.service
        self._users: defaultdict[str, _User] = defaultdict(_User)

    def routes(self) -> list[ApiRoute]:
        """Return the routes of this class."""
        gets = {
            "progress": self.progress,
            "samplers": self.samplers,
            "schedulers": self.schedulers,
            "sd-models": self.sd_models,
            "options": self.options,
            "upscalers": self.upscalers,
            "loras": self.loras,
            "embeddings": self.embeddings,
            "latent-upscale-modes": self.latent_upscale_modes,
            "memory": self.memory,
            **dict.fromkeys(EMPTY, self.empty),
        }
        posts = {
            "txt2img": self.txt2img,
            "img2img": self.img2img,
            "interrupt": self.interrupt,
            "skip": self.skip,
            "options": self.set_options,
            "png-info": self.png_info,
            "extra-single-image": self.extra_single_image,
            "extra-batch-images": self.extra_batch_images,
            "unload-checkpoint": self.unload_checkpoint,
            "reload-checkpoint": self.reload_checkpoint,
            "interrogate": self.interrogate,
            "refresh-checkpoints": self.refresh_checkpoints,
            **dict.fromkeys(REFRESHES, self.refresh),
        }
        return [
            *(
                ApiRoute(f"/controlnet/{name}", self.control_net, _control_net(name), dialect=A1111)
                for name in controlnet.LISTS
            ),
            ApiRoute("/controlnet/detect", self.interrogate, _DETECT, method="POST", dialect=A1111),
            *(
                ApiRoute(_PREFIX + name, do, _POSTS[name], method="POST", dialect=A1111)
                for name, do in posts.items()
            ),
            *(
                ApiRoute(_PREFIX + name, do, _GETS[name], dialect=A1111)
                for name, do in gets.items()
            ),
        ]

    # --- generating -----------------------------------------------------------------------------

    async def txt2img(self, request: Request) -> Response:
        """POST txt2img."""
        return await self._answer(request, over_image=False)

    async def img2img(self, request: Request) -> Response:
        """POST img2img."""
        return await self._answer(request, over_image=True)

    async def _answer(self, request: Request, *, over_image: bool) -> Response:
        body = await bodies.read_json(request, self._draw.max_form_bytes)
        user = self._user(request)
        # In a thread: decoding many megabytes of base64 would block the event loop.
        drawing = await asyncio.to_thread(
            generation.parse,
            body,
            over_image=over_image,
            earlier=user.chosen,
            handling=negotiation.handling_of(request),
        )
        name = await self._name_of(drawing.ask.params.model or self._service.catalog.default)
        spec = await self._service.get_model(name, drawing.ask.client_name("model"))
        drawing = generation.fitted(drawing, spec, name)
        if drawing.control is not None:
            controlnet.check_model(drawing.control, spec)
        ask = drawing.ask
        live = await self._draw.submit(request, ask)
        user.chosen = drawing.kept.over(user.chosen)
        if negotiation.prefers_no_wait(request):
            return self._draw.accepted(request, live)
        run = next((one for one in user.runs if one.live.job.id == live.job.id), _Run(live))
        user.runs.append(run)
        try:
            job = await self._draw.finished(request, live)
        finally:
            user.runs.remove(run)
            user.idle = answers.Standing(None, run.interrupted, run.skipped)
        if job is None:
            return Response(status_code=499)
        headers = {"X-Job-Id": job.id}
        error = job.error()
        # The message decides, also for a client that repeats the request after the end of the job.
        if error is not None and error.message not in answers.ENDINGS:
            return respond.failure(error, headers, A1111)
        texts = [infotext.write(job.request, job.images[i].seed) for i in sorted(job.images)]
        return respond.json_bytes(answers.answer(job, drawing, texts), headers)

    async def progress(self, request: Request) -> Response:
        """GET progress; without skip_current_image, request a preview for the next answer."""
        wanted = request.query_params.get("skip_current_image", "").lower() not in ("true", "1")
        user = self._user(request)
        run, standing, now = user.current, user.idle, time.time()
        if run is not None:
            standing = answers.Standing(run.live.job, run.interrupted, run.skipped)
            now = run.live.clock()
            if wanted and answers.wants_picture(run.live.job):
                self._service.peek(run.live)
        return respond.json_bytes(answers.progress(standing, now, with_image=wanted))

    async def interrupt(self, request: Request) -> Response:
        """POST interrupt: cancel the job; its answer contains the finished images."""
        run = self._user(request).current
        if run is not None:
            run.interrupted = True
            self._service.cancel(run.live, answers.INTERRUPTED)
        return respond.json_bytes(b"{}")

    async def skip(self, request: Request) -> Response:
        """POST skip: leave out the image that is being generated, if it is the job's last one."""
        run = self._user(request).current
        if run is not None:
            job = run.live.job
            if job.request.n - len(job.images) > 1:
                raise InvalidRequest(
                    "skip is supported only for the last image of a job; "
                    "use interrupt to end the whole job.",
                    reason=Reason.NOT_SUPPORTED_YET,
                )
            run.skipped = True
            self._service.cancel(run.live, answers.SKIPPED)
        return respond.json_bytes(_NULL)

    def _user(self, request: Request) -> _User:
        return self._users[request.state.owner]

    # --- models and lists -----------------------------------------------------------------------

    async def samplers(self, _request: Request) -> Response:
        """GET samplers."""
        return respond.json_bytes(answers.samplers())

    async def schedulers(self, _request: Request) -> Response:
        """GET schedulers."""
        return respond.json_bytes(answers.schedulers())

    async def sd_models(self, _request: Request) -> Response:
        """GET sd-models."""
        catalog = await self._service.refresh_catalog()
        hashes = {model: self._service.checksum(model) for model in catalog.models}
        return respond.json_bytes(answers.models(hashes))

    async def refresh_checkpoints(self, _request: Request) -> Response:
        """POST refresh-checkpoints: read models.yaml again."""
        await self._service.reload_catalog()
        return respond.json_bytes(_NULL)

    async def refresh(self, _request: Request) -> Response:
        """POST refresh-…: do nothing, since every request for a list looks for new files."""
        return respond.json_bytes(_NULL)

    async def unload_checkpoint(self, request: Request) -> Response:
        """POST unload-checkpoint."""
        self._service.unload(await self._checkpoint(request))
        return respond.json_bytes(b"{}")

    async def reload_checkpoint(self, request: Request) -> Response:
        """POST reload-checkpoint: load the chosen checkpoint, and answer when it is loaded."""
        await self._service.load(await self._checkpoint(request))
        return respond.json_bytes(b"{}")

    async def _checkpoint(self, request: Request) -> ModelSpec:
        chosen = self._user(request).chosen.model or self._service.catalog.default
        return await self._model_of(chosen)

    async def _model_of(self, text: str) -> ModelSpec:
        """Return the model that a client names as a checkpoint."""
        return await self._service.get_model(await self._name_of(text), settings.CHECKPOINT)

    async def _name_of(self, text: str) -> str:
        """Return the id or alias of the model that a client names, maybe by its web UI's title."""
        names = settings.checkpoint_names(text)
        catalog = self._service.catalog
        if catalog.find(text) is None:
            catalog = await self._service.refresh_catalog()
        return next((name for name in names if catalog.find(name) is not None), text)

    async def memory(self, _request: Request) -> Response:
        """GET memory."""
        return respond.json_bytes(answers.memory(total_memory(), free_memory()))

    async def interrogate(self, request: Request) -> Response:
        """POST interrogate and POST detect: reject, since this server has no model for them."""
        name = request.url.path.rpartition("/")[2]
        raise NotAvailable(f"This server has no model for '{name}'.", reason=Reason.NOT_SUPPORTED)

    async def upscalers(self, _request: Request) -> Response:
        """GET upscalers."""
        assets = await asyncio.to_thread(self._service.assets)
        return respond.json_bytes(answers.upscalers(assets.upscalers))

    async def loras(self, _request: Request) -> Response:
        """GET loras."""
        assets = await asyncio.to_thread(self._service.assets)
        return respond.json_bytes(answers.loras(assets.loras, assets.lora_hashes))

    async def embeddings(self, request: Request) -> Response:
        """GET embeddings."""
        model = self._user(request).chosen.model or self._service.catalog.default
        loaded = self._service.pool.loaded(model)
        words = loaded.embeddings if loaded else ()
        assets = await asyncio.to_thread(self._service.assets)
        return respond.json_bytes(answers.embeddings(words, assets.unusable.get("embedding", {})))

    async def control_net(self, request: Request) -> Response:
        """GET a list of the ControlNet extension."""
        catalog = await self._service.refresh_catalog()
        name = request.url.path.rpartition("/")[2]
        return respond.json_bytes(controlnet.listing(name, catalog.models.values()))

    async def latent_upscale_modes(self, _request: Request) -> Response:
        """GET latent-upscale-modes."""
        return respond.json_bytes(answers.latent_upscale_modes())

    async def empty(self, request: Request) -> Response:
        """GET a resource that this server lacks: return an empty list or object."""
        return respond.json_bytes(compact(EMPTY[request.url.path.rpartition("/")[2]]))

    # --- options --------------------------------------------------------------------------------

    async def options(self, request: Request) -> Response:
        """GET options."""
        chosen = self._user(request).chosen.over(Settings(self._service.catalog.default))
        checksum = self._service.checksum(chosen.model or "")
        return respond.json_bytes(answers.options(chosen, checksum))

    async def set_options(self, request: Request) -> Response:
        """POST options: set the checkpoint and clip skip of later requests to these routes."""
        body = await bodies.read_json(request, self._draw.max_form_bytes)
        chosen, taken = settings.settings(body, negotiation.handling_of(request))
        negotiation.report(request, taken.unknown)
        if chosen.model is not None:
            spec = await self._model_of(chosen.model)
            chosen = replace(chosen, model=spec.id)
        user = self._user(request)
        user.chosen = chosen.over(user.chosen)
        return respond.json_bytes(_NULL)

    # --- images ---------------------------------------------------------------------------------

    async def png_info(self, request: Request) -> Response:
        """POST png-info: return the texts in an image file."""
        body = await bodies.read_json(request, self._draw.max_form_bytes)
        taken = take(body, ("image",), foreign={}, handling=negotiation.handling_of(request))
        negotiation.report(request, taken.unknown)
        image = taken.fields.get("image")
        if not isinstance(image, str):
            raise InvalidRequest("'image' is required.", reason=Reason.MISSING_FIELD, param="image")
        file = await asyncio.to_thread(pictures.file_of, "image", image)
        texts = await self._service.processor.texts(file)
        return respond.json_bytes(answers.png_info(texts))

    async def extra_single_image(self, request: Request) -> Response:
        """POST extra-single-image: enlarge an image."""
        body = await bodies.read_json(request, self._draw.max_form_bytes)
        handling = negotiation.handling_of(request)
        ask = await asyncio.to_thread(extras.parse_extra, body, handling)
        if (resize := extras.plain_resize(ask)) is not None:
            negotiation.report(request, ask.unknown)
            data = await self._resized(resize)
            return respond.json_bytes(answers.extra_file(data, ask.warnings))
        return await self._draw.deliver(request, ask, None, answers.extra_answer)

    async def extra_batch_images(self, request: Request) -> Response:
        """POST extra-batch-images: enlarge several images, one job after the other."""
        body = await bodies.read_json(request, self._draw.max_form_bytes)
        given = {
            "Idempotency-Key": "idempotency-key" in request.headers,
            "Prefer: respond-async": negotiation.prefers_no_wait(request),
        }
        for header in (name for name, is_given in given.items() if is_given):
            raise InvalidRequest(
                f"'{header}' is not supported on this route, which makes several jobs.",
                reason=Reason.NOT_SUPPORTED,
                param=header.partition(":")[0],
            )
        handling = negotiation.handling_of(request)
        asks = await asyncio.to_thread(extras.parse_batch, body, handling)
        negotiation.report(request, asks[0].unknown)
        files = []
        for ask in asks:
            if (resize := extras.plain_resize(ask)) is not None:
                files.append(await self._resized(resize))
                continue
            job = await self._draw.finished(request, await self._draw.submit(request, ask))
            if job is None:
                return Response(status_code=499)
            if (error := job.error()) is not None:
                raise error
            files.append(job.images[0].content)
        return respond.json_bytes(answers.extra_files(files, asks[0].warnings))

    async def _resized(self, resize: extras.PlainResize) -> bytes:
        limit = self._service.limits.enlarged
        return await self._service.processor.enlarge(
            resize.file, resize.factor, limit, nearest=resize.nearest
        )
