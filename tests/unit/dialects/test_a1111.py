"""Conversion of AUTOMATIC1111's JSON to parameters, and of jobs to its JSON."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from sdstream import __version__
from sdstream.core.ask import Handling
from sdstream.core.catalog import Catalog
from sdstream.core.errors import GenerationFailed, InvalidRequest, Reason
from sdstream.core.job import (
    Completed,
    ImageReady,
    ImageResult,
    Job,
    JobCancelled,
    JobEvent,
    Loading,
    PreviewReady,
    Queued,
    Running,
)
from sdstream.core.messages import Phase, Progress
from sdstream.core.model_spec import Files, ModelSpec
from sdstream.core.request import GenerationRequest, Limits
from sdstream.core.resolve import resolve
from sdstream.core.samplers import DEFAULT_SCHEDULE, SAMPLERS, SCHEDULES
from sdstream.dialects.a1111 import answers, settings
from sdstream.dialects.a1111.answers import Standing
from sdstream.dialects.a1111.generation import FOREIGN, Drawing, fitted, parse
from sdstream.dialects.a1111.settings import FIXED, HARMLESS, Settings

GOLDEN = Path(__file__).parents[2] / "golden"
PICTURE = base64.b64encode(b"a picture").decode()

#: What webuiapi 0.9.17 sends when its user gives a prompt and a size.
TXT2IMG: dict[str, Any] = json.loads((GOLDEN / "a1111_txt2img_request.json").read_text())
IMG2IMG: dict[str, Any] = json.loads((GOLDEN / "a1111_img2img_request.json").read_text())


CATALOG = """
models:
  - id: m
    family: sd1
    files: {model: m.gguf}
    defaults: {sampler: heun, schedule: smoothstep}
"""


def txt2img(**body: Any) -> Drawing:
    """Parse a txt2img request."""
    return parse({"prompt": "a cat", **body}, over_image=False)


def img2img(**body: Any) -> Drawing:
    """Parse an img2img request with an image."""
    return parse({"prompt": "a cat", "init_images": [PICTURE], **body}, over_image=True)


def sampling(**body: Any) -> tuple[str, str]:
    """Resolve a txt2img for a model with heun and smoothstep; return its sampler and schedule."""
    catalog = Catalog.parse(CATALOG)
    request = resolve(txt2img(**body).ask, catalog, random_seed=lambda: 1, limits=Limits())
    return request.sampler, request.schedule


def refused(*, over_image: bool = False, **body: Any) -> InvalidRequest:
    """Return the error with which a body is rejected."""
    with pytest.raises(InvalidRequest) as caught:
        (img2img if over_image else txt2img)(**body)
    return caught.value


def job_of(*events: JobEvent, n: int = 1) -> Job:
    """A job of four steps per image to which these events happened, one second apart."""
    request = GenerationRequest(
        "m", "a cat", "a dog", 64, 48, 4, "euler_a", "karras", 7.0, 9, n,
        warnings=("careful",),
    )  # fmt: skip
    job = Job("job_1", request, 100.0)
    for second, event in enumerate(events, start=101):
        assert job.apply(event, float(second))
    return job


def image(index: int) -> ImageReady:
    """A finished image with the data ``image 0``, ``image 1`` …"""
    data = f"image {index}".encode()
    return ImageReady(ImageResult(index, 9 + index, data, len(data), 4, 0.5, 2.0, 0.5))


def step(number: int, index: int = 0) -> Progress:
    """Progress of one sampling step."""
    return Progress("job_1", index, Phase.SAMPLING, number, 4)


# --- requests -------------------------------------------------------------------------------------


def test_what_webuiapi_always_sends_is_neutral() -> None:
    """The fields that webuiapi always sends add no option and no warning."""
    drawing = parse(TXT2IMG, over_image=False)
    draft = drawing.ask.params
    assert (draft.prompt, draft.n, draft.seed, draft.sample_steps) == ("a cat", 1, -1, 20)
    assert (draft.width, draft.height, draft.cfg_scale) == (512, 512, 7.0)
    assert (draft.sampler, draft.schedule, draft.model) == ("Euler a", "automatic", None)
    assert draft.strength is None, "denoising_strength is for the hires pass here"
    assert drawing.ask.files is None
    assert drawing.ask.warnings == ()


def test_webuiapis_img2img_with_a_mask() -> None:
    """Image and mask are decoded from data: URLs, and an option without effect gives a warning."""
    drawing = parse(IMG2IMG, over_image=True)
    draft = drawing.ask.params
    assert (draft.strength, draft.fit, draft.mask_mode, draft.mask_blur) == (
        0.75, None, "opacity", 4.0,
    )  # fmt: skip
    assert (draft.only_masked, draft.only_masked_padding) == (True, 0)
    assert drawing.ask.files is not None
    assert drawing.ask.files.images[0].data == b"an image"
    assert drawing.ask.files.mask is not None
    assert drawing.ask.files.mask.data == b"a mask"
    assert not drawing.ask.files.inverted_mask
    assert [text.split()[0] for text in drawing.ask.warnings] == ["inpainting_fill"]
    assert drawing.echo["init_images"] is None
    assert drawing.echo["mask"] is None


def test_nothing_is_required() -> None:
    """A prompt is not required, and missing options get the model's defaults."""
    draft = parse({}, over_image=False).ask.params
    assert (draft.prompt, draft.n, draft.width, draft.sample_steps) == ("", 1, None, None)


