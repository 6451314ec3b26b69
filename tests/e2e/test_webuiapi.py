"""webuiapi, a client for AUTOMATIC1111, with the real runtime."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
import webuiapi
from PIL import Image, ImageChops, ImageDraw

from sdstream.core.samplers import SAMPLERS
from tests.support.servers import GENERATIONS, ServerProcess, running_server, wait_until

SMALL = {"width": 64, "height": 64, "steps": 3, "sampler_name": "Euler", "cfg_scale": 3.0}
#: Long enough to observe and stop.
LONG = {"width": 128, "height": 128, "steps": 100, "sampler_name": "Euler", "cfg_scale": 3.0}


def client_of(server: ServerProcess, **options: Any) -> webuiapi.WebUIApi:
    """Create a client as its users do."""
    return webuiapi.WebUIApi(baseurl=f"{server.url}/sdapi/v1", **options)


@pytest.fixture
def api(native_server: ServerProcess) -> webuiapi.WebUIApi:
    """A client of the shared server."""
    return client_of(native_server)


class Background:
    """A call in a separate thread."""

    def __init__(self, call: Callable[..., Any], **arguments: Any) -> None:
        self.result: Any = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(call, arguments), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[..., Any], arguments: dict[str, Any]) -> None:
        try:
            self.result = call(**arguments)
        except Exception as error:
            self.error = error

    def finish(self, seconds: float = 60.0) -> Any:
        """Wait for the call; return its result."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the call did not end"
        if self.error is not None:
            raise self.error
        return self.result


def wait_for_step(api: webuiapi.WebUIApi) -> dict[str, Any]:
    """Wait until an image is being sampled; return that progress."""
    seen: list[dict[str, Any]] = []

    def stepping() -> bool:
        seen.append(api.get_progress())
        return bool(seen[-1]["state"]["sampling_step"] > 0)

    wait_until(stepping, 30, "no step was seen")
    return seen[-1]


def scene() -> tuple[Image.Image, Image.Image]:
    """Return an image and a mask that is white on its right half."""
    picture = Image.effect_mandelbrot((96, 64), (-2, -1, 1, 1), 50).convert("RGB")
    mask = Image.new("L", picture.size, 0)
    ImageDraw.Draw(mask).rectangle((48, 0, 95, 63), fill=255)
    return picture, mask


def changed(before: Image.Image, after: Image.Image, half: str) -> bool:
    """Return whether any pixel of the left or right half differs."""
    box = (0, 0, 48, 64) if half == "left" else (48, 0, 96, 64)
    difference = ImageChops.difference(before.convert("RGB"), after.convert("RGB"))
    return difference.crop(box).getbbox() is not None


def refusal(call: Callable[..., Any], **arguments: Any) -> tuple[int, str]:
    """Return the status and body of the error that a call of the client raises."""
    with pytest.raises(RuntimeError) as caught:
        call(**arguments)
    status, body = caught.value.args
    return status, body


def quiet_progress(api: webuiapi.WebUIApi) -> dict[str, Any]:
    """Return the progress without an image."""
    answer: dict[str, Any] = api.custom_get("progress?skip_current_image=true", baseurl=True)
    return answer


def png_info(api: webuiapi.WebUIApi, file: str) -> Any:
    """Return the parameters of a file in base64; the client's method would re-encode it as PNG."""
    return api.custom_post("png-info", {"image": file}, baseurl=True)


def test_txt2img(api: webuiapi.WebUIApi) -> None:
    """Two batches of one image have the requested size, consecutive seeds and their infotexts."""
    result = api.txt2img(prompt="a cat", seed=1003, n_iter=2, negative_prompt="dark", **SMALL)
    assert [image.size for image in result.images] == [(64, 64)] * 2
    assert result.info["all_seeds"] == [1003, 1004]
    assert result.info["sampler_name"] == "Euler"
    assert result.parameters["steps"] == 3
    assert [image.info["parameters"] for image in result.images] == result.info["infotexts"]
    again = api.txt2img(prompt="a cat", seed=1003, negative_prompt="dark", **SMALL)
    assert again.image.tobytes() == result.image.tobytes()


