"""Resolving of a client's parameters into a generation request."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from sdstream.core.ask import ParsedRequest
from sdstream.core.catalog import Catalog
from sdstream.core.errors import ImageServiceError, InvalidRequest, Reason
from sdstream.core.model_options import only_looks
from sdstream.core.options import MAX_SEED, ImageParams
from sdstream.core.pixels import SourceFile, SourceFiles
from sdstream.core.placement import Box
from sdstream.core.request import (
    NO_ASSETS,
    Assets,
    GenerationRequest,
    Limits,
    Sources,
    request_fields,
    request_of,
)
from sdstream.core.resolve import check_count, resolve
from sdstream.core.size import Size

CATALOG = Catalog.parse(
    """
models:
  - id: plain
    family: sd1
    files: {model: m}
    defaults: {steps: 20, cfg_scale: 7}
  - id: flow
    family: flux
    files: {model: m}
    defaults: {guidance: 4.0}
  - id: looker
    family: flux_kontext
    files: {model: m}
  - id: large
    family: sdxl
    files: {model: m}
  - id: tiled
    family: sdxl
    files: {model: m}
    runtime: {vae_tiling: true}
  - id: counter
    family: flux2
    files: {model: m}
  - id: pixels
    family: chroma_radiance
    files: {model: m}
"""
)


NOTHING = Sources()
PICTURE = Sources(size=Size(700, 500), drawn_over=True)
MASKED = Sources(size=Size(700, 500), drawn_over=True, masked=True, painted=Box(100, 100, 200, 150))
LOOKED_AT = Sources(size=Size(700, 500), references=(Size(700, 500), Size(4000, 3000)))


def ask(
    prompt: str = "a cat",
    sources: Sources = NOTHING,
    client_names: dict[str, str] | None = None,
    assets: Assets = NO_ASSETS,
    **options: Any,
) -> GenerationRequest:
    """Resolve parameters against the catalogue above; a random seed is 77."""
    params = ImageParams(prompt=prompt, **options)
    return resolve(
        ParsedRequest(params, client_names=client_names or {}),
        CATALOG,
        random_seed=lambda: 77,
        limits=Limits(1024 * 1024),
        sources=sources,
        assets=assets,
    )


@pytest.mark.parametrize(
    ("changes", "options", "looks"),
    [
        ({}, {}, True),
        ({"mask": SourceFile("mask", b"")}, {}, False),
        ({"own_alpha": True}, {}, False),
        ({}, {"expand": (0, 64, 0, 0)}, False),
    ],
)
def test_models_that_only_look_at_the_images(
    changes: dict[str, Any], options: dict[str, Any], looks: bool
) -> None:
    """Without a mask and without an expansion, a model that takes references edits no image."""
    files = SourceFiles((SourceFile("image", b""),), **changes)
    request = ParsedRequest(ImageParams(prompt="a cat", **options), files=files)
    spec = CATALOG.find("looker")
    assert spec is not None
    assert only_looks(request, spec) is looks
    assert not only_looks(replace(request, only_upscale=True), spec)
    assert not only_looks(replace(request, files=None), spec)


def refused(sources: Sources = NOTHING, **options: Any) -> ImageServiceError:
    """Return the error with which parameters are rejected."""
    with pytest.raises(ImageServiceError) as caught:
        ask(sources=sources, **options)
    return caught.value


def test_everything_is_concrete() -> None:
    """The defaults of the model and its family complete a request that has only a prompt."""
    request = ask()
    assert (request.model, str(request.size), request.steps) == ("plain", "512x512", 20)
    assert (request.sampler, request.schedule, request.cfg_scale) == ("euler", "default", 7)
    assert (request.seed, request.n, request.output_format) == (77, 1, "png")
    assert request.options.guidance is None


@pytest.mark.parametrize(
    ("given", "used"), [(None, 77), (-1, 77), (0, 0), (5, 5), (MAX_SEED, MAX_SEED)]
)
def test_seeds(given: int | None, used: int) -> None:
    """None and -1 give a random seed; 0 is a seed like any other."""
    assert ask(seed=given).seed == used


@pytest.mark.parametrize(
    ("quality", "steps"), [("low", 10), ("standard", 20), ("auto", 20), ("high", 30), ("hd", 30)]
)
def test_quality_maps_to_steps(quality: str, steps: int) -> None:
    """OpenAI's quality sets the steps, unless steps are given."""
    assert ask(quality=quality).steps == steps
    assert ask(quality=quality, sample_steps=3).steps == 3


