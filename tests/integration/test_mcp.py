"""/mcp, driven by the official client of the Model Context Protocol."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, MCPError
from PIL import Image

from sdstream.core.errors import NotInstalled
from sdstream.tools import extra
from tests.support.mcp import (
    connected,
    error_of,
    fields,
    images,
    links,
    run_session,
    sentence,
    until_status,
    without_mcp,
)
from tests.support.pictures import opened, png
from tests.support.servers import ServerProcess, running_server, wait_until

KEYS = ("the-first-key", "the-second-key")
#: Slow enough that a cancel arrives before the last step.
SLOW = {"prompt": "a cat step=0.2", "size": "64x64", "sample_steps": 100}
MODES = ("auto", "legacy")
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}
ACCEPT = {"Accept": "application/json, text/event-stream"}


def key(number: int) -> dict[str, str]:
    """Return the header of a key."""
    return {"Authorization": f"Bearer {KEYS[number]}"}


@pytest.fixture(scope="module")
def two_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server on the fake engine with two keys."""
    folder = tmp_path_factory.mktemp("two-keys")
    with running_server(folder, engine="fake", api_keys=",".join(KEYS)) as server:
        yield server


@pytest.mark.parametrize("mode", MODES)
def test_tools(fake_server: ServerProcess, mode: str) -> None:
    """There are five tools, whose schemas contain the options of the model."""

    async def session(client: Client) -> None:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert [*tools] == [
            "generate_image", "edit_image", "list_models", "job_status", "cancel_job"
        ]  # fmt: skip
        model = httpx2.get(f"{fake_server.url}/v1/models/default").json()
        edit = tools["edit_image"].input_schema["properties"]
        assert {name: edit[name] for name in model["options"]} == model["options"]
        generate = tools["generate_image"].input_schema
        assert generate["required"] == ["prompt"]
        assert edit.keys() - generate["properties"].keys() == {
            "image", "mask", "strength", "fit", "mask_mode", "mask_blur", "only_masked",
            "only_masked_padding", "expand",
        }  # fmt: skip
        assert generate["properties"]["model"]["enum"] == ["embedded"]

    run_session(session, fake_server.url, mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_generate_with_progress(fake_server: ServerProcess, mode: str) -> None:
    """A call reports each step and returns the images, their links and their seeds."""

    async def session(client: Client) -> None:
        reports: list[tuple[float, float | None, str | None]] = []

        async def report(progress: float, total: float | None, message: str | None) -> None:
            reports.append((progress, total, message))

        arguments = {"prompt": "a cat", "n": 2, "size": "64x128", "seed": 7, "steps": 3}
        result = await client.call_tool("generate_image", arguments, progress_callback=report)
        steps = [message for _, _, message in reports if message and "step" in message]
        assert steps == [f"Image {i} of 2, step {step} of 3" for i in (1, 2) for step in (1, 2, 3)]
        numbers = [number for number, _, _ in reports]
        assert numbers == sorted(set(numbers))
        assert {total for _, total, _ in reports} == {100.0}
        job = fields(result)
        assert [image["seed"] for image in job["images"]] == [7, 8]
        assert job["parameters"]["sample_steps"] == 3
        assert [opened(image).size for image in images(result)] == [(64, 128)] * 2
        assert links(result) == [image["url"] for image in job["images"]]
        assert [httpx2.get(link).content for link in links(result)] == images(result)
        read = await client.read_resource(links(result)[1])
        assert base64.b64decode(getattr(read.contents[0], "blob", "")) == images(result)[1]

    run_session(session, fake_server.url, mode=mode)


def test_the_form_of_the_images(fake_server: ServerProcess) -> None:
    """response_format selects content or links, and output_format the format of the files."""

    async def session(client: Client) -> None:
        common = {"prompt": "a cat", "size": "64x64", "output_format": "jpeg"}
        only = await client.call_tool("generate_image", {**common, "response_format": "b64_json"})
        assert (len(images(only)), links(only)) == (1, [])
        assert opened(images(only)[0]).format == "JPEG"
        only = await client.call_tool("generate_image", {**common, "response_format": "url"})
        assert (images(only), len(links(only))) == ([], 1)
        assert "response_format" in await error_of(
            client, "generate_image", **common, response_format="B64Json"
        )

    run_session(session, fake_server.url)


def test_edits(fake_server: ServerProcess) -> None:
    """An image may be base64, a data: URL, or the id of an earlier job's image."""
    plain = base64.b64encode(png(64, 128, "red")).decode()
    spelled = (
        plain,
        f"data:image/png;base64,{plain}",
        f"DATA:image/png;base64,{plain}",
        "\n".join(plain[i : i + 76] for i in range(0, len(plain), 76)),
        base64.urlsafe_b64encode(png(64, 128, "red")).decode().rstrip("="),
        [plain],
    )

    async def session(client: Client) -> None:
        for image in spelled:
            arguments = {"prompt": "a dog", "image": image, "strength": 0.5, "steps": 2}
            result = await client.call_tool("edit_image", arguments)
            assert fields(result)["parameters"]["strength"] == 0.5
            assert opened(images(result)[0]).size == (64, 128)
        earlier = fields(result)["images"][0]["id"]
        for name in (earlier, earlier.partition("/")[0]):
            mask = base64.b64encode(png(64, 128)).decode()
            arguments = {"prompt": "a fox", "image": name, "mask": mask, "steps": 2}
            arguments["mask_mode"] = "luminance"
            result = await client.call_tool("edit_image", arguments)
            assert opened(images(result)[0]).size == (64, 128)

    run_session(session, fake_server.url)


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("generate_image", {}, "'prompt' is required."),
        ("generate_image", {"prompt": "a", "sampel": 1}, "Unknown field 'sampel'."),
        ("generate_image", {"prompt": "a", "sampel_steps": 1}, "Did you mean 'sample_steps'?"),
        ("generate_image", {"prompt": "a", "stream": True}, "Unknown field 'stream'."),
        ("generate_image", {"prompt": "a", "user": "b"}, "Unknown field 'user'."),
        ("generate_image", {"prompt": "a", "steps": 1000}, "'steps'"),
        ("generate_image", {"prompt": "a", "wait": "no"}, "'wait' must be true or false."),
        (
            "generate_image",
            {"prompt": "a", "image": "aGk="},
            "'image' is an argument of edit_image",
        ),
        ("generate_image", {"prompt": "a", "model": "nobody"}, "nobody"),
        ("edit_image", {"prompt": "a"}, "'image' is required."),
        ("edit_image", {"prompt": "a", "image": 7}, "'image' must be a string."),
        ("edit_image", {"prompt": "a", "image": "https://host/cat.png"}, "URLs are not downloaded"),
        ("edit_image", {"prompt": "a", "image": "file:///etc/passwd"}, "URLs are not downloaded"),
        ("edit_image", {"prompt": "a", "image": "/etc/shadow.png"}, "'image' is a path"),
        ("edit_image", {"prompt": "a", "image": "../cat.png"}, "'image' is a path"),
        ("edit_image", {"prompt": "a", "image": "not base64"}, "'image' is not base64."),
        ("edit_image", {"prompt": "a", "image": "aGVsbG8="}, "image"),
        ("edit_image", {"prompt": "a", "image": "job_nobody/0"}, "Job not found"),
        ("list_models", {"all": True}, "Unknown field 'all'."),
        ("job_status", {}, "'job' is required."),
        ("job_status", {"job": 7}, "'job' must be a string."),
        ("job_status", {"job": "job_nobody"}, "Job not found; it may have expired."),
        ("cancel_job", {"job": "job_nobody"}, "Job not found; it may have expired."),
    ],
)
def test_errors(
    fake_server: ServerProcess, tool: str, arguments: dict[str, Any], words: str
) -> None:
    """An invalid call gets a tool error with the service's message, also as structured content."""

    async def session(client: Client) -> None:
        result = await client.call_tool(tool, arguments)
        assert result.is_error
        assert words in sentence(result)
        assert result.structured_content["error"]["message"] == sentence(result)

    run_session(session, fake_server.url)