def test_defaults_of_the_client(api: webuiapi.WebUIApi) -> None:
    """The defaults are Euler a, the automatic schedule and a random seed."""
    result = api.txt2img(prompt="a cat", width=64, height=64, steps=2)
    assert result.info["sampler_name"] == "Euler a"
    assert result.info["seed"] >= 0


def test_img2img(api: webuiapi.WebUIApi) -> None:
    """A low denoising_strength changes the image less than a high one."""
    picture, _ = scene()

    def distance(strength: float) -> int:
        drawn = api.img2img(
            [picture], prompt="a cat", seed=1, denoising_strength=strength,
            **{**SMALL, "width": 96, "steps": 8},
        ).image  # fmt: skip
        pairs = zip(drawn.convert("RGB").tobytes(), picture.tobytes(), strict=True)
        return sum(abs(a - b) for a, b in pairs)

    assert distance(0.2) < distance(0.9)


def test_a_mask_keeps_what_it_hides(api: webuiapi.WebUIApi) -> None:
    """White is generated, black is unchanged, and inpainting_mask_invert swaps them."""
    picture, mask = scene()
    size = {**SMALL, "width": 96}
    drawn = api.img2img([picture], mask_image=mask, prompt="a cat", seed=1, **size)
    assert changed(picture, drawn.image, "right")
    assert not changed(picture, drawn.image, "left")
    assert len(drawn.json["warnings"]) == 1
    other = api.img2img(
        [picture], mask_image=mask, inpainting_mask_invert=1, prompt="a cat", seed=1, **size
    )
    assert changed(picture, other.image, "left")
    assert not changed(picture, other.image, "right")


def test_a_transparent_mask_is_painted_where_it_is_opaque(api: webuiapi.WebUIApi) -> None:
    """Opaque strokes of a transparent mask are generated, whatever their colour, as in
    AUTOMATIC1111."""
    picture, mask = scene()
    strokes = Image.new("RGBA", picture.size, (0, 0, 0, 255))
    strokes.putalpha(mask)
    drawn = api.img2img(
        [picture], mask_image=strokes, mask_blur=0, prompt="a cat", seed=1, **{**SMALL, "width": 96}
    )
    assert changed(picture, drawn.image, "right")
    assert not changed(picture, drawn.image, "left")


@pytest.mark.parametrize("resize_mode", [0, 1, 2])
def test_other_shapes_are_fitted(api: webuiapi.WebUIApi, resize_mode: int) -> None:
    """The image has the requested size with every resize_mode."""
    picture, _ = scene()
    drawn = api.img2img([picture], resize_mode=resize_mode, prompt="a cat", **SMALL)
    assert drawn.image.size == (64, 64)


def test_progress_during_a_run(api: webuiapi.WebUIApi) -> None:
    """The progress grows, stays below 1, and contains an image on request; after the job it is
    0."""
    run = Background(api.txt2img, prompt="a cat", n_iter=2, **LONG)
    wait_for_step(api)
    seen: list[dict[str, Any]] = []

    def pictured() -> bool:
        seen.append(api.get_progress())
        return seen[-1]["current_image"] is not None

    wait_until(pictured, 30, "no picture came")
    state = seen[-1]["state"]
    assert (state["job_no"], state["job_count"], state["sampling_steps"]) == (0, 2, 100)
    assert 0 < seen[-1]["progress"] < 1
    assert seen[-1]["eta_relative"] > 0
    reached = [progress["progress"] for progress in seen]
    assert reached == sorted(reached)
    with Image.open(io.BytesIO(base64.b64decode(seen[-1]["current_image"]))) as image:
        assert image.format == "PNG"
        image.load()
    assert quiet_progress(api)["current_image"] is None
    api.interrupt()
    run.finish()
    idle = api.get_progress()
    assert (idle["progress"], idle["state"]["job_count"]) == (0, 0)
    api.util_wait_for_ready()


