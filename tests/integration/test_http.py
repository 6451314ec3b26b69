"""Plain answers, errors and the GET routes over real HTTP, with the fake engine."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests.support.pictures import png
from tests.support.servers import GENERATIONS, Call, ServerProcess, running_server, wait_until

QUICK: dict[str, Any] = {"prompt": "a circle", "size": "80x64", "sample_steps": 3}

ROUTES = (
    "/v1/models",
    "/v1/models/embedded",
    "/v1/images/nothing/content",
    "/metrics",
    "/openapi.json",
    "/nowhere",
)
OPEN_ROUTES = ("/livez", "/readyz", "/health")


def image_of(item: dict[str, Any]) -> Image.Image:
    """Decode the image in one entry of ``data``."""
    return Image.open(io.BytesIO(base64.b64decode(item["b64_json"], validate=True)))


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    """Check the format of an answer's error, and return it."""
    body = answer.json()
    assert {*body} == {"error", "detail"}
    error: dict[str, Any] = body["error"]
    assert {*error} == {"code", "message", "type", "param", "reason"}
    assert error["code"] == answer.status_code
    assert error["message"] == body["detail"]
    assert "Traceback" not in answer.text
    return error


# --- plain answers ------------------------------------------------------------------------------


def test_a_plain_answer_has_every_field(fake_server: ServerProcess) -> None:
    """A plain answer has OpenAI's and GPUStack's members, and all effective options."""
    answer = fake_server.post(
        {**QUICK, "size": "128x128", "n": 2, "seed": 11, "cfg_scale": 2, "user": "me"}
    )
    body = answer.json()
    assert answer.status_code == 200
    assert answer.headers["X-Job-Id"].startswith("job_")
    assert isinstance(body["created"], int)
    assert [(i["index"], i["seed"]) for i in body["data"]] == [(0, 11), (1, 12)]
    for item in body["data"]:
        assert item["revised_prompt"] is None
        assert item["finish_reason"] == "stop"
        assert image_of(item).size == (128, 128)
    assert body["model"] == "embedded"
    assert body["size"] == "128x128"
    assert body["quality"] == "medium"
    assert body["output_format"] == "png"
    assert body["background"] == "opaque"
    assert body["parameters"] == {
        "model": "embedded",
        "prompt": "a circle",
        "negative_prompt": "",
        "n": 2,
        "size": "128x128",
        "seed": 11,
        "sample_steps": 3,
        "sampler": "euler",
        "schedule": "discrete",
        "cfg_scale": 2.0,
        "kernels": "auto",
    }
    assert {*body["usage"]} == {
        "generation_per_second",
        "time_per_generation_ms",
        "time_to_process_ms",
        "input_tokens",
        "output_tokens",
        "total_tokens",
        "input_tokens_details",
    }
    assert {*body["usage"]["input_tokens_details"]} == {"text_tokens", "image_tokens"}


def test_defaults_come_from_the_catalogue(fake_server: ServerProcess) -> None:
    """A request with only a prompt uses the model's defaults."""
    chosen = fake_server.post({"prompt": "a circle"}).json()["parameters"]
    seed = chosen.pop("seed")
    assert 0 <= seed < 2**53
    defaults = httpx2.get(f"{fake_server.url}/v1/models/default").json()["defaults"]
    assert {name: chosen[name] for name in defaults} == defaults


@pytest.mark.parametrize(
    ("accept", "media_type", "kind"),
    [
        ("image/png", "image/png", "PNG"),
        ("image/jpeg", "image/jpeg", "JPEG"),
        ("image/webp", "image/webp", "WEBP"),
        ("image/*", "image/png", "PNG"),
        ("application/json;q=0.5, image/webp", "image/webp", "WEBP"),
    ],
)
def test_accept_chooses_the_bytes_of_an_image(
    fake_server: ServerProcess, accept: str, media_type: str, kind: str
) -> None:
    """``Accept: image/…`` returns the image file, with its seed and finish reason in headers."""
    answer = fake_server.post({**QUICK, "seed": 3}, headers={"Accept": accept})
    assert answer.headers["Content-Type"] == media_type
    assert answer.headers["Content-Length"] == str(len(answer.content))
    assert answer.headers["Seed"] == "3"
    assert answer.headers["Finish-Reason"] == "SUCCESS"
    assert answer.headers["X-Job-Id"]
    picture = Image.open(io.BytesIO(answer.content))
    assert (picture.format, picture.size) == (kind, (80, 64))


@pytest.mark.parametrize(
    "accept", ["application/json", "*/*", "application/*", "text/event-stream"]
)
def test_other_accepts_are_json(fake_server: ServerProcess, accept: str) -> None:
    """An Accept header without an image type gets JSON, even text/event-stream."""
    answer = fake_server.post(QUICK, headers={"Accept": accept})
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("accept", "n", "param"),
    [
        ("image/png", 2, "n"),
        ("text/html", 1, None),
        ("audio/*", 1, None),
        ("image/png", 1, "output_format"),
    ],
)
def test_what_accept_cannot_get_is_406(
    fake_server: ServerProcess, accept: str, n: int, param: str | None
) -> None:
    """An Accept header that the request cannot satisfy gets a 406."""
    body = {**QUICK, "n": n, "output_format": "jpeg"}
    answer = fake_server.post(body, headers={"Accept": accept})
    assert answer.status_code == 406
    error = error_of(answer)
    assert (error["reason"], error["param"]) == ("not_acceptable", param)


