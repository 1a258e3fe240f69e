"""HTTP for the client: pooled keep-alive connections, a deadline, and retries within a budget.

What is sent again: a connection that could not be made, always; one that died under a request that may be
repeated, with the same ``Idempotency-Key``; an answer that says "not now" (queue full, control restarting,
job store away), after its ``Retry-After``. Never anything once the first byte of an answer was handed out.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from email.message import Message
from typing import Any
from urllib.parse import urlsplit

from headrace.errors import (
    PROBLEM_CONTENT_TYPE,
    BlobsUnavailable,
    ControlAway,
    DeadlineExceeded,
    GatewayStopping,
    InstanceDied,
    NotRunning,
    QueueFull,
    RequestError,
    StoreUnavailable,
    UsageError,
    from_problem,
)
from headrace.sdk.background import Cancel

MAX_IDLE = 16
"""Idle connections kept for reuse."""
MAX_ATTEMPTS = 10
"""Of one request, the first included; more within ``retry_for`` seconds."""
CONNECT_TIMEOUT_S = 10.0
FIRST_CONTACT_S = 1.0
"""A platform that has never answered is given up after this long; one that has gets ``retry_for``."""
CHUNK = 64 << 10
MAX_LINE = 64 << 20
"""Bytes of one item of a stream."""
KEY = "idempotency-key"
IF_UNSTORED = "X-Headrace-If-Unstored"
_STORE_AWAY = (StoreUnavailable, BlobsUnavailable)
_BROKEN = (OSError, http.client.HTTPException)


class Reply:
    """An answer. Read ``body`` (or `json`), or `chunks` while it comes; `close` gives the connection back."""

    def __init__(
        self,
        owner: Transport,
        connection: http.client.HTTPConnection,
        raw: http.client.HTTPResponse,
        until: float,
    ) -> None:
        self._owner, self._connection, self._raw, self._until = owner, connection, raw, until
        self._patience = max(0.001, until - time.monotonic())
        self._body: bytes | None = None
        self._closed = False
        self.status = raw.status
        self.headers: Message[str, str] = raw.headers

    @property
    def content_type(self) -> str:
        """The media type without parameters, lower case."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    @property
    def body(self) -> bytes:
        """All of it. Raises `DeadlineExceeded`, or `InstanceDied` when the connection ends too early."""
        if self._body is None:
            self._body = b"".join(self.chunks())
        return self._body

    def json(self) -> Any:
        """The body as JSON. Raises ``ValueError`` when it is not."""
        return json.loads(self.body)

    def chunks(self) -> Iterator[bytes]:
        """The body in the pieces that come in."""
        try:
            while piece := self._read():
                yield piece
        finally:
            self.close()

    def lines(self) -> Iterator[bytes]:
        """The body line by line, for streams; each line may take as long as the whole request's timeout."""
        buffer = bytearray()
        try:
            # Not `readline`: on a chunked answer that breaks off it gives an end of file, and no error.
            while piece := self._read(patience=self._patience):
                seen = len(buffer)
                buffer += piece
                start = 0
                while (end := buffer.find(b"\n", max(start, seen))) >= 0:
                    yield bytes(buffer[start : end + 1])
                    start = end + 1
                del buffer[:start]
                if len(buffer) > MAX_LINE:
                    raise InstanceDied(f"an item of the stream is above {MAX_LINE >> 20} MiB.")
            if buffer:
                yield bytes(buffer)
        finally:
            self.close()

    def close(self) -> None:
        """Done with it: an unread rest is dropped together with the connection, which cancels the request."""
        if not self._closed:
            self._closed = True
            done = self._raw.isclosed() or self._raw.length == 0
            reusable = done and not self._raw.will_close
            self._raw.close()
            self._owner.release(self._connection, reusable=reusable)

    def __del__(self) -> None:
        self.close()

    def raise_for_problem(self) -> None:
        """Raise what a status from 400 on means, as its type of `headrace.errors`."""
        if self.status < 400:
            return
        doc: Any = None
        if self.content_type in (PROBLEM_CONTENT_TYPE, "application/json"):
            with contextlib.suppress(ValueError):
                doc = json.loads(self.body)
        if not isinstance(doc, dict):
            text = self.body[:300].decode(errors="replace").strip()
            doc = {"detail": f"HTTP {self.status}" + (f": {text}" if text else "")}
        error = from_problem(self.status, doc)
        retry_after = _seconds(self.headers.get("Retry-After"))
        if retry_after is not None:
            error.extra.setdefault("retry_after", retry_after)
        raise error

    def _read(self, patience: float | None = None) -> bytes:
        remaining = self._until - time.monotonic() if patience is None else patience
        if remaining <= 0:
            raise _late()
        if self._connection.sock is not None:
            self._connection.sock.settimeout(remaining)
        return self._guard(lambda: self._raw.read1(CHUNK))

    def _guard(self, read: Any) -> bytes:
        try:
            data: bytes = read()
        except TimeoutError as error:
            raise _late() from error
        except (*_BROKEN, ValueError) as error:  # ValueError: a chunk's size that is no number
            raise InstanceDied(
                f"the connection ended before the answer was complete: {error or type(error).__name__}."
            ) from error
        if not data and self._raw.length:
            raise InstanceDied(f"the connection ended {self._raw.length} bytes too early.")
        return data


