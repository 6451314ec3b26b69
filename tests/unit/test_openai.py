"""Clients' JSON to a draft, and a finished job to JSON."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from app.core.errors import InvalidRequest, NotSupportedYet, Reason
from app.core.job import Completed, ImageReady, ImageResult, Job, Running
from app.core.request import GenerationRequest
from app.dialects.openai import ALIASES, FOREIGN_FIELDS, Foreign, parse, plain_answer
from app.dialects.shapes import ImageForm


def refused(**body: Any) -> InvalidRequest:
    """The error that a body meets."""
    with pytest.raises(InvalidRequest) as caught:
        parse({"prompt": "a cat", **body})
    return caught.value


def finished_job(n: int = 1) -> Job:
    """A job with images of the bytes ``image 0``, ``image 1`` …"""
    request = GenerationRequest(
        "m", "a cat", "", 64, 64, 4, "euler", "karras", 2.0, None, 9, n, warnings=("careful",)
    )
    job = Job("job_1", request, 100.0)
    job.apply(Running(), 101.0)
    for index in range(n):
        data = f"image {index}".encode()
        job.apply(ImageReady(ImageResult(index, 9 + index, data, 4, 0.5, 2.0, 0.5, "id")), 103.0)
    job.apply(Completed(), 103.0)
    return job


VALUES = {
    "negative_prompt": "dark", "n": 2, "seed": 3, "sample_steps": 4, "sampler": "lcm",
    "schedule": "simple", "cfg_scale": 5.0,
}  # fmt: skip


@pytest.mark.parametrize("spelling", [a for a, name in ALIASES.items() if name in VALUES])
def test_every_spelling_reaches_its_option(spelling: str) -> None:
    """An alias is the option, and errors will speak the alias."""
    name = ALIASES[spelling]
    draft = parse({"prompt": "a cat", spelling: VALUES[name]}).draft
    assert getattr(draft, name) == VALUES[name]
    assert draft.spelled(name) == spelling


def test_nulls_are_not_given() -> None:
    """Clients transmit null for every option that their user left out."""
    every = dict.fromkeys((*ALIASES, *FOREIGN_FIELDS, "seed", "size", "quality"))
    ask = parse({"prompt": "a cat", **every, "stream": None, "stream_options": None})
    assert ask.draft == parse({"prompt": "a cat"}).draft
    assert not ask.reply.stream


@pytest.mark.parametrize("name", FOREIGN_FIELDS)
def test_foreign_fields_are_never_silent(name: str) -> None:
    """Harmless ones pass; all others are refused by name."""
    fate = FOREIGN_FIELDS[name]
    if fate is Foreign.IGNORED:
        assert parse({"prompt": "a cat", name: "x"}).draft.prompt == "a cat"
        return
    error = refused(**{name: 1})
    assert error.param == name
    expected = Reason.NOT_SUPPORTED_YET if fate is Foreign.NOT_YET else Reason.NOT_SUPPORTED
    assert error.reason is expected


@pytest.mark.parametrize(
    ("body", "param", "reason"),
    [
        ({"sed": 1}, "sed", Reason.UNKNOWN_FIELD),
        ({"previews": True}, "previews", Reason.UNKNOWN_FIELD),
        ({"spelling": {}}, "spelling", Reason.UNKNOWN_FIELD),
        ({"steps": 3, "sample_steps": 4}, "sample_steps", Reason.CONFLICTING_FIELDS),
        ({"steps": "many"}, "steps", Reason.INVALID_VALUE),
        ({"n": 11}, "n", Reason.INVALID_VALUE),
        ({"samples": 0}, "samples", Reason.INVALID_VALUE),
        ({"response_format": "png"}, "response_format", Reason.INVALID_VALUE),
        ({"background": "transparent"}, "background", Reason.INVALID_VALUE),
        ({"stream": "maybe"}, "stream", Reason.INVALID_VALUE),
        ({"stream_options": {"chunk_size": 10}}, "stream_options.chunk_size", Reason.INVALID_VALUE),
        ({"stream_options": {"chunks": 1}}, "stream_options.chunks", Reason.UNKNOWN_FIELD),
        ({"stream_options": 3}, "stream_options", Reason.INVALID_VALUE),
        ({"safety_check": True}, "safety_check", Reason.SAFETY_CHECKER_UNAVAILABLE),
        ({"prompt": None}, "prompt", Reason.MISSING_FIELD),
        ({"prompt": ["a"]}, "prompt", Reason.INVALID_VALUE),
    ],
)
def test_refusals_name_the_field(body: dict[str, Any], param: str, reason: Reason) -> None:
    """Every fault says which field, as the client wrote it."""
    error = refused(**body)
    assert (error.param, error.reason) == (param, reason)


def test_the_openai_stream_is_said_to_be_missing() -> None:
    """Its dialect is known and not built: no other form is sent in its place."""
    with pytest.raises(NotSupportedYet):
        parse({"prompt": "a cat", "stream": True, "stream_options": {"dialect": "openai"}})


def test_agreeing_spellings_are_no_conflict() -> None:
    """Some clients send both names of an option."""
    assert parse({"prompt": "a", "steps": 4, "sample_steps": 4}).draft.sample_steps == 4


def test_previews_only_where_they_are_seen() -> None:
    """The runtime is asked for previews by streams that want them."""
    options = {"stream_options": {"preview": True}}
    assert parse({"prompt": "a", "stream": True, **options}).draft.previews
    assert not parse({"prompt": "a", **options}).draft.previews


@pytest.mark.parametrize(
    ("literal", "as_url", "data_url"),
    [
        ("b64_json", False, False),
        ("url", True, False),
        ("Url", True, False),
        ("B64Json", False, True),
    ],
)
def test_response_formats(literal: str, as_url: bool, data_url: bool) -> None:
    """OpenAI's words and mistral.rs' literals."""
    form = parse({"prompt": "a", "response_format": literal}).form("http://h")
    assert (form.as_url, form.data_url) == (as_url, data_url)


def test_plain_answer() -> None:
    """The images in order, what they were made with, what they cost."""
    answer = json.loads(plain_answer(finished_job(2), ImageForm(), created=1234))
    assert answer["created"] == 1234
    assert [item["index"] for item in answer["data"]] == [0, 1]
    assert [item["seed"] for item in answer["data"]] == [9, 10]
    assert [base64.b64decode(item["b64_json"]) for item in answer["data"]] == [
        b"image 0",
        b"image 1",
    ]
    assert all(item["finish_reason"] == "stop" for item in answer["data"])
    assert answer["parameters"]["schedule"] == "karras"
    assert answer["warnings"] == ["careful"]
    usage = answer["usage"]
    assert usage["generation_per_second"] == 2.0
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_links_and_data_urls() -> None:
    """response_format chooses what an item ends with."""
    link = json.loads(plain_answer(finished_job(), ImageForm(True, base_url="http://h"), 1))
    assert link["data"][0]["url"] == "http://h/v1/images/id/content"
    assert "b64_json" not in link["data"][0]
    data = json.loads(plain_answer(finished_job(), ImageForm(data_url=True), 1))
    assert data["data"][0]["b64_json"].startswith("data:image/png;base64,")