@pytest.mark.parametrize("spelling", ["url", "Url"])
def test_a_url_answers_the_image(fake_server: ServerProcess, spelling: str) -> None:
    """The link of response_format url returns the same bytes as b64_json."""
    body = {**QUICK, "seed": 9, "output_format": "webp"}
    (item,) = fake_server.post({**body, "response_format": spelling}).json()["data"]
    assert item["b64_json"] is None
    answer = httpx2.get(item["url"])
    assert answer.headers["Content-Type"] == "image/webp"
    (whole,) = fake_server.post(body).json()["data"]
    assert answer.content == base64.b64decode(whole["b64_json"])
    assert httpx2.get(item["url"]).content == answer.content


def test_public_url_begins_the_links(tmp_path: Path) -> None:
    """Links of images begin with the public URL."""
    public = "https://pictures.example/api"
    with running_server(tmp_path, engine="fake", public_url=public) as server:
        (item,) = server.post({**QUICK, "response_format": "url"}).json()["data"]
    assert item["url"].startswith(f"{public}/v1/images/")


def test_an_image_that_cannot_be_stored_is_said_so(tmp_path: Path) -> None:
    """If images cannot be stored, a request for a URL gets a 503, and one for base64 succeeds."""
    with running_server(tmp_path, engine="fake") as server:
        (tmp_path / "data" / "images").rmdir()
        (tmp_path / "data" / "images").write_text("a file where the folder should be")
        answer = server.post({**QUICK, "response_format": "url"})
        assert answer.status_code == 503
        assert error_of(answer)["reason"] == "storage_unavailable"
        assert server.post(QUICK).status_code == 200


def test_data_urls_for_mistral_rs(fake_server: ServerProcess) -> None:
    """The response format B64Json puts a data: prefix before the base64."""
    body = {**QUICK, "response_format": "B64Json", "output_format": "jpeg"}
    (item,) = fake_server.post(body).json()["data"]
    prefix, _, text = item["b64_json"].partition(",")
    assert prefix == "data:image/jpeg;base64"
    assert base64.b64decode(text).startswith(b"\xff\xd8")


def test_a_failed_job_is_not_to_be_retried(fake_server: ServerProcess) -> None:
    """A failed generation gets a 500 that asks the client not to retry."""
    answer = fake_server.post({**QUICK, "prompt": "fail=1"})
    assert answer.status_code == 500
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["X-Job-Id"]
    error = error_of(answer)
    assert (error["type"], error["reason"]) == ("server_error", "generation_failed")


def test_a_dialect_in_the_query_is_not_passed_over(fake_server: ServerProcess) -> None:
    """Unknown query keys are ignored, but ``dialect`` selects a stream format or is rejected."""
    assert fake_server.post(QUICK, params={"t": "123"}).status_code == 200
    answer = fake_server.post({**QUICK, "stream": True}, params={"dialect": "openai"})
    assert '"type":"image_generation.completed"' in answer.text
    answer = fake_server.post({**QUICK, "stream": True}, params={"dialect": "morse"})
    assert (answer.status_code, error_of(answer)["param"]) == (400, "dialect")


# --- ids, routes, methods -----------------------------------------------------------------------


@pytest.mark.parametrize("given", ["abc-1.2:3_4", "x" * 128])
def test_a_sane_request_id_is_echoed(fake_server: ServerProcess, given: str) -> None:
    """A valid X-Request-Id is returned."""
    answer = httpx2.get(f"{fake_server.url}/livez", headers={"X-Request-Id": given})
    assert answer.headers["X-Request-Id"] == given


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, "a/b", "naïve", '"quoted"'])
def test_an_insane_request_id_is_replaced(fake_server: ServerProcess, given: str) -> None:
    """An invalid X-Request-Id is replaced by a generated one."""
    headers = {b"X-Request-Id": given.encode()}
    answer = httpx2.get(f"{fake_server.url}/livez", headers=headers)
    assert re.fullmatch(r"[0-9a-f]{24}", answer.headers["X-Request-Id"])


def test_every_answer_has_a_request_id(fake_server: ServerProcess) -> None:
    """An error has a request id, which is also in the log."""
    answer = httpx2.get(f"{fake_server.url}/nowhere")
    word = f"request={answer.headers['X-Request-Id']}"
    wait_until(lambda: fake_server.log_lines(word), 5, "the request is not in the log")