def test_sizes() -> None:
    """A size is given by size, by width and height, or by "auto"."""
    assert str(ask(size="640x512").size) == "640x512"
    assert str(ask(width=640, height=512).size) == "640x512"
    assert str(ask(size="auto").size) == "512x512"
    assert str(ask(size="640x512", width=640, height=512).size) == "640x512"


@pytest.mark.parametrize(
    ("options", "param", "reason"),
    [
        ({"size": "500x512"}, "size", Reason.INVALID_VALUE),
        ({"size": "0x0"}, "size", Reason.INVALID_VALUE),
        ({"size": "abc"}, "size", Reason.INVALID_VALUE),
        ({"size": "2048x2048"}, "size", Reason.INVALID_VALUE),
        ({"width": 512}, "height", Reason.MISSING_FIELD),
        ({"height": 512}, "width", Reason.MISSING_FIELD),
        ({"width": 512, "height": 500}, "height", Reason.INVALID_VALUE),
        ({"width": 512, "height": 512, "size": "64x64"}, "size", Reason.CONFLICTING_FIELDS),
        ({"sampler": "magic"}, "sampler", Reason.INVALID_VALUE),
        ({"schedule": "magic"}, "schedule", Reason.INVALID_VALUE),
        ({"schedule": "gits", "sample_steps": 1}, "schedule", Reason.UNSAFE_COMBINATION),
        ({"schedule": "karras", "sample_steps": 1}, "schedule", Reason.UNSAFE_COMBINATION),
        ({"schedule": "ays", "model": "flow"}, "schedule", Reason.UNSAFE_COMBINATION),
        ({"schedule": "gits", "model": "flow"}, "schedule", Reason.UNSAFE_COMBINATION),
        ({"guidance": 3.0}, "guidance", Reason.NOT_SUPPORTED),
        ({"output_compression": 50}, "output_compression", Reason.INVALID_VALUE),
        ({"model": "nobody"}, "model", Reason.MODEL_NOT_FOUND),
    ],
)  # fmt: skip
def test_refusals_name_the_field(options: dict[str, Any], param: str, reason: Reason) -> None:
    """The error names the field, and comes before the runtime receives the request."""
    error = refused(**options)
    assert (error.param, error.reason) == (param, reason)


def test_errors_speak_the_clients_spelling() -> None:
    """The error names the field as the client spelled it."""
    error = refused(sampler="magic", client_names={"sampler": "sample_method"})
    assert error.param == "sample_method"
    assert "'sample_method'" in error.message


@pytest.mark.parametrize(
    "options",
    [
        {"n": 0}, {"n": 101}, {"n": True}, {"n": 1.5}, {"seed": -2}, {"seed": 2**63},
        {"sample_steps": 0}, {"sample_steps": 1001}, {"cfg_scale": float("nan")},
        {"cfg_scale": float("inf")}, {"cfg_scale": -1}, {"cfg_scale": 31}, {"width": 0},
        {"prompt": "a" * 32_001}, {"prompt": "nul\0"}, {"prompt": "\ud800"}, {"prompt": 7},
        {"negative_prompt": "nul\0"}, {"output_format": "gif"}, {"output_compression": 101},
        {"quality": "best"}, {"unheard_of": 1},
    ],
)  # fmt: skip
def test_drafts_refuse_nonsense(options: dict[str, Any]) -> None:
    """Wrong types and values out of range are rejected before the request is resolved."""
    with pytest.raises(ValidationError):
        ImageParams(**{"prompt": "a cat", **options})


