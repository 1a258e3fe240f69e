"""The messages between gateway, control and host: one closed, versioned set.

Framing: 4 bytes big-endian length, then one msgpack-encoded `Envelope`. The first frame on a link is
`Hello`, answered by `Welcome` or `Reject`. Envelopes are numbered; ``ack`` names the highest number
received so far. A request carries ``call`` (a number chosen by its sender) and its reply carries the
same number in ``reply``.

Every command from control carries the leader ``epoch``; hosts and gateways refuse an older one.
Times are seconds since the Unix epoch where named ``..._at``, durations in seconds ``..._s``.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from headrace.wire_secrets import SecretRef as SecretRef  # noqa: PLC0414 - offered here
from headrace.wire_secrets import SecretValues as SecretValues  # noqa: PLC0414
from headrace.wire_values import (
    BaseSpec,
    Death,
    EndpointState,
    HostState,
    InstanceReport,
    InstanceSpec,
    InstanceState,
    InstanceUse,
    LoadedBase,
    Probe,
    Probes,
    Resources,
    StartTimings,
    Tier,
    WarmReport,
    WeightsSpec,
)

__all__ = [
    "BaseSpec",
    "Death",
    "EndpointState",
    "HostState",
    "InstanceReport",
    "InstanceSpec",
    "InstanceState",
    "InstanceUse",
    "LoadedBase",
    "Probe",
    "Probes",
    "Resources",
    "SecretRef",
    "SecretValues",
    "StartTimings",
    "Tier",
    "WarmReport",
    "WeightsSpec",
]
# What messages share, given on from here: the messages themselves need no mention.

PROTOCOL = 1
MAX_FRAME = 72 << 20
MAX_HELLO_FRAME = 64 << 10
BLOB_CHUNK = 4 << 20

HEARTBEAT_PERIOD_S = 0.5
SUSPECT_AFTER_S = 1.5
DEAD_AFTER_S = 3.0
ADOPT_WINDOW_S = 5.0

Role = Literal["gateway", "host"]


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Base of all messages; the tag is the class name."""


# --- handshake -------------------------------------------------------------------------------


class Hello(Message, frozen=True, kw_only=True):
    """First frame of whoever connects. ``token`` is the cluster token."""

    protocol: int
    role: Role
    token: str
    id: str


class Welcome(Message, frozen=True, kw_only=True):
    """Control accepts; ``epoch`` is its leader epoch."""

    protocol: int
    epoch: int


class Reject(Message, frozen=True, kw_only=True):
    """Control refuses and closes."""

    reason: str


class Error(Message, frozen=True, kw_only=True):
    """A reply that says why there is none. ``slug`` is the ``type`` of an ``errors.RequestError``."""

    slug: str
    detail: str


# --- gateway -> control ----------------------------------------------------------------------


class Wake(Message, frozen=True, kw_only=True):
    """``queued`` requests wait for an endpoint without a free slot. Sent once per episode."""

    endpoint: str
    version: int | None = None
    """Set when the caller named a version (``/e/name@3``)."""
    queued: int = 1
    stored: int = 0
    """Jobs that wait in the store; gateways see the same ones: never added up."""


