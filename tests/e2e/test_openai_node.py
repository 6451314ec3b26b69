"""openai from npm, unmodified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import run_node
from tests.support.pictures import changed_box, from_base64
from tests.support.servers import ServerProcess

MASKED = (16, 16, 48, 48)


def openai(server: ServerProcess, pictures: Path, check: str) -> Any:
    """Run a check of node/openai.mjs; return its result."""
    return run_node("openai.mjs", server.url, str(pictures), check)


def test_generate(native_server: ServerProcess, pictures: Path) -> None:
    """Two images are returned with their seeds and OpenAI's usage."""
    answer = openai(native_server, pictures, "generate")
    assert [item["seed"] for item in answer["data"]] == [5, 6]
    assert [from_base64(item["b64_json"]).size for item in answer["data"]] == [(64, 64)] * 2
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0


@pytest.mark.parametrize("check", ["edit_one", "edit_list", "edit_buffer", "variation"])
def test_draw_over_an_image(native_server: ServerProcess, pictures: Path, check: str) -> None:
    """A file, a list of one, bytes without a type, and an image for a variation are edited."""
    answer = openai(native_server, pictures, check)
    drawn = from_base64(answer["data"][0]["b64_json"])
    assert drawn.size == (64, 64)
    assert changed_box(drawn, pictures) is not None
    assert answer["parameters"]["strength"] == (0.5 if check == "edit_one" else 0.75)


def test_several_images_where_the_model_takes_one(
    native_server: ServerProcess, pictures: Path
) -> None:
    """Two images for a model that accepts one raise BadRequestError."""
    error = openai(native_server, pictures, "edit_several")
    assert (error["name"], error["status"], error["param"]) == ("BadRequestError", 400, "image")


def test_a_mask_keeps_the_rest(native_server: ServerProcess, pictures: Path) -> None:
    """Pixels outside of the transparent part of the mask are unchanged."""
    answer = openai(native_server, pictures, "edit_mask")
    box = changed_box(from_base64(answer["data"][0]["b64_json"]), pictures)
    assert box is not None
    left, top, right, bottom = box
    assert left >= MASKED[0]
    assert top >= MASKED[1]
    assert right <= MASKED[2]
    assert bottom <= MASKED[3]


def test_stream_loops(native_server: ServerProcess, pictures: Path) -> None:
    """The stream contains the requested number of partial images, numbered and in the generated
    size, and then the finished image with its usage."""
    for wanted, events in enumerate(openai(native_server, pictures, "stream")):
        *partial, last = events
        assert [event["type"] for event in partial] == ["image_generation.partial_image"] * wanted
        assert [event["partial_image_index"] for event in partial] == [*range(wanted)]
        assert last["type"] == "image_generation.completed"
        assert last["usage"]["total_tokens"] > 0
        assert all(from_base64(event["picture"]).size == (128, 128) for event in partial)
        assert from_base64(last["picture"]).size == (64, 64)


def test_stream_of_an_edit(native_server: ServerProcess, pictures: Path) -> None:
    """An edit streams the events image_edit.partial_image and image_edit.completed."""
    *partial, last = openai(native_server, pictures, "stream_edit")
    assert [event["type"] for event in partial] == ["image_edit.partial_image"] * 2
    assert last["type"] == "image_edit.completed"


def test_stream_for_both_kinds_of_clients(native_server: ServerProcess, pictures: Path) -> None:
    """The stream contains progress; the last frame is both llama-box's last item and OpenAI's
    completed event."""
    *progress, last = openai(native_server, pictures, "stream_both")
    assert {event["type"] for event in progress} == {"image_generation.progress"}
    assert last["type"] == "image_generation.completed"
    assert last["data"][0]["b64_json"] == last["picture"]


def test_error_classes(fake_server: ServerProcess, pictures: Path) -> None:
    """Invalid values, images and models raise errors with status, param and request id, also for a
    stream."""
    errors = openai(fake_server, pictures, "errors")
    found = {name: (e["name"], e["status"], e["param"]) for name, e in errors.items()}
    assert found == {
        "value": ("BadRequestError", 400, "size"),
        "image": ("BadRequestError", 400, "image"),
        "model": ("NotFoundError", 404, "model"),
        "stream": ("BadRequestError", 400, "n"),
    }
    assert all(error["requestID"] for error in errors.values())
    assert "Invalid image" in errors["image"]["message"]


def test_a_failure_in_the_stream_is_raised(fake_server: ServerProcess, pictures: Path) -> None:
    """A failed job raises an error in the loop over its stream."""
    error = openai(fake_server, pictures, "crash")
    assert (error["name"], error["type"]) == ("APIError", "server_error")


def test_a_failed_generation_is_an_error(fake_server: ServerProcess, pictures: Path) -> None:
    """Without a stream, a failed job raises InternalServerError."""
    error = openai(fake_server, pictures, "plain_crash")
    assert (error["name"], error["status"]) == ("InternalServerError", 500)


def test_a_wrong_key(keyed_server: ServerProcess, pictures: Path) -> None:
    """A wrong key raises AuthenticationError."""
    error = openai(keyed_server, pictures, "key")
    assert (error["name"], error["status"]) == ("AuthenticationError", 401)
