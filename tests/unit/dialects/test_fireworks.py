"""Conversion of Fireworks' JSON to parameters, and of a finished job to its JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdstream.core.ask import ParsedRequest
from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.job import Completed, ImageReady, ImageResult, Job, Running
from sdstream.core.request import GenerationRequest
from sdstream.dialects.fireworks.codec import (
    finish_reason,
    list_answer,
    read,
    with_headers,
    workflow_answer,
)
from sdstream.dialects.rendering import ResponseFormat, error_body

GOLDEN = Path(__file__).parents[2] / "golden"


def image(index: int, *, flagged: bool = False) -> ImageResult:
    """A finished image with the data ``image 0``, ``image 1`` …"""
    data = f"image {index}".encode()
    return ImageResult(index, 9 + index, data, len(data), 4, 0.5, 2.0, 0.5, flagged=flagged)


def finished_job(*images: ImageResult) -> Job:
    """A job with these images, which were finished in reverse order."""
    n = len(images)
    request = GenerationRequest(
        "m", "a cat", "", 64, 64, 4, "euler", "karras", 2.0, 9, n, safety="blank"
    )
    job = Job("job_1", request, 100.0)
    job.apply(Running(), 101.0)
    for result in reversed(images):
        job.apply(ImageReady(result), 103.0)
    job.apply(Completed(), 103.0)
    return job


def refused(call: Callable[[], object]) -> InvalidRequest:
    """Return the error that a call raises."""
    with pytest.raises(InvalidRequest) as caught:
        call()
    return caught.value


def test_options_of_the_job() -> None:
    """A request may name itself and its group."""
    reply = read({"prompt": "a", "group": "g", "request_id": "r"}, "flux").reply
    assert (reply.group, reply.request_id) == ("g", "r")


@pytest.mark.parametrize("option", [{"stream": True}, {"response_format": "url"}])
def test_kwargs_choose_no_answer(option: dict[str, Any]) -> None:
    """Options in kwargs are checked like the fields of the body."""
    error = refused(lambda: read({"prompt": "a", "kwargs": json.dumps(option)}, "flux"))
    assert error.param == next(iter(option))


def test_golden_request() -> None:
    """The request that fireworks-ai sends is read, including its nulls and constants."""
    body = json.loads((GOLDEN / "fireworks_request.json").read_text())
    ask = read(body, "flux")
    draft = ask.params
    given = draft.model_dump(exclude_none=True)
    assert given == {
        "model": "flux",
        "prompt": "a cat",
        "width": 128,
        "height": 64,
        "n": 2,
        "sample_steps": 3,
        "sampler": "K_DPMPP_2M",
        "cfg_scale": 2.0,
        "safety_check": False,
    }
    assert ask.blank_flagged


@pytest.mark.parametrize(
    ("name", "answer"),
    [("fireworks_workflow", workflow_answer), ("fireworks_images", list_answer)],
)
def test_golden_answers(name: str, answer: Callable[[Job, ResponseFormat, int], bytes]) -> None:
    """Each route's response is the golden file, byte for byte, with its images in order."""
    job = finished_job(image(0), image(1, flagged=True))
    assert answer(job, ResponseFormat(), 1) == (GOLDEN / f"{name}.json").read_bytes().rstrip()


def test_warnings_of_a_workflow() -> None:
    """The JSON object of a workflow reports fields without effect."""
    job = finished_job(image(0))
    job.request = replace(job.request, warnings=("Unknown field 'foo' has no effect.",))
    body = json.loads(workflow_answer(job, ResponseFormat(), 1))
    assert body["warnings"] == ["Unknown field 'foo' has no effect."]


def test_golden_error() -> None:
    """Errors have this server's usual form."""
    error = refused(lambda: read({"prompt": "a", "style_preset": "anime"}, "m"))
    golden = json.loads((GOLDEN / "fireworks_error.json").read_text())
    assert error_body(error) == golden


def test_finish_reasons() -> None:
    """One flagged image makes the finish reason CONTENT_FILTERED for all."""
    assert finish_reason([image(0)]) == "SUCCESS"
    assert finish_reason([image(0), image(1, flagged=True)]) == "CONTENT_FILTERED"


@pytest.mark.parametrize(
    ("seed", "drawn"), [(0, None), ("0", None), (None, None), (-1, -1), (5, 5), ("5", 5)]
)
def test_seeds(seed: object, drawn: int | None) -> None:
    """A seed of 0 means a random seed on this API."""
    assert read({"prompt": "a", "seed": seed}, "m").params.seed == drawn


