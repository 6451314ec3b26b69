"""The commands about model files, as a person runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.weight_files import ALONE, BROKEN, DIFFUSION, write_safetensors


def sdstream(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command; nothing it says may be a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "app", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "Traceback" not in done.stderr
    return done


# --- inspect ------------------------------------------------------------------------------------


def test_inspect_a_model(builtin_file: Path) -> None:
    """A few lines for a person."""
    said = sdstream("inspect", builtin_file)
    assert said.returncode == 0
    assert said.stdout.startswith(f"{builtin_file.name} is Ovis-Image.\n")
    for words in ("family", "ovis_image", "GGUF 3, 30.4 MB", "diffusion_model", "q8_0", "8.2 M"):
        assert words in said.stdout


def test_inspect_for_programs(builtin_file: Path) -> None:
    """One JSON object with sizes in bytes."""
    report = json.loads(sdstream("inspect", "--json", builtin_file).stdout)
    assert report["file"] == builtin_file.name
    assert report["size"] == builtin_file.stat().st_size
    assert report["families"] == ["ovis_image"]
    assert {part["name"] for part in report["parts"]} == {"diffusion_model", "llm", "tae"}


def test_inspect_says_what_else_is_needed(tmp_path: Path) -> None:
    """The names are those of models.yaml."""
    path = write_safetensors(tmp_path / "flux.safetensors", DIFFUSION["FLUX.1 schnell"])
    said = sdstream("inspect", path).stdout
    assert "is the diffusion model of FLUX.1 schnell alone." in said
    assert "clip_l, t5xxl, vae" in said


@pytest.mark.parametrize("name", ["empty", "html", "data-cut", "torch"])
def test_inspect_a_broken_file(tmp_path: Path, name: str) -> None:
    """One sentence and exit code 1, in JSON too."""
    raw, sentence = BROKEN[name]
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    said = sdstream("inspect", path)
    assert said.returncode == 1
    assert said.stderr.startswith(f"Error: x.gguf {sentence}")
    assert said.stdout == ""
    said = sdstream("inspect", "--json", path)
    assert said.returncode == 1
    assert json.loads(said.stdout)["error"].startswith(f"x.gguf {sentence}")


def test_inspect_takes_no_markup_from_files(tmp_path: Path) -> None:
    """Brackets and control characters in a file's words are shown, not obeyed."""
    words = {"modelspec.title": "[bold]a[/nonsense]\x1b[31m"}
    path = write_safetensors(tmp_path / "[red].safetensors", ALONE["vae"], metadata=words)
    said = sdstream("inspect", path)
    assert said.stdout.startswith("[red].safetensors is a VAE")
    assert "[bold]a[/nonsense]?[31m" in said.stdout