def test_batches_times_iterations() -> None:
    """All images of a request are one job."""
    assert txt2img(batch_size=2, n_iter=3).ask.params.n == 6
    assert refused(batch_size=40, n_iter=3).param == "batch_size"
    assert refused(n_iter=0).param == "n_iter"


@pytest.mark.parametrize(
    ("sampler", "scheduler", "expected"),
    [
        ("Euler a", "automatic", ("euler_a", "smoothstep")),
        ("Euler a", "Automatic", ("euler_a", "smoothstep")),
        ("euler A", None, ("euler_a", "smoothstep")),
        ("Euler", "SGM Uniform", ("euler", "sgm_uniform")),
        ("DPM++ 2M", "karras", ("dpm++2m", "karras")),
        ("DPM++ 2M Karras", None, ("dpm++2m", "karras")),
        ("DPM++ 2M Karras", "Automatic", ("dpm++2m", "karras")),
        ("DPM++ 2S a Karras", "Karras", ("dpm++2s_a", "karras")),
        ("LCM", "Normal", ("lcm", "discrete")),
        ("DDIM", "align_your_steps", ("ddim_trailing", "ays")),
        ("DDIM", "Align Your Steps", ("ddim_trailing", "ays")),
        ("k_euler_a", "simple", ("euler_a", "simple")),
        ("dpm++2mv2", "gits", ("dpm++2mv2", "gits")),
        (None, None, ("heun", "smoothstep")),
    ],
)
def test_samplers_and_schedulers(
    sampler: str | None, scheduler: str | None, expected: tuple[str, str]
) -> None:
    """A1111's names, its older combined names, and the server's own names are accepted."""
    assert sampling(sampler_name=sampler, scheduler=scheduler) == expected


def test_sampler_index_is_the_older_name() -> None:
    """sampler_index is used only without sampler_name, as webuiapi always fills it in."""
    assert sampling(sampler_index="DPM2")[0] == "dpm2"
    assert sampling(sampler_name="LCM", sampler_index="Heun")[0] == "lcm"


@pytest.mark.parametrize(
    ("body", "param", "reason"),
    [
        ({"sampler_name": "PLMS"}, "sampler_name", Reason.INVALID_VALUE),
        ({"scheduler": "polyexponential"}, "scheduler", Reason.INVALID_VALUE),
        (
            {"sampler_name": "DPM++ 2M Karras", "scheduler": "simple"},
            "scheduler",
            Reason.CONFLICTING_FIELDS,
        ),
    ],
)
def test_refused_samplers_and_schedules(body: dict[str, str], param: str, reason: Reason) -> None:
    """The error names the field as this API does."""
    with pytest.raises(InvalidRequest) as caught:
        sampling(**body)
    assert (caught.value.param, caught.value.reason) == (param, reason)


