"""Requests as real clients send them: addresses, proxies, origins, keys, bodies and uploads."""

from __future__ import annotations

import gzip
import http.client
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from sdstream.web.route import ApiRoute
from tests.support.jobs import ASYNC, begin
from tests.support.pictures import file_of
from tests.support.routes import routes
from tests.support.servers import GENERATIONS, ServerProcess, running_server, wait_until

QUICK: dict[str, Any] = {"prompt": "a circle", "size": "64x64", "sample_steps": 2}
KEY = {"Authorization": "Bearer the-key"}

#: Method and path of each route, and whether it needs no key.
EVERY = [
    (route.method, re.sub(r"{[\w:]+}", "nobody", route.path), route.is_open)
    for route in routes()
    if isinstance(route, ApiRoute)
]
STATIC = ("GET", "/static/app.js", True)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with a key and an allowed origin, which trusts a proxy on this machine."""
    with running_server(
        tmp_path_factory.mktemp("guarded"),
        engine="fake",
        api_keys="the-key",
        cors_origins="https://page.example",
        trusted_proxies="127.0.0.1",
    ) as server:
        yield server


def ask(
    server: ServerProcess, method: str, path: str, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Send a request without changing its path; return the answer's status, headers and body."""
    connection = http.client.HTTPConnection(*server.address, timeout=30)
    body = b"<a/>" if method == "POST" else None
    given = {"Content-Type": "text/xml", **(headers or {})}
    connection.request(method, path, body, given)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), data


def spellings(path: str) -> list[str]:
    """Return other spellings of the same path."""
    doubled = path.replace("/", "//")
    return [doubled, f"/{path}", f"{path}/", f"{path}//", f"//{path.lstrip('/')}/?x=1"]


@pytest.mark.parametrize(("method", "path", "is_open"), [*EVERY, STATIC])
def test_slashes_of_every_route(
    guarded: ServerProcess, method: str, path: str, is_open: bool
) -> None:
    """Extra slashes change neither the answer nor the need for a key, and cause no redirect."""
    status, headers, _ = ask(guarded, method, path, KEY)
    assert status not in (301, 302, 307, 308)
    for other in spellings(path):
        again, told, _ = ask(guarded, method, other, KEY)
        assert (again, told.get("content-type")) == (status, headers.get("content-type")), other
        if not is_open:
            assert ask(guarded, method, other)[0] == 401


@pytest.mark.parametrize(
    "path",
    ["/v1/%2Fmodels", "/static/../v1/models", "/static/%2e%2e/v1/models",
     "//static//..//v1/models", "/%2Fv1/models", "/static/..%2f..%2fv1/models"],
)  # fmt: skip
def test_no_way_around_the_key(guarded: ServerProcess, path: str) -> None:
    """Escaped slashes and dot segments never lead to a route of the API."""
    status, _, body = ask(guarded, "GET", path)
    assert status in (401, 404)
    assert b"embedded" not in body
    assert ask(guarded, "GET", path, KEY)[0] == 404


def test_slashes_of_guards(fake_server: ServerProcess) -> None:
    """Extra slashes do not bypass the check of the origin, and the log has the plain path."""
    evil = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    for path in spellings(GENERATIONS):
        assert ask(fake_server, "POST", path, evil)[0] == 403
        query = "" if "?" in path else "?prompt=a"
        assert ask(fake_server, "GET", path + query, evil)[0] == 403
    ask(fake_server, "GET", "//v1//jobs//job_slashes/")
    wait_until(lambda: fake_server.log_lines("/v1/jobs/job_slashes 404"), 5, "no plain path")


def test_a_job_by_way_of_slashes(fake_server: ServerProcess) -> None:
    """A path with a doubled slash and a slash at its end generates an image."""
    answer = httpx2.post(f"{fake_server.url}//v1/images/generations/", json=QUICK)
    assert answer.status_code == 200
    assert answer.json()["data"]


