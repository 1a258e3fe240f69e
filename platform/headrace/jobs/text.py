"""Text and JSON that a store can keep, of values that came from anywhere. Nothing here raises.

User code and clients choose what is in errors, reasons, receipts and contexts. A job whose end could not be
stored would run again for ever, so what cannot be kept is changed as little as it must be.
"""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import msgspec

from headrace.jobs.model import Result

log = logging.getLogger("headrace.jobs")

MAX_DEPTH = 100
"""Levels of a value that has to be changed to be kept."""
UNREADABLE = {"type": "about:blank", "title": "The stored problem cannot be read", "status": 500}
"""In place of an error whose JSON cannot be read."""
_LOST = "\ufffd"
_UNKEPT = re.compile("[\0\ud800-\udfff]")
_ENCODER = msgspec.json.Encoder()


def clean(text: str) -> str:
    """The text with U+FFFD for NUL, which PostgreSQL has not, and for surrogates, which UTF-8 has not."""
    return _UNKEPT.sub(_LOST, text)


def encode_json(value: Any) -> bytes:
    """The value as JSON, whatever is in it."""
    try:
        return _ENCODER.encode(value)
    except Exception:
        return _ENCODER.encode(_plain(value, 0))


def decode_json(data: bytes | str, default: Any) -> Any:
    """The value of stored JSON; ``default`` when it cannot be read (it may be nested too deeply for here)."""
    try:
        return msgspec.json.decode(data)
    except (ValueError, RecursionError) as error:
        log.warning("stored JSON of %d bytes cannot be read: %s", len(data), error)
        return default


def read_json(data: bytes) -> Any:
    """The value of JSON that somebody else wrote: as Python's own `json` does, with what `clean` makes of
    escaped surrogates. Raises ``ValueError`` or ``RecursionError``."""
    try:
        return msgspec.json.decode(data)
    except ValueError:
        return msgspec.json.decode(encode_json(json.loads(data)))


def clean_result(result: Result) -> Result:
    """The result with text that every store keeps; its JSON stores encode with `encode_json`."""
    output = result.output
    if output is not None and _UNKEPT.search(output.content_type):
        output = msgspec.structs.replace(output, content_type=clean(output.content_type))
    if output is result.output and not _UNKEPT.search(result.reason):
        return result
    return msgspec.structs.replace(result, output=output, reason=clean(result.reason))


def _plain(value: Any, depth: int) -> Any:
    if depth >= MAX_DEPTH:
        return "..."
    if isinstance(value, dict):
        return {clean(str(name)): _plain(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, str):
        return clean(value)
    try:
        return msgspec.Raw(_ENCODER.encode(value))
    except Exception:
        return f"a value that cannot be kept ({type(value).__name__})"


def masked(dsn: str) -> str:
    """A store's address without its password, for messages."""
    text = re.sub(r"(?<=://)([^/@?:]*):.*@", r"\1:***@", dsn)
    return re.sub(r"(?i)((?:ssl)?password=)[^&\s]*", r"\1***", text)
