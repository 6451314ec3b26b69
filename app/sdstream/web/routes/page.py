"""The web page and the API reference: files of the package with strict security headers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike, stat_result
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from sdstream.dialects.rendering import compact
from sdstream.web import negotiation, respond
from sdstream.web.route import ApiRoute, Operation

_STATIC: Final = Path(__file__).parents[1] / "static"
_VENDOR: Final = Path(__file__).parents[1] / "vendor"

#: The page loads everything from this server, except some images: data: is for previews, and blob:
#: is for images that the user chose.
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)

#: Swagger UI inserts sanitised HTML without Trusted Types, uses inline styles, and shows images
#: that answers contain.
_REFERENCE_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

_HEADERS: Final[Mapping[str, str]] = {
    # Browsers keep the files but revalidate them at each use, so that an upgrade takes effect.
    "Cache-Control": "no-cache",
    "Content-Security-Policy": _POLICY,
    # URLs of images may contain a token, so other sites must not see them. This server needs the
    # Referer: over plain HTTP, only the Referer shows that the page sent an EventSource request.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class _PageFiles(StaticFiles):
    """Static files with the page's headers."""

    def file_response(
        self,
        full_path: str | PathLike[str],
        stat_result: stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(_HEADERS)
        return response


def routes(default_model: Callable[[], str]) -> list[BaseRoute]:
    """Return the routes of the page (/), the API reference (/docs) and their files (/static).

    They need no key.

    Args:
        default_model: Returns the id of the default model.

    Raises:
        RuntimeError: The files are not in the package.
    """
    files = _PageFiles(directory=_STATIC)
    vendor = _PageFiles(directory=_VENDOR)

    async def index(request: Request) -> Response:
        """GET /: return the page to browsers, which prefer HTML in Accept, and JSON to programs.

        SillyTavern reads ``model`` and ``upscaler`` from the JSON, as from DrawThings' server.
        """
        if negotiation.prefers(request, "text/html", "application/json"):
            response = await files.get_response("index.html", request.scope)
        else:
            fields = {"name": "sdstream", "model": default_model(), "upscaler": None}
            response = respond.json_bytes(compact(fields))
        response.headers["Vary"] = "Accept"
        return response

    async def reference(request: Request) -> Response:
        """GET /docs."""
        response = await files.get_response("docs.html", request.scope)
        response.headers["Content-Security-Policy"] = _REFERENCE_POLICY
        return response

    page = Operation("Get the web page", {200: {"text/html": {"type": "string"}}})
    described = Operation("Get the API reference", {200: {"text/html": {"type": "string"}}})
    return [
        ApiRoute("/", index, page, is_open=True),
        ApiRoute("/docs", reference, described, is_open=True),
        Mount("/static/vendor", vendor, name="vendor"),
        Mount("/static", files, name="static"),
    ]