@pytest.mark.parametrize(
    ("body", "param", "reason"),
    [
        ({"sampler_name": 3}, "sampler_name", Reason.INVALID_VALUE),
        ({"stepz": 4}, "stepz", Reason.UNKNOWN_FIELD),
        ({"steps": 0}, "steps", Reason.INVALID_VALUE),
        ({"steps": "many"}, "steps", Reason.INVALID_VALUE),
        ({"seed": True}, "seed", Reason.INVALID_VALUE),
        ({"distilled_cfg_scale": 99}, "distilled_cfg_scale", Reason.INVALID_VALUE),
        ({"alwayson_scripts": {"x": {"args": [1]}}}, "alwayson_scripts", Reason.NOT_SUPPORTED),
        ({"alwayson_scripts": ["x"]}, "alwayson_scripts", Reason.INVALID_VALUE),
        ({"enable_hr": True, "hr_second_pass_steps": -3}, "hr_second_pass_steps", None),
        ({"enable_hr": True, "hr_scale": 9}, "hr_scale", None),
        ({"init_images": [PICTURE]}, "init_images", Reason.NOT_SUPPORTED),
        ({"mask": PICTURE}, "mask", Reason.NOT_SUPPORTED),
        (
            {"override_settings": {"eta_noise_seed_delta": 2}},
            "override_settings.eta_noise_seed_delta",
            Reason.NOT_SUPPORTED,
        ),
        ({"override_settings": {"sd_model_checkpoint": 1}}, "sd_model_checkpoint", None),
    ],
)
def test_refusals_name_the_field(body: dict[str, Any], param: str, reason: Reason | None) -> None:
    """Each error names the field as the client wrote it."""
    error = refused(**body)
    assert error.param == param
    assert error.reason is (reason or Reason.INVALID_VALUE)


SECOND: dict[str, Any] = {
    "enable_hr": True, "width": 64, "height": 96, "prompt": "a cat", "cfg_scale": 5, "steps": 4,
    "sampler_name": "Euler",
}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({"hr_cfg": 5, "hr_prompt": "a cat", "hr_sampler_name": "Euler"}, 2.0),
        ({"hr_additional_modules": ["Use same choices"]}, 2.0),
        ({"hr_checkpoint_name": "Use same checkpoint"}, 2.0),
        ({"hr_resize_x": 96, "hr_resize_y": 144}, 1.5),
        ({"hr_resize_y": 240, "hr_scale": 1}, 2.5),
    ],
)
def test_second_passes_that_differ_in_size_only(fields: dict[str, Any], scale: float) -> None:
    """Values equal to the first pass's are accepted, and a target size sets the factor."""
    assert txt2img(**SECOND, **fields).ask.params.hires_scale == scale


@pytest.mark.parametrize(
    "fields",
    [
        {"hr_scale": 1, "hr_upscaler": "Latent"},
        {"hr_scale": 0, "hr_upscaler": "Latent"},
        {"hr_resize_x": 64, "hr_resize_y": 96, "denoising_strength": 0.5},
        {"hr_resize_x": 64, "hr_second_pass_steps": 7},
    ],
)
def test_a_second_pass_that_keeps_the_size(fields: dict[str, Any]) -> None:
    """It has no effect."""
    params = txt2img(**SECOND, **fields).ask.params
    assert params == txt2img(**{**SECOND, "enable_hr": False}).ask.params


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "enable_hr"),
        ({"hr_scale": 3}, "hr_scale"),
        ({"upscaler_scale": 3}, "upscaler_scale"),
        ({"hr_scale": 3, "hr_resize_x": 128}, "hr_resize_x"),
        ({"hr_resize_y": 192}, "hr_resize_y"),
    ],
)
def test_the_name_of_the_scale(fields: dict[str, Any], name: str) -> None:
    """Errors about the size of the second pass name the field that sets it."""
    assert txt2img(**SECOND, **fields).ask.client_name("hires_scale") == name


def for_model(drawing: Drawing) -> Drawing:
    """Adapt a request to a model with heun and smoothstep, which is called m or the-alias."""
    spec = Catalog.parse(CATALOG.replace("- id: m", "- id: m\n    aliases: [the-alias]")).models[
        "m"
    ]
    return fitted(drawing, spec, "m")


