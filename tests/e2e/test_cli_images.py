"""Edits, upscaling, further options and file names on the command line."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdstream.cli.main import COMMANDS, main
from tests.e2e.test_cli import environment, opened, said, sdstream
from tests.e2e.test_cli_jobs import in_a_terminal
from tests.support.servers import ServerProcess, free_port, running_server
from tests.support.upscalers import write_upscaler

QUICK = ("--size", "64x64", "--steps", "2", "--seed", "5")

#: One model has a ControlNet. The fake engine does not read the files.
CONTROLLED = """
models:
  - id: plain
    family: sd1
    files: {model: x.gguf}
  - id: controlled
    family: sd1
    files: {model: x.gguf, control_net: c.gguf}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server on the fake engine with a LoRA, an upscaler and a model with a ControlNet."""
    folder = tmp_path_factory.mktemp("images")
    for name in ("loras", "upscalers"):
        (folder / name).mkdir()
    (folder / "models.yaml").write_text(CONTROLLED)
    (folder / "loras" / "ink.safetensors").write_bytes(b"not read by the fake engine")
    write_upscaler(folder / "upscalers" / "twice.safetensors", 2)
    dirs: dict[str, Any] = {"lora_dir": folder / "loras", "upscaler_dir": folder / "upscalers"}
    models = folder / "models.yaml"
    with running_server(folder, engine="fake", models=models, **dirs) as running:
        yield running


def png(color: str = "red", size: tuple[int, int] = (64, 64)) -> bytes:
    """Return an image file of one color."""
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def parameters(path: Path) -> str:
    """Return the parameters text of a file."""
    return str(opened(path).info["parameters"])


def piped(data: bytes, *arguments: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a command with these bytes on stdin."""
    return subprocess.run(
        [sys.executable, "-m", "sdstream", *arguments],
        check=False, input=data, capture_output=True, cwd=folder, env=environment(), timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    "command", [("edit", "in.png", "a cat"), ("generate", "a cat", "--image", "in.png")]
)
def test_edit_with_a_mask(tmp_path: Path, server: ServerProcess, command: tuple[str, ...]) -> None:
    """Both commands edit the image and leave the pixels outside of the mask unchanged."""
    (tmp_path / "in.png").write_bytes(png())
    mask = Image.new("L", (64, 64))
    mask.paste(255, (32, 0, 64, 64))
    mask.save(tmp_path / "mask.png")
    more = ("--mask", "mask.png", "--strength", "0.5", "--server", server.url, "-o", "out.png")
    result = sdstream(*command, *QUICK, *more, folder=tmp_path)
    assert result.returncode == 0, said(result)
    image = opened(tmp_path / "out.png").convert("RGB")
    assert image.getpixel((5, 5)) == (255, 0, 0)
    assert image.getpixel((60, 32)) != (255, 0, 0)
    assert "Denoising strength: 0.5" in parameters(tmp_path / "out.png")


def test_options_without_a_flag(tmp_path: Path, server: ServerProcess) -> None:
    """-O sets options by their names in the API; underscores may be written as hyphens."""
    result = sdstream(
        *("generate", "a", "-O", "steps=3", "-O", "width=64", "-O", "height=128"),
        *("-O", "clip-skip=2", "--lora", "ink:0.5", "--upscaler", "twice", "-o", "x.png"),
        *("--server", server.url),
        folder=tmp_path,
    )
    assert result.returncode == 0, said(result)
    text = parameters(tmp_path / "x.png")
    for fact in ("Steps: 3", "Clip skip: 2", 'LoRA: "ink:0.5"', "Postprocess upscaler: twice"):
        assert fact in text
    assert opened(tmp_path / "x.png").size == (128, 256)


def test_a_control_image(tmp_path: Path, server: ServerProcess) -> None:
    """--control sets the ControlNet's image, with and without an input image."""
    (tmp_path / "c.png").write_bytes(png())
    base = ("-m", "controlled", "--control", "c.png", "-O", "control_strength=0.7")
    for more in ((), ("--image", "c.png")):
        result = sdstream(
            *("generate", "a", *QUICK, *base, *more, "-o", "x.png", "--force"),
            *("--server", server.url),
            folder=tmp_path,
        )
        assert result.returncode == 0, said(result)
        assert "ControlNet weight: 0.7" in parameters(tmp_path / "x.png")


