"""Images in a bucket of S3, or of another service with the same API.

Needs the extra ``s3`` (boto3). boto3 reads the endpoint, keys and region from the standard sources
of AWS: variables such as AWS_ENDPOINT_URL and AWS_ACCESS_KEY_ID, profiles, and instance roles.
storage/choice.py imports this module when it is used.
"""

from __future__ import annotations

import errno
import logging
import secrets
from collections.abc import Container, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ReadTimeoutError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError

from sdstream.core.messages import Generate, encode, unframe
from sdstream.core.options import OutputFormat
from sdstream.core.pixels import Inputs
from sdstream.storage.ports import image_name

logger = logging.getLogger(__name__)

#: A request to an unreachable service fails after three attempts. Checksums that only AWS supports
#: are not sent.
_CONFIG: Final = Config(
    connect_timeout=3,
    read_timeout=20,
    retries={"mode": "standard", "total_max_attempts": 3},
    max_pool_connections=16,
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
)

#: Seconds to finish pending deletions at shutdown.
_CLOSE_SECONDS: Final = 3

#: Most keys of one request that deletes objects.
_MOST_KEYS: Final = 1000

_GONE: Final = ("NoSuchKey", "404")

#: Statuses of a service that may answer later.
_BUSY: Final = (500, 502, 503, 504)