@pytest.mark.parametrize(
    "fields",
    [
        {"override_settings": {"sd_model_checkpoint": "m"}, "hr_checkpoint_name": "m"},
        {"model": "the-alias", "hr_checkpoint_name": "sub/M.safetensors [6ce0161689]"},
        {"hr_checkpoint_name": "the-alias"},
        {"sampler_name": "", "sampler_index": "Euler", "hr_sampler_name": "Euler"},
        {"sampler_name": "k_euler", "hr_sampler_name": "Euler"},
        {"sampler_name": None, "hr_sampler_name": "Heun"},
        {"sampler_name": "DPM++ 2M Karras", "hr_sampler_name": "DPM++ 2M"},
        {"sampler_name": "DPM++ 2M Karras", "hr_scheduler": "karras"},
        {"hr_scheduler": "Automatic"},
        {"scheduler": "Automatic", "hr_scheduler": "smoothstep"},
        {"cfg_scale": None, "hr_cfg": 7},
        {"cfg_scale": "5", "hr_cfg": 5.0},
        {"prompt": "a <sd_cpp_extra_args>{}</sd_cpp_extra_args>", "hr_prompt": "a"},
    ],
)
def test_second_passes_that_mean_the_same(fields: dict[str, Any]) -> None:
    """Fields of the second pass are compared with the values that the first pass uses."""
    drawing = for_model(txt2img(**{**SECOND, **fields}))
    assert drawing.ask.params.hires_scale == 2


@pytest.mark.parametrize("earlier", [Settings("m"), Settings()])
def test_a_second_pass_with_the_chosen_checkpoint(earlier: Settings) -> None:
    """The checkpoint of earlier requests and the default model may be named again."""
    body = {**SECOND, "hr_checkpoint_name": "m"}
    assert for_model(parse(body, over_image=False, earlier=earlier)).ask.params.hires_scale == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"hr_cfg": 1.0},
        {"hr_prompt": "a dog"},
        {"hr_negative_prompt": "a dog"},
        {"hr_checkpoint_name": "other"},
        {"hr_sampler_name": "Heun"},
        {"hr_sampler_name": "Euler Karras"},
        {"hr_sampler_name": "no sampler"},
        {"hr_scheduler": "Karras"},
        {"scheduler": "Karras", "hr_scheduler": "Automatic"},
        {"hr_distilled_cfg": 1},
        {"hr_additional_modules": ["x"]},
    ],
)
def test_second_passes_with_other_values(fields: dict[str, Any]) -> None:
    """A second pass with other values than the first is rejected."""
    with pytest.raises(InvalidRequest, match="differs from the first pass") as caught:
        for_model(txt2img(**{**SECOND, **fields}))
    assert caught.value.param == [*fields][-1]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"hr_resize_x": 128, "hr_resize_y": 128}, "hr_resize_x"),
        ({"hr_resize_x": 128, "width": None}, "hr_resize_x"),
    ],
)
def test_second_passes_of_another_picture(fields: dict[str, Any], param: str) -> None:
    """A second pass with other proportions than the first is rejected."""
    assert refused(**{**SECOND, **fields}).param == param


@pytest.mark.parametrize(
    ("body", "param", "reason"),
    [
        ({"init_images": None}, "init_images", Reason.MISSING_FIELD),
        ({"init_images": []}, "init_images", Reason.MISSING_FIELD),
        ({"init_images": [PICTURE, PICTURE]}, "init_images", Reason.NOT_SUPPORTED),
        ({"init_images": ["%%%"]}, "init_images", Reason.INVALID_IMAGE),
        ({"init_images": ["data:image/png;base64,"]}, "init_images", Reason.INVALID_IMAGE),
        ({"init_images": [7]}, "init_images.0", Reason.INVALID_VALUE),
        ({"mask": "x"}, "mask", Reason.INVALID_IMAGE),
        ({"resize_mode": 3}, "resize_mode", Reason.NOT_SUPPORTED),
        ({"resize_mode": 4}, "resize_mode", Reason.INVALID_VALUE),
        ({"mask": PICTURE, "inpainting_fill": 2}, "inpainting_fill", Reason.NOT_SUPPORTED),
        ({"mask": PICTURE, "mask_blur": 65}, "mask_blur", Reason.INVALID_VALUE),
        (
            {"mask": PICTURE, "mask_blur_x": 4, "mask_blur_y": 2},
            "mask_blur_x",
            Reason.NOT_SUPPORTED,
        ),
        ({"denoising_strength": 1.5}, "denoising_strength", Reason.INVALID_VALUE),
    ],
)
def test_refusals_of_pictures(body: dict[str, Any], param: str, reason: Reason) -> None:
    """Each error of an img2img request names the field."""
    error = refused(over_image=True, **body)
    assert (error.param, error.reason) == (param, reason)