def test_the_operator_raises_the_limits() -> None:
    """More than ten images and 150 steps are possible; without the settings the error names them.
    The seed of the last image must fit too."""

    def resolved(limits: Limits, **options: Any) -> GenerationRequest:
        params = ImageParams(prompt="a cat", **options)
        return resolve(ParsedRequest(params), CATALOG, random_seed=lambda: 1, limits=limits)

    raised = Limits(images=12, steps=200)
    assert (resolved(raised, n=12).n, resolved(raised, sample_steps=200).steps) == (12, 200)
    for options, words in (
        ({"n": 11}, "'n': 11 images are more than the server's limit of 10 (--max-images)."),
        ({"sample_steps": 151}, "more than the server's limit of 150 (--max-steps)."),
    ):
        with pytest.raises(InvalidRequest) as caught:
            resolved(Limits(), **options)
        assert words in caught.value.message
    with pytest.raises(InvalidRequest, match="the last of 12 images would have the seed"):
        resolved(raised, n=12, seed=MAX_SEED)


def test_guidance_of_a_model_that_has_it() -> None:
    """Distilled guidance comes from the request, else from the model."""
    assert ask(model="flow").options.guidance == 4.0
    assert ask(model="flow", guidance=2).options.guidance == 2


def test_pictures_bring_size_and_strength() -> None:
    """Without a size, the image's own is used; strength is 0.75, or 1 with a mask."""
    request = ask(sources=PICTURE)
    assert (str(request.size), request.options.strength, request.options.fit) == (
        "704x512",
        0.75,
        "crop",
    )
    assert ask(sources=MASKED).options.strength == 1.0
    assert ask(sources=MASKED, strength=0.3).options.strength == 0.3
    assert str(ask(sources=PICTURE, size="512x512").size) == "512x512"
    assert ask().options.strength is None


def test_a_picture_larger_than_what_may_be_drawn() -> None:
    """The pixel limit also applies to a size that comes from the input image."""
    large = Sources(size=Size(3000, 1500), drawn_over=True)
    assert str(ask(sources=large).size) == "1408x704"


def test_one_size_in_two_spellings() -> None:
    """A star or a capital X means the same size; different sizes conflict."""
    for spelling in ("64*128", "64X128", "64x128"):
        assert str(ask(size=spelling, width=64, height=128).size) == "64x128"
    assert refused(size="128x64", width=64, height=128).reason is Reason.CONFLICTING_FIELDS


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"size": "2048x64", "hires_scale": 4}, "hires_scale"),
        ({"hires_scale": 1.001}, "hires_scale"),
        ({"model": "flow", "slg_scale": 2, "slg_start": 0.5, "slg_end": 0.2}, "slg_start"),
        ({"model": "flow", "slg_scale": 2, "slg_start": 0.2}, "slg_start"),
        (
            {"model": "flow", "cache_mode": "easycache", "cache_start": 0.9, "cache_end": 0.1},
            "cache_start",
        ),
        ({"model": "flow", "cache_mode": "easycache", "cache_start": 0.97}, "cache_start"),
        ({"model": "plain", "cache_mode": "ucache", "cache_end": 0.1}, "cache_end"),
        (
            {"cache_mode": "ucache", "cache_options": {"start": 0.9, "end": 0.1}},
            "cache_options",
        ),
        ({"cache_mode": "ucache", "cache_options": {"start": 0.96}}, "cache_options"),
        ({"cache_mode": "ucache", "cache_end": 0.5, "cache_options": {"start": 0.6}}, "cache_end"),
    ],
)
def test_powers_that_would_do_nothing_or_too_much(options: dict[str, Any], param: str) -> None:
    """A second pass stays within the model's bounds, and a range's end must be after its start."""
    assert refused(**options).param == param


