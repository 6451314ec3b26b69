"""sdstream pull by URLs of the hub, through proxies that reject, and from servers that are not
hubs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.test_pull import REPO, Result, environment, said, snapshot
from tests.support.hub_server import TOKEN, FakeHub, fake_hub
from tests.support.proxy import refusing_proxy
from tests.support.servers import free_port

FILE = f"{REPO}/one file.gguf"
Run = Callable[..., Result]


@pytest.fixture
def hub(builtin_file: Path) -> Iterator[FakeHub]:
    """A hub with a whole model that is not in the catalogue."""
    with fake_hub({FILE: builtin_file.read_bytes()}) as running:
        yield running


@pytest.fixture
def sdstream(hub: FakeHub, tmp_path: Path) -> Run:
    """A function that runs a command until it ends, without the empty variables."""

    def run(*arguments: str, **variables: str) -> Result:
        given = environment(hub, tmp_path, **variables)
        return subprocess.run(
            [sys.executable, "-m", "sdstream", *arguments],
            check=False,
            capture_output=True,
            text=True,
            env={name: value for name, value in given.items() if value},
            timeout=60,
        )

    return run


# --- addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        f"hf:{FILE}",
        f"hf://{FILE}",
        f"hf:{REPO}@main/one file.gguf",
        f"https://huggingface.co/{REPO}/resolve/main/one%20file.gguf?download=true",
        f"https://hf.co/{REPO}/blob/main/one file.gguf#lfs",
    ],
)
def test_a_file_by_its_address(hub: FakeHub, sdstream: Run, tmp_path: Path, address: str) -> None:
    """A file that is not in the catalogue is pulled and removed by the same address."""
    result = sdstream("pull", address)
    assert result.returncode == 0, said(result)
    assert f"'sdstream serve --model hf:{FILE}' serves it" in result.stdout
    assert snapshot(tmp_path, FILE).read_bytes() == hub.files[FILE]
    assert sdstream("pull", address, "--offline").returncode == 0
    listed = sdstream("models", SDSTREAM_MODEL=address)
    assert listed.returncode == 0, said(listed)
    assert "one-file" in listed.stdout
    assert sdstream("rm", address).returncode == 0
    assert not snapshot(tmp_path, FILE).exists()


def test_a_file_of_modelscope(hub: FakeHub, sdstream: Run, tmp_path: Path) -> None:
    """A file of ModelScope is pulled, listed and removed by its location or the URL of its page."""
    address = f"https://www.modelscope.cn/models/{REPO}/file/view/master/one%20file.gguf?status=2"
    result = sdstream("pull", address)
    assert result.returncode == 0, said(result)
    assert f"'sdstream serve --model ms:{FILE}' serves it" in result.stdout
    assert {one.path.split("?")[0] for one in hub.asked} == {
        f"/api/v1/models/{REPO}/repo/files",
        f"/api/v1/models/{REPO}/repo",
        f"/cdn/{FILE}".replace(" ", "%20"),
    }
    assert not snapshot(tmp_path, FILE).exists()  # the path of the file from the Hugging Face hub
    listed = sdstream("models", SDSTREAM_MODEL=f"ms:{FILE}")
    assert listed.returncode == 0, said(listed)
    assert "one-file" in listed.stdout
    assert sdstream("pull", f"ms:{FILE}", "--offline", "--verify").returncode == 0
    assert sdstream("rm", address).returncode == 0
    assert f"Files of 'ms:{FILE}' are missing" in said(sdstream("pull", f"ms:{FILE}", "--offline"))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("hf:owner/repo", "write hf:OWNER/REPO/PATH"),
        ("https://huggingface.co/owner/repo", "names no file; write https://huggingface.co/OWNER"),
        ("https://huggingface.co/owner/repo/tree/main", "names no file"),
        ("https://huggingface.co", "names no file"),
        ("https://example.org/a/b/resolve/main/x.gguf", "download the file and write its path"),
        ("owner/repo/x.gguf", "A single file of a hub is written hf:OWNER/REPO/PATH or ms:"),
    ],
)
def test_addresses_that_are_none(sdstream: Run, address: str, words: str) -> None:
    """An invalid address is an error that shows the right form, for pull, rm and the server's
    model."""
    for command in ("pull", "rm"):
        result = sdstream(command, address)
        assert result.returncode == 1
        assert words in said(result)
    if "://" in address:
        listed = sdstream("models", SDSTREAM_MODEL=address)
        assert listed.returncode == 78
        assert words in said(listed)


def test_a_model_that_is_not_pulled(sdstream: Run) -> None:
    """The error contains the command that pulls the model."""
    listed = sdstream("models", SDSTREAM_MODEL=f"https://hf.co/{REPO}/blob/main/x.gguf")
    assert listed.returncode == 78
    assert f"'sdstream pull hf:{REPO}/x.gguf' downloads it" in said(listed)


# --- proxies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "ALL_PROXY", "https_proxy"])
@pytest.mark.parametrize(
    ("status", "words"),
    [
        (407, "requires a name and a password (407): set {} to http://NAME:PASSWORD@HOST:PORT"),
        (403, "refused the connection to hub.invalid (403 Forbidden): have it allow that host"),
    ],
)
def test_a_proxy_that_refuses(sdstream: Run, variable: str, status: int, words: str) -> None:
    """The error names the proxy and its variable without the password, and pull does not retry."""
    with refusing_proxy(status) as (place, asked):
        result = sdstream(
            "pull", f"hf:{FILE}", HF_ENDPOINT="https://hub.invalid",
            **{variable: f"http://me:secret@{place}"},
        )  # fmt: skip
    told = said(result)
    assert result.returncode == 1
    assert f"The proxy http://{place} ({variable.upper()})" in told
    assert words.format(variable.upper()) in told
    assert "list hub.invalid in NO_PROXY" in told
    assert "secret" not in told
    assert {*asked} == {"CONNECT hub.invalid:443"}
    assert "again in" not in told


@pytest.mark.parametrize(
    ("status", "words"), [(407, "requires a name and a password"), (403, "refused the connection")]
)
def test_a_proxy_of_plain_http(sdstream: Run, status: int, words: str) -> None:
    """A 407 or 403 of an HTTP proxy is reported as the proxy's, not as a missing licence."""
    with refusing_proxy(status) as (place, _):
        result = sdstream(
            "pull", f"hf:{FILE}", HF_ENDPOINT="http://hub.invalid", HTTP_PROXY=f"http://{place}"
        )
    assert f"The proxy http://{place} (HTTP_PROXY) {words}" in said(result)
    assert "licence" not in said(result)