def test_without_a_look_no_picture_is_made(api: webuiapi.WebUIApi) -> None:
    """Previews, which cost time, are generated only after a client has requested one."""
    run = Background(api.txt2img, prompt="a cat", **LONG)
    wait_until(
        lambda: quiet_progress(api)["state"]["sampling_step"] > 10, 30, "no tenth step was seen"
    )
    assert api.get_progress()["current_image"] is None
    api.interrupt()
    run.finish()


def test_interrupt(api: webuiapi.WebUIApi) -> None:
    """The running job ends soon with a successful response, and the next job runs."""
    run = Background(api.txt2img, prompt="a cat", **LONG)
    wait_for_step(api)
    assert api.interrupt() == {}
    result = run.finish()
    assert result.images == []
    assert result.json["warnings"] == ["Interrupted after 0 of 1 images."]
    assert api.get_progress()["state"]["interrupted"]
    assert len(api.txt2img(prompt="a cat", **SMALL).images) == 1


def test_skip(api: webuiapi.WebUIApi) -> None:
    """skip ends the last image of a job; it is rejected if more images follow."""
    several = Background(api.txt2img, prompt="a cat", n_iter=2, **LONG)
    wait_for_step(api)
    assert "last image" in api.skip()["detail"]
    api.interrupt()
    several.finish()
    one = Background(api.txt2img, prompt="a cat", **LONG)
    wait_for_step(api)
    assert api.skip() is None
    assert one.finish().images == []


def test_nothing_to_stop(api: webuiapi.WebUIApi) -> None:
    """Without a job, interrupt and skip do nothing."""
    assert api.interrupt() == {}
    assert api.skip() is None


def test_other_apis_are_left_alone(native_server: ServerProcess, api: webuiapi.WebUIApi) -> None:
    """interrupt does not stop a job of another API, and progress does not show it."""
    body = {"prompt": "a cat", "size": "128x128", "sample_steps": 40}
    other = Background(httpx2.post, url=native_server.url + GENERATIONS, json=body, timeout=60)
    time.sleep(0.3)
    assert api.get_progress()["state"]["job_count"] == 0
    api.interrupt()
    assert other.finish().status_code == 200


def test_lists(api: webuiapi.WebUIApi) -> None:
    """Samplers, schedulers, models and upscalers are listed; lists of unsupported features are
    empty."""
    assert {"Euler a", "DPM++ 2M", "LCM"} <= set(api.util_get_sampler_names())
    assert len(api.get_samplers()) == len(SAMPLERS)
    assert {"automatic", "karras", "sgm_uniform"} <= set(api.util_get_scheduler_names())
    assert api.util_get_model_names() == ["embedded"]
    names = [upscaler["name"] for upscaler in api.get_upscalers()]
    assert names == ["None", "Lanczos", "Nearest", "drawings-4x"]
    for empty in (
        api.get_loras, api.get_sd_vae, api.get_hypernetworks, api.get_face_restorers,
        api.get_realesrgan_models, api.get_prompt_styles,
    ):  # fmt: skip
        assert empty() == []
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    modes = [mode["name"] for mode in api.get_latent_upscale_modes()]
    assert modes == [mode.value for mode in webuiapi.HiResUpscaler if "Latent" in mode.value]
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert api.get_cmd_flags() == {}
    assert api.refresh_checkpoints() is None
    assert {"Automatic", "Karras"} <= {schedule["label"] for schedule in api.get_schedulers()}
    assert [model["title"] for model in api.get_sd_models()] == ["embedded"]
    assert api.get_memory()["ram"]["total"] > 0


def test_extras(api: webuiapi.WebUIApi) -> None:
    """Several images are enlarged at once; without a model for it, an image gets no caption and
    no control image."""
    image = Image.new("RGB", (64, 64), "red")
    assert api.util_wait_for_ready() is None
    enlarged = api.extra_batch_images([image, image], upscaler_1="Lanczos", upscaling_resize=2)
    assert [found.size for found in enlarged.images] == [(128, 128)] * 2
    for method, argument in ((api.interrogate, image), (api.controlnet_detect, [image])):
        with pytest.raises(RuntimeError, match="This server has no model for"):
            method(argument)