def test_spans_of_the_cache() -> None:
    """A span may begin after the runtime's end if it ends later, and the other way round."""
    spans: list[dict[str, Any]] = [
        {"cache_start": 0.96, "cache_end": 0.99},
        {"cache_start": 0.01, "cache_end": 0.1},
    ]
    for span in spans:
        given = ask(cache_mode="ucache", **span).options.given()
        assert {name: given[name] for name in span} == span
    spectrum = ask(cache_mode="spectrum", cache_options={"stop": 0.1})
    assert spectrum.options.cache_options == {"stop": 0.1}


def test_references_are_for_models_that_look() -> None:
    """An editing model takes several references and no strength; others take one image."""
    request = ask(model="looker", sources=LOOKED_AT)
    assert (str(request.size), request.options.strength) == ("704x496", None)
    for name, count, fine in (("looker", 3, True), ("plain", 1, True), ("plain", 2, False)):
        spec = CATALOG.models[name]
        files = [SourceFile(f"image[{number}]", b"bytes") for number in range(count)]
        if fine:
            check_count(ParsedRequest(ImageParams(prompt="a cat")), spec, files)
            continue
        with pytest.raises(InvalidRequest) as caught:
            check_count(ParsedRequest(ImageParams(prompt="a cat")), spec, files)
        assert caught.value.param == "image[1]"


@pytest.mark.parametrize(
    ("options", "sources"),
    [
        ({"strength": 0.5}, NOTHING),
        ({"fit": "pad"}, NOTHING),
        ({"mask_mode": "alpha"}, PICTURE),
        ({"mask_blur": 2}, PICTURE),
        ({"mask_blur": 2, "fit": "pad"}, PICTURE),
        ({"only_masked": True}, PICTURE),
        ({"only_masked_padding": 8}, MASKED),
        ({"expand": 8}, NOTHING),
        ({"expand": 8, "model": "looker"}, LOOKED_AT),
        ({"reference_size": "original"}, PICTURE),
        ({"reference_size": "original", "model": "looker"}, PICTURE),
        ({"strength": 0.5, "model": "looker"}, LOOKED_AT),
        ({"fit": "pad", "model": "looker"}, LOOKED_AT),
    ],
)
def test_options_of_pictures_that_are_not_there(options: dict[str, Any], sources: Sources) -> None:
    """An option of an image is rejected by name if there is no such image."""
    error = refused(sources, **options)
    assert (error.param, error.reason) == (next(iter(options)), Reason.NOT_SUPPORTED)


def test_a_negative_prompt_that_cannot_act_is_said() -> None:
    """A negative prompt that has no effect at cfg_scale 1 gives a warning."""
    assert ask(negative_prompt="red", cfg_scale=1).warnings == (
        "negative_prompt has no effect at cfg_scale 1.",
    )
    assert ask(negative_prompt="red").warnings == ()


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("K_EULER", "euler"), ("k_dpmpp_2m", "dpm++2m"), ("Euler_A", "euler_a"),
        ("Euler a", "euler_a"), ("DPM++ 2M", "dpm++2m"), ("dpmpp2mv2", "dpm++2mv2"),
        ("dpmpp_2s_a", "dpm++2s_a"), ("ddim", "ddim_trailing"), ("res 2s", "res_2s"),
    ],
)  # fmt: skip
def test_samplers_of_other_systems(spelling: str, name: str) -> None:
    """Names of Fireworks, AUTOMATIC1111 and Xinference are accepted in any case."""
    assert ask(sampler=spelling).sampler == name


def test_a_sampler_and_its_schedule_in_one_name() -> None:
    """Older clients of AUTOMATIC1111 send one name for both; two schedules conflict."""
    both = ask(sampler="DPM++ 2M Karras")
    assert (both.sampler, both.schedule) == ("dpm++2m", "karras")
    assert ask(sampler="Euler Karras", schedule="karras").schedule == "karras"
    error = refused(sampler="DPM2 Karras", schedule="simple")
    assert (error.param, error.reason) == ("schedule", Reason.CONFLICTING_FIELDS)
    assert refused(sampler="DPM++ SDE Karras").param == "sampler"


