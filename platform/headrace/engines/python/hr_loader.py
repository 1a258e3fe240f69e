"""From ``module:qualname`` to something that can be called: import, instantiate, load, check its health."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import os
import signal
import sys
import traceback as tb
from typing import Any, Awaitable, Callable, FrozenSet, Iterator, Mapping, Optional

import hr_shim
from hr_ipc import cut

_ENGINE = os.path.dirname(os.path.abspath(__file__))
FUNCTION, ASYNC, GENERATOR, ASYNC_GENERATOR, ASGI = (
    "function",
    "async_function",
    "generator",
    "async_generator",
    "asgi",
)


class StartFailed(Exception):
    """The user's code cannot be started. ``reason`` is import-failed or load-failed."""

    def __init__(self, reason: str, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.traceback = traceback


class LoadTimeout(TimeoutError):
    """Import or ``load`` took longer than it may."""

    __module__ = "headrace"


class Loaded:
    """A handler that has been imported, made and loaded."""

    def __init__(self, entry: str, mode: str, call: Callable[..., Any], owner: Any = None) -> None:
        self.entry = entry
        self.mode = mode
        """One of the module's kinds; a class has the kind of its ``__call__``."""
        self.call = call
        self.owner = owner
        """The instance of a class, which may have health and unload."""

    def method(self, name: str) -> Optional[Callable[[], Any]]:
        """An optional method of the class."""
        found = getattr(self.owner, name, None) if self.owner is not None else None
        return found if callable(found) else None


def user_traceback(error: BaseException) -> str:
    """The traceback without frames of the engine and of the import machinery, cut to a packet's size."""
    shown = tb.TracebackException(type(error), error, error.__traceback__)
    part: Optional[tb.TracebackException] = shown
    seen = 0
    while part is not None and seen < 20:
        frames = [f for f in part.stack if not (f.filename.startswith(_ENGINE) or "importlib" in f.filename)]
        if frames:
            part.stack = tb.StackSummary.from_list(frames)
        part = part.__cause__ or part.__context__
        seen += 1
    return cut("".join(shown.format()))


def add_code(code: str) -> None:
    """Put the bundle first on the path and forget preloaded modules that it brings itself."""
    if code not in sys.path:
        sys.path.insert(0, code)
    try:
        names = {os.path.splitext(name)[0] for name in os.listdir(code)}
    except OSError:
        return
    stdlib: FrozenSet[str] = getattr(sys, "stdlib_module_names", frozenset())
    for name in names & {m.partition(".")[0] for m in sys.modules}:
        file = getattr(sys.modules.get(name), "__file__", None) or ""
        if name in stdlib or name in ("headrace", "__main__") or file.startswith((code, _ENGINE)):
            continue
        for module in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
            del sys.modules[module]


def import_entry(code: str, entry: str) -> Any:
    """The user's function, class or app. Raises `StartFailed`."""
    add_code(code)
    hr_shim.install()
    module_name, _, qualname = entry.partition(":")
    try:
        target: Any = importlib.import_module(module_name)
    except BaseException as error:
        raise _failed("import-failed", f"importing {module_name}", error) from error
    for part in qualname.split("."):
        try:
            target = getattr(target, part)
        except AttributeError as error:
            message = (
                f"{module_name} has no {qualname!r}: the bundle and its entry point don't match, deploy again"
            )
            raise StartFailed("import-failed", message) from error
    for _ in range(8):
        inner = getattr(target, "__headrace_handler__", None)
        if inner is None:
            break
        target = inner
    return target


def make(target: Any, handler: str, entry: str) -> Loaded:
    """Instantiate a class, or take a function or app as it is. Raises `StartFailed`."""
    if handler == ASGI:
        return Loaded(entry, ASGI, target)
    if handler == "class" or inspect.isclass(target):
        try:
            owner = target() if inspect.isclass(target) else target
        except BaseException as error:
            raise _failed("load-failed", f"{_name(target)}()", error) from error
        if not callable(owner):
            raise StartFailed("load-failed", f"{_name(target)} has no __call__: define the handler there")
        return Loaded(entry, kind_of(type(owner).__call__, FUNCTION), owner, owner)
    if not callable(target):
        raise StartFailed("load-failed", f"{entry} is a {_name(type(target))}, which cannot be called")
    return Loaded(entry, kind_of(target, handler), target)


def kind_of(function: Any, fallback: str) -> str:
    """Which kind of callable this is; ``fallback`` for what inspection can't tell (a wrapper)."""
    function = inspect.unwrap(function)
    if inspect.isasyncgenfunction(function):
        return ASYNC_GENERATOR
    if inspect.iscoroutinefunction(function):
        return ASYNC
    if inspect.isgeneratorfunction(function):
        return GENERATOR
    return fallback if fallback in (ASYNC, GENERATOR, ASYNC_GENERATOR) else FUNCTION


def run_load(loaded: Loaded, run: Callable[[Awaitable[Any]], Any]) -> None:
    """Call ``load`` on this thread; ``run`` drives an async one. Raises `StartFailed`."""
    load = loaded.method("load")
    if load is None:
        return
    try:
        result = load()
        if inspect.isawaitable(result):
            run(result)
    except BaseException as error:
        raise _failed("load-failed", "load()", error) from error


def run_health(loaded: Loaded, run: Callable[[Awaitable[Any]], Any]) -> None:
    """The first health check. Raises `StartFailed` when it says no."""
    health = loaded.method("health")
    if health is None:
        return
    try:
        result = health()
        if inspect.isawaitable(result):
            result = run(result)
    except BaseException as error:
        raise _failed("load-failed", "health()", error) from error
    if result is not None and not result:
        raise StartFailed("load-failed", f"health() returned {result!r} after load()")


@contextlib.contextmanager
def time_limit(seconds: Optional[float], what: str) -> Iterator[None]:
    """Raise `LoadTimeout` in the main thread after ``seconds``, once the code is back in Python."""
    if not seconds or seconds <= 0:
        yield
        return

    def late(*_: Any) -> None:
        raise LoadTimeout(f"{what} took longer than {seconds:g} s: raise load_timeout or load less")

    old = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def load_in_zygote(message: Mapping[str, Any]) -> Loaded:
    """Import and load for ``snapshot="loaded"``; an async ``load`` gets its own loop, closed afterwards."""
    entry = str(message["entry"])
    with time_limit(message.get("timeout"), "load()"):
        loaded = make(
            import_entry(str(message["code"]), entry), str(message.get("handler") or FUNCTION), entry
        )
        run_load(loaded, run_alone)
    return loaded


def run_alone(awaitable: Awaitable[Any]) -> Any:
    """Drive it on a loop of its own, which is closed afterwards."""

    async def wait() -> Any:
        return await awaitable

    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(wait())
    finally:
        # A default executor's threads would make the zygote unfit to fork.
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def _failed(reason: str, what: str, error: BaseException) -> StartFailed:
    name = type(error).__name__
    text = str(error)
    return StartFailed(reason, f"{what} raised {name}{': ' + text if text else ''}", user_traceback(error))


def _name(target: Any) -> str:
    return str(getattr(target, "__qualname__", target))
