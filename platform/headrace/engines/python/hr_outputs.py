"""From what a handler returns to bytes on the wire, or to a problem that names the type that is not JSON."""

from __future__ import annotations

import json
from typing import Any, Callable, Optional, Tuple

import hr_secrets
import hr_types
from hr_problem import Problem

JSON = b"application/json"
BYTES = b"application/octet-stream"


def _refuse(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json")
    raise TypeError(f"it holds a value of type {hr_types.name_of(value)}")


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_refuse).encode
_ascii = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=_refuse).encode


def to_json(value: Any) -> bytes:
    """Strict JSON: no NaN, nothing that JSON has no word for. Raises `Problem` (500)."""
    try:
        text = _encode(value)
        try:
            return text.encode("utf-8")
        except UnicodeEncodeError:
            return _ascii(value).encode()
    except (TypeError, ValueError, RecursionError) as error:
        reason = str(error)
        if "JSON compliant" in reason:
            reason = "it holds NaN or Infinity"
        raise _invalid(value, reason) from None


def _invalid(value: Any, reason: str) -> Problem:
    return Problem(
        "output-invalid",
        f"the handler returned {hr_types.name_of(value)}: {hr_secrets.masked(reason)}",
        "Return JSON values (dict, list, str, int, float, bool, None), bytes, or annotate the return type.",
        output_type=hr_types.name_of(value),
    )


class Outputs:
    """How one handler's results are written. Made once, before the instance is ready."""

    def __init__(self, call: Callable[..., Any], item: Optional[Callable[[Any], Any]] = None) -> None:
        hint = hr_types.hints_of(hr_types.callable_of(call)).get("return", Any)
        if item is not None:
            hint = item(hint)
        self._adapter = None if hr_types.accepts_bytes(hint) else hr_types.adapter_for(hint)

    def encode(self, value: Any) -> Tuple[bytes, bytes]:
        """(content type, body). Raises `Problem` (500)."""
        if isinstance(value, (bytes, bytearray, memoryview)):
            return BYTES, bytes(value)
        return JSON, self.encode_json(value)

    def encode_json(self, value: Any) -> bytes:
        """The value as JSON. Raises `Problem` (500)."""
        if self._adapter is None:
            return to_json(value)
        try:
            plain = self._adapter.dump_python(
                self._adapter.validate_python(value), mode="json", warnings=False
            )
        except Exception as error:
            raise _invalid(value, _told(error)) from None
        return to_json(plain)


def _told(error: Exception) -> str:
    listing = getattr(error, "errors", None)
    if listing is None:
        return f"{type(error).__name__}: {error}"
    first = listing(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"it is not what the annotation says: {where + ': ' if where else ''}{first['msg']}"
