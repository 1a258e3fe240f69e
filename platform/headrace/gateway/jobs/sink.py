"""The client of a `Call` that nobody is connected to: collects the answer of a job's attempt.

It has the methods that a `Call` uses of a `ClientConnection`, and nothing else. Its requests pretend to
be HTTP/1.0, so that a streamed body comes as it is, without chunk framing.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from headrace.errors import BodyTooLarge, RequestError
from headrace.gateway.jobs.items import ItemParser, parser_for
from headrace.gateway.request import Request
from headrace.jobs.text import read_json

MAX_OUTPUT_BYTES = 64 << 20
"""A job whose output is above this fails; the items of a stream are its output, too."""
MAX_AGGREGATE_BYTES = 8 << 20
"""Items of a stream that are held here for that; those of a larger one are read again from the store."""
PAUSE_BYTES = 1 << 20
"""Stream items that are not stored yet; above this the instance is read no further."""
_TIMING = re.compile(r"([a-z]+);(?:dur=([0-9.]+)|desc=\"([^\"]*)\")")
ATTEMPT = "x-headrace-attempt"
_NOT_KEPT = ("connection", "content-length", "content-type", "server-timing", "transfer-encoding", "date")


@dataclass(slots=True)
class Outcome:
    """How one attempt ended, as far as the gateway saw it."""

    status: int = 0
    """Of the instance's answer; 0: there was none."""
    content_type: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    """Those of the answer that belong to its content."""
    body: bytes = b""
    items: int | None = None
    """Items of a stream; None: it was no stream."""
    size: int = 0
    """Their bytes."""
    whole: bool = True
    """False: ``body`` is not the answer (items above `MAX_AGGREGATE_BYTES`, or it was passed on live)."""
    problem: dict[str, Any] | None = None
    """What a stream, or the instance's answer, said had gone wrong."""
    error: RequestError | None = None
    """Why the gateway gave up."""
    cut: bool = False
    """It gave up after the answer had begun."""
    timings: dict[str, Any] = field(default_factory=dict)
    instance: str = ""
    accepted: bool = True
    """Whether an instance may have begun with it."""
    started_at: float = 0.0
    """When (Unix epoch) the instance got it; 0: none did, or the answer was kept from an earlier attempt."""


