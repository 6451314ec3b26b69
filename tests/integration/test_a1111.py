"""AUTOMATIC1111's routes with two API keys and with respond-async, on the fake engine."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2

from tests.integration.test_jobs import KEY_A, KEY_B
from tests.integration.test_models import catalogue
from tests.support.jobs import ASYNC, wait_for
from tests.support.pictures import png
from tests.support.servers import ServerProcess, running_server, wait_until
from tests.support.upscalers import write_upscaler

#: Half a minute of work.
LONG: dict[str, Any] = {"prompt": "step=0.2", "width": 64, "height": 64, "steps": 150}


def call(
    server: ServerProcess, name: str, key: dict[str, str], body: dict[str, Any] | None = None
) -> Any:
    """Request a route and return its JSON; use POST if there is a body."""
    method = "GET" if body is None else "POST"
    url = f"{server.url}/sdapi/v1/{name}"
    answer = httpx2.request(method, url, headers=key, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_keys_know_nothing_of_each_other(tmp_path: Path) -> None:
    """A key's job and checkpoint are neither visible to another key nor changed by it."""
    models = catalogue(tmp_path, a="", b="")
    settings: dict[str, Any] = {"engine": "fake", "models": models, "api_keys": "key-a,key-b"}
    with running_server(tmp_path, **settings) as server, ThreadPoolExecutor(1) as pool:
        drawing = pool.submit(call, server, "txt2img", KEY_A, LONG)
        try:
            wait_until(lambda: call(server, "progress", KEY_A)["progress"] > 0, 20, "nothing runs")
            others = call(server, "progress", KEY_B)
            assert (others["state"]["job"], others["current_image"]) == ("", None)
            call(server, "interrupt", KEY_B, {})
            call(server, "skip", KEY_B, {})
            state = call(server, "progress", KEY_A)["state"]
            assert state["job"]
            assert not state["interrupted"]
            assert not state["skipped"]
        finally:
            call(server, "interrupt", KEY_A, {})
        assert drawing.result(20)["images"] == []
        assert call(server, "progress", KEY_A)["state"]["interrupted"]
        assert not call(server, "progress", KEY_B)["state"]["interrupted"]
        call(server, "options", KEY_B, {"sd_model_checkpoint": "b"})
        chosen = [call(server, "options", key)["sd_model_checkpoint"] for key in (KEY_A, KEY_B)]
        assert chosen == ["a", "b"]
        call(server, "options", KEY_A, {"sd_model_checkpoint": "sub/B.safetensors [6ce0161689]"})
        assert call(server, "options", KEY_A)["sd_model_checkpoint"] == "b"
        override = {"sd_model_checkpoint": "a.ckpt [6ce0161689]"}
        body = {"prompt": "", "steps": 1, "override_settings": override}
        info = json.loads(call(server, "txt2img", KEY_B, body)["info"])
        assert info["sd_model_name"] == "a"


def test_enlarging_without_waiting(tmp_path: Path) -> None:
    """An upscale with Prefer: respond-async returns a 202 with the job."""
    upscalers = tmp_path / "upscalers"
    upscalers.mkdir()
    write_upscaler(upscalers / "twice.safetensors", 2)
    body = {"upscaler_1": "twice", "image": base64.b64encode(png(64, 64)).decode()}
    with running_server(tmp_path, engine="fake", upscaler_dir=upscalers) as server:
        url = f"{server.url}/sdapi/v1/extra-single-image"
        answer = httpx2.post(url, json=body, headers=ASYNC, timeout=20)
        assert answer.status_code == 202, answer.text
        assert answer.headers["Preference-Applied"] == "respond-async"
        done = wait_for(server, answer.json()["id"], "completed", "failed")
        assert done["status"] == "completed"


def test_interrupted_for_every_client(tmp_path: Path) -> None:
    """A second client of an interrupted job, and one that comes later, get its finished images."""
    headers = {"Idempotency-Key": "one"}
    body = {**LONG, "steps": 10, "n_iter": 3}
    with running_server(tmp_path, engine="fake") as server, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(call, server, "txt2img", headers, body) for _ in range(2)]
        wait_until(lambda: call(server, "progress", {})["progress"] > 0.4, 20, "nothing runs")
        call(server, "interrupt", {}, {})
        answers = [one.result(20) for one in waiting]
        assert call(server, "progress", {})["state"]["interrupted"]
        answers.append(call(server, "txt2img", headers, body))
        assert [len(answer["images"]) for answer in answers] == [1, 1, 1]
