"""The specification of an endpoint: one frozen, versioned value that serialises to JSON.

The decorator builds it (`headrace.sdk.endpoint`), the store keeps it, control derives from it what
hosts and gateways need. It holds no code: the bundle's hash and the entry point name the code.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from headrace.errors import SpecError
from headrace.sdk.network import Network, check_network
from headrace.sdk.probes import Probes
from headrace.sdk.secrets import Secret, check_variables
from headrace.sdk.values import Value as _Value
from headrace.sdk.values import checked_number as _checked_number
from headrace.sdk.weights import Weights

SPEC_VERSION = 1
MIB = 1 << 20
GIB = 1 << 30

HandlerKind = Literal["function", "async_function", "generator", "async_generator", "class", "asgi"]
RuntimeName = Literal["process", "oci", "docker"]
RUNTIME_PATTERN = re.compile(r"[a-z][a-z0-9_-]{0,31}\Z")
Snapshot = Literal["imports", "loaded", "none"]
Api = Literal["native", "openai"]
Spot = Literal["prefer", "never", "only"]

MAX_INSTANCES = 10_000
"""Of one endpoint."""
MIN_TARGET = 0.001
MAX_SIZE = 1 << 50

NAME_PATTERN = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(B|KB|KiB|MB|MiB|GB|GiB|TB|TiB)?\s*\Z", re.ASCII)
_QUANTILE = re.compile(r"p[5-9][0-9]\Z")
_UNITS = {
    None: 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 1 << 10, "MiB": MIB, "GiB": GIB, "TiB": 1 << 40,
}  # fmt: skip


def parse_size(value: int | str, what: str = "size") -> int:
    """``"16GiB"`` or a number of bytes, as bytes. Raises `SpecError`."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise SpecError(f'{what}={value!r}: use a number of bytes or a size such as "512MiB".')
    size = value
    if isinstance(size, str):
        match = _SIZE.match(size)
        if not match or len(match[1]) > 20:
            raise SpecError(f'{what}={value!r}: use a number and a unit, such as "512MiB" or "16GiB".')
        size = int(float(match[1]) * _UNITS[match[2]])
    if size <= 0:
        raise SpecError(f"{what}={value!r}: use more than 0 bytes.")
    if size > MAX_SIZE:
        raise SpecError(f"{what}={value!r:.40}: use at most 1024TiB.")
    return size


def needs_asgi(name: str, handler: str) -> str:
    """Why an endpoint with ``api="openai"`` that is no ASGI app is refused."""
    return (
        f'api="openai": {name} is a {handler}, and must be an ASGI app that answers /v1/chat/completions '
        "itself: leave api out, or see examples/chat_openai.py."
    )


def checked_hedge(value: Any) -> float | str:
    """``hedge_after`` as seconds or ``"p50"`` to ``"p99"``. Raises `SpecError`."""
    if isinstance(value, str):
        if _QUANTILE.match(value):
            return value
    elif isinstance(value, int | float) and not isinstance(value, bool) and 0.001 <= value <= 86400.0:
        return float(value)
    raise SpecError(
        f'hedge_after={value!r}: use "p95" (p50 to p99) of recent service times, or 0.001 to 86400 s.'
    )


def _checked_names(owner: msgspec.Struct, field: str) -> None:
    """Make a list of names a tuple, so that equal specs are equal. Raises `SpecError`."""
    value: Any = getattr(owner, field)
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
        raise SpecError(f"{type(owner).__name__}({field}={value!r}): use a list of names.")
    msgspec.structs.force_setattr(owner, field, tuple(value))


def _checked_dollars(owner: msgspec.Struct, field: str) -> None:
    """An amount per hour above 0, or None. Raises `SpecError`."""
    if getattr(owner, field) is not None and _checked_number(owner, field) <= 0:
        wrong = f"{type(owner).__name__}({field}={getattr(owner, field)})"
        raise SpecError(f"{wrong}: use dollars per hour above 0, or leave it out: no limit.")


class Gpu(_Value, frozen=True, kw_only=True):
    """``count`` accelerators of one model, for example ``L40S`` x 2."""

    name: str
    count: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise SpecError(f'Gpu(name={self.name!r}): use a model\'s name, such as "L40S".')
        if _checked_number(self, "count", whole=True) < 1:
            raise SpecError(f"Gpu(count={self.count}): use 1 or more.")