def test_a_proxy_that_is_left_out(hub: FakeHub, sdstream: Run) -> None:
    """NO_PROXY, which the errors suggest, bypasses the proxy."""
    dead = f"http://127.0.0.1:{free_port()}"
    result = sdstream("pull", f"hf:{FILE}", HTTP_PROXY=dead, NO_PROXY="127.0.0.1,localhost")
    assert result.returncode == 0, said(result)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "ftp://127.0.0.1:9"])
def test_a_proxy_of_another_kind(sdstream: Run, proxy: str) -> None:
    """An unsupported proxy is reported without a traceback."""
    result = sdstream("pull", f"hf:{FILE}", HF_ENDPOINT="https://hub.invalid", HTTPS_PROXY=proxy)
    assert result.returncode == 1
    assert "cannot be requested" in said(result)


# --- HF_ENDPOINT --------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["hf-mirror.example", "htp://hf-mirror.example", "https://"])
def test_an_endpoint_that_is_no_address(sdstream: Run, endpoint: str) -> None:
    """An invalid HF_ENDPOINT is an error that contains its value."""
    result = sdstream("pull", f"hf:{FILE}", HF_ENDPOINT=endpoint)
    assert result.returncode == 1
    assert f"HF_ENDPOINT is '{endpoint.rstrip('/')}', which is not an address" in said(result)


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404])
def test_an_endpoint_that_is_no_hub(sdstream: Run, status: int) -> None:
    """A server that is not a hub is named, and the error does not mention a licence."""
    with refusing_proxy(status) as (place, _):
        result = sdstream("pull", f"hf:{FILE}", HF_ENDPOINT=f"http://{place}")
    assert result.returncode == 1
    assert f"http://{place} (HF_ENDPOINT)" in said(result)
    assert "licence" not in said(result)


# --- unreachable servers ------------------------------------------------------------------------


def test_servers_that_are_away(hub: FakeHub, sdstream: Run, tmp_path: Path) -> None:
    """The error names the server that cannot be reached: the proxy, HF_ENDPOINT, or the server of
    the contents. The three commands run at once, since each one tries for some seconds."""
    hub.cdn, endpoint, proxy = (f"http://127.0.0.1:{free_port()}" for _ in range(3))
    ways = (
        {"HF_ENDPOINT": "https://hub.invalid", "HTTPS_PROXY": proxy},
        {"HF_ENDPOINT": endpoint},
        {"HF_TOKEN": TOKEN},
    )
    with ThreadPoolExecutor() as pool:
        waiting = [
            pool.submit(sdstream, "pull", f"hf:{FILE}", HF_HOME=f"{tmp_path}/{number}", **way)
            for number, way in enumerate(ways)
        ]
        by_proxy, by_endpoint, contents = (said(one.result()) for one in waiting)
    assert f"The proxy {proxy} (HTTPS_PROXY) cannot be reached" in by_proxy
    assert "correct HTTPS_PROXY" in by_proxy
    assert f"{endpoint} (HF_ENDPOINT): " in by_endpoint
    assert f"{hub.cdn}: " in contents
    assert "HF_ENDPOINT" not in contents
