"""What requests give, read alike by all APIs: body, ``Idempotency-Key``, deadline and priority."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from headrace.errors import BadRequest, BodyTooLarge, MethodNotAllowed, ValidationFailed
from headrace.gateway import depth
from headrace.gateway.api.native import priority_of, timeout_of
from headrace.gateway.head import Head
from headrace.jobs.model import Priority

MAX_KEY_CHARS = 255

T = TypeVar("T")


def decode(body: bytes, type: type[T], *, what: str = "the body", hint: str = "") -> T:
    """The body as a value of ``type``. Raises `ValidationFailed`, or `BadRequest` for what is no JSON."""
    if depth.too_deep(body):
        raise too_deep(what)
    try:
        return msgspec.json.decode(body, type=type)
    except msgspec.ValidationError as error:
        raise ValidationFailed(f"{what}: {error}.", hint=hint) from None
    except RecursionError:
        raise too_deep(what) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"{what} is not JSON: {error}.", hint=hint) from None


def too_deep(what: str = "the body") -> ValidationFailed:
    """The error for JSON with more levels than `depth.MAX_LEVELS`, or than the interpreter can follow."""
    hint = f"Send it flatter: at most {depth.MAX_LEVELS} levels."
    return ValidationFailed(f"{what} is nested too deeply.", hint=hint)


def wrong_method(known: Sequence[bytes], *, also: Sequence[str] = ()) -> MethodNotAllowed:
    """The error for a method that is none of the ``known`` ones; ``also``: what is allowed without a word."""
    names = [name.decode() for name in known]
    return MethodNotAllowed(f"this route knows only {', '.join(names)}.", allow=[*names, *also])


def key_of(head: Head) -> str | None:
    """``Idempotency-Key``. Raises `BadRequest`."""
    return checked_key(head.idempotency_key.decode("latin-1") or None)


def checked_key(key: str | None) -> str | None:
    """The key, if it is not too long. Raises `BadRequest`."""
    if key is not None and len(key) > MAX_KEY_CHARS:
        raise BadRequest(f"Idempotency-Key: longer than {MAX_KEY_CHARS} characters.")
    return key


def check_head(head: Head) -> None:
    """Refuse nonsense before the body is read. Raises `BadRequest`."""
    key_of(head)
    deadline_of(head)
    wanted_priority(head)


def deadline_of(head: Head) -> float | None:
    """``X-Headrace-Timeout``, in seconds; None: not given. Raises `BadRequest`."""
    return timeout_of(head.timeout, float("inf")) if head.timeout else None


def wanted_priority(head: Head) -> Priority | None:
    """``X-Headrace-Priority``; None: not given. Raises `BadRequest`."""
    return priority_of(head.priority) if head.priority else None


def check_input(data: bytes, limit: int) -> None:
    """Raises `BodyTooLarge` for an input above the endpoint's ``max_body``."""
    if len(data) > limit:
        raise BodyTooLarge(
            f"the input of {len(data)} bytes is above {limit} bytes.",
            hint="Raise the endpoint's max_body.",
            limit=limit,
        )