@pytest.mark.parametrize(
    ("method", "path", "message"),
    [
        ("POST", "/v1/image/generation", "Did you mean /v1/images/generations?"),
        ("POST", "/v1/model", "Did you mean GET /v1/models?"),
        ("GET", "/sdapi/v1/sd-model", "Did you mean /sdapi/v1/sd-models?"),
        ("GET", "/wholly/unheard%0Aof", ""),
    ],
)
def test_near_names(fake_server: ServerProcess, method: str, path: str, message: str) -> None:
    """A 404 names the path as the client sent it, and the nearest route."""
    status, _, body = ask(fake_server, method, path)
    told = f"Route not found: {method} {path}. {message}".strip()
    assert (status, json.loads(body)["error"]["message"]) == (404, told)


# --- proxies ------------------------------------------------------------------------------------

FORWARDED = {
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "images.example",
    "X-Forwarded-Prefix": "/images",
}


def links(server: ServerProcess, headers: dict[str, str]) -> set[str]:
    """Return the base URLs of all links of a job: its status, its events and its images."""
    headers = {**KEY, **headers}
    job = begin(server, QUICK, headers)
    answer = server.post({**QUICK, "response_format": "url"}, headers=headers)
    found = httpx2.get(f"{server.url}/v1/jobs?limit=1", headers=headers).json()["data"][0]
    urls = [job["status_url"], job["events_url"], answer.json()["data"][0]["url"]]
    urls += [found["status_url"], found["images"][0]["url"]]
    assert all("/v1/" in url for url in urls)
    return {url[: url.index("/v1/")] for url in urls}


def test_links_behind_a_trusted_proxy(guarded: ServerProcess) -> None:
    """Links begin with the address that a trusted proxy reports."""
    assert links(guarded, FORWARDED) == {"https://images.example/images"}
    assert links(guarded, {"Forwarded": "proto=https;host=a.example"}) == {"https://a.example"}
    assert links(guarded, {}) == {guarded.url}


def test_links_without_a_trusted_proxy(fake_server: ServerProcess) -> None:
    """Forwarded headers are ignored by default, even from this machine."""
    assert links(fake_server, FORWARDED) == {fake_server.url}


def test_forwarded_headers_open_nothing(guarded: ServerProcess, tmp_path: Path) -> None:
    """Forwarded headers neither replace the key nor bypass the checks of Host and Origin."""
    assert guarded.post(QUICK, headers=FORWARDED).status_code == 401
    page = {"Host": "evil.example", "Origin": "http://evil.example"}
    local = {**FORWARDED, "X-Forwarded-Host": "localhost", "Forwarded": "host=localhost"}
    with running_server(tmp_path, engine="fake", trusted_proxies="127.0.0.0/8,::1") as server:
        refused = server.post(QUICK, headers={**page, **local})
        assert refused.json()["error"]["reason"] == "host_not_allowed"
        claimed = {"Origin": "http://images.example", **FORWARDED}
        refused = server.post(QUICK, headers=claimed)
        assert refused.json()["error"]["reason"] == "cross_origin"


def test_a_page_of_the_public_url(tmp_path: Path) -> None:
    """A page of the public URL may generate, whether its proxy forwards or replaces Host."""
    url = "https://images.example/sub/"
    with running_server(tmp_path, engine="fake", public_url=url) as server:
        for host in ("images.example", "127.0.0.1:8000"):
            page = {"Host": host, "Origin": "https://images.example"}
            answer = server.post(QUICK, headers={**page, **ASYNC})
            assert answer.status_code == 202
            assert answer.headers["Location"].startswith("https://images.example/sub/v1/jobs/")
        evil = {"Host": "127.0.0.1:8000", "Origin": "https://evil.example"}
        assert server.post(QUICK, headers=evil).status_code == 403


# --- names in Host ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server without keys that allows a few host names and trusts a proxy on this machine."""
    with running_server(
        tmp_path_factory.mktemp("known"),
        engine="fake",
        allowed_hosts="images.example, *.example.org:8000,[::1]",
        public_url="https://public.example/sub",
        trusted_proxies="127.0.0.1",
    ) as server:
        yield server