class Scaling(_Value, frozen=True, kw_only=True):
    """How many instances: between ``min`` and ``max``, by concurrency, gone after ``idle_timeout`` s.

    ``warm`` is the number of loaded spare instances kept beyond demand while there is demand. With
    ``idle_timeout="auto"`` an idle instance is kept for as long as that has proved to cost less than another
    start. ``budget``: dollars per hour that the instances together may cost; None: no limit.
    """

    min: int = 0
    max: int = 10
    target_concurrency: float = 1.0
    idle_timeout: float | Literal["auto"] = 60.0
    warm: int = 0
    budget: float | None = None

    def __post_init__(self) -> None:
        for field in ("min", "max", "warm"):
            _checked_number(self, field, whole=True, most=MAX_INSTANCES)
        _checked_number(self, "target_concurrency")
        if isinstance(self.idle_timeout, str):
            if self.idle_timeout != "auto":
                wrong = f"Scaling(idle_timeout={self.idle_timeout!r:.40})"
                raise SpecError(f'{wrong}: use seconds, or "auto": as long as it pays.')
        elif _checked_number(self, "idle_timeout") < 0:
            raise SpecError(f"Scaling(idle_timeout={self.idle_timeout}): use seconds, 0 or more.")
        _checked_dollars(self, "budget")
        if self.min < 0:
            raise SpecError(f"Scaling(min={self.min}): use 0 or more.")
        if self.max < max(1, self.min):
            raise SpecError(f"Scaling(max={self.max}): use at least max(1, min={self.min}).")
        if self.target_concurrency < MIN_TARGET:
            target = self.target_concurrency
            raise SpecError(f"Scaling(target_concurrency={target}): use a number above 0, from {MIN_TARGET}.")
        if self.warm < 0:
            raise SpecError(f"Scaling(warm={self.warm}): use 0 or more.")


class Batch(_Value, frozen=True, kw_only=True):
    """Collect up to ``max_size`` requests for at most ``max_wait_ms``; call the handler once with a list."""

    max_size: int = 8
    max_wait_ms: float = 5.0

    def __post_init__(self) -> None:
        _checked_number(self, "max_size", whole=True)
        _checked_number(self, "max_wait_ms")
        if self.max_size < 1:
            raise SpecError(f"Batch(max_size={self.max_size}): use 1 or more.")
        if self.max_wait_ms < 0:
            raise SpecError(f"Batch(max_wait_ms={self.max_wait_ms}): use milliseconds, 0 or more.")


class Queue(_Value, frozen=True, kw_only=True):
    """Bounds of the requests that wait for an instance. ``max_bytes`` takes an int or "256MiB"."""

    max_requests: int = 1000
    max_bytes: int | str = 256 * MIB

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "max_bytes", parse_size(self.max_bytes, "Queue(max_bytes)"))
        _checked_number(self, "max_requests", whole=True)
        if self.max_requests < 1:
            raise SpecError(f"Queue(max_requests={self.max_requests}): use 1 or more.")

    @property
    def byte_bound(self) -> int:
        """``max_bytes`` as a number of bytes."""
        assert isinstance(self.max_bytes, int)
        return self.max_bytes


class Placement(_Value, frozen=True, kw_only=True):
    """Where instances may run. An empty tuple means anywhere.

    ``max_price``: dollars per hour of one instance; dearer offers are not taken. ``balance`` between the
    cheapest (0) and the most stable (1), which has more spares beside spot and goes to on-demand earlier.
    ``on_demand``: of the instances wanted, as many as this are never on spot.
    """

    providers: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    spot: Spot = "prefer"
    max_price: float | None = None
    balance: float = 0.5
    on_demand: int = 0

    def __post_init__(self) -> None:
        _checked_names(self, "providers")
        _checked_names(self, "regions")
        if self.spot not in ("prefer", "never", "only"):
            raise SpecError(f'Placement(spot={self.spot!r}): use "prefer", "never" or "only".')
        _checked_dollars(self, "max_price")
        if not 0 <= _checked_number(self, "balance") <= 1:
            raise SpecError(f"Placement(balance={self.balance}): use 0 (cheapest) to 1 (most stable).")
        if _checked_number(self, "on_demand", whole=True, most=MAX_INSTANCES) < 0:
            raise SpecError(f"Placement(on_demand={self.on_demand}): use 0 or more.")
        if self.on_demand and self.spot == "only":
            raise SpecError(
                'Placement(spot="only", on_demand=...): these contradict each other.',
                hint="Leave one of them out.",
            )


class ImageSpec(_Value, frozen=True, kw_only=True):
    """The environment an endpoint runs in. No layers: the platform's own Python environment."""

    python: str | None = None
    layers: tuple[tuple[str, tuple[str, ...]], ...] = ()
    digest: str = ""
    """SHA-256 (hex) of the definition with what its files hold; empty until it is packed for a deploy."""
    context: str = ""
    """SHA-256 (hex) of the zip with the definition and its files, uploaded as a bundle is."""


