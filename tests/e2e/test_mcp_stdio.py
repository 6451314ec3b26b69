"""``sdstream mcp``, used by the official client over stdin and stdout."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx2
import pytest
from mcp import Client, MCPError

from sdstream.core.errors import InvalidRequest
from sdstream.dialects.mcp.arguments import pictures_of
from sdstream.tools.files import with_files
from tests.e2e.conftest import KEY
from tests.support.mcp import (
    error_of,
    fake_environment,
    fields,
    images,
    links,
    run_stdio,
    sentence,
    stdio_server,
    until_status,
    without_mcp,
)
from tests.support.pictures import opened, png
from tests.support.servers import ServerProcess, free_port, wait_until

SLOW = {"prompt": "a cat step=0.2", "size": "64x64", "sample_steps": 100}


def file_of(link: str) -> Path:
    """Return the path in a file: link."""
    parts = urlsplit(link)
    assert parts.scheme == "file"
    return Path(url2pathname(parts.path))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with images, with symbolic links that stay inside it and links that leave it."""
    folder = tmp_path / "root"
    (folder / "sub").mkdir(parents=True)
    (folder / "cat.png").write_bytes(png(64, 128, "red"))
    (folder / "sub" / "mask.png").write_bytes(png(64, 128))
    (tmp_path / "secret.png").write_bytes(png(64, 64))
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    (folder / "outside").symlink_to(tmp_path)
    (folder / "within.png").symlink_to(folder / "cat.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "cat.d").mkdir()
    return folder


def test_embedded(tmp_path: Path, root: Path) -> None:
    """Without a server, the tools report progress, link to files in --data-dir, and edit images."""

    async def session(client: Client) -> None:
        tools = {tool.name: tool.input_schema for tool in (await client.list_tools()).tools}
        assert str(root) in tools["edit_image"]["properties"]["image"]["description"]
        messages: list[str] = []

        async def report(progress: float, total: float | None, message: str | None) -> None:
            messages.append(message or "")

        arguments = {"prompt": "a cat", "size": "64x128", "seed": 7, "steps": 3}
        result = await client.call_tool("generate_image", arguments, progress_callback=report)
        assert messages[-3:] == [f"Step {step} of 3" for step in (1, 2, 3)]
        (link,), (image,) = links(result), images(result)
        assert file_of(link).read_bytes() == image
        assert file_of(link).is_relative_to(tmp_path / "data")
        read = await client.read_resource(link)
        assert base64.b64decode(getattr(read.contents[0], "blob", "")) == image
        earlier = fields(result)["images"][0]["id"]
        for name in (earlier, "cat.png", str(root / "cat.png"), "sub/../cat.png", "within.png"):
            arguments = {"prompt": "a dog", "image": name, "mask": "sub/mask.png", "steps": 2}
            result = await client.call_tool(
                "edit_image", {**arguments, "mask_mode": "luminance", "strength": 0.5}
            )
            assert opened(images(result)[0]).size == (64, 128), name
        result = await client.call_tool("list_models", {})
        assert [model["id"] for model in fields(result)["models"]] == ["embedded"]

    arguments = ("--root", str(root), "--data-dir", str(tmp_path / "data"))
    run_stdio(session, *arguments, environment=fake_environment(tmp_path))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("../secret.png", "outside of the folder given by --root"),
        ("out.png", "outside of the folder given by --root"),
        ("outside/secret.png", "outside of the folder given by --root"),
        ("sub/../../secret.png", "outside of the folder given by --root"),
        ("/etc/ld.so.conf", "outside of the folder given by --root"),
        ("../missing.png", "outside of the folder given by --root"),
        ("missing.png", "'missing.png', which cannot be found"),
        ("loop.png", "cannot be"),
        ("a\0.png", "cannot be found"),
        ("cat.d", "is not a regular file of at most 64 MiB"),
        ("https://host/cat.png", "URLs are not downloaded"),
        ("file:///etc/hosts.png", "URLs are not downloaded"),
    ],
)
def test_what_is_no_file_of_the_folder(root: Path, image: str, words: str) -> None:
    """Anything but a file inside the folder is rejected, whatever the path or link."""
    with pytest.raises(InvalidRequest, match=words):
        _read(root, image)