def test_upscale(tmp_path: Path, server: ServerProcess) -> None:
    """upscale enlarges the image and prints no seed."""
    (tmp_path / "in.png").write_bytes(png())
    command = ("upscale", "in.png", "--upscaler", "twice", "--server", server.url)
    result = sdstream(*command, folder=tmp_path)
    assert result.returncode == 0, said(result)
    assert opened(tmp_path / "image.png").size == (128, 128)
    assert "seed" not in said(result)
    result = sdstream(*command, "--upscale", "1.5", "-o", "b.webp", folder=tmp_path)
    assert opened(tmp_path / "b.webp").size == (96, 96)
    result = sdstream(*command[:2], "--upscaler", "twise", *command[4:], folder=tmp_path)
    assert result.returncode == 1
    assert "Did you mean 'twice'?" in said(result)


def test_stdin(tmp_path: Path, server: ServerProcess) -> None:
    """`-` reads the prompt or an image from stdin; only one argument may be `-`."""
    where = ("--server", server.url, *QUICK)
    drawn = piped(b"a red circle\n", "generate", "-", "-o", "-", *where, folder=tmp_path)
    assert drawn.returncode == 0, said(drawn)
    text = Image.open(io.BytesIO(drawn.stdout)).info["parameters"]
    assert text.startswith("a red circle\nSteps")
    edited = piped(drawn.stdout, "edit", "-", "blue", "-o", "e.png", *where, folder=tmp_path)
    assert edited.returncode == 0, said(edited)
    assert opened(tmp_path / "e.png").size == (64, 64)
    twice = piped(drawn.stdout, "edit", "-", "-", *where, folder=tmp_path)
    assert twice.returncode == 2
    assert "only one argument can be - (stdin)" in said(twice)
    nothing = piped(b"", "generate", "-", *where, folder=tmp_path)
    assert nothing.returncode == 2
    assert "stdin is empty" in said(nothing)


def test_format_of_stdout(tmp_path: Path, server: ServerProcess) -> None:
    """-O output_format chooses the format of an image on stdout."""
    command = ("generate", "a", *QUICK, "-o", "-", "-O", "output_format=webp")
    result = sdstream(*command, "--server", server.url, folder=tmp_path)
    assert result.stdout[8:12] == b"WEBP"


def test_nothing_is_overwritten(tmp_path: Path, server: ServerProcess) -> None:
    """An existing file is replaced only with --force; without -o the next free name is used."""
    draw = ("generate", "a", *QUICK, "--server", server.url)
    names = [re.search(r"seed 5, (\S+)", said(sdstream(*draw, folder=tmp_path))) for _ in range(3)]
    assert [name and name[1] for name in names] == ["image.png", "image-2.png", "image-3.png"]
    (tmp_path / "mine.png").write_text("precious")
    jobs = server.metric("sdstream_jobs_total", outcome="completed")
    refused = sdstream(*draw, "-o", "mine.png", folder=tmp_path)
    assert refused.returncode == 2
    assert "mine.png exists; --force replaces it." in said(refused)
    assert (tmp_path / "mine.png").read_text() == "precious"
    (tmp_path / "many-2.png").write_text("precious")
    refused = sdstream(*draw, "-n", "2", "-o", "many.png", folder=tmp_path)
    assert "many-2.png exists" in said(refused)
    assert server.metric("sdstream_jobs_total", outcome="completed") == jobs
    assert sdstream(*draw, "-o", "mine.png", "--force", folder=tmp_path).returncode == 0
    assert opened(tmp_path / "mine.png").size == (64, 64)


def test_watch_overwrites_nothing(tmp_path: Path, server: ServerProcess) -> None:
    """watch replaces an existing file only with --force."""
    where = ("--server", server.url)
    begun = sdstream("generate", "a", *QUICK, "--async", *where, folder=tmp_path)
    job = begun.stdout.decode().strip()
    (tmp_path / "mine.png").write_text("precious")
    watched = sdstream("watch", job, "-o", "mine.png", *where, folder=tmp_path)
    assert (watched.returncode, "--force replaces it" in said(watched)) == (2, True)
    watched = sdstream("watch", job, "-o", "mine.png", "--force", *where, folder=tmp_path)
    assert watched.returncode == 0
    assert opened(tmp_path / "mine.png").size == (64, 64)


def test_a_job_of_an_edit(tmp_path: Path, server: ServerProcess) -> None:
    """--async uploads the input image."""
    (tmp_path / "in.png").write_bytes(png())
    where = ("--server", server.url)
    draw = ("edit", "in.png", "a cat", *QUICK, "--strength", "0.4", "--async")
    job = sdstream(*draw, *where, folder=tmp_path).stdout.decode().strip()
    watched = sdstream("watch", job, "-o", "x.png", *where, folder=tmp_path)
    assert watched.returncode == 0, said(watched)
    assert "Denoising strength: 0.4" in parameters(tmp_path / "x.png")