class EndpointDemand(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a gateway saw of one endpoint since its last report."""

    endpoint: str
    in_flight: int = 0
    queued: int = 0
    named: dict[int, int] = {}
    """Of ``queued``, those that insist on a version, by that."""
    stored: int = 0
    """Jobs in the store that nobody has leased. All gateways see the same ones: the largest number counts."""
    oldest_wait_s: float = 0.0
    finished: int = 0
    failed: int = 0
    service_s: float = 0.0
    """Sum of service times of ``finished`` requests."""
    arrived: int | None = None
    """Requests that came since the gateway first spoke to this leader, a counter; None: it does not count."""
    demand_s: float | None = None
    """The integral over that time of what is in flight and waits in the gateway, in request-seconds."""
    served: tuple[float, ...] = ()
    """Seconds of service of a sample of ``finished``."""
    instances: dict[str, int] = {}
    """Instance id -> requests in flight there from this gateway; 0: used since the last report, idle now."""


class Demand(Message, frozen=True, kw_only=True):
    """Sent every 0.5 s for endpoints with anything to say, and once with zeros when one goes quiet.

    Ahead of each `Wake`, and while room is short (`AskDemand`), endpoints are reported that have an
    instance that became idle. What is not mentioned has not changed.
    """

    items: list[EndpointDemand]


class InstanceTrouble(Message, frozen=True, kw_only=True):
    """The gateway could not use an instance that is in its table."""

    instance: str
    what: Literal["refused", "reset", "timeout"]
    detail: str = ""


class ApiCall(Message, frozen=True, kw_only=True):
    """A request under ``/api/v1``, authenticated by the gateway: for control, or for what a gateway has."""

    method: str
    path: str
    """Below ``/api/v1``, for example ``/endpoints/hello``."""
    query: dict[str, str] = {}
    body: bytes = b""
    project: str = "default"
    key_id: str = ""
    scopes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        # A body may hold a secret.
        return f"ApiCall({self.method} {self.path}, {len(self.body)} bytes)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("method", self.method), ("path", self.path), ("bytes", len(self.body))]


class ApiReply(Message, frozen=True, kw_only=True):
    """The answer to an `ApiCall`."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"


# --- gateway -> gateway (besides ``ApiCall``) --------------------------------------------------


class JobHints(Message, frozen=True, kw_only=True):
    """Something has just happened to these jobs at the sender."""

    jobs: list[str]


# --- control -> gateway ----------------------------------------------------------------------


class EndpointRoute(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a gateway must know of an endpoint, running or not."""

    endpoint: str
    """``project/name``."""
    version: int
    """The current version; instances of it are preferred."""
    state: EndpointState
    reason: str = ""
    """Why it is ``failed``, or why its requests wait."""
    handler: str = "function"
    timeout_s: float = 600.0
    retries: int = 2
    retry_on: tuple[str, ...] = ()
    idempotent: bool = True
    max_body: int = 32 << 20
    queue_requests: int = 1000
    queue_bytes: int = 256 << 20
    hedge_after_s: float = 0.0
    """A second attempt goes out after so many seconds; 0: never, or as ``hedge_quantile`` says."""
    hedge_quantile: float = 0.0
    """A second attempt goes out after this quantile (0.95 for p95) of recent service times; 0: never."""
    versions: tuple[int, ...] = ()
    """Versions that ``@n`` may name."""
    api: str = "native"
    """``openai``: it serves OpenAI's routes, and ``model`` may name it."""


class InstanceRoute(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An instance that takes requests."""

    id: str
    endpoint: str
    version: int
    host: str
    address: str
    token: str
    concurrency: int = 1
    target: int = 1
    """Requests that it is to have before another one is used."""
    tier: Tier = "forked"
    timings: StartTimings = StartTimings()
    suspect: bool = False
    """Its host is late: send nothing new while there is another choice."""


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An API key as gateways know it: never the key, only its SHA-256 (hex)."""

    id: str
    hash: str
    project: str = "default"
    scopes: tuple[str, ...] = ("admin",)
    name: str = ""
    """For people."""
    endpoints: tuple[str, ...] = ()
    """Names that it may call; empty: all of its project."""
    rate: float = 0.0
    """Requests per second that each gateway takes from it; 0: no limit."""
    burst: int = 0
    """Requests that it may send at once, before ``rate`` holds."""
    created_at: float = 0.0


class Snapshot(Message, frozen=True, kw_only=True):
    """The whole routing table; replaces what the gateway had."""

    epoch: int
    endpoints: list[EndpointRoute]
    instances: list[InstanceRoute]
    keys: list[KeyRecord]


class RouteDelta(Message, frozen=True, kw_only=True):
    """Changes to the routing table, in the order they happened."""

    epoch: int
    endpoints: list[EndpointRoute] = []
    removed_endpoints: list[str] = []
    instances: list[InstanceRoute] = []
    removed_instances: list[str] = []
    """Take no new requests there; those in flight end by themselves."""
    dead_instances: list[str] = []
    """These are gone: fail over what is in flight there."""
    dead_reasons: dict[str, str] = {}
    """Instance id of ``dead_instances`` -> why it ended: ``<reason of its Death>: <detail>``."""
    keys: list[KeyRecord] | None = None


class AskDemand(Message, frozen=True, kw_only=True):
    """Report `Demand` now; the reply to a call (an empty `Demand`) comes after it.

    For ``eager_s`` more seconds room is short: report within milliseconds what became idle.
    """

    eager_s: float = 0.0


# --- host -> control -------------------------------------------------------------------------


class HostHello(Message, frozen=True, kw_only=True):
    """First message of a host after `Welcome`: who it is and its full inventory."""

    host: str
    """New for every incarnation."""
    node: str
    """The same for every incarnation on one node."""
    provider: str = "local"
    region: str = "local"
    kind: str = "generic"
    spot: bool = False
    price: float = 0.0
    resources: Resources
    runtimes: tuple[str, ...] = ("process",)
    pauses: tuple[str, ...] = ()
    """Those of its runtimes that can pause an instance."""
    paused_bytes: int = 0
    """Memory that paused instances may hold together."""
    pauses_gpu: bool = False
    """Whether instances that have accelerators may be paused: their device memory stays taken."""
    capabilities: dict[str, dict[str, str]] = {}
    """What each of its runtimes may be able to do: empty when it can, else why not."""
    missing: dict[str, str] = {}
    """Installed runtimes that it does not offer: why not."""
    python: str = ""
    """Version of its own Python, such as ``3.11.2``."""
    host_network: bool = False
    """Whether containers may have ``network="host"``."""
    weights_allow: tuple[str, ...] = ()
    """Prefixes of sources of weights beside http(s)."""
    weights_private: bool = False
    labels: dict[str, str] = {}
    instances: list[InstanceReport] = []
    warm: list[WarmReport] = []


class Heartbeat(Message, frozen=True, kw_only=True):
    """Every `HEARTBEAT_PERIOD_S`. ``in_flight`` and ``rss`` by instance id."""

    at: float
    in_flight: dict[str, int] = {}
    rss: dict[str, int] = {}
    use: dict[str, InstanceUse] = {}
    """Of those that were looked at since the last one."""
    checkpoints: dict[str, int] = {}
    """What became of those of this host, by outcome."""
    capabilities: dict[str, dict[str, str]] = {}
    """Of all its runtimes, as in `HostHello`, with ``pauses``: when one has come or knows more."""
    pauses: tuple[str, ...] = ()


class InstanceEvent(Message, frozen=True, kw_only=True):
    """An instance changed state."""

    instance: InstanceReport


class WarmEvent(Message, frozen=True, kw_only=True):
    """A zygote changed state."""

    warm: WarmReport


class FetchBlob(Message, frozen=True, kw_only=True):
    """Ask control for a part of a blob; answered by `BlobChunk` or `Error`."""

    sha256: str
    offset: int = 0


class BlobChunk(Message, frozen=True, kw_only=True):
    """``data`` at ``offset`` of a blob of ``total`` bytes."""

    total: int
    offset: int
    data: bytes


# --- control -> host -------------------------------------------------------------------------


class StartInstance(Message, frozen=True, kw_only=True):
    """Claim a sandbox and start an instance in it. Progress comes as `InstanceEvent`."""

    epoch: int
    id: str
    spec: InstanceSpec
    claim_s: float = 0.0
    after: tuple[str, ...] = ()
    """Instances that are giving way to it: it takes their accelerators as soon as these are free."""
    secrets: SecretValues = SecretValues()
    """Of ``spec.secrets``."""
    refused: str = ""
    """Why it cannot be started although there is room: it fails with that."""


class StopInstance(Message, frozen=True, kw_only=True):
    """Let the instance finish what it does for at most ``grace_s``, then end it."""

    epoch: int
    id: str
    grace_s: float = 30.0
    reason: str = ""


class InstanceLeft(Message, frozen=True, kw_only=True):
    """All gateways have left an instance that was told to stop: nothing that they sent is on its way."""

    epoch: int
    id: str


class PauseInstance(Message, frozen=True, kw_only=True):
    """Freeze an idle instance: it keeps its memory, and gives its accelerators back.

    One that turns out to be busy, or cannot be frozen, is stopped instead within ``grace_s``.
    """

    epoch: int
    id: str
    grace_s: float = 30.0
    reason: str = ""


class ResumeInstance(Message, frozen=True, kw_only=True):
    """Let a paused instance go on, on the accelerators that it had; when they are taken it is stopped."""

    epoch: int
    id: str
    after: tuple[str, ...] = ()
    """See `StartInstance`."""


class SetWarm(Message, frozen=True, kw_only=True):
    """The zygotes that the host shall hold, most wanted first, with their spare children."""

    epoch: int
    bases: list[tuple[BaseSpec, int]]
    secrets: SecretValues = SecretValues()
    """Of loaded bases, by ``project/name@version``."""


class ReadLogs(Message, frozen=True, kw_only=True):
    """Read the logs of an endpoint's instances on this host; answered by `LogPage`."""

    endpoint: str
    instance: str | None = None
    after: int = 0
    limit: int = 1000
    wait_s: float = 0.0
    """Wait this long for a first line."""


class FindImage(Message, frozen=True, kw_only=True):
    """Ask the registry what an image's tag means now; answered by `FoundImage`."""

    reference: str


class FoundImage(Message, frozen=True, kw_only=True):
    """``sha256:...``, or why not."""

    digest: str = ""
    why: str = ""


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an instance's output."""

    at: float
    instance: str
    stream: Literal["stdout", "stderr", "system"]
    text: str


class LogPage(Message, frozen=True, kw_only=True):
    """``next`` is the cursor to read on with, for this host."""

    lines: list[LogLine]
    next: int


class DrainHost(Message, frozen=True, kw_only=True):
    """Take nothing new; stop all instances within ``grace_s``."""

    epoch: int
    grace_s: float = 30.0


AnyMessage = (
    Hello | Welcome | Reject | Error
    | Wake | Demand | InstanceTrouble | ApiCall | ApiReply | JobHints
    | Snapshot | RouteDelta | AskDemand
    | HostHello | Heartbeat | InstanceEvent | WarmEvent | FetchBlob | BlobChunk
    | StartInstance | StopInstance | InstanceLeft | PauseInstance | ResumeInstance | SetWarm
    | ReadLogs | LogPage | DrainHost | FindImage | FoundImage
)  # fmt: skip


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """One frame."""

    seq: int
    ack: int
    msg: AnyMessage
    call: int = 0
    """Not 0: the sender waits for a reply to this number."""
    reply: int = 0
    """Not 0: this is the reply to the peer's ``call`` of that number."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Envelope)


def encode(envelope: Envelope) -> bytes:
    """One frame, length included."""
    body = _encoder.encode(envelope)
    return len(body).to_bytes(4, "big") + body


def decode(body: bytes | memoryview) -> Envelope:
    """A frame without its length. Raises ``msgspec.DecodeError`` (or its ``ValidationError``)."""
    return _decoder.decode(body)