def test_a_path_cannot_forge_a_line_of_the_log(fake_server: ServerProcess) -> None:
    """Line breaks and control sequences of a path are replaced in the log."""
    httpx2.get(f"{fake_server.url}/nothing%0a2026-01-01%20forged%1b%5b31m")
    wait_until(lambda: fake_server.log_lines("forged"), 5, "the request is not in the log")
    (line,) = fake_server.log_lines("forged")
    assert "GET /nothing?2026-01-01 forged?[31m 404 " in line


def test_the_log_has_one_line_a_job(fake_server: ServerProcess) -> None:
    """A job has one line in the log, with its options and outcome but without its prompt."""
    secret = "a very private prompt"
    job = fake_server.post({**QUICK, "prompt": secret}).headers["X-Job-Id"]
    wait_until(lambda: fake_server.log_lines(f"job={job}"), 5, "the job is not in the log")
    (line,) = fake_server.log_lines(f"job={job}")
    for part in ("model=embedded", "size=80x64", "n=1", "steps=3", "outcome=completed"):
        assert part in line
    assert re.search(r" 200 \d+\.\d{3}s ", line)
    assert secret not in fake_server.log.read_text()


def test_an_unknown_route_is_404(fake_server: ServerProcess) -> None:
    """An unknown route gets a 404 in JSON."""
    answer = httpx2.get(f"{fake_server.url}/nowhere")
    assert answer.status_code == 404
    error = error_of(answer)
    assert (error["type"], error["reason"]) == ("not_found_error", "route_not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", GENERATIONS, "GET, HEAD, POST"),
        ("HEAD", GENERATIONS, "GET, POST"),
        ("PUT", "/v1/jobs/x", "DELETE, GET, HEAD, POST"),
        ("GET", "/v1/jobs/x/cancel", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/readyz", "GET, HEAD"),
        ("POST", "/static/app.js", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_405(
    fake_server: ServerProcess, method: str, path: str, allowed: str
) -> None:
    """The answer lists the methods of all routes with this path."""
    answer = httpx2.request(method, fake_server.url + path)
    assert answer.status_code == 405
    assert answer.headers["Allow"] == allowed
    if method == "HEAD":
        return
    assert error_of(answer)["reason"] == "method_not_allowed"


def test_unknown_things_are_404(fake_server: ServerProcess) -> None:
    """An unknown model or image gets a 404 with a specific reason."""
    for path, reason in (
        ("/v1/models/none", "model_not_found"),
        ("/v1/images/none/content", "image_not_found"),
        ("/v1/images/..%2F..%2Fetc%2Fpasswd/content", "image_not_found"),
    ):
        answer = httpx2.get(fake_server.url + path)
        assert answer.status_code == 404
        assert error_of(answer)["reason"] in (reason, "route_not_found")
    answer = fake_server.post({**QUICK, "model": "none"})
    assert answer.status_code == 404
    error = error_of(answer)
    assert (error["param"], error["reason"]) == ("model", "model_not_found")


def test_models(fake_server: ServerProcess) -> None:
    """The list has OpenAI's format, plus each model's state, defaults and capabilities."""
    body = httpx2.get(f"{fake_server.url}/v1/models").json()
    assert body["object"] == "list"
    (model,) = body["data"]
    assert (model["id"], model["object"], model["state"]) == ("embedded", "model", "ready")
    assert model["default"] is True
    assert model["resident_bytes"] > 0
    size = {"min": 16, "max": 1536, "multiple": 1, "max_pixels": 1_600_000}
    known = ["128x128", "192x128", "128x192", "224x128", "128x224", "256x96", "96x256"]
    assert model["size"] == {**size, "generated": known}
    assert "euler_a" in model["capabilities"]["samplers"]
    assert not {"ays", "gits"} & {*model["capabilities"]["schedules"]}
    for name in ("embedded", "default"):
        one = httpx2.get(f"{fake_server.url}/v1/models/{name}").json()
        assert one["id"] == "embedded"


def test_openapi(fake_server: ServerProcess) -> None:
    """The document describes every route, and the server accepts the options that it lists."""
    document = httpx2.get(f"{fake_server.url}/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"]
            succeeds = any(status.startswith("2") for status in operation["responses"])
            assert succeeds or operation["summary"].startswith("Not ")
            names = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
            assert names == {*re.findall(r"\{(\w+)\}", path)}
    for reference in re.findall(r'"\$ref": ?"#/([^"]+)"', json.dumps(document)):
        node = document
        for part in reference.split("/"):
            node = node[part]
    options = document["components"]["schemas"]["Generation"]["properties"]
    assert {"prompt", "negative_prompt", "seed", "sampler", "stream", "stream_options"} <= {
        *options
    }
    values = {"prompt": "a circle", "size": "64x64", "sample_steps": 1}
    for name in options:
        assert fake_server.post({**values, name: values.get(name)}).status_code in (200, 400)
        wrong = [1] if name == "stream_options" else {"wrong": "type"}
        answer = fake_server.post({**values, name: wrong})
        assert error_of(answer)["param"].split(".")[0] == name


def test_metrics_after_a_job(fake_server: ServerProcess) -> None:
    """A job increases the metrics of requests, jobs, images, steps and seconds by phase."""
    labels: dict[str, Any] = {"model": "embedded"}

    def counted() -> list[float]:
        return [
            fake_server.metric(
                "sdstream_http_requests_total", method="POST", route=GENERATIONS, status="200"
            ),
            fake_server.metric("sdstream_jobs_total", outcome="completed", **labels),
            fake_server.metric("sdstream_images_total", **labels),
            fake_server.metric("sdstream_steps_total", **labels),
            *(
                fake_server.metric("sdstream_phase_seconds_count", phase=phase, **labels)
                for phase in ("queue", "encoding", "sampling", "decoding", "file", "store")
            ),
        ]

    before = counted()
    assert fake_server.post({**QUICK, "n": 2}).status_code == 200
    grown = [after - old for after, old in zip(counted(), before, strict=True)]
    assert grown == [1, 1, 2, 6, 1, 2, 2, 2, 2, 2]
    assert fake_server.metric("sdstream_worker_up", **labels) == 1
    assert fake_server.metric("sdstream_worker_starts_total", **labels) >= 1
    assert fake_server.metric("sdstream_worker_resident_bytes", **labels) > 2**20
    assert fake_server.metric("sdstream_queued_images") == 0
    assert fake_server.metric("sdstream_running_jobs") == 0


# --- keys and CORS ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with two keys, an allowed origin, and a queue of four images."""
    folder = tmp_path_factory.mktemp("guarded")
    with running_server(
        folder,
        engine="fake",
        api_keys="first-key,second-key",
        cors_origins="https://page.example",
        queue_images=4,
    ) as server:
        yield server


KEY = {"Authorization": "Bearer first-key"}


def test_a_page_can_read_why_a_standby_server_rejects(tmp_path: Path) -> None:
    """The rejections of a standby server have CORS headers, and it answers preflights."""
    origin = "https://page.example"
    with (
        running_server(tmp_path, engine="fake"),
        running_server(
            tmp_path, engine="fake", standby=True, cors_origins=origin, wait=False
        ) as second,
    ):
        wait_until(lambda: second.log_lines("Uvicorn running"), 30, "it does not listen")
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        preflight = httpx2.options(second.url + GENERATIONS, headers=headers)
        assert preflight.status_code == 200
        answer = second.post(QUICK, headers={"Origin": origin})
        assert (answer.status_code, error_of(answer)["reason"]) == (503, "standby")
        assert answer.headers["Access-Control-Allow-Origin"] == origin
        assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]


@pytest.mark.parametrize("path", ROUTES)
def test_no_route_answers_without_a_key(guarded_server: ServerProcess, path: str) -> None:
    """Every path except the probes requires a key, even one that does not exist."""
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic first-key"}):
        answer = httpx2.get(guarded_server.url + path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        error = error_of(answer)
        assert (error["type"], error["reason"]) == ("authentication_error", "invalid_api_key")


def test_no_picture_without_a_key(guarded_server: ServerProcess) -> None:
    """A generation requires a valid key."""
    assert guarded_server.post(QUICK).status_code == 401
    assert guarded_server.post(QUICK, headers={"X-Api-Key": "first-key"}).status_code == 200
    assert guarded_server.post(QUICK, headers={"X-Api-Key": "first"}).status_code == 401


@pytest.mark.parametrize("path", OPEN_ROUTES)
def test_probes_need_no_key(guarded_server: ServerProcess, path: str) -> None:
    """The probes need no key."""
    assert httpx2.get(guarded_server.url + path).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        KEY,
        {"Authorization": "bearer second-key"},
        {"X-Api-Key": "second-key"},
    ],
)
def test_each_key_opens(guarded_server: ServerProcess, headers: dict[str, str]) -> None:
    """Each key is accepted, as a bearer token and in X-Api-Key."""
    assert guarded_server.post(QUICK, headers=headers).status_code == 200
    assert httpx2.get(f"{guarded_server.url}/v1/models", headers=headers).status_code == 200


