"""``@endpoint``: turns a function, class or ASGI app into something that runs here, or on the platform."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Never, ParamSpec, Protocol, TypeVar, cast, overload

from headrace.errors import SpecError, UsageError
from headrace.sdk import local
from headrace.sdk.handlers import Handler, call_kind, examine
from headrace.sdk.image import Image
from headrace.sdk.network import Network, NetworkMode
from headrace.sdk.options import build_spec, default_name
from headrace.sdk.secrets import Secret
from headrace.sdk.spec import (
    Api,
    Batch,
    EndpointSpec,
    Gpu,
    Placement,
    Queue,
    RuntimeName,
    Scaling,
    Snapshot,
    needs_asgi,
)
from headrace.sdk.weights import Weights

if TYPE_CHECKING:
    from headrace.sdk.job import Job

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class HandlerClass(Protocol[P, R_co]):
    """A class with ``__call__``; may have ``load``, ``health`` and ``unload``."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Answer one request."""
        ...


class Decorator(Protocol):
    """What ``@endpoint(...)`` gives: wraps a handler."""

    @overload
    def __call__(self, target: type[HandlerClass[P, R]], /) -> Endpoint[P, R]: ...
    @overload
    def __call__(self, target: Callable[P, R], /) -> Endpoint[P, R]: ...


class Endpoint(Generic[P, R]):
    """A decorated handler. Calling it is calling the original; ``remote`` and ``submit`` use the platform.

    ``spec`` holds all options; ``__headrace_handler__`` is the original object.
    """

    def __init__(self, target: Any, handler: Handler, spec: EndpointSpec) -> None:
        self.__headrace_handler__ = target
        self.handler = handler
        self.spec = spec
        self.__doc__ = getattr(target, "__doc__", None)
        self.__name__: str = getattr(target, "__name__", spec.name)
        self.__qualname__: str = getattr(target, "__qualname__", spec.name)
        self.__module__ = spec.entry.partition(":")[0]
        self.__wrapped__ = target
        self._instance: Any = None

    @property
    def name(self) -> str:
        """The endpoint's name: its address is ``/e/{name}``."""
        return self.spec.name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The original: run the function, make an instance of the class, call the ASGI app."""
        return self.__headrace_handler__(*args, **kwargs)

    def local(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run here, without the platform.

        A class is instantiated and loaded once per process, then its ``__call__`` runs. Raises what the
        handler raises.
        """
        target = self.__headrace_handler__
        if self.handler.kind == "class":
            if self._instance is None:
                self._instance = local.loaded_instance(self, target)
            target = self._instance
        return cast(R, target(*args, **kwargs))

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Call the deployed endpoint over HTTP and wait: a JSON value, bytes, or an iterator of a stream.

        Uses ``HEADRACE_URL`` and ``HEADRACE_API_KEY``. Raises `headrace.errors.RequestError` for what the
        platform answers, ``NotRunning`` when nobody does.
        """
        return self._call(args, kwargs, None)

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Store a call as a job and return it: from then on it is never lost, and finished at most once.

        `headrace.Client.submit` has more options: priority, webhook, time to live.
        """
        from headrace.sdk.client import submit_endpoint  # noqa: PLC0415 - sockets are not for a sandbox

        self._refuse_asgi()
        return submit_endpoint(self, args, kwargs)

    def map(self, inputs: Iterable[Any], *, concurrency: int = 8) -> Iterator[Any]:
        """Call once per input, at most ``concurrency`` at once, and give the results in order.

        Inputs are taken as results are consumed, so an endless iterable is fine. The first error is raised
        when its turn comes, and cancels what was started after it.
        """
        self._refuse_asgi()
        if isinstance(concurrency, bool) or not isinstance(concurrency, int) or not 1 <= concurrency <= 32:
            raise UsageError(f"map(concurrency={concurrency!r}): use a whole number from 1 to 32.")
        return self._map(iter(inputs), concurrency)

    def openapi(self) -> dict[str, Any]:
        """The endpoint's OpenAPI document, from its type hints. Raises `SpecError` naming a bad hint."""
        from headrace.sdk.schema import openapi_of  # noqa: PLC0415 - pydantic is for whoever asks, not a sandbox

        return openapi_of(self)

    def _map(self, inputs: Iterator[Any], concurrency: int) -> Iterator[Any]:
        from headrace.sdk.background import Background, submit  # noqa: PLC0415 - as in `submit`

        running: list[Background[Any]] = []
        try:
            for item in inputs:
                running.append(submit(functools.partial(self._call, (item,), {})))
                if len(running) >= concurrency:
                    yield running.pop(0).result()
            while running:
                yield running.pop(0).result()
        finally:
            for job in running:
                job.cancel()

    def _call(self, args: Sequence[Any], kwargs: Mapping[str, Any], cancel: Any) -> Any:
        from headrace.sdk.client import call_endpoint  # noqa: PLC0415 - http and ssl are not for a sandbox

        self._refuse_asgi()
        return call_endpoint(self, args, kwargs, cancel)

    def _refuse_asgi(self) -> None:
        if self.handler.kind == "asgi":
            raise UsageError(
                f"{self.name} is an ASGI app: it is called by path.",
                hint=f'Use headrace.Client().request("GET", "/e/{self.name}/...").',
            )

    def __repr__(self) -> str:
        return f"<headrace endpoint {self.name!r} ({self.handler.kind} {self.spec.entry})>"