def test_the_model_of_the_path_counts() -> None:
    """The path's model is used, as published clients send a constant in the body."""
    assert read({"prompt": "a", "model": "another"}, "flux").params.model == "flux"


@pytest.mark.parametrize(
    ("body", "param", "reason"),
    [
        ({"seed": False}, "seed", Reason.INVALID_VALUE),
        ({"clip_guidance_preset": "FAST_BLUE"}, "clip_guidance_preset", Reason.NOT_SUPPORTED),
        ({"return_latents": True}, "return_latents", Reason.NOT_SUPPORTED),
        ({"apply_invisible_watermark": True}, "apply_invisible_watermark", Reason.NOT_SUPPORTED),
        ({"text_prompts": [{"text": "a"}]}, "text_prompts", Reason.NOT_SUPPORTED),
        ({"input_image": "data:"}, "input_image", Reason.NOT_SUPPORTED),
        ({"lora_adapter_name": "a/b"}, "lora_adapter_name", Reason.NOT_SUPPORTED),
        ({"stream": True}, "stream", Reason.NOT_SUPPORTED),
        ({"response_format": "url"}, "response_format", Reason.NOT_SUPPORTED),
        ({"stream_options": {}}, "stream_options", Reason.NOT_SUPPORTED),
        ({"prompt": None}, "prompt", Reason.MISSING_FIELD),
    ],
)
def test_refusals_name_the_field(body: dict[str, Any], param: str, reason: Reason) -> None:
    """An unsupported field that would change the image or the response is rejected by name."""
    error = refused(lambda: read({"prompt": "a", **body}, "m"))
    assert (error.param, error.reason) == (param, reason)


def test_harmless_constants_pass() -> None:
    """Constants that clients always send have no effect."""
    asked = {"stream": False, "response_format": "b64_json", "clip_guidance_preset": "NONE"}
    drafts = [read({"prompt": "a", **extra}, "m").params for extra in (asked, {})]
    assert drafts[0].model_dump() == drafts[1].model_dump()


def file_of(ask: ParsedRequest) -> tuple[str | None, int | None]:
    """Return the output format and compression of a request."""
    return ask.params.output_format, ask.params.output_compression


@pytest.mark.parametrize(
    ("wanted", "headers", "expected"),
    [
        ("png", {}, ("png", None)),
        ("jpeg", {"jpeg-quality": "30"}, ("jpeg", 30)),
        ("png", {"jpeg-quality": "30"}, ("png", None)),
        ("png", {"json-return-image-accept": "text/html"}, ("png", None)),
        (None, {}, (None, None)),
        (None, {"json-return-image-accept": "image/jpeg"}, ("jpeg", None)),
        (None, {"json-return-image-accept": "image/JPEG", "jpeg-quality": "0"}, ("jpeg", 0)),
        (None, {"json-return-image-accept": "image/png", "jpeg-quality": "9"}, ("png", None)),
    ],
)
def test_headers(wanted: Any, headers: dict[str, str], expected: tuple[Any, Any]) -> None:
    """Jpeg-Quality applies only to JPEG, and the other header only to JSON responses."""
    assert file_of(with_headers(read({"prompt": "a"}, "m"), wanted, headers)) == expected


@pytest.mark.parametrize(
    ("wanted", "headers", "param"),
    [
        ("jpeg", {"jpeg-quality": "101"}, "Jpeg-Quality"),
        ("jpeg", {"jpeg-quality": "-1"}, "Jpeg-Quality"),
        ("jpeg", {"jpeg-quality": "9" * 5000}, "Jpeg-Quality"),
        ("jpeg", {"jpeg-quality": "0000999"}, "Jpeg-Quality"),
        (None, {"json-return-image-accept": "image/tiff"}, "Json-Return-Image-Accept"),
    ],
)
def test_faulty_headers(wanted: Any, headers: dict[str, str], param: str) -> None:
    """The error names the header as Fireworks' documentation spells it."""
    assert refused(lambda: with_headers(read({"prompt": "a"}, "m"), wanted, headers)).param == param


def test_body_and_headers_must_agree() -> None:
    """An output_format in the body must not contradict the Accept header."""
    ask = read({"prompt": "a", "output_format": "webp"}, "m")
    assert refused(lambda: with_headers(ask, "png", {})).reason is Reason.CONFLICTING_FIELDS
    assert file_of(with_headers(ask, None, {})) == ("webp", None)
