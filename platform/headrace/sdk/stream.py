"""Reads streamed answers: one JSON value per line, or server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from headrace.errors import TYPE_PREFIX, from_problem
from headrace.sdk.transport import Reply

NDJSON = "application/x-ndjson"
EVENTS = "text/event-stream"


class Stream:
    """An iterator of a streamed answer's items; leaving the ``with`` block (or `close`) cancels the rest.

    Raises a `RequestError` where the handler failed, ``InstanceDied`` where the connection ended too early.
    """

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._items = _events(reply) if reply.content_type == EVENTS else _values(reply)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._items)

    def close(self) -> None:
        """Stop: closing the connection cancels the request."""
        self._reply.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _values(reply: Reply) -> Iterator[Any]:
    for line in reply.lines():
        if not line.strip():
            continue
        value = json.loads(line)
        problem = value.get("error") if isinstance(value, dict) and len(value) == 1 else None
        if isinstance(problem, dict) and str(problem.get("type", "")).startswith(TYPE_PREFIX):
            raise from_problem(int(problem.get("status", 500)), problem)
        yield value


def _events(reply: Reply) -> Iterator[Any]:
    kind = ""
    data: list[str] = []
    for raw in reply.lines():
        line = raw.decode(errors="replace").rstrip("\r\n")
        if not line:
            if data:
                value = json.loads("\n".join(data))
                if kind == "error":
                    raise from_problem(int(value.get("status", 500)), value)
                yield value
            kind, data = "", []
            continue
        field, _, text = line.partition(":")
        text = text.removeprefix(" ")
        if field == "event":
            kind = text
        elif field == "data":
            data.append(text)
