"""Values that cross the runtime contract: plain frozen dataclasses; a runtime needs no other package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from headrace_runtimes.budget import Budget

if TYPE_CHECKING:
    from headrace_runtimes.instance.logs import LogStore

Tier = Literal["warm", "forked", "cached", "cold"]
ExitReason = Literal[
    "stopped",
    "exited",
    "signalled",
    "oom",
    "load-failed",
    "import-failed",
    "start-timeout",
    "unhealthy",
    "stuck",
]
"""``stuck``: it ended on purpose, since what was cancelled in it did not."""
SandboxState = Literal["created", "waiting", "starting", "ready", "paused", "ended"]
"""``created``: made, nothing runs; ``waiting``: the engine waits for its assignment."""
SANDBOX_MOVES: Mapping[SandboxState, frozenset[SandboxState]] = {
    "created": frozenset({"waiting", "ended"}),
    "waiting": frozenset({"starting", "ended"}),
    "starting": frozenset({"ready", "ended"}),
    "ready": frozenset({"paused", "ended"}),
    "paused": frozenset({"ready", "ended"}),
    "ended": frozenset(),
}
"""The legal moves of a sandbox; an illegal one raises `WrongState`."""
Capability = Literal[
    "isolation", "images", "limits", "networks", "devices", "exec", "pause", "fork", "checkpoint"
]
"""What a runtime may be able to do, beside running code:

- ``isolation``: namespaces of its own, no capabilities, a system call filter: for code of strangers;
- ``images``: a root file system from an image; ``limits``: memory, CPU, processes, IO held by the kernel;
- ``networks``: ``none`` and ``egress`` beside ``host``; ``devices``: accelerators made visible one by one;
- ``exec``: a command in a living sandbox; ``pause``: freezing; ``fork``: spares share what was loaded once;
- ``checkpoint``: a loaded instance kept on disk and brought back.
"""
CAPABILITIES: tuple[Capability, ...] = (
    "isolation", "images", "limits", "networks", "devices", "exec", "pause", "fork", "checkpoint",
)  # fmt: skip


@dataclass(frozen=True)
class RuntimeSettings:
    """Where a runtime may work and what it may use. Given once, to ``open``."""

    run_dir: Path
    """Own directory for sockets and sandboxes (created by the runtime, mode 0711); swept at open."""
    engine_dir: Path
    """The directory of the in-sandbox engine (``engines/python``), standard library only."""
    python: str
    """Interpreter of the platform's own environment."""
    zygote_bytes: int
    """Byte budget of all zygotes together."""
    log_dir: Path
    """Where each sandbox's output is kept."""
    log_bytes: int = 8 << 20
    logs: LogStore | None = None
    """One for all runtimes of a host, so that an endpoint's lines have one numbering; the host closes it."""
    first_uid: int = 870_000
    """Sandboxes get uids of their own from here on (when root)."""
    uid_count: int = 10_000
    hide: tuple[Path, ...] = ()
    """Paths that no sandbox may see even when it shares our uid (the host passes the data directory)."""
    uid_lock_dir: Path | None = None
    """Where hosts on one machine agree on their uids by locks; None: ``/run/headrace/uids``."""
    images_dir: Path | None = None
    """Where images are kept across restarts; None: below ``run_dir``."""
    images_bytes: int = 50 << 30
    """How much a runtime may keep beside that: in a daemon."""
    cgroup_parent: Path | None = None
    """A cgroup directory that is delegated to us; None: looked for, else memory is polled."""
    checkpoints_dir: Path | None = None
    """Where checkpoints are kept across restarts, readable by nobody else; None: below ``run_dir``."""
    budget: Budget | None = None
    """One for all runtimes of a host, in place of ``zygote_bytes``; None: nobody else has a part of it."""
    build_allow: tuple[str, ...] | None = None
    """What steps of image builds reach beside public addresses, as in `Network.allow`; None: as the host."""
    allow_host_network: bool = False
    """Whether ``Network("host")`` is given to containers: it takes the walls to the host's services away."""


NetworkMode = Literal["none", "host", "egress"]


@dataclass(frozen=True)
class Network:
    """What a sandbox may reach. Metadata addresses of clouds are never reached, whatever it says."""

    mode: NetworkMode = "egress"
    """``none``: loopback only; ``host``: the host's own network; ``egress``: out through the host."""
    allow: tuple[str, ...] = ()
    """For ``egress``: host names (also ``*.name``), addresses and networks that may be reached; ``*`` or
    nothing: all public ones. Private addresses and the host's own are reached only when they, or the name
    that leads to them, are in the list itself."""


