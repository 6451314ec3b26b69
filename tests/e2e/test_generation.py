"""Generate with the real runtime: options, seeds, sizes, prompts, files and cancellation."""

from __future__ import annotations

import base64
import io
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdstream.core.samplers import SAMPLERS, SCHEDULES
from tests.support.pictures import extremes
from tests.support.servers import Call, ServerProcess, running_server, wait_until

SMALL: dict[str, Any] = {
    "prompt": "a red circle",
    "size": "64x64",
    "sample_steps": 3,
    "seed": 1,
    "response_format": "b64_json",
    "cfg_scale": 1,
}

#: The samplers and schedules of GPUStack's page.
TEN = (
    "euler_a", "euler", "heun", "dpm2", "dpm++2s_a", "dpm++2m", "dpm++2mv2", "ipndm", "ipndm_v",
    "lcm",
)  # fmt: skip
SIX = ("default", "discrete", "karras", "exponential", "ays", "gits")

COMBINATIONS = [(sampler, schedule) for sampler in TEN for schedule in SIX]
OTHERS = [
    *((sampler, "karras") for sampler in SAMPLERS if sampler not in TEN),
    *(("dpm2", schedule) for schedule in SCHEDULES if schedule not in SIX),
]

Pixels = bytes
Gallery = dict[tuple[str, str], Pixels]


def drawn(server: ServerProcess, **options: Any) -> list[Image.Image]:
    """Return the images of one request."""
    answer = server.post({**SMALL, **options})
    assert answer.status_code == 200, answer.text
    files = [base64.b64decode(item["b64_json"]) for item in answer.json()["data"]]
    return [Image.open(io.BytesIO(file)) for file in files]


def pixels(server: ServerProcess, **options: Any) -> Pixels:
    """Return the pixels of a request for one image."""
    (picture,) = drawn(server, **options)
    return picture.tobytes()


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    """Images of the tests so far, by sampler and schedule."""
    return {}


# --- samplers and schedules ---------------------------------------------------------------------


@pytest.mark.parametrize(("sampler", "schedule"), [*COMBINATIONS, *OTHERS])
def test_every_sampler_and_schedule_draws_or_says_why_not(
    native_server: ServerProcess, gallery: Gallery, sampler: str, schedule: str
) -> None:
    """The image is not blank, or the combination is rejected with a reason."""
    options = {"sampler": sampler, "schedule": schedule, "sample_steps": 4}
    answer = native_server.post({**SMALL, **options})
    if schedule in ("ays", "gits"):
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["param"], error["reason"]) == ("schedule", "unsafe_combination")
        return
    assert answer.status_code == 200
    chosen = answer.json()["parameters"]
    assert (chosen["sampler"], chosen["schedule"]) == (sampler, schedule)
    picture = Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))
    assert (picture.size, picture.mode) == ((64, 64), "RGB")
    # A blank image has a little noise; the requested object has more contrast.
    assert any(high - low > 60 for low, high in extremes(picture))
    gallery[sampler, schedule] = picture.tobytes()


def test_samplers_and_schedules_differ(gallery: Gallery) -> None:
    """Images of different combinations differ, except that default and discrete are the same
    schedule for every sampler but lcm, and that both DPM++ 2M with exponential agree up to
    rounding."""
    if len(gallery) < len(TEN):
        pytest.skip("needs the pictures of the tests before it")
    groups: dict[Pixels, set[tuple[str, str]]] = defaultdict(set)
    for name in COMBINATIONS:
        if name in gallery:
            groups[gallery[name]].add(name)
    close = frozenset({("dpm++2m", "exponential"), ("dpm++2mv2", "exponential")})
    one, other = (np.frombuffer(gallery[name], np.uint8).astype(int) for name in close)
    assert abs(one - other).mean() < 1
    same = {frozenset(group) for group in groups.values() if len(group) > 1} - {close}
    expected = {
        frozenset({(sampler, "default"), (sampler, "discrete")})
        for sampler in TEN
        if sampler != "lcm"
    }
    assert same == expected


# --- what changes a picture ---------------------------------------------------------------------


