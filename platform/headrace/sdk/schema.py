"""What type hints say of a handler: validates inputs and writes the endpoint's OpenAPI 3.1 document.

Imports pydantic, so it is itself imported only when a schema is asked for, never in a sandbox's start.
"""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

import pydantic
from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError, to_jsonable_python

from headrace.errors import SpecError, ValidationFailed
from headrace.sdk.handlers import call_function

_REFS = "#/components/schemas/{model}"
_STREAMS = (
    collections.abc.Iterator, collections.abc.Generator, collections.abc.Iterable,
    collections.abc.AsyncIterator, collections.abc.AsyncGenerator, collections.abc.AsyncIterable,
)  # fmt: skip
_PROBLEM = {
    "type": "object",
    "description": "RFC 9457 problem document",
    "required": ["type", "title", "status"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "hint": {"type": "string", "description": "What to do next"},
        "request_id": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "loc": {"type": "array", "description": "The field's path"},
                    "msg": {"type": "string"},
                    "type": {"type": "string"},
                },
            },
        },
    },
}


class Parameter(NamedTuple):
    """One parameter that a request is mapped onto."""

    name: str
    type: TypeAdapter[Any]
    hint: Any
    required: bool
    default: Any


class Signature(NamedTuple):
    """A handler's parameters and result; of a batched handler, those of one request."""

    parameters: tuple[Parameter, ...]
    result: TypeAdapter[Any]
    result_hint: Any
    stream: bool
    extra: bool

    @property
    def takes_bytes(self) -> bool:
        """Whether a raw body goes to it: a single parameter that is annotated ``bytes``."""
        return len(self.parameters) == 1 and not self.extra and _accepts_bytes(self.parameters[0].hint)

    def validate(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by name, converted. Raises `ValidationFailed` with every wrong field's path."""
        errors: list[dict[str, Any]] = []
        values: dict[str, Any] = {}
        known = {parameter.name for parameter in self.parameters}
        for name in arguments:
            if name not in known and not self.extra:
                errors.append({"loc": [name], "msg": "Unknown field", "type": "extra_forbidden"})
            elif name not in known:
                values[name] = arguments[name]
        for parameter in self.parameters:
            if parameter.name in arguments:
                try:
                    values[parameter.name] = parameter.type.validate_python(arguments[parameter.name])
                except pydantic.ValidationError as error:
                    errors += [
                        {"loc": [parameter.name, *item["loc"]], "msg": item["msg"], "type": item["type"]}
                        for item in error.errors()
                    ]
            elif parameter.required:
                errors.append({"loc": [parameter.name], "msg": "Field required", "type": "missing"})
        if errors:
            raise ValidationFailed(f"{len(errors)} of the input's fields are wrong.", errors=errors)
        return values


def signature_of(endpoint: Any) -> Signature:
    """Read the type hints. Raises `SpecError` naming the parameter whose hint JSON cannot hold."""
    target = endpoint.__headrace_handler__
    function = call_function(target, endpoint.handler.kind)
    batched = endpoint.spec.batch is not None
    hints = _hints(function)
    plain = inspect.signature(function).parameters
    parameters = []
    for name in endpoint.handler.parameters:
        hint = hints.get(name, Any)
        if batched:
            hint = _item_of(hint, (list, collections.abc.Sequence))
        default = plain[name].default
        parameters.append(
            Parameter(
                name, _adapter(endpoint.name, f"parameter {name!r}", hint), hint,
                default is inspect.Parameter.empty, default,
            )
        )  # fmt: skip
    result = hints.get("return", Any)
    flags = getattr(inspect.unwrap(function), "__code__", None)
    stream = typing.get_origin(result) in _STREAMS or result in _STREAMS
    if flags is not None:
        stream = stream or bool(flags.co_flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR))
    if stream:
        result = _item_of(result, _STREAMS)
    elif batched:
        result = _item_of(result, (list, collections.abc.Sequence))
    if result is None:
        result = type(None)
    adapter = _adapter(endpoint.name, "the result", result)
    return Signature(tuple(parameters), adapter, result, stream, endpoint.handler.extra)