class EndpointSpec(_Value, frozen=True, kw_only=True):
    """All that is known of an endpoint before it runs. Equal specs are equal versions."""

    name: str
    entry: str
    """``module:qualname`` inside the bundle, for example ``app:Embedder``."""
    handler: HandlerKind
    bundle: str = ""
    """SHA-256 (hex) of the bundle; empty until it is bundled."""
    spec_version: int = SPEC_VERSION
    project: str = "default"
    gpu: tuple[Gpu, ...] = ()
    cpu: float = 0.125
    memory: int = 256 * MIB
    """Bytes of memory reserved on the host."""
    memory_limit: int | None = None
    """Bytes at which the instance is killed: ``memory`` when the user gave one, else none."""
    cpu_limit: float | None = None
    """Cores that a runtime with limits holds it to: ``cpu`` when the user gave one, else none."""
    image: ImageSpec = ImageSpec()
    runtime: str = "process"
    """A `RuntimeName`, or that of a plugin (docs/reference/runtimes.md)."""
    scaling: Scaling = Scaling()
    concurrency: int = 1
    batch: Batch | None = None
    timeout: float = 600.0
    load_timeout: float = 600.0
    retries: int = 2
    retry_on: tuple[str, ...] = ()
    """Names of exception types after which a request is tried again on another instance."""
    idempotent: bool = True
    hedge_after: float | str | None = None
    """Send a second copy of a request after so many seconds, or a quantile such as "p95" of recent ones."""
    snapshot: Snapshot = "imports"
    preload: tuple[str, ...] = ()
    """Modules that the user asked to be imported in the zygote."""
    imports: tuple[str, ...] = ()
    """Third-party modules that the file imports at its top; preloaded when they are fork-safe."""
    queue: Queue = Queue()
    max_body: int = 32 * MIB
    placement: Placement = Placement()
    env: dict[str, str] = {}  # noqa: RUF012 - structs copy their defaults
    secrets: tuple[Secret, ...] = ()
    """Stored secrets that instances get, by name."""
    weights: tuple[Weights, ...] = ()
    """Files that hosts fetch, keep, and show to the instances."""
    probes: Probes = Probes()
    network: Network | None = None
    """None: the host's own for ``process``, out through the host for containers."""
    api: Api = "native"
    method: str = "__call__"
    openapi: dict[str, Any] = {}  # noqa: RUF012 - structs copy their defaults
    """The endpoint's OpenAPI document, made from the type hints."""

    def __post_init__(self) -> None:
        if not NAME_PATTERN.match(self.name):
            raise SpecError(
                f"endpoint name {self.name!r}: use 1-63 of a-z, 0-9 and '-', not first or last.",
                hint='Give one with @headrace.endpoint(name="...").',
            )
        check_variables(self.secrets, self.env)
        if not RUNTIME_PATTERN.match(self.runtime):
            raise SpecError(f'runtime={self.runtime!r:.60}: use a name such as "oci".')
        check_network(self.network, self.runtime)
        if self.weights and self.snapshot == "loaded":
            raise SpecError(
                'weights are not there yet when snapshot="loaded" runs load().',
                hint="Leave snapshot out: load() finds them in the memory of the host.",
            )
        if self.hedge_after is not None:
            msgspec.structs.force_setattr(self, "hedge_after", checked_hedge(self.hedge_after))
            if not self.idempotent:
                raise SpecError(
                    "hedge_after sends a request twice, and idempotent=False forbids that.",
                    hint="Leave one of them out.",
                )

    @property
    def hedge_quantile(self) -> float:
        """0.95 for ``hedge_after="p95"``; 0 when it is none."""
        return int(self.hedge_after[1:]) / 100 if isinstance(self.hedge_after, str) else 0.0

    @property
    def hedge_after_s(self) -> float:
        """Seconds of ``hedge_after``; 0 when it is none."""
        return self.hedge_after if isinstance(self.hedge_after, float) else 0.0

    @property
    def key(self) -> str:
        """``project/name``: unique on the platform."""
        return f"{self.project}/{self.name}"


_encoder = msgspec.json.Encoder(order="deterministic")
_decoder = msgspec.json.Decoder(EndpointSpec)


class _Version(msgspec.Struct):
    """Read first: a newer spec may have members that this version does not know."""

    spec_version: int = SPEC_VERSION


_version_decoder = msgspec.json.Decoder(_Version)


def dump_spec(spec: EndpointSpec) -> bytes:
    """Canonical JSON: equal specs give equal bytes."""
    return _encoder.encode(spec)


def load_spec(data: bytes | str) -> EndpointSpec:
    """Read `dump_spec`'s output. Raises `SpecError` when it is not one, or of a newer version."""
    try:
        version = _version_decoder.decode(data).spec_version
        if version > SPEC_VERSION:
            newer = f"spec version {version} is newer than this platform's {SPEC_VERSION}"
            raise SpecError(f"{newer}: upgrade it.")
        return _decoder.decode(data)
    except msgspec.ValidationError as error:
        raise SpecError(f"this is not a spec of version {SPEC_VERSION}: {error}") from error
    except msgspec.DecodeError as error:
        raise SpecError(f"this is not JSON: {error}") from error
