"""Runs models from Python without an HTTP server: the library's ``Runner``.

A runner starts the same service as ``sdstream serve``: a queue, and a worker process for each
loaded model. A crash of the runtime ends the worker process, not the program.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Self

from sdstream.blocking import BackgroundLoop
from sdstream.client.results import (
    Image,
    ImageFile,
    ImagesResponse,
    JsonObject,
    Progress,
    ProgressCallback,
    read_files,
    reject_answer_options,
)
from sdstream.core import messages
from sdstream.core.ask import ParsedRequest
from sdstream.core.job import (
    Entry,
    ImageResult,
    Job,
    JobStatus,
    Loading,
    PreviewReady,
    Queued,
    Running,
    Terms,
)
from sdstream.core.queue import Priority
from sdstream.dialects.openai.request import parse, parse_form
from sdstream.dialects.rendering import parameters, usage_fields
from sdstream.service.assembly import Assembly, assemble
from sdstream.service.live_jobs import LiveJob
from sdstream.settings import Settings

#: Settings that affect an HTTP server only.
_SERVER_SETTINGS: Final = (
    *("host", "port", "api_keys", "high_priority_keys", "cors_origins", "public_url", "pull"),
    *("trusted_proxies", "database", "images", "standby"),
    *("max_body_mb", "keepalive_seconds", "grace_seconds", "log_level"),
    *("webhook_hosts", "webhook_secret", "webhook_private"),
)

#: Seconds without an event after which ``follow`` yields None.
_IDLE_SECONDS: Final = 60.0


class AsyncRunner:
    """Runs models in worker processes of this program. Use it as an asynchronous context manager.

    The runner begins to load the default model when its context is entered. Requests wait in one
    queue.

    Args:
        model: Model of the catalogue, a weight file, or "default".
        data_dir: Folder in which the runner stores images. The default is a temporary folder,
            which is deleted when the runner is closed. Each runner and each server needs its own
            folder.
        settings: Other settings of ``sdstream serve``, for example models, lora_dir, memory_mb.
            The SDSTREAM_* environment variables apply to settings that are not given.

    Raises:
        TypeError: A setting affects an HTTP server only.
        pydantic.ValidationError: A setting has an invalid value.
    """

    def __init__(
        self, model: str = "default", *, data_dir: str | Path | None = None, **settings: Any
    ) -> None:
        for name in _SERVER_SETTINGS:
            if name in settings:
                raise TypeError(f"'{name}' is a setting of the HTTP server, not of a runner.")
        if model != "default":
            settings["model"] = model
        self._data_dir = data_dir
        self._settings = Settings(**settings)
        self._open = AsyncExitStack()
        self._assembly: Assembly | None = None
        self._live: list[LiveJob] = []
        #: Number of calls of ``cancel``, which also concern requests that are being submitted.
        self._cancels = 0

    async def __aenter__(self) -> Self:
        """Start the service.

        Raises:
            CatalogError: models.yaml cannot be used.
            ModelError: The default model cannot be used.
            StoreError: The data folder cannot be used.
        """
        async with AsyncExitStack() as opening:
            folder = self._data_dir
            if folder is None:
                folder = opening.enter_context(TemporaryDirectory(prefix="sdstream-"))
            settings = self._settings.private(Path(folder))
            assembly = await asyncio.to_thread(assemble, settings)
            await opening.enter_async_context(assembly.running())
            self._assembly, self._open = assembly, opening.pop_all()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop running requests, end the worker processes and delete a temporary data folder."""
        self._assembly = None
        await self._open.aclose()

    async def generate(
        self,
        prompt: str,
        *,
        on_progress: ProgressCallback | None = None,
        previews: bool = False,
        **options: Any,
    ) -> ImagesResponse:
        """Generate images and wait for them.

        Cancelling the task stops the generation within one step.

        Args:
            prompt: Text that describes the image.
            on_progress: Called after each sampling step; an exception cancels the request.
            previews: Add a preview to the progress of each step.
            options: Other options of POST /v1/images/generations: n, size, seed and so on.

        Returns:
            The images; ``url`` of each is the path of its file in the data folder.

        Raises:
            InvalidRequest: An option is unknown or has an invalid value.
            JobWasCancelled: ``cancel`` stopped the request.
            ImageServiceError: The request failed; its subclasses name the cause.
        """
        ask = parse(_body(prompt, previews, options))
        return await self._run(ask, on_progress, self._cancels)

    async def edit(
        self,
        image: ImageFile | Sequence[ImageFile],
        prompt: str,
        *,
        mask: ImageFile | None = None,
        on_progress: ProgressCallback | None = None,
        previews: bool = False,
        **options: Any,
    ) -> ImagesResponse:
        """Generate images from an input image and wait for them.

        Args:
            image: Path or bytes of the input image, or a sequence of these.
            prompt: Text that describes the result.
            mask: Image file that marks the area to repaint; see the option mask_mode.
            on_progress: Called after each sampling step; an exception cancels the request.
            previews: Add a preview to the progress of each step.
            options: Other options of POST /v1/images/edits: strength, size, seed and so on.

        Returns:
            The images; ``url`` of each is the path of its file in the data folder.

        Raises:
            InvalidRequest: An option or an image is not valid.
            JobWasCancelled: ``cancel`` stopped the request.
            ImageServiceError: The request failed; its subclasses name the cause.
            OSError: An image file cannot be read.
        """
        cancels = self._cancels
        files = await asyncio.to_thread(read_files, image, mask)
        ask = parse_form(_body(prompt, previews, options), files)
        return await self._run(ask, on_progress, cancels)

    def cancel(self) -> None:
        """Cancel all requests of this runner: waiting ones at once, running ones within a step."""
        self._cancels += 1
        for live in self._live:
            self.assembly.service.cancel(live, "The request was cancelled.")

    async def _run(
        self, ask: ParsedRequest, on_progress: ProgressCallback | None, cancels: int
    ) -> ImagesResponse:
        """Submit a request and wait for its images.

        Args:
            ask: The request.
            on_progress: See ``generate``.
            cancels: Number of calls of ``cancel`` when the request was made.
        """
        service = self.assembly.service
        terms = Terms(
            operation=ask.operation,
            priority=Priority(ask.reply.priority),
            as_url=True,  # the request fails if its images cannot be stored
        )
        live = await service.submit(ask, terms)
        if self._cancels != cancels:
            service.cancel(live, "The request was cancelled.")
        self._live.append(live)
        reader = _Reader(live.job)
        try:
            async for entry in service.follow(live, _IDLE_SECONDS):
                progress = reader.progress(entry) if entry else None
                if progress is not None and on_progress is not None:
                    on_progress(progress)
        finally:
            self._live.remove(live)
            if not live.over:
                service.cancel(live, "The request was cancelled.")
        error = live.job.error()
        if error is not None:
            raise error
        return self._response(live.job)

    @property
    def assembly(self) -> Assembly:
        """The service that runs the requests; raises RuntimeError if the runner is not open."""
        if self._assembly is None:
            raise RuntimeError("The runner is not open. Use 'async with AsyncRunner(...)'.")
        return self._assembly

    def _response(self, job: Job) -> ImagesResponse:
        return ImagesResponse(
            data=tuple(self._image(job, image) for _, image in sorted(job.images.items())),
            model=job.request.model,
            parameters=parameters(job.request),
            usage=usage_fields(job.usage()),
            warnings=job.request.warnings,
        )

    def _image(self, job: Job, image: ImageResult) -> Image:
        kind = job.request.output_format
        path = self.assembly.store.location(image, kind)
        return Image(image.index, image.seed, image.content, kind, path)


