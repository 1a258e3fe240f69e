"""Handler kinds: told apart, run in place, refused when JSON cannot be mapped onto them."""

from __future__ import annotations

import asyncio
import functools
import inspect
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import headrace
import pytest
from headrace.errors import SpecError, UsageError
from headrace.sdk.handlers import examine


def plain(a: int, b: int = 2, *, c: int = 3) -> int:
    return a + b + c


async def waiting(a: int) -> int:
    await asyncio.sleep(0)
    return a


def counting(n: int) -> Iterator[int]:
    yield from range(n)


async def async_counting(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    await send(scope)


class App:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send(scope)


class Adder:
    """Adds."""

    def __init__(self) -> None:
        self.loads = 0

    def load(self) -> None:
        self.loads += 1

    def __call__(self, a: int) -> int:
        return a + self.loads

    def health(self) -> bool:
        return True

    def unload(self) -> None:
        pass


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        (plain, "function"),
        (waiting, "async_function"),
        (counting, "generator"),
        (async_counting, "async_generator"),
        (Adder, "class"),
        (asgi, "asgi"),
        (App(), "asgi"),
    ],
)
def test_kinds(target: Any, kind: str) -> None:
    endpoint = headrace.endpoint(name="x")(target)
    assert endpoint.spec.handler == kind
    assert endpoint.__headrace_handler__ is target


def test_functions_still_work_like_themselves() -> None:
    endpoint = headrace.endpoint(plain)
    assert endpoint(1) == endpoint.local(1) == 6
    assert endpoint.__name__ == "plain"
    assert endpoint.spec.entry == f"{__name__}:plain"
    assert list(headrace.endpoint(counting).local(3)) == [0, 1, 2]


async def test_async_handlers_run_in_place() -> None:
    assert await headrace.endpoint(waiting).local(5) == 5
    assert [i async for i in headrace.endpoint(async_counting).local(3)] == [0, 1, 2]
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await headrace.endpoint(name="a")(App()).local("scope", None, send)
    assert sent == ["scope"]


def test_a_class_is_loaded_once_and_still_a_class() -> None:
    endpoint = headrace.endpoint(Adder)
    assert endpoint.local(1) == 2
    assert endpoint.local(2) == 3
    assert endpoint().loads == 0
    assert endpoint.__doc__ == "Adds."


def test_async_load_runs_in_place() -> None:
    class Slow:
        async def load(self) -> None:
            await asyncio.sleep(0)
            self.ready = True

        async def __call__(self) -> bool:
            return self.ready

    endpoint = headrace.endpoint(Slow)
    assert asyncio.run(endpoint.local()) is True

    async def inside() -> None:
        headrace.endpoint(Slow).local()

    with pytest.raises(UsageError, match="event loop"):
        asyncio.run(inside())


def test_a_failing_load_is_tried_again() -> None:
    class Fails:
        tries = 0

        def load(self) -> None:
            type(self).tries += 1
            if self.tries == 1:
                raise OSError("no weights")

        def __call__(self) -> int:
            return self.tries

    endpoint = headrace.endpoint(Fails)
    with pytest.raises(OSError, match="no weights"):
        endpoint.local()
    assert endpoint.local() == 2


def test_a_wrapped_function_keeps_its_kind_and_parameters() -> None:
    def logged(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    assert examine(logged(plain)).parameters == ("a", "b", "c")
    assert examine(logged(waiting)).kind == "async_function"


def positional_only(a: int, /) -> int:
    return a


def star(*items: int) -> int:
    return len(items)


class NoCall:
    pass


class NeedsArguments:
    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self) -> str:
        return self.path


class LoadTakesMore:
    def load(self, path: str) -> None: ...

    def __call__(self) -> None: ...


class NotAMethod:
    health = True

    def __call__(self) -> None: ...


class Callable1:
    def __call__(self, x: int) -> int:
        return x


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (positional_only, "positional-only"),
        (star, r"\*items"),
        (NoCall, "no __call__"),
        (NeedsArguments, "__init__ needs arguments"),
        (LoadTakesMore, "no parameters besides self"),
        (NotAMethod, "must be a method"),
        (Callable1(), "no ASGI app"),
        (App, "decorate an instance"),
        (functools.partial(plain, 1), "no ASGI app"),
        (3, "decorate a function"),
        (len, "no ASGI app"),
    ],
)
def test_what_cannot_be_mapped_is_refused_with_the_reason(target: Any, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        headrace.endpoint(name="x")(target)


def test_objects_need_a_name_and_endpoints_are_not_wrapped_twice() -> None:
    with pytest.raises(SpecError, match="no name of its own"):
        headrace.endpoint(App())  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="endpoint already"):
        headrace.endpoint(headrace.endpoint(plain))


def test_asgi_apps_are_called_by_path() -> None:
    endpoint = headrace.endpoint(name="a")(App())
    for call in (endpoint.remote, endpoint.submit, lambda: endpoint.map([1])):
        with pytest.raises(UsageError, match="by path"):
            call()


def test_too_many_or_double_arguments_are_refused_before_anything_is_sent() -> None:
    endpoint = headrace.endpoint(plain)
    with pytest.raises(UsageError, match="takes 3 arguments"):
        endpoint.remote(1, 2, 3, 4)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="'a' was given twice"):
        endpoint.remote(1, a=2)  # type: ignore[misc]


def test_import_is_lazy_and_decorating_is_cheap() -> None:
    code = (
        "import sys; before = set(sys.modules); import headrace\n"
        "assert 'msgspec' not in sys.modules\n"
        "@headrace.endpoint(memory='1GiB', scaling=headrace.Scaling(max=3))\n"
        "def f(a: int) -> int: return a\n"
        "heavy = {'pydantic', 'asyncio', 'ssl', 'http.client', 'ray', 'difflib', 'concurrent.futures'}\n"
        "print(sorted(heavy & (set(sys.modules) - before)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.strip() == "[]"


def test_decorating_costs_no_more_than_a_few_signatures() -> None:
    def best(action: Any) -> float:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            for _ in range(300):
                action()
            times.append(time.perf_counter() - started)
        return min(times)

    # A ratio, not a time: inspecting one signature and checking its default is the yardstick.
    yardstick = best(lambda: inspect.signature(plain).bind(1))
    assert best(lambda: headrace.endpoint(plain)) < 5 * yardstick


def test_unknown_public_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'endpiont'"):
        _ = headrace.endpiont  # type: ignore[attr-defined]
    assert "endpoint" in dir(headrace)
    assert all(getattr(headrace, name) for name in headrace.__all__)