@pytest.mark.parametrize("name", ["", " ", "default", "Default", "automatic"])
def test_samplers_that_are_none(name: str) -> None:
    """Empty and automatic names select the model's own sampler and schedule."""
    assert ask(sampler=name).sampler == ask().sampler
    assert ask(schedule="Automatic").schedule == ask().schedule


@pytest.mark.parametrize(
    ("model", "ratio", "size"),
    [
        ("plain", "1:1", "512x512"),
        ("plain", "16:9", "704x384"),
        ("flow", "16:9", "1360x768"),
        ("flow", "9:16", "768x1360"),
        ("flow", "2:2", "1024x1024"),
    ],
)
def test_aspect_ratios(model: str, ratio: str, size: str) -> None:
    """The size has the ratio in the model's multiples, with about its default number of pixels."""
    assert str(ask(model=model, aspect_ratio=ratio).size) == size


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"aspect_ratio": "wide"}, Reason.INVALID_VALUE),
        ({"aspect_ratio": "16/9"}, Reason.INVALID_VALUE),
        ({"aspect_ratio": "0:1"}, Reason.INVALID_VALUE),
        ({"aspect_ratio": ""}, Reason.INVALID_VALUE),
        ({"aspect_ratio": "999:1"}, Reason.INVALID_VALUE),
        ({"aspect_ratio": "1:1", "size": "512x512"}, Reason.CONFLICTING_FIELDS),
        ({"aspect_ratio": "1:1", "width": 512, "height": 512}, Reason.CONFLICTING_FIELDS),
    ],
)
def test_shapes_that_are_none(options: dict[str, Any], reason: Reason) -> None:
    """A malformed or extreme ratio, or one beside a size, is rejected."""
    error = refused(**options)
    assert (error.param, error.reason) == ("aspect_ratio", reason)


@pytest.mark.parametrize("sigmas", [[1.0, 0.5], [0.5, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0]])
def test_sigmas_fall_to_nothing(shipped_catalog: Catalog, sigmas: list[float]) -> None:
    """Sigmas must fall to zero, as others would give noise or a division by zero."""
    with pytest.raises(InvalidRequest) as caught:
        resolve(
            ParsedRequest(ImageParams(prompt="a", sigmas=tuple(sigmas))),
            shipped_catalog,
            random_seed=lambda: 1,
            limits=Limits(2**22),
        )
    assert caught.value.param == "sigmas"


@pytest.mark.parametrize(
    ("model", "options", "sources", "why"),
    [
        ("plain", {"shifted_timestep": 250}, NOTHING, "is not a Stable Diffusion XL model"),
        ("looker", {"img_cfg": 2}, PICTURE, "does not support image guidance; use cfg_scale"),
        ("plain", {"increase_ref_index": True}, PICTURE, "needs a reference image"),
        ("counter", {"increase_ref_index": True}, LOOKED_AT, "always numbers its reference images"),
        ("looker", {"increase_ref_index": True}, NOTHING, "reference image"),
        ("pixels", {"vae_tile_size_x": 32, "vae_tiling": True}, NOTHING, "has no autoencoder"),
        ("plain", {"vae_tile_size_y": 32}, NOTHING, "it needs 'vae_tiling'"),
        ("plain", {"vae_tile_overlap": 0.2, "vae_tiling": False}, NOTHING, "it needs 'vae_tiling'"),
        ("tiled", {"vae_tile_size_x": 64, "vae_tiling": False}, NOTHING, "it needs 'vae_tiling'"),
    ],
)
def test_options_of_other_models(
    model: str, options: dict[str, Any], sources: Sources, why: str
) -> None:
    """An option that the runtime would ignore is rejected with the reason."""
    error = refused(sources, model=model, **options)
    assert (error.param, error.reason) == (next(iter(options)), Reason.NOT_SUPPORTED)
    assert why in error.message