def _read(root: Path, image: str) -> None:
    """Read an image as the command does: read a path, then check the image."""
    arguments = with_files("edit_image", {"image": image}, root)
    for picture in pictures_of("edit_image", arguments):
        picture.check()


def test_paths_in_a_session(tmp_path: Path, root: Path) -> None:
    """The client receives the reason of a rejected path; without --root, every path is rejected."""

    async def session(client: Client) -> None:
        for image in ("../secret.png", "out.png", str(tmp_path / "secret.png")):
            told = await error_of(client, "edit_image", prompt="a", image=image)
            assert "outside of the folder given by --root" in told
        told = await error_of(client, "edit_image", prompt="a", image="http://host/cat.png")
        assert "URLs are not downloaded" in told

    async def without_root(client: Client) -> None:
        told = await error_of(client, "edit_image", prompt="a", image=str(root / "cat.png"))
        assert "'image' is a path" in told

    environment = fake_environment(tmp_path)
    run_stdio(session, "--root", str(root), environment=environment)
    run_stdio(without_root, environment=environment)


def test_cancel(tmp_path: Path) -> None:
    """A cancelled request cancels its job, and the tool cancel_job cancels a given job."""

    async def session(client: Client) -> None:
        job = fields(await client.call_tool("generate_image", {**SLOW, "wait": False}))["job"]
        await until_status(client, job, "running")
        assert fields(await client.call_tool("cancel_job", {"job": job}))["cancel"] == "stopping"
        await until_status(client, job, "cancelled")

        started = asyncio.Event()

        async def report(progress: float, total: float | None, message: str | None) -> None:
            if message and message.startswith("Step"):
                started.set()

        call = asyncio.create_task(
            client.call_tool("generate_image", SLOW, progress_callback=report)
        )
        await started.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        # The cancelled job would take 20 seconds, and this call would wait for it.
        async with asyncio.timeout(10):
            await client.call_tool("generate_image", {"prompt": "a", "size": "64x64", "steps": 1})

    run_stdio(session, environment=fake_environment(tmp_path))


def test_a_running_server(keyed_server: ServerProcess, root: Path) -> None:
    """With --server, calls go to the server's /mcp, and paths refer to the client's machine."""

    async def session(client: Client) -> None:
        tools = {tool.name: tool.input_schema for tool in (await client.list_tools()).tools}
        assert str(root) in tools["edit_image"]["properties"]["image"]["description"]
        messages: list[str] = []

        async def report(progress: float, total: float | None, message: str | None) -> None:
            messages.append(message or "")

        arguments = {"prompt": "a dog", "image": "cat.png", "steps": 3, "strength": 1}
        result = await client.call_tool("edit_image", arguments, progress_callback=report)
        assert messages[-1] == "Step 3 of 3"
        (link,), (image,) = links(result), images(result)
        assert link.startswith(keyed_server.url)
        # The link contains a token, so that users without the key can open it.
        assert httpx2.get(link).content == image
        read = await client.read_resource(link)
        assert base64.b64decode(getattr(read.contents[0], "blob", "")) == image
        job = fields(result)["job"]
        assert fields(await client.call_tool("job_status", {"job": job}))["status"] == "completed"
        told = await error_of(client, "generate_image", prompt="a", steps=1000)
        assert "'steps'" in told
        with pytest.raises(MCPError, match="Unknown tool"):
            await client.call_tool("nothing", {})

    arguments = ("--root", str(root), "--server", keyed_server.url)
    run_stdio(session, *arguments, environment={"SDSTREAM_CLIENT_KEY": KEY})


