"""The API of stable-diffusion.cpp's own server: its page's requests, and options in prompts."""

from __future__ import annotations

import base64
import copy
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client

from tests.integration.test_jobs import KEY_A, KEY_B
from tests.support.mcp import run_session
from tests.support.pictures import from_base64, png
from tests.support.servers import ServerProcess, running_server, wait_until

PREFIX = "/sdcpp/v1"
PICTURE = base64.b64encode(png(64, 64, "red")).decode()
#: Half a minute of work.
LONG = {"prompt": "step=0.2", "width": 64, "height": 64, "sample_params": {"sample_steps": 150}}


def submit(server: ServerProcess, body: dict[str, Any], **request: Any) -> dict[str, Any]:
    """Send an img_gen that must be accepted, and return the answer."""
    answer = httpx2.post(f"{server.url}{PREFIX}/img_gen", json=body, **request)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


def polled(server: ServerProcess, job: dict[str, Any], *wanted: str) -> dict[str, Any]:
    """Poll a job, as a page does, until it has one of these states; return it."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        state: dict[str, Any] = httpx2.get(server.url + job["poll_url"]).json()
        if state["status"] in wanted:
            return state
        time.sleep(0.05)
    pytest.fail(f"the job is {state['status']}")


def test_what_its_page_sends(fake_server: ServerProcess) -> None:
    """The defaults in the capabilities form a request that is accepted unchanged."""
    capabilities = httpx2.get(f"{fake_server.url}{PREFIX}/capabilities").json()
    assert capabilities["supported_modes"] == ["img_gen"]
    assert capabilities["features"]["cancel_generating"] is True
    assert "euler_a" in capabilities["samplers"]
    names = [upscaler["name"] for upscaler in capabilities["upscalers"]]
    assert {"None", "Lanczos", "Latent (nearest-exact)"} <= {*names}
    body = copy.deepcopy(capabilities["defaults_by_mode"]["img_gen"])
    body |= {"prompt": "a cat", "width": 64, "height": 64, "batch_count": 2, "init_image": None,
             "ref_images": [], "mask_image": None, "control_image": None, "lora": []}  # fmt: skip
    body["sample_params"] |= {"sample_steps": 3, "custom_sigmas": []}
    job = submit(fake_server, body)
    assert job["poll_url"] == f"{PREFIX}/jobs/{job['id']}"
    assert "warnings" not in job
    done = polled(fake_server, job, "completed", "failed")
    assert (done["status"], done["error"], done["kind"]) == ("completed", None, "img_gen")
    assert done["result"]["output_format"] == "png"
    assert [from_base64(image["b64_json"]).size for image in done["result"]["images"]] == [
        (64, 64)
    ] * 2
    assert isinstance(done["created"], int)
    assert done["completed"] >= done["started"] >= done["created"]


def test_upstreams_example(fake_server: ServerProcess) -> None:
    """The example of sd-server's documentation is accepted, at a size that the model supports."""
    guidance = {"txt_cfg": 7.0, "img_cfg": 7.0, "distilled_guidance": 3.5, "slg": {
        "layers": [7, 8, 9], "layer_start": 0.01, "layer_end": 0.2, "scale": 0.0}}  # fmt: skip
    body = {
        "prompt": "a cat sitting on a chair", "negative_prompt": "", "clip_skip": -1, "width": 64,
        "height": 64, "strength": 0.75, "seed": -1, "batch_count": 1,
        "auto_resize_ref_image": True, "increase_ref_index": False, "control_strength": 0.9,
        "ip_adapter_strength": 1.0, "embed_image_metadata": True, "ip_adapter_image": None,
        "sample_params": {"scheduler": "discrete", "sample_method": "euler", "sample_steps": 4,
                          "eta": 1.0, "shifted_timestep": 0, "custom_sigmas": [],
                          "flow_shift": 0.0, "guidance": guidance},
        "hires": {"enabled": False, "upscaler": "Latent", "scale": 2.0},
        "vae_tiling_params": {"enabled": False, "tile_size_x": 0, "target_overlap": 0.5},
        "cache_mode": "disabled", "cache_option": "", "scm_mask": "", "scm_policy_dynamic": True,
        "output_format": "png", "output_compression": 100,
    }  # fmt: skip
    job = submit(fake_server, body)
    own = httpx2.get(f"{fake_server.url}/v1/jobs/{job['id']}").json()
    assert own["parameters"]["cfg_scale"] == 7.0
    assert own["parameters"]["sample_steps"] == 4
    assert own["warnings"] == []
    assert "eta" not in own["parameters"]