def test_options_of_these_models() -> None:
    """A supported option reaches the request; one that depends on the weights adds a warning."""
    large = ask(model="large", shifted_timestep=250, vae_tiling=True, vae_tile_size_x=64)
    assert (large.options.shifted_timestep, large.options.vae_tile_size_x) == (250, 64)
    assert ask(model="tiled", vae_tile_size_x=64).options.vae_tile_size_x == 64
    counted = ask(model="looker", sources=LOOKED_AT, increase_ref_index=True)
    assert counted.options.increase_ref_index
    for model in ("plain", "flow"):  # FLUX.1 Fill is of the family of "flow"
        guided = ask(model=model, img_cfg=1.5, sources=PICTURE)
        assert guided.options.img_cfg == 1.5
        assert f"img_cfg has no effect unless the weights of '{model}' are" in guided.warnings[0]
    assert ask(model="flow", img_cfg=1.0).warnings == ()  # the same as cfg_scale
    unguided = ask(model="looker", img_cfg=1.0, sources=LOOKED_AT)
    assert (unguided.options.img_cfg, unguided.warnings) == (None, ())


def test_the_limit_of_steps_is_of_one_pass() -> None:
    """The second pass may have as many steps as the first."""
    request = ask(size="256x256", hires_scale=2, sample_steps=150, hires_steps=150)
    assert (request.steps, request.options.hires_steps) == (150, 150)


def test_the_second_pass_by_an_upscaler() -> None:
    """Upscalers are found also without their folder; the error for another name lists them."""
    assets = Assets(upscalers={"photo/sharp": 4})
    size: dict[str, Any] = {"size": "256x256", "hires_scale": 2}
    for name in ("sharp", "photo/sharp"):
        assert ask(assets=assets, **size, hires_upscaler=name).options.hires_upscaler == (
            "photo/sharp"
        )
    assert ask(assets=assets, **size, hires_upscaler="lanczos").options.hires_upscaler == "lanczos"
    with pytest.raises(InvalidRequest, match=r"no upscaler 'shrp'; available: .*photo/sharp"):
        ask(assets=assets, **size, hires_upscaler="shrp", client_names={"hires_upscaler": "hr"})


@pytest.mark.parametrize(
    ("options", "param", "sizes"),
    [
        ({"hires_scale": 1.05, "hires_upscaler": "x8"}, "hires_upscaler", ("896x896", "7168x7168")),
        ({"upscaler": "x8", "upscale": 1.0}, "upscaler", ("896x896", "7168x7168")),
        ({"upscaler": "x8"}, "upscaler", ("896x896", "7168x7168")),
        (
            {"size": "512x512", "hires_scale": 1.5, "upscaler": "x8", "upscale": 1.0},
            "upscaler",
            ("768x768", "6144x6144"),
        ),
    ],
)
def test_an_upscaler_enlarges_by_its_whole_factor(
    options: dict[str, Any], param: str, sizes: tuple[str, ...]
) -> None:
    """The pixel limit applies to the upscaler's full result, even if less is requested."""
    assets = Assets(upscalers={"x8": 8})
    error = refused(assets=assets, **{"size": "896x896", **options})
    assert error.param == param
    assert all(size in error.message for size in sizes)
    assert "limit of 16777216 pixels (--max-upscaled-pixels)" in error.message
    assert ask(assets=assets, size="512x512", upscaler="x8", upscale=1.0).upscaled == (512, 512)
    assert ask(size="896x896", hires_scale=1.05, hires_upscaler="lanczos").second_pass is not None


def decoded(request: GenerationRequest) -> GenerationRequest:
    """Return a request as workers and stores read it."""
    return request_of(json.loads(json.dumps(request_fields(request))))


@pytest.mark.parametrize(
    ("size", "scale", "second"),
    [("512x768", 1.05, "512x832"), ("512x640", 1.3, "640x832")],
)
def test_a_second_pass_whose_size_is_rounded(size: str, scale: float, second: str) -> None:
    """The scale stays as the client sent it, even if the rounded size has another ratio."""
    request = ask(size=size, hires_scale=scale)
    assert (str(request.second_pass), request.options.hires_scale) == (second, scale)
    assert decoded(request) == request