def openapi_of(endpoint: Any) -> dict[str, Any]:
    """The OpenAPI 3.1 document of an endpoint. Raises `SpecError` as `signature_of` does."""
    doc = (inspect.getdoc(endpoint.__headrace_handler__) or "").strip()
    path = f"/e/{endpoint.name}"
    operation: dict[str, Any] = {"operationId": endpoint.name.replace("-", "_")}
    if doc:
        operation["summary"] = doc.partition("\n")[0]
    schemas: dict[str, Any] = {}
    if endpoint.handler.kind == "asgi":
        path += "/{path}"
        operation["parameters"] = [
            {"name": "path", "in": "path", "required": True, "schema": {"type": "string"}}
        ]
        operation["responses"] = {"default": {"description": "What the ASGI app answers"}}
    else:
        signature = signature_of(endpoint)
        request, response, schemas = _content(endpoint.name, signature)
        if request:
            required = any(parameter.required for parameter in signature.parameters)
            operation["requestBody"] = {"required": required, "content": request}
        operation["responses"] = {
            "200": {
                "description": "A stream of results" if signature.stream else "The result",
                "content": response,
            },
            "422": _problem("The input does not match the type hints"),
            "default": _problem("Any other failure; `hint` says what to do next"),
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": endpoint.name, "version": "1", **({"description": doc} if doc else {})},
        "paths": {path: {"post": operation}},
        "components": {"schemas": {**schemas, "Problem": _PROBLEM}},
    }


def _content(name: str, signature: Signature) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Request content, response content and shared schemas."""
    wanted: list[tuple[str, typing.Literal["validation", "serialization"], TypeAdapter[Any]]] = [
        (parameter.name, "validation", parameter.type) for parameter in signature.parameters
    ]
    result_key = "the result"  # no parameter's name: it has a space
    wanted.append((result_key, "serialization", signature.result))
    try:
        found, shared = TypeAdapter.json_schemas(wanted, ref_template=_REFS)
    except pydantic.PydanticUserError as error:
        raise SpecError(f"{name}: a type hint has no JSON schema: {_first_line(error)}") from error
    each = {parameter.name: found[parameter.name, "validation"] for parameter in signature.parameters}
    result = found[result_key, "serialization"]
    if signature.stream:
        response = {
            "application/x-ndjson": {"schema": result},
            "text/event-stream": {"schema": {"type": "string", "contentSchema": result}},
        }
    elif _accepts_bytes(signature.result_hint):
        response = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    else:
        response = {"application/json": {"schema": result}}
    return _request(signature, each), response, shared.get("$defs", {})


def _request(signature: Signature, each: dict[str, Any]) -> dict[str, Any]:
    if not signature.parameters and not signature.extra:
        return {}
    body: dict[str, Any] = {
        "type": "object",
        "properties": {p.name: _with_default(each[p.name], p) for p in signature.parameters},
        "additionalProperties": signature.extra,
    }
    required = [parameter.name for parameter in signature.parameters if parameter.required]
    if required:
        body["required"] = required
    if len(signature.parameters) == 1 and not signature.extra:
        body = {"anyOf": [body, each[signature.parameters[0].name]]}
    content: dict[str, Any] = {"application/json": {"schema": body}}
    if signature.takes_bytes:
        binary = {"schema": {"type": "string", "format": "binary"}}
        content = {"application/octet-stream": binary, **content}
    return content


def _with_default(schema: dict[str, Any], parameter: Parameter) -> dict[str, Any]:
    if parameter.required:
        return schema
    try:
        return {**schema, "default": to_jsonable_python(parameter.default)}
    except PydanticSerializationError:
        return schema  # a default that JSON cannot show


def _hints(function: Any) -> dict[str, Any]:
    """Type hints; one that cannot be resolved (an import for type checkers only) says nothing."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:
        found: dict[str, Any] = {}
        scope = getattr(inspect.unwrap(function), "__globals__", {})
        for name, hint in getattr(function, "__annotations__", {}).items():
            try:
                one = types.SimpleNamespace(__annotations__={name: hint})
                found |= typing.get_type_hints(one, globalns=scope, include_extras=True)
            except Exception:  # noqa: S112 - user code's names: anything may be raised
                continue
        return found


def _item_of(hint: Any, containers: tuple[Any, ...]) -> Any:
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    return arguments[0] if origin in containers and arguments else Any


def _accepts_bytes(hint: Any) -> bool:
    """Whether the hint is bytes: alone, annotated or in a union. The engine's rule (``hr_types``)."""
    if hint in (bytes, bytearray, memoryview):
        return True
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _accepts_bytes(typing.get_args(hint)[0])
    union = origin is typing.Union or origin is types.UnionType
    return union and any(_accepts_bytes(part) for part in typing.get_args(hint))


def _adapter(name: str, what: str, hint: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(hint)
    except pydantic.PydanticUserError as error:
        shown = getattr(hint, "__name__", None) or repr(hint)
        if error.code == "typed-dict-version":
            raise SpecError(
                f"{name}: {what} is hinted {shown}, a typing.TypedDict, too vague before Python 3.12.",
                hint="Use typing_extensions.TypedDict, a dataclass or a pydantic model.",
            ) from error
        raise SpecError(
            f"{name}: {what} is hinted {shown}, which JSON cannot hold.",
            hint="Use lists, numbers, strings, bytes, dataclasses or pydantic models.",
        ) from error


def _problem(description: str) -> dict[str, Any]:
    reference = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {"description": description, "content": {"application/problem+json": reference}}


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
