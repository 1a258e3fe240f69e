"""From a request's body or query to a handler's arguments, or to a problem that names the field."""

from __future__ import annotations

import difflib
import inspect
import json
import urllib.parse
from typing import Any, Callable, Dict, List, NoReturn, Optional, Sequence, Tuple

import hr_secrets
import hr_types
from hr_http import Head, media_type
from hr_problem import Problem

Arguments = Tuple[Tuple[Any, ...], Dict[str, Any]]
Location = Tuple[Any, ...]
Error = Dict[str, Any]


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_METHODS = (b"POST", b"GET", b"PUT", b"PATCH", b"DELETE")
_decode = json.JSONDecoder(parse_constant=_no_constant).decode


def decode_json(body: bytes) -> Any:
    """Strict JSON in UTF-8. Raises `Problem` (422)."""
    try:
        return _decode(body.decode("utf-8"))
    except RecursionError:
        message = "it is nested too deeply"
    except UnicodeDecodeError as error:
        message = f"it is not UTF-8 (byte {error.start})"
    except ValueError as error:
        message = str(error)
    raise invalid([{"loc": [], "msg": f"the body is not JSON: {message}", "type": "json_invalid"}])


MAX_ERRORS = 50
"""Errors that one answer tells: a small body can hold a million."""
MAX_TEXT = 300
_MANY = 1000