class Runner:
    """Runs models in worker processes of this program, for code without an event loop.

    The constructor starts the service in a background thread and begins to load the model. Use
    the runner as a context manager, or call ``close``. Methods may be called from several threads;
    requests wait in one queue. Callbacks run in the calling thread.

    The arguments are those of ``AsyncRunner``. The constructor raises the errors of the constructor
    of ``AsyncRunner`` and of entering its context.
    """

    def __init__(
        self, model: str = "default", *, data_dir: str | Path | None = None, **settings: Any
    ) -> None:
        self._loop = BackgroundLoop(AsyncRunner(model, data_dir=data_dir, **settings))
        self._runner = self._loop.resource

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop running requests, end the worker processes and delete a temporary data folder."""
        self._loop.close()

    def generate(
        self,
        prompt: str,
        *,
        on_progress: ProgressCallback | None = None,
        previews: bool = False,
        **options: Any,
    ) -> ImagesResponse:
        """Generate images and wait for them; see ``AsyncRunner.generate``."""
        work = partial(self._runner.generate, prompt, previews=previews, **options)
        return self._loop.run_with_reports(lambda report: work(on_progress=report), on_progress)

    def edit(
        self,
        image: ImageFile | Sequence[ImageFile],
        prompt: str,
        *,
        mask: ImageFile | None = None,
        on_progress: ProgressCallback | None = None,
        previews: bool = False,
        **options: Any,
    ) -> ImagesResponse:
        """Generate images from an input image and wait for them; see ``AsyncRunner.edit``."""
        work = partial(self._runner.edit, image, prompt, mask=mask, previews=previews, **options)
        return self._loop.run_with_reports(lambda report: work(on_progress=report), on_progress)

    def cancel(self) -> None:
        """Cancel all requests of this runner. Callbacks and any thread may call this method."""
        self._loop.call_soon(self._runner.cancel)


class _Reader:
    """Converts the entries of a job to progress reports."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._counted = messages.counted_phase(job.request)
        self._preview: PreviewReady | None = None

    def progress(self, entry: Entry) -> Progress | None:
        """Return the progress after an entry, or None if the entry does not report progress."""
        match entry.event:
            case Queued():
                return self._waiting(JobStatus.QUEUED)
            case Loading():
                return self._waiting(JobStatus.LOADING)
            case Running():
                return self._waiting(JobStatus.RUNNING)
            case PreviewReady():
                # The runtime reports the preview of a step just before it reports the step.
                self._preview = entry.event
                return None
            case messages.Progress(phase=self._counted, step=step) as at if step:
                preview, self._preview = self._preview, None
                shown = preview.data if preview and preview.index == at.index else b""
                percent = round(100 * at.share, 2)
                status = JobStatus.RUNNING.value
                return Progress(at.index, percent, status, step, at.steps, shown or None)
            case _:
                return None

    def _waiting(self, status: JobStatus) -> Progress:
        return Progress(len(self._job.images), 0.0, status.value, 0, self._job.request.steps)


def _body(prompt: str, previews: bool, options: JsonObject) -> JsonObject:
    """Return the JSON body that a client would send.

    Raises:
        TypeError: An option affects HTTP answers only.
    """
    reject_answer_options(options, "on_disconnect", "webhook_url")
    return {"prompt": prompt, **options, "stream_options": {"preview": previews}}