def test_extensions(api: webuiapi.WebUIApi) -> None:
    """The client finds the ControlNet's lists, and no other extension."""
    api.check_extensions()
    assert (api.has_adetailer, api.has_animatediff) == (False, False)
    assert (api.controlnet_version(), api.controlnet_model_list()) == (3, [])
    with pytest.raises(RuntimeError, match="Route not found: POST /promptgen/generate"):
        api.prompt_gen("a cat")
    for path in ("artists", "artist-categories", "../../promptgen/list_models"):
        # AUTOMATIC1111 has neither these routes nor, by default, the extension.
        assert "Route not found" in api.custom_get(path, baseurl=True)["detail"]


def test_asynchronous_calls(api: webuiapi.WebUIApi) -> None:
    """The client's asynchronous calls get the same images, several at once."""
    image = Image.new("RGB", (64, 64), "red")

    async def calls() -> tuple[webuiapi.WebUIApiResult, ...]:
        return await asyncio.gather(
            api.txt2img(prompt="a cat", seed=3, **SMALL, use_async=True),
            api.img2img([image], prompt="a cat", seed=3, **SMALL, use_async=True),
            api.extra_single_image(image, upscaler_1="Lanczos", upscaling_resize=2, use_async=True),
        )

    drawn, changed_image, enlarged = asyncio.run(calls())
    again = api.txt2img(prompt="a cat", seed=3, **SMALL)
    assert drawn.image.tobytes() == again.image.tobytes()
    assert changed_image.image.size == (64, 64)
    assert enlarged.image.size == (128, 128)


def test_options(api: webuiapi.WebUIApi) -> None:
    """The options that are returned can be set again; unsupported values are rejected by name."""
    told = api.get_options()
    assert told["sd_model_checkpoint"] == api.util_get_current_model() == "embedded"
    assert api.set_options(told) is None
    assert "CLIP_stop_at_last_layers" in api.set_options({"CLIP_stop_at_last_layers": 0})["detail"]
    # The option is stored for models with CLIP; a model without CLIP returns a warning.
    api.set_options({"CLIP_stop_at_last_layers": 2})
    body = {"prompt": "a cat", "width": 64, "height": 64, "steps": 2}
    kept = api.session.post(f"{api.baseurl}/txt2img", json=body).json()
    assert kept["warnings"][0].startswith("CLIP_stop_at_last_layers has no effect")
    asked = {**body, "override_settings": {"CLIP_stop_at_last_layers": 2}}
    refused = api.session.post(f"{api.baseurl}/txt2img", json=asked).json()
    assert refused["error"]["param"] == "CLIP_stop_at_last_layers"
    api.set_options(told)
    missing = api.set_options({"sd_model_checkpoint": "nothing"})
    assert missing["error"]["reason"] == "model_not_found"
    assert missing["errors"] == missing["detail"]
    assert api.util_get_current_model() == "embedded"


def test_the_checkpoint_of_later_requests(tmp_path: Path) -> None:
    """options set the model of later requests. override_settings sets it for one request, or also
    for later ones."""
    models = tmp_path / "models.yaml"
    entry = "  - {{id: {0}, family: ovis_image, files: {{model: m}}}}\n"
    models.write_text("default: a\nmodels:\n" + "".join(map(entry.format, "ab")))
    with running_server(tmp_path, engine="fake", models=models) as server:
        api = client_of(server)

        def drawn_by(**options: Any) -> str:
            result = api.txt2img(prompt="a cat", **SMALL, **options)
            return str(result.info["sd_model_name"])

        assert drawn_by() == "a"
        api.util_set_model("b")
        assert drawn_by() == "b"
        other = {"override_settings": {"sd_model_checkpoint": "a"}}
        assert drawn_by(**other) == "a"
        assert drawn_by() == "b"
        assert drawn_by(**other, override_settings_restore_afterwards=False) == "a"
        assert drawn_by() == "a"
        assert server.post({"prompt": "x", "size": "64x64"}).json()["model"] == "a"