def test_a_cancelled_request_of_a_running_server(fake_server: ServerProcess) -> None:
    """The server cancels the job of a cancelled request and of a client that disconnects."""

    async def begin(client: Client) -> asyncio.Task[object]:
        started = asyncio.Event()

        async def report(progress: float, total: float | None, message: str | None) -> None:
            if message and message.startswith("Step"):
                started.set()

        call: asyncio.Task[object] = asyncio.create_task(
            client.call_tool("generate_image", SLOW, progress_callback=report)
        )
        await started.wait()
        return call

    def newest() -> str:
        job = httpx2.get(f"{fake_server.url}/v1/jobs?limit=1").json()["data"][0]
        return str(job["status"])

    async def cancelling(client: Client) -> None:
        (await begin(client)).cancel()
        async with asyncio.timeout(10):
            while await asyncio.to_thread(newest) != "cancelled":
                await asyncio.sleep(0.05)

    async def leaving(client: Client) -> None:
        await begin(client)

    for session in (cancelling, leaving):
        run_stdio(session, "--server", fake_server.url, environment={})
        wait_until(lambda: newest() == "cancelled", 10, "the job goes on")


def test_a_server_that_is_not_there(keyed_server: ServerProcess) -> None:
    """The client receives an error for a server that does not run and for a wrong key."""

    async def nobody(client: Client) -> None:
        told = await error_of(client, "generate_image", prompt="a")
        assert told.startswith("no server answers at http://127.0.0.1:")
        assert "starts one." in told

    async def stranger(client: Client) -> None:
        told = await error_of(client, "generate_image", prompt="a")
        assert "API key missing or wrong" in told
        with pytest.raises(MCPError, match="API key missing or wrong"):
            await client.list_tools()

    # This client does not list the tools, so that it receives the error of the call.
    run_stdio(nobody, "--server", f"http://127.0.0.1:{free_port()}", environment={})
    run_stdio(stranger, "--server", keyed_server.url, "--api-key", "wrong", environment={})


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--server", "ftp://nowhere"), 1, "'ftp://nowhere' is not an address of a server"),
        (("--server", "http://localhost:1", "--model", "x"), 2, "cannot be combined with --server"),
        (("--root", "/nonexistent"), 2, "does not exist"),
        (("--model", "nobody"), 78, "nobody"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    """Wrong usage is an error on stderr and an exit code; stdout is reserved for the client."""
    parameters = stdio_server(*arguments, environment=fake_environment(tmp_path))
    done = subprocess.run(
        [parameters.command, *parameters.args],
        env=parameters.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals(tmp_path: Path, number: signal.Signals) -> None:
    """A signal ends the command with its worker and removes its temporary folder."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {**fake_environment(tmp_path), "TMPDIR": str(temporary)}
    parameters = stdio_server(environment=environment)
    with subprocess.Popen(
        [parameters.command, *parameters.args],
        env=parameters.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ask = {"jsonrpc": "2.0", "id": 1, "method": "initialize"}
        ask["params"] = {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        }
        process.stdin.write(json.dumps(ask).encode() + b"\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["id"] == 1
        assert len([*temporary.iterdir()]) == 1
        process.send_signal(number)
        assert process.wait(90) == -number
    assert [*temporary.iterdir()] == []


def test_without_the_extra(tmp_path: Path) -> None:
    """The error names the extra to install."""
    done = subprocess.run(
        [sys.executable, "-m", "sdstream", "mcp"],
        env=without_mcp(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: MCP needs an extra: pip install 'sdstream[mcp]'\n"


def test_the_built_in_model(tmp_path: Path) -> None:
    """The real runtime generates an image, and its output does not reach stdout."""

    async def session(client: Client) -> None:
        arguments = {"prompt": "a red circle", "size": "64x64", "steps": 2, "seed": 7}
        result = await client.call_tool("generate_image", arguments)
        assert not result.is_error, sentence(result)
        assert opened(images(result)[0]).size == (64, 64)

    environment = fake_environment(tmp_path)
    del environment["SDSTREAM_ENGINE"]
    run_stdio(session, environment=environment)
