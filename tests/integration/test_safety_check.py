"""safety_check with a checker, with a broken one, and without one."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx2

from tests.support.servers import ServerProcess, running_server

CHECKERS = "tests.unit.imaging.test_safety"


def ask(server: ServerProcess, **options: Any) -> httpx2.Response:
    """Request a small image with a safety check."""
    body = {"prompt": "x", "size": "64x64", "sample_steps": 2, "safety_check": True, **options}
    return httpx2.post(f"{server.url}/v1/images/generations", json=body, timeout=30)


def test_without_a_checker_true_is_refused(fake_server: ServerProcess) -> None:
    """``safety_check: true`` is rejected without a checker; false is accepted."""
    error = ask(fake_server).json()["error"]
    assert (error["reason"], error["param"]) == ("safety_checker_unavailable", "safety_check")
    assert ask(fake_server, safety_check=False).status_code == 200


def test_a_checker_that_flags(tmp_path: Path) -> None:
    """A flagged image fails plain and streamed requests with a 400, if a check is requested."""
    with running_server(tmp_path, engine="fake", safety_checker=f"{CHECKERS}:Strict") as server:
        answer = ask(server)
        assert answer.status_code == 400
        assert answer.json()["error"]["reason"] == "content_policy_violation"
        frames = [line for line in ask(server, stream=True).text.splitlines() if line]
        assert frames[-1] == "data: [DONE]"
        error = json.loads(frames[-2].removeprefix("data: "))["error"]
        assert (error["code"], error["reason"]) == (400, "content_policy_violation")
        assert not any("b64_json" in frame for frame in frames)
        assert ask(server, safety_check=False).status_code == 200


def test_a_checker_that_lets_pass(tmp_path: Path) -> None:
    """Images that are not flagged are returned unchanged."""
    with running_server(tmp_path, engine="fake", safety_checker=f"{CHECKERS}:RedChecker") as server:
        answers = [ask(server, seed=seed) for seed in range(8)]
        checked = {answer.status_code for answer in answers}
        assert checked == {200, 400}
        for seed, answer in enumerate(answers):
            if answer.status_code == 200:
                plain = ask(server, seed=seed, safety_check=False)
                drawn, expected = (a.json()["data"][0]["b64_json"] for a in (answer, plain))
                assert drawn == expected


def test_fireworks_gets_a_blank_image(tmp_path: Path) -> None:
    """Fireworks' route returns a blank image, with CONTENT_FILTERED in the JSON and the header."""
    path = "/inference/v1/workflows/accounts/fireworks/models/default/text_to_image"
    with running_server(tmp_path, engine="fake", safety_checker=f"{CHECKERS}:Strict") as server:
        body = {"prompt": "x", "width": 64, "height": 64, "seed": 1, "safety_check": True}
        answer = httpx2.post(
            server.url + path, json=body, headers={"Accept": "application/json"}, timeout=30
        )
        assert answer.json()["finishReason"] == "CONTENT_FILTERED"
        blank = base64.b64decode(answer.json()["base64"][0])
        answer = httpx2.post(
            server.url + path, json=body, headers={"Accept": "image/png"}, timeout=30
        )
        assert answer.headers["Finish-Reason"] == "CONTENT_FILTERED"
        assert len(answer.content) == len(blank) < 1000


def test_a_checker_that_breaks(tmp_path: Path) -> None:
    """A checker that fails causes a 500 instead of an unchecked image."""
    with running_server(tmp_path, engine="fake", safety_checker=f"{CHECKERS}:Broken") as server:
        answer = ask(server)
        assert answer.status_code == 500
        assert answer.json()["error"]["reason"] == "internal_error"
        assert ask(server, safety_check=False).status_code == 200