def test_png_info(api: webuiapi.WebUIApi, native_server: ServerProcess) -> None:
    """png-info reads the parameters of PNG, JPEG and WebP, as a text and as fields."""
    drawn = api.txt2img(prompt="a cat — 猫", seed=5, **SMALL)
    found = api.png_info(drawn.image)
    assert found.info == drawn.info["infotexts"][0]
    assert found.parameters["Prompt"] == "a cat — 猫"
    assert found.parameters["Seed"] == "5"
    assert found.parameters["Size-1"] == "64"
    for kind in ("jpeg", "webp"):
        body = {"prompt": "a dog", "size": "64x64", "sample_steps": 2, "output_format": kind}
        file = native_server.post(body).json()["data"][0]["b64_json"]
        assert png_info(api, file).parameters["Prompt"] == "a dog"
    assert api.png_info(Image.new("RGB", (8, 8))).info == ""


def test_refusals(api: webuiapi.WebUIApi) -> None:
    """An unsupported option that would change the image is rejected by name."""
    for option in (
        {"styles": ["x"]}, {"tiling": True}, {"restore_faces": True},
        {"subseed_strength": 0.5}, {"script_name": "X/Y/Z plot"}, {"eta": 0.5},
        {"override_settings": {"eta_noise_seed_delta": 31337}},
    ):  # fmt: skip
        status, body = refusal(api.txt2img, prompt="a cat", **{**SMALL, **option})
        assert status == 400
        assert next(iter(option)) in body
    picture = Image.new("RGB", (8, 8))
    status, body = refusal(api.extra_single_image, image=picture, upscaler_1="ESRGAN_4x")
    assert (status, "upscaler_1" in body) == (400, True)
    # Without an upscaler, AUTOMATIC1111 returns the image unchanged.
    assert api.extra_single_image(image=picture).image.size == (8, 8)


def test_bad_pictures(api: webuiapi.WebUIApi) -> None:
    """A missing image, a damaged image and a mask of another size are rejected."""
    picture, _ = scene()
    assert refusal(api.img2img, images=[], prompt="a cat", **SMALL)[0] == 400
    other = Image.new("L", (32, 32))
    status, body = refusal(api.img2img, images=[picture], mask_image=other, prompt="a", **SMALL)
    assert (status, "same size" in body) == (400, True)
    status, body = refusal(png_info, api=api, file="AAAA")
    assert (status, "Invalid image" in body) == (400, True)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "txt2img", 400),
        ("POST", "img2img", 400),
        ("POST", "options", 400),
        ("POST", "png-info", 400),
        ("GET", "txt2img", 405),
        ("GET", "interrogate", 405),
        ("GET", "nothing", 404),
    ],
)
def test_every_error_has_one_shape(
    native_server: ServerProcess, method: str, path: str, status: int
) -> None:
    """Every error contains AUTOMATIC1111's keys and this server's error object."""
    answer = httpx2.request(
        method,
        f"{native_server.url}/sdapi/v1/{path}",
        content=b'{"\\ud800":',
        headers={"Content-Type": "application/json"},
    )
    body = answer.json()
    assert answer.status_code == status
    assert body["detail"] == body["errors"] == body["error"]["message"]
    assert (body["body"], body["error"]["code"]) == ("", status)


def test_half_a_character_in_a_name(native_server: ServerProcess) -> None:
    """A lone surrogate in a field's name, which UTF-8 cannot encode, is rejected as any unknown
    field."""
    answer = httpx2.post(f"{native_server.url}/sdapi/v1/txt2img", content=b'{"image\\ud800": 1}')
    assert answer.status_code == 400
    assert answer.json()["error"]["reason"] == "unknown_field"


def test_a_key_is_the_password(tmp_path: Path) -> None:
    """The key is the password of HTTP Basic; without it the error has AUTOMATIC1111's format."""
    with running_server(tmp_path, engine="fake", api_keys="secret") as server:
        open_door = client_of(server, username="any", password="secret")
        assert len(open_door.txt2img(prompt="a cat", **SMALL).images) == 1
        later = client_of(server)
        later.set_auth("any", "secret")
        assert later.util_get_model_names() == ["embedded"]
        for wrong in ("other", "ä"):
            denied = client_of(server, username="any", password=wrong)
            status, body = refusal(denied.txt2img, prompt="a cat", **SMALL)
            assert (status, '"errors"' in body) == (401, True)
