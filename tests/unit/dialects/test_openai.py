"""Conversion of clients' JSON to parameters, and of a finished job to JSON."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from sdstream.core.ask import Hints
from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.job import Completed, ImageReady, ImageResult, Job, Running
from sdstream.core.options import ALIASES
from sdstream.core.pixels import SourceFile
from sdstream.core.request import EVERY_STEP, GenerationRequest
from sdstream.dialects.fields import FOREIGN
from sdstream.dialects.openai.answers import plain_answer
from sdstream.dialects.openai.request import (
    EditRoute,
    parse,
    parse_edit,
    parse_form,
    parse_generation_form,
    parse_query,
)
from sdstream.dialects.rendering import ResponseFormat, compact, error_body, parameters

GOLDEN = Path(__file__).parents[2] / "golden"


def refused(**body: Any) -> InvalidRequest:
    """Return the error with which a body is rejected."""
    with pytest.raises(InvalidRequest) as caught:
        parse({"prompt": "a cat", **body})
    return caught.value


def finished_job(n: int = 1) -> Job:
    """A finished job with images of the data ``image 0``, ``image 1`` …"""
    request = GenerationRequest(
        "m", "a cat", "", 64, 64, 4, "euler", "karras", 2.0, 9, n, warnings=("careful",)
    )
    job = Job("job_1", request, 100.0)
    job.apply(Running(), 101.0)
    for index in range(n):
        data = f"image {index}".encode()
        job.apply(
            ImageReady(ImageResult(index, 9 + index, data, len(data), 4, 0.5, 2.0, 0.5, "id")),
            103.0,
        )
    job.apply(Completed(), 103.0)
    return job


def test_defaults_of_openai_cause_no_warning() -> None:
    """OpenAI's own default values are accepted without a warning."""
    body = {"prompt": "a cat", "style": "vivid", "quality": "auto", "moderation": "auto"}
    assert parse(body).warnings == ()


@pytest.mark.parametrize("size", [0, 1, 1023])
def test_small_pieces_are_enlarged(size: int) -> None:
    """A chunk_size below 1024 is raised to 1024."""
    ask = parse({"prompt": "a cat", "stream": True, "stream_options": {"chunk_size": size}})
    assert ask.reply.stream_options.chunk_size == 1024


@pytest.mark.parametrize("lora", [{"ink": 0.7}, [{"ink": 0.7}], '{"ink": 0.7}', '[{"ink": 0.7}]'])
def test_loras_by_name_and_scale(lora: Any) -> None:
    """A LoRA can be an object of its name and scale, alone or in a list."""
    chosen = parse({"prompt": "a cat", "lora": lora}).params.lora
    assert chosen is not None
    assert [(one.id, one.scale) for one in chosen] == [("ink", 0.7)]


VALUES = {
    "negative_prompt": "dark", "n": 2, "seed": 3, "sample_steps": 4, "sampler": "lcm",
    "schedule": "simple", "cfg_scale": 5.0,
}  # fmt: skip


@pytest.mark.parametrize("spelling", [a for a, name in ALIASES.items() if name in VALUES])
def test_every_spelling_reaches_its_option(spelling: str) -> None:
    """An alias sets its option, and errors name the alias."""
    name = ALIASES[spelling]
    ask = parse({"prompt": "a cat", spelling: VALUES[name]})
    assert getattr(ask.params, name) == VALUES[name]
    assert ask.client_name(name) == spelling