def test_images_and_a_second_pass(fake_server: ServerProcess) -> None:
    """A mask is white where to paint, and the hires fix has AUTOMATIC1111's names."""
    edit = {"prompt": "blue", "init_image": f"data:image/png;base64,{PICTURE}", "strength": 0.4,
            "mask_image": base64.b64encode(png(64, 64, "white")).decode()}  # fmt: skip
    own = submit(fake_server, edit)
    parameters = httpx2.get(f"{fake_server.url}/v1/jobs/{own['id']}").json()["parameters"]
    assert (parameters["strength"], parameters["mask_mode"]) == (0.4, "luminance")
    hires = {"enabled": True, "upscaler": "Latent (nearest-exact)", "scale": 2.0, "steps": 0,
             "denoising_strength": 0.5}  # fmt: skip
    job = submit(fake_server, {"prompt": "a", "width": 64, "height": 64, "hires": hires})
    done = polled(fake_server, job, "completed")
    assert from_base64(done["result"]["images"][0]["b64_json"]).size == (128, 128)


def test_tiles_and_an_upscaler(fake_server: ServerProcess) -> None:
    """A tile side of 0 means the default; a second pass accepts the listed upscalers."""
    listed = httpx2.get(f"{fake_server.url}{PREFIX}/capabilities").json()["upscalers"]
    assert {"name": "drawings-4x"} in listed
    body = {
        "prompt": "a", "width": 64, "height": 64,
        "vae_tiling_params": {"enabled": True, "tile_size_x": 16, "tile_size_y": 0,
                              "target_overlap": 0.25, "rel_size_x": 0},
        "hires": {"enabled": True, "upscaler": "drawings-4x", "scale": 1.5},
    }  # fmt: skip
    job = submit(fake_server, body)
    parameters = httpx2.get(f"{fake_server.url}/v1/jobs/{job['id']}").json()["parameters"]
    assert parameters["hires_upscaler"] == "drawings-4x"
    assert (parameters["vae_tile_size_x"], parameters["vae_tile_overlap"]) == (16, 0.25)
    assert "vae_tile_size_y" not in parameters
    off = submit(fake_server, {**body, "vae_tiling_params": {"enabled": False, "tile_size_x": 9}})
    parameters = httpx2.get(f"{fake_server.url}/v1/jobs/{off['id']}").json()["parameters"]
    assert "vae_tile_size_x" not in parameters


def test_a_client_that_does_not_wait_for_its_cancel(fake_server: ServerProcess) -> None:
    """The request for a cancel ends when its client leaves, although the worker hangs."""
    job = submit(fake_server, LONG)
    polled(fake_server, job, "generating")
    path = f"{job['poll_url']}/cancel"
    worker = fake_server.worker_pid()
    assert worker is not None
    os.kill(worker, signal.SIGSTOP)
    try:
        with pytest.raises(httpx2.TimeoutException):
            httpx2.post(fake_server.url + path, timeout=0.5)
        wait_until(lambda: fake_server.log_lines(path), 2, "nothing in the log")
    finally:
        os.kill(worker, signal.SIGCONT)
    (line,) = fake_server.log_lines(path)
    assert " 499 " in line
    assert polled(fake_server, job, "cancelled")


def test_cancel(fake_server: ServerProcess) -> None:
    """A job that is generating can be cancelled; an ended job is not changed."""
    job = submit(fake_server, LONG)
    state = polled(fake_server, job, "generating")
    assert state["result"] is None
    cancelled = httpx2.post(f"{fake_server.url}{job['poll_url']}/cancel")
    assert cancelled.status_code == 200
    body = cancelled.json()
    assert (body["status"], body["error"]["code"]) == ("cancelled", "cancelled")
    again = httpx2.post(f"{fake_server.url}{job['poll_url']}/cancel").json()
    assert again["status"] == "cancelled"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"sample_params": {"sample_method": "magic"}}, "sample_params.sample_method"),
        ({"sample_params": {"sampel_steps": 4}}, "sample_params.sampel_steps"),
        ({"sample_params": 4}, "sample_params"),
        ({"sample_params": {"guidance": {"txt_cfg": 99}}}, "sample_params.guidance.txt_cfg"),
        ({"sample_params": {"guidance": {"img_cfg": 3, "txt_cfg": 7}}},
         "sample_params.guidance.img_cfg"),
        ({"sample_params": {"shifted_timestep": 250}}, "sample_params.shifted_timestep"),
        ({"width": 15, "height": 64}, "width"),
        ({"hires": {"enabled": True, "upscaler": "ESRGAN"}}, "hires.upscaler"),
        ({"hires": {"enabled": True, "target_width": 640}}, "hires.target_width"),
        ({"vae_tiling_params": {"enabled": True, "tile_size_x": 2}},
         "vae_tiling_params.tile_size_x"),
        ({"lora": [{"path": "none.safetensors", "multiplier": 1}]}, "lora"),
        ({"lora": [{"path": "x", "multiplier": 1, "is_high_noise": True}]},
         "lora[0].is_high_noise"),
        ({"init_image": "https://x.example/a.png"}, "init_image"),
        ({"mask_image": PICTURE}, "init_image"),
        ({"ref_images": [PICTURE]}, "ref_images"),
        ({"ref_images": PICTURE}, "ref_images"),
        ({"control_image": PICTURE}, "control_image"),
        ({"hires": True}, "hires"),
        ({"ip_adapter_image": PICTURE}, "ip_adapter_image"),
        ({"end_image": PICTURE}, "end_image"),
    ],
)  # fmt: skip
def test_rejections(fake_server: ServerProcess, body: dict[str, Any], param: str) -> None:
    """The error has its message under ``error`` and the name of the field under ``param``."""
    answer = httpx2.post(f"{fake_server.url}{PREFIX}/img_gen", json={"prompt": "a", **body})
    assert answer.status_code == 400
    problem = answer.json()
    assert isinstance(problem["error"], str)
    assert problem["param"] == param


