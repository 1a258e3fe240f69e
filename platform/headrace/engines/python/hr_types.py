"""Type hints of handlers, and pydantic adapters for those that say something (none without pydantic)."""

from __future__ import annotations

import collections.abc
import importlib
import inspect
import typing
from typing import Any, Callable, Dict, Optional, Tuple

_STREAMS = (
    collections.abc.Iterator, collections.abc.Iterable, collections.abc.Generator,
    collections.abc.AsyncIterator, collections.abc.AsyncIterable, collections.abc.AsyncGenerator,
)  # fmt: skip
_LISTS = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)
_SAYS_NOTHING = (inspect.Parameter.empty, Any, object)


def hints_of(function: Callable[..., Any]) -> Dict[str, Any]:
    """Resolved hints; names that cannot be resolved leave their parameter without one."""
    target = inspect.unwrap(getattr(function, "__func__", function))
    raw = getattr(target, "__annotations__", None) or {}
    if not raw:
        return {}
    try:
        return typing.get_type_hints(target, include_extras=True)
    except Exception:
        return {name: hint for name, hint in raw.items() if not isinstance(hint, str)}


def callable_of(call: Any) -> Callable[..., Any]:
    """The function or bound method behind something callable."""
    if inspect.isfunction(call) or inspect.ismethod(call):
        return call
    method = getattr(call, "__call__", call)  # noqa: B004
    return method if inspect.ismethod(method) else typing.cast("Callable[..., Any]", call)


def accepts_bytes(hint: Any) -> bool:
    """Whether the hint is bytes, alone, optional, in a union or annotated."""
    if hint in (bytes, bytearray, memoryview):
        return True
    if typing.get_origin(hint) is None:
        return False
    if typing.get_origin(hint) is typing.Annotated:
        return accepts_bytes(typing.get_args(hint)[0])
    return _is_union(hint) and any(accepts_bytes(part) for part in typing.get_args(hint))


def _is_union(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    return origin is typing.Union or getattr(origin, "__name__", "") == "UnionType"


def item_of(hint: Any, kinds: Tuple[Any, ...]) -> Any:
    """``T`` of a container hint of these kinds; ``Any`` for everything else."""
    args = typing.get_args(hint)
    return args[0] if args and typing.get_origin(hint) in kinds else Any


def batch_item(hint: Any) -> Any:
    """``T`` of ``list[T]``: what one request of a batch brings or gets."""
    return item_of(hint, _LISTS)


def stream_item(hint: Any) -> Any:
    """``T`` of ``Iterator[T]``, ``AsyncGenerator[T, None]`` and their like."""
    return item_of(hint, _STREAMS)


def adapter_for(hint: Any) -> Optional[Any]:
    """A pydantic TypeAdapter; ``None`` when the hint says nothing, pydantic is absent or can't handle it."""
    if any(hint is nothing for nothing in _SAYS_NOTHING):
        return None
    try:
        pydantic = importlib.import_module("pydantic")
    except ImportError:
        return None
    try:
        return pydantic.TypeAdapter(hint)
    except Exception:
        # Not a type that JSON could become (an array, a model's class): the handler gets what was sent.
        return None


def name_of(value: Any) -> str:
    """The full name of a value's type, for messages."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