def test_nulls_are_not_given() -> None:
    """A null is ignored, as clients send it for every option that is not set."""
    every = dict.fromkeys((*ALIASES, *FOREIGN, "seed", "size", "quality"))
    ask = parse({"prompt": "a cat", **every, "stream": None, "stream_options": None})
    assert ask.params == parse({"prompt": "a cat"}).params
    assert not ask.reply.stream


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hires_scale", 1), ("hires_scale", "1.0"), ("hires_scale", False), ("hires_steps", 0),
        ("cache_mode", "none"), ("cache_mode", False), ("clip_skip", 0.0),
        ("clip_skip", "-1.0"), ("shifted_timestep", 0.0), ("flow_shift", 0), ("mask_blur", 0),
        ("control_canny", 0.0), ("sigmas", []), ("slg_layers", []), ("cache_options", {}),
    ],
)  # fmt: skip
def test_values_that_switch_an_option_off(name: str, value: object) -> None:
    """Such a value is ignored silently, however the client writes the number or the word."""
    ask = parse({"prompt": "a cat", name: value})
    assert (ask.params, ask.warnings) == (parse({"prompt": "a cat"}).params, ())


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_fields(name: str) -> None:
    """Fields that would change the image are rejected, and the others ignored or reported."""
    field = FOREIGN[name]
    for value in ("", [], *field.neutral):
        assert parse({"prompt": "a cat", name: value}).warnings == ()
    asking = field.asking[0] if field.asking else 7
    if field.refusal:
        error = refused(**{name: asking})
        assert (error.param, error.reason) == (name, Reason.NOT_SUPPORTED)
        assert error.message == f"'{name}'{field.refusal}"
        return
    ask = parse({"prompt": "a cat", name: asking})
    assert ask.warnings == ((f"'{name}'{field.note}",) if field.note else ())
    assert ask.unknown == ()


@pytest.mark.parametrize(
    ("body", "param", "reason"),
    [
        ({"sed": 1}, "sed", Reason.UNKNOWN_FIELD),
        ({"steps": 3, "sample_steps": 4}, "sample_steps", Reason.CONFLICTING_FIELDS),
        ({"steps": "many"}, "steps", Reason.INVALID_VALUE),
        ({"n": 101}, "n", Reason.INVALID_VALUE),
        ({"samples": 0}, "samples", Reason.INVALID_VALUE),
        ({"response_format": "png"}, "response_format", Reason.INVALID_VALUE),
        ({"background": "transparent"}, "background", Reason.INVALID_VALUE),
        ({"stream": "maybe"}, "stream", Reason.INVALID_VALUE),
        ({"stream_options": {"chunksize": 1}}, "stream_options.chunksize", Reason.UNKNOWN_FIELD),
        ({"stream_options": 3}, "stream_options", Reason.INVALID_VALUE),
        ({"prompt": None}, "prompt", Reason.MISSING_FIELD),
        ({"prompt": ["a"]}, "prompt", Reason.INVALID_VALUE),
    ],
)
def test_refusals_name_the_field(body: dict[str, Any], param: str, reason: Reason) -> None:
    """Each error names the field as the client wrote it."""
    error = refused(**body)
    assert (error.param, error.reason) == (param, reason)


@pytest.mark.parametrize(
    ("body", "hints", "dialect"),
    [
        ({}, Hints(), None),
        ({}, Hints(library="openai"), "openai"),
        ({"partial_images": 0}, Hints(), "openai"),
        ({"stream_options": {"include_usage": True}}, Hints(library="openai"), "image.chunk"),
        ({"stream_options": {"preview": True}, "partial_images": 2}, Hints(), "image.chunk"),
        (
            {"stream_options": {"dialect": "both"}, "partial_images": 2},
            Hints(library="openai"),
            "both",
        ),
        ({"stream_options": {"include_usage": True}}, Hints("openai"), "openai"),
        ({"stream_options": {"dialect": "both"}}, Hints("image.chunk"), "image.chunk"),
        ({"partial_images": 2}, Hints("image.chunk", "openai"), "image.chunk"),
    ],
)
def test_who_gets_which_stream(body: dict[str, Any], hints: Hints, dialect: str | None) -> None:
    """The dialect follows from the query, the body, typical fields, or the client library."""
    ask = parse({"prompt": "a", "stream": True, **body}, hints)
    assert ask.reply.stream_options.dialect == dialect