def test_the_same_request_gives_the_same_file(native_server: ServerProcess) -> None:
    """The same request gives the same file, whatever was generated in between."""
    first, second = (
        native_server.post({**SMALL, "cfg_scale": 3}).json()["data"]
        for _ in (drawn(native_server, seed=9), drawn(native_server, seed=10))
    )
    assert first == second


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a blue square"},
        {"seed": 2},
        {"sample_steps": 4},
        {"cfg_scale": 5},
        {"negative_prompt": "blue"},
        {"prompt": "a (red:1.8) circle"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_options_change_the_picture(native_server: ServerProcess, change: dict[str, Any]) -> None:
    """Each of these options changes the image; a negative prompt does so at a cfg_scale above 1."""
    base = {"cfg_scale": 3}
    assert pixels(native_server, **base) != pixels(native_server, **{**base, **change})


def test_a_negative_prompt_at_cfg_1_is_warned_of(native_server: ServerProcess) -> None:
    """A negative prompt at cfg_scale 1 has no effect, and the response contains a warning."""
    answer = native_server.post({**SMALL, "negative_prompt": "blue"}).json()
    assert answer["warnings"] == ["negative_prompt has no effect at cfg_scale 1."]
    assert pixels(native_server, negative_prompt="blue") == pixels(native_server)


def test_words_that_the_built_in_model_does_not_know(native_server: ServerProcess) -> None:
    """A warning lists the unknown words, and the image is generated from the other words."""
    answer = native_server.post({**SMALL, "prompt": "an astronaut on a horse, a red circle"}).json()
    (warning,) = answer["warnings"]
    assert warning.startswith("The model 'embedded' does not know 'astronaut', 'horse'. It knows:")
    assert len(answer["data"]) == 1
    assert "warnings" not in native_server.post({**SMALL, "prompt": "a red circle"}).json()


def test_n_pictures_are_n_single_ones(native_server: ServerProcess) -> None:
    """Image i of n is identical to a single image with seed + i."""
    together = [picture.tobytes() for picture in drawn(native_server, n=3, seed=50)]
    assert together == [pixels(native_server, seed=50 + index) for index in range(3)]
    assert len({*together}) == 3


@pytest.mark.parametrize("seed", [0, 2**31, 2**53, 2**63 - 1 - 10])
def test_large_seeds_are_exact(native_server: ServerProcess, seed: int) -> None:
    """The response contains exactly the seed that was sent."""
    answer = native_server.post({**SMALL, "seed": seed, "sample_steps": 1}).json()
    assert answer["data"][0]["seed"] == answer["parameters"]["seed"] == seed


def test_random_seeds_differ_and_can_be_repeated(native_server: ServerProcess) -> None:
    """Without a seed, or with -1, the seed is random, and the returned seed repeats the image."""
    answers = [native_server.post({**SMALL, "seed": seed}).json() for seed in (None, -1)]
    seeds = [answer["data"][0]["seed"] for answer in answers]
    assert seeds[0] != seeds[1]
    again = native_server.post({**SMALL, "seed": seeds[0]}).json()
    assert again["data"] == answers[0]["data"]


# --- sizes, steps, guidance ---------------------------------------------------------------------


@pytest.mark.parametrize("size", ["64x64", "192x128", "80x112", "333x209", "512x512", "512x256"])
def test_sizes_come_back_exact(native_server: ServerProcess, size: str) -> None:
    """The image has exactly the requested size."""
    (picture,) = drawn(native_server, size=size, sample_steps=1)
    assert f"{picture.width}x{picture.height}" == size


@pytest.mark.parametrize("size", ["8x64", "1600x900", "1536x1536", "528x64"])
def test_other_sizes_are_refused(native_server: ServerProcess, size: str) -> None:
    """A size that is too small, too large or too far from the model's aspect ratios is rejected."""
    answer = native_server.post({**SMALL, "size": size})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "size"


@pytest.mark.parametrize("cfg_scale", [0, 1, 30])
def test_the_bounds_of_guidance_draw(native_server: ServerProcess, cfg_scale: int) -> None:
    """The image is not black at the lowest and the highest cfg_scale."""
    (picture,) = drawn(native_server, cfg_scale=cfg_scale)
    assert any(high for _, high in extremes(picture))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_step_draws(native_server: ServerProcess, sampler: str) -> None:
    """Every sampler generates an image in one step."""
    (picture,) = drawn(native_server, sampler=sampler, sample_steps=1)
    assert any(high for _, high in extremes(picture))


@pytest.mark.parametrize("schedule", ["karras", "exponential"])
def test_what_one_step_would_crash_or_blacken_is_refused(
    native_server: ServerProcess, schedule: str
) -> None:
    """One step is rejected for these schedules with a message that they need two."""
    answer = native_server.post({**SMALL, "schedule": schedule, "sample_steps": 1})
    assert answer.status_code == 400
    assert "2 steps" in answer.json()["error"]["message"]


# --- prompts ------------------------------------------------------------------------------------

PROMPTS = {
    "empty": "",
    "longest": "a " + "=" * 3_990 + " circle",
    "words": "a red circle on a blue table " * 70,
    "chinese": "蓝色背景上的红色圆圈",
    "emoji": "👩‍🚀🎨",
    "combining": "é̂̃ ą̊ \u202eright to left\u202c",
    "brackets": "((((a)) [[b] (c:1.5) (d:) (:2) :1) (e:nan) (f:1e9)",
    "open brackets": "(" * 500,
    "escapes": r"\(a\) \\ %s %n {} <b>&amp;",
    "angles": "<lyc:x:1> <a:b> <lora> a",
    "lines": "a\nb\r\nc\td\x01\x7f",
    "break": "a BREAK b AND c",
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_any_prompt_draws(native_server: ServerProcess, prompt: str) -> None:
    """Any text up to the longest prompt generates an image, and the worker keeps running."""
    worker = native_server.worker_pid()
    answer = native_server.post({**SMALL, "prompt": prompt, "sample_steps": 1})
    assert answer.status_code == 200
    # Forms end lines with CRLF, JSON with LF; the server converts both to the same prompt.
    assert answer.json()["parameters"]["prompt"] == prompt.replace("\r\n", "\n")
    assert native_server.worker_pid() == worker


def test_any_negative_prompt_draws(native_server: ServerProcess) -> None:
    """The same texts are accepted as a negative prompt."""
    worker = native_server.worker_pid()
    for prompt in PROMPTS.values():
        pixels(native_server, negative_prompt=prompt, cfg_scale=2, sample_steps=1)
    assert native_server.worker_pid() == worker


@pytest.mark.parametrize("words", ["a red circle on a blue table ", ". "])
def test_the_longest_prompt_takes_no_more_than_memory(tmp_path: Path, words: str) -> None:
    """The limit on a prompt's length bounds the language model's memory, which grows
    quadratically."""
    prompt = (words * 4000)[:4000]
    with running_server(tmp_path) as server:
        answer = server.post({**SMALL, "prompt": prompt, "sample_steps": 1})
        assert answer.status_code == 200
        status = Path(f"/proc/{server.worker_pid()}/status").read_text().splitlines()
        (peak,) = (int(line.split()[1]) for line in status if line.startswith("VmHWM"))
        assert peak < 3 * 2**20


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_longer_prompts_are_refused(native_server: ServerProcess, name: str) -> None:
    """A longer prompt is rejected; the message contains the longest length that the model
    accepts."""
    answer = native_server.post({**SMALL, "prompt": "a", name: "a" * 4001})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == name
    assert "accepts at most 4000" in answer.json()["error"]["message"]


# --- files --------------------------------------------------------------------------------------


def test_parameters_lie_in_a_png(native_server: ServerProcess) -> None:
    """The PNG text chunk `parameters` has AUTOMATIC1111's format."""
    (picture,) = drawn(native_server, negative_prompt="blue", cfg_scale=2.5, n=1)
    lines = str(picture.info["parameters"]).split("\n")
    assert lines[:2] == ["a red circle", "Negative prompt: blue"]
    facts = dict(fact.split(": ") for fact in lines[2].split(", "))
    assert (facts["Steps"], facts["CFG scale"], facts["Seed"]) == ("3", "2.5", "1")
    assert (facts["Size"], facts["Model"]) == ("64x64", "embedded")


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_parameters_lie_in_the_exif(native_server: ServerProcess, output_format: str) -> None:
    """JPEG and WebP contain the same text as the Exif UserComment, in Unicode."""
    (picture,) = drawn(native_server, prompt="蓝色 circle", output_format=output_format)
    assert picture.format == output_format.upper()
    comment = picture.getexif().get_ifd(0x8769)[0x9286]
    assert comment.startswith(b"UNICODE\0")
    assert comment[8:].decode("utf-16-be").startswith("蓝色 circle\nSteps: 3, ")


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_compression_makes_files_smaller(native_server: ServerProcess, output_format: str) -> None:
    """output_compression is the quality in percent."""
    sizes = [
        len(
            native_server.post(
                {**SMALL, "output_format": output_format, "output_compression": percent}
            ).json()["data"][0]["b64_json"]
        )
        for percent in (10, 95)
    ]
    assert sizes[0] < sizes[1]


def test_the_formats_show_the_same_picture(native_server: ServerProcess) -> None:
    """A JPEG differs from the PNG by a few shades only."""
    (png,), (jpeg,) = drawn(native_server), drawn(native_server, output_format="jpeg")
    apart = [abs(a - b) for a, b in zip(png.tobytes(), jpeg.tobytes(), strict=True)]
    assert sum(apart) / len(apart) < 16  # a JPEG halves the resolution of colour


# --- streams and cancels ------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["euler", "heun", "res_2s"])
def test_a_stream_shows_every_step(native_server: ServerProcess, sampler: str) -> None:
    """A stream has one frame for each step, also for samplers that call the model twice per step,
    and ends with the image of the plain response."""
    body = {**SMALL, "sampler": sampler, "sample_steps": 5}
    events = list(Call(native_server, {**body, "stream": True}).events())
    items = [event["data"][0] for event in events]
    steps = [item["progressed_steps"] for item in items if not item["finish_reason"]]
    assert [step for step in steps if step] == [1, 2, 3, 4, 5]
    assert items[-1]["b64_json"] == native_server.post(body).json()["data"][0]["b64_json"]


def test_previews_show_the_picture_coming(native_server: ServerProcess) -> None:
    """Each step's frame contains a preview, and previews do not change the final image."""
    body = {**SMALL, "size": "192x128", "sample_steps": 4}
    options = {"stream": True, "stream_options": {"preview": True}}
    items = [e["data"][0] for e in Call(native_server, {**body, **options}).events()]
    previews = [item for item in items if item.get("preview")]
    assert [item["progressed_steps"] for item in previews] == [1, 2, 3, 4]
    sizes = [Image.open(io.BytesIO(base64.b64decode(p["b64_json"]))).size for p in previews]
    assert {*sizes} == {(192, 128)}
    assert items[-1]["b64_json"] == native_server.post(body).json()["data"][0]["b64_json"]


@pytest.mark.parametrize("step", [0, 1, 5])
def test_a_cancel_leaves_the_model_loaded(native_server: ServerProcess, step: int) -> None:
    """A client that disconnects before, between or during the steps frees the worker soon, and the
    next image is unchanged."""
    before = native_server.post(SMALL).json()["data"]
    worker = native_server.worker_pid()
    cancelled = native_server.metric("sdstream_jobs_total", outcome="cancelled")
    call = Call(
        native_server, {**SMALL, "size": "256x256", "sample_steps": 150, "n": 4, "stream": True}
    )
    call.wait_for("running")
    if step:
        call.wait_for_step(step)
    call.leave()
    left = time.monotonic()
    after = native_server.post(SMALL).json()["data"]
    assert time.monotonic() - left < 20
    assert after == before
    assert native_server.worker_pid() == worker
    assert native_server.metric("sdstream_jobs_total", outcome="cancelled") == cancelled + 1


def test_a_cancel_while_decoding(native_server: ServerProcess) -> None:
    """A cancel during decoding frees the worker soon, and the worker keeps its model."""
    worker = native_server.worker_pid()
    call = Call(native_server, {**SMALL, "size": "192x128", "sample_steps": 1, "stream": True})
    call.wait_for_step(1)
    call.leave()
    wait_until(lambda: native_server.metric("sdstream_running_jobs") == 0, 5, "it goes on")
    assert native_server.worker_pid() == worker
    assert pixels(native_server) == pixels(native_server)
