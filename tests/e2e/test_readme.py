"""Every command of the README is run as it stands there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.servers import ServerProcess

README = (Path(__file__).parents[2] / "README.md").read_text()
SHELL = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(code: str, server: ServerProcess, folder: Path, *command: str) -> str:
    """Run a block of the README in a folder, on this server; returns what it printed."""
    for tool in ("curl", "jq"):
        if re.search(rf"\b{tool}\b", code) and shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "SDSTREAM_CACHE_DIR": str(folder / "cache"),
    }
    done = subprocess.run(
        [*command, code.replace("http://localhost:8000", server.url)],
        cwd=folder,
        env=environment,
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(errors="replace")


def picture(path: Path) -> tuple[str | None, tuple[int, int]]:
    """Format and size of an image file that opens."""
    with Image.open(path) as image:
        image.load()
        return image.format, image.size


def test_the_blocks_are_known() -> None:
    """A block added to the README needs a test here."""
    assert (len(SHELL), len(PYTHON)) == (10, 3)


def test_watch_a_picture_being_drawn(native_server: ServerProcess, tmp_path: Path) -> None:
    """Frames arrive step by step and end with the image, usage and [DONE]."""
    output = run(SHELL[0], native_server, tmp_path, "bash", "-euo", "pipefail", "-c")
    frames = [line.removeprefix("data: ") for line in output.splitlines() if line]
    assert frames[-1] == "[DONE]"
    bodies = [json.loads(frame) for frame in frames[:-1]]
    steps = [body["data"][0]["progressed_steps"] for body in bodies]
    assert set(range(13)) <= set(steps)
    assert bodies[-1]["data"][0]["b64_json"]
    assert bodies[-1]["usage"]["generation_per_second"] > 0


def test_save_a_picture(native_server: ServerProcess, tmp_path: Path) -> None:
    """The pipe through jq and base64 is a PNG of the size asked for."""
    run(SHELL[1], native_server, tmp_path, "bash", "-euo", "pipefail", "-c")
    assert picture(tmp_path / "out.png") == ("PNG", (128, 128))


def test_ask_for_the_file_itself(native_server: ServerProcess, tmp_path: Path) -> None:
    """Accept: image/jpeg answers a JPEG."""
    run(SHELL[2], native_server, tmp_path, "bash", "-euo", "pipefail", "-c")
    assert picture(tmp_path / "apple.jpg") == ("JPEG", (128, 64))


def test_the_command_line(native_server: ServerProcess, tmp_path: Path) -> None:
    """generate with and without a server, the list of models, a job begun, watched and listed."""
    output = run(SHELL[4], native_server, tmp_path, "bash", "-euo", "pipefail", "-c")
    assert picture(tmp_path / "circle.png") == ("PNG", (128, 128))
    assert picture(tmp_path / "piped.png") == ("PNG", (64, 64))
    assert "embedded" in output
    assert picture(tmp_path / "watched.png") == ("PNG", (128, 128))
    assert "completed" in output


def test_draw_over_a_picture(native_server: ServerProcess, tmp_path: Path) -> None:
    """The two lines of the section on edits."""
    run(SHELL[3], native_server, tmp_path, "bash", "-euo", "pipefail", "-c")
    assert picture(tmp_path / "before.png") == picture(tmp_path / "after.png") == ("PNG", (64, 64))


def test_a_job_and_its_result(native_server: ServerProcess, tmp_path: Path) -> None:
    """202, events to the end, and the picture."""
    run(SHELL[5], native_server, tmp_path, "bash", "-euo", "pipefail", "-c")
    assert picture(tmp_path / "job.png") == ("PNG", (128, 128))
    assert "\nevent: completed\n" in (tmp_path / "events.txt").read_text()


def test_from_python(native_server: ServerProcess, tmp_path: Path) -> None:
    """openai's client, as the example uses it."""
    run(PYTHON[0], native_server, tmp_path, sys.executable, "-c")
    assert picture(tmp_path / "cats.png") == ("PNG", (128, 128))


@pytest.mark.parametrize(
    ("file", "kind", "size"),
    [
        ("sunset.jpg", "JPEG", (176, 96)),
        ("dog.png", "PNG", (128, 64)),
        ("three-cats.png", "PNG", (64, 64)),
    ],
)
def test_coming_from_another_system(
    native_server: ServerProcess, tmp_path: Path, file: str, kind: str, size: tuple[int, int]
) -> None:
    """The lines for Fireworks, mistral.rs and OpenVINO Model Server draw their pictures."""
    (block,) = (block for block in SHELL if file in block)
    run(block, native_server, tmp_path, "bash", "-euo", "pipefail", "-c")
    assert picture(tmp_path / file) == (kind, size)


def test_coming_from_gpustack(native_server: ServerProcess, tmp_path: Path) -> None:
    """Its line streams llama-box's frames."""
    (block,) = (block for block in SHELL if "v1-openai" in block)
    output = run(block, native_server, tmp_path, "bash", "-euo", "pipefail", "-c")
    frames = output.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    assert all('"object":"image.chunk"' in frame for frame in frames[:-2])


def test_coming_from_xinference(native_server: ServerProcess, tmp_path: Path) -> None:
    """Its client draws a picture, and another one over it."""
    pytest.importorskip("xinference_client")
    run(PYTHON[1], native_server, tmp_path, sys.executable, "-c")
    assert picture(tmp_path / "apple.png") == ("PNG", (128, 64))
    assert picture(tmp_path / "pear.png") == ("PNG", (128, 64))


def test_coming_from_automatic1111(native_server: ServerProcess, tmp_path: Path) -> None:
    """webuiapi draws a picture and reads back how it was made."""
    output = run(PYTHON[2], native_server, tmp_path, sys.executable, "-c")
    assert picture(tmp_path / "circle.png") == ("PNG", (128, 128))
    assert output.startswith("a red circle\nSteps: 4, Sampler: Euler")


def test_the_error_of_the_readme(native_server: ServerProcess, tmp_path: Path) -> None:
    """The example of an error is one that the server really gives."""
    (example,) = re.findall(r'```json\n(\{"error".*?)```', README, re.DOTALL)
    body = '{"prompt":"a","size":"100x64"}'
    ask = f"curl -s {native_server.url}/v1/images/generations -d '{body}'"
    answer = run(ask, native_server, tmp_path, "bash", "-c")
    assert json.loads(answer) == json.loads(example)