@pytest.mark.parametrize(
    ("body", "hints", "name"),
    [
        ({"stream_options": {"chunk_result": True}}, Hints("both"), "chunk_result"),
        (
            {"stream_options": {"chunk_result": True}, "response_format": "Url"},
            Hints(),
            "chunk_result",
        ),
        ({"stream_options": {"include_usage": False}}, Hints("openai"), "include_usage"),
    ],
)
def test_options_that_a_stream_passes_over(body: dict[str, Any], hints: Hints, name: str) -> None:
    """Stream options that the dialect does not support are rejected by name."""
    with pytest.raises(InvalidRequest) as caught:
        parse({"prompt": "a", "stream": True, **body}, hints)
    assert caught.value.param == f"stream_options.{name}"


def test_no_number_is_a_boolean() -> None:
    """A boolean is not accepted as a number."""
    with pytest.raises(InvalidRequest, match="'partial_images' must be a whole number, not true"):
        parse({"prompt": "a", "partial_images": True})


@pytest.mark.parametrize(
    "fields", [{"clip_skip": "-1"}, {"control_canny": "0"}, {"cache_mode": "disabled"}]
)
def test_values_that_switch_off_in_forms(fields: dict[str, str]) -> None:
    """Off values of a form have the same meaning as in JSON."""
    draft = parse_generation_form({"prompt": "a", **fields}, ()).params
    assert draft == parse({"prompt": "a"}).params


def test_a_parameter_that_comes_twice() -> None:
    """A repeated parameter is accepted only with the same value; unknown ones are ignored."""
    assert (
        parse_query([("prompt", "a"), ("prompt", "a"), ("t", "1"), ("t", "2")]).params.prompt == "a"
    )
    with pytest.raises(InvalidRequest, match="Duplicate field 'prompt'"):
        parse_query([("prompt", "a"), ("prompt", "b")])


def upload(name: str = "image") -> SourceFile:
    """A file of a form."""
    return SourceFile(name, b"bytes")


def test_forms_say_what_json_says() -> None:
    """Form fields are text, stream options are flattened, and empty fields are ignored."""
    ask = parse_form(
        {
            "prompt": "a cat",
            "steps": "4",
            "strength": "0.5",
            "stream": "true",
            "seed": "",
            "stream_options_include_usage": "false",
            "stream_options[preview]": "true",
        },
        [upload()],
    )
    assert (ask.params.sample_steps, ask.params.strength, ask.params.seed) == (4, 0.5, None)
    assert ask.reply.stream
    assert not ask.reply.stream_options.include_usage
    assert ask.previews == EVERY_STEP
    assert ask.operation == "edit"


def test_stream_options_of_a_form_may_be_json() -> None:
    """Clients that follow the OpenAPI document send an object of a form as JSON."""
    fields = {"prompt": "a", "stream_options": '{"include_usage": false, "preview": true}'}
    ask = parse_form({**fields, "stream_options_include_usage": "true"}, [upload()])
    assert ask.reply.stream_options.include_usage
    assert ask.previews == EVERY_STEP
    with pytest.raises(InvalidRequest, match="'stream_options' must be an object"):
        parse_form({"prompt": "a", "stream_options": "{"}, [upload()])


def test_files_by_their_fields() -> None:
    """Several images come as image[], and the mask under either of its names."""
    files = [upload("image[]"), upload("image[]"), upload("mask_image")]
    ask = parse_form({"prompt": "a"}, files, route=EditRoute("luminance"))
    assert ask.files is not None
    assert (len(ask.files.images), ask.files.mask) == (2, files[2])
    assert ask.params.mask_mode == "luminance"


def test_the_images_own_alpha_is_a_mask_on_request() -> None:
    """mask_mode alpha without a mask uses the image's transparency as the mask."""
    ask = parse_form({"prompt": "a", "mask_mode": "alpha"}, [upload()])
    assert ask.files is not None
    assert ask.files.own_alpha