class ImageBucket:
    """An ImageStore below a prefix of a bucket.

    Args:
        url: ``s3://bucket`` or ``s3://bucket/prefix``.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._bucket = parts.netloc
        prefix = parts.path.strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._s3: Any = None
        # A separate thread: deletions must not block the thread that writes rows.
        self._deleting = ThreadPoolExecutor(1, thread_name_prefix="delete")

    def open(self) -> None:
        """Connect, and list the bucket; raises OSError, ConnectionError if nothing answers."""
        with _as_os_errors():
            # A separate session: the default one is not thread-safe.
            self._s3 = boto3.session.Session().client("s3", config=_CONFIG)
        self.is_empty()

    def close(self) -> None:
        """Wait for pending deletions for a few seconds; the next start deletes the rest."""
        wait([self._deleting.submit(lambda: None)], _CLOSE_SECONDS)
        self._deleting.shutdown(cancel_futures=True)
        if self._s3 is not None:
            self._s3.close()

    def is_empty(self) -> bool:
        """Return whether no finished image exists."""
        with _as_os_errors():
            found = self._s3.list_objects_v2(
                Bucket=self._bucket, Prefix=self._key("images", ""), MaxKeys=1
            )
        return not found.get("KeyCount")

    def free_bytes(self) -> float:
        """Return infinity: a bucket has no size limit."""
        return float("inf")

    def location(self, image_id: str, output_format: OutputFormat) -> str:
        """Return the address of an image."""
        key = self._key("images", image_name(image_id, output_format))
        return f"s3://{self._bucket}/{key}"

    def put(self, data: bytes, output_format: OutputFormat) -> str:
        """Write an image; return its unguessable id."""
        image_id = secrets.token_urlsafe(16)
        self._put("images", image_name(image_id, output_format), data, f"image/{output_format}")
        return image_id

    def get(self, image_id: str, output_format: OutputFormat) -> bytes:
        """Return the bytes of an image; raises FileNotFoundError if it was deleted."""
        return self._get("images", image_name(image_id, output_format))

    def drop(self, image_id: str, output_format: OutputFormat) -> None:
        """Delete an image in the background."""
        self._deleting.submit(
            self._delete, [self._key("images", image_name(image_id, output_format))]
        )

    def put_inputs(self, order: Generate) -> None:
        """Write the input images of a job."""
        self._put("inputs", order.job, encode(order), "application/octet-stream")

    def has_inputs(self, job: str) -> bool:
        """Return whether the input images of a job exist."""
        try:
            with _as_os_errors():
                self._s3.head_object(Bucket=self._bucket, Key=self._key("inputs", job))
        except FileNotFoundError:
            return False
        return True

    def get_inputs(self, job: str) -> Inputs:
        """Return the input images of a job; raises FileNotFoundError, ValueError if damaged."""
        message = unframe(self._get("inputs", job))
        if not isinstance(message, Generate):
            raise ValueError(f"not the input images of a job: {job}")
        return message.inputs

    def drop_inputs(self, job: str) -> None:
        """Delete the input images of a job in the background."""
        self._deleting.submit(self._delete, [self._key("inputs", job)])

    def put_uploads(self, job: str, uploads: Mapping[str, bytes]) -> None:
        """Write the files that were uploaded with a job, by their names."""
        for name, data in uploads.items():
            self._put("uploads", f"{job}/{name}", data, "application/octet-stream")

    def get_upload(self, job: str, name: str) -> bytes:
        """Return an uploaded file; raises FileNotFoundError if it was deleted."""
        return self._get("uploads", f"{job}/{name}")

    def drop_uploads(self, job: str) -> None:
        """Delete the uploaded files of a job in the background."""
        self._deleting.submit(self._delete_uploads, job)

    def sweep(self, images: Set[str], jobs: Container[str], uploads: Container[str]) -> set[str]:
        """Delete all other objects; return the names of the kept images that exist.

        If none of the images exists, nothing is deleted: the objects may be another server's.
        """
        found = set(self._names("images"))
        if images and images.isdisjoint(found):
            return set()
        keys = [self._key("images", name) for name in found - images]
        keys += [self._key("inputs", name) for name in self._names("inputs") if name not in jobs]
        orphans = (n for n in self._names("uploads") if n.partition("/")[0] not in uploads)
        keys += [self._key("uploads", name) for name in orphans]
        self._delete(keys)
        return found & images

    def _delete_uploads(self, job: str) -> None:
        start = f"uploads/{job}"
        try:
            keys = [self._key(start, name) for name in self._names(start)]
        except OSError as error:
            logger.warning("uploads could not be listed: %s", error)
            return
        self._delete(keys)

    def _key(self, part: str, name: str) -> str:
        return f"{self._prefix}{part}/{name}"

    def _names(self, part: str) -> Iterator[str]:
        start = self._key(part, "")
        with _as_os_errors():
            pages = self._s3.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=start
            )
            for page in pages:
                for item in page.get("Contents", ()):
                    yield item["Key"].removeprefix(start)

    def _put(self, part: str, name: str, data: bytes, media_type: str) -> None:
        with _as_os_errors():
            self._s3.put_object(
                Bucket=self._bucket, Key=self._key(part, name), Body=data, ContentType=media_type
            )

    def _get(self, part: str, name: str) -> bytes:
        with _as_os_errors():
            answer = self._s3.get_object(Bucket=self._bucket, Key=self._key(part, name))
            data: bytes = answer["Body"].read()
        return data

    def _delete(self, keys: list[str]) -> None:
        """Delete objects that no row names; if this fails, the next start retries."""
        try:
            for start in range(0, len(keys), _MOST_KEYS):
                named = [{"Key": key} for key in keys[start : start + _MOST_KEYS]]
                with _as_os_errors():
                    answer = self._s3.delete_objects(
                        Bucket=self._bucket, Delete={"Objects": named, "Quiet": True}
                    )
                for error in answer.get("Errors", ()):
                    logger.warning("%s could not be deleted: %s", error["Key"], error["Code"])
        except OSError as error:
            logger.warning("objects could not be deleted: %s", error)


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """Convert errors of boto3 to OSError; a service that does not answer is a ConnectionError."""
    try:
        yield
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in _GONE:
            raise FileNotFoundError(errno.ENOENT, "the object does not exist") from None
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in _BUSY:
            raise ConnectionError(errno.EHOSTUNREACH, str(error)) from None
        raise OSError(errno.EIO, str(error)) from None
    except (BotoConnectionError, ConnectionClosedError, ReadTimeoutError) as error:
        raise ConnectionError(errno.EHOSTUNREACH, str(error)) from None
    except BotoCoreError as error:
        raise OSError(errno.EIO, str(error)) from None
