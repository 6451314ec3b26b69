"""nginx in front of a server, with the blocks of docs/guide/proxies.md."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from tests.support.programs import needed
from tests.support.servers import ServerProcess, free_port, wait_until

_GUIDE = Path(__file__).parents[2] / "docs/guide/proxies.md"

#: The blocks of the guide: a separate host name, a sub-path, nginx's defaults.
BLOCKS = re.findall(r"```nginx\n(.*?)```", _GUIDE.read_text(), re.DOTALL)

_AROUND = """
daemon off;
{user}
pid nginx.pid;
error_log stderr warn;
events {{ }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path other;
    uwsgi_temp_path other;
    scgi_temp_path other;
    {block}
}}
"""


@contextmanager
def nginx(folder: Path, block: str, server: ServerProcess) -> Iterator[str]:
    """Run nginx with a block of the guide, in which only the two ports are replaced.

    Args:
        folder: Folder for nginx's files.
        block: A ``server`` block.
        server: The server behind nginx.

    Yields:
        nginx's base address.
    """
    program = needed("nginx", "nginx", "usr/sbin")
    port = free_port()
    assert block.count("listen 80;") == block.count("http://127.0.0.1:8000") == 1
    block = block.replace("listen 80;", f"listen 127.0.0.1:{port};")
    block = block.replace("http://127.0.0.1:8000", server.url)
    user = "user root;" if os.geteuid() == 0 else ""  # nginx's workers must access the folder
    (folder / "nginx.conf").write_text(_AROUND.format(user=user, block=block))
    command = [str(program), "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"]
    with (folder / "nginx.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: _answers(port), 20, (folder / "nginx.log").read_text())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def _answers(port: int) -> bool:
    try:
        httpx2.get(f"http://127.0.0.1:{port}/", timeout=5)
    except httpx2.HTTPError:
        return False
    return True