def test_keys_are_in_no_log_and_no_environment(guarded_server: ServerProcess) -> None:
    """Neither the log nor the worker's environment contains a key."""
    guarded_server.post(QUICK, headers=KEY)
    assert "first-key" not in guarded_server.log.read_text()
    environment = Path(f"/proc/{guarded_server.worker_pid()}/environ").read_bytes()
    assert b"first-key" not in environment


def test_cors(guarded_server: ServerProcess) -> None:
    """A page of the allowed origin can read answers; its preflight needs no key. Others cannot."""
    preflight = {
        "Origin": "https://page.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    answer = httpx2.options(guarded_server.url + GENERATIONS, headers=preflight)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "https://page.example"
    answer = guarded_server.post(QUICK, headers={**KEY, "Origin": "https://page.example"})
    assert answer.headers["Access-Control-Allow-Origin"] == "https://page.example"
    assert "X-Job-Id" in answer.headers["Access-Control-Expose-Headers"]
    refused = guarded_server.post(QUICK, headers={"Origin": "https://page.example"})
    assert refused.status_code == 401
    assert refused.headers["Access-Control-Allow-Origin"] == "https://page.example"
    other = guarded_server.post(QUICK, headers={**KEY, "Origin": "https://other.example"})
    assert "Access-Control-Allow-Origin" not in other.headers


def test_no_cors_by_default(fake_server: ServerProcess) -> None:
    """No page of another origin can read an answer by default."""
    answer = fake_server.post(QUICK, headers={"Origin": "https://page.example"})
    assert "Access-Control-Allow-Origin" not in answer.headers


# --- a full queue -------------------------------------------------------------------------------


def test_a_full_queue_refuses_at_once(guarded_server: ServerProcess) -> None:
    """A full queue rejects further requests with a 429 and Retry-After, and finishes its jobs."""
    running = Call(guarded_server, {"prompt": "step=0.1", "sample_steps": 150, "stream": True}, KEY)
    running.wait_for("running")
    waiting: list[Call] = []

    def one(_number: int) -> int:
        call = Call(guarded_server, {**QUICK, "stream": True}, KEY)
        status = call.answer.status
        if status == 200:
            waiting.append(call)
        else:
            assert int(call.answer.headers["Retry-After"]) >= 1
            error = json.loads(call.answer.read())["error"]
            assert (error["type"], error["reason"]) == ("rate_limit_error", "queue_full")
        return status

    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(one, range(100)))
    running.leave()
    assert statuses.count(200) == 4
    assert statuses.count(429) == 96
    for call in waiting:
        assert list(call.frames())[-1] == b"data: [DONE]\n\n"


