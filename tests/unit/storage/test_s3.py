"""Images in S3: object keys, content types and errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sdstream.storage import s3 as s3_store
from sdstream.storage.job_store import JobStore
from sdstream.storage.ports import StoreError
from sdstream.storage.s3 import ImageBucket
from sdstream.storage.sqlite import SqliteDatabase
from tests.support.s3 import S3
from tests.support.servers import free_port


@pytest.fixture
def bucket(s3: S3) -> Iterator[ImageBucket]:
    """An open bucket without a prefix."""
    made = ImageBucket(f"s3://{s3.new()}")
    made.open()
    yield made
    made.close()


def test_objects_have_types_and_addresses(s3: S3, bucket: ImageBucket) -> None:
    """Objects have a content type and a known location, so that other programs can use them."""
    assert bucket.is_empty()
    image = bucket.put(b"webp", "webp")
    assert not bucket.is_empty()
    name, _, key = bucket.location(image, "webp").removeprefix("s3://").partition("/")
    assert key == f"images/{image}.webp"
    client = s3.client()
    assert client.head_object(Bucket=name, Key=key)["ContentType"] == "image/webp"
    client.close()


def test_more_objects_than_one_request_names(
    bucket: ImageBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep deletes many objects by several requests."""
    monkeypatch.setattr(s3_store, "_MOST_KEYS", 2)
    kept = bucket.put(b"x", "png")
    for _ in range(5):
        bucket.put(b"x", "png")
    assert bucket.sweep({f"{kept}.png"}, (), ()) == {f"{kept}.png"}
    assert bucket.get(kept, "png") == b"x"


def test_a_bucket_that_does_not_exist(s3: S3) -> None:
    """The error is an OSError, as for a missing folder."""
    missing = ImageBucket("s3://no-such-bucket")
    with pytest.raises(OSError, match="NoSuchBucket") as caught:
        missing.open()
    assert not isinstance(caught.value, ConnectionError)
    missing.close()


def test_a_server_that_does_not_answer(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is a ConnectionError, but a failed deletion is only logged."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    gone = ImageBucket("s3://bucket")
    with pytest.raises(ConnectionError, match="Could not connect"):
        gone.open()
    with pytest.raises(ConnectionError, match="Could not connect"):
        gone.put(b"x", "png")
    gone.drop("x", "png")
    gone.close()


class Busy(BaseHTTPRequestHandler):
    """An S3 service that is overloaded."""

    def do_GET(self) -> None:
        """Answer as S3 does."""
        self.send_error(503, "Slow Down")


@pytest.mark.parametrize(
    ("endpoint", "bucket", "code"),
    [("closed", "bucket", 1), ("busy", "bucket", 1), ("real", "no-such-bucket", 78)],
)
def test_the_exit_code_shows_if_a_later_start_may_succeed(
    s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, endpoint: str, bucket: str, code: int
) -> None:
    """A supervisor restarts a server whose bucket does not answer, but not one without a bucket."""
    database, images = SqliteDatabase(tmp_path), ImageBucket(f"s3://{bucket}")
    store = JobStore(
        database, images, ttl_seconds=60, max_bytes=10**6, min_free_bytes=0, clock=time.time
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as busy:
        threading.Thread(target=busy.serve_forever).start()
        ports = {"closed": free_port(), "busy": busy.server_port}
        if endpoint in ports:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{ports[endpoint]}")
        with pytest.raises(StoreError, match="the image store cannot be used") as caught:
            store.open()
        busy.shutdown()
    assert caught.value.exit_code == code


def test_no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error is an OSError about credentials."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    keyless = ImageBucket("s3://bucket")
    with pytest.raises(OSError, match="credentials"):
        keyless.open()
    keyless.close()
