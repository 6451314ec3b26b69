"""Requests of widely used programs, as they send them: each gets its image.

The bodies were written from the programs' requests; the programs are not run here.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests.support.pictures import from_base64, opened, png
from tests.support.servers import ServerProcess, running_server

PICTURE = base64.b64encode(png(64, 64, "red")).decode()
MASK = base64.b64encode(png(64, 64, "white")).decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with the model names that some programs cannot change."""
    folder = tmp_path_factory.mktemp("programs")
    names = "gpt-image-1,dall-e-2,dall-e-3,flux-schnell"
    with running_server(folder, engine="fake", aliases=names) as found:
        yield found


def post(server: ServerProcess, path: str, **request: Any) -> httpx2.Response:
    """Send a request that must succeed, and return the answer."""
    answer = httpx2.post(server.url + path, timeout=60, **request)
    assert answer.status_code == 200, answer.text
    return answer


# --- GPUStack and llama-box -----------------------------------------------------------------------

#: Requests of GPUStack's page: its plain form, and its form with further options.
GPUSTACK: dict[str, Any] = {
    "model": "embedded", "prompt": "a cat", "n": 1, "size": "64x64", "seed": None,
    "random_seed": True, "quality": "standard", "style": None, "stream": True,
    "stream_options": {"chunk_size": 16384, "chunk_results": True}, "preview": None,
}  # fmt: skip
GPUSTACK_MORE: dict[str, Any] = {
    **GPUSTACK, "sampler": "euler", "schedule": "discrete", "sample_steps": 2, "cfg_scale": 4.5,
    "guidance": 3.5, "negative_prompt": "blurred", "strength": None,
    "stream_options": {"preview_faster": True},
}  # fmt: skip


