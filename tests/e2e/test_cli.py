"""The command line: files, pipes, servers, wrong usage and exit codes."""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from PIL import Image

from tests.support.servers import ServerProcess, free_port, running_server, wait_until

Result = subprocess.CompletedProcess[bytes]

QUICK = ("--size", "64x64", "--steps", "2", "--seed", "5")


def environment(**variables: Any) -> dict[str, str]:
    """Return the environment of the tests without settings of sdstream, except the given ones."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith("SDSTREAM_")}
    return mine | {f"SDSTREAM_{name.upper()}": str(value) for name, value in variables.items()}


def sdstream(*arguments: str, folder: Path, **settings: Any) -> Result:
    """Run a command in a folder until it ends."""
    return subprocess.run(
        [sys.executable, "-m", "sdstream", *arguments],
        check=False,
        capture_output=True,
        cwd=folder,
        env=environment(data_dir=folder, **settings),
        timeout=60,
    )


def opened(path: Path) -> Image.Image:
    """Open the image in a file."""
    return Image.open(io.BytesIO(path.read_bytes()))


def said(result: Result) -> str:
    """Return the text on stderr as one line."""
    return " ".join(result.stderr.decode().split())


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that requires a key."""
    folder = tmp_path_factory.mktemp("guarded")
    with running_server(folder, engine="fake", api_keys="secret") as server:
        yield server


# --- generate -----------------------------------------------------------------------------------


def test_generate_by_itself(tmp_path: Path, native_server: ServerProcess) -> None:
    """Without a server, the command starts an engine, generates, and leaves only the image file."""
    cache = native_server.log.parent / "cache"  # contains the model's file
    result = sdstream("generate", "a red circle", *QUICK, folder=tmp_path, cache_dir=cache)
    assert result.returncode == 0, said(result)
    assert result.stdout == b""
    assert "seed 5, image.png" in said(result)
    picture = opened(tmp_path / "image.png")
    assert (picture.format, picture.size) == ("PNG", (64, 64))
    body = {"prompt": "a red circle", "size": "64x64", "steps": 2, "seed": 5}
    answer = native_server.post(body, headers={"Accept": "image/png"})
    assert (tmp_path / "image.png").read_bytes() == answer.content


def test_generate_with_a_server(tmp_path: Path, fake_server: ServerProcess) -> None:
    """With --server, the server generates the image, in the format of the file's extension."""
    for name, kind in (("a.png", "PNG"), ("b.JPG", "JPEG"), ("c.webp", "WEBP")):
        result = sdstream(
            *("generate", "a red circle", *QUICK, "-o", name, "--server", fake_server.url),
            folder=tmp_path,
        )
        assert result.returncode == 0, said(result)
        assert opened(tmp_path / name).format == kind


def test_names_of_files_are_told_as_they_are(tmp_path: Path, fake_server: ServerProcess) -> None:
    """Brackets and colons in a file name are not interpreted as markup."""
    name = "pic[red] :cat:.png"
    result = sdstream(
        "generate", "a", *QUICK, "-o", name, "--server", fake_server.url, folder=tmp_path
    )
    assert (tmp_path / name).is_file()
    assert f"seed 5, {name}" in said(result)


def test_generate_like_a_file(tmp_path: Path, fake_server: ServerProcess) -> None:
    """--like generates the same image again from the file; a flag overrides an option of the
    file."""
    server = ("--server", fake_server.url)
    first = sdstream("generate", "a red circle", *QUICK, *server, folder=tmp_path)
    assert first.returncode == 0, said(first)
    like = ("generate", "--like", "image.png", *server)
    again = sdstream(*like, "-o", "again.png", folder=tmp_path)
    assert again.returncode == 0, said(again)
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "image.png").read_bytes()
    other = sdstream(*like, "--seed", "6", "-o", "other.png", folder=tmp_path)
    assert "seed 6" in said(other)


