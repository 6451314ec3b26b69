"""The routes of the application, for tests that check all of them."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from starlette.routing import BaseRoute

from sdstream.settings import Settings
from sdstream.web.application import build_app
from sdstream.web.openapi import openapi_document


@cache
def routes() -> list[BaseRoute]:
    """The routes of an application that is not started."""
    folder = Path(tempfile.gettempdir()) / "never-opened"
    app = build_app(Settings(data_dir=folder, cache_dir=folder, engine="fake"))
    return app.routes


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document of these routes."""
    return openapi_document(routes())