def test_variations_need_no_prompt() -> None:
    """A route may make the prompt optional; a given prompt is used."""
    assert parse_form({}, [upload()], route=EditRoute(prompt="")).params.prompt == ""
    assert parse_form({"prompt": "x"}, [upload()], route=EditRoute(prompt="")).params.prompt == "x"


def test_kwargs_are_options() -> None:
    """Xinference's client sends options as JSON in the string kwargs."""
    ask = parse({"prompt": "a", "kwargs": '{"num_inference_steps": 5, "seed": null}'})
    assert ask.params.sample_steps == 5
    assert refused(kwargs="[1]").param == "kwargs"
    assert refused(kwargs="{").param == "kwargs"
    assert parse({"prompt": "a", "kwargs": '{"unheard": 1}'}).unknown == ("unheard",)


@pytest.mark.parametrize(
    ("fields", "files", "param"),
    [
        ({"prompt": "a"}, [], "image"),
        ({"prompt": "a", "image": "text"}, [], "image"),
        ({"prompt": "a", "mask": "text"}, [upload()], "mask"),
        ({"prompt": "a"}, [upload("picture")], "picture"),
        ({"prompt": "a"}, [upload(), upload("control"), upload("control")], "control"),
        ({"prompt": "a", "control": "text"}, [upload()], "control"),
        ({"prompt": "a"}, [upload()] * 17, "image"),
        ({"prompt": "a"}, [upload(), upload("mask"), upload("mask")], "mask"),
        ({"prompt": "a", "strength": "2"}, [upload()], "strength"),
        ({"prompt": "a", "stream": "maybe"}, [upload()], "stream"),
        ({}, [upload()], "prompt"),
    ],
)
def test_faulty_forms_name_the_field(
    fields: dict[str, str], files: list[SourceFile], param: str
) -> None:
    """An error of a form names the field."""
    with pytest.raises(InvalidRequest) as caught:
        parse_form(fields, files)
    assert caught.value.param == param


def test_agreeing_spellings_are_no_conflict() -> None:
    """Two spellings of an option with the same value are accepted."""
    assert parse({"prompt": "a", "steps": 4, "sample_steps": 4}).params.sample_steps == 4


def test_previews_only_where_they_are_seen() -> None:
    """partial_images needs a stream, but stream_options.preview also works without one."""
    options = {"stream_options": {"preview": True}}
    assert parse({"prompt": "a", "stream": True, **options}).previews == EVERY_STEP
    assert parse({"prompt": "a", "stream": True, "partial_images": 2}).previews == 2
    assert parse({"prompt": "a", **options}).previews == EVERY_STEP
    assert not parse({"prompt": "a", "partial_images": 2}).previews


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
    """The values of OpenAI and of mistral.rs are accepted."""
    chosen = parse({"prompt": "a", "response_format": literal}).reply.response_format
    assert chosen is not None
    form = ResponseFormat.of(chosen)
    assert (form.as_url, form.data_url) == (as_url, data_url)


def test_plain_answer() -> None:
    """The response contains the images in order, their parameters and the usage."""
    answer = json.loads(plain_answer(finished_job(2), ResponseFormat(), created=1234))
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
    """response_format selects a URL, base64 or a data URL for each item."""
    link = json.loads(plain_answer(finished_job(), ResponseFormat(True, base_url="http://h"), 1))
    assert link["data"][0]["url"] == "http://h/v1/images/id/content"
    assert link["data"][0]["b64_json"] is None
    data = json.loads(plain_answer(finished_job(), ResponseFormat(data_url=True), 1))
    assert data["data"][0]["b64_json"].startswith("data:image/png;base64,")


@pytest.mark.parametrize("dialect", ["openai", "both"])
def test_pieces_are_for_one_dialect_only(dialect: str) -> None:
    """chunk_result is rejected for OpenAI's stream, whose clients need whole images."""
    error = refused(stream=True, stream_options={"dialect": dialect, "chunk_result": True})
    assert (error.param, error.reason) == ("stream_options.chunk_result", Reason.NOT_SUPPORTED)