def test_a_file_that_is_like_nothing(tmp_path: Path) -> None:
    """--like with a file without parameters, or no prompt at all, is wrong usage."""
    (tmp_path / "text.png").write_text("no image")
    result = sdstream("generate", "--like", "text.png", folder=tmp_path)
    assert (result.returncode, "text.png" in said(result)) == (2, True)
    result = sdstream("generate", folder=tmp_path)
    assert (result.returncode, "PROMPT is missing" in said(result)) == (2, True)


def test_generate_to_stdout(tmp_path: Path, fake_server: ServerProcess) -> None:
    """`-o -` writes only the image file to stdout; the progress goes to stderr."""
    result = sdstream(
        "generate", "a", *QUICK, "-o", "-", "--server", fake_server.url, folder=tmp_path
    )
    assert result.returncode == 0
    assert Image.open(io.BytesIO(result.stdout)).size == (64, 64)
    assert "seed 5" in said(result)
    assert list(tmp_path.iterdir()) == []


def test_generate_several(tmp_path: Path, fake_server: ServerProcess) -> None:
    """-n writes numbered files."""
    result = sdstream(
        *("generate", "a", *QUICK, "-n", "3", "-o", "x.png", "--server", fake_server.url),
        folder=tmp_path,
    )
    assert result.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-1.png", "x-2.png", "x-3.png"]


