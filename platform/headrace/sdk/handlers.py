"""What kind of handler an object is, and whether JSON can be mapped onto its parameters.

Detection reads code flags instead of ``inspect.signature``: decorating must stay cheap, because it runs
in every sandbox. Raises `SpecError` with the reason for what cannot be an endpoint.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, NamedTuple

from headrace.errors import SpecError
from headrace.sdk.spec import HandlerKind

_VARARGS, _VARKEYWORDS, _GENERATOR, _COROUTINE, _ASYNC_GENERATOR = 0x04, 0x08, 0x20, 0x80, 0x200
_ASGI = ("scope", "receive", "send")
_HOOKS = ("load", "health", "unload")


class Handler(NamedTuple):
    """A handler's kind and the parameters that a request is mapped onto."""

    kind: HandlerKind
    parameters: tuple[str, ...]
    required: int
    """The first so many of ``parameters`` that are positional have no default."""
    extra: bool
    """Whether it takes any further keyword (``**kwargs``)."""


def examine(target: Any) -> Handler:
    """The kind and parameters of a function, class or ASGI app. Raises `SpecError`."""
    if isinstance(target, types.FunctionType):
        return _of_function(target)
    if isinstance(target, type):
        return _of_class(target)
    if callable(target):
        return _of_object(target)
    raise SpecError(f"@endpoint on {target!r}: decorate a function, a class with __call__, or an ASGI app.")


def call_function(target: Any, kind: HandlerKind) -> Callable[..., Any]:
    """The function whose signature a request is mapped onto (``__call__`` of a class)."""
    call: Callable[..., Any] = target.__call__ if kind == "class" else target
    return call


def call_kind(cls: type) -> HandlerKind:
    """What the ``__call__`` of a class is: a function, a generator, or an async one."""
    call = cls.__call__
    return _kind(_innermost(call).__code__.co_flags) if isinstance(call, types.FunctionType) else "function"


def _of_function(function: types.FunctionType) -> Handler:
    if _positional(function.__code__) == _ASGI and function.__code__.co_flags & _COROUTINE:
        return Handler("asgi", (), 0, False)
    return _mapped(function, _kind(_innermost(function).__code__.co_flags), bound=False)


def _of_class(cls: type) -> Handler:
    # Every class is callable through its metaclass: look for a __call__ of its own.
    call = cls.__call__ if any("__call__" in vars(base) for base in cls.__mro__) else None
    if call is None:
        raise SpecError(
            f"@endpoint on class {cls.__name__}: it has no __call__.", hint="Add one that takes the request."
        )
    for hook in _HOOKS:
        found = getattr(cls, hook, None)
        if found is not None and not callable(found):
            raise SpecError(f"{cls.__name__}.{hook} must be a method without parameters.")
        if isinstance(found, types.FunctionType) and _required(found.__code__, found.__defaults__) > 1:
            raise SpecError(f"{cls.__name__}.{hook} must take no parameters besides self.")
    init: Any = vars(cls).get("__init__") or cls.__init__  # type: ignore[misc]
    if isinstance(init, types.FunctionType) and (
        _required(init.__code__, init.__defaults__) > 1
        or init.__code__.co_kwonlyargcount > len(init.__kwdefaults__ or ())
    ):
        raise SpecError(
            f"{cls.__name__}.__init__ needs arguments, and the platform has none to give.",
            hint="Give them defaults, or read them in load() from the environment.",
        )
    if not isinstance(call, types.FunctionType):
        raise SpecError(f"{cls.__name__}.__call__ must be a plain method (def or async def).")
    if _positional(call.__code__)[1:] == _ASGI and call.__code__.co_flags & _COROUTINE:
        raise SpecError(
            f"class {cls.__name__} is an ASGI app: decorate an instance of it.",
            hint=f'app = headrace.endpoint(name="...")({cls.__name__}())',
        )
    return _mapped(call, "class", bound=True)


def _of_object(target: Any) -> Handler:
    call = getattr(type(target), "__call__", None)  # noqa: B004 - its code is wanted
    code = getattr(call, "__code__", None)
    if code is not None and len(_positional(code)) == 4 and code.co_flags & _COROUTINE:
        return Handler("asgi", (), 0, False)
    raise SpecError(
        f"@endpoint on an object of type {type(target).__name__}: it is no ASGI app "
        "(async def __call__(self, scope, receive, send)).",
        hint="Decorate a function or a class instead.",
    )


def _mapped(function: types.FunctionType, kind: HandlerKind, *, bound: bool) -> Handler:
    """Check that a JSON object can be mapped onto the parameters by name."""
    wrapped = _innermost(function)
    code, name = wrapped.__code__, function.__qualname__
    names = code.co_varnames
    if bound and code.co_argcount == 0:
        raise SpecError(f"{name} takes no self.", hint="Make it a plain method.")
    first = 1 if bound else 0
    if code.co_posonlyargcount > first:
        raise SpecError(
            f"{name}: parameter {names[first]!r} is positional-only, and JSON is mapped by name.",
            hint="Remove the '/' from its signature.",
        )
    if code.co_flags & _VARARGS:
        star = names[code.co_argcount + code.co_kwonlyargcount]
        raise SpecError(f"{name}: *{star} cannot be mapped from JSON.", hint=f"Use a parameter {star}: list.")
    parameters = names[first : code.co_argcount + code.co_kwonlyargcount]
    required = _required(code, wrapped.__defaults__) - first
    return Handler(kind, parameters, required, bool(code.co_flags & _VARKEYWORDS))


def _innermost(function: types.FunctionType) -> types.FunctionType:
    """What ``functools.wraps`` has wrapped: its signature is the one that callers see."""
    for _ in range(20):
        inner = getattr(function, "__wrapped__", None)
        if not isinstance(inner, types.FunctionType):
            break
        function = inner
    return function


def _kind(flags: int) -> HandlerKind:
    if flags & _ASYNC_GENERATOR:
        return "async_generator"
    if flags & _COROUTINE:
        return "async_function"
    return "generator" if flags & _GENERATOR else "function"


def _positional(code: types.CodeType) -> tuple[str, ...]:
    return code.co_varnames[: code.co_argcount]


def _required(code: types.CodeType, defaults: tuple[Any, ...] | None) -> int:
    return code.co_argcount - len(defaults or ())