@pytest.mark.parametrize("name", sorted(n for n, field in FOREIGN.items() if field.refusal))
def test_what_is_not_built_is_taken_switched_off_only(name: str) -> None:
    """Neutral values of an unsupported field are ignored; any other value is rejected by name."""
    for value in (*FOREIGN[name].neutral, *map(str, FOREIGN[name].neutral), None):
        ask = txt2img(**{name: value}).ask
        assert (ask.params, ask.warnings) == (txt2img().ask.params, ())
    switched_on: dict[str, Any] = {name: "on"}
    error = refused(**switched_on)
    assert (error.param, error.reason) == (name, Reason.NOT_SUPPORTED)


@pytest.mark.parametrize("name", sorted(n for n, field in FOREIGN.items() if not field.refusal))
def test_harmless_fields_pass(name: str) -> None:
    """Fields that do not affect the image are ignored."""
    assert txt2img(**{name: "x"}).ask.params == txt2img().ask.params


def test_scripts_that_are_switched_off_pass() -> None:
    """Disabled scripts, which webuiapi sends for extensions it expects, are ignored."""
    off = {"ADetailer": {"args": [False]}, "ControlNet": {"args": []}, "x": {}}
    assert txt2img(alwayson_scripts=off).ask.params == txt2img().ask.params


def test_the_checkpoint() -> None:
    """The request's model takes precedence over an earlier choice, and may be kept for later."""
    override = {"override_settings": {"sd_model_checkpoint": "b"}}
    assert parse({}, over_image=False, earlier=Settings("a")).ask.params.model == "a"
    own = parse(override, over_image=False, earlier=Settings("a"))
    assert (own.ask.params.model, own.kept) == ("b", Settings())
    kept = parse({**override, "override_settings_restore_afterwards": False}, over_image=False)
    assert kept.kept == Settings("b")
    assert own.ask.client_name("model") == "sd_model_checkpoint"


def test_layers_of_clip() -> None:
    """The request's field, its settings and an earlier choice apply in this order."""
    name = "CLIP_stop_at_last_layers"
    earlier = Settings(clip_skip=3)
    drawing = parse({"override_settings": {name: 2}}, over_image=False, earlier=earlier)
    assert (drawing.ask.params.clip_skip, drawing.ask.client_name("clip_skip")) == (2, name)
    assert parse({}, over_image=False, earlier=earlier).ask.params.clip_skip == 3
    none = parse({"override_settings": {name: 1}}, over_image=False, earlier=earlier)
    assert none.ask.params.clip_skip is None
    own = parse({"clip_skip": 4}, over_image=False, earlier=earlier).ask
    assert (own.params.clip_skip, own.client_name("clip_skip")) == (4, "clip_skip")
    assert txt2img(clip_skip=1).ask.params.clip_skip is None
    for spelling in ("2", 2.0, "2.0"):
        assert txt2img(override_settings={name: spelling}).ask.params.clip_skip == 2
    for wrong in (0, 13, "two", 1.5, True):
        assert refused(override_settings={name: wrong}).param == name
    assert refused(clip_skip=99).param == "clip_skip"


def test_one_side_of_the_size() -> None:
    """A width or a height alone is completed by the model's default; an image keeps its own."""
    for fields, size in (
        ({"width": 128}, (128, 512)),
        ({"height": 128}, (512, 128)),
        ({}, (None, None)),
    ):
        params = for_model(txt2img(**fields)).ask.params
        assert (params.width, params.height) == size
    assert for_model(img2img(width=128)).ask.params.height is None


