"""Weights at an http(s) address: never at one inside, whatever its name resolves to or whom it sends us to.

The name is resolved once per connection, every address is checked, and the connection goes to a checked one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from headrace_runtimes.addresses import is_public
from headrace_runtimes.weights.remote import Changed, Interrupted, RemoteFile, Sink
from headrace_runtimes.weights.values import WeightsFailed, WeightsSettings, file_name

REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_REDIRECTS = 5
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
CONNECT_S = 15.0
CHUNK = 1 << 20
MAX_WAIT_S = 60.0


class Forbidden(OSError):
    """A name that leads inside."""


class PublicResolver(AbstractResolver):
    """Resolves names; refuses those that lead inside."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """See aiohttp. Raises `Forbidden`."""
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, family=family
        )
        results: list[ResolveResult] = []
        for kind, _, proto, _, address in found:
            text = str(address[0])
            if not is_public(ipaddress.ip_address(text.partition("%")[0])):
                raise Forbidden(f"{host} is at {text}, a private address")
            results.append(
                {
                    "hostname": host, "host": text, "port": port, "family": kind, "proto": proto,
                    "flags": socket.AI_NUMERICHOST,
                }
            )  # fmt: skip
        return results

    async def close(self) -> None:
        """Nothing is open."""


class HttpRemote:
    """One file at an address."""

    def __init__(self, url: str, settings: WeightsSettings) -> None:
        self._url, self._private = URL(url, encoded=True), settings.private
        self._shown = url.partition("?")[0]
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=settings.stall_s)
        options: dict[str, Any] = {"limit": settings.connections}
        if not settings.private:
            options["resolver"] = PublicResolver()
        self._session = aiohttp.ClientSession(
            timeout=limits, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(),
            connector=aiohttp.TCPConnector(**options),
            headers={"User-Agent": "headrace", "Accept-Encoding": "identity"},
        )  # fmt: skip

    async def files(self) -> list[RemoteFile]:
        """See `Remote.files`."""
        async with self._get({"Range": "bytes=0-0"}) as answer:
            validator = _validator(answer)
            name = file_name(str(self._url))
            if answer.status == 206:
                size = answer.headers.get("Content-Range", "").rpartition("/")[2]
                if size.isdecimal():
                    return [RemoteFile(name, int(size), validator)]
            size = answer.headers.get("Content-Length", "")
            if answer.status == 200 and size.isdecimal():
                return [RemoteFile(name, int(size), validator, ranges=False)]
        raise WeightsFailed(f"weights {self._shown}: the server does not say how large it is; use another.")

    async def read(self, file: RemoteFile, start: int, end: int, sink: Sink) -> None:
        """See `Remote.read`."""
        headers = {}
        if file.ranges:
            headers["Range"] = f"bytes={start}-{end - 1}"
            if file.validator:
                headers["If-Range"] = file.validator
        async with self._get(headers) as answer:
            if file.ranges and answer.status != 206:
                raise Changed("the source has changed")
            if file.validator and _validator(answer) not in ("", file.validator):
                # Not every server heeds If-Range.
                raise Changed("the source has changed")
            if (
                file.ranges
                and answer.headers.get("Content-Range", "") != f"bytes {start}-{end - 1}/{file.size}"
            ):
                raise Changed("the source has another size now")
            try:
                async for piece in answer.content.iter_chunked(CHUNK):
                    if start + len(piece) > end:
                        raise Changed("the source has become longer")
                    sink(piece, start)
                    start += len(piece)
            except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
                raise Interrupted(_words(error)) from None
        if start < end:
            raise Interrupted("the answer ended early")

    async def close(self) -> None:
        """See `Remote.close`."""
        await self._session.close()

    @contextlib.asynccontextmanager
    async def _get(self, headers: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        url = self._url
        for _ in range(MAX_REDIRECTS + 1):
            self._check(url)
            try:
                answer = await self._session.get(url, headers=headers, allow_redirects=False)
            except aiohttp.InvalidURL as error:
                raise WeightsFailed(f"weights {self._shown}: {error}: correct the address.") from None
            except aiohttp.ClientConnectorError as error:
                if isinstance(error.os_error, Forbidden):
                    raise WeightsFailed(f"weights {self._shown}: {error.os_error}.") from None
                raise Interrupted(_words(error)) from None
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise Interrupted(_words(error)) from None
            try:
                if answer.status in REDIRECTS:
                    url = self._joined(url, answer.headers.get("Location", ""))
                    continue
                if answer.status not in (200, 206):
                    raise self._refusal(answer)
                if answer.headers.get("Content-Encoding", "identity") != "identity":
                    raise WeightsFailed(f"weights {self._shown}: the server sends it packed; use another.")
                yield answer
                return
            finally:
                answer.close() if answer.status == 200 else answer.release()
        raise WeightsFailed(f"weights {self._shown}: the server sends us on and on.")

    def _joined(self, url: URL, location: str) -> URL:
        try:
            return url.join(URL(location, encoded=True))
        except ValueError:
            raise WeightsFailed(f"weights {self._shown}: the server sends us to no address.") from None

    def _check(self, url: URL) -> None:
        if url.scheme not in ("http", "https") or not url.host or url.user is not None:
            raise WeightsFailed(f"weights {self._shown}: the server sends us to no http(s) address.")
        with contextlib.suppress(ValueError):
            # aiohttp does not resolve what is an address already.
            address = ipaddress.ip_address(url.host.partition("%")[0])
            if not self._private and not is_public(address):
                raise WeightsFailed(
                    f"weights {self._shown}: {url.host} is a private address; set weights_private "
                    "(HEADRACE_WEIGHTS_PRIVATE=1) to allow it."
                )

    def _refusal(self, answer: aiohttp.ClientResponse) -> Exception:
        if answer.status in AGAIN:
            wait = answer.headers.get("Retry-After", "")
            return Interrupted(
                f"HTTP {answer.status}", min(MAX_WAIT_S, float(wait)) if wait.isdecimal() else 0.0
            )
        if answer.status in (412, 416):
            return Changed("the source has another size now")
        what = "correct the address"
        if answer.status in (401, 403):
            what = "hosts have no credentials there; use a signed or public address, s3:// or a local path"
        elif answer.status in (404, 410):
            what = "there is nothing there; correct the address"
        return WeightsFailed(f"weights {self._shown}: HTTP {answer.status}: {what}.")


def _validator(answer: aiohttp.ClientResponse) -> str:
    """What changes with the content, as the server says; a weak ETag may not."""
    etag = answer.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified", "")


def _words(error: BaseException) -> str:
    return str(error)[:200] or type(error).__name__