@dataclass(frozen=True)
class LoadedEndpoint:
    """For ``snapshot="loaded"``: the endpoint that the base itself loads before it is forked."""

    endpoint: str
    version: int
    code_dir: Path
    entry: str
    handler: str
    env: Mapping[str, str] = field(default_factory=dict)
    load_timeout_s: float = 600.0
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """As `Assignment.secrets`; their versions are in the key of the base."""
    secrets_env: tuple[str, ...] = ()


@dataclass(frozen=True)
class Base:
    """A prepared environment that sandboxes start from; for ``process`` a zygote. ``key`` identifies it."""

    key: str
    preload: tuple[str, ...] = ()
    """Must be preloaded; not fork-safe is reported in ``BaseStatus.refused``."""
    imports: tuple[str, ...] = ()
    """Preloaded when fork-safe."""
    loaded: LoadedEndpoint | None = None
    image: str = ""
    """Digest of the image's definition, which `Runtime.prepare` was given; empty: the runtime's own."""
    network: Network = Network()


@dataclass(frozen=True)
class BaseStatus:
    """What became of a base."""

    key: str
    state: Literal["starting", "ready", "failed"]
    pid: int = 0
    spares: int = 0
    bytes: int = 0
    """Proportional set size of the zygote and its spares."""
    refill_s: float | None = None
    """Seconds that it took to make the last spare; None: none was made."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Module -> reason."""
    loaded: bool = False
    """Whether ``load`` has run in it; if asked for and False, ``detail`` says why not."""
    detail: str = ""


@dataclass(frozen=True)
class Assignment:
    """What turns a sandbox into an instance."""

    id: str
    endpoint: str
    version: int
    code_dir: Path
    """Unpacked bundle, read-only."""
    entry: str
    """``module:qualname``."""
    handler: str
    token: str
    env: Mapping[str, str] = field(default_factory=dict)
    concurrency: int = 1
    batch_max_size: int = 0
    batch_max_wait_ms: float = 0.0
    timeout_s: float = 600.0
    load_timeout_s: float = 600.0
    memory_limit: int | None = None
    max_body: int = 32 << 20
    fresh: bool = False
    """``snapshot="none"``: a new process, nothing inherited."""
    probed: bool = False
    """Whoever assigns asks its ``health`` until it passes: a no right after ``load`` fails no start."""
    gpu_indices: tuple[int, ...] = ()
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Files below ``$HEADRACE_SECRETS``, name -> content."""
    secrets_env: tuple[str, ...] = ()
    """Those of ``secrets`` that are variables as well."""
    cpu_limit: float | None = None
    """Cores."""
    pids_limit: int | None = None
    disk_limit: int | None = None
    """Bytes that it may write, all places together."""
    io_limit: int | None = None
    """Bytes per second, each for reading and writing."""
    mounts: tuple[tuple[Path, str], ...] = ()
    """Directories of the host that appear read-only at a path of the sandbox: weights."""


@dataclass(frozen=True)
class SandboxSpec:
    """What `Runtime.create` makes. ``id`` is the caller's: 1-64 letters, digits and ``. _ -``."""

    id: str
    base: Base
    fresh: bool = False


@dataclass(frozen=True)
class Ran:
    """What a command in a sandbox did. Output is cut at 1 MiB each."""

    code: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True)
class Owned:
    """Something on this machine that belongs to this runtime's directory: for reconciling and for tests."""

    kind: Literal["process", "container", "mount", "cgroup", "interface", "socket", "directory"]
    name: str


@dataclass(frozen=True)
class Timings:
    """Durations in seconds, each from the end of the one before; ``total`` from claim to ready."""

    boot: float
    imported: float
    load: float
    total: float


@dataclass(frozen=True)
class Exit:
    """How a sandbox ended."""

    reason: ExitReason
    detail: str = ""
    traceback: str = ""
    code: int | None = None
    signal: int | None = None
    log: tuple[str, ...] = ()
    """Its last lines, oldest first; some kilobytes at most."""


@dataclass(frozen=True)
class Stats:
    """Use of resources now, by all of its processes."""

    rss: int
    """Proportional set size, bytes."""
    cpu_s: float
    in_flight: int | None = None
    io_bytes: int | None = None
    """Read and written, where the kernel counts it."""
    stopped: bool = False
    """Its main process was stopped by a signal (SIGSTOP): it does nothing until it is continued."""
    processes: int | None = None
    """How many it has; with their threads where the kernel counts those."""


@dataclass(frozen=True)
class LogLine:
    """One line of output."""

    at: float
    sandbox: str
    endpoint: str
    stream: Literal["stdout", "stderr", "system"]
    text: str