class JobClient:
    """See the module. ``done`` hears of the end, ``items`` of stream items that are to be stored."""

    def __init__(
        self,
        done: Callable[[Outcome], None],
        items: Callable[[list[bytes]], None] | None = None,
    ) -> None:
        self.outcome = Outcome()
        self.writable = True
        self.gone = False
        self.keep_timing = False
        self._done = done
        self._items = items
        self._request: Request | None = None
        self._parser: ItemParser | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._unstored = 0
        self._ended = False

    def serves(self, request: Request) -> None:
        """This is the request whose answer is collected."""
        self._request = request

    # -- what a Call uses ---------------------------------------------------------------------

    def reply(self, request: Request, data: bytes) -> None:
        """The whole answer."""
        head, _, body = data.partition(b"\r\n\r\n")
        self.read_head(head)
        if self._parser is not None:
            self._feed(body)
        else:
            self._parts.append(body)
        self.end(request)

    def write(self, data: bytes) -> None:
        """The head first, then pieces of the body."""
        if self._ended:
            return
        if not self.outcome.status:
            head, _, data = data.partition(b"\r\n\r\n")
            self.read_head(head)
        if not data:
            return
        if self._parser is not None:
            self._feed(data)
            return
        self._size += len(data)
        if self._size > MAX_OUTPUT_BYTES:
            self._too_large()
        else:
            self._parts.append(data)

    def end(self, request: Request) -> None:
        """The answer is complete."""
        if self._parser is not None and not self._ended:
            self._take(self._parser.flush())
        self._finish()

    def cut(self, request: Request) -> None:
        """The answer will never be complete; why, its last event said."""
        self.outcome.cut = True
        self._finish()

    def fail(self, request: Request, error: RequestError, extra: bytes = b"") -> None:
        """There is no answer."""
        self.outcome.error = error
        if self.keep_timing and extra:
            lines = (line.partition(": ") for line in extra.decode("latin-1").split("\r\n") if line)
            self.outcome.headers += [(name, value) for name, _, value in lines]
        self._finish()

    def closes(self, request: Request) -> bool:
        """Nobody keeps a connection here."""
        return False

    def release_body(self, request: Request) -> None:
        """The input is not needed for another attempt of this call."""
        request.body = b""

    # -- for the runner -----------------------------------------------------------------------

    def stored(self, size: int) -> None:
        """So many bytes of items are in the store: go on reading."""
        self._unstored -= size
        if not self.writable and self._unstored <= PAUSE_BYTES // 2:
            self.writable = True
            if self._request is not None and self._request.exchange is not None and not self._ended:
                self._request.exchange.resume()

    def forget(self) -> None:
        """Nobody wants the answer any more."""
        self._ended = self.gone = True
        self._parts.clear()

    # -- inside -------------------------------------------------------------------------------

    def read_head(self, head: bytes) -> None:
        """Note what the head of an answer says."""
        outcome = self.outcome
        first, *lines = head.decode("latin-1").split("\r\n")
        outcome.status = int(first[9:12])
        for line in lines:
            name, _, value = line.partition(":")
            lower, value = name.lower(), value.strip()
            if lower == "content-type":
                outcome.content_type = value
            elif lower == "server-timing":
                outcome.timings = read_timings(value)
                if self.keep_timing:
                    outcome.headers.append((name, value))
            elif lower == ATTEMPT:
                if self.keep_timing:
                    outcome.headers.append((name, value))
            elif lower not in _NOT_KEPT and not lower.startswith("x-headrace-"):
                outcome.headers.append((name, value))
        if self._items is not None and outcome.status < 400:
            self._parser = parser_for(outcome.content_type)
            if self._parser is not None:
                outcome.items = 0

    def _feed(self, data: bytes) -> None:
        if self._parser is None or self._ended:
            return
        try:
            self._take(self._parser.feed(data))
        except RequestError as error:
            self._abort(error)

    def _take(self, items: list[bytes]) -> None:
        outcome = self.outcome
        if self._parser is not None and self._parser.problem is not None:
            outcome.problem = self._parser.problem
        if not items or self._items is None:
            return
        outcome.items = (outcome.items or 0) + len(items)
        size = sum(len(item) for item in items)
        outcome.size += size
        if outcome.size > MAX_OUTPUT_BYTES:
            self._too_large()
            return
        if outcome.size <= MAX_AGGREGATE_BYTES:
            self._parts.extend(items)
        elif outcome.whole:
            outcome.whole = False
            self._parts.clear()
        self._unstored += size
        self._items(items)
        if self._unstored > PAUSE_BYTES and self.writable:
            self.writable = False
            if self._request is not None and self._request.exchange is not None:
                self._request.exchange.pause()

    def _too_large(self) -> None:
        self._abort(
            BodyTooLarge(
                f"the output is above {MAX_OUTPUT_BYTES} bytes.", hint="Put it elsewhere, return its name."
            )
        )

    def _abort(self, error: RequestError) -> None:
        exchange = self._request.exchange if self._request is not None else None
        self.outcome.error = error
        self._parts.clear()
        self._finish()
        if exchange is not None:
            exchange.cancel()

    def _finish(self) -> None:
        if self._ended:
            return
        self._ended = True
        outcome, parts = self.outcome, self._parts
        self._parts = []
        if self._parser is not None:
            outcome.body = b"[%b]" % b",".join(parts) if outcome.whole else b""
            outcome.content_type = "application/json"
        else:
            outcome.body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._done(outcome)


def read_timings(value: str) -> dict[str, Any]:
    """``queue;dur=1.5, tier;desc="warm"`` as ``{"queue_ms": 1.5, "tier": "warm"}``."""
    found: dict[str, Any] = {}
    for name, duration, text in _TIMING.findall(value):
        if duration:
            with contextlib.suppress(ValueError):
                found[f"{name}_ms"] = float(duration)
        else:
            found[name] = text
    return found


def _is_status(value: object) -> bool:
    return type(value) is int and 400 <= value <= 599


def problem_of(outcome: Outcome) -> dict[str, Any]:
    """The problem document of an answer that is none of success."""
    if outcome.problem is not None:
        return outcome.problem
    if "json" in outcome.content_type:
        with contextlib.suppress(ValueError, RecursionError):
            found = read_json(outcome.body)
            if isinstance(found, dict) and "type" in found and _is_status(found.get("status")):
                return found
    text = outcome.body[:2000].decode("utf-8", "replace")
    return {
        "type": "about:blank",
        "title": f"The endpoint answered {outcome.status}",
        "status": outcome.status,
        "detail": text,
    }
