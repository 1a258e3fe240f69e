"""HTTP to a registry: who we are, where we are sent on, and how often to try again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
from yarl import URL

from headrace_runtimes.errors import RegistryFailed
from headrace_runtimes.images.auth import Challenge, Credentials, from_docker_config, parse_challenge
from headrace_runtimes.images.reference import is_link_local, is_loopback

REDIRECTS = frozenset({301, 302, 303, 307, 308})
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
MAX_REDIRECTS = 5
MAX_ANSWER = 8 << 20
T = TypeVar("T")
Body = Callable[[], AsyncIterator[bytes]]


@dataclass(frozen=True)
class Patience:
    """How long and how often to try. Seconds."""

    attempts: int = 6
    """In a row that bring less than ``slow_bytes_s``."""
    total_s: float = 3600.0
    """One blob, all attempts together."""
    connect_s: float = 15.0
    stall_s: float = 30.0
    """Without one byte."""
    slow_bytes_s: int = 2048
    """Less than this for ``slow_s``: as good as cut off."""
    slow_s: float = 60.0
    pull_s: float = 900.0
    """A whole image of no size; see `whole_s`."""
    least_bytes_s: int = 128 << 10
    """Of all layers together, over the whole pull, beyond ``pull_s``."""
    document_s: float = 60.0
    """The head of an answer, and a short one's body, however steadily their bytes come."""
    pause_s: float = 0.5
    """Before the second attempt; doubles, with jitter, up to ``pause_max_s``."""
    pause_max_s: float = 20.0

    def pause(self, attempt: int, retry_after: str | None = None) -> float:
        """Seconds to wait before the next attempt."""
        own: float = min(self.pause_s * 2.0**attempt, self.pause_max_s) * random.uniform(0.5, 1.0)  # noqa: S311
        return max(own, min(seconds_of(retry_after or "", time.time()), 3 * self.pause_max_s))

    def whole_s(self, size: int) -> float:
        """Seconds that the pull of an image of ``size`` bytes may take, however steadily they come."""
        return self.pull_s + size / self.least_bytes_s


def seconds_of(retry_after: str, now: float) -> float:
    """What a ``Retry-After`` asks for: seconds, or the date until when. 0 for none and what is neither."""
    with contextlib.suppress(ValueError):
        wait = float(retry_after)
        return wait if 0 <= wait < math.inf else 0.0
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - now)
    return 0.0


class Refused(Exception):
    """One attempt failed; whether another makes sense."""

    def __init__(self, why: str, status: int = 0, *, again: bool = False, after: str | None = None) -> None:
        super().__init__(why)
        self.why, self.status, self.again, self.after = why, status, again, after


