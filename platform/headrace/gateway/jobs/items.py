"""Items in a streamed body: events, or lines of JSON; pure."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from headrace.errors import TYPE_PREFIX, BodyTooLarge
from headrace.jobs.text import read_json

MAX_ITEM_BYTES = 16 << 20


class ItemParser(Protocol):
    """Bytes in, whole items out, each a JSON value."""

    problem: dict[str, Any] | None
    """What the stream said went wrong, at its end."""

    def feed(self, data: bytes) -> list[bytes]:
        """Items that are complete now. Raises `BodyTooLarge` for one above `MAX_ITEM_BYTES`."""
        ...

    def flush(self) -> list[bytes]:
        """The stream ended in order: what is left."""
        ...


def parser_for(content_type: str) -> ItemParser | None:
    """The parser of a media type; None when it has no items."""
    media = content_type.partition(";")[0].strip().lower()
    if media == "text/event-stream":
        return EventParser()
    if media in ("application/x-ndjson", "application/jsonl", "application/json-lines"):
        return LineParser()
    return None


class LineParser:
    """One JSON value per line."""

    def __init__(self) -> None:
        self.problem: dict[str, Any] | None = None
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """See `ItemParser`."""
        lines = (self._rest + data).split(b"\n") if self._rest else data.split(b"\n")
        self._rest = _bounded(lines.pop())
        return self._items(lines)

    def flush(self) -> list[bytes]:
        """See `ItemParser`."""
        rest, self._rest = self._rest, b""
        return self._items([rest])

    def _items(self, lines: list[bytes]) -> list[bytes]:
        items = []
        for line in lines:
            if not (text := line.strip()):
                continue
            if text.startswith(b'{"error"') and (problem := _problem(text, "error")) is not None:
                self.problem = problem
            else:
                items.append(as_json(text))
        return items


class EventParser:
    """Server-sent events; an event named ``error`` is the stream's problem."""

    def __init__(self) -> None:
        self.problem: dict[str, Any] | None = None
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """See `ItemParser`."""
        text = self._rest + data if self._rest else data
        if b"\r" in text:
            # A lone CR at the end may be the first half of a CRLF.
            held = text[-1:] if text.endswith(b"\r") else b""
            text = (text[:-1] if held else text).replace(b"\r\n", b"\n")
        else:
            held = b""
        events = text.split(b"\n\n")
        self._rest = _bounded(events.pop() + held)
        items = []
        for event in events:
            item = self._read(event)
            if item is not None:
                items.append(item)
        return items

    def flush(self) -> list[bytes]:
        """See `ItemParser`. An event without its blank line still counts: the stream ended in order."""
        rest, self._rest = self._rest, b""
        item = self._read(rest.replace(b"\r\n", b"\n"))
        return [] if item is None else [item]

    def _read(self, event: bytes) -> bytes | None:
        name = b""
        data: list[bytes] = []
        for line in event.split(b"\n"):
            field, _, value = line.partition(b":")
            if field == b"data":
                data.append(value[1:] if value[:1] == b" " else value)
            elif field == b"event":
                name = value.strip()
        if not data:
            return None
        text = data[0] if len(data) == 1 else b"\n".join(data)
        if name == b"error":
            self.problem = _problem(text, "") or {
                "type": "about:blank",
                "title": "The stream ended with an error",
                "status": 500,
                "detail": text[:2000].decode("utf-8", "replace"),
            }
            return None
        return as_json(text)


def as_json(text: bytes) -> bytes:
    """The text when it is JSON, else a JSON string of it."""
    try:
        msgspec.json.decode(text)
    except (ValueError, RecursionError):  # of bad UTF-8, too
        return msgspec.json.encode(text.decode("utf-8", "replace"))
    return text


def _problem(text: bytes, member: str) -> dict[str, Any] | None:
    try:
        found = read_json(text)
    except (ValueError, RecursionError):  # of bad UTF-8, too
        return None
    if member:
        found = found.get(member) if isinstance(found, dict) and len(found) == 1 else None
    if isinstance(found, dict) and str(found.get("type", "")).startswith(TYPE_PREFIX):
        return found
    return None


def _bounded(rest: bytes) -> bytes:
    if len(rest) > MAX_ITEM_BYTES:
        raise BodyTooLarge(f"one item of the stream is above {MAX_ITEM_BYTES} bytes.")
    return rest
