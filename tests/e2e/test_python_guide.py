"""Every Python block of the guide is run as it stands there, on the real runtime."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.support.servers import ServerProcess

GUIDE = (Path(__file__).parents[2] / "docs/guide/python.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


def run(code: str, folder: Path) -> str:
    """Run a block in a folder of its own; returns what it printed."""
    environment = {**os.environ, "SDSTREAM_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    return done.stdout.decode()


def size(path: Path) -> tuple[int, int]:
    """Width and height of an image file that opens."""
    with Image.open(path) as image:
        image.load()
        return image.size


def test_the_blocks_are_known() -> None:
    """A block added to the guide needs a test here."""
    assert len(BLOCKS) == 4


def test_runner(tmp_path: Path) -> None:
    """Progress of two images, their files, and an edit of one of them."""
    lines = run(BLOCKS[0], tmp_path).splitlines()
    for index in (0, 1):
        steps = [line for line in lines if line.startswith(f"image {index}: running, step")]
        assert [line[-3:] for line in steps if line[-3] != "0"][:4] == ["1/4", "2/4", "3/4", "4/4"]
    assert any(line.endswith(" 7 euler") for line in lines)
    for name in ("circle-1.png", "circle-2.png", "blue.png"):
        assert size(tmp_path / name) == (64, 64)


def test_async_runner(tmp_path: Path) -> None:
    """Two requests at once, each with its file."""
    run(BLOCKS[1], tmp_path)
    assert size(tmp_path / "a-red-circle.png") == (64, 64)
    assert size(tmp_path / "a-green-triangle.png") == (64, 64)


def test_client(native_server: ServerProcess, tmp_path: Path) -> None:
    """A stream and a job of a running server."""
    output = run(BLOCKS[2].replace("http://localhost:8000", native_server.url), tmp_path)
    assert "running 4 4" in output
    assert "completed 100.0" in output
    assert size(tmp_path / "streamed.png") == size(tmp_path / "job.png") == (64, 64)


def test_coming_from_mistral_rs(tmp_path: Path) -> None:
    """It prints the path of the file."""
    assert run(BLOCKS[3], tmp_path).strip().endswith(".png")
