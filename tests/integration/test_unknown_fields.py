"""Fields without effect over HTTP: warnings, headers, the log, preferences and the setting."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote

import httpx2
import pytest

from tests.support.pictures import png
from tests.support.servers import ServerProcess, running_server

GENERATIONS = "/v1/images/generations"
QUICK = {"prompt": "a", "size": "64x64", "sample_steps": 1}
WARNING = "Unknown field 'keep_alive' has no effect."


def test_json_forms_and_binary_answers_name_the_fields(fake_server: ServerProcess) -> None:
    """JSON and binary answers and the log name the ignored fields, but not their values."""
    secret = "a secret value"
    body = {**QUICK, "keep_alive": secret, "naïve, one": 1}
    answer = httpx2.post(fake_server.url + GENERATIONS, json=body)
    assert answer.json()["warnings"][0] == WARNING
    assert answer.headers["X-Ignored-Fields"] == "keep_alive,na%C3%AFve%2C%20one"
    job = httpx2.get(f"{fake_server.url}/v1/jobs/{answer.headers['X-Job-Id']}").json()
    assert job["warnings"] == answer.json()["warnings"]
    form = {**QUICK, "keep_alive": secret, "sample_steps": "1"}
    edit = httpx2.post(
        f"{fake_server.url}/v1/images/edits",
        data=form,
        files={"image": png(64, 64)},
        headers={"Accept": "image/png"},
    )
    assert edit.headers["Content-Type"] == "image/png"
    assert edit.headers["X-Ignored-Fields"] == "keep_alive"
    log = fake_server.log.read_text()
    assert "ignored_fields=keep_alive" in log
    assert secret not in log


def test_warnings_of_an_answer_without_fields(fake_server: ServerProcess) -> None:
    """An image file has the warnings of the JSON answer in a header; without any, no header."""
    body = {**QUICK, "prompt": "an astronaut, 100 % red", "keep_alive": 1, "naïve, one": 1}
    told = httpx2.post(fake_server.url + GENERATIONS, json=body).json()["warnings"]
    assert len(told) >= 2
    wanted = {"Accept": "image/png"}
    answer = httpx2.post(fake_server.url + GENERATIONS, json=body, headers=wanted)
    assert answer.headers["Content-Type"] == "image/png"
    assert [unquote(text) for text in answer.headers["X-Warnings"].split(",")] == told
    assert WARNING in answer.headers["X-Warnings"]
    given = {"inputs": "an apple", "parameters": {"width": 64, "height": 64, "zebra": 1}}
    other = httpx2.post(f"{fake_server.url}/v1/models/embedded", json=given)
    assert "Unknown field 'zebra' has no effect" in other.headers["X-Warnings"]
    plain = httpx2.post(fake_server.url + GENERATIONS, json=QUICK, headers=wanted)
    assert "X-Warnings" not in plain.headers


def test_streams_and_events(fake_server: ServerProcess) -> None:
    """The last frame of a stream and the first event of a query contain the warnings."""
    body = {**QUICK, "stream": True, "keep_alive": 1}
    frames = httpx2.post(fake_server.url + GENERATIONS, json=body).text.split("\n\n")
    assert json.loads(frames[-3].removeprefix("data: "))["warnings"] == [WARNING]
    query = {"prompt": "a", "size": "64x64", "sampel_steps": "3", "utm_source": "x"}
    events = httpx2.get(fake_server.url + GENERATIONS, params=query).text.split("\n\n")
    queued = next(event for event in events if "event: queued" in event)
    first = json.loads(queued.splitlines()[-1].removeprefix("data: "))
    assert first["warnings"] == [
        "Unknown field 'sampel_steps' has no effect. Did you mean 'sample_steps'?"
    ]


@pytest.mark.parametrize(
    ("prefer", "field", "status", "applied"),
    [
        (None, "keep_alive", 200, None),
        (None, "sampel_steps", 400, None),
        ("handling=strict", "keep_alive", 400, "handling=strict"),
        ('handling="lenient"', "sampel_steps", 200, "handling=lenient"),
        ("respond-async, handling=lenient", "sampel_steps", 202, "handling=lenient, respond-async"),
        ("handling=other", "sampel_steps", 400, None),
        ("handling=lenient", "face_image", 400, "handling=lenient"),
    ],
)
@pytest.mark.parametrize("path", [GENERATIONS, "/sdapi/v1/txt2img"])
def test_preferences(
    fake_server: ServerProcess,
    path: str,
    prefer: str | None,
    field: str,
    status: int,
    applied: str | None,
) -> None:
    """``Prefer: handling`` (RFC 7240) decides about unknown fields, on routes of two APIs."""
    if path.startswith("/sdapi"):
        field = {"sampel_steps": "negativ_prompt"}.get(field, field)
    headers = {"Prefer": prefer} if prefer else {}
    body = {"prompt": "a", field: "5"}
    answer = httpx2.post(fake_server.url + path, json=body, headers=headers)
    assert answer.status_code == status
    assert answer.headers.get("Preference-Applied") == applied
    if status == 400:
        assert answer.json()["error"]["reason"] == "unknown_field"


def test_the_setting_chooses_the_default(tmp_path: Path) -> None:
    """The setting sets the default, which a request can override."""
    with running_server(tmp_path, engine="fake", unknown_fields="strict") as server:
        body = {**QUICK, "keep_alive": 1}
        assert server.post(body).status_code == 400
        lenient = {"Prefer": "handling=lenient"}
        answer = httpx2.post(server.url + GENERATIONS, json=body, headers=lenient)
        assert answer.status_code == 200


def test_links_of_images_open_without_a_key(tmp_path: Path) -> None:
    """The link of an image contains a token that is valid for this image only."""
    with running_server(tmp_path, engine="fake", api_keys="sesame") as server:
        headers = {"Authorization": "Bearer sesame"}
        answer = httpx2.post(server.url + GENERATIONS, json=QUICK, headers=headers).json()
        (item,) = answer["data"]
        assert httpx2.get(item["url"]).headers["Content-Type"] == "image/png"
        bare = item["url"].partition("?")[0]
        assert httpx2.get(bare).status_code == 401
        token = item["url"].partition("?token=")[2]
        for path in ("/v1/jobs", "/v1/models", "/v1/images/another/content"):
            assert httpx2.get(f"{server.url}{path}?token={token}").status_code == 401
        assert httpx2.post(item["url"]).status_code == 401


def test_forms_of_images(fake_server: ServerProcess) -> None:
    """An answer has a link and base64 by default, or only the requested form."""
    for asked, keys in (
        ({}, {"url", "b64_json"}),
        ({"response_format": "b64_json"}, {"b64_json"}),
        ({"response_format": "base64"}, {"b64_json"}),
        ({"response_format": "both"}, {"url", "b64_json"}),
    ):
        (item,) = fake_server.post({**QUICK, **asked}).json()["data"]
        assert {key for key in item if item[key] and key in ("url", "b64_json")} == keys
    (item,) = fake_server.post({**QUICK, "response_format": "url"}).json()["data"]
    assert item["b64_json"] is None


@pytest.mark.parametrize("dialect", ["image.chunk", "openai", "both"])
def test_a_frame_contains_one_form(fake_server: ServerProcess, dialect: str) -> None:
    """In a stream, ``both`` sends the bytes without a link."""
    body = {**QUICK, "stream": True, "response_format": "both", "dialect": dialect}
    text = fake_server.post(body).text
    assert "b64_json" in text
    assert "/content" not in text


def test_aliases(tmp_path: Path) -> None:
    """A request for an alias gets the default model and a warning."""
    with running_server(tmp_path, engine="fake", aliases="gpt-image-1,dall-e-3") as server:
        answer = server.post({**QUICK, "model": "gpt-image-1"}).json()
        assert answer["parameters"]["model"] == answer["model"] == "embedded"
        assert answer["warnings"] == ["The model 'gpt-image-1' is an alias of 'embedded'."]
        assert set(answer["data"][0]) >= {"b64_json"}
        assert "url" not in answer["data"][0]
        listed = httpx2.get(f"{server.url}/v1/models").json()["data"]
        assert {m["id"]: m.get("alias_of") for m in listed} == {
            "embedded": None, "gpt-image-1": "embedded", "dall-e-3": "embedded",
        }  # fmt: skip
        assert httpx2.get(f"{server.url}/v1/models/dall-e-3").json()["id"] == "embedded"
        assert server.post({**QUICK, "model": "dall-e-4"}).status_code == 404