class Wire:
    """Requests to one registry. Use it as an async context."""

    def __init__(
        self,
        base: str,
        *,
        credentials: Credentials | None = None,
        docker_config: Path | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.base, self.patience = URL(base), patience or Patience()
        self._credentials, self._docker_config = credentials, docker_config
        self._tokens: dict[str, tuple[str, float]] = {}
        self._basic = False

    async def __aenter__(self) -> Self:
        if self._credentials is None:
            host = self.base.host or ""
            port = f":{self.base.explicit_port}" if self.base.explicit_port else ""
            self._credentials = await asyncio.to_thread(
                from_docker_config, f"{host}{port}", self._docker_config
            )
        limits = aiohttp.ClientTimeout(
            total=None, sock_connect=self.patience.connect_s, sock_read=self.patience.stall_s
        )
        self._session = aiohttp.ClientSession(
            timeout=limits, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(),
            connector=aiohttp.TCPConnector(limit=8), headers={"User-Agent": "headrace"},
        )  # fmt: skip
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    @contextlib.asynccontextmanager
    async def once(
        self,
        method: str,
        url: URL,
        scope: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        good: tuple[int, ...] = (200,),
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One answer, signed in and sent on as needed. Raises `Refused`, and what aiohttp raises.

        Another request than ``GET`` or ``HEAD`` follows no redirect.
        """
        asked = False
        redirects = 0
        while True:
            own = url.origin() == self.base.origin()
            sent = dict(headers or {})
            if own and (word := self._authorization(scope)):
                sent["Authorization"] = word
            # Until the head of the answer is here; what is sent along takes as long as it takes.
            async with asyncio.timeout(None if body else self.patience.document_s):
                response = await self._session.request(
                    method, url, headers=sent, data=body() if body else None, allow_redirects=False,
                    proxy=_proxy(url),
                )  # fmt: skip
            try:
                if response.status == 401 and own and not asked:
                    asked = True
                    await self._sign_in(response, scope)
                    continue
                if response.status in REDIRECTS and method in ("GET", "HEAD"):
                    redirects += 1
                    url = self.follow(url, response.headers.get("Location", ""))
                    if redirects > MAX_REDIRECTS:
                        raise Refused("sends us on and on", response.status)
                    continue
                if response.status not in good:
                    raise await self._refusal(response)
                yield response
                return
            finally:
                response.release()

    async def ask(
        self,
        method: str,
        url: URL,
        scope: str,
        what: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        good: tuple[int, ...] = (200,),
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and a short body, after as many attempts as it takes. Raises `RegistryFailed`."""

        async def attempt() -> tuple[int, Mapping[str, str], bytes]:
            async with self.once(method, url, scope, headers=headers, body=body, good=good) as answer:
                async with asyncio.timeout(self.patience.document_s):
                    return answer.status, answer.headers, await _short(answer)

        return await self.patiently(what, attempt)

    async def patiently(
        self, what: str, attempt: Callable[[], Awaitable[T]], progress: Callable[[], int] | None = None
    ) -> T:
        """Call ``attempt`` until it succeeds, or it makes no sense any more. Raises `RegistryFailed`.

        ``progress`` is a number of bytes that grows: attempts that bring it forward, and not only at a
        trickle, are not counted.
        """
        count, before = 0, progress() if progress else 0
        end = time.monotonic() + self.patience.total_s
        while True:
            began = time.monotonic()
            try:
                return await attempt()
            except Refused as error:
                failed = error
            except TimeoutError:
                failed = Refused("does not answer in time", again=True)
            except (aiohttp.ClientError, OSError) as error:
                why = (
                    "cut the connection"
                    if not isinstance(error, aiohttp.ClientConnectorError)
                    else "cannot be reached"
                )
                failed = Refused(f"{why} ({type(error).__name__})", again=True)
            brought = progress() - before if progress else 0
            if brought > self.patience.slow_bytes_s * (time.monotonic() - began):
                count = 0
            before += max(0, brought)
            count += 1
            pause = self.patience.pause(count - 1, failed.after)
            if not failed.again or count >= self.patience.attempts or time.monotonic() + pause > end:
                tried = f" after {count} attempts" if count > 1 else ""
                raise RegistryFailed(
                    f"{self.base.authority} {failed.why}{tried}, asked for {what}. "
                    f"{_advice(failed.status, known=self._credentials is not None)}",
                    failed.status,
                )
            await asyncio.sleep(pause)

    def follow(self, url: URL, location: str) -> URL:
        """Where an answer sends us. Raises `Refused` for a place where no secret may go."""
        try:
            target = url.join(URL(location))
        except ValueError as error:
            raise Refused(f"sends us to {location!r:.200}") from error
        if not location or not self._safe(target):
            raise Refused(f"sends us to {target.scheme}://{target.host}, where it is not safe to go")
        return target

    def _safe(self, url: URL) -> bool:
        """Encrypted, and not this machine's own services, unless the registry is one of them."""
        host = url.host or ""
        if is_loopback(host):
            return url.scheme in ("http", "https") and is_loopback(self.base.host or "")
        return bool(host) and url.scheme == "https" and not is_link_local(host)

    def _authorization(self, scope: str) -> str | None:
        if self._basic and self._credentials:
            return self._credentials.header()
        token, until = self._tokens.get(scope, ("", 0.0))
        return f"Bearer {token}" if token and time.monotonic() < until else None

    async def _sign_in(self, response: aiohttp.ClientResponse, scope: str) -> None:
        challenges = [parse_challenge(h) for h in response.headers.getall("WWW-Authenticate", [])]
        challenge = next((c for c in challenges if c), None)
        if challenge is None or (challenge.scheme == "basic" and (not self._credentials or self._basic)):
            raise await self._refusal(response)
        if challenge.scheme == "basic":
            self._basic = True
        else:
            self._tokens[scope] = await self._token(challenge, scope)

    async def _token(self, challenge: Challenge, scope: str) -> tuple[str, float]:
        try:
            realm = URL(challenge.realm)
        except ValueError as error:
            raise Refused(f"asks for a token of {challenge.realm!r:.200}", 401) from error
        if not self._safe(realm):
            raise Refused("asks for a password where it is not safe: its token service is not on https", 401)
        wanted = {"service": challenge.service, "scope": challenge.scope or scope}
        headers = {"Authorization": self._credentials.header()} if self._credentials else {}
        url = realm.update_query({k: v for k, v in wanted.items() if v})
        async with (
            asyncio.timeout(self.patience.document_s),
            self._session.get(url, headers=headers, allow_redirects=False, proxy=_proxy(url)) as answer,
        ):
            if answer.status != 200:
                raise await self._refusal(answer, "its token service ")
            try:
                found = json.loads(await _short(answer))
                token = found.get("token") or found["access_token"]
                seconds = float(found.get("expires_in") or 60)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise Refused("has a token service that gives no token", again=True) from error
        return str(token), time.monotonic() + max(10.0, 0.8 * seconds)

    async def _refusal(self, response: aiohttp.ClientResponse, who: str = "") -> Refused:
        again = response.status in AGAIN
        return Refused(
            f"{who}answers {response.status}", response.status, again=again,
            after=response.headers.get("Retry-After"),
        )  # fmt: skip


async def _short(answer: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for piece in answer.content.iter_chunked(1 << 16):
        data += piece
        if len(data) > MAX_ANSWER:
            raise Refused(f"sends more than {MAX_ANSWER >> 20} MiB where a document should be")
    return bytes(data)


def _proxy(url: URL) -> str | None:
    """The proxy of the environment; not through aiohttp, which would read ``.netrc`` too."""
    if is_loopback(url.host or "") or urllib.request.proxy_bypass(url.host or ""):
        return None
    return urllib.request.getproxies().get(url.scheme)


def _advice(status: int, *, known: bool) -> str:
    if status == 401 and known:
        return "The name or the password that this host has for it is wrong: run `docker login` anew."
    return {
        0: "Check the network and the registry, then try again.",
        401: "Log in: give credentials, or run `docker login` on this host.",
        403: "Ask for the right to use it.",
        404: "Check the name, the tag, and whether you may see it.",
        429: "Wait, or log in for a higher limit.",
    }.get(status, "Try again later.")
