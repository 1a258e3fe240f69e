"""Delivers webhooks from the store's outbox: signed as Standard Webhooks says, at least once, stable id.

When a delivery is tried again, the store knows; how long that takes is decided here.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import logging
import os
import secrets
import ssl
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from tenacity import RetryCallState, wait_exponential, wait_random

from headrace.errors import DataDirError, HeadraceError, RequestError, SettingsError, ValidationFailed
from headrace.gateway.jobs.documents import INLINE_OUTPUT_BYTES, event_document
from headrace.gateway.jobs.outbound import AddressForbidden, post, tls_context
from headrace.gateway.jobs.results import Budget
from headrace.jobs.blobs import BlobStore
from headrace.jobs.events import Event, decode_event
from headrace.jobs.model import Delivery
from headrace.jobs.store import JobStore

log = logging.getLogger("headrace.gateway.jobs")

SECRET_FILE = "webhook.secret"  # noqa: S105 - its name
SECRET_PREFIX = "whsec_"  # noqa: S105
TIMEOUT_S = 10.0
MAX_AT_ONCE = 32
TAKEN_S = 60.0
"""A delivery comes again so long after it was taken, unless it is settled: longer than a try."""
POLL_S = 1.0
MAX_TRIES = 16
MAX_OUTPUT_BYTES = 20_000_000
"""Outputs travel in webhooks of RunPod's and Cog's contracts up to this size (the largest answer of RunPod's
``status``); above it the document says where the output is. In native ones they do up to 1 MiB."""
LARGE_OUTPUT_BYTES = 64 << 20
"""Outputs from the blob store that are held at a time."""
LARGE_WAIT_S = 20.0
"""A webhook that got no room among them for so long is tried again later."""
SO_FAR = ("cog",)
"""APIs whose ``output`` events carry all items so far; those of others carry the new ones."""
MAX_SO_FAR_BYTES = 1 << 20
SLOWEST_BYTES_S = 1 << 20
"""Beside `TIMEOUT_S` a receiver has the time that its event takes at this rate."""

_backoff = wait_exponential(multiplier=1.0, min=1.0, max=3600.0) + wait_random(0.0, 1.0)

Document = Callable[[Event, bytes | None], Any]
"""What a receiver gets, for one API: from the event and the output (None: too large, or there is none)."""


class WebhookSender:
    """See the module. ``documents`` of APIs that are not here get the native document. While ``ca`` (see
    `tls_context`) cannot be read nothing is sent, and no try is counted: other gateways may have the file."""

    def __init__(self, blobs: BlobStore, secret: bytes, *, private: bool, ca: str = "") -> None:
        self._blobs = blobs
        self._secret = secret
        self._private = private
        self._ca = ca
        self._tls: ssl.SSLContext | None = None
        self._wake = asyncio.Event()
        self._large = Budget(LARGE_OUTPUT_BYTES)
        self._under_way: set[asyncio.Task[None]] = set()
        self.documents: dict[str, Document] = {}
        self.counts: Counter[str] = Counter()
        """Tries by outcome: ``delivered``, ``retried``, ``given_up``."""
        self.why_not = ""
        """Why none is sent now."""

    def hint(self) -> None:
        """A job with a webhook has moved."""
        self._wake.set()

    def secret(self, project: str) -> str:
        """The project's secret as receivers need it."""
        return SECRET_PREFIX + base64.b64encode(project_secret(self._secret, project)).decode()

    async def run(self, store: JobStore, owner: str) -> None:
        """Deliver for ever."""
        try:
            while True:
                try:
                    if self._tls is not None or await self._trust():
                        await self._round(store, owner)
                except RequestError as error:
                    log.warning("webhooks wait: %s", error)
                except Exception:
                    # One that cannot be read must not keep all others, of any endpoint, for ever.
                    log.exception("webhooks wait")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await self._wake.wait()
                self._wake.clear()
        finally:
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _trust(self) -> bool:
        """Read whose certificates are good. A file that has gone since the start may come back."""
        try:
            self._tls = await asyncio.to_thread(tls_context, self._ca)
        except SettingsError as error:
            if self.why_not != str(error):
                log.warning("webhooks wait: %s", error)
            self.why_not = str(error)
            return False
        if self.why_not:
            log.info("webhooks wait no more: %s can be read", self._ca)
        self.why_not = ""
        return True

    async def _round(self, store: JobStore, owner: str) -> None:
        free = MAX_AT_ONCE - len(self._under_way)
        if free <= 0:
            return
        now = time.time()
        for delivery in await store.due(owner, now, now + TAKEN_S, free):
            task = asyncio.get_running_loop().create_task(self._deliver(store, delivery))
            self._under_way.add(task)
            task.add_done_callback(self._delivered)

    def _delivered(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a webhook could not be settled", exc_info=error)

    async def _deliver(self, store: JobStore, delivery: Delivery) -> None:
        final = False
        try:
            status = await self._send(store, delivery)
            detail = f"HTTP {status}"
            if 200 <= status < 300:
                self.counts["delivered"] += 1
                await store.settle(delivery.id, delivered=True, next_at=None, detail=detail)
                return
            final = status == 410
        except (AddressForbidden, ValidationFailed) as error:
            detail, final = str(error), True
        except HeadraceError as error:
            detail = str(error)
        except TimeoutError:
            detail = "too many large events were under way"
        except Exception as error:
            log.exception("webhook %s", delivery.id)
            detail = f"{type(error).__name__} in the gateway"
        tries = delivery.tries
        next_at = None if final or tries >= MAX_TRIES else time.time() + delay_s(tries)
        self.counts["given_up" if next_at is None else "retried"] += 1
        if next_at is None:
            log.warning("webhook %s of job %s is given up: %s", delivery.event, delivery.job, detail)
        await store.settle(delivery.id, delivered=False, next_at=next_at, detail=detail[:500])

    async def _send(self, store: JobStore, delivery: Delivery) -> int:
        event = decode_event(delivery.body)
        if event.event == "output" and event.job.api in SO_FAR:
            event = await with_all_items(store, delivery, event)
        payload, render = event.job.output, self.documents.get(event.job.api)
        if payload is None or not payload.blob:
            return await self._post(delivery, event, None if payload is None else payload.data)
        if payload.size > (INLINE_OUTPUT_BYTES if render is None else MAX_OUTPUT_BYTES):
            return await self._post(delivery, event, None)
        async with asyncio.timeout(LARGE_WAIT_S):
            await self._large.take(payload.size)
        try:
            return await self._post(delivery, event, await self._blobs.get(payload.blob))
        finally:
            self._large.give(payload.size)

    async def _post(self, delivery: Delivery, event: Event, output: bytes | None) -> int:
        render = self.documents.get(event.job.api, event_document)
        body = msgspec.json.encode(render(event, output))
        headers = sign(project_secret(self._secret, delivery.project), delivery.id, int(time.time()), body)
        headers |= {"Content-Type": "application/json", "User-Agent": "headrace-webhooks/1"}
        if event.job.traceparent:
            headers["traceparent"] = event.job.traceparent
        return await post(
            delivery.url,
            headers,
            body,
            private=self._private,
            timeout_s=TIMEOUT_S + len(body) / SLOWEST_BYTES_S,
            tls=self._tls,
        )


async def with_all_items(store: JobStore, delivery: Delivery, event: Event) -> Event:
    """An ``output`` event with all items so far, of which it has the newest; without any when those before
    are gone (a newer attempt began), or all are above `MAX_SO_FAR_BYTES`."""
    left = int(delivery.id.rpartition(".")[2])
    size, after, limit = sum(map(len, event.chunks)), -1, 16
    before: list[bytes] = []
    while left:
        chunks = await store.chunks(
            event.job.id, attempt=event.job.attempts, after=after, limit=min(limit, left)
        )
        size += sum(len(chunk.data) for chunk in chunks)
        if not chunks or chunks[0].attempt != event.job.attempts or size > MAX_SO_FAR_BYTES:
            return msgspec.structs.replace(event, chunks=())
        before += [chunk.data for chunk in chunks]
        after, left, limit = chunks[-1].seq, left - len(chunks), min(1000, limit * 2)
    return msgspec.structs.replace(event, chunks=(*before, *event.chunks))


def delay_s(tries: int) -> float:
    """Seconds until the next try, after ``tries`` of them: doubled each time up to an hour, with jitter."""
    state = RetryCallState(None, None, (), {})  # type: ignore[arg-type]
    state.attempt_number = tries
    return float(_backoff(state))


def sign(secret: bytes, id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of Standard Webhooks."""
    digest = hmac.new(secret, f"{id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def project_secret(root: bytes, project: str) -> bytes:
    """The secret of a project: that of ``default`` is in the file, the others follow from it."""
    return root if project == "default" else hmac.new(root, project.encode(), hashlib.sha256).digest()


def read_secret(data: Path) -> bytes:
    """The secret in the data directory, made when there is none (blocking). Raises `DataDirError`."""
    path = data / SECRET_FILE
    try:
        if not path.exists():
            draft = path.with_name(f".{SECRET_FILE}.{os.getpid()}.{secrets.token_hex(4)}")
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(SECRET_PREFIX.encode() + base64.b64encode(secrets.token_bytes(32)) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            # Two gateways may start together: the first one's stays.
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
            draft.unlink()
        text = path.read_text().strip()
        secret = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except (OSError, ValueError) as error:
        raise DataDirError(f"{path}: {error}.", hint="Remove it; the next start makes a new one.") from error
    if len(secret) < 24:
        raise DataDirError(f"{path} is damaged.", hint="Remove it; the next start makes a new one.")
    return secret
