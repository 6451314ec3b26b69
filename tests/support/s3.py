"""moto's server with the API of S3, for tests."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import boto3
import httpx2

from tests.support.servers import free_port, wait_until

#: Environment variables that AWS clients read.
KEYS: Final = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass
class S3:
    """An S3 server, which keeps its buckets as long as it runs.

    Attributes:
        url: Address of the server.
    """

    url: str
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables by which programs find the server."""
        return {**KEYS, "AWS_ENDPOINT_URL": self.url}

    def client(self) -> Any:
        """Return a new client of the server."""
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )

    def new(self) -> str:
        """Create a bucket; return its name."""
        name = f"bucket-{next(self._numbers)}"
        client = self.client()
        client.create_bucket(Bucket=name)
        client.close()
        return name


@contextmanager
def started_s3(folder: Path) -> Iterator[S3]:
    """Start the server, and stop it at the end."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (folder / "s3.log").open("wb") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: _answers(url), 30, (folder / "s3.log").read_text())
        yield S3(url)
    finally:
        process.terminate()
        process.wait(20)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/moto-api/", timeout=20).status_code < 500
    except httpx2.HTTPError:
        return False