@overload
def endpoint(target: type[HandlerClass[P, R]], /) -> Endpoint[P, R]: ...
@overload
def endpoint(target: Callable[P, R], /) -> Endpoint[P, R]: ...
@overload
def endpoint(
    *,
    name: str = ...,
    gpu: str | Gpu | Sequence[str | Gpu] | None = ...,
    cpu: float = ...,
    memory: int | str = ...,
    image: Image | None = ...,
    runtime: RuntimeName | str = ...,
    scaling: Scaling = ...,
    concurrency: int = ...,
    batch: Batch | None = ...,
    timeout: float = ...,
    load_timeout: float = ...,
    retries: int = ...,
    retry_on: Sequence[type[BaseException] | str] = ...,
    idempotent: bool = ...,
    hedge_after: float | str | None = ...,
    snapshot: Snapshot = ...,
    preload: Sequence[str] = ...,
    queue: Queue = ...,
    max_body: int | str = ...,
    placement: Placement = ...,
    network: NetworkMode | Network = ...,
    env: Mapping[str, str] = ...,
    secrets: Sequence[str | Secret] = ...,
    weights: str | Weights | Sequence[str | Weights] = ...,
    api: Api = ...,
    **unknown: Never,
) -> Decorator: ...
def endpoint(target: Any = None, /, **options: Any) -> Any:
    """Make an inference endpoint of a function, generator, class or ASGI app (sync or async).

    Use it bare (``@headrace.endpoint``) or with options; docs/reference lists them. Everything is checked
    here: a wrong option raises `SpecError` and says what to use, an unknown one names the closest, one that
    is not built yet raises `UnsupportedOption` with the reason.
    """
    if target is not None:
        return _decorate(target, options, _caller(2))
    module = _caller(2)
    # Options are wrong at the line of the decorator, not at the handler: check them now.
    build_spec(name="checked", entry="", handler="function", options=options)

    def decorate(wrapped: Any, /) -> Any:
        return _decorate(wrapped, options, module)

    return decorate


def _decorate(target: Any, options: Mapping[str, Any], module: str) -> Endpoint[Any, Any]:
    if isinstance(target, Endpoint):
        raise SpecError(f"{target.name!r} is an endpoint already.", hint="Use one @headrace.endpoint.")
    handler = examine(target)
    python_name = getattr(target, "__qualname__", None)
    if not isinstance(python_name, str):
        if "name" not in options:
            raise SpecError(
                f"an object of type {type(target).__name__} has no name of its own.",
                hint='Give the endpoint one: headrace.endpoint(name="api")(app).',
            )
        python_name = ""  # the variable's name, filled in when the file is inspected
    entry = f"{module}:{python_name}"
    name = options.get("name") or default_name(python_name.rpartition(".")[2])
    spec = build_spec(name=name, entry=entry, handler=handler.kind, options=options)
    shape = call_kind(target) if handler.kind == "class" else handler.kind
    if spec.batch is not None and shape not in ("function", "async_function"):
        raise SpecError(
            f"batch: {spec.name} is of the kind {shape}; batching needs a function that returns a list."
        )
    if spec.batch is not None and len(handler.parameters) != 1:
        raise SpecError(f"batch: {spec.name} must take exactly one parameter, the list of inputs.")
    if spec.api == "openai" and handler.kind != "asgi":
        raise SpecError(needs_asgi(spec.name, handler.kind))
    spec.probes.check(handler.kind, spec.runtime)
    if spec.snapshot == "loaded" and not hasattr(target, "load"):
        raise SpecError(f'snapshot="loaded": {spec.name} has no load() to run before the fork.')
    return Endpoint(target, handler, spec)


def _caller(depth: int) -> str:
    return str(sys._getframe(depth).f_globals.get("__name__", "__main__"))