def test_eta() -> None:
    """The value 1, which every client sends, sets no option, as some samplers add no noise."""
    assert txt2img(eta=1.0).ask.params.eta is None
    assert txt2img(eta=0.3).ask.params.eta == 0.3
    assert refused(eta=2).param == "eta"


def test_settings_that_pass() -> None:
    """The settings that GET options returns may be posted back unchanged."""
    told = json.loads(answers.options(Settings("m"), "ab" * 32))
    assert settings.settings(told, Handling.STRICT)[0] == Settings("m", 1)
    assert json.loads(answers.options(Settings("m", 2), None))["CLIP_stop_at_last_layers"] == 2
    chosen, taken = settings.settings(dict.fromkeys(HARMLESS, 1), Handling.SUGGEST)
    assert (chosen, taken.warnings) == (Settings(), ())
    assert set(FIXED) <= set(told)


def test_inverted_masks_and_resize_modes() -> None:
    """inpainting_mask_invert and resize_mode map to this server's options."""
    drawing = img2img(mask=PICTURE, inpainting_mask_invert=1, resize_mode=1, inpaint_full_res=False)
    assert drawing.ask.files is not None
    assert drawing.ask.files.inverted_mask
    assert drawing.ask.params.fit == "crop"
    assert img2img(resize_mode=2).ask.params.fit == "fill"


def test_models_that_look_at_the_image() -> None:
    """An editing model ignores the fields that all clients send for img2img, with a warning."""
    files = Files(model="m.gguf")
    looker = ModelSpec(id="looker", family="flux_kontext", files=files)
    drawing = fitted(img2img(resize_mode=0, denoising_strength=0.5), looker, "looker")
    assert (drawing.ask.params.fit, drawing.ask.params.strength) == (None, None)
    assert drawing.ask.warnings == (
        "The model 'looker' uses the image as a reference and generates a new one.",
    )
    mask = img2img(mask=PICTURE, denoising_strength=0.5, inpaint_full_res=False)
    masked = fitted(mask, looker, "looker")
    assert (masked.ask.params.fit, masked.ask.params.strength) == ("stretch", 0.5)
    other = img2img(denoising_strength=0.5)
    assert fitted(other, ModelSpec(id="m", family="sd1", files=files), "m") == other


def test_only_masked_is_the_originals_default() -> None:
    """A mask alone means "Only masked" without padding; False means the whole image."""
    params = img2img(mask=PICTURE, resize_mode=1).ask.params
    assert (params.only_masked, params.only_masked_padding, params.fit) == (True, 0, None)
    params = img2img(mask=PICTURE, inpaint_full_res=1, inpaint_full_res_padding=48).ask.params
    assert (params.only_masked, params.only_masked_padding) == (True, 48)
    params = img2img(mask=PICTURE, inpaint_full_res=False, resize_mode=1).ask.params
    assert (params.only_masked, params.only_masked_padding, params.fit) == (None, None, "crop")
    with pytest.raises(InvalidRequest) as caught:
        img2img(mask=PICTURE, inpaint_full_res_padding=-1)
    assert caught.value.param == "inpaint_full_res_padding"


@pytest.mark.parametrize(
    ("fields", "blur"),
    [
        ({"mask_blur": 8, "mask_blur_x": 4, "mask_blur_y": 4}, 8),
        ({"mask_blur": 0, "mask_blur_x": 4, "mask_blur_y": 4}, None),
        ({"mask_blur_x": 4, "mask_blur_y": 4}, 4),
        ({}, None),
    ],
)
def test_the_blur_of_a_mask(fields: dict[str, Any], blur: float | None) -> None:
    """mask_blur overrides the two axes, as in AUTOMATIC1111."""
    assert img2img(mask=PICTURE, **fields).ask.params.mask_blur == blur


def test_options_of_a_mask_need_one() -> None:
    """Mask options are ignored without a mask, as webuiapi always sends them."""
    drawing = img2img(mask_blur=4, inpainting_fill=2, inpaint_full_res=True)
    assert drawing.ask.params.mask_blur is None
    assert drawing.ask.warnings == ()