PROBES = {"/livez", "/readyz", "/health", "/v1/cluster/auth"}


@pytest.mark.parametrize(
    ("method", "path"), [*((method, path) for method, path, _ in EVERY), STATIC[:2]]
)
def test_other_names_on_every_route(known: ServerProcess, method: str, path: str) -> None:
    """Every route except the probes rejects a Host that is not allowed (DNS rebinding)."""
    for host in ("evil.example", "127.0.0.1", "localhost", "images.example.evil.example", "[::2]"):
        status, _, body = ask(known, method, path, {"Host": host})
        if path in PROBES:
            assert status != 403
        else:
            assert status == 403
            assert b"host_not_allowed" in body
            assert host.encode() in body
            assert b"--allowed-host" in body


@pytest.mark.parametrize(
    "host",
    ["images.example", "IMAGES.example:1", "a.b.example.org:8000", "[::1]:9", "public.example"],
)
def test_names_of_this_server(known: ServerProcess, host: str) -> None:
    """The allowed hosts and the host of the public URL are accepted."""
    page = {"Host": host, "Origin": f"http://{host}"}
    assert ask(known, "GET", "/v1/models", page)[0] == 200
    assert known.post(QUICK, headers=page).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X-Forwarded-Host": "images.example"}, 200),
        ({"X-Forwarded-Host": "evil.example"}, 403),
        ({"X-Forwarded-Host": "images.example, evil.example"}, 403),
        ({"X-Forwarded-Host": "evil.example, images.example"}, 200),
        ({"X-Forwarded-Host": "a b"}, 403),
        ({"Forwarded": "host=evil.example"}, 403),
        ({"Forwarded": 'host="images.example:443"'}, 200),
    ],
)
def test_the_host_that_a_proxy_reports(
    known: ServerProcess, headers: dict[str, str], status: int
) -> None:
    """The host that a proxy reports and the proxy's own Host must both be allowed."""
    assert ask(known, "GET", "/v1/models", {"Host": "images.example", **headers})[0] == status
    assert ask(known, "GET", "/v1/models", {"Host": "evil.example", **headers})[0] == 403


def test_requests_without_a_host(known: ServerProcess) -> None:
    """A server with allowed hosts rejects requests without Host, except on probes."""
    for path, status in (("/v1/models", b"403"), ("/livez", b"200")):
        with socket.create_connection(known.address, timeout=30) as connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            assert connection.recv(12).split()[1] == status


# --- pages of other origins, keys ----------------------------------------------------------------


def preflight(origin: str) -> dict[str, str]:
    """Return the headers of a browser's preflight for a call to a private address."""
    return {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Private-Network": "true",
    }


def test_private_networks(guarded: ServerProcess) -> None:
    """A preflight allows a listed origin and sends no CORS headers to another origin."""
    status, headers, _ = ask(guarded, "OPTIONS", GENERATIONS, preflight("https://page.example"))
    assert status == 200
    assert headers["access-control-allow-private-network"] == "true"
    status, headers, _ = ask(guarded, "OPTIONS", GENERATIONS, preflight("https://evil.example"))
    assert status == 400
    assert "access-control-allow-private-network" not in headers
    assert "access-control-allow-origin" not in headers


def test_exposed_headers(guarded: ServerProcess) -> None:
    """A page of an allowed origin can read Retry-After, X-Job-Id and other headers."""
    _, headers, _ = ask(guarded, "GET", "/v1/models", {**KEY, "Origin": "https://page.example"})
    exposed = headers["access-control-expose-headers"].split(", ")
    assert {"Retry-After", "x-should-retry", "X-Job-Id", "X-Warnings"} <= {*exposed}


def test_the_key_in_azures_header(guarded: ServerProcess) -> None:
    """The key is also accepted in Azure's api-key header."""
    assert guarded.post(QUICK, headers={"api-key": "the-key"}).status_code == 200
    assert guarded.post(QUICK, headers={"api-key": "another"}).status_code == 401