def test_a_batch_larger_than_the_queue_is_drawn_when_nobody_waits(
    guarded_server: ServerProcess,
) -> None:
    """A batch larger than the queue is accepted if no other image waits."""
    answer = guarded_server.post({**QUICK, "n": 10}, headers=KEY)
    assert len(answer.json()["data"]) == 10


# --- bad requests -------------------------------------------------------------------------------

BAD_JSON = {
    "empty": b"",
    "blank": b" \n",
    "text": b"hello",
    "cut short": b'{"prompt": "a',
    "trailing": b'{"prompt": "a"} x',
    "comma": b'{"prompt": "a",}',
    "single quotes": b"{'prompt': 'a'}",
    "array": b'["prompt"]',
    "string": b'"prompt"',
    "number": b"7",
    "null": b"null",
    "NaN": b'{"prompt": "a", "cfg_scale": NaN}',
    "Infinity": b'{"prompt": "a", "cfg_scale": -Infinity}',
    "huge integer": b'{"prompt": "a", "seed": ' + b"9" * 100_000 + b"}",
    "deep array": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "not UTF-8": b'{"prompt": "\xff\xfe"}',
    "UTF-16": '{"prompt": "a"}'.encode("utf-16"),
    "CESU surrogate": b'{"prompt": "\xed\xa0\x80"}',
    "control character": b'{"prompt": "a\nb"}',
    "bad escape": b'{"prompt": "\\x41"}',
    "repeated key": b'{"prompt": "a", "prompt": "b"}',
    "form": b"prompt=a&size=64x64",
}