def test_generate_with_every_option(tmp_path: Path, fake_server: ServerProcess) -> None:
    """Every option reaches the server and is in the parameters text of the image."""
    result = sdstream(
        *("generate", "a red circle", "-N", "blue", "-m", "embedded", "-s", "80x64"),
        *("--steps", "3", "--sampler", "heun", "--schedule", "karras", "--cfg-scale", "2.5"),
        *("--seed", "9", "-o", "x.png", "--server", fake_server.url),
        folder=tmp_path,
    )
    assert result.returncode == 0
    text = opened(tmp_path / "x.png").info["parameters"]
    assert text.startswith(
        "a red circle\nNegative prompt: blue\nSteps: 3, Sampler: Heun, Schedule type: Karras, "
        "CFG scale: 2.5, Seed: 9, Size: 80x64, Model: embedded"
    )


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["generate"], "PROMPT"),
        (["generate", "a", "-o", "x.gif"], ".webp"),
        (["generate", "a", "-o", "x"], ".png"),
        (["generate", "a", "-o", "-", "-n", "2"], "one image"),
        (["generate", "a", "--sampler", "magic"], "magic"),
        (["generate", "a", "--cfg-scale", "nan"], "--cfg-scale"),
        (["generate", "a", "--cfg-scale", "inf"], "--cfg-scale"),
        (["generate", "a", "--colour", "red"], "--colour"),
        (["serve", "--nonsense"], "--nonsense"),
        (["models", "x"], "x"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: list[str], word: str) -> None:
    """Wrong usage is reported with exit code 2 and a hint before anything starts."""
    result = sdstream(*arguments, folder=tmp_path, engine="fake")
    assert result.returncode == 2
    assert word in said(result)
    assert "Traceback" not in said(result)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["generate", "a", "--steps", "0"], "sample_steps"),
        (["generate", "a", "-n", "0"], "'n'"),
        (["generate", "a", "-s", "2000x100"], "width must be between"),
        (["generate", "a", "-m", "none"], "not in the catalogue"),
        (["generate", "a", "--schedule", "ays"], "ays"),
        (["generate", "fail=1"], "failed as requested"),
        (["generate", "crash=1"], "SIGABRT"),
    ],
)
def test_what_the_server_refuses(
    tmp_path: Path, fake_server: ServerProcess, arguments: list[str], word: str
) -> None:
    """The command prints the server's message and exits with 1 if the request is rejected or the
    job fails."""
    result = sdstream(*arguments, "--server", fake_server.url, folder=tmp_path)
    assert result.returncode == 1
    assert word in said(result)
    assert "Traceback" not in said(result)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "address"),
    [
        (["generate", "a"], "http://127.0.0.1:PORT"),
        (["generate", "a"], "http://["),
        (["models"], "127.0.0.1:PORT"),
        (["models"], "ftp://127.0.0.1"),
        (["jobs"], "http://localhost:99999"),
        (["jobs"], "http://[::1"),
        (["jobs"], f"http://{'a' * 70}"),
    ],
)
def test_no_server_there(tmp_path: Path, command: list[str], address: str) -> None:
    """The command exits with 1 and an error if the server cannot be reached or the address is
    invalid."""
    address = address.replace("PORT", str(free_port()))
    result = sdstream(*command, "--server", address, folder=tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in said(result)
    assert "Error: " in said(result)


def test_keys(tmp_path: Path, guarded: ServerProcess) -> None:
    """A flag or a variable sets the server's key; without a key, the server's error is shown."""
    draw = ("generate", "a", *QUICK, "--server", guarded.url)
    refused = sdstream(*draw, folder=tmp_path)
    assert refused.returncode == 1
    assert "API key" in said(refused)
    assert sdstream(*draw, "--api-key", "secret", folder=tmp_path).returncode == 0
    assert sdstream(*draw, folder=tmp_path, client_key="secret").returncode == 0


def test_a_key_that_no_header_can_carry(tmp_path: Path, guarded: ServerProcess) -> None:
    """A key that no HTTP header can contain is rejected before anything is sent."""
    command = ("jobs", "--server", guarded.url)
    for key in ("ключ", "a\nb"):
        result = sdstream(*command, "--api-key", key, folder=tmp_path)
        assert result.returncode == 1
        assert said(result) == "Error: the API key may have printable ASCII characters only."


@contextmanager
def stranger(body: bytes, kind: str) -> Iterator[str]:
    """Run a web server that is not sdstream and always sends this body; yield its address."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"<html>It works!</html>", "text/html"),
        (b"[1, 2]", "application/json"),
        (b'{"data": [{"id": "x", "object": "model"}]}', "application/json"),
        (b'data: {"x": 1}\n\n', "text/event-stream"),
    ],
    ids=["page", "list", "others' models", "others' events"],
)
def test_something_else_at_the_address(tmp_path: Path, body: bytes, kind: str) -> None:
    """Every command that calls a server reports that the server is not sdstream."""
    commands = [["jobs"], ["models"], ["cancel", "x"], ["generate", "a"]]
    commands += [["generate", "a", "--async"]]
    if kind != "text/event-stream":
        commands += [["watch", "x"]]
    with stranger(body, kind) as address:
        for command in commands:
            result = sdstream(*command, "--server", address, folder=tmp_path)
            if command == ["generate", "a", "--async"] and b"id" in body:
                continue
            assert result.returncode == 1, command
            assert said(result).endswith("the server at this address is not sdstream.")
            assert "Traceback" not in said(result)


def test_a_place_that_takes_no_file_is_told_before_drawing(
    tmp_path: Path, fake_server: ServerProcess
) -> None:
    """An output path that cannot be written is wrong usage, and no job is started."""
    before = fake_server.metric("sdstream_jobs_total", outcome="completed")
    result = sdstream(
        *("generate", "a", *QUICK, "-o", "no/where.png", "--server", fake_server.url),
        folder=tmp_path,
    )
    assert result.returncode == 2
    assert "the folder no does not exist" in said(result)
    (tmp_path / "dd.png").mkdir()
    result = sdstream(
        *("generate", "a", *QUICK, "-o", "dd.png", "--server", fake_server.url), folder=tmp_path
    )
    assert result.returncode == 2
    assert "dd.png is a folder." in said(result)
    assert fake_server.metric("sdstream_jobs_total", outcome="completed") == before
    assert "Traceback" not in said(result)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGHUP, -signal.SIGHUP)],
)
def test_a_signal_ends_a_private_server(tmp_path: Path, number: int, code: int) -> None:
    """A signal during `generate` ends the command and its engine, with the exit code that shells
    expect, and no file with the prompt is left on the disk."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sdstream", "generate", "step=0.2", "--steps", "100"],
        cwd=tmp_path,
        env={**environment(engine="fake"), "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(lambda: [*tmp_path.glob("sdstream-*/data/*")], 20, "it does not start")
    wait_until(children.read_text, 20, "no engine")
    time.sleep(1)
    engines = children.read_text().split()
    process.send_signal(number)
    _, error = process.communicate(timeout=90)
    assert process.returncode == code
    assert b"Traceback" not in error
    assert b"Aborted" not in error
    assert not any(Path(f"/proc/{engine}").exists() for engine in engines)
    assert [*tmp_path.iterdir()] == []


def test_streams_that_the_caller_has_closed(tmp_path: Path, fake_server: ServerProcess) -> None:
    """The commands work without stdin or stdout, if they do not need it."""

    def run(redirection: str, *arguments: str) -> Result:
        command = shlex.join([sys.executable, "-m", "sdstream", *arguments])
        return subprocess.run(
            ["sh", "-c", f"{command} {redirection}"],
            check=False,
            capture_output=True,
            cwd=tmp_path,
            env=environment(server=fake_server.url),
            timeout=60,
        )

    result = run("<&-", "generate", "a", *QUICK, "-o", "x.png")
    assert result.returncode == 0, said(result)
    assert opened(tmp_path / "x.png").size == (64, 64)
    result = run("<&-", "generate", "-")
    assert (result.returncode, "stdin is closed." in said(result)) == (2, True)
    result = run("<&-", "delete", "-")
    assert (result.returncode, "stdin is closed." in said(result)) == (2, True)
    result = run(">&-", "jobs")
    assert (result.returncode, said(result)) == (0, "")
    result = run(">&-", "generate", "a", "-o", "-")
    assert (result.returncode, "stdout is closed." in said(result)) == (2, True)


def test_an_output_without_some_characters(tmp_path: Path, fake_server: ServerProcess) -> None:
    """A prompt that the encoding of stdout cannot express is listed with question marks."""
    server = ("--server", fake_server.url)
    assert sdstream("generate", "a 火 b", *QUICK, *server, folder=tmp_path).returncode == 0
    result = subprocess.run(
        [sys.executable, "-m", "sdstream", "jobs", "--limit", "1", *server],
        check=False,
        capture_output=True,
        env={**environment(), "PYTHONIOENCODING": "latin-1"},
        timeout=60,
    )
    assert result.returncode == 0, said(result)
    assert result.stdout.rstrip().endswith(b"a ? b")


def test_settings_that_restrict_only_other_clients(tmp_path: Path) -> None:
    """A command without --server may use all of its private server, whatever the settings."""
    result = sdstream(
        *("generate", "a", *QUICK, "-O", "priority=high"),
        folder=tmp_path,
        engine="fake",
        allowed_hosts="images.example",
        api_keys="a",
        high_priority_keys="b",
    )
    assert result.returncode == 0, said(result)


def test_ctrl_c_while_a_server_draws(tmp_path: Path, fake_server: ServerProcess) -> None:
    """Ctrl-C exits with code 130, and the server cancels the job."""
    before = fake_server.metric("sdstream_jobs_total", outcome="cancelled")
    process = subprocess.Popen(
        [sys.executable, "-m", "sdstream", "generate", "step=0.2", "--steps", "100"],
        cwd=tmp_path,
        env=environment(server=fake_server.url),
        stderr=subprocess.PIPE,
    )
    wait_until(lambda: fake_server.metric("sdstream_running_jobs") == 1, 20, "it does not begin")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=90)
    assert process.returncode == 130
    assert b"Aborted" not in error
    wait_until(
        lambda: fake_server.metric("sdstream_jobs_total", outcome="cancelled") == before + 1,
        10,
        "it goes on",
    )


def test_what_keeps_a_private_server_from_starting(tmp_path: Path) -> None:
    """The command exits with 78 if `serve` would reject a setting or TMPDIR is too long for a
    socket."""
    result = sdstream("generate", "a", folder=tmp_path, engine="fake", safety_checker="no:no")
    assert result.returncode == 78
    assert "the safety checker 'no:no' cannot be used" in said(result)
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    command = [sys.executable, "-m", "sdstream", "generate", "a"]
    result = subprocess.run(
        command,
        check=False,
        capture_output=True,
        cwd=tmp_path,
        env={**environment(engine="fake"), "TMPDIR": str(deep)},
    )
    assert result.returncode == 78
    assert said(result) == f"Error: TMPDIR is too long a path for a socket: {deep}."
    assert [*deep.iterdir()] == []


def test_a_damaged_model_is_told(tmp_path: Path) -> None:
    """Without a server, the command reports what is wrong with the model."""
    (tmp_path / "bad.gguf").touch()
    models = tmp_path / "models.yaml"
    models.write_text("models: [{id: bad, family: ovis_image, files: {model: bad.gguf}}]")
    result = sdstream("generate", "a", folder=tmp_path, models=models)
    assert result.returncode == 78
    assert "The default model 'bad' cannot be used. The file of 'model' is empty." in said(result)


def test_an_unknown_upscaler_of_the_model_is_told(tmp_path: Path) -> None:
    """An upscaler that does not exist ends the start, in place of every enlarged request."""
    models = tmp_path / "models.yaml"
    models.write_text(
        "models: [{id: a, family: ovis_image, files: {model: builtin:drawings}, "
        "size: {enlarge: {sizes: [128x128], upscaler: drawings-x4}}}]"
    )
    result = sdstream("generate", "a", folder=tmp_path, models=models)
    assert result.returncode == 78
    assert said(result).endswith(
        "line 1: models.a.size.enlarge.upscaler: the upscaler 'drawings-x4' is neither built in "
        "nor in the folder of --upscaler-dir; did you mean 'drawings-4x'?"
    )


# --- models, settings, help ---------------------------------------------------------------------


def test_models_of_the_catalogue(tmp_path: Path) -> None:
    """Without a server, the command lists the catalogue."""
    result = sdstream("models", folder=tmp_path)
    assert result.returncode == 0
    assert re.search(rb"embedded\s+ovis_image\s+\d+x\d+\s+default", result.stdout)


def test_descriptions_are_shown_as_they_are(tmp_path: Path) -> None:
    """Markup in a description is shown as text; line breaks and control characters are replaced."""
    models = tmp_path / "models.yaml"
    models.write_text(
        "models: [{id: odd, family: ovis_image, files: {model: 'builtin:drawings'}, "
        'description: "SD [/x] [b]:cat:\\n\\e[31m"}]'
    )
    result = sdstream("models", folder=tmp_path, models=models)
    assert result.returncode == 0, said(result)
    assert "SD [/x] [b]:cat: ?[31m" in result.stdout.decode()


def test_models_of_a_server(tmp_path: Path, fake_server: ServerProcess) -> None:
    """With --server, the command lists the states of the server's models."""
    result = sdstream("models", "--server", fake_server.url, folder=tmp_path)
    assert result.returncode == 0
    assert re.search(rb"embedded\s+ovis_image\s+\d+x\d+\s+ready", result.stdout)


def test_models_of_a_server_are_reloaded(tmp_path: Path) -> None:
    """--reload lists the changed entries, or reports an invalid file and exits with 1."""
    models = tmp_path / "models.yaml"
    entry = "  - {id: NAME, family: sd3, files: {model: x}}\n"
    models.write_text("models:\n" + entry.replace("NAME", "a"))
    with running_server(tmp_path, engine="fake", models=models) as server:
        reload = ("models", "--reload", "--server", server.url)
        assert sdstream(*reload, folder=tmp_path).stdout == b"No entry changed.\n"
        models.write_text("models:\n" + entry.replace("NAME", "b") + entry.replace("NAME", "c"))
        told = sdstream(*reload, folder=tmp_path)
        assert told.stdout == b"added: b, c\nremoved: a\n"
        models.write_text("models: 7")
        wrong = sdstream(*reload, folder=tmp_path)
        assert wrong.returncode == 1
        assert "models.yaml was not reloaded: line 1" in said(wrong)


@pytest.mark.parametrize("command", [["generate", "a"], ["models"], ["serve"]])
def test_a_wrong_catalogue(tmp_path: Path, command: list[str]) -> None:
    """Every command that reads an invalid catalogue exits with 78 and names the file and the
    lines."""
    models = tmp_path / "mine.yaml"
    models.write_text("models:\n  - id: a\n    colour: red\n")
    result = sdstream(*command, folder=tmp_path, models=models)
    assert result.returncode == 78
    assert result.stderr.decode().splitlines() == [
        f"Error: {models} has 3 problems:",
        "  line 2: the key 'models.a.family' is missing",
        "  line 2: the key 'models.a.files' is missing",
        "  line 3: unknown key 'models.a.colour'",
    ]


@pytest.mark.parametrize(
    ("command", "variable", "value"),
    [
        (["generate", "a"], "hang_seconds", "abc"),
        (["models"], "log_level", "loud"),
        (["serve"], "queue_images", "0"),
        (["serve"], "lora_dir", "/nowhere"),
        (["serve"], "cors_origins", "localhost:4000"),
        (["serve"], "runtime_options", "offload"),
    ],
)
def test_a_wrong_setting(tmp_path: Path, command: list[str], variable: str, value: str) -> None:
    """An invalid variable ends the command with exit code 78 and an error that names the
    variable."""
    result = sdstream(*command, folder=tmp_path, **{variable: value})
    assert result.returncode == 78
    assert f"SDSTREAM_{variable.upper()}" in said(result)
    assert "Value error" not in said(result)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("ofload=true", "unknown runtime option 'ofload'; available: threads, "),
        ("ofload=true", "Did you mean 'offload'?"),
        ("wtype=q4", "wtype: unknown wtype 'q4'; available: f32"),
    ],
)
def test_a_wrong_runtime_option(tmp_path: Path, option: str, words: str) -> None:
    """`serve -O` checks names and values before the server starts."""
    result = sdstream("serve", "-O", "threads=1", "-O", option, folder=tmp_path)
    assert result.returncode == 78
    assert words in said(result)


def test_a_model_that_is_a_folder(tmp_path: Path) -> None:
    """`--model FOLDER`, for example in diffusers' layout, says that a file is needed."""
    result = sdstream("serve", "--model", str(tmp_path), folder=tmp_path)
    assert result.returncode == 78
    assert f"{tmp_path} is a folder; name a .gguf or .safetensors file in it." in said(result)


def test_a_flag_wins_over_its_variable(tmp_path: Path) -> None:
    """`serve --port` overrides SDSTREAM_PORT; an invalid flag ends with exit code 78 too."""
    result = sdstream("serve", "--port", "70000", folder=tmp_path, port=8000)
    assert result.returncode == 78
    assert "port" in said(result)


_FAULTY = """
from sdstream.cli.main import main
from sdstream.service.dispatch import Dispatcher
from sdstream.service.service import ImageService
def fail(self):
    raise RuntimeError("a fault of its own")
METHOD = fail
main(["serve"])
"""


@pytest.mark.parametrize("method", ["Dispatcher._dispatch", "ImageService.recover"])
def test_a_service_that_stops_by_a_fault_takes_the_server_down(tmp_path: Path, method: str) -> None:
    """When the service fails, even during startup, the server logs the error and exits with 70, so
    that a supervisor can restart it."""
    settings = environment(data_dir=tmp_path, engine="fake", port=free_port())
    result = subprocess.run(
        [sys.executable, "-c", _FAULTY.replace("METHOD", method)],
        check=False,
        capture_output=True,
        env=settings,
        timeout=60,
    )
    assert result.returncode == 70
    assert "RuntimeError: a fault of its own" in said(result)


@pytest.mark.parametrize("command", [[], ["serve"], ["generate"], ["models"]])
def test_help_teaches(tmp_path: Path, command: list[str]) -> None:
    """--help shows the usage of each command."""
    result = sdstream(*command, "--help", folder=tmp_path)
    assert result.returncode == 0
    assert b"Usage: " in result.stdout


def test_version(tmp_path: Path) -> None:
    """--version prints the program's name and version."""
    assert re.fullmatch(
        rb"sdstream, version \d+\.\d+\.\d+\n", sdstream("--version", folder=tmp_path).stdout
    )
