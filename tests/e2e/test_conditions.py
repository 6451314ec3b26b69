"""A prompt is encoded once and reused only for an equal prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.servers import ServerProcess, running_server

BODY: dict[str, Any] = {"prompt": "a red circle", "size": "64x64", "sample_steps": 4, "seed": 7}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A separate server with the built-in model, so that counts begin at 0."""
    with running_server(tmp_path_factory.mktemp("conditions")) as running:
        yield running


def counts(server: ServerProcess) -> tuple[float, float]:
    """Return how many prompts were encoded and how many were reused."""
    name = "sdstream_conditions_total"
    return server.metric(name, source="computed"), server.metric(name, source="reused")


def drawn(server: ServerProcess, **changes: Any) -> list[str]:
    """Return the images of a request, in base64."""
    answer = server.post({**BODY, **changes})
    assert answer.status_code == 200, answer.text
    return [item["b64_json"] for item in answer.json()["data"]]


def test_several_images_of_a_prompt_encode_it_once(server: ServerProcess) -> None:
    """Later images reuse the encoded prompt and the empty negative prompt of the first image."""
    first = drawn(server, n=4)
    assert counts(server) == (2, 6)
    assert drawn(server, seed=9) == first[2:3]
    assert counts(server) == (2, 8)


def test_the_images_are_those_of_a_fresh_encoding(server: ServerProcess, tmp_path: Any) -> None:
    """An image from a reused encoding is identical to one from a new encoding."""
    reused = drawn(server, n=2)[1]
    with running_server(tmp_path) as fresh:
        assert drawn(fresh, seed=8) == [reused]
        assert counts(fresh) == (2, 0)


@pytest.mark.parametrize(
    ("change", "computed"),
    [
        ({"prompt": "a red circle "}, 1),
        ({"prompt": "a blue circle"}, 1),
        ({"negative_prompt": "a tree"}, 1),
        ({"size": "96x64"}, 2),
        ({"cfg_scale": 1.0}, 0),
    ],
    ids=str,
)
def test_another_condition_is_computed(
    server: ServerProcess, change: dict[str, Any], computed: int
) -> None:
    """A prompt is encoded again if the text or the size has changed, and reused otherwise."""
    drawn(server)
    before, _ = counts(server)
    drawn(server, **change)
    assert counts(server)[0] - before == computed