@pytest.mark.parametrize("body", BAD_JSON.values(), ids=BAD_JSON.keys())
def test_bad_json_is_400(fake_server: ServerProcess, body: bytes) -> None:
    """A body that is not one JSON object gets a 400."""
    answer = httpx2.post(
        fake_server.url + GENERATIONS, content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    assert error_of(answer)["reason"] == "invalid_json"


LONE = "\ud800"

#: (fields beside a valid prompt, the field that the error must name, the reason)
BAD_FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": None}, "prompt", "missing_field"),
    ({"prompt": 5}, "prompt", "invalid_value"),
    ({"prompt": ["a"]}, "prompt", "invalid_value"),
    ({"prompt": True}, "prompt", "invalid_value"),
    ({"prompt": "x" * 32_001}, "prompt", "invalid_value"),
    ({"prompt": "a\0b"}, "prompt", "invalid_value"),
    ({"prompt": LONE}, "prompt", "invalid_value"),
    ({"negative_prompt": f"{LONE}x"}, "negative_prompt", "invalid_value"),
    ({"negative_sampler": {"a": 1}}, "negative_sampler", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 11}, "n", "invalid_value"),
    ({"n": -1}, "n", "invalid_value"),
    ({"n": 1.5}, "n", "invalid_value"),
    ({"n": True}, "n", "invalid_value"),
    ({"n": "many"}, "n", "invalid_value"),
    ({"n": 10**30}, "n", "invalid_value"),
    ({"n": 1e300}, "n", "invalid_value"),
    ({"batch_size": 0}, "batch_size", "invalid_value"),
    ({"size": "0x0"}, "size", "invalid_value"),
    ({"size": "abc"}, "size", "invalid_value"),
    ({"size": "64"}, "size", "invalid_value"),
    ({"size": "-64x64"}, "size", "invalid_value"),
    ({"size": "15x64"}, "size", "invalid_value"),
    ({"size": "64x528"}, "size", "invalid_value"),
    ({"size": "99999x99999"}, "size", "invalid_value"),
    ({"size": "9" * 5000 + "x64"}, "size", "invalid_value"),
    ({"size": [64, 64]}, "size", "invalid_value"),
    ({"size": LONE}, "size", "invalid_value"),
    ({"size": None, "width": 64}, "height", "missing_field"),
    ({"size": None, "height": 64}, "width", "missing_field"),
    ({"size": None, "width": "x", "height": 64}, "width", "invalid_value"),
    ({"size": None, "width": 64, "height": 9}, "height", "invalid_value"),
    ({"size": "64x64", "width": 64, "height": 80}, "size", "conflicting_fields"),
    ({"seed": -2}, "seed", "invalid_value"),
    ({"seed": 2**63}, "seed", "invalid_value"),
    ({"seed": 2**63 - 1}, "seed", "invalid_value"),
    ({"seed": 1.5}, "seed", "invalid_value"),
    ({"seed": "x"}, "seed", "invalid_value"),
    ({"rng_seed": False}, "rng_seed", "invalid_value"),
    ({"sample_steps": 0}, "sample_steps", "invalid_value"),
    ({"sample_steps": 151}, "sample_steps", "invalid_value"),
    ({"sample_steps": None, "steps": "x"}, "steps", "invalid_value"),
    ({"sampler": "magic"}, "sampler", "invalid_value"),
    ({"sampler": 3}, "sampler", "invalid_value"),
    ({"sample_method": "magic"}, "sample_method", "invalid_value"),
    ({"schedule": "magic"}, "schedule", "invalid_value"),
    ({"schedule": "ays"}, "schedule", "unsafe_combination"),
    ({"schedule": "gits"}, "schedule", "unsafe_combination"),
    ({"cfg_scale": -1}, "cfg_scale", "invalid_value"),
    ({"cfg_scale": 30.1}, "cfg_scale", "invalid_value"),
    ({"cfg_scale": "nan"}, "cfg_scale", "invalid_value"),
    ({"cfg_scale": "inf"}, "cfg_scale", "invalid_value"),
    ({"cfg_scale": []}, "cfg_scale", "invalid_value"),
    ({"guidance_scale": "x"}, "guidance_scale", "invalid_value"),
    ({"guidance": 3}, "guidance", "not_supported"),
    ({"model": 5}, "model", "invalid_value"),
    ({"quality": "best"}, "quality", "invalid_value"),
    ({"quality": LONE}, "quality", "invalid_value"),
    ({"output_format": "gif"}, "output_format", "invalid_value"),
    ({"output_compression": 101}, "output_compression", "invalid_value"),
    ({"output_compression": -1, "output_format": "jpeg"}, "output_compression", "invalid_value"),
    ({"output_compression": 50}, "output_compression", "invalid_value"),
    ({"response_format": "png"}, "response_format", "invalid_value"),
    ({"response_format": LONE}, "response_format", "invalid_value"),
    ({"stream": "perhaps"}, "stream", "invalid_value"),
    ({"stream": 2}, "stream", "invalid_value"),
    ({"stream_options": "all"}, "stream_options", "invalid_value"),
    ({"stream_options": []}, "stream_options", "invalid_value"),
    ({"stream_options": {"chunksize": 1}}, "stream_options.chunksize", "unknown_field"),
    ({"stream_options": {"chunk_size": -1}}, "stream_options.chunk_size", "invalid_value"),
    ({"stream_options": {"chunk_size": 1e300}}, "stream_options.chunk_size", "invalid_value"),
    ({"stream_options": {"dialect": "x"}}, "stream_options.dialect", "invalid_value"),
    ({"background": "transparent"}, "background", "invalid_value"),
    ({"safety_check": True}, "safety_check", "safety_checker_unavailable"),
    ({"sampel_steps": 1}, "sampel_steps", "unknown_field"),
    ({"image_" * 200: 1}, ("image_" * 200)[:64], "unknown_field"),
    ({"seed": 1, "rng_seed": 2}, "rng_seed", "conflicting_fields"),
    ({"image": "…"}, "image", "not_supported"),
    ({"strength": 0.5}, "strength", "not_supported"),
    ({"lora": [{"id": "../x", "scale": 1}]}, "lora", "invalid_value"),
    ({"lora": [{"id": "x", "scale": 99}]}, "lora.0.scale", "invalid_value"),
    ({"lora": "x"}, "lora", "invalid_value"),
    ({"clip_skip": 2}, "clip_skip", "not_supported"),
    ({"eta": 0.5}, "eta", "not_supported"),
    ({"cache_mode": "ucache"}, "cache_mode", "invalid_value"),
    ({"cache_threshold": 0.5}, "cache_threshold", "not_supported"),
    ({"sigmas": [1, 0.5, 0]}, "sigmas", "conflicting_fields"),
    ({"hires_upscaler": "latent"}, "hires_upscaler", "not_supported"),
    ({"hires_scale": 2, "hires_upscaler": "magic"}, "hires_upscaler", "invalid_value"),
    ({"hires_scale": 0.5}, "hires_scale", "invalid_value"),
    ({"partial_images": 4}, "partial_images", "invalid_value"),
    ({"prompt_2": "x"}, "prompt_2", "not_supported"),
]


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    BAD_FIELDS,
    ids=[json.dumps(fields)[:60] for fields, _, _ in BAD_FIELDS],
)
def test_a_bad_field_is_named(
    fake_server: ServerProcess, fields: dict[str, Any], param: str, reason: str
) -> None:
    """An invalid value gets a 400 with the field as the client spelled it, and the reason."""
    answer = httpx2.post(
        fake_server.url + GENERATIONS, content=json.dumps({**QUICK, **fields}).encode()
    )
    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["reason"], error["type"]) == (reason, "invalid_request_error")
    assert error["param"] == param