def test_an_unknown_tool_and_an_unknown_image(fake_server: ServerProcess) -> None:
    """An unknown tool and an unknown image are errors of the protocol."""

    async def session(client: Client) -> None:
        with pytest.raises(MCPError, match="Unknown tool 'nothing'"):
            await client.call_tool("nothing", {})
        with pytest.raises(MCPError, match="Image not found"):
            await client.read_resource(f"{fake_server.url}/v1/images/nothing-here/content")
        assert (await client.list_resources()).resources == []

    run_session(session, fake_server.url)


def test_models(fake_server: ServerProcess) -> None:
    """list_models returns the models with their state and defaults."""

    async def session(client: Client) -> None:
        result = await client.call_tool("list_models", {})
        (model,) = fields(result)["models"]
        assert (model["id"], model["default"], model["state"]) == ("embedded", True, "ready")
        assert model["defaults"]["sample_steps"] == 12
        assert result.structured_content == fields(result)

    run_session(session, fake_server.url)


@pytest.mark.parametrize("mode", MODES)
def test_jobs(fake_server: ServerProcess, mode: str) -> None:
    """``wait: false`` returns a job, which job_status follows and cancel_job stops."""

    async def session(client: Client) -> None:
        arguments = {"prompt": "a cat", "size": "64x64", "steps": 2, "wait": False}
        begun = fields(await client.call_tool("generate_image", arguments))
        await until_status(client, begun["job"], "completed")
        result = await client.call_tool("job_status", {"job": begun["job"]})
        assert len(images(result)) == len(links(result)) == 1
        again = fields(await client.call_tool("cancel_job", {"job": begun["job"]}))
        assert again == {"job": begun["job"], "status": "completed", "cancel": "already_ended"}

        slow = fields(await client.call_tool("generate_image", {**SLOW, "wait": False}))
        running = await until_status(client, slow["job"], "running")
        assert running["steps"] == 100
        stopping = fields(await client.call_tool("cancel_job", {"job": slow["job"]}))
        assert stopping["cancel"] == "stopping"
        ended = await until_status(client, slow["job"], "cancelled")
        assert ended["error"]["message"] == "The job was cancelled."

    run_session(session, fake_server.url, mode=mode)