def path_of(loc: Sequence[Any]) -> str:
    """A field's path as people write it: ``texts[0].lang``."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def invalid(errors: List[Error], hint: str = "") -> Problem:
    """The problem document of a failed validation; its detail names the first field."""
    told = [
        {**error, "loc": [_cut(p) for p in error["loc"]], "msg": _cut(error["msg"])}
        for error in errors[:MAX_ERRORS]
    ]
    first = told[0]
    path = path_of(first["loc"])
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    detail = f"{path}: {first['msg']}{more}" if path else f"{first['msg']}{more}"
    return Problem("validation-failed", detail, hint, errors=told)


def _cut(part: Any) -> Any:
    """A name or message that came with the request, of a length that one reads."""
    return part if not isinstance(part, str) or len(part) <= MAX_TEXT else part[:MAX_TEXT] + "..."


class _Parameter:
    def __init__(self, name: str, hint: Any, required: bool, positional: bool) -> None:
        self.name = name
        self.hint = hint
        self.required = required
        self.positional = positional
        self.adapter = hr_types.adapter_for(hint)

    def check(self, value: Any, loc: Location, errors: List[Error]) -> Any:
        if self.adapter is None:
            return value
        try:
            return self.adapter.validate_python(value)
        except ValueError as error:
            listing = getattr(error, "errors", None)
            if listing is None:
                errors.append({"loc": list(loc), "msg": hr_secrets.masked(str(error)), "type": "value_error"})
                return None
            count = error.error_count() if hasattr(error, "error_count") else 0
            if count > _MANY:
                # To list them all takes longer, and more memory, than the body did.
                errors.append(
                    {"loc": list(loc), "msg": f"{count} values in it are wrong", "type": "many_errors"}
                )
                return None
            for found in listing(include_url=False, include_context=False, include_input=False):
                told = hr_secrets.masked(found["msg"])
                errors.append({"loc": [*loc, *found["loc"]], "msg": told, "type": found["type"]})
            return None


class Inputs:
    """How one handler takes its input. Made once, before the instance is ready."""

    def __init__(self, call: Callable[..., Any], *, batch: bool = False) -> None:
        function = hr_types.callable_of(call)
        hints = hr_types.hints_of(function)
        self._extra = False
        self._parameters: Dict[str, _Parameter] = {}
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            signature = inspect.Signature([inspect.Parameter("input", inspect.Parameter.POSITIONAL_ONLY)])
        for p in signature.parameters.values():
            if p.kind is p.VAR_KEYWORD:
                self._extra = True
            elif p.kind is not p.VAR_POSITIONAL:
                hint = hints.get(p.name, Any)
                if batch:
                    hint = hr_types.batch_item(hint)
                positional = p.kind is p.POSITIONAL_ONLY
                self._parameters[p.name] = _Parameter(p.name, hint, p.default is p.empty, positional)
        only = list(self._parameters.values())
        self.single: Optional[_Parameter] = only[0] if len(only) == 1 and not self._extra else None
        self._takes_bytes = self.single is not None and hr_types.accepts_bytes(self.single.hint)
        self._any_positional = any(p.positional for p in only)

    def bind(self, head: Head, body: bytes) -> Arguments:
        """The handler's arguments. Raises `Problem` (415, 422)."""
        if not body:
            return (
                self._from_object(_query(head)) if head.method in (b"GET", b"HEAD") else self._from_object({})
            )
        kind = head.index.get(b"content-type")
        if kind == b"application/json":
            return self.from_json(decode_json(body))
        media = media_type(kind)
        if media == b"application/json" or media.endswith(b"+json"):
            return self.from_json(decode_json(body))
        if self._takes_bytes:
            return (body,), {}
        sent = media.decode("latin-1") or "no content type"
        raise Problem(
            "unsupported-media-type",
            f"this handler takes application/json, and {sent} was sent",
            "Send Content-Type: application/json; only a handler whose one parameter is bytes takes others.",
        )

    def from_json(self, value: Any) -> Arguments:
        """Map a JSON value. Raises `Problem` (422)."""
        single = self.single
        if single is not None:
            if not isinstance(value, dict) or single.name not in value:
                if value == {} and isinstance(value, dict) and not single.required:
                    return (), {}
                return self._whole(single, value)
        elif not isinstance(value, dict):
            what = (
                f"send an object with the fields {self._names()}" if self._parameters else "it takes no input"
            )
            message = f"the body is {_json_kind(value)}; {what}"
            raise invalid([{"loc": [], "msg": message, "type": "object_type"}])
        return self._from_object(value)

    def _whole(self, single: _Parameter, value: Any) -> Arguments:
        errors: List[Error] = []
        checked = single.check(value, (), errors)
        if errors:
            if isinstance(value, dict) and all(not e["loc"] for e in errors):
                # An object that is not the value itself was meant by name.
                self._from_object(value)
            raise invalid(errors, self._hint())
        return (checked,), {}

    def _from_object(self, fields: Dict[str, Any]) -> Arguments:
        errors: List[Error] = []
        values: Dict[str, Any] = {}
        for name, parameter in self._parameters.items():
            if name in fields:
                values[name] = parameter.check(fields[name], (name,), errors)
            elif parameter.required:
                errors.append({"loc": [name], "msg": "Field required", "type": "missing"})
        for name, value in fields.items():
            if name not in self._parameters:
                if self._extra:
                    values[name] = value
                else:
                    # To look for the closest name takes its time.
                    msg = self._unknown(name) if len(errors) < MAX_ERRORS else "Unknown field"
                    errors.append({"loc": [name], "msg": msg, "type": "extra_forbidden"})
        if errors:
            raise invalid(errors, self._hint())
        if not self._any_positional:
            return (), values
        front = tuple(values.pop(n) for n, p in self._parameters.items() if p.positional and n in values)
        return front, values

    def _unknown(self, name: str) -> str:
        close = difflib.get_close_matches(name, list(self._parameters), 1)
        return f"Unknown field, did you mean {close[0]!r}?" if close else "Unknown field"

    def _names(self) -> str:
        return ", ".join(self._parameters)

    def _hint(self) -> str:
        if not self._parameters:
            return "The handler takes no input."
        shown = (f"{p.name}{'' if p.required else ' (optional)'}" for p in self._parameters.values())
        return f"The handler takes: {', '.join(shown)}."


def check_route(head: Head) -> None:
    """A native handler has one address. Raises `Problem` (404, 405)."""
    if head.target != b"/" and head.target.partition(b"?")[0] != b"/":
        raise Problem(
            "not-found", "a native handler answers at / only", "Leave out what follows the endpoint's name."
        )
    if head.method not in _METHODS:
        allow = [method.decode() for method in _METHODS]
        raise Problem(
            "method-not-allowed", f"{head.method.decode()} is not answered here", "Use POST.", allow=allow
        )


def _query(head: Head) -> Dict[str, Any]:
    _, _, query = head.target.partition(b"?")
    return dict(urllib.parse.parse_qsl(query.decode("latin-1"), keep_blank_values=True)) if query else {}


def _json_kind(value: Any) -> str:
    kinds = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return kinds.get(type(value), "null" if value is None else "an object")
