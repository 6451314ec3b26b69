"""Fireworks' routes with its published clients and the requests of its documentation."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.e2e.conftest import KEY
from tests.support.clients import run_node, run_python
from tests.support.pictures import from_base64, opened
from tests.support.servers import ServerProcess, running_server

WORKFLOW = "/inference/v1/workflows/accounts/fireworks/models/{}/text_to_image"
IMAGES = "/inference/v1/image_generation/accounts/fireworks/models/{}"
SDK = ("fireworks-ai==0.15.15",)

CATALOG = """
models:
  - id: flux-1-schnell-fp8
    family: ovis_image
    files: {model: builtin:drawings}
    defaults: {size: 256x256, steps: 4}
    size: {min: 64, max: 512}
  - id: SSD-1B
    family: ovis_image
    files: {model: builtin:drawings}
    defaults: {size: 128x128, steps: 2}
    size: {min: 64, max: 512}
"""


@pytest.fixture(scope="module")
def fireworks_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server on the fake engine whose models have Fireworks' names."""
    folder = tmp_path_factory.mktemp("fireworks")
    (folder / "models.yaml").write_text(CATALOG)
    models = folder / "models.yaml"
    with running_server(folder, engine="fake", models=models) as server:
        yield server


def post(
    server: ServerProcess, path: str, body: dict[str, Any], model: str = "default", **headers: str
) -> httpx2.Response:
    """Send a request; names of headers have _ in place of -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    usual = {"prompt": "a cat", "width": 64, "height": 64, "steps": 3}
    return httpx2.post(
        server.url + path.format(model), json={**usual, **body}, headers=named, timeout=60
    )


@pytest.mark.parametrize("path", [WORKFLOW, IMAGES])
@pytest.mark.parametrize(("accept", "kind"), [("image/png", "PNG"), ("image/jpeg", "JPEG")])
def test_the_file_itself(native_server: ServerProcess, path: str, accept: str, kind: str) -> None:
    """Accept selects the format of the file; the seed and the outcome are headers."""
    answer = post(native_server, path, {"seed": 11}, accept=accept)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == accept
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    assert (answer.headers["Seed"], answer.headers["Finish-Reason"]) == ("11", "SUCCESS")
    image = opened(answer.content)
    assert (image.format, image.size) == (kind, (64, 64))


def test_json_of_a_workflow(native_server: ServerProcess) -> None:
    """The response is an object with the id, PNGs in base64, finishReason and the seed."""
    answer = post(
        native_server,
        WORKFLOW,
        {"seed": 7, "samples": 2, "sampler": "K_DPMPP_2M", "cfg_scale": 2, "safety_check": False},
        accept="application/json",
    )
    body = answer.json()
    assert {*body} == {"id", "base64", "finishReason", "seed"}
    assert body["id"] == answer.headers["X-Job-Id"]
    assert (body["finishReason"], body["seed"]) == ("SUCCESS", 7)
    assert [from_base64(text).format for text in body["base64"]] == ["PNG", "PNG"]
    assert body["base64"][0] != body["base64"][1]


def test_json_of_image_generation(fake_server: ServerProcess) -> None:
    """The response is a list with one object for each image and its seed."""
    items = post(fake_server, IMAGES, {"seed": 7, "samples": 2}, accept="application/json").json()
    assert [{*item} for item in items] == [{"base64", "finishReason", "seed"}] * 2
    assert [(item["finishReason"], item["seed"]) for item in items] == [
        ("SUCCESS", 7),
        ("SUCCESS", 8),
    ]
    assert all(from_base64(item["base64"]).size == (64, 64) for item in items)


def test_images_in_json_may_be_jpegs(fake_server: ServerProcess) -> None:
    """Json-Return-Image-Accept and Jpeg-Quality select JPEGs in JSON."""
    sizes = []
    for quality in ("5", "95"):
        answer = post(
            fake_server,
            WORKFLOW,
            {"seed": 7},
            accept="application/json",
            Json_Return_Image_Accept="image/jpeg",
            Jpeg_Quality=quality,
        )
        (text,) = answer.json()["base64"]
        assert from_base64(text).format == "JPEG"
        sizes.append(len(text))
    assert sizes[0] < sizes[1]


def test_jpeg_quality(fake_server: ServerProcess) -> None:
    """Jpeg-Quality sets the quality of a JPEG and is ignored for a PNG."""
    low, high = (
        post(fake_server, WORKFLOW, {"seed": 7}, accept="image/jpeg", Jpeg_Quality=quality)
        for quality in ("5", "95")
    )
    assert len(low.content) < len(high.content)
    png = post(fake_server, WORKFLOW, {}, accept="image/png", Jpeg_Quality="5")
    assert png.headers["Content-Type"] == "image/png"


@pytest.mark.parametrize("sampler", [None, "K_EULER", "K_DPMPP_2M"])
def test_samplers(native_server: ServerProcess, sampler: str | None) -> None:
    """Fireworks' names of samplers are accepted, and the file names the sampler."""
    answer = post(native_server, WORKFLOW, {"sampler": sampler})
    expected = {None: "Euler", "K_EULER": "Euler", "K_DPMPP_2M": "DPM++ 2M"}[sampler]
    assert f"Sampler: {expected}," in opened(answer.content).info["parameters"]


def test_seed_0_is_random(fake_server: ServerProcess) -> None:
    """Seed 0 chooses a random seed, and the returned seed generates the same image again."""
    first, second = (post(fake_server, WORKFLOW, {"seed": 0}) for _ in range(2))
    assert len({first.headers["Seed"], second.headers["Seed"], "0"}) == 3
    again = post(fake_server, WORKFLOW, {"seed": int(first.headers["Seed"])})
    assert again.content == first.content