async def newest(server: ServerProcess) -> dict[str, Any]:
    """Return the newest job of a server without keys."""
    async with httpx2.AsyncClient() as http:
        return dict((await http.get(f"{server.url}/v1/jobs?limit=1")).json()["data"][0])


async def until_newest(server: ServerProcess, status: str) -> dict[str, Any]:
    """Wait until the newest job has this status."""
    async with asyncio.timeout(10):
        while (job := await newest(server))["status"] != status:
            await asyncio.sleep(0.05)
        return job


@pytest.mark.parametrize("mode", MODES)
def test_a_cancelled_request_cancels_its_job(fake_server: ServerProcess, mode: str) -> None:
    """A request is cancelled by a notification or, in the newer protocol, by closing its stream."""

    async def session(client: Client) -> None:
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
        await until_newest(fake_server, "cancelled")
        # The session continues.
        assert fields(await client.call_tool("list_models", {}))

    run_session(session, fake_server.url, mode=mode)


def test_a_message_in_gzip(fake_server: ServerProcess) -> None:
    """A message may be compressed with gzip."""
    answer = httpx2.post(
        f"{fake_server.url}/mcp",
        content=gzip.compress(json.dumps(INITIALIZE).encode()),
        headers={**ACCEPT, "Content-Type": "application/json", "Content-Encoding": "gzip"},
    )
    assert answer.status_code == 200
    assert "protocolVersion" in answer.text


def test_a_client_that_leaves_cancels_its_job(fake_server: ServerProcess) -> None:
    """A client's disconnection cancels its job, even in the protocol with sessions."""

    async def leave() -> None:
        headers = {**ACCEPT, "Mcp-Protocol-Version": "2025-06-18"}
        async with httpx2.AsyncClient(base_url=fake_server.url, headers=headers) as http:
            answer = await http.post("/mcp", json=INITIALIZE)
            http.headers["Mcp-Session-Id"] = answer.headers["Mcp-Session-Id"]
            await http.post("/mcp", json={"jsonrpc": "2.0", "method": "notifications/initialized"})
            call = {"name": "generate_image", "arguments": SLOW, "_meta": {"progressToken": 1}}
            message = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call}
            async with http.stream("POST", "/mcp", json=message) as stream:
                async for line in stream.aiter_lines():
                    if "Step 1 of" in line:
                        break
        job = await until_newest(fake_server, "cancelled")
        assert job["error"]["message"] == "The client disconnected."

    asyncio.run(leave())


