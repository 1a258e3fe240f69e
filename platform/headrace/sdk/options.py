"""Checks the options of ``@endpoint`` and turns them into an `EndpointSpec`: pure, no I/O, no user code.

An option that is wrong raises `SpecError` and says what to use; one that is known but not built yet
raises `UnsupportedOption` with the reason; it is never ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

from headrace.errors import SpecError, UnsupportedOption
from headrace.sdk.image import check_image, image_of_option
from headrace.sdk.network import network_of_option
from headrace.sdk.probes import Probes
from headrace.sdk.secrets import secrets_of_option
from headrace.sdk.spec import (
    MIB,
    NAME_PATTERN,
    Api,
    Batch,
    EndpointSpec,
    Gpu,
    HandlerKind,
    Placement,
    Queue,
    RuntimeName,
    Scaling,
    Snapshot,
    checked_hedge,
    parse_size,
)
from headrace.sdk.weights import weights_of_option

MAX_RETRIES = 10
MAX_CONCURRENCY = 1000
MAX_SECONDS = 10_000_000.0
MAX_CORES = 10_000.0
MIN_MEMORY = 16 * MIB
"""Bytes; less is a forgotten unit."""
MAX_NAMES = 200
"""Entries of a list option (``env``, ``preload``, ``retry_on``)."""
MAX_NAME = 300
MAX_ENV = 64 << 10
"""Characters of ``env`` in all: it travels in one packet."""

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def default_name(python_name: str) -> str:
    """``TextReader`` and ``text_reader`` become ``text-reader``."""
    return _CAMEL.sub("-", python_name).replace("_", "-").lower().strip("-")


def build_spec(*, name: str, entry: str, handler: HandlerKind, options: Mapping[str, Any]) -> EndpointSpec:
    """The spec of a handler. ``options`` holds what the user gave, without those left out."""
    fields: dict[str, Any] = {}
    for option, value in options.items():
        check = _CHECKS.get(option)
        if check is None:
            raise _unknown(option)
        check(value, fields)
    fields.setdefault("name", name)
    spec = EndpointSpec(entry=entry, handler=handler, **fields)
    check_image(spec.runtime, spec.image)
    return spec


def check_spec(spec: EndpointSpec) -> None:
    """What the decorator checks, for a spec that it may not have made. Raises `SpecError`."""
    for option in _SINGLE:
        _CHECKS[option](getattr(spec, option), {})
    _modules("imports", spec.imports)
    if spec.memory_limit is not None:
        parse_size(spec.memory_limit, "memory_limit")
    if spec.cpu_limit is not None:
        _CHECKS["cpu"](spec.cpu_limit, {})
    check_image(spec.runtime, spec.image)
    spec.probes.check(spec.handler, spec.runtime)
    module, colon, name = spec.entry.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise SpecError(f"entry={spec.entry!r:.100}: use module:name.")


def _unknown(option: str) -> SpecError:
    import difflib  # noqa: PLC0415 - only for an error; keeps `import headrace` cheap in a sandbox

    close = difflib.get_close_matches(option, _CHECKS, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}?" if close else f"Options are: {', '.join(sorted(_CHECKS))}."
    return SpecError(f"@endpoint has no option {option!r}.", hint=hint)


def _name(value: Any, fields: dict[str, Any]) -> None:
    if not isinstance(value, str) or not NAME_PATTERN.match(value):
        raise SpecError(f"name={value!r}: use 1-63 of a-z, 0-9 and '-', not first or last.")
    fields["name"] = value


def _gpu(value: Any, fields: dict[str, Any]) -> None:
    listed = [value] if isinstance(value, str | Gpu) else value
    if value is None or listed in ([], ()):
        return
    if not isinstance(listed, list | tuple):
        raise SpecError(
            f'gpu={value!r}: use a name such as "L40S:2", or a list of them in order of preference.'
        )
    fields["gpu"] = tuple(_one_gpu(item) for item in listed)


def _one_gpu(item: Any) -> Gpu:
    if isinstance(item, Gpu):
        return item
    if not isinstance(item, str):
        raise SpecError(f'gpu={item!r}: use a name such as "H100" or "L40S:2".')
    model, colon, count = item.partition(":")
    if not model.strip() or (colon and not (count.isdecimal() and int(count) > 0)):
        raise SpecError(f'gpu={item!r}: use a name and a count, such as "L40S:2".')
    return Gpu(name=model.strip(), count=int(count) if colon else 1)


def _memory(value: Any, fields: dict[str, Any]) -> None:
    size = parse_size(value, "memory")
    if size < MIN_MEMORY:
        raise SpecError(
            f'memory={value!r} is {size} bytes, and no instance runs in less than 16 MiB: write "2GiB" or so.'
        )
    fields["memory"] = fields["memory_limit"] = size


def _max_body(value: Any, fields: dict[str, Any]) -> None:
    fields["max_body"] = parse_size(value, "max_body")


def _number(
    option: str, *, above: float, unit: str, most: float = MAX_SECONDS
) -> Callable[[Any, dict[str, Any]], None]:
    def check(value: Any, fields: dict[str, Any]) -> None:
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        if not plain or not above < value <= most:
            raise SpecError(f"{option}={value!r:.40}: use {unit} above {above:g}, up to {most:.10g}.")
        fields[option] = float(value)

    return check


_cores = _number("cpu", above=0, unit="a number of cores", most=MAX_CORES)


def _cpu(value: Any, fields: dict[str, Any]) -> None:
    _cores(value, fields)
    fields["cpu_limit"] = fields["cpu"]


def _whole(option: str, low: int, high: int) -> Callable[[Any, dict[str, Any]], None]:
    def check(value: Any, fields: dict[str, Any]) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise SpecError(f"{option}={value!r}: use a whole number from {low} to {high}.")
        fields[option] = value

    return check


def _value_of(option: str, wanted: type) -> Callable[[Any, dict[str, Any]], None]:
    def check(value: Any, fields: dict[str, Any]) -> None:
        if not isinstance(value, wanted):
            raise SpecError(f"{option}={value!r}: use headrace.{wanted.__name__}(...).")
        fields[option] = value

    return check


def _choice(
    option: str, values: tuple[str, ...], later: Mapping[str, str]
) -> Callable[[Any, dict[str, Any]], None]:
    def check(value: Any, fields: dict[str, Any]) -> None:
        if not isinstance(value, str) or value not in values:
            words = ", ".join(f'"{item}"' for item in values)
            raise SpecError(f"{option}={value!r}: use one of {words}.")
        if value in later:
            raise UnsupportedOption(f'{option}="{value}" is not built yet: {later[value]}.')
        fields[option] = value

    return check


def _runtime(value: Any, fields: dict[str, Any]) -> None:
    known = get_args(RuntimeName)
    if isinstance(value, str) and value not in known:
        # Costs 20 ms, which only those with a runtime of their own, or a mistake, pay.
        from headrace_runtimes import registry  # noqa: PLC0415

        known = tuple(dict.fromkeys((*known, *registry.names())))
    _choice("runtime", known, {})(value, fields)


def _batch(value: Any, fields: dict[str, Any]) -> None:
    if value is not None:
        _value_of("batch", Batch)(value, fields)


def _image(value: Any, fields: dict[str, Any]) -> None:
    fields["image"] = image_of_option(value)


def _retry_on(value: Any, fields: dict[str, Any]) -> None:
    if not isinstance(value, list | tuple) or len(value) > MAX_NAMES:
        raise SpecError(f"retry_on={value!r}: use a list of exception types or their names.")
    fields["retry_on"] = tuple(dict.fromkeys(_exception_name(item) for item in value))


def _exception_name(item: Any) -> str:
    if isinstance(item, type) and issubclass(item, BaseException):
        return item.__name__
    if isinstance(item, str) and all(part.isidentifier() for part in item.split(".")):
        return item.rpartition(".")[2]
    raise SpecError(
        f'retry_on: {item!r} is not an exception; use a type such as TimeoutError, or "TimeoutError".'
    )


def _idempotent(value: Any, fields: dict[str, Any]) -> None:
    if not isinstance(value, bool):
        raise SpecError(f"idempotent={value!r}: use True or False.")
    fields["idempotent"] = value


def _hedge_after(value: Any, fields: dict[str, Any]) -> None:
    if value is not None:
        fields["hedge_after"] = checked_hedge(value)


def _preload(value: Any, fields: dict[str, Any]) -> None:
    fields["preload"] = _modules("preload", value)


def _modules(option: str, value: Any) -> tuple[str, ...]:
    fine = isinstance(value, list | tuple) and len(value) <= MAX_NAMES
    if not fine or not all(isinstance(item, str) and _is_module(item) for item in value):
        raise SpecError(
            f'{option}={value!r:.200}: use a list of module names, such as ["numpy", "PIL.Image"].'
        )
    return tuple(dict.fromkeys(value))


def _is_module(name: str) -> bool:
    return len(name) <= MAX_NAME and all(part.isidentifier() for part in name.split("."))


def _env(value: Any, fields: dict[str, Any]) -> None:
    if not isinstance(value, dict) or len(value) > MAX_NAMES:
        raise SpecError(f'env={value!r}: use a dict of strings, such as {{"MODE": "fast"}}.')
    for name, item in value.items():
        if not isinstance(name, str) or not _ENV_NAME.match(name):
            raise SpecError(f"env: {name!r} is not a variable's name.")
        if name.startswith("HEADRACE_"):
            raise SpecError(f"env: {name} is the platform's own; use another name.")
        if not isinstance(item, str) or "\0" in item:
            raise SpecError(f"env: {name}={item!r}: use a string.")
    if sum(len(name) + len(item) for name, item in value.items()) > MAX_ENV:
        raise SpecError(
            f"env holds more than {MAX_ENV >> 10} KiB: put large values into a file of the bundle."
        )
    fields["env"] = dict(value)


def _secrets(value: Any, fields: dict[str, Any]) -> None:
    fields["secrets"] = secrets_of_option(value)


def _weights(value: Any, fields: dict[str, Any]) -> None:
    fields["weights"] = weights_of_option(value)


def _network(value: Any, fields: dict[str, Any]) -> None:
    if value is not None:
        fields["network"] = network_of_option(value)


_CHECKS: dict[str, Callable[[Any, dict[str, Any]], None]] = {
    "name": _name,
    "gpu": _gpu,
    "cpu": _cpu,
    "memory": _memory,
    "image": _image,
    "runtime": _runtime,
    "scaling": _value_of("scaling", Scaling),
    "concurrency": _whole("concurrency", 1, MAX_CONCURRENCY),
    "batch": _batch,
    "timeout": _number("timeout", above=0, unit="seconds"),
    "load_timeout": _number("load_timeout", above=0, unit="seconds"),
    "retries": _whole("retries", 0, MAX_RETRIES),
    "retry_on": _retry_on,
    "idempotent": _idempotent,
    "hedge_after": _hedge_after,
    "snapshot": _choice("snapshot", get_args(Snapshot), {}),
    "preload": _preload,
    "queue": _value_of("queue", Queue),
    "max_body": _max_body,
    "placement": _value_of("placement", Placement),
    "probes": _value_of("probes", Probes),
    "network": _network,
    "env": _env,
    "secrets": _secrets,
    "weights": _weights,
    "api": _choice("api", get_args(Api), {}),
}
_SINGLE = (
    "cpu",
    "memory",
    "concurrency",
    "timeout",
    "load_timeout",
    "retries",
    "retry_on",
    "preload",
    "max_body",
    "env",
    "secrets",
    "weights",
)
"""Options that are a member of the spec under the same name, and are not checked by their own type."""
