"""The synchronous client, which runs the asynchronous client on an event loop in a thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Self

from sdstream.blocking import BackgroundLoop
from sdstream.client.http import AsyncClient
from sdstream.client.results import (
    Image,
    ImageFile,
    ImagesResponse,
    JsonObject,
    Progress,
    ProgressCallback,
)


class Client:
    """HTTP client of one sdstream server. Use it as a context manager, or call ``close``.

    Methods have the arguments and the errors of ``AsyncClient``. Callbacks run in the calling
    thread.

    Args:
        base_url: Address of the server, without /v1.
        api_key: Sent as a bearer token if given.

    Attributes:
        jobs: The jobs of this API key.

    Raises:
        ConnectionFailed: The address is not valid, the key cannot be sent, or the environment names
            a proxy that is not supported.
    """

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        self._loop = BackgroundLoop(AsyncClient(base_url, api_key))
        self._client = self._loop.resource
        self.jobs = Jobs(self._loop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._loop.close()

    def models(self) -> list[JsonObject]:
        """List the models of the server."""
        return self._loop.run(self._client.models())

    def reload_models(self) -> JsonObject:
        """Tell the server to read its models.yaml again; returns the changes."""
        return self._loop.run(self._client.reload_models())

    def image(self, url: str) -> bytes:
        """Download the file of a job's image."""
        return self._loop.run(self._client.image(url))

    def generate(
        self,
        prompt: str,
        *,
        on_progress: ProgressCallback | None = None,
        previews: bool = False,
        **options: Any,
    ) -> ImagesResponse:
        """Generate images and wait for them."""
        work = partial(self._client.generate, prompt, previews=previews, **options)
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
        """Generate images from an input image and wait for them."""
        work = partial(self._client.edit, image, prompt, mask=mask, previews=previews, **options)
        return self._loop.run_with_reports(lambda report: work(on_progress=report), on_progress)

    def stream(
        self, prompt: str, *, previews: bool = False, **options: Any
    ) -> Iterator[Progress | Image]:
        """Generate images and yield progress and images as they come."""
        return self._loop.iterate(self._client.stream(prompt, previews=previews, **options))


class Jobs:
    """The jobs of one server; methods have the arguments and the errors of ``AsyncJobs``."""

    def __init__(self, loop: BackgroundLoop[AsyncClient]) -> None:
        self._loop = loop
        self._jobs = loop.resource.jobs

    def create(self, prompt: str, **options: Any) -> JsonObject:
        """Start a job that continues without its client, and return the job."""
        return self._loop.run(self._jobs.create(prompt, **options))

    def list(self, *, status: str = "", limit: int = 20, **filters: str) -> _List[JsonObject]:
        """List the newest jobs that meet the conditions."""
        return self._loop.run(self._jobs.list(status=status, limit=limit, **filters))

    def get(self, job: str) -> JsonObject:
        """Return a job as it is now."""
        return self._loop.run(self._jobs.get(job))

    def result(self, job: str) -> ImagesResponse:
        """Return the images of a completed job; raises APIError with status 202 before its end."""
        return self._loop.run(self._jobs.result(job))

    def cancel(self, job: str) -> JsonObject:
        """Stop a job and return the job; its key ``cancel`` has the outcome."""
        return self._loop.run(self._jobs.cancel(job))

    def cancel_group(self, group: str) -> _List[str]:
        """Stop the jobs of a group that have not ended and return their ids."""
        return self._loop.run(self._jobs.cancel_group(group))

    def delete(self, job: str) -> None:
        """Delete a job and its images; an unfinished job is stopped first."""
        self._loop.run(self._jobs.delete(job))

    def follow(self, job: str) -> Iterator[JsonObject]:
        """Yield a job as it is now and after each change, until it ends."""
        return self._loop.iterate(self._jobs.follow(job))


# The method ``list`` hides the type inside Jobs.
_List = list
