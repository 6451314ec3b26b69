"""HAProxy in front of two servers, with the configuration of docs/deploy/two-fronts.md."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from tests.support.programs import needed
from tests.support.servers import ServerProcess, free_port, wait_until

_GUIDE = Path(__file__).parents[2] / "docs/deploy/two-fronts.md"


@contextmanager
def haproxy(folder: Path, first: ServerProcess, second: ServerProcess) -> Iterator[str]:
    """Run HAProxy with the guide's configuration, in which only the addresses are replaced.

    Args:
        folder: Folder for HAProxy's files.
        first: The server that is active.
        second: The server on standby.

    Yields:
        HAProxy's base address.
    """
    program = needed("haproxy", "haproxy", "usr/sbin")
    (text,) = re.findall(r"```haproxy\n(.*?)```", _GUIDE.read_text(), re.DOTALL)
    port = free_port()
    for written, used in (
        ("bind :80", f"bind 127.0.0.1:{port}"),
        ("192.0.2.11:8000", first.url.removeprefix("http://")),
        ("192.0.2.12:8000", second.url.removeprefix("http://")),
    ):
        assert written in text
        text = text.replace(written, used)
    path = folder / "haproxy.cfg"
    path.write_text(text)
    log = folder / "haproxy.log"
    with log.open("wb") as output:
        process = subprocess.Popen([program, "-f", path, "-db"], stdout=output, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}"
        # Until its first health checks, HAProxy assumes that both servers are ready.
        wait_until(lambda: "fronts/b is DOWN" in log.read_text(), 20, "no look at the servers")
        wait_until(lambda: _is_ready(url), 20, "no server is ready")
        yield url
    finally:
        process.terminate()
        process.wait(20)


def _is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz", timeout=20).status_code == 200
    except httpx2.HTTPError:
        return False