def test_pictures_are_echoed_on_request() -> None:
    """include_init_images returns the input images."""
    assert img2img(include_init_images=True).echo["init_images"] == [PICTURE]


# --- lists ----------------------------------------------------------------------------------------


def test_every_sampler_and_schedule_has_a_name() -> None:
    """The lists contain all samplers and schedules, and each listed name is accepted."""
    for name in SAMPLERS:
        (entry,) = [e for e in json.loads(answers.samplers()) if name in e["aliases"]]
        assert sampling(sampler_name=entry["name"])[0] == name
        assert set(entry) == {"name", "aliases", "options"}
    found = {
        sampling(sampler_name="Euler", scheduler=entry[key])[1]
        for entry in json.loads(answers.schedulers())
        for key in ("name", "label")
    }
    assert found == {*SCHEDULES} - {DEFAULT_SCHEDULE}


def test_models_tell_no_path() -> None:
    """A model's file name is its id, not its path."""
    (entry,) = json.loads(answers.models({"m": "0123456789abcdef" * 4}))
    assert entry["title"] == entry["model_name"] == entry["filename"] == "m"
    assert (entry["hash"], entry["sha256"]) == ("0123456789", "0123456789abcdef" * 4)
    assert entry["config"] is None
    (entry,) = json.loads(answers.models({"m": None}))
    assert entry["hash"] is entry["sha256"] is None


# --- answers --------------------------------------------------------------------------------------


def test_golden_answer() -> None:
    """The response is the golden file, byte for byte."""
    drawing = txt2img(batch_size=2, seed=-1, steps=4, styles=[], width=None)
    job = job_of(Running(), image(0), image(1), Completed(), n=2)
    answer = answers.answer(job, drawing, ["text 0", "text 1"])
    golden = (GOLDEN / "a1111_answer.json").read_bytes().removesuffix(b"\n")
    assert answer == golden.replace(b"VERSION", __version__.encode())


def test_answer() -> None:
    """Images are bare base64, parameters include the defaults used, and info is a string."""
    job = job_of(Running(), image(0), Completed())
    body = json.loads(answers.answer(job, txt2img(steps=4), ["text 0"]))
    assert [base64.b64decode(text) for text in body["images"]] == [b"image 0"]
    assert body["parameters"] | {"seed": -1, "steps": 4, "width": 64} == body["parameters"]
    assert body["parameters"]["sampler_name"] == "Euler a"
    info = json.loads(body["info"])
    assert (info["seed"], info["all_seeds"], info["infotexts"]) == (9, [9], ["text 0"])
    assert body["warnings"] == ["careful"]


def test_images_may_stay_away() -> None:
    """With send_images false, the response contains only the info."""
    job = job_of(Running(), image(0), Completed())
    body = json.loads(answers.answer(job, txt2img(send_images=False), ["text 0"]))
    assert body["images"] == []
    assert json.loads(body["info"])["all_seeds"] == [9]


def test_an_interrupted_job_answers_what_it_has() -> None:
    """The response contains the finished images and a warning with the number of missing ones."""
    job = job_of(Running(), image(0), step(2, 1), JobCancelled("stop"), n=3)
    body = json.loads(answers.answer(job, txt2img(n_iter=3), ["text 0"]))
    assert len(body["images"]) == 1
    assert body["warnings"][-1] == "Interrupted after 1 of 3 images."


def test_errors() -> None:
    """A1111's keys are added to this server's error object."""
    error = GenerationFailed("It died.", reason=Reason.WORKER_CRASHED)
    body = answers.problem(error)
    assert body["detail"] == body["errors"] == "It died."
    assert body["body"] == ""
    assert body["error"]["reason"] == "worker_crashed"


# --- progress -------------------------------------------------------------------------------------


def progress(job: Job | None, now: float = 200.0, **standing: bool) -> dict[str, Any]:
    """Return the progress as the client decodes it."""
    answer: dict[str, Any] = json.loads(answers.progress(Standing(job, **standing), now))
    return answer