@pytest.mark.parametrize("factor", [0.05, 0.3333, 2.5, None])
def test_an_upscale_whose_size_is_rounded(factor: float | None) -> None:
    """The factor stays as the client sent it; without one it is the upscaler's own."""
    request = ask(assets=Assets(upscalers={"x4": 4}), size="64x128", upscaler="x4", upscale=factor)
    assert request.options.upscale == (factor or 4.0)
    assert decoded(request) == request


@pytest.mark.parametrize("factor", [0.05, 0.09, 0.3333, 2.5, None])
@pytest.mark.parametrize("size", [Size(5, 5), Size(101, 100), Size(3, 200)])
def test_a_request_that_only_upscales(size: Size, factor: float | None) -> None:
    """A side has at least one pixel, and the factor stays as the client sent it."""
    request = resolve(
        ParsedRequest(ImageParams(prompt="", upscaler="x4", upscale=factor), only_upscale=True),
        CATALOG,
        random_seed=lambda: 77,
        limits=Limits(),
        sources=Sources(size=size),
        assets=Assets(upscalers={"x4": 4}),
    )
    assert request.output_size == tuple(max(1, round(side * (factor or 4))) for side in size)
    assert request.options.upscale == (factor or 4.0)
    assert decoded(request) == request


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ("x.pt", "x.pt"),
        ("x.pt.safetensors", "x.pt"),
        ("y.gguf", "y"),
        ("z.safetensors", f"{'f' * 120}/{'z' * 20}"),
        ("z" * 20, f"{'f' * 120}/{'z' * 20}"),
    ],
)
def test_loras_by_names_with_endings(given: str, chosen: str) -> None:
    """The ending is removed only if no LoRA has the whole name; workers read the same name."""
    assets = Assets(loras=["x", "x.pt", "y", f"{'f' * 120}/{'z' * 20}"])
    name = given.replace("z.", f"{'z' * 20}.")
    request = ask(assets=assets, lora=[{"id": name}])
    assert request.options.lora is not None
    assert request.options.lora[0].id == chosen
    assert decoded(request) == request


@pytest.mark.parametrize("options", [{"strength": 0.5}, {"fit": "pad"}])
def test_a_model_that_uses_images_as_references(options: dict[str, Any]) -> None:
    """The error for an option of edits says that the model does not edit the image."""
    error = refused(model="looker", sources=LOOKED_AT, **options)
    assert error.message.startswith(f"'{next(iter(options))}' would have no effect: without a mask")
    assert "the model 'looker' uses images only as references" in error.message


NARROW = Catalog.parse(
    """
models:
  - id: narrow
    family: sd1
    files: {model: m}
    defaults: {size: 128x128}
    size: {min: 64, max: 512}
"""
)


@pytest.mark.parametrize("any_size", [False, True])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aspect_ratio": "18:1"}, "'aspect_ratio': 18:1 is too far from a square for the model"),
        ({"size": "0x64"}, "'size': 0x64 has a side of 0 pixels."),
    ],
)
def test_sides_of_zero(options: dict[str, Any], message: str, *, any_size: bool) -> None:
    """A shape or a size without pixels is rejected, also where a larger image would be cropped."""
    with pytest.raises(InvalidRequest) as caught:
        resolve(
            ParsedRequest(ImageParams(prompt="a cat", **options), any_size=any_size),
            NARROW,
            random_seed=lambda: 77,
            limits=Limits(),
        )
    assert caught.value.message.startswith(message)


def test_a_cropped_image_that_is_reduced() -> None:
    """A side has at least one pixel after an upscaler that makes the image much smaller."""
    request = resolve(
        ParsedRequest(
            ImageParams(prompt="a cat", size="5x64", upscaler="x4", upscale=0.05), any_size=True
        ),
        NARROW,
        random_seed=lambda: 77,
        limits=Limits(),
        assets=Assets(upscalers={"x4": 4}),
    )
    assert request.output_size == (1, 3)
