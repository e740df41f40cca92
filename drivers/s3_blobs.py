"""The blob store in a bucket of an S3-compatible service."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from drivers.blobs import Opened, hex_of, storing
from drivers.locked_file import LockedFile, sweep
from model.errors import NotFound, Unavailable

PREFIX = "sha256/"
CALL_SECONDS = 30
ABSENT = ("404", "NoSuchKey", "NotFound")
#: Parts of a large file, sent one after the other: memory stays at one.
PART = 16 << 20


class S3Blobs:
    """Files on their way are in ``folder`` of this machine: S3 wants to know a name before, and its name is its end."""

    def __init__(
        self,
        *,
        bucket: str,
        endpoint: str | None,
        region: str,
        access_key: str | None,
        secret_key: str | None,
        folder: Path,
        least_free: int = 0,
    ) -> None:
        self._least_free = least_free
        self._bucket = bucket
        self._incoming = folder / "incoming"
        # Checksums only where the service asks for them: not all know the newer ones.
        config = Config(
            connect_timeout=5,
            read_timeout=CALL_SECONDS,
            retries={"max_attempts": 3, "mode": "standard"},
            s3={"addressing_style": "path"} if endpoint else {},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name=region,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            config=config,
        )
        self._transfer = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, use_threads=False)

    def receive(self) -> LockedFile:
        with storing():
            return LockedFile(self._incoming, least_free=self._least_free)

    def put(self, file: LockedFile) -> None:
        with self._calling(file.digest), storing():
            # An upload in parts that fails is called off by the library; one that is killed is left to the bucket's
            # rule for such (AbortIncompleteMultipartUpload).
            self._client.upload_file(str(file.path), self._bucket, _key(file.digest), Config=self._transfer)

    def open(self, digest: str) -> Opened:
        with self._calling(digest):
            found = self._client.get_object(Bucket=self._bucket, Key=_key(digest))
        return Opened(int(found["ContentLength"]), _Body(found["Body"], digest))

    def remove(self, digest: str) -> None:
        with self._calling(digest):
            self._client.delete_object(Bucket=self._bucket, Key=_key(digest))

    def all(self) -> Iterator[tuple[str, dt.datetime]]:
        with self._calling(PREFIX):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=PREFIX):
                for found in page.get("Contents", []):
                    yield f"sha256:{found['Key'].removeprefix(PREFIX)}", found["LastModified"]

    def sweep(self) -> int:
        return sweep(self._incoming)

    @contextmanager
    def _calling(self, what: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in ABSENT:
                raise NotFound(f"{what} is not in the blob store") from error
            raise Unavailable(f"the blob store refused: {error}") from error
        except (BotoCoreError, boto3.exceptions.Boto3Error) as error:
            raise Unavailable(f"the blob store does not answer: {error}") from error


class _Body:
    """What is read of an object, with errors of ours."""

    def __init__(self, body: Any, digest: str) -> None:
        self._body = body
        self._digest = digest

    def read(self, size: int = -1, /) -> bytes:
        try:
            piece: bytes = self._body.read(None if size < 0 else size)
        except (BotoCoreError, OSError) as error:
            raise Unavailable(f"the blob store broke off in {self._digest}: {error}") from error
        return piece

    def close(self) -> None:
        self._body.close()


def _key(digest: str) -> str:
    return f"{PREFIX}{hex_of(digest)}"