def test_other_faults(fake_server: ServerProcess) -> None:
    """An unknown job or route gets a 404, and a video a 400."""
    url = fake_server.url + PREFIX
    for answer in (httpx2.get(f"{url}/jobs/job_x"), httpx2.post(f"{url}/jobs/job_x/cancel"),
                   httpx2.get(f"{url}/nothing")):  # fmt: skip
        assert answer.status_code == 404
        assert isinstance(answer.json()["error"], str)
    assert httpx2.post(f"{url}/vid_gen", json={}).status_code == 400


def test_keys(tmp_path: Path) -> None:
    """A job is visible only to its own key."""
    with running_server(tmp_path, engine="fake", api_keys="key-a,key-b") as server:
        job = submit(server, {"prompt": "a", "width": 64, "height": 64}, headers=KEY_A)
        url = server.url + job["poll_url"]
        assert httpx2.get(url).status_code == 401
        assert httpx2.get(url, headers=KEY_B).status_code == 404
        assert httpx2.post(f"{url}/cancel", headers=KEY_B).status_code == 404
        assert httpx2.get(url, headers=KEY_A).status_code == 200


ARGS = {"sample_params": {"sample_steps": 7, "sample_method": "heun"}, "seed": 5}
TAGGED = f"a cat <sd_cpp_extra_args>{json.dumps(ARGS)}</sd_cpp_extra_args> on a chair"


def test_options_in_a_prompt(fake_server: ServerProcess, tmp_path: Path) -> None:
    """AUTOMATIC1111's and sd-server's routes read options in a prompt.

    Other routes read them only with --options-in-prompt.
    """
    body = {"prompt": TAGGED, "width": 64, "height": 64, "steps": 3}
    answer = httpx2.post(f"{fake_server.url}/sdapi/v1/txt2img", json=body).json()
    info = json.loads(answer["info"])
    assert (info["prompt"], info["steps"], info["seed"]) == ("a cat on a chair", 7, 5)
    assert info["sampler_name"] == "Heun"
    own = submit(fake_server, {"prompt": TAGGED, "width": 64, "height": 64})
    asked = httpx2.get(f"{fake_server.url}/v1/jobs/{own['id']}").json()["parameters"]
    assert (asked["prompt"], asked["sample_steps"]) == ("a cat on a chair", 7)
    native = {"prompt": TAGGED, "size": "64x64"}
    refused = fake_server.post(native)
    assert refused.status_code == 400
    assert "--options-in-prompt" in refused.json()["error"]["message"]
    with running_server(tmp_path, engine="fake", options_in_prompt="true") as server:
        parameters = server.post(native).json()["parameters"]
        assert (parameters["prompt"], parameters["sample_steps"]) == ("a cat on a chair", 7)
        chat = {"messages": [{"role": "user", "content": TAGGED}], "size": "64x64"}
        httpx2.post(f"{server.url}/v1/chat/completions", json=chat).raise_for_status()
        httpx2.get(f"{server.url}/v1/images/generations", params=native).raise_for_status()

        async def call(client: Client) -> None:
            await client.call_tool("generate_image", native)

        run_session(call, server.url)
        jobs = httpx2.get(f"{server.url}/v1/jobs").json()["data"]
        found = {(job["parameters"]["prompt"], job["parameters"]["sample_steps"]) for job in jobs}
        assert (len(jobs), found) == (4, {("a cat on a chair", 7)})


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ("{", "JSON object"),
        ('{"seed": 1}</sd_cpp_extra_args> and <sd_cpp_extra_args>{}', "send one"),
        ("[1]", "JSON object"),
        ('{"init_image": "x"}', "'init_image'"),
        ('{"webhook_url": "http://x.example"}', "webhook_url"),
        ('{"model": "other"}', "model"),
        ('{"sample_params": {"sample_steps": 0}}', "prompt.sample_params.sample_steps"),
        ('{"sample_params": {"sampel_steps": 5}}', "prompt.sample_params.sampel_steps"),
    ],
)
def test_options_in_a_prompt_are_checked(fake_server: ServerProcess, args: str, word: str) -> None:
    """Options in a prompt are checked like fields; a model, image or webhook is never accepted."""
    prompt = f"a <sd_cpp_extra_args>{args}</sd_cpp_extra_args>"
    body = {"prompt": prompt, "width": 64, "height": 64, "steps": 1}
    answer = httpx2.post(f"{fake_server.url}/sdapi/v1/txt2img", json=body)
    if answer.status_code == 200:
        assert any(word in text for text in answer.json()["warnings"])
    else:
        assert word in answer.json()["error"]["message"]
