"""Weights in S3 or what speaks its protocol; credentials and endpoint come from the host's environment.

boto3 blocks, so it runs in a few threads of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import boto3  # type: ignore[import-untyped]
from botocore.config import Config  # type: ignore[import-untyped]
from botocore.exceptions import (  # type: ignore[import-untyped]
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
)

from headrace_runtimes.weights.remote import Changed, Interrupted, RemoteFile, Sink
from headrace_runtimes.weights.values import MAX_FILES, WeightsFailed, WeightsSettings, safe_path

CONNECT_S = 5.0
CHUNK = 1 << 20
MISSING = {"NoSuchKey", "NoSuchBucket", "404", "NotFound"}
AGAIN = {"500", "502", "503", "504", "InternalError", "SlowDown", "ServiceUnavailable", "RequestTimeout"}
_MD5 = re.compile(r"[0-9a-f]{32}\Z")
T = TypeVar("T")


class S3Remote:
    """An object, or all below a prefix."""

    def __init__(self, source: str, settings: WeightsSettings) -> None:
        self._shown = source
        self._bucket, _, self._key = source.removeprefix("s3://").partition("/")
        self._keys: dict[str, str] = {}
        self._pool = ThreadPoolExecutor(settings.connections, "headrace-weights")
        self._s3 = boto3.client(
            "s3",
            config=Config(
                connect_timeout=CONNECT_S, read_timeout=settings.stall_s, retries={"total_max_attempts": 1},
                max_pool_connections=settings.connections,
            ),
        )  # fmt: skip

    async def files(self) -> list[RemoteFile]:
        """See `Remote.files`."""
        return await self._thread(self._list)

    async def read(self, file: RemoteFile, start: int, end: int, sink: Sink) -> None:
        """See `Remote.read`."""
        await self._thread(lambda: self._read(file, start, end, sink))

    async def close(self) -> None:
        """See `Remote.close`."""
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)
        self._s3.close()

    def _list(self) -> list[RemoteFile]:
        if self._key and not self._key.endswith("/"):
            with contextlib.suppress(KeyError):
                return [self._head()]
        prefix = self._key.rstrip("/") + "/" if self._key.strip("/") else ""
        found: list[RemoteFile] = []
        for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix):
            for item in page.get("Contents", ()):
                if item["Key"].endswith("/"):
                    continue
                found.append(self._file(item["Key"].removeprefix(prefix), item, item["Size"], ""))
            if len(found) > MAX_FILES:
                raise WeightsFailed(f"weights {self._shown}: more than {MAX_FILES} files; name a prefix.")
        if not found:
            raise WeightsFailed(f"weights {self._shown}: there is nothing there; correct the address.")
        return found

    def _head(self) -> RemoteFile:
        try:
            found = self._s3.head_object(Bucket=self._bucket, Key=self._key)
        except ClientError as error:
            if str(error.response.get("Error", {}).get("Code")) in MISSING:
                raise KeyError(self._key) from None
            raise
        # Only then the ETag is the content's MD5, and of an object that went up in parts it is none, either.
        plain = (
            found.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in found
        )
        md5 = found["ETag"].strip('"') if plain else ""
        named = {"Key": self._key, "ETag": found["ETag"]}
        return self._file(self._key.rpartition("/")[2], named, found["ContentLength"], md5)

    def _file(self, name: str, found: Mapping[str, Any], size: int, md5: str) -> RemoteFile:
        self._keys[safe_path(name)] = found["Key"]
        return RemoteFile(name, size, found["ETag"], md5=md5 if _MD5.match(md5) else "")

    def _read(self, file: RemoteFile, start: int, end: int, sink: Sink) -> None:
        answer = self._s3.get_object(
            Bucket=self._bucket,
            Key=self._keys[file.path],
            Range=f"bytes={start}-{end - 1}",
            IfMatch=file.validator,
        )
        body = answer["Body"]
        try:
            while piece := body.read(CHUNK):
                sink(piece, start)
                start += len(piece)
        finally:
            body.close()
        if start < end:
            raise Interrupted("the answer ended early")

    async def _thread(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except ClientError as error:
            said = error.response.get("Error", {})
            code = str(said.get("Code", ""))
            if code in ("PreconditionFailed", "412", "InvalidRange", "416"):
                raise Changed("the source has changed") from None
            if code in AGAIN:
                raise Interrupted(code) from None
            raise WeightsFailed(f"weights {self._shown}: S3 says {code}: {said.get('Message', '')}") from None
        except (ConnectionError, HTTPClientError) as error:
            raise Interrupted(str(error)[:200]) from None
        except BotoCoreError as error:
            raise WeightsFailed(
                f"weights {self._shown}: {error}: set credentials in the environment of the host."
            ) from None