# --- bodies -------------------------------------------------------------------------------------


def test_packed_requests_draw(fake_server: ServerProcess) -> None:
    """JSON in gzip is accepted, with a Content-Length and in chunks."""
    packed = gzip.compress(json.dumps(QUICK).encode())
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    pieces = (packed[at : at + 5] for at in range(0, len(packed), 5))
    for content in (packed, pieces):
        answer = httpx2.post(fake_server.url + GENERATIONS, content=content, headers=headers)
        assert answer.status_code == 200
        assert answer.json()["data"][0]["b64_json"]


def test_a_bomb_holds_nobody_up(fake_server: ServerProcess) -> None:
    """The server answers other requests while it inflates a gzip bomb, which gets a 413."""
    body = b"--x\r\nContent-Disposition: form-data; name=image; filename=a\r\n\r\n"
    bomb = gzip.compress(body + bytes(2**29))
    head = (
        f"POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\n"
        f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(bomb)}\r\n\r\n"
    )
    with socket.create_connection(fake_server.address, timeout=30) as connection:
        connection.sendall(head.encode() + bomb)
        assert httpx2.get(f"{fake_server.url}/livez", timeout=5).status_code == 200
        assert b"413" in connection.recv(100)


# --- uploads ------------------------------------------------------------------------------------


def red_and_blue(kind: str, **options: Any) -> bytes:
    """Encode an image of 96 x 64 whose left half is red."""
    image = Image.new("RGB", (96, 64), "blue")
    image.paste((255, 0, 0), (0, 0, 48, 64))
    return file_of(image, kind, **options)


def edited(server: ServerProcess, **files: Any) -> httpx2.Response:
    """Send an edit that keeps the size of its image, and return the answer."""
    data = {"prompt": "a circle", "sample_steps": 2}
    return httpx2.post(f"{server.url}/v1/images/edits", files=files, data=data, timeout=30)


@pytest.mark.parametrize("kind", ["AVIF", "TIFF"])
def test_further_formats(fake_server: ServerProcess, kind: str) -> None:
    """AVIF and TIFF are accepted as images and as masks."""
    answer = edited(fake_server, image=red_and_blue(kind))
    assert answer.json()["parameters"]["size"] == "96x64"
    assert (
        edited(fake_server, image=red_and_blue("PNG"), mask=red_and_blue(kind)).status_code == 200
    )


def test_pages_of_a_tiff_that_is_turned(fake_server: ServerProcess) -> None:
    """The first page of a TIFF is used, in its EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pages = red_and_blue("TIFF", exif=exif, save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert edited(fake_server, image=pages).json()["parameters"]["size"] == "64x96"


def test_formats_that_are_not_read(fake_server: ServerProcess) -> None:
    """The error for an unsupported format names it and the supported formats."""
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    error = edited(fake_server, image=heic).json()["error"]
    assert error["message"] == (
        "Invalid image: HEIC is not supported; send PNG, JPEG, WebP, GIF, BMP, AVIF or TIFF."
    )
    assert (error["reason"], error["param"]) == ("invalid_image", "image")


def test_file_fields_that_were_left_empty(fake_server: ServerProcess) -> None:
    """An empty file field counts as absent: only the required image causes an error."""
    body = (
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na circle\r\n'
        b'--x\r\nContent-Disposition: form-data; name="mask"; filename=""\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n\r\n"
        b'--x\r\nContent-Disposition: form-data; name="control"; filename=""\r\n\r\n\r\n'
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    )
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    url = f"{fake_server.url}/v1/images/edits"
    whole = body + red_and_blue("PNG") + b"\r\n--x--\r\n"
    assert httpx2.post(url, content=whole, headers=headers, timeout=30).status_code == 200
    empty = body.replace(b"a.png", b"") + b"\r\n--x--\r\n"
    error = httpx2.post(url, content=empty, headers=headers).json()["error"]
    assert (error["reason"], error["param"]) == ("missing_field", "image")