ODD_TEXT: dict[str, dict[str, Any]] = {
    "name": {f"image{LONE}": 1},
    "model": {"model": LONE},
    "sampler": {"sampler": LONE},
    "schedule": {"scheduler": f"k{LONE}"},
}


@pytest.mark.parametrize(
    "body",
    [
        *(json.dumps({**QUICK, **fields}) for fields in ODD_TEXT.values()),
        '{"prompt": "a", "\\ud800": 1, "\\ud800": 2}',
    ],
    ids=[*ODD_TEXT, "repeated name"],
)
def test_lone_surrogates_are_a_fault_of_the_client(fake_server: ServerProcess, body: str) -> None:
    """Text with lone surrogates gets a 4xx, although UTF-8 cannot encode it."""
    answer = httpx2.post(fake_server.url + GENERATIONS, content=body.encode())
    assert answer.status_code in (400, 404)
    assert error_of(answer)["type"] in ("invalid_request_error", "not_found_error")


def test_numbers_too_large_for_a_float_are_refused(fake_server: ServerProcess) -> None:
    """A number that becomes infinite as a float is rejected as invalid JSON."""
    for path in (GENERATIONS, "/sdapi/v1/txt2img"):
        body = b'{"prompt": "a", "cfg_scale": 1e999}'
        answer = httpx2.post(fake_server.url + path, content=body)
        assert (answer.status_code, answer.json()["error"]["reason"]) == (400, "invalid_json")


def test_nulls_mean_not_given(fake_server: ServerProcess) -> None:
    """An option with the value null counts as absent."""
    document = httpx2.get(f"{fake_server.url}/openapi.json").json()
    options = document["components"]["schemas"]["Generation"]["properties"]
    body = {**dict.fromkeys(options), **QUICK, "user": None, "style": None, "partial_images": None}
    assert fake_server.post(body).status_code == 200
    stream = {"include_usage": None, "preview": None, "dialect": None}
    assert fake_server.post({**QUICK, "stream_options": stream}).status_code == 200


def test_numbers_may_be_strings(fake_server: ServerProcess) -> None:
    """Numbers may be strings, as some clients send them."""
    body = {"prompt": "a", "width": "64", "height": "80", "steps": "2", "cfg_scale": "1.5"}
    chosen = fake_server.post(body).json()["parameters"]
    assert (chosen["size"], chosen["sample_steps"], chosen["cfg_scale"]) == ("64x80", 2, 1.5)


def test_a_generation_as_a_form(fake_server: ServerProcess) -> None:
    """A generation accepts its options as a form, but no image."""
    url = fake_server.url + GENERATIONS
    fields = {"prompt": "a", "size": "64x80", "steps": "2", "n": "2", "stream_options_preview": ""}
    files = {name: (None, value) for name, value in fields.items()}
    answer = httpx2.post(url, files=files, timeout=30).json()
    assert (answer["size"], len(answer["data"])) == ("64x80", 2)
    refused = httpx2.post(url, files={**files, "image": ("a.png", b"x")}, timeout=30)
    assert (refused.status_code, error_of(refused)["param"]) == (400, "image")


@pytest.mark.parametrize("path", ["generations", "edits", "variations", "upscales"])
@pytest.mark.parametrize("media_type", ["application/x-www-form-urlencoded", ""])
def test_json_of_curl(fake_server: ServerProcess, path: str, media_type: str) -> None:
    """JSON is read without a media type and with the type that curl -d declares."""
    image = base64.b64encode(png(64, 64)).decode()
    body = {"image": image} if path == "upscales" else {"prompt": "a", "size": "64x64"}
    if path != "generations":
        body["image"] = image
    answer = httpx2.post(
        f"{fake_server.url}/v1/images/{path}",
        content=json.dumps(body).encode(),
        headers={"Content-Type": media_type},
        timeout=30,
    )
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("media_type", ["text/plain", "image/png"])
def test_other_media_types_are_415(fake_server: ServerProcess, media_type: str) -> None:
    """A media type other than JSON or a multipart form gets a 415."""
    answer = httpx2.post(
        fake_server.url + GENERATIONS, content=b"{}", headers={"Content-Type": media_type}
    )
    assert answer.status_code == 415
    assert error_of(answer)["reason"] == "unsupported_media_type"