def test_golden_progress() -> None:
    """The progress is the golden file, byte for byte."""
    job = job_of(Running(), image(0), step(1, 1), PreviewReady(1, 2, b"small"), step(2, 1), n=2)
    answer = answers.progress(Standing(job, interrupted=True), 111.0)
    assert answer == (GOLDEN / "a1111_progress.json").read_bytes().removesuffix(b"\n")


def test_progress_of_nothing() -> None:
    """An idle server reports progress 0 and job_count 0, as util_wait_for_ready expects."""
    idle = progress(None, skipped=True)
    assert (idle["progress"], idle["eta_relative"], idle["current_image"]) == (0.0, 0.0, None)
    assert idle["state"]["job_count"] == 0
    assert idle["state"]["skipped"]
    assert not idle["state"]["interrupted"]


def test_progress_while_waiting() -> None:
    """A waiting job is counted, and the text contains what it waits for."""
    queued = progress(job_of(Queued(2)))
    assert (queued["progress"], queued["state"]["job_count"]) == (0.0, 1)
    assert "2 jobs" in queued["textinfo"]
    assert "model" in progress(job_of(Queued(0), Loading()))["textinfo"]


def test_progress_grows_and_stays_below_one() -> None:
    """Progress grows over steps and images; the remaining time follows from the running time."""
    events: list[JobEvent] = [
        Queued(0), Running(), *map(step, range(5)), image(0), *(step(k, 1) for k in range(5)),
    ]  # fmt: skip
    reached = [progress(job_of(*events[:k], n=2))["progress"] for k in range(1, len(events) + 1)]
    assert reached == sorted(reached)
    assert reached[7] == 0.5
    assert reached[-1] == 0.9
    half = progress(job_of(*events[:8], n=2), now=122.0)
    assert half["eta_relative"] == 20.0
    assert half["state"] | {"job_no": 1, "sampling_step": 4, "sampling_steps": 4} == half["state"]


def test_the_picture_is_the_newest() -> None:
    """The current image is the latest preview, then the finished image; or none on request."""
    events = (Running(), PreviewReady(0, 1, b"small"), step(1))
    job = job_of(*events)
    assert base64.b64decode(progress(job)["current_image"]) == b"small"
    assert (
        json.loads(answers.progress(Standing(job), 1.0, with_image=False))["current_image"] is None
    )
    finished = job_of(*events, image(0), n=2)
    assert base64.b64decode(progress(finished)["current_image"]) == b"image 0"


def test_pictures_are_made_for_those_who_look() -> None:
    """A preview is made at the first sampling step, then after each quarter of the steps."""
    assert not answers.wants_picture(job_of(Running()))
    assert not answers.wants_picture(job_of(Running(), Progress("j", 0, Phase.DECODING, 4, 4)))
    assert answers.wants_picture(job_of(Running(), step(0)))
    seen = (Running(), PreviewReady(0, 2, b"small"))
    assert not answers.wants_picture(job_of(*seen, step(2)))
    assert answers.wants_picture(job_of(*seen, step(3)))
    assert answers.wants_picture(job_of(*seen, step(2), image(0), step(0, 1), n=2))


def test_png_info() -> None:
    """The response has the parameters text, the file's other texts, and the parsed parameters."""
    body = json.loads(answers.png_info({"parameters": "a cat", "Software": "x"}))
    assert body["info"] == "a cat"
    assert body["items"] == {"Software": "x"}
    assert body["parameters"]["Prompt"] == "a cat"
    assert json.loads(answers.png_info({})) == {"info": "", "items": {}, "parameters": {}}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("v1-5 [6ce0161689]", "v1-5"),
        ("v1-5.safetensors [6CE01616]", "v1-5"),
        ("sd/v1-5.ckpt", "v1-5"),
        ("sd\\v1-5.safetensors", "v1-5"),
        ("model.v2", "model.v2"),
        ("a:q8_0 [6ce0161689]", "a:q8_0"),
    ],
)
def test_titles_of_the_web_ui_have_a_name(text: str, name: str) -> None:
    """A title is tried first as it is, and last without hash, folder and extension."""
    names = settings.checkpoint_names(text)
    assert (names[0], names[-1]) == (text, name)
