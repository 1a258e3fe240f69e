"""Values that messages between gateway, control and host share; `headrace.wire` gives them on."""

from __future__ import annotations

from typing import Literal

import msgspec

from headrace.wire_secrets import SecretRef

EndpointState = Literal["deploying", "ready", "idle", "updating", "failed", "deleting"]
InstanceState = Literal["starting", "ready", "paused", "draining", "stopped", "failed"]
HostState = Literal["joining", "ready", "suspect", "draining", "dead"]
Tier = Literal["warm", "forked", "cached", "cold"]


class BaseSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a zygote is made for; equal values share one zygote (and its warm children)."""

    project: str = "default"
    runtime: str = "process"
    image: str = ""
    """Content address of the image; empty: the platform's own environment."""
    context: str = ""
    """SHA-256 of the blob with the image's definition and its files; empty when ``image`` is."""
    preload: tuple[str, ...] = ()
    """Modules that must be preloaded: one that is not fork-safe is refused with the reason."""
    imports: tuple[str, ...] = ()
    """Modules preloaded when they are fork-safe, otherwise left out silently (but reported)."""
    loaded: LoadedBase | None = None
    """Set for ``snapshot="loaded"``: the endpoint that is loaded in this zygote."""
    network: str = ""
    """``none``, ``egress`` or ``host``; empty: what is usual for the runtime."""
    allow: tuple[str, ...] = ()
    """What ``egress`` reaches; empty: all public addresses."""


class LoadedBase(msgspec.Struct, frozen=True, kw_only=True):
    """The endpoint version whose ``load`` has run in the zygote."""

    endpoint: str
    version: int
    bundle: str
    entry: str
    env_hash: str
    handler: str = "class"
    env: tuple[tuple[str, str], ...] = ()
    """Environment that ``load`` sees; sorted pairs, so that equal bases are equal."""
    load_timeout_s: float = 600.0
    secrets: tuple[SecretRef, ...] = ()
    """What ``load`` sees beside it: a new version of one is another base."""


class Probe(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One question to an instance; `sdk.probes.Probe` says what each number means."""

    kind: Literal["health", "http", "tcp", "exec"] = "health"
    path: str = ""
    """For ``http``."""
    argv: tuple[str, ...] = ()
    """For ``exec``."""
    period_s: float = 10.0
    timeout_s: float = 5.0
    failure_threshold: int = 3
    success_threshold: int = 1
    initial_delay_s: float = 0.0
    jitter: float = 0.1
    lenient: bool = False
    """Silence counts only of an instance that has nothing to do, or is silent for longer than a request
    may take."""


class Probes(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a host asks an instance."""

    startup: Probe | None = None
    readiness: Probe | None = None
    liveness: Probe | None = Probe(lenient=True)


class WeightsSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Files that the host fetches, keeps and shows read-only as a directory."""

    source: str
    """``http(s)://``, ``s3://``, or a path of the host."""
    name: str
    """Of the directory that they appear in: ``/weights/<name>``, or ``$HEADRACE_WEIGHTS/<name>``."""
    sha256: str = ""


class InstanceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """All that a host needs to run an instance of one version."""

    endpoint: str
    """``project/name``."""
    version: int
    base: BaseSpec
    bundle: str
    entry: str
    handler: str
    snapshot: str = "imports"
    env: dict[str, str] = {}
    concurrency: int = 1
    batch_max_size: int = 0
    """0: no batching."""
    batch_max_wait_ms: float = 0.0
    timeout_s: float = 600.0
    load_timeout_s: float = 600.0
    cpu: float = 0.125
    memory: int = 256 << 20
    memory_limit: int | None = None
    cpu_limit: float | None = None
    gpu: tuple[tuple[str, int], ...] = ()
    max_body: int = 32 << 20
    secrets: tuple[SecretRef, ...] = ()
    weights: tuple[WeightsSpec, ...] = ()
    probes: Probes = Probes()


class StartTimings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an instance came up: durations in seconds, each from the end of the one before.

    ``claim_s``: wake received by control -> start command received by the host;
    ``boot_s``: warm child claimed or forked, or process started, and confined;
    ``import_s``: the user's module imported; ``load_s``: ``load`` and the first health check;
    ``total_s``: start command received by the host -> ready.
    """

    claim_s: float = 0.0
    boot_s: float = 0.0
    import_s: float = 0.0
    load_s: float = 0.0
    total_s: float = 0.0


class Death(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why an instance ended, told plainly."""

    reason: Literal[
        "stopped",
        "exited",
        "signalled",
        "oom",
        "load-failed",
        "import-failed",
        "start-timeout",
        "unhealthy",
        "stuck",
        "host-lost",
        "image-failed",
        "prepare-failed",
    ]
    """``image-failed``: the image cannot be built or pulled; ``prepare-failed``: the host cannot make the
    sandbox."""
    detail: str = ""
    """One line for people."""
    traceback: str = ""
    """Of the user's code, when its import or ``load`` raised."""
    exit_code: int | None = None
    signal: int | None = None
    log: tuple[str, ...] = ()
    """Its last lines, oldest first; some kilobytes at most."""


class InstanceUse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an instance uses, as last seen by its host; what grows does so from its start on."""

    at: float = 0.0
    cpu_s: float = 0.0
    """Processor time so far, seconds."""
    cpu: float = 0.0
    """Cores in use between the last two looks."""
    memory: int = 0
    """Bytes: proportional set size, or its cgroup's without the page cache that can go."""
    io_bytes: int | None = None
    """Read and written so far; None where the kernel does not count it."""
    processes: int | None = None
    """How many it has now; of a container, with their threads."""
    gpu: float | None = None
    """Busy part of its accelerators, 0 to 1 each, together; None when it has none or nobody can tell."""
    gpu_memory: int | None = None
    """Bytes in use on its accelerators."""


class InstanceReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The host's truth about one instance."""

    id: str
    endpoint: str
    version: int
    state: InstanceState
    runtime: str = "process"
    pid: int = 0
    address: str = ""
    """``unix:/path`` or ``tcp:host:port``."""
    token: str = ""
    tier: Tier = "forked"
    concurrency: int = 1
    started_at: float = 0.0
    timings: StartTimings = StartTimings()
    gpu: tuple[tuple[str, int], ...] = ()
    """The accelerators that it has: (model, count)."""
    death: Death | None = None
    note: str = ""
    """For people: for example why ``snapshot="loaded"`` fell back to ``imports``."""
    unready: str = ""
    """Set while its readiness probe fails: why. It lives, and takes no new requests."""


class WarmReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One zygote on a host."""

    base: BaseSpec
    pid: int = 0
    state: Literal["starting", "ready", "failed"] = "starting"
    spares: int = 0
    bytes: int = 0
    """Memory of all of it."""
    refill_s: float | None = None
    """Seconds that its last spare took to make."""
    refused: dict[str, str] = {}
    """Module -> why it could not be preloaded."""
    detail: str = ""
    unprepared: bool = False
    """Its image is not here: ``starting`` while it is made (``detail``: how far), or ``failed``."""


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """What a host can hand out in all."""

    cpu: float
    memory: int
    gpu: dict[str, int] = {}