def test_kwargs_may_not_contradict_the_body() -> None:
    """An option in both the body and kwargs must have the same value."""
    assert parse({"prompt": "a", "n": 2, "kwargs": '{"n": 2}'}).params.n == 2
    assert refused(n=2, kwargs='{"n": 3}').reason is Reason.CONFLICTING_FIELDS
    assert refused(kwargs="[" * 100_000).param == "kwargs"


def test_kwargs_count_before_the_defaults_of_a_route() -> None:
    """A route's default applies only to an option that neither the form nor kwargs contains."""
    masked = [upload(), upload("mask_image")]
    route = EditRoute("luminance", prompt="")
    ask = parse_form({"kwargs": '{"mask_mode": "alpha", "prompt": "c"}'}, masked, route=route)
    assert (ask.params.mask_mode, ask.params.prompt) == ("alpha", "c")
    ask = parse_form({"kwargs": '{"mask_mode": null}'}, masked, route=route)
    assert (ask.params.mask_mode, ask.params.prompt) == ("luminance", "")
    ask = parse_form({"prompt": "c", "kwargs": '{"mask_mode": "alpha"}'}, [upload()])
    assert ask.files is not None
    assert ask.files.own_alpha


@pytest.mark.parametrize("route", [EditRoute(), EditRoute(prompt="")])
def test_an_empty_prompt_of_an_edit(route: EditRoute) -> None:
    """An edit accepts an empty prompt in JSON as in a form."""
    body = {"prompt": "", "mask_mode": "", "seed": "", "negative_prompt": ""}
    from_json = parse_edit({**body, "image": "AAAA"}, route=route).params
    assert from_json == parse_form(body, [upload()], route=route).params
    assert from_json.prompt == ""


def test_parameters_of_an_upscale_sent_back() -> None:
    """The parameters in the answer to an upscale are accepted; options of a generation are not."""
    request = GenerationRequest("m", "", "", 64, 64, 0, "euler", "default", 1.0, 0, 1)
    told = parameters(request)
    route = EditRoute(prompt="", only_upscale=True)
    ask = parse_edit({**told, "image": "AAAA", "upscale": 2}, route=route)
    assert ask.only_upscale
    given = ask.params.model_dump(exclude_none=True, exclude_defaults=True)
    assert given == {"model": "m", "prompt": "", "negative_prompt": "", "n": 1, "upscale": 2.0}
    ask = parse_edit({"image": "AAAA", "sample_steps": 4, "seed": 1}, route=route)
    assert (ask.params.sample_steps, ask.params.seed) == (4, 1)
    with pytest.raises(InvalidRequest, match="'sample_steps'"):
        parse_edit({**told, "image": "AAAA"})


@pytest.mark.parametrize("name", ["image", "image[]", "images", "images[]"])
def test_the_names_that_clients_give_images(name: str) -> None:
    """The names that OpenAI's and Xinference's clients give to images are accepted."""
    ask = parse_form({"prompt": "a"}, [upload(name), upload(name)])
    assert ask.files is not None
    assert len(ask.files.images) == 2


def test_golden_answer() -> None:
    """The response of a finished job is the golden file, byte for byte."""
    assert (
        plain_answer(finished_job(2), ResponseFormat(), 1234)
        == (GOLDEN / "openai_answer.json").read_bytes()
    )


def test_golden_error() -> None:
    """The response to a rejected request is the golden file, byte for byte."""
    error = refused(steps="many")
    assert compact(error_body(error)) == (GOLDEN / "openai_error.json").read_bytes()


def test_golden_request() -> None:
    """A request with every option of OpenAI's client is parsed."""
    body = json.loads((GOLDEN / "openai_request.json").read_text())
    draft = parse(body).params
    assert (draft.prompt, draft.n, draft.size, draft.quality) == ("a cat", 2, "64x64", "high")
    assert (draft.output_format, draft.output_compression) == ("webp", 80)