@pytest.mark.parametrize(
    ("ratio", "size"),
    [("1:1", (128, 128)), ("16:9", (176, 96)), ("9:16", (96, 176)), ("21:9", (192, 80))],
)
def test_aspect_ratios(fake_server: ServerProcess, ratio: str, size: tuple[int, int]) -> None:
    """The image has the aspect ratio and about the model's default number of pixels."""
    answer = post(fake_server, WORKFLOW, {"aspect_ratio": ratio, "width": None, "height": None})
    assert opened(answer.content).size == size


def test_sizes_may_be_strings(fake_server: ServerProcess) -> None:
    """Strings are accepted as sizes, because @ai-sdk/fireworks sends them."""
    answer = post(fake_server, WORKFLOW, {"width": "128", "height": "64"})
    assert opened(answer.content).size == (128, 64)


@pytest.mark.parametrize(
    ("body", "status", "param", "reason"),
    [
        ({"safety_check": True}, 400, "safety_check", "safety_checker_unavailable"),
        ({"aspect_ratio": "wide"}, 400, "aspect_ratio", "conflicting_fields"),
        ({"sampler": "K_LMS"}, 400, "sampler", "invalid_value"),
        ({"samples": 0}, 400, "samples", "invalid_value"),
        ({"samples": 2}, 406, "n", "not_acceptable"),
        ({"steps": 0}, 400, "steps", "invalid_value"),
        ({"style_preset": "anime"}, 400, "style_preset", "not_supported"),
        ({"stream": True}, 400, "stream", "not_supported"),
        ({"width": 1000}, 400, "width", "invalid_value"),
        ({"sampel_steps": 1}, 400, "sampel_steps", "unknown_field"),
    ],
)
def test_refusals(
    fake_server: ServerProcess, body: dict[str, Any], status: int, param: str, reason: str
) -> None:
    """An invalid or unsupported field is rejected under the name that the client sent."""
    answer = post(fake_server, WORKFLOW, body, accept="image/png")
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["reason"]) == (status, param, reason)


def test_models(fireworks_server: ServerProcess) -> None:
    """The path names the model; an unknown name is 404, and the field model is ignored."""
    assert post(fireworks_server, WORKFLOW, {}, "flux-1-schnell-fp8").status_code == 200
    assert post(fireworks_server, WORKFLOW, {"model": "anything"}, "SSD-1B").status_code == 200
    answer = post(fireworks_server, WORKFLOW, {}, "flux-1-dev-fp8")
    assert (answer.status_code, answer.json()["error"]["reason"]) == (404, "model_not_found")


def test_keys(keyed_server: ServerProcess) -> None:
    """The routes require the key as a bearer token."""
    assert post(keyed_server, WORKFLOW, {}, Authorization="Bearer wrong").status_code == 401
    assert post(keyed_server, WORKFLOW, {}, Authorization=f"Bearer {KEY}").status_code == 200


SDK_CALLS = textwrap.dedent(
    """
    import base64, io, json, sys
    from fireworks.client.error import InvalidRequestError
    from fireworks.client.image import ImageInference

    def encoded(answer):
        file = io.BytesIO()
        answer.image.save(file, "PNG")
        text = base64.b64encode(file.getvalue()).decode()
        return [answer.image.format, answer.finish_reason, text]

    base = sys.argv[1] + "/inference/v1"
    client = ImageInference(model="SSD-1B", api_key="some-key", base_url=base)
    quick = {"prompt": "a cat", "height": 64, "width": 128, "steps": 3, "cfg_scale": 2}
    found = {
        "png": encoded(client.text_to_image(sampler="K_EULER", **quick)),
        "jpeg": encoded(client.text_to_image(output_image_format="JPG", seed=4, **quick)),
        "several": [encoded(a) for a in client.text_to_image(samples=2, seed=4, **quick)],
        "default": encoded(client.text_to_image("a cat", model="flux-1-schnell-fp8")),
    }
    for name, refused in {"check": {"safety_check": True}, "style": {"style_preset": "x"}}.items():
        try:
            client.text_to_image(**quick, **refused)
        except InvalidRequestError as error:
            found[name] = str(error)
    print(json.dumps(found))
    """
)


def test_fireworks_ai(fireworks_server: ServerProcess) -> None:
    """fireworks-ai from PyPI receives PNGs, a JPEG and several images; errors raise its
    exceptions."""
    found = run_python(SDK_CALLS, SDK, fireworks_server.url)
    assert found["png"][:2] == ["PNG", "SUCCESS"]
    assert found["jpeg"][:2] == ["JPEG", "SUCCESS"]
    assert [item[:2] for item in found["several"]] == [["PNG", "SUCCESS"]] * 2
    pictures = [found["png"], found["jpeg"], *found["several"]]
    assert {from_base64(item[2]).size for item in pictures} == {(128, 64)}
    assert from_base64(found["default"][2]).size == (256, 256)
    assert "safety_checker_unavailable" in found["check"]
    assert "style_preset" in found["style"]


def test_ai_sdk(fireworks_server: ServerProcess) -> None:
    """@ai-sdk/fireworks from npm, which sends Accept: */*, receives the image as the body."""
    url = fireworks_server.url
    (image,) = run_node("fireworks.mjs", url, "ratio")["images"]
    assert image["mediaType"] == "image/png"
    assert opened(base64.b64decode(image["base64"])).size == (336, 192)
    (image,) = run_node("fireworks.mjs", url, "size")["images"]
    assert from_base64(image["base64"]).size == (128, 64)
    assert "Steps: 3, Sampler: DPM++ 2M," in from_base64(image["base64"]).info["parameters"]
    assert len(run_node("fireworks.mjs", url, "several")["images"]) == 2
    assert run_node("fireworks.mjs", url, "unknown") == {"known": True, "status": 404}