def test_like_an_edit(tmp_path: Path, server: ServerProcess) -> None:
    """--like uses a file's edit options with an input image and reports them as ignored without
    one."""
    (tmp_path / "in.png").write_bytes(png())
    where = ("--server", server.url)
    first = sdstream(
        "edit", "in.png", "a cat", *QUICK, "--strength", "0.4", *where, folder=tmp_path
    )
    assert first.returncode == 0, said(first)
    again = ("edit", "in.png", "--like", "image.png", "-o", "again.png")
    assert sdstream(*again, *where, folder=tmp_path).returncode == 0
    assert parameters(tmp_path / "again.png") == parameters(tmp_path / "image.png")
    plain = ("generate", "--like", "image.png", "-O", "width=128", "-O", "height=64", "-o", "c.png")
    result = sdstream(*plain, *where, folder=tmp_path)
    assert "Ignored from image.png: strength" in said(result)
    assert opened(tmp_path / "c.png").size == (128, 64)


def test_warnings_are_reported(tmp_path: Path, native_server: ServerProcess) -> None:
    """A warning of the server is shown, here about a word that the small model does not know."""
    result = sdstream(
        *("generate", "a zeppelin", *QUICK, "--server", native_server.url), folder=tmp_path
    )
    assert result.returncode == 0
    assert "Warning: " in said(result)
    assert "zeppelin" in said(result)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generat", "a"], "No such command 'generat'. Did you mean 'generate'?"),
        (["generate", "a", "--stepz", "3"], "No such option '--stepz'."),
        (["generate", "a", "--sampler", "eulre"], "unknown sampler 'eulre'. Did you mean 'euler'?"),
        (["generate", "a", "--sampler", "zzz"], "unknown sampler 'zzz'. Choose one of euler, "),
        (["generate", "a", "--schedule", "karas"], "Did you mean 'karras'?"),
        (["generate", "a", "-O", "stenght=1"], "no option 'stenght'. Did you mean 'strength'?"),
        (["generate", "a", "-O", "steps"], "'steps' is not KEY=VALUE"),
        (["generate", "a", "-O", "steps=1", "--steps", "2"], "'sample_steps' is given twice"),
        (["generate", "a", "-O", "n=2"], "-O n: use -n instead."),
        (["generate", "a", "-O", "output_format=webp"], "use -o instead"),
        (["generate", "a", "--image", "no.png"], "the file no.png does not exist"),
        (["generate", "a", "--mask", "m.png"], "--mask needs --image"),
        (["generate", "a", "--lora", "ink:much"], "'ink:much' is not NAME or NAME:SCALE"),
        (["generate", "a", "--async", "--server", "x", "--force"], "--force"),
        (["edit", "a.png"], "the file a.png does not exist"),
        (["edit", "m.png"], "PROMPT is missing"),
    ],
)
def test_mistakes_get_a_suggestion(tmp_path: Path, arguments: list[str], words: str) -> None:
    """Wrong usage is reported with exit code 2 and a message, before anything starts."""
    (tmp_path / "m.png").write_bytes(png())
    result = sdstream(*arguments, folder=tmp_path, engine="fake")
    assert result.returncode == 2
    assert words in said(result)


def test_other_spellings_of_samplers(tmp_path: Path, server: ServerProcess) -> None:
    """AUTOMATIC1111's names of samplers and schedules are accepted."""
    command = ("generate", "a", *QUICK, "--sampler", "DPM++ 2M", "--schedule", "Karras")
    assert sdstream(*command, "--server", server.url, folder=tmp_path).returncode == 0
    assert "Sampler: DPM++ 2M, Schedule type: Karras" in parameters(tmp_path / "image.png")


def test_an_address_without_a_scheme(tmp_path: Path, server: ServerProcess) -> None:
    """--server accepts host:port."""
    address = server.url.removeprefix("http://")
    assert sdstream("jobs", "--server", address, folder=tmp_path).returncode == 0


def test_a_server_that_is_not_running(tmp_path: Path) -> None:
    """The message contains the address and the command that starts a server there."""
    port = free_port()
    result = sdstream("generate", "a", "--server", f"127.0.0.1:{port}", folder=tmp_path)
    assert result.returncode == 1
    assert said(result).startswith(f"Error: no server answers at http://127.0.0.1:{port} (")
    assert said(result).endswith(f"'sdstream serve --port {port}' starts one.")