# --- oversize bodies ----------------------------------------------------------------------------

HEAD = f"POST {GENERATIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
MIB = 2**20


class Upload:
    """A raw request that counts the sent bytes of its body and keeps the answer."""

    def __init__(self, server: ServerProcess, head: str, parts: Iterator[bytes]) -> None:
        self.sent = 0
        with socket.create_connection(server.address, timeout=20) as connection:
            connection.sendall(head.encode())
            sender = threading.Thread(target=self._send, args=(connection, parts))
            sender.start()
            self.answer = self._read(connection)
            sender.join()

    def _send(self, connection: socket.socket, parts: Iterator[bytes]) -> None:
        try:
            for part in parts:
                connection.sendall(part)
                self.sent += len(part)
        except OSError:  # the server closed the connection
            return

    def _read(self, connection: socket.socket) -> bytes:
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
        except ConnectionResetError:  # the server closed it while the body was being sent
            pass
        return answer


def endless(limit: int, frame: bool) -> Iterator[bytes]:
    """Yield ``limit`` spaces in pieces of 64 KiB, with or without the framing of chunks."""
    piece = b" " * 65536
    for _ in range(limit // len(piece)):
        yield b"10000\r\n" + piece + b"\r\n" if frame else piece


@pytest.mark.parametrize("form", ["declared", "chunked"])
def test_an_oversize_body_is_413(fake_server: ServerProcess, form: str) -> None:
    """An oversize body gets a 413 in JSON, and the server reads at most 64 MiB more of it."""
    chunked = form == "chunked"
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {200 * MIB}"
    upload = Upload(fake_server, f"{HEAD}{length}\r\n\r\n", endless(200 * MIB, chunked))
    assert upload.answer.startswith(b"HTTP/1.1 413 ")
    assert b'"reason":"body_too_large"' in upload.answer
    assert upload.sent <= (1 + 64 + 8) * MIB


def test_an_oversize_body_from_an_ordinary_client_is_413(fake_server: ServerProcess) -> None:
    """A client that sends its whole body before it reads receives the 413."""

    async def send() -> httpx2.Response:
        # httpx2.post reads the answer after a failed write; the asynchronous client does not.
        async with httpx2.AsyncClient(timeout=60) as client:
            return await client.post(fake_server.url + GENERATIONS, json={"prompt": "a" * 16 * MIB})

    for answer in (fake_server.post({"prompt": "a" * 3 * MIB}), asyncio.run(send())):
        assert answer.status_code == 413
        assert answer.headers["connection"] == "close"
        assert error_of(answer)["reason"] == "body_too_large"


def test_more_than_the_declared_length_is_no_body(fake_server: ServerProcess) -> None:
    """Bytes after the declared body are an invalid second request; the first may fail with it."""
    body = json.dumps(QUICK).encode()
    head = f"{HEAD}Content-Length: {len(body)}\r\n\r\n"
    upload = Upload(fake_server, head, iter([body, b"x" * MIB]))
    assert upload.answer[:12] in (b"HTTP/1.1 200", b"HTTP/1.1 400")
    assert fake_server.post(QUICK).status_code == 200


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://localhost/livez", "localhost", 200),
        ("http://localhost:1/v1/models", "foreign.example", 200),
        ("HTTP://foreign.example/v1/models", "localhost", 403),
        ("http://foreign.example/v1/models?a=1", "localhost", 403),
        ("http:///v1/models", "localhost", 400),
    ],
)
def test_the_host_of_an_absolute_target(
    fake_server: ServerProcess, target: str, host: str, status: int
) -> None:
    """The host of a target in absolute form replaces Host, also where Host is checked."""
    with socket.create_connection(fake_server.address, timeout=20) as connection:
        head = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode())
        answer = connection.makefile("rb").read()
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())


def test_a_client_that_leaves_in_its_body_is_no_fault(fake_server: ServerProcess) -> None:
    """A client that disconnects within its body causes a line in the log, but no traceback."""
    lines, faults = (len(fake_server.log_lines(word)) for word in (GENERATIONS, "Traceback"))
    with socket.create_connection(fake_server.address, timeout=20) as connection:
        connection.sendall(f"{HEAD}Content-Length: 1000\r\n\r\n{{".encode())
    wait_until(lambda: len(fake_server.log_lines(GENERATIONS)) > lines, 5, "nothing in the log")
    assert fake_server.post(QUICK).status_code == 200
    assert len(fake_server.log_lines("Traceback")) == faults


def test_lengths_that_are_no_numbers_are_refused(fake_server: ServerProcess) -> None:
    """An invalid Content-Length gets a 4xx or a closed connection."""
    for length in ("-1", "1e3", "9" * 5000, "0x10", "²"):
        upload = Upload(fake_server, f"{HEAD}Content-Length: {length}\r\n\r\n", iter([b"{}"]))
        assert upload.answer[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 413")
    assert fake_server.post(QUICK).status_code == 200
