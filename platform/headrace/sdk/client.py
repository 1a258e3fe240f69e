"""The client: calls endpoints and manages the platform over HTTP, with the standard library only.

There is no async twin: it would have to be generated from this source, and is not yet. In async code use
``asyncio.to_thread``, or any HTTP client on ``/e/{endpoint}``.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import uuid
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from headrace.config import client_url, load_settings
from headrace.errors import UsageError
from headrace.jobs.model import Priority
from headrace.sdk.background import Cancel
from headrace.sdk.job import Job
from headrace.sdk.manage import Management
from headrace.sdk.stream import EVENTS, NDJSON, Stream
from headrace.sdk.transport import IF_UNSTORED, Reply, Transport

DEFAULT_TIMEOUT_S = 600.0
SUBMIT_TIMEOUT_S = 30.0
MARGIN_S = 10.0
"""The client waits this much longer than it asks the platform to, so that the platform says what was late."""
JSON = "application/json"
OWN_KEY = {IF_UNSTORED: "run"}
"""With a key that nobody asked for: it is for retries of a broken connection only, so that the platform may
run the call without it while its job store takes nothing (a full disk)."""
_UNSET: Any = object()


class Client(Management):
    """Talks to one platform; may be used by many threads, and as a context manager.

    ``url`` defaults to ``HEADRACE_URL``, then ``http://127.0.0.1:8700``. ``api_key`` defaults to
    ``HEADRACE_API_KEY``, then, for a loopback address, to the admin key of the default data directory.
    A connection that dies is retried for up to ``retry_for`` seconds, with the same ``Idempotency-Key``;
    so is what the platform refuses because its job store does not answer.
    Raises `headrace.errors.RequestError` for what the platform answers, ``NotRunning`` when nobody does.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
        retry_for: float = 10.0,
    ) -> None:
        self.url = (url or client_url()).rstrip("/")
        self.timeout = timeout
        key = api_key or os.environ.get("HEADRACE_API_KEY") or _local_admin_key(self.url)
        headers = {"User-Agent": "headrace-python", "Accept": f"{JSON}, {NDJSON}, */*"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self._transport = Transport(self.url, headers, retry_for)
        # A client that is just dropped leaves no open sockets behind.
        weakref.finalize(self, self._transport.close)

    def call(
        self,
        endpoint: str,
        *args: Any,
        json: Any = _UNSET,
        data: bytes | None = None,
        content_type: str = "application/octet-stream",
        timeout: float | None = None,
        priority: Priority | None = None,
        idempotency_key: str | None = None,
        idempotent: bool = True,
        cancel: Cancel | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call an endpoint: a JSON value, bytes, or a `Stream` to iterate over.

        Give the input one way: ``**kwargs`` (parameters by name), one positional value (the whole input;
        bytes are sent raw), ``json=`` (any JSON value; also for parameters named like an option here) or
        ``data=`` with its ``content_type``. ``idempotent=False``: never sent again when the connection
        dies under it. ``timeout`` is in seconds, for the whole call (for a stream: to its first item and
        between items). ``priority``: its place in the endpoint's queue.
        """
        body, sent_type = _encode(args, kwargs, json, data, content_type)
        timeout = self.timeout if timeout is None else timeout
        headers = {
            "Idempotency-Key": idempotency_key or uuid.uuid4().hex,
            "X-Headrace-Timeout": f"{timeout:.3f}",
        }
        if idempotency_key is None:
            headers |= OWN_KEY
        if priority is not None:
            headers["X-Headrace-Priority"] = priority
        if sent_type:
            headers["Content-Type"] = sent_type
        reply = self._transport.request(
            "POST",
            f"/e/{quote(endpoint, safe='@')}",
            body=body,
            headers=headers,
            timeout=timeout + MARGIN_S,
            repeatable=idempotent,
            cancel=cancel,
        )
        return decode(reply)

    def submit(
        self,
        endpoint: str,
        *args: Any,
        json: Any = _UNSET,
        data: bytes | None = None,
        content_type: str = "application/octet-stream",
        priority: Priority = "normal",
        webhook: str | None = None,
        ttl: float | None = None,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        **kwargs: Any,
    ) -> Job:
        """Store a call as a `Job` (the input is given as in `call`); returns when it is stored.

        ``webhook`` is told (signed) when it ends. ``ttl``: it must have ended after so many seconds.
        ``timeout``: an attempt may run for so many (lowers the endpoint's). The same ``idempotency_key``
        gives the same job, for as long as it is kept.
        """
        key = idempotency_key or uuid.uuid4().hex
        body, sent_type = _encode(args, kwargs, json, data, content_type)
        limit = {} if timeout is None else {"X-Headrace-Timeout": f"{timeout:.3f}"}
        if webhook is None and ttl is None:
            headers = {"Idempotency-Key": key, "Prefer": "respond-async", "X-Headrace-Priority": priority}
            headers |= limit
            if sent_type:
                headers["Content-Type"] = sent_type
            path = f"/e/{quote(endpoint, safe='@')}"
            reply = self.request("POST", path, body=body, headers=headers, timeout=SUBMIT_TIMEOUT_S)
        else:
            if sent_type not in (None, JSON):
                raise UsageError("webhook= and ttl= need an input in JSON.", hint="Send the bytes in base64.")
            document: dict[str, Any] = {"endpoint": endpoint, "priority": priority}
            document["input"] = msgspec.Raw(body or b"{}")
            document |= {"webhook": webhook} if webhook is not None else {}
            document |= {"ttl_s": ttl} if ttl is not None else {}
            headers = {"Idempotency-Key": key, "Content-Type": JSON} | limit
            data = msgspec.json.encode(document)
            reply = self.request("POST", "/api/v1/jobs", body=data, headers=headers, timeout=SUBMIT_TIMEOUT_S)
        reply.raise_for_problem()
        return Job(self, reply.json())

    def job(self, job_id: str) -> Job:
        """A job by its id. Raises `headrace.errors.NotFound`."""
        job = Job(self, {"id": job_id})
        job.refresh()
        return job

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        repeatable: bool = True,
    ) -> Reply:
        """Any request, with the answer as it is (`Reply.status`, ``headers``, ``body``, `Reply.json`).

        For ASGI endpoints (``/e/{name}/{path}``) and whatever has no method here. ``repeatable`` requests get
        an ``Idempotency-Key`` unless ``headers`` hold one.
        """
        given = dict(headers or {})
        keyed = any(name.lower() == "idempotency-key" for name in given)
        if repeatable and not keyed and method not in ("GET", "HEAD"):
            given |= OWN_KEY | {"Idempotency-Key": uuid.uuid4().hex}
        return self._transport.request(
            method,
            path,
            body=body,
            headers=given,
            timeout=self.timeout if timeout is None else timeout,
            repeatable=repeatable,
        )

    def close(self) -> None:
        """Close idle connections; the client may still be used."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _manage(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        json: Any = None,
        body: bytes | None = None,
        timeout: float = 30.0,
    ) -> Reply:
        given = {name: str(value) for name, value in (query or {}).items() if value is not None}
        target = f"/api/v1{path}" + (f"?{urlencode(given)}" if given else "")
        headers = {}
        if json is not None:
            body, headers["Content-Type"] = msgspec.json.encode(json), JSON
        elif body is not None:
            headers["Content-Type"] = "application/zip"
        return self.request(method, target, body=body, headers=headers, timeout=timeout)


def decode(reply: Reply) -> Any:
    """The value of an endpoint's answer. Raises the problem it holds."""
    reply.raise_for_problem()
    if reply.content_type in (NDJSON, EVENTS):
        return Stream(reply)
    body = reply.body
    if reply.content_type == JSON or reply.content_type.endswith("+json"):
        return msgspec.json.decode(body) if body else None
    return body


def call_endpoint(
    endpoint: Any, args: Sequence[Any], kwargs: Mapping[str, Any], cancel: Cancel | None
) -> Any:
    """`Client.call` of a decorated handler: its positional arguments are sent by their names."""
    spec, given = endpoint.spec, _given(endpoint, args, kwargs)
    return default_client().call(
        spec.name, **given, timeout=spec.timeout, idempotent=spec.idempotent, cancel=cancel
    )


def submit_endpoint(endpoint: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Job:
    """`Client.submit` of a decorated handler: its positional arguments are sent by their names."""
    given = _given(endpoint, args, kwargs)
    client, name = default_client(), endpoint.spec.name
    return client.submit(name, **given)


def _given(endpoint: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The input of a call of a decorated handler, as ``json`` or ``data``."""
    spec, handler = endpoint.spec, endpoint.handler
    if len(args) > len(handler.parameters):
        raise UsageError(
            f"{spec.name} takes {len(handler.parameters)} arguments, and {len(args)} were given."
        )
    named = dict(zip(handler.parameters, args, strict=False))
    twice = named.keys() & kwargs.keys()
    if twice:
        raise UsageError(f"{spec.name}: {sorted(twice)[0]!r} was given twice.")
    named.update(kwargs)
    if len(handler.parameters) == 1 and len(named) == 1:
        value = named.get(handler.parameters[0])
        if isinstance(value, bytes | bytearray | memoryview):
            return {"data": bytes(value)}
    return {"json": named}


def default_client() -> Client:
    """The client that ``fn.remote`` uses: one for each address and key of the environment."""
    return _shared(client_url(), os.environ.get("HEADRACE_API_KEY"))


@functools.lru_cache(maxsize=8)
def _shared(url: str, api_key: str | None) -> Client:
    return Client(url, api_key)


def _encode(
    args: tuple[Any, ...], kwargs: dict[str, Any], json: Any, data: bytes | None, content_type: str
) -> tuple[bytes | None, str | None]:
    ways = (bool(args), bool(kwargs), json is not _UNSET, data is not None)
    if sum(ways) > 1 or len(args) > 1:
        raise UsageError(
            "give the input one way: parameters by name, one positional value, json= or data=.",
            hint="Several positional values need their names here.",
        )
    if args and isinstance(args[0], bytes | bytearray | memoryview):
        data = bytes(args[0])
    if data is not None:
        return data, content_type
    if not any(ways):
        return None, None
    value = args[0] if args else kwargs if kwargs else json
    try:
        return msgspec.json.encode(value, enc_hook=_plain), JSON
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the input cannot be sent as JSON: {error}.") from error


def _plain(value: Any) -> Any:
    for method in ("model_dump", "tolist"):  # pydantic models; numpy arrays and scalars, torch tensors
        convert = getattr(value, method, None)
        if callable(convert):
            return convert(mode="json") if method == "model_dump" else convert()
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _local_admin_key(url: str) -> str | None:
    """The key that ``headrace up`` on this machine keeps; only ever sent to a loopback address."""
    host = urlsplit(url).hostname or ""
    if host != "localhost":
        try:
            if not ipaddress.ip_address(host).is_loopback:
                return None
        except ValueError:
            return None
    try:
        return Path(load_settings(finding=True).data_dir, "admin.key").read_text().strip() or None
    except OSError:
        return None
