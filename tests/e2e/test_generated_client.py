"""A client that is generated from the OpenAPI document generates and edits images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.routes import document
from tests.support.servers import ServerProcess

#: A program that uses the package; openapi-python-client generates the package.
PROGRAM = """
import io, sys
from PIL import Image
from made_client import Client
from made_client.api.images import post_v1_images_edits, post_v1_images_generations
from made_client.api.models import get_v1_models
from made_client.models import Edit, Generation, Images
from made_client.types import File

with Client(sys.argv[1], timeout=60) as client:
    models = get_v1_models.sync(client=client)
    assert models.data[0].id == "embedded", models
    body = Generation(prompt="a circle", size="64x64", sample_steps=2, n=2)
    answer = post_v1_images_generations.sync(client=client, body=body)
    assert isinstance(answer, Images), answer
    assert [item.index for item in answer.data] == [0, 1]
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "PNG")
    file.seek(0)
    body = Edit(image=[File(file, "a.png", "image/png")], prompt="a circle", sample_steps=2)
    answer = post_v1_images_edits.sync(client=client, body=body)
    assert isinstance(answer, Images), answer
    error = post_v1_images_generations.sync(
        client=client, body=Generation(prompt="a", sampler="magic")
    )
    assert error.error.param == "sampler", error
"""


def test_a_generated_client(fake_server: ServerProcess, tmp_path: Path) -> None:
    """Every operation becomes a typed function, and the functions work."""
    described = tmp_path / "openapi.json"
    described.write_text(json.dumps(document()))
    command = [
        *(sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none"),
        *("--path", str(described), "--output-path", str(tmp_path / "made_client")),
    ]
    made = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "not be generated" not in made.stdout + made.stderr
    assert "Unable to process" not in made.stdout + made.stderr
    operations = sum(len(methods) for methods in document()["paths"].values())
    functions = [*(tmp_path / "made_client/api").glob("*/*_*.py")]
    assert len([path for path in functions if path.stem != "__init__"]) == operations
    used = subprocess.run(
        [sys.executable, "-c", PROGRAM, fake_server.url],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert used.returncode == 0, used.stderr
