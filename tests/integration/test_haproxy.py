"""HAProxy in front of two fronts, with the configuration in docs/deploy/cluster.md."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.support.servers import GENERATIONS, ServerProcess, free_port, running_server, wait_until

_GUIDE = Path(__file__).parents[2] / "docs/deploy/cluster.md"
QUICK = {"prompt": "a", "size": "64x64", "sample_steps": 2}


@contextmanager
def haproxy(folder: Path, first: ServerProcess, second: ServerProcess) -> Iterator[str]:
    """Run HAProxy with the guide's configuration on other ports; yield the base address."""
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if program is None:
        why = "haproxy is not installed (Debian: apt install haproxy)"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    (block,) = re.findall(r"```haproxy\n(.*?)```", _GUIDE.read_text(), re.DOTALL)
    url = f"127.0.0.1:{free_port()}"
    for old, new in (
        ("bind :80", f"bind {url}"),
        ("192.168.1.10:8000", "{}:{}".format(*first.address)),
        ("192.168.1.11:8000", "{}:{}".format(*second.address)),
    ):
        assert block.count(old) == 1
        block = block.replace(old, new)
    (folder / "haproxy.cfg").write_text(block)
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "-f", str(folder / "haproxy.cfg"), "-db"], stdout=log, stderr=log
        )
    try:
        yield f"http://{url}"
    finally:
        process.terminate()
        process.wait(20)


def test_requests_go_to_the_front_that_is_ready(tmp_path: Path) -> None:
    """HAProxy sends requests only to the ready front, and to the second when the first stops."""
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    port = free_port()
    with running_server(folders[0], engine="fake") as first:
        absent = ServerProcess(first.process, f"http://127.0.0.1:{port}", first.log)
        with haproxy(tmp_path, first, absent) as url:
            wait_until(lambda: _is_ready(url), 10, (tmp_path / "haproxy.log").read_text())
            for _ in range(4):
                assert httpx2.post(url + GENERATIONS, json=QUICK, timeout=60).status_code == 200
            with running_server(folders[1], engine="fake", port=port) as second:
                first.stop()
                wait_until(lambda: _is_ready(url), 10, "the second front is not used")
                assert httpx2.post(url + GENERATIONS, json=QUICK, timeout=60).status_code == 200
                assert second.metric("sdstream_accepted_jobs_total") >= 1


def _is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False