def test_jobs_of_another_key(two_keys: ServerProcess) -> None:
    """The jobs and images of another key do not exist for this key."""

    async def first(client: Client) -> None:
        arguments = {"prompt": "a cat", "size": "64x64", "wait": False}
        job = fields(await client.call_tool("generate_image", arguments))["job"]
        found.append(job)
        await until_status(client, job, "completed")

    async def second(client: Client) -> None:
        (job,) = found
        missing = "Job not found; it may have expired."
        assert await error_of(client, "job_status", job=job) == missing
        assert await error_of(client, "cancel_job", job=job) == missing
        assert await error_of(client, "edit_image", prompt="a", image=f"{job}/0") == missing

    found: list[str] = []
    run_session(first, two_keys.url, headers=key(0))
    run_session(second, two_keys.url, headers=key(1))
    jobs = httpx2.get(f"{two_keys.url}/v1/jobs", headers=key(1)).json()
    assert jobs["data"] == []


def test_a_session_of_another_key(two_keys: ServerProcess) -> None:
    """The session of another key does not exist for this key."""
    url = f"{two_keys.url}/mcp"
    answer = httpx2.post(url, json=INITIALIZE, headers={**ACCEPT, **key(0)})
    session = {"Mcp-Session-Id": answer.headers["Mcp-Session-Id"]}
    listing = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
    for number, status in ((1, 404), (0, 200)):
        headers = {**ACCEPT, **key(number), **session}
        assert httpx2.post(url, json=listing, headers=headers).status_code == status
    assert httpx2.delete(url, headers={**key(0), **session}).status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_a_missing_key(two_keys: ServerProcess, method: str) -> None:
    """A missing key gets a 401 in the format of JSON-RPC."""
    answer = httpx2.request(method, f"{two_keys.url}/mcp", headers=ACCEPT)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    body = answer.json()
    assert (body["jsonrpc"], body["error"]["reason"]) == ("2.0", "invalid_api_key")