class Transport:
    """Connections to one platform; may be used by many threads. Raises `UsageError` for a bad URL."""

    def __init__(self, url: str, headers: Mapping[str, str], retry_for: float = 10.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(
                f"{url!r} is not the address of a platform.", hint="Use one such as http://127.0.0.1:8700."
            )
        try:
            self._port = parts.port
        except ValueError as error:
            raise UsageError(f"{url!r}: {error}.") from error
        self._url, self._host, self._prefix = url, parts.hostname, parts.path.rstrip("/")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._headers = dict(headers)
        self._retry_for = retry_for
        self._idle: list[http.client.HTTPConnection] = []
        # Reentrant: a dropped `Reply` gives its connection back whenever the collector runs.
        self._lock = threading.RLock()
        self._known = False

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float,
        repeatable: bool = True,
        cancel: Cancel | None = None,
    ) -> Reply:
        """Send and give the answer, whatever its status, as soon as its head is there.

        ``repeatable``: may be sent again when the connection dies under it. Raises `NotRunning` when nobody
        listens, `InstanceDied` when the connection keeps dying, `DeadlineExceeded` after ``timeout`` seconds.
        """
        started = time.monotonic()
        until = started + timeout
        attempt = died = 0
        refused: Reply | None = None
        merged = {**self._headers, **(headers or {})}
        while True:
            attempt += 1
            error: Exception
            try:
                reply = self._once(method, path, body, merged, until, cancel, reuse=repeatable)
            except DeadlineExceeded:
                raise _late(method, refused) from None
            except _NotConnected as broken:
                budget = self._retry_for if self._known else min(self._retry_for, FIRST_CONTACT_S)
                error, give_up = broken, time.monotonic() - started >= budget
            except _Died as broken:
                died += 1
                error, give_up = broken, not repeatable
            else:
                wait = self._not_now(reply, merged, repeatable, time.monotonic() - started)
                if (
                    wait is None
                    or self._tried(attempt, started, MAX_ATTEMPTS)
                    or time.monotonic() + wait >= until
                ):
                    return reply
                refused = reply
                reply.close()
                _sleep(wait, cancel)
                continue
            # A kept connection that the other side closed meanwhile says nothing of the platform's health.
            wait = 0.0 if isinstance(error, _Stale) else _backoff(attempt)
            if give_up or self._tried(attempt, started, MAX_ATTEMPTS * 3) or died >= MAX_ATTEMPTS:
                raise self._final(error) from error.__cause__
            if time.monotonic() + wait >= until:
                raise _late(method, refused) from error
            _sleep(wait, cancel)

    def _tried(self, attempt: int, started: float, bound: int) -> bool:
        """Whether that was often and long enough: a platform that starts again takes a while."""
        return attempt >= bound and time.monotonic() - started >= self._retry_for

    def release(self, connection: http.client.HTTPConnection, *, reusable: bool) -> None:
        """Take a connection back."""
        with self._lock:
            if reusable and connection.sock is not None and len(self._idle) < MAX_IDLE:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _once(  # noqa: PLR0917 - one caller
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str],
        until: float,
        cancel: Cancel | None,
        *,
        reuse: bool,
    ) -> Reply:
        connection, fresh = self._connection(until, reuse)
        sock = connection.sock
        try:
            if cancel is not None:
                cancel.watch(sock)
            sock.settimeout(max(0.001, until - time.monotonic()))
            try:
                connection.request(method, self._prefix + path, body=body, headers=headers)
                cut = False
            except (BrokenPipeError, ConnectionResetError):
                # A body that is refused unread: its answer lies in the socket. Else reading fails, too.
                cut = True
            raw = connection.getresponse()
            raw.will_close |= cut
        except TimeoutError as error:
            connection.close()
            raise _late() from error
        except _BROKEN as error:
            connection.close()
            if cancel is not None and cancel.cancelled:
                raise InstanceDied("the call was cancelled here.") from error
            if not fresh:
                self.close()  # the others that were kept are as old
            raise (_Died if fresh else _Stale)(str(error) or type(error).__name__) from error
        except BaseException:
            connection.close()
            raise
        self._known = True
        return Reply(self, connection, raw, until)

    def _connection(self, until: float, reuse: bool) -> tuple[http.client.HTTPConnection, bool]:
        with self._lock:
            if reuse and self._idle:
                return self._idle.pop(), False
        timeout = min(CONNECT_TIMEOUT_S, max(0.001, until - time.monotonic()))
        connection: http.client.HTTPConnection
        if self._tls is not None:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=timeout, context=self._tls
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout)
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as error:
            raise NotRunning(
                f"{self._url}: {error.verify_message}.", hint="Check the certificate."
            ) from error
        except socket.gaierror as error:
            raise NotRunning(f"{self._url}: there is no host of that name.") from error
        except OSError as error:
            connection.close()
            raise _NotConnected(error.strerror or str(error)) from error
        return connection, True

    def _final(self, error: Exception) -> Exception:
        if isinstance(error, _NotConnected):
            return NotRunning(
                f"no platform answers at {self._url} ({error}).",
                hint="Start one with `headrace up`, or set HEADRACE_URL.",
            )
        return InstanceDied(f"the connection to {self._url} died under the request ({error}).")

    def _not_now(
        self, reply: Reply, headers: dict[str, str], repeatable: bool, spent_s: float
    ) -> float | None:
        """Seconds to wait before the request is sent again; None: this is the answer.

        What a gateway gave up when it stopped may have run, as when its connection dies. A job store that
        does not answer may have stored it: a key finds it again. Each such answer may take long by itself,
        so that time alone bounds their number.
        """
        if reply.status not in (QueueFull.status, ControlAway.status):
            return None
        if reply.content_type != PROBLEM_CONTENT_TYPE:
            return None
        try:
            reply.raise_for_problem()
        except (QueueFull, ControlAway, GatewayStopping, *_STORE_AWAY) as error:
            if isinstance(error, GatewayStopping) and not repeatable:
                return None
            if isinstance(error, _STORE_AWAY):
                keyed = any(name.lower() == KEY for name in headers)
                if spent_s >= self._retry_for or not (repeatable or keyed):
                    return None
                if not repeatable:
                    # It may be stored, and run: from now on only as what has this key.
                    headers.pop(IF_UNSTORED, None)
            return float(error.extra.get("retry_after", 0.5)) * random.uniform(1.0, 1.2)  # noqa: S311 - jitter
        except RequestError:
            pass
        return None


class _NotConnected(Exception):
    """Nothing was sent."""


class _Died(Exception):
    """It may have been worked on."""


class _Stale(_Died):
    """It died on a kept connection."""


def _backoff(attempt: int) -> float:
    return min(1.0, 0.05 * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter


def _sleep(seconds: float, cancel: Cancel | None) -> None:
    if cancel is not None and cancel.wait(seconds):
        raise InstanceDied("the call was cancelled here.")
    if cancel is None:
        time.sleep(seconds)


def _seconds(value: str | None) -> float | None:
    try:
        seconds = float(value) if value is not None else None
    except ValueError:
        return None
    return seconds if seconds is None or 0 <= seconds < 3600 else None


def _late(method: str = "", refused: Reply | None = None) -> RequestError:
    """The time is up. What was answered before, if anything, says why; to a question it is the answer."""
    before = ""
    if refused is not None:
        try:
            refused.raise_for_problem()
        except RequestError as error:
            if method in ("GET", "HEAD"):
                return error
            before = f"; the last was: {error.message.rstrip('.')}"
    return DeadlineExceeded(f"no answer within the client's timeout{before}.", hint="Give a longer timeout.")
