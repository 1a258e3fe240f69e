"""Keeps answers for a while, for the gateway that takes over from one that died before it stored them.

Without this, work that had run to its end would run again. A request with ``X-Headrace-Keep`` has its
answer kept under its request id; ``X-Headrace-Recall: <id>`` asks for it: 202 while the work runs, 404 when
there is none.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Dict, NamedTuple

from hr_connection import Exchange
from hr_problem import CONTENT_TYPE, Problem

KEEP_S = 30.0
MAX_ANSWERS = 1024
MAX_BODY = 1 << 20
"""Larger answers are not kept."""
MAX_BYTES = 16 << 20
WANTED_S = 3.0
"""Who waits for an answer asks far more often than this."""


class _Answer(NamedTuple):
    until: float
    status: int
    content_type: bytes
    body: bytes
    extra: bytes


class Kept:
    """See the module. Bounded by number, bytes and age: the oldest go first."""

    def __init__(self) -> None:
        self._answers: "OrderedDict[str, _Answer]" = OrderedDict()
        self._bytes = 0
        self._running: Dict[str, int] = {}
        self._asked: Dict[str, float] = {}
        """When somebody asked last for what runs."""

    def begin(self, x: Exchange) -> None:
        """The request runs now, and its answer is to be kept."""
        x.kept = self
        self._running[x.request_id] = self._running.get(x.request_id, 0) + 1

    def over(self, x: Exchange) -> None:
        """The request's work has ended, with or without an answer."""
        left = self._running.pop(x.request_id, 1) - 1
        if left > 0:
            self._running[x.request_id] = left
        else:
            self._asked.pop(x.request_id, None)

    def wanted(self, x: Exchange) -> bool:
        """Whether somebody waits for the answer although the request's own client has gone."""
        asked = self._asked.get(x.request_id)
        return x.kept is not None and asked is not None and time.monotonic() - asked < WANTED_S

    def put(self, request_id: str, status: int, content_type: bytes, body: bytes, extra: bytes) -> None:
        """Keep an answer. Failures are not kept: whoever asks again wants another try."""
        if status >= 400 or len(body) > MAX_BODY:
            return
        now = time.monotonic()
        self._drop(request_id)
        self._answers[request_id] = _Answer(now + KEEP_S, status, content_type, body, extra)
        self._bytes += len(body)
        while self._answers:
            oldest, answer = next(iter(self._answers.items()))
            if answer.until > now and self._bytes <= MAX_BYTES and len(self._answers) <= MAX_ANSWERS:
                break
            self._drop(oldest)

    def recall(self, x: Exchange, request_id: str) -> None:
        """Answer a request that asks for a kept answer."""
        answer = self._answers.get(request_id)
        if answer is not None and answer.until > time.monotonic():
            x.respond(answer.status, answer.content_type, answer.body, answer.extra)
        elif request_id in self._running:
            self._asked[request_id] = time.monotonic()
            x.respond(202, b"text/plain", b"", b"X-Headrace-Refused: running\r\n")
        else:
            x.respond(404, CONTENT_TYPE, Problem("not-found", "no such answer is kept").encode(x.request_id))

    def _drop(self, request_id: str) -> None:
        answer = self._answers.pop(request_id, None)
        if answer is not None:
            self._bytes -= len(answer.body)
