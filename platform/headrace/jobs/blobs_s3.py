"""Blobs in S3 or what speaks its protocol: ``s3://bucket/prefix``, all else from the environment.

boto3 blocks, so it runs in a few threads of its own. Large blobs go up in parts: whole or not there. Whoever
asks is told in time of a server that takes connections and says nothing; what a thread is still at then ends
by the limits of its requests.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import io
import logging
import tempfile
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import IO, Any, TypeVar, cast
from urllib.parse import urlsplit

import boto3  # type: ignore[import-untyped]
from boto3.exceptions import Boto3Error  # type: ignore[import-untyped]
from boto3.s3.transfer import TransferConfig  # type: ignore[import-untyped]
from botocore.config import Config  # type: ignore[import-untyped]
from botocore.exceptions import (  # type: ignore[import-untyped]
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ReadTimeoutError,
)
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt

from headrace.errors import SettingsError
from headrace.jobs.blobs import CHUNK_BYTES, FRESH_S, SHA256, BlobDamaged, BlobMissing, BlobsUnavailable

log = logging.getLogger("headrace.jobs")

T = TypeVar("T")
PART_BYTES = 8 << 20
"""A blob above this goes up in parts of this."""
THREADS = 8
ATTEMPTS = 3
CONNECT_S = 3.0
READ_S = 6.0
"""Of one request, without a byte of its answer."""
ANSWER_S = 20.0
"""What carries no body has an answer within this, repeated requests and the wait for a thread included."""
SLOWEST_BYTES_S = 256 << 10
"""What carries a body has more time by its size; `READ_S` tells earlier of a server that takes nothing."""
SPOOL_BYTES = 8 << 20
"""A stream above this waits in a temporary file until its name is known."""
REFRESH_S = FRESH_S / 4
"""A blob that is there and younger than this is not put again: its age keeps it for long enough."""
RECHECK_S = 1.0
CHECK_S = 2.0
GET_TRIES = 3
_MISSING = {"NoSuchKey", "NoSuchBucket", "404", "NotFound"}


class S3Blobs:
    """Blobs as objects ``<prefix>/<first two digits>/<sha256>``. Make it with `open_s3`.

    ``fresh_s``: see `headrace.jobs.blobs.BlobStore.delete`.
    """

    def __init__(self, client: Any, bucket: str, prefix: str, *, fresh_s: float = FRESH_S) -> None:
        self._s3 = client
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._fresh_s = fresh_s
        self._pool = ThreadPoolExecutor(THREADS, "headrace-s3")
        self._transfer = TransferConfig(
            multipart_threshold=PART_BYTES + 1,
            multipart_chunksize=PART_BYTES,
            max_concurrency=2,
            preferred_transfer_client="classic",
        )

    async def put(self, data: bytes | AsyncIterable[bytes]) -> str:
        """See `BlobStore.put`."""
        if isinstance(data, bytes):
            name = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
            await self._put(name, data, len(data))
            return name
        digest = hashlib.sha256()
        with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
            async for piece in data:
                await asyncio.to_thread(_write, spool, digest, piece)
            name = digest.hexdigest()
            await self._put(name, cast(IO[bytes], spool), spool.tell())
        return name

    async def get(self, sha256: str) -> bytes:
        """See `BlobStore.get`."""
        key = self._key(sha256)
        # botocore repeats requests, but not an answer that breaks off.
        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(GET_TRIES), retry=retry_if_exception(_broke_off), reraise=True
        ):
            with attempt:
                found = await self._thread(
                    lambda: self._s3.get_object(Bucket=self._bucket, Key=key), sha256=sha256
                )
                size = int(found["ContentLength"])
                data: bytes = await self._thread(found["Body"].read, size, sha256=sha256)
        if await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest()) != sha256:
            raise _damaged(sha256)
        return data

    async def stream(self, sha256: str) -> AsyncIterator[bytes]:
        """See `BlobStore.stream`."""
        key = self._key(sha256)
        found = await self._thread(lambda: self._s3.get_object(Bucket=self._bucket, Key=key), sha256=sha256)
        body = found["Body"]
        digest = hashlib.sha256()
        try:
            while piece := await self._thread(lambda: body.read(CHUNK_BYTES), sha256=sha256):
                digest.update(piece)
                yield piece
        finally:
            body.close()
        if digest.hexdigest() != sha256:
            raise _damaged(sha256)

    async def delete(self, blobs: Iterable[str]) -> int:
        """See `BlobStore.delete`."""
        names = [name for name in blobs if SHA256.fullmatch(name)]
        if not names:
            return 0
        gone = [self._thread(functools.partial(self._delete, name)) for name in names]
        return sum(await asyncio.gather(*gone))

    async def check(self) -> None:
        """Whether the bucket is there and may be used. Raises `SettingsError`, `BlobsUnavailable`."""
        try:
            await self._thread(lambda: self._s3.head_bucket(Bucket=self._bucket), sha256=self._bucket)
        except BlobMissing:
            raise SettingsError(
                f"--blobs: there is no bucket {self._bucket}.", hint="Make it, or name another one."
            ) from None

    async def close(self) -> None:
        """Let connections go."""
        await asyncio.to_thread(self._pool.shutdown, wait=True, cancel_futures=True)
        self._s3.close()

    def _key(self, sha256: str) -> str:
        if not SHA256.fullmatch(sha256):
            raise BlobMissing(f"{sha256[:80]!r} names no blob.", hint="A name is 64 lower-case hex digits.")
        return f"{self._prefix}{sha256[:2]}/{sha256}"

    def _age(self, key: str) -> float | None:
        """Seconds since the object was put, by the server's clock; None: it is not there."""
        try:
            head = self._s3.head_object(Bucket=self._bucket, Key=key)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in _MISSING:
                return None
            raise
        there = head["ResponseMetadata"]["HTTPHeaders"].get("date")
        now = parsedate_to_datetime(there).timestamp() if there else time.time()
        return float(now - head["LastModified"].timestamp())

    async def _put(self, name: str, data: bytes | IO[bytes], size: int) -> None:
        key = self._key(name)
        age = await self._thread(lambda: self._age(key))
        # An older one is put again, which makes it young: a sweep leaves it then.
        if age is not None and age < min(REFRESH_S, self._fresh_s):
            return
        await self._thread(lambda: self._upload(key, data), size)
        if age is not None and age >= self._fresh_s:
            # A sweep that looked at the old one may be deleting it in this moment.
            await asyncio.sleep(RECHECK_S)
            if await self._thread(lambda: self._age(key)) is None:
                await self._thread(lambda: self._upload(key, data), size)

    def _upload(self, key: str, data: bytes | IO[bytes]) -> None:
        if isinstance(data, bytes):
            file: IO[bytes] = io.BytesIO(data)
        else:
            data.seek(0)
            # boto3 may close what it uploads.
            file = cast(IO[bytes], _Unclosed(data))
        self._s3.upload_fileobj(file, self._bucket, key, Config=self._transfer)

    def _delete(self, name: str) -> int:
        key = self._key(name)
        age = self._age(key)
        if age is None or age < self._fresh_s:
            return 0
        self._s3.delete_object(Bucket=self._bucket, Key=key)
        return 1

    async def _thread(self, fn: Callable[[], T], size: int = 0, *, sha256: str = "") -> T:
        """Run it in a thread, in time for ``size`` bytes; ``sha256``: what may be missing."""
        within_s = ANSWER_S + size / SLOWEST_BYTES_S
        try:
            async with asyncio.timeout(within_s):
                return await asyncio.get_running_loop().run_in_executor(self._pool, fn)
        except TimeoutError:
            raise self._unavailable(f"no answer in {within_s:.0f} s") from None
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", "unknown"))
            if sha256 and code in _MISSING:
                raise BlobMissing(
                    f"no blob {sha256}.", hint="It was removed with its job, or from outside: submit again."
                ) from None
            raise self._unavailable(code) from None
        except (BotoCoreError, HTTPClientError, Boto3Error, OSError) as error:
            raise self._unavailable(type(error).__name__) from error

    def _unavailable(self, why: str) -> BlobsUnavailable:
        return BlobsUnavailable(
            f"s3://{self._bucket} does not answer ({why}).",
            hint="Check the bucket, AWS_ENDPOINT_URL and the credentials of the gateway.",
        )