def test_a_missing_key_of_the_client(two_keys: ServerProcess) -> None:
    """The official client reports the service's message for a missing key."""

    async def session() -> None:
        async with connected(two_keys.url):
            pass

    with pytest.raises(BaseExceptionGroup) as caught:
        asyncio.run(session())
    assert "API key missing or wrong" in repr(caught.value)


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"Origin": "http://evil.example"}, "cross_origin"),
        ({"Sec-Fetch-Site": "cross-site"}, "cross_origin"),
        ({"Host": "evil.example"}, "host_not_allowed"),
    ],
)
def test_foreign_pages(
    fake_server: ServerProcess, method: str, headers: dict[str, str], reason: str
) -> None:
    """Pages of other origins, and host names rebound to this machine, are rejected."""
    answer = httpx2.request(method, f"{fake_server.url}/mcp", headers={**ACCEPT, **headers})
    assert answer.status_code == 403
    assert answer.json()["error"]["reason"] == reason


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"{", 400, "invalid_json"),
        (b"[]", 400, "invalid_json"),
        (b'{"prompt": "a"}', 400, "invalid_value"),
        (b'{"jsonrpc": "2.0", "id": 1, "id": 2}', 400, "invalid_json"),
        (b" " * (65 * 2**20), 413, "body_too_large"),
    ],
)
def test_bodies(fake_server: ServerProcess, body: bytes, status: int, reason: str) -> None:
    """Bodies get the same checks as on every other route."""
    headers = {**ACCEPT, "Content-Type": "application/json"}
    answer = httpx2.post(f"{fake_server.url}/mcp", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (status, reason)


def test_a_large_result(fake_server: ServerProcess) -> None:
    """Large images are reduced in a result.

    The link returns the original, as does the content with response_format ``both``.
    """
    noise, mask = io.BytesIO(), Image.new("RGB", (512, 512))
    Image.frombytes("RGB", (512, 512), os.urandom(3 * 512**2)).save(noise, "PNG")
    mask.paste("white", (0, 0, 16, 16))
    drawn = io.BytesIO()
    mask.save(drawn, "PNG")
    arguments = {
        "prompt": "a",
        "image": base64.b64encode(noise.getvalue()).decode(),
        "mask": base64.b64encode(drawn.getvalue()).decode(),
        "mask_mode": "luminance",
        "steps": 2,
    }

    async def session(client: Client) -> None:
        result = await client.call_tool("edit_image", arguments)
        assert "reduced" in fields(result)["note"]
        (view,), (link,) = images(result), links(result)
        original = httpx2.get(link).content
        assert len(view) < 700_000 < len(original)
        assert (opened(view).format, opened(original).format) == ("WEBP", "PNG")
        job = fields(result)["job"]
        assert images(await client.call_tool("job_status", {"job": job})) == [view]

    async def original(client: Client) -> None:
        result = await client.call_tool("edit_image", {**arguments, "response_format": "both"})
        assert opened(images(result)[0]).format == "PNG"
        assert "note" not in fields(result)
        read = await client.read_resource(links(result)[0])
        assert base64.b64decode(getattr(read.contents[0], "blob", "")) == images(result)[0]

    for mode in MODES:
        run_session(session, fake_server.url, mode=mode)
    # Answers that are not streams have no limit.
    run_session(original, fake_server.url)


@pytest.mark.parametrize(
    ("method", "accept", "status", "reason"),
    [
        ("GET", "*/*", 405, "method_not_allowed"),
        ("DELETE", "*/*", 405, "method_not_allowed"),
        ("POST", "text/html", 406, "not_acceptable"),
    ],
)
def test_errors_of_the_newer_protocol(
    fake_server: ServerProcess, method: str, accept: str, status: int, reason: str
) -> None:
    """Errors of the newer protocol have a body like every other error."""
    headers = {"Accept": accept, "Mcp-Protocol-Version": "2026-07-28"}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"} if method == "POST" else None
    answer = httpx2.request(method, f"{fake_server.url}/mcp", json=message, headers=headers)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (status, reason)
    assert method == "POST" or answer.headers["Allow"] == "POST"


def test_a_large_image(fake_server: ServerProcess) -> None:
    """A body may be as large as the service allows, beyond the mcp package's 4 MiB."""
    file = io.BytesIO()
    Image.frombytes("RGB", (1500, 1500), os.urandom(3 * 1500**2)).save(file, "PNG")
    assert len(file.getvalue()) > 6 * 2**20

    async def session(client: Client) -> None:
        image = base64.b64encode(file.getvalue()).decode()
        arguments = {"prompt": "a", "image": image, "size": "64x64", "steps": 2}
        result = await client.call_tool("edit_image", arguments)
        assert len(images(result)) == 1

    run_session(session, fake_server.url)


def test_shutdown(tmp_path: Path) -> None:
    """A running call gets the grace time; an idle stream does not delay the exit."""
    settings: dict[str, Any] = {"engine": "fake", "grace_seconds": 10.0}
    with running_server(tmp_path, **settings) as server:

        async def session(client: Client) -> None:
            started = asyncio.Event()

            async def report(progress: float, total: float | None, message: str | None) -> None:
                if message and message.startswith("Step"):
                    started.set()

            arguments = {"prompt": "a cat step=0.3", "size": "64x64", "steps": 6}
            call = asyncio.create_task(
                client.call_tool("generate_image", arguments, progress_callback=report)
            )
            await started.wait()
            server.process.terminate()
            assert len(images(await call)) == 1

        # The client raises an error when it ends the session, because the server has exited.
        try:
            run_session(session, server.url, mode="legacy")
        except* httpx2.HTTPError:
            pass
        wait_until(lambda: server.process.poll() is not None, 5, "the server goes on")
        assert server.log_lines("ERROR") == []


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the command that installs the extra."""
    monkeypatch.setattr(extra, "installed", lambda: False)
    with pytest.raises(NotInstalled, match=r"pip install 'sdstream\[mcp\]'") as caught:
        extra.load("server")
    assert caught.value.status == 501


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_a_server_without_the_extra(server_without_extra: ServerProcess, method: str) -> None:
    """A server without the extra answers 501 and names the extra."""
    answer = httpx2.request(method, f"{server_without_extra.url}/mcp")
    assert (answer.status_code, answer.json()["error"]["reason"]) == (501, "not_installed")
    assert "sdstream[mcp]" in answer.json()["error"]["message"]


@pytest.fixture(scope="module")
def server_without_extra(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose Python cannot import the mcp package."""
    folder = tmp_path_factory.mktemp("bare")
    with running_server(folder, engine="fake", environment=without_mcp(folder)) as server:
        yield server
