"""Every route with every kind of invalid input: all errors have one format, and none is a 500."""

from __future__ import annotations

import base64
import gzip
import re
from typing import Any

import httpx2
import pytest

from sdstream.web.schemas import EXAMPLE_IMAGE
from tests.support.routes import document
from tests.support.servers import ServerProcess

POSTS = [
    re.sub(r"{\w+}", "default", path)
    for path, operations in document()["paths"].items()
    if "post" in operations
]
GETS = [path for path, operations in document()["paths"].items() if "get" in operations]

JSON = {"Content-Type": "application/json"}
STRICT = {**JSON, "Prefer": "handling=strict"}
FORM = {"Content-Type": "multipart/form-data; boundary=x"}

#: Name of a fault -> arguments of the request, which is invalid for JSON and for form routes.
BAD: dict[str, dict[str, Any]] = {
    "nothing": {"content": b"", "headers": JSON},
    "no json": {"content": b"{", "headers": JSON},
    "a list": {"content": b"[1]", "headers": JSON},
    "NaN": {"content": b'{"prompt": "a", "cfg_scale": NaN}', "headers": JSON},
    "no UTF-8": {"content": b'{"prompt": "\xff"}', "headers": JSON},
    "deep": {"content": b'{"prompt": ' + b"[" * 50_000, "headers": JSON},
    "twice": {"content": b'{"prompt": "a", "prompt": "b"}', "headers": JSON},
    "half a character": {"content": b'{"\\ud800": "\\ud800"}', "headers": STRICT},
    "unknown field": {"json": {"prompt": "a", "unheard_of": 1}, "headers": STRICT},
    "wrong types": {
        "json": {"prompt": 7, "image": 7, "steps": "x", "init_images": 7, "messages": 7},
        "headers": STRICT,
    },
    "another type of body": {"content": b"<a/>", "headers": {"Content-Type": "text/xml"}},
    "a form cut short": {
        "content": b'--x\r\nContent-Disposition: form-data; name="image"',
        "headers": FORM,
    },
    "a form without a boundary": {
        "content": b"x",
        "headers": {"Content-Type": "multipart/form-data"},
    },
    "a form of garbage": {"files": {"image": b"garbage"}, "data": {"prompt": "a", "n": "many"}},
    "an unknown file": {"files": {"nothing": b"garbage"}, "data": {"prompt": "a"}},
}

#: Routes that read no body or accept any.
BODILESS = {
    "/v1/tokens",
    "/v1/models/reload",
    "/v1/models/default/load",
    "/v1/models/default/unload",
    "/v1/models/default/requests/default/abort",
    "/sdcpp/v1/jobs/default/cancel",
    "/sdcpp/v1/vid_gen",
    "/sdapi/v1/interrupt",
    "/sdapi/v1/skip",
    "/sdapi/v1/unload-checkpoint",
    "/sdapi/v1/reload-checkpoint",
    *(path for path in POSTS if path.startswith("/sdapi/v1/refresh-")),
    # No model supports these, so they read no body.
    "/sdapi/v1/interrogate",
    "/controlnet/detect",
}


def check_shape(answer: httpx2.Response) -> dict[str, Any]:
    """Check that an error has all its members and the answer's status, and return it."""
    body = answer.json()
    # sd-server's API has the message under "error"; the other members are beside it.
    error: dict[str, Any] = body["error"] if isinstance(body["error"], dict) else body
    assert {"code", "message", "type", "param", "reason"} <= set(error)
    assert error["code"] == answer.status_code
    assert error["message"]
    assert body["detail"]
    return error


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("what", BAD)
def test_bad_bodies(fake_server: ServerProcess, path: str, what: str) -> None:
    """Each route answers each invalid body with a 4xx in the common format."""
    if path in BODILESS:
        pytest.skip("the route reads no body")
    answer = httpx2.post(fake_server.url + path, timeout=20, **BAD[what])
    assert 400 <= answer.status_code < 500, answer.text
    check_shape(answer)


@pytest.mark.parametrize("path", POSTS)
def test_the_wrong_method(fake_server: ServerProcess, path: str) -> None:
    """A wrong method gets a 405 in the common format."""
    answer = httpx2.request("PUT", fake_server.url + path)
    assert answer.status_code == 405
    check_shape(answer)


