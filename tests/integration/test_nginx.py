"""The service behind nginx, with the configurations of docs/guide/proxies.md."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sdstream import Client
from tests.support.jobs import ASYNC
from tests.support.nginx import BLOCKS, nginx
from tests.support.pictures import opened, png
from tests.support.servers import DONE, GENERATIONS, ServerProcess, running_server, wait_until

QUICK: dict[str, Any] = {"prompt": "a circle", "size": "64x64", "sample_steps": 2}
SLOW: dict[str, Any] = {"prompt": "step=0.3", "sample_steps": 6, "size": "64x64", "stream": True}
KEY = {"Authorization": "Bearer the-key"}

OWN_NAME, SUB_PATH, DEFAULTS = BLOCKS


@pytest.fixture(scope="module")
def keyed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with a key, which trusts the proxy."""
    settings: dict[str, Any] = {"api_keys": "the-key", "trusted_proxies": "127.0.0.1"}
    with running_server(tmp_path_factory.mktemp("keyed"), engine="fake", **settings) as server:
        yield server


@pytest.fixture(scope="module")
def sub_path(
    keyed_server: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of the server with a key, under /images."""
    with nginx(tmp_path_factory.mktemp("sub"), SUB_PATH, keyed_server) as url:
        yield f"{url}/images"


@pytest.fixture(scope="module")
def plain(fake_server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """nginx with its defaults, in front of a server without proxy settings."""
    with nginx(tmp_path_factory.mktemp("plain"), DEFAULTS, fake_server) as url:
        yield url


def arrivals(url: str, headers: dict[str, str]) -> tuple[list[float], bytes]:
    """Return the arrival times of a stream's pieces, and its whole body."""
    times, body = [], b""
    with httpx2.stream("POST", url + GENERATIONS, json=SLOW, headers=headers, timeout=60) as answer:
        assert answer.status_code == 200
        for piece in answer.iter_raw():
            times.append(time.monotonic())
            body += piece
    return times, body


def test_a_name_of_its_own(tmp_path: Path) -> None:
    """Links begin with the public URL, whose pages may generate; pages of other origins may not."""
    url = "https://images.example"
    with (
        running_server(tmp_path, engine="fake", public_url=url) as server,
        nginx(tmp_path, OWN_NAME, server) as proxy,
    ):
        page = {"Host": "images.example", "Origin": "https://images.example"}
        answer = httpx2.post(proxy + GENERATIONS, json=QUICK, headers={**page, **ASYNC})
        assert answer.status_code == 202
        assert answer.headers["Location"].startswith(f"{url}/v1/jobs/")
        assert httpx2.get(f"{proxy}/", headers=page).status_code == 200
        evil = {**page, "Origin": "https://evil.example"}
        assert httpx2.post(proxy + GENERATIONS, json=QUICK, headers=evil).status_code == 403
        other = {**page, "Host": "evil.example"}
        assert httpx2.get(f"{proxy}/v1/jobs", headers=other).status_code == 403
        large = {"image": png(1500, 1000, noise=True)}
        assert len(large["image"]) > 2**20
        upload = httpx2.post(
            f"{proxy}/v1/images/edits", files=large, data=QUICK, headers=page, timeout=60
        )
        assert upload.status_code == 200, upload.text


def test_links_on_a_sub_path(sub_path: str) -> None:
    """Links lead through the proxy, under the host name that the client used."""
    body = {**QUICK, "response_format": "url"}
    named = {**KEY, "Host": "site.example"}
    answer = httpx2.post(sub_path + GENERATIONS, json=body, headers=named)
    assert answer.json()["data"][0]["url"].startswith("http://site.example/images/v1/images/")
    answer = httpx2.post(sub_path + GENERATIONS, json=body, headers=KEY)
    link = answer.json()["data"][0]["url"]
    assert link.startswith(f"{sub_path}/v1/images/")
    assert opened(httpx2.get(link, headers=KEY).content).size == (64, 64)
    job = httpx2.post(sub_path + GENERATIONS, json=QUICK, headers={**KEY, **ASYNC}).json()
    assert httpx2.get(job["status_url"], headers=KEY).status_code == 200


def test_the_client_downloads_an_image_on_a_sub_path(sub_path: str) -> None:
    """The Python client downloads an image by a link that has the proxy's path."""
    with Client(sub_path, KEY["Authorization"].removeprefix("Bearer ")) as client:
        job = client.jobs.create("a cat", size="64x64", steps=1)["id"]
        ended = [*client.jobs.follow(job)][-1]
        assert opened(client.image(ended["images"][0]["url"])).size == (64, 64)


def test_addresses_on_a_sub_path(sub_path: str) -> None:
    """nginx redirects /images to /images/; extra slashes in other paths do not matter."""
    redirect = httpx2.get(sub_path)
    assert redirect.status_code == 301
    assert redirect.headers["Location"].endswith("/images/")
    for path in ("//v1//models/", "/v1/models/"):
        assert httpx2.get(sub_path + path, headers=KEY).status_code == 200
        assert httpx2.get(sub_path + path).status_code == 401


def test_the_page_on_a_sub_path(sub_path: str) -> None:
    """Every file that the page, its scripts and its styles name is below the prefix."""
    waiting, seen = [f"{sub_path}/"], set()
    while waiting:
        address = waiting.pop()
        seen.add(address)
        answer = httpx2.get(address, headers={"Accept": "text/html,*/*;q=0.8"})
        assert answer.status_code == 200, address
        names = re.findall(
            r'(?:src|href)="([^"#]+)"|(?:from|import) "(\./[^"]+)"|\burl\("?(\w[^")]*)', answer.text
        )
        for name in filter(None, (part for group in names for part in group)):
            if name.startswith(("http", "data:")):
                continue
            assert not name.startswith("/")
            found = str(httpx2.URL(address).join(name))
            if found not in seen and answer.headers["Content-Type"].startswith("text/"):
                waiting.append(found)
    assert f"{sub_path}/static/api.js" in seen
    assert f"{sub_path}/static/style.css" in seen


@pytest.mark.parametrize("block", ["sub_path", "plain"])
def test_events_arrive_one_by_one(block: str, request: pytest.FixtureRequest) -> None:
    """nginx does not buffer events, with HTTP/1.1 or HTTP/1.0 to the service."""
    times, body = arrivals(request.getfixturevalue(block), KEY)
    assert body.endswith(DONE)
    assert len(times) >= 6
    assert times[-1] - times[0] > 1  # the generation takes nearly two seconds


def test_a_client_that_leaves(plain: str, fake_server: ServerProcess) -> None:
    """When a client disconnects, nginx does too, and the job is cancelled."""
    body = {**SLOW, "sample_steps": 150}
    with httpx2.stream("POST", plain + GENERATIONS, json=body, timeout=60) as answer:
        job = answer.headers["X-Job-Id"]
        next(answer.iter_raw())

    def is_cancelled() -> bool:
        found = httpx2.get(f"{fake_server.url}/v1/jobs/{job}").json()
        return bool(found["status"] == "cancelled")

    wait_until(is_cancelled, 20, "the job goes on")


def test_uploads_beyond_the_default_limit(plain: str) -> None:
    """nginx itself rejects uploads above one megabyte, with an HTML page."""
    image = png(64, 64)
    answer = httpx2.post(
        f"{plain}/v1/images/edits", files={"image": image + bytes(1_100_000)}, data=QUICK
    )
    assert answer.status_code == 413
    assert answer.headers["Content-Type"].startswith("text/html")
    answer = httpx2.post(f"{plain}/v1/images/edits", files={"image": image}, data=QUICK)
    assert answer.status_code == 200


def test_links_with_the_defaults(plain: str, fake_server: ServerProcess) -> None:
    """Links lead past nginx, because it sends its own Host; nginx rewrites only Location."""
    answer = httpx2.post(plain + GENERATIONS, json=QUICK, headers=ASYNC)
    assert answer.json()["status_url"].startswith(f"{fake_server.url}/v1/jobs/")
    assert answer.headers["Location"].startswith(f"{plain}/v1/jobs/")