class _Unclosed:
    """A file that its reader cannot close."""

    def __init__(self, file: IO[bytes]) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def _broke_off(error: BaseException) -> bool:
    """Whether an answer ended in the middle. One that just stopped coming has had its time."""
    cause = error.__cause__ if isinstance(error, BlobsUnavailable) else None
    return isinstance(cause, HTTPClientError | IncompleteReadError) and not isinstance(
        cause, ReadTimeoutError | ConnectTimeoutError | EndpointConnectionError
    )


def _write(file: Any, digest: Any, data: bytes) -> None:
    digest.update(data)
    file.write(data)


def _damaged(sha256: str) -> BlobDamaged:
    return BlobDamaged(
        f"blob {sha256} was changed in S3.", hint="Check the bucket, and submit the job again."
    )


async def open_s3(url: str, *, fresh_s: float = FRESH_S, must_answer: bool = True) -> S3Blobs:
    """Open ``s3://bucket/prefix``; endpoint, region and credentials are what the AWS tools use
    (``AWS_ENDPOINT_URL``, ``AWS_REGION``, ``AWS_ACCESS_KEY_ID``, ``~/.aws``, the machine's role).

    Raises `SettingsError` when the address is none or the bucket is not there, and `BlobsUnavailable`. One
    that need not answer (``must_answer``), and does not in `CHECK_S`, is opened; its methods raise till then.
    """
    parts = urlsplit(url)
    bucket, prefix = parts.netloc, parts.path.strip("/")
    if parts.scheme != "s3" or not bucket or "@" in bucket or parts.query or parts.fragment:
        raise SettingsError("--blobs is no address in S3.", hint="Write s3://bucket or s3://bucket/prefix.")
    blobs = await asyncio.to_thread(_connect, bucket, prefix, fresh_s)
    try:
        async with asyncio.timeout(None if must_answer else CHECK_S):
            await blobs.check()
    except (BlobsUnavailable, TimeoutError) as error:
        if must_answer:
            await blobs.close()
            raise
        log.warning("jobs with large bodies must wait: %s", str(error) or f"s3://{bucket} does not answer")
    except BaseException:
        await blobs.close()
        raise
    return blobs


def _connect(bucket: str, prefix: str, fresh_s: float) -> S3Blobs:
    try:
        # Making a client reads files, so it is done in a thread.
        client = boto3.session.Session().client(
            "s3",
            config=Config(
                connect_timeout=CONNECT_S,
                read_timeout=READ_S,
                retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                max_pool_connections=THREADS * 2,
                s3={"addressing_style": "auto"},
            ),
        )
    except (BotoCoreError, ValueError) as error:
        raise SettingsError(
            f"--blobs: the settings of AWS are not usable ({type(error).__name__}).",
            hint="Set AWS_REGION and AWS_ENDPOINT_URL, or correct ~/.aws/config.",
        ) from None
    return S3Blobs(client, bucket, prefix, fresh_s=fresh_s)