@pytest.mark.parametrize("path", [path for path in GETS if "{" in path])
def test_what_is_not_there(fake_server: ServerProcess, path: str) -> None:
    """An unknown id gets a 404 in the common format."""
    answer = httpx2.get(fake_server.url + re.sub(r"{\w+}", "nobody", path))
    assert answer.status_code == 404
    check_shape(answer)


#: Path of each route that reads a body -> its media types.
READERS = {
    re.sub(r"{\w+}", "default", path): {*operations["post"]["requestBody"]["content"]}
    for path, operations in document()["paths"].items()
    if "requestBody" in operations.get("post", {})
    and re.sub(r"{\w+}", "default", path) not in BODILESS
}


@pytest.mark.parametrize("path", READERS)
def test_packed_bodies_are_read(fake_server: ServerProcess, path: str) -> None:
    """A body in gzip gets the same answer as the plain body, on JSON and on form routes."""
    for what in ("unknown field", "a form of garbage"):
        with httpx2.Client() as client:
            request = client.build_request("POST", fake_server.url + path, **BAD[what])
        headers = {"Content-Type": request.headers["Content-Type"], "Prefer": "handling=strict"}
        plain = httpx2.post(fake_server.url + path, content=request.read(), headers=headers)
        packed = httpx2.post(
            fake_server.url + path,
            content=gzip.compress(request.read()),
            headers={**headers, "Content-Encoding": "gzip"},
        )
        assert (packed.status_code, packed.json()) == (plain.status_code, plain.json())


@pytest.mark.parametrize("path", READERS)
def test_bodies_in_other_codings(fake_server: ServerProcess, path: str) -> None:
    """An unsupported coding gets a 415, invalid gzip a 400, and a gzip bomb a 413."""
    headers, begin = JSON, b""
    if READERS[path] == {"multipart/form-data"}:
        headers, begin = (
            FORM,
            b"--x\r\nContent-Disposition: form-data; name=image; filename=a\r\n\r\n",
        )
    bomb = gzip.compress(begin + bytes(2**27))
    for coding, body, status, reason in (
        ("br", b"x", 415, "unsupported_media_type"),
        ("gzip", b"x", 400, "invalid_coding"),
        ("gzip", bomb, 413, "body_too_large"),
    ):
        answer = httpx2.post(
            fake_server.url + path,
            content=body,
            headers={**headers, "Content-Encoding": coding},
            timeout=60,
        )
        assert (answer.status_code, check_shape(answer)["reason"]) == (status, reason)


#: Routes with a JSON body that no example can make succeed: nothing supports them, or they need a
#: job or an MCP session.
WITHOUT_EXAMPLE = {
    "/controlnet/detect",
    "/mcp",
    "/sdapi/v1/interrogate",
    "/sdcpp/v1/vid_gen",
    "/v1/jobs/default",
}


def json_examples() -> dict[str, Any]:
    """Return the example of each route with a JSON body; None if the document has none."""
    schemas = document()["components"]["schemas"]
    found = {}
    for path, operations in document()["paths"].items():
        body = operations.get("post", {}).get("requestBody", {"content": {}})
        schema = body["content"].get("application/json")
        if schema is not None:
            schema = schema["schema"]
            schema = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
            found[re.sub(r"{\w+}", "default", path)] = schema.get("example")
    return found


EXAMPLES = {path: body for path, body in json_examples().items() if path not in WITHOUT_EXAMPLE}


@pytest.mark.parametrize("path", EXAMPLES)
def test_examples_of_the_document(fake_server: ServerProcess, path: str) -> None:
    """The server accepts the example of each route, which /docs shows and sends."""
    assert EXAMPLES[path] is not None
    answer = httpx2.post(fake_server.url + path, json=EXAMPLES[path], timeout=60)
    assert answer.status_code in (200, 202), answer.text


def test_a_form_with_every_option(fake_server: ServerProcess) -> None:
    """A form may have a field for each option, as the form of /docs does."""
    names = {*document()["components"]["schemas"]["Edit"]["properties"]} - {"image", "mask"}
    image = base64.b64decode(EXAMPLE_IMAGE.partition(",")[2])
    answer = httpx2.post(
        fake_server.url + "/v1/images/edits",
        data={**dict.fromkeys(names, "null"), "prompt": "a", "mask": ""},
        files={"image": image},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