def items(answer: httpx2.Response) -> list[dict[str, Any]]:
    """Return the items of a stream's frames, in order."""
    lines = [line for line in answer.text.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: "))["data"][0] for line in lines[:-1]]


@pytest.mark.parametrize("body", [GPUSTACK, GPUSTACK_MORE])
def test_gpustacks_page_generates(server: ServerProcess, body: dict[str, Any]) -> None:
    """GPUStack's spelling of options, an unsupported guidance and a random seed are accepted."""
    last = items(post(server, "/v1-openai/images/generations", json=body))[-1]
    assert (last["progress"], last["finish_reason"]) == (100, "stop")
    assert from_base64(last["b64_json"]).size == (64, 64)


@pytest.mark.parametrize("more", [False, True])
def test_gpustacks_page_edits(server: ServerProcess, more: bool) -> None:
    """GPUStack's forms are accepted: nulls are text, and stream options are flat."""
    fields = {
        "model": "embedded", "prompt": "a cat", "n": "1", "size": "64x64", "seed": "null",
        "quality": "standard", "stream": "true", "stream_options_chunk_size": "16384",
        "stream_options_chunk_results": "true",
    }  # fmt: skip
    if more:
        fields |= {"stream_options_preview_faster": "true", "guidance": "3.5", "cfg_scale": "4.5"}
    files = {"image": ("image.png", png(64, 64)), "mask": ("mask.png", png(64, 64))}
    answer = post(server, "/v1-openai/images/edits", data=fields, files=files)
    assert items(answer)[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/image/generate"])
def test_llama_boxs_script_saves_the_image(server: ServerProcess, path: str) -> None:
    """The script names files by index and step, so the last file of an index must be the image."""
    body = {
        "model": "embedded", "prompt": "a cat", "n": 2, "size": "64x64", "stream": True,
        "stream_options": {"include_usage": True, "preview": True}, "sample_steps": 3,
    }  # fmt: skip
    files: dict[tuple[int, int], dict[str, Any]] = {}
    for item in items(post(server, path, json=body)):
        if item.get("b64_json"):
            key = (item["index"], item["progressed_steps"])
            assert key not in files
            files[key] = item
    for index in (0, 1):
        number, last = max((n, item) for (i, n), item in files.items() if i == index)
        assert number == last["progress_steps"] == 4
        assert last["finish_reason"] == "stop"


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/image/edit"])
def test_llama_boxs_script_saves_the_edit(server: ServerProcess, path: str) -> None:
    """The last file of an edit is the image too; its form has flat stream options."""
    fields = {
        "model": "embedded", "prompt": "a cat", "n": "1", "size": "64x64", "sample_steps": "3",
        "stream": "true", "stream_options_include_usage": "true", "stream_options_preview": "true",
    }  # fmt: skip
    answer = post(server, path, data=fields, files={"image": png(64, 64)})
    pictures = [item for item in items(answer) if item.get("b64_json")]
    keys = [item["progressed_steps"] for item in pictures]
    assert keys == sorted({*keys})
    assert pictures[-1]["progressed_steps"] == pictures[-1]["progress_steps"] == 4
    assert pictures[-1]["finish_reason"] == "stop"


# --- AUTOMATIC1111's clients ----------------------------------------------------------------------

A1111: dict[str, dict[str, Any]] = {
    "SillyTavern": {
        "url": "http://127.0.0.1:7860", "auth": "", "prompt": "a cat", "negative_prompt": "bad",
        "sampler_name": "Euler a", "scheduler": "Karras", "steps": 2, "cfg_scale": 7, "width": 64,
        "height": 64, "restore_faces": False, "enable_hr": False, "hr_upscaler": "Latent",
        "hr_scale": 1, "hr_additional_modules": [], "denoising_strength": 0.7,
        "hr_second_pass_steps": 0, "seed": -1, "override_settings": {"CLIP_stop_at_last_layers": 1},
        "override_settings_restore_afterwards": True, "clip_skip": 1, "save_images": True,
        "send_images": True, "do_not_save_grid": False, "do_not_save_samples": False,
    },
    "SillyTavern's DrawThings source": {
        "url": "http://127.0.0.1:7860", "auth": "", "prompt": "a cat", "negative_prompt": "bad",
        "sampler_name": "DPM++ 2M Karras", "steps": 2, "cfg_scale": 7, "width": 64, "height": 64,
        "restore_faces": False, "enable_hr": False, "denoising_strength": 0.7, "clip_skip": 1,
        "upscaler_scale": 2,
    },
    "KoboldAI Lite": {
        "prompt": "a cat", "negative_prompt": "ugly", "cfg_scale": 5, "steps": 2, "width": 64,
        "height": 64, "seed": -1, "sampler_name": "Euler a", "clip_skip": 0, "model": "embedded",
    },
    "AIYA": {
        "prompt": "a cat", "negative_prompt": "", "steps": 2, "width": 64, "height": 64,
        "cfg_scale": 7.0, "sampler_index": "Euler a", "seed": 5, "seed_resize_from_h": -1,
        "seed_resize_from_w": -1, "denoising_strength": None, "n_iter": 1, "styles": ["None", ""],
        "override_settings": {"sd_model_checkpoint": "embedded"},
    },
    "Auto-Photoshop": {
        "prompt": "a cat", "steps": 2, "n_iter": 1, "sampler_index": "Euler a", "width": 64,
        "height": 64, "denoising_strength": 0.5, "batch_size": 1, "cfg_scale": 7, "seed": "-1",
        "negative_prompt": "", "script_args": [], "restore_faces": False, "tiling": False,
        "s_noise": 0, "s_churn": 0, "eta": 0, "alwayson_scripts": {}, "subseed": -1,
        "subseed_strength": 0, "enable_hr": True, "hr_scale": 1, "hr_upscaler": "None",
        "hr_second_pass_steps": 0.5,
    },
    "text-generation-webui": {
        "prompt": "a cat", "seed": -1, "sampler_name": "DPM++ 2M", "enable_hr": False,
        "hr_scale": 1.5, "hr_upscaler": "ESRGAN_4x", "denoising_strength": 0.6, "steps": 2,
        "cfg_scale": 7, "width": 64, "height": 64, "restore_faces": False,
        "override_settings_restore_afterwards": True, "negative_prompt": "",
    },
    "Dify": {
        "prompt": "a cat", "negative_prompt": "", "seed": 1, "sampler_name": "Euler", "steps": 2,
        "cfg_scale": 7, "width": 64, "height": 64, "restore_faces": False, "tiling": False,
        "override_settings": {"sd_model_checkpoint": "embedded"}, "styles": [""],
    },
    "Krita's plug-in": {
        "prompt": "a cat", "width": 136, "height": 72, "steps": 2, "sampler_name": "Euler",
        "batch_size": 2, "script_name": None, "subseed": -1, "subseed_strength": 0.0,
    },
}  # fmt: skip


@pytest.mark.parametrize("program", A1111)
def test_clients_of_automatic1111(server: ServerProcess, program: str) -> None:
    """Each client gets images of the size that it asked for, whatever else it sends."""
    body = A1111[program]
    answer = post(server, "/sdapi/v1/txt2img", json=body).json()
    assert len(answer["images"]) == body.get("batch_size", 1)
    for image in answer["images"]:
        assert from_base64(image).size == (body["width"], body["height"])
    info = json.loads(answer["info"])
    assert (info["width"], info["height"]) == (body["width"], body["height"])
    assert info["seed"] < 2**32


def test_sillytavern_from_ping_to_picture(server: ServerProcess) -> None:
    """The requests that SillyTavern's AUTOMATIC1111 source sends before the first image succeed."""
    for path in ("options", "sd-models", "samplers", "schedulers", "upscalers", "sd-vae",
                 "latent-upscale-modes", "progress"):  # fmt: skip
        assert httpx2.get(f"{server.url}/sdapi/v1/{path}").status_code == 200, path
    options = httpx2.get(f"{server.url}/sdapi/v1/options").json()
    # SillyTavern posts the options that it read, with the model chosen.
    post(server, "/sdapi/v1/options", json={**options, "sd_model_checkpoint": "embedded"})
    upscalers = [u["name"] for u in httpx2.get(f"{server.url}/sdapi/v1/upscalers").json()]
    assert upscalers[:3] == ["None", "Lanczos", "Nearest"]


def test_sillytaverns_source_of_sd_next(server: ServerProcess) -> None:
    """This source reads the same lists, without schedules, and sends the schedule N/A."""
    for path in ("options", "sd-models", "samplers", "upscalers", "sd-vae"):
        assert httpx2.get(f"{server.url}/sdapi/v1/{path}").status_code == 200, path
    answer = post(server, "/sdapi/v1/txt2img", json={**A1111["SillyTavern"], "scheduler": "N/A"})
    assert from_base64(answer.json()["images"][0]).size == (64, 64)


def test_sillytaverns_source_of_sd_server(server: ServerProcess) -> None:
    """This source finds the server by OPTIONS, lists models of /v1, and draws with /sdapi."""
    found = httpx2.request("OPTIONS", f"{server.url}/v1/images/generations")
    assert found.is_success
    models = httpx2.get(f"{server.url}/v1/models").json()["data"]
    body = {
        "model": models[0]["id"], "prompt": "a cat", "negative_prompt": "bad", "width": 64,
        "height": 64, "steps": 2, "cfg_scale": 7, "seed": -1, "batch_size": 1,
        "sampler_name": "euler_a", "scheduler": "karras", "clip_skip": 1,
    }  # fmt: skip
    answer = post(server, "/sdapi/v1/txt2img", json=body)
    assert from_base64(answer.json()["images"][0]).size == (64, 64)


@pytest.mark.parametrize("accept", ["*/*", "application/json", ""])
def test_sillytavern_finds_a_draw_things(server: ServerProcess, accept: str) -> None:
    """SillyTavern finds the model and upscaler at /, without a key; browsers get the page there."""
    headers = {"Accept": accept}
    assert httpx2.head(server.url, headers=headers).status_code == 200
    answer = httpx2.get(server.url, headers=headers)
    assert answer.json() == {"name": "sdstream", "model": "embedded", "upscaler": None}
    assert answer.headers["Vary"] == "Accept"
    page = httpx2.get(server.url, headers={"Accept": "text/html,application/xml;q=0.9,*/*;q=0.8"})
    assert page.headers["Content-Type"].startswith("text/html")


def test_the_second_pass_of_draw_things(server: ServerProcess) -> None:
    """Clients of Draw Things name the factor 'upscaler_scale'."""
    hires = {"enable_hr": True, "upscaler_scale": 1.5, "denoising_strength": 0.5}
    body = {**A1111["SillyTavern's DrawThings source"], **hires, "width": 128, "height": 128}
    answer = post(server, "/sdapi/v1/txt2img", json=body)
    assert from_base64(answer.json()["images"][0]).size == (192, 192)
    refused = httpx2.post(f"{server.url}/sdapi/v1/txt2img", json={**body, "upscaler_scale": 99})
    assert refused.json()["error"]["param"] == "upscaler_scale"


def test_a_whole_settings_object(server: ServerProcess) -> None:
    """Unknown settings of AUTOMATIC1111 are ignored and listed in a header."""
    body = {"samples_format": "png", "grid_only_if_multiple": True, "control_net_unit_count": 3,
            "lora_functional": False, "CLIP_stop_at_last_layers": 1}  # fmt: skip
    answer = post(server, "/sdapi/v1/options", json=body)
    assert answer.headers["X-Ignored-Fields"] == (
        "grid_only_if_multiple,control_net_unit_count,lora_functional"
    )


def test_sizes_that_the_model_cannot_draw(server: ServerProcess) -> None:
    """An unsupported size is enlarged from a supported one, with and without a mask."""
    body = {"prompt": "a cat", "width": 130, "height": 70, "steps": 1}
    answer = post(server, "/sdapi/v1/txt2img", json=body).json()
    assert from_base64(answer["images"][0]).size == (130, 70)
    assert answer["parameters"]["width"] == 130
    assert answer["parameters"]["generated_size"] == "224x128"
    masked = {**body, "init_images": [PICTURE], "mask": MASK}
    url = f"{server.url}/sdapi/v1/img2img"
    only = post(server, "/sdapi/v1/img2img", json=masked).json()
    assert from_base64(only["images"][0]).size == (64, 64), "the part is drawn, the image is kept"
    masked["inpaint_full_res"] = False
    whole = httpx2.post(url, json=masked).json()
    assert from_base64(whole["images"][0]).size == (130, 70)
    native = {"prompt": "a cat", "size": "130x70"}
    answer = httpx2.post(f"{server.url}/v1/images/generations", json=native).json()
    assert answer["size"] == "130x70"
    assert answer["parameters"]["generated_size"] == "224x128"


@pytest.mark.parametrize(
    ("upscaler", "size"), [("None", (64, 64)), ("Lanczos", (128, 128)), ("nearest", (128, 128))]
)
def test_upscalers_that_need_no_file(
    server: ServerProcess, upscaler: str, size: tuple[int, int]
) -> None:
    """Built-in upscalers enlarge one image or several."""
    body = {"image": PICTURE, "upscaler_1": upscaler, "upscaling_resize": 2}
    answer = post(server, "/sdapi/v1/extra-single-image", json=body).json()
    assert from_base64(answer["image"]).size == size
    batch = {**body, "imageList": [{"data": PICTURE, "name": "a"}] * 2}
    del batch["image"]
    answer = post(server, "/sdapi/v1/extra-batch-images", json=batch).json()
    assert [from_base64(image).size for image in answer["images"]] == [size] * 2


@pytest.mark.parametrize(
    ("route", "images"),
    [
        ("extra-single-image", {"image": PICTURE}),
        ("extra-batch-images", {"imageList": [{"data": PICTURE, "name": "a"}]}),
    ],
)
@pytest.mark.parametrize("upscaler", ["Lanczos", "drawings-4x"])
def test_unknown_fields_of_upscales(
    server: ServerProcess, route: str, images: dict[str, Any], upscaler: str
) -> None:
    """The answer and its header report them, with and without a job."""
    body = {**images, "upscaler_1": upscaler, "upscaling_resize": 2, "foo": 1}
    answer = post(server, f"/sdapi/v1/{route}", json=body)
    assert answer.json()["warnings"] == ["Unknown field 'foo' has no effect."]
    assert answer.headers["X-Ignored-Fields"] == "foo"


@pytest.mark.parametrize("param", ["model", "sd_model_checkpoint"])
def test_aliases_of_checkpoints(server: ServerProcess, param: str) -> None:
    """A warning names the alias, and the error for an unknown model names the client's field."""

    def body(name: str) -> dict[str, Any]:
        chosen = {param: name} if param == "model" else {"override_settings": {param: name}}
        return {"prompt": "a cat", "width": 64, "height": 64, "steps": 2, **chosen}

    answer = post(server, "/sdapi/v1/txt2img", json=body("dall-e-3")).json()
    assert answer["warnings"] == ["The model 'dall-e-3' is an alias of 'embedded'."]
    assert json.loads(answer["info"])["sd_model_name"] == "embedded"
    refused = httpx2.post(f"{server.url}/sdapi/v1/txt2img", json=body("nothing"))
    assert (refused.status_code, refused.json()["error"]["param"]) == (404, param)


def test_routes_that_have_nothing_to_do(server: ServerProcess) -> None:
    """Refreshing and unloading succeed without effect; an unsupported function gets a 501."""
    for name in ("checkpoints", "loras", "vae", "embeddings"):
        assert post(server, f"/sdapi/v1/refresh-{name}").json() is None
    post(server, "/sdapi/v1/unload-checkpoint")
    post(server, "/sdapi/v1/reload-checkpoint")
    memory = httpx2.get(f"{server.url}/sdapi/v1/memory").json()
    assert 0 < memory["ram"]["free"] < memory["ram"]["total"]
    for path in ("/sdapi/v1/interrogate", "/controlnet/detect"):
        answer = httpx2.post(server.url + path, json={"image": PICTURE})
        assert answer.status_code == 501
        assert "no model" in answer.json()["error"]["message"]


def test_the_wrong_sampler_is_named_as_it_was_sent(server: ServerProcess) -> None:
    """The error names the client's field and suggests the nearest sampler."""
    body = {"prompt": "a", "sampler_index": "DPM++ SDE Karras"}
    error = httpx2.post(f"{server.url}/sdapi/v1/txt2img", json=body).json()["error"]
    assert error["param"] == "sampler_index"
    assert error["message"].endswith("Did you mean 'dpm++2s_a'?")


# --- OpenAI's clients -----------------------------------------------------------------------------

OPENAI: dict[str, tuple[str, dict[str, Any]]] = {
    "LangChain": ("url", {"prompt": "a cat", "model": "dall-e-3", "n": 1, "size": "64x64",
                          "quality": "standard"}),
    "LibreChat's OpenAI Image Tools": ("b64_json", {
        "model": "gpt-image-1", "prompt": "a cat", "n": 1, "background": "auto",
        "output_format": "png", "quality": "auto", "size": "auto",
    }),
    "LibreChat's DALL-E": ("url", {"prompt": "a cat", "model": "dall-e-3", "quality": "hd",
                          "style": "vivid", "size": "64x64", "n": 1}),
    "Haystack": ("b64_json", {"prompt": "a cat", "model": "embedded", "size": "64x64",
                              "quality": "standard", "n": 1, "response_format": "b64_json"}),
    "pydantic-ai": ("b64_json", {"prompt": "a cat", "model": "gpt-image-1", "moderation": "low",
                                 "background": "auto", "quality": "auto", "size": "64x64",
                                 "output_format": "png", "output_compression": 100}),
    "Open WebUI": ("b64_json", {"model": "dall-e-2", "prompt": "a cat", "n": 1, "size": "64x64",
                                "response_format": "b64_json"}),
    "Open WebUI with a gpt-image model": ("b64_json", {
        "model": "gpt-image-1", "prompt": "a cat", "n": 1, "size": "64x64", "sample_steps": 2,
    }),
    "together": ("b64_json", {"prompt": "a cat", "model": "flux-schnell", "steps": 2, "n": 1,
                              "width": 64, "height": 64, "response_format": "base64"}),
    "mistral.rs": ("url", {"prompt": "a cat", "model": "default", "n": 1, "height": 64,
                           "width": 64}),
    "llama-swap": ("b64_json", {"prompt": "a cat", "model": "embedded", "n": 1, "size": "64x64"}),
    "OpenVINO Model Server": ("b64_json", {"prompt": "a cat", "model": "embedded", "rng_seed": 9,
                                           "num_inference_steps": 2, "size": "64x64",
                                           "num_images_per_prompt": 1, "strength": None,
                                           "max_sequence_length": 256}),
}  # fmt: skip


@pytest.mark.parametrize("program", OPENAI)
def test_clients_of_openai(server: ServerProcess, program: str) -> None:
    """Each client finds the image under the key that it reads, and a quality that OpenAI has."""
    key, body = OPENAI[program]
    answer = post(server, "/v1/images/generations", json=body).json()
    (item,) = answer["data"]
    # Open WebUI prefers a url, but does not fetch it from a private address.
    assert not program.startswith("Open WebUI") or "url" not in item
    image = from_base64(item[key]) if key == "b64_json" else opened(httpx2.get(item[key]).content)
    assert image.size == (64, 64) or body.get("size") == "auto"
    assert answer["quality"] in ("low", "medium", "high")


#: Program -> the fields of its edit, and the field name of its file.
EDITS: dict[str, tuple[dict[str, str], str]] = {
    "Open WebUI": ({"model": "dall-e-2", "prompt": "a cat", "n": "1",
                    "response_format": "b64_json"}, "image"),
    "Open WebUI from a chat": ({"model": "gpt-image-1", "prompt": "a cat"}, "image[]"),
    "LibreChat's OpenAI Image Tools": ({"model": "gpt-image-1", "prompt": "a cat",
                                        "quality": "auto", "size": "auto"}, "image[]"),
}  # fmt: skip


@pytest.mark.parametrize("program", EDITS)
def test_clients_of_openais_edits(server: ServerProcess, program: str) -> None:
    """An edit without a size keeps that of its image; the answer has base64 only."""
    fields, name = EDITS[program]
    image = {name: ("image.png", png(64, 64), "image/png")}
    (item,) = post(server, "/v1/images/edits", data=fields, files=image).json()["data"]
    assert from_base64(item["b64_json"]).size == (64, 64)
    assert "url" not in item


def test_a_base_address_with_a_slash(server: ServerProcess) -> None:
    """Open WebUI joins its base address and the path without removing slashes."""
    post(server, "/v1//images/generations", json={"prompt": "a", "size": "64x64"})
    post(server, "/v1/images/generations/", json={"prompt": "a", "size": "64x64"})


@pytest.mark.parametrize(
    "path", ["/sdapi/v1/txt2img", "/v1/images/generations", "/sdcpp/v1/img_gen"]
)
def test_options_tells_the_methods(server: ServerProcess, path: str) -> None:
    """OPTIONS outside a preflight lists the methods; SillyTavern uses it to identify servers."""
    answer = httpx2.request("OPTIONS", server.url + path)
    assert answer.status_code == 204
    assert "POST" in answer.headers["Allow"]
    assert httpx2.request("OPTIONS", f"{server.url}/nothing").status_code == 404


# --- others ---------------------------------------------------------------------------------------


def test_requests_by_name(server: ServerProcess) -> None:
    """Xinference's routes for progress and abort work with the client's request_id."""
    kwargs = json.dumps({"request_id": "mine", "num_inference_steps": 2})
    body = {"model": "embedded", "prompt": "a", "size": "64*64", "kwargs": kwargs}
    post(server, "/v1/images/generations", json=body)
    progress = httpx2.get(f"{server.url}/v1/requests/mine/progress")
    assert progress.json() == {"progress": 1.0}
    assert httpx2.get(f"{server.url}/v1/requests/other/progress").status_code == 404
    slow = {"prompt": "step=0.3", "size": "64x64", "request_id": "slow"}
    headers = {"Prefer": "respond-async"}
    job = httpx2.post(f"{server.url}/v1/images/generations", json=slow, headers=headers).json()
    for name, said in (("slow", "DONE"), ("mine", "NO_OP"), ("other", "NOT_FOUND")):
        path = f"/v1/models/embedded/requests/{name}/abort"
        assert post(server, path, json={"block_duration": 30}).json() == {"msg": said}
    assert httpx2.get(f"{server.url}/v1/jobs/{job['id']}").json()["status"] == "cancelled"


def test_hugging_faces_client(server: ServerProcess, tmp_path: Path) -> None:
    """Hugging Face's InferenceClient works with the address of a model."""
    hub = pytest.importorskip("huggingface_hub")
    client = hub.InferenceClient(model=f"{server.url}/v1/models/embedded")
    image = client.text_to_image("a cat", width=64, height=64, num_inference_steps=2, seed=4)
    assert image.size == (64, 64)
    file = tmp_path / "input.png"
    file.write_bytes(png(64, 64))
    edited = client.image_to_image(file, prompt="blue", num_inference_steps=2)
    assert edited.size == (64, 64)


@pytest.mark.parametrize("parameters", [{"num_inference_steps": 2}, {"prompt": ""}, {}])
@pytest.mark.parametrize("ending", ["", ".png"])
def test_hugging_faces_client_without_a_prompt(
    server: ServerProcess, tmp_path: Path, parameters: dict[str, Any], ending: str
) -> None:
    """An image_to_image without a prompt edits the image, also if the client sends a file."""
    hub = pytest.importorskip("huggingface_hub")
    client = hub.InferenceClient(model=f"{server.url}/v1/models/embedded")
    file = tmp_path / f"input{ending}"
    file.write_bytes(png(64, 64))
    edited = client.image_to_image(file if ending else file.read_bytes(), **parameters)
    assert edited.size == (64, 64)
    (job, *_) = httpx2.get(f"{server.url}/v1/jobs").json()["data"]
    assert (job["operation"], job["parameters"]["prompt"]) == ("edit", "")


def test_hugging_faces_body_of_another_type(server: ServerProcess) -> None:
    """A body that is neither JSON nor an image gets a 415 that names both."""
    url = f"{server.url}/v1/models/embedded"
    answer = httpx2.post(url, content=b"a cat", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415
    assert "application/json and images" in answer.json()["error"]["message"]
    answer = httpx2.post(url, content=b"a cat", headers={"Content-Type": "image/png"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "inputs")


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": "a" * 20_001},
        {"inputs": "%%%", "parameters": {"prompt": "blue"}},
        {"inputs": 3},
        {"inputs": "a <sd_cpp_extra_args>{}</sd_cpp_extra_args>"},
    ],
)
def test_hugging_faces_names_in_errors(server: ServerProcess, body: dict[str, Any]) -> None:
    """An error of the prompt or the image names 'inputs', as the client sent it."""
    answer = httpx2.post(f"{server.url}/v1/models/embedded", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "inputs"


@pytest.mark.parametrize("size", ["128x128", [64, 64], {"w": 64, "h": 64}, 64])
def test_hugging_faces_target_size(server: ServerProcess, size: object) -> None:
    """A target_size in another form than Hugging Face's is rejected."""
    body = {"inputs": PICTURE, "parameters": {"target_size": size}}
    answer = httpx2.post(f"{server.url}/v1/models/embedded", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "parameters.target_size"


def test_unknown_workflows_of_fireworks(server: ServerProcess) -> None:
    """An unknown workflow gets a 404 that lists the supported ones."""
    path = "/inference/v1/workflows/accounts/fireworks/models/flux-kontext-pro/get_result"
    answer = httpx2.post(server.url + path, json={"id": "x"})
    assert answer.status_code == 404
    assert "text_to_image of embedded" in answer.json()["error"]["message"]


def test_an_odd_file_is_rejected_by_its_format(server: ServerProcess) -> None:
    """A format is rejected even if Pillow could read it."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PPM")
    answer = httpx2.post(
        f"{server.url}/v1/images/edits", data={"prompt": "a"}, files={"image": file.getvalue()}
    )
    assert answer.status_code == 400
