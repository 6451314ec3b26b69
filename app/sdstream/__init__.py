"""sdstream: a streaming image service over stable-diffusion.cpp.

``Runner`` and ``AsyncRunner`` run models from Python; ``Client`` and ``AsyncClient`` call a server.
All of them are imported on first use, so ``import sdstream`` stays cheap in worker processes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdstream.client.answers import APIError, ConnectionFailed
    from sdstream.client.http import AsyncClient
    from sdstream.client.results import Image, ImagesResponse, Progress
    from sdstream.client.sync import Client
    from sdstream.core.errors import ImageServiceError, InvalidRequest, JobWasCancelled
    from sdstream.runner import AsyncRunner, Runner

__version__ = "0.1.0"

__all__ = [
    "APIError",
    "AsyncClient",
    "AsyncRunner",
    "Client",
    "ConnectionFailed",
    "Image",
    "ImageServiceError",
    "ImagesResponse",
    "InvalidRequest",
    "JobWasCancelled",
    "Progress",
    "Runner",
]

_MODULES = {
    "sdstream.client.answers": ("APIError", "ConnectionFailed"),
    "sdstream.client.http": ("AsyncClient",),
    "sdstream.client.results": ("Image", "ImagesResponse", "Progress"),
    "sdstream.client.sync": ("Client",),
    "sdstream.core.errors": ("ImageServiceError", "InvalidRequest", "JobWasCancelled"),
    "sdstream.runner": ("AsyncRunner", "Runner"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name on its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sdstream' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return [*globals(), *__all__]