def test_an_error_stands_alone(tmp_path: Path, server: ServerProcess) -> None:
    """No progress row is shown for a rejected request."""
    result = sdstream("generate", "a", "-m", "plian", "--server", server.url, folder=tmp_path)
    assert result.stderr.startswith(b"Error: The model 'plian' is not in the catalogue")
    assert b"Did you mean 'plain'?" in result.stderr


def test_lists_fit_into_80_columns(tmp_path: Path, server: ServerProcess) -> None:
    """Lines of lists fit into the terminal, and names of models are not truncated."""
    made = sdstream("generate", "a cat " * 30, *QUICK, "--server", server.url, folder=tmp_path)
    assert made.returncode == 0
    for command in (("models", "--all"), ("models", "--server", server.url), ("jobs",)):
        more = ("--server", server.url) if command == ("jobs",) else ()
        shown = in_a_terminal(tmp_path, {}, *command, *more, columns=80)
        lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in shown.splitlines()]
        assert max(map(len, lines)) <= 80
        if command == ("models", "--all"):
            assert any(line.startswith("stable-diffusion-v1-4:Q8_0  ") for line in lines)


def test_jobs_are_found(tmp_path: Path, server: ServerProcess) -> None:
    """jobs filters by words, model, group and time; times are local, or ages such as 1h."""
    where = ("--server", server.url)
    draw = ("generate", "a purple hen", *QUICK, "-O", "group=hens", "--async")
    job = sdstream(*draw, *where, folder=tmp_path).stdout.decode().strip()

    def found(*conditions: str) -> list[str]:
        result = sdstream("jobs", "--ids", *conditions, *where, folder=tmp_path)
        assert result.returncode == 0, said(result)
        return result.stdout.decode().split()

    now = datetime.now()  # noqa: DTZ005  local, as a person writes it
    before, after = ((now + timedelta(minutes=m)).isoformat() for m in (-5, 5))
    for conditions in (
        ("-q", "HEN purple"),
        ("--group", "hens", "--model", "plain", "--no-favorite"),
        ("--group", "hens", "--since", "1h"),
        ("--group", "hens", "--since", before, "--until", after),
    ):
        assert found(*conditions) == [job], conditions
    others: list[tuple[str, ...]] = [
        ("--group", "hens", "--until", "1h"),
        ("--group", "hens", "--since", after),
        ("--group", "hens", "--favorite"),
        ("--group", "hens", "--model", "controlled"),
    ]
    for other in others:
        assert found(*other) == [], other
    wrong = sdstream("jobs", "--since", "yesterday", *where, folder=tmp_path)
    assert (wrong.returncode, "'yesterday' is not a time" in said(wrong)) == (2, True)


def test_jobs_are_deleted(tmp_path: Path, server: ServerProcess) -> None:
    """delete accepts ids as arguments or on stdin and reports unknown ids."""
    where = ("--server", server.url)
    for _ in range(3):
        sdstream("generate", "a", *QUICK, "--async", *where, folder=tmp_path)
    ids = sdstream("jobs", "--ids", "--limit", "3", *where, folder=tmp_path).stdout.decode().split()
    assert len(ids) == 3
    result = sdstream("delete", ids[0], "job_nobody", *where, folder=tmp_path)
    assert result.returncode == 1
    assert result.stdout == b"1 deleted.\n"
    assert "the job job_nobody does not exist" in said(result)
    result = piped("\n".join(ids[1:]).encode(), "delete", "-", *where, folder=tmp_path)
    assert (result.returncode, result.stdout) == (0, b"2 deleted.\n")
    found = json.loads(sdstream("jobs", "--json", *where, folder=tmp_path).stdout)
    assert not {job["id"] for job in found} & {*ids}


def test_the_list_of_commands_is_that_of_their_help() -> None:
    """The list of commands repeats the help of each command, so that listing imports no command."""
    for name, entry in COMMANDS.items():
        command = main.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        assert command.get_short_help_str(200) == entry.help


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("sdstream gen", {"generate"}),
        ("sdstream generate --sampler dpm", {"dpm2", "dpm++2s_a", "dpm++2m", "dpm++2mv2"}),
        ("sdstream jobs --sta", {"--status"}),
    ],
)
def test_shell_completion(words: str, found: set[str]) -> None:
    """bash completes commands, options and names of samplers."""
    variables = {
        **environment(),
        "_SDSTREAM_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    command = [str(Path(sys.executable).with_name("sdstream"))]
    done = subprocess.run(
        command, check=False, env=variables, capture_output=True, text=True, timeout=60
    )
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == found
