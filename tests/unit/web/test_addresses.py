"""Normalised paths, URLs of links behind proxies, and suggestions for misspelled routes."""

from __future__ import annotations

import asyncio
from ipaddress import ip_network

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from sdstream.web.addresses import Links, PlainSlashes
from sdstream.web.route import nearest_route
from tests.support.routes import routes

# --- slashes


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ("/", "/"),
        ("//", "/"),
        ("/v1/models", "/v1/models"),
        ("//v1///models", "/v1/models"),
        ("/v1/models/", "/v1/models"),
        ("/v1/models//", "/v1/models"),
        ("/v1%2F%2Fmodels", "/v1//models"),
        ("//v1/%2Fmodels", "/v1//models"),
        ("/v1/models%2F", "/v1/models/"),
        ("/static/../v1/models", "/static/../v1/models"),
        ("//static/%2e%2e/v1", "/static/../v1"),
        ("/a%25b//c", "/a%b/c"),
        ("*", "*"),
    ],
)
def test_slashes(raw: str, path: str) -> None:
    """Repeated and trailing slashes are removed; escaped slashes and dots are kept."""
    seen = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope["path"])

    async def nothing(*_: object) -> Message:
        return {"type": "http.disconnect"}

    decoded = raw.replace("%2F", "/").replace("%2e", ".").replace("%25", "%")
    scope = {"type": "http", "path": decoded, "raw_path": raw.encode()}
    asyncio.run(PlainSlashes(app)(scope, nothing, nothing))  # type: ignore[arg-type]
    assert seen == [path]


# --- links

PROXY = [ip_network("10.0.0.0/8"), ip_network("::1")]


def base(links: Links, peer: str | None = "10.1.2.3", **headers: str) -> str:
    """Return the base URL of links in the response to a request."""
    raw = [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in headers.items()]
    scope = {
        "type": "http",
        "scheme": "http",
        "path": "/v1/models",
        "query_string": b"",
        "server": ("127.0.0.1", 8000),
        "client": (peer, 1) if peer else None,
        "headers": [(b"host", b"inner:8000"), *raw],
    }
    return links.base(Request(scope))


FORWARDED = {
    "x_forwarded_proto": "https",
    "x_forwarded_host": "images.example",
    "x_forwarded_prefix": "/images",
}


@pytest.mark.parametrize("peer", ["10.1.2.3", "::1", "::ffff:10.1.2.3"])
def test_a_trusted_proxy(peer: str) -> None:
    """Links have the scheme, host and prefix that a trusted proxy forwards."""
    assert base(Links(None, PROXY), peer, **FORWARDED) == "https://images.example/images"
    assert base(Links(None, PROXY), peer) == "http://inner:8000"


@pytest.mark.parametrize("peer", ["11.1.2.3", "::2", "::ffff:11.1.2.3", "testclient", None])
def test_other_peers(peer: str | None) -> None:
    """Forwarded headers of other peers are ignored, as are all of them without the setting."""
    assert base(Links(None, PROXY), peer, **FORWARDED) == "http://inner:8000"
    assert base(Links(), "127.0.0.1", **FORWARDED) == "http://inner:8000"


def test_the_public_url_is_fixed() -> None:
    """Links have the configured public URL regardless of proxy headers."""
    assert base(Links("https://a.example/b", PROXY), **FORWARDED) == "https://a.example/b"


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({"forwarded": 'for=1.2.3.4;proto=https;host="a.example:8443"'}, "https://a.example:8443"),
        ({"forwarded": "Proto=HTTPS; Host=a.example"}, "https://a.example"),
        ({"forwarded": "host=evil.example, host=a.example"}, "http://a.example"),
        ({"forwarded": "host=a.example", "x_forwarded_host": "b.example"}, "http://b.example"),
        ({"forwarded": "nonsense;;="}, "http://inner:8000"),
        ({"x_forwarded_host": "evil.example, a.example"}, "http://a.example"),
        ({"x_forwarded_host": "[::1]:8443"}, "http://[::1]:8443"),
        ({"x_forwarded_proto": "http, https"}, "https://inner:8000"),
        ({"x_forwarded_prefix": "/a/b/"}, "http://inner:8000/a/b"),
        ({"x_forwarded_prefix": "/"}, "http://inner:8000"),
    ],
)
def test_spellings_of_proxies(headers: dict[str, str], found: str) -> None:
    """Of several values, the last counts, which the nearest proxy added."""
    assert base(Links(None, PROXY), **headers) == found


@pytest.mark.parametrize(
    "headers",
    [
        *({"x_forwarded_proto": value} for value in ("ftp", "javascript", "https://x", "")),
        *(
            {"x_forwarded_host": value}
            for value in ("a b", "evil@a", "a/b", "a:b", "a:999999", "<a>", "a?b", "[::1", "")
        ),
        *(
            {"x_forwarded_prefix": value}
            for value in (
                *("images", "//evil.example", "/a//b", "https://evil.example", "/a/../b", "/.."),
                *(
                    "/a?b",
                    "/a#b",
                    "/a b",
                    "/a\tb",
                    "/a\\b",
                    '/"a',
                    "/<a>",
                    "/%2e%2e/b",
                    "/a%2f%2fb",
                ),
                *("/a%00b", "/a%0ab", "/a%5cb", "/\u00e9", "/" + "a" * 256),
            )
        ),
    ],
)
def test_what_no_proxy_would_say(headers: dict[str, str]) -> None:
    """An invalid forwarded value is ignored."""
    assert base(Links(None, PROXY), **headers) == "http://inner:8000"


# --- near names


def near(method: str, path: str) -> str | None:
    """Return the method and path of the route that is suggested for a request."""
    app = Starlette(routes=routes())
    found = nearest_route({"type": "http", "app": app, "method": method, "path": path})
    return f"{found.method} {found.path}" if found else None


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("POST /v1/image/generation", "POST /v1/images/generations"),
        ("POST /images/generations", "POST /v1/images/generations"),
        ("POST /v1/v1/images/generations", "POST /v1/images/generations"),
        ("GET /v1/image/generations", "GET /v1/images/generations"),
        ("POST /v1/images/edit", "POST /v1/images/edits"),
        ("POST /sdapi/v1/text2img", "POST /sdapi/v1/txt2img"),
        ("GET /v1/model", "GET /v1/models"),
        ("HEAD /v1/modles", "GET /v1/models"),
        ("POST /v1/jobs/job_1/cancell", "POST /v1/jobs/{job}/cancel"),
        ("GET /helth", "GET /health"),
        ("POST /v1/embeddings", None),
        ("GET /favicon.ico", None),
        ("GET /v1/foo/default", None),
        ("GET /" + "a" * 5_000, None),
    ],
)
def test_near_names(asked: str, meant: str | None) -> None:
    """A route is suggested for a typing error only."""
    assert near(*asked.split(" ", 1)) == meant
