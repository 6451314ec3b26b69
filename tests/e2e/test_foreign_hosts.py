"""The server makes no request to another host."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.test_ocr import sign
from tests.support.network import look_up, watched
from tests.support.pictures import png
from tests.support.routes import document
from tests.support.servers import ServerProcess, running_server

#: Longer than the ten seconds within which onnxruntime's telemetry looked up its host.
_LOOKED_AT_SECONDS = 15.0
_JSON: dict[str, Any] = {"prompt": "a red circle", "size": "64x64", "sample_steps": 2, "steps": 2}


def test_no_route_knows_another_machine(tmp_path: Path) -> None:
    """Neither a route nor a library that it uses looks up another host or writes into HOME."""
    watch = watched(tmp_path)
    if watch is None:
        pytest.skip("there is no C compiler")
    look_up(watch, "sentinel.invalid")
    assert watch.foreign() == {"resolve sentinel.invalid"}
    watch.log.unlink()
    home = tmp_path / "home"
    home.mkdir()
    environment = {**watch.environment, "HOME": str(home)}
    with running_server(tmp_path, environment=environment) as server:
        began = time.monotonic()
        read = httpx2.post(
            f"{server.url}/v1/images/ocr", files={"image": sign("Hello 42")}, timeout=60
        )
        assert read.json() == "Hello 42"
        for path, operations in document()["paths"].items():
            for method in operations.keys() & {"get", "post"}:
                _call(server, method, re.sub(r"{\w+}", "embedded", path))
        time.sleep(max(0.0, began + _LOOKED_AT_SECONDS - time.monotonic()))
        assert watch.foreign() == set()
    assert [path for path in home.rglob("*") if path.is_file()] == []


def _call(server: ServerProcess, method: str, path: str) -> None:
    """Call a route; POST both JSON and a form, because a route accepts one and rejects the
    other."""
    url = server.url + path
    if method == "get":
        # Every response ends, also a job's server-sent events.
        httpx2.get(url, params={"prompt": "a red circle", "size": "64x64"}, timeout=60)
        return
    httpx2.post(url, json=_JSON, timeout=60)
    fields = {"prompt": "a red circle", "sample_steps": "2"}
    httpx2.post(url, data=fields, files={"image": png(64, 64)}, timeout=60)
