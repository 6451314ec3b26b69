"""Flags of the commands as users of other servers write them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from sdstream.cli.main import main
from sdstream.settings import Settings

DOCUMENTS = Path(__file__).parents[2] / "docs" / "compat"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target_device", "GPU"], "No such option '--target_device': set 'device: cpu'"),
        (["--target_device", "CPU"], "in an entry of models.yaml whose 'files' name the"),
        (["--text_encoder_3", "None"], "use --model FILE with a file that contains no T5"),
        (["--task", "image_generation"], "No such option '--task': leave it out."),
        (["--cpu_offload", "True"], "use -O offload=true."),
        (["--cpu-offload", "True"], "use -O offload=true."),
        (["--gguf_quantization=Q2_K"], "use --model MODEL:QUANT."),
        (["-m", "black-forest-labs/FLUX.1-schnell"], "use --model MODEL."),
        (["--prot", "1"], "No such option '--prot'. (Did you mean one of: "),
    ],
)
def test_a_flag_of_another_server(arguments: list[str], words: str) -> None:
    """The error names the flag to use; the suggestion for a misspelled flag remains."""
    result = CliRunner().invoke(main, ["serve", *arguments])
    assert result.exit_code == 2
    assert words in result.output


@pytest.mark.parametrize("page", ["openvino.md", "xinference.md"])
def test_every_documented_flag_has_a_remedy(page: str) -> None:
    """Each flag that the first column of a page's table names is accepted, or has a remedy."""
    lines = (DOCUMENTS / page).read_text().splitlines()
    cells = [line.split("|")[1] for line in lines if line.startswith("| `") or "`--" in line]
    flags = {flag for cell in cells for flag in re.findall(r"(?<=[` ])--[\w-]+", cell)}
    assert len(flags) >= 6
    # Two flags of docker, and one that is the same here.
    for flag in flags - {"--device", "--user", "--pull"}:
        output = CliRunner().invoke(main, ["serve", flag, "x"]).output
        assert f"No such option '{flag}': " in output, flag


@pytest.mark.parametrize(
    ("command", "flag", "words"),
    [
        ("convert a.gguf b.gguf", "--weight-format", "use --type q8_0 for int8"),
        ("convert a.gguf b.gguf", "--overwrite_models", "use --force"),
        ("convert", "--source_model", "write SOURCE and TARGET without flags"),
        ("convert", "--config_file_path", "name TARGET in an entry of models.yaml"),
        ("convert", "--model_repository_path", "write the path of the new file as TARGET"),
        ("pull", "--source_model", "write MODEL without a flag"),
        ("pull --pull", "--source_model", "leave it out"),
        ("pull", "--model_repository_path", "use --model-dir"),
        ("pull", "--model-name", "leave it out; 'sdstream serve --alias NAME' gives"),
        ("pull", "--overwrite_models", "use --verify"),
    ],
)
def test_flags_of_downloads_and_of_the_export_script(command: str, flag: str, words: str) -> None:
    """`pull` and `convert` do the same for the flags of OVMS' `--pull` and export_model.py."""
    result = CliRunner().invoke(main, [*command.split(), flag, "int8"])
    assert result.exit_code == 2
    assert re.search(rf"No such option '--\w[\w-]*': {re.escape(words)}", result.output)


def test_a_repeated_flag_may_have_commas() -> None:
    """Values of repeated flags are split at commas, like the value of a single flag."""
    assert Settings(runtime_options=("threads=1", "offload=true, wtype=q4_0")).runtime_options == (
        "threads=1",
        "offload=true",
        "wtype=q4_0",
    )
    assert Settings(aliases="a,b").aliases == Settings(aliases=("a", "b")).aliases == ("a", "b")
