"""Settings of the platform: one frozen object, read once at a process's edge.

Command line over ``HEADRACE_*`` environment over ``headrace.toml`` over the defaults here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from headrace_autoscaler.configs import DemandConfig, KeepConfig

from headrace.errors import SettingsError, SpecError
from headrace.sdk.network import Network

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Amount = Annotated[int, msgspec.Meta(ge=0)]
LogLevel = Literal["debug", "info", "warning", "error"]
DEFAULT_URL = "http://127.0.0.1:8700"
Check = Callable[["Settings"], tuple[str, str] | None]
"""The first setting that cannot work here, and why; None: all can. Blocks."""
UNIX_PATH_BOUND = 104
"""Bytes of a unix socket's path that work everywhere (Linux takes 107)."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one platform needs to know before it starts. Paths are absolute, times in seconds."""

    data_dir: str = "~/.headrace"
    host: str = "127.0.0.1"
    port: Port = 8700
    control_port: Port = 8701
    """TCP port of control for hosts on other nodes; 0 means any free port (dev)."""
    gateways: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    ray_port: Annotated[int, msgspec.Meta(ge=0, le=9999)] = 6399
    """Below 10000: higher ones belong to Ray's workers."""
    address: str = ""
    """An existing Ray cluster to join; empty: start one here."""
    run_dir: str = ""
    """Sockets and working directories of instances; empty: chosen from ``data_dir``."""
    images_dir: str = ""
    """Images of endpoints, kept across restarts; empty: one place for all platforms of a user."""
    images_bytes: Amount = 50 << 30
    """Bytes of layers, and as many of Python environments, that are kept when nobody uses them just now."""
    runtimes: str = "auto"
    """Runtimes that hosts offer, such as ``process,oci``; ``auto``: all that can work on their machine."""
    oci_binary: str = ""
    """The program that makes containers for ``oci``, a name or a path; empty: runc, crun or youki."""
    criu: str = ""
    """The CRIU that keeps loaded containers on disk, a path; empty: the environment's, or the system's."""
    python_image: str = "docker.io/library/python:{version}-slim"
    """What ``Image.python`` starts from in containers where hosts' own is not enough; empty: refused."""
    build_allow: str = ""
    """Private hosts and networks that steps of image builds reach; ``host``: all that the host does."""
    allow_host_network: bool = False
    """Whether endpoints in containers may have ``network="host"``: they reach the host's services then."""
    keyless: bool = False
    """``headrace dev``: no key needed, loopback and same origin only."""
    spares: Annotated[int, msgspec.Meta(ge=0, le=64)] = 2
    """Pre-forked children per zygote, at least."""
    zygote_memory_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.25
    """Part of the host's memory that zygotes may use."""
    gateway_body_bytes: Amount = 512 << 20
    """Request bodies held by one gateway in all."""
    log_bytes: Amount = 8 << 20
    """Of one log file; the last three are kept of each endpoint on a host."""
    drain_grace: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 30.0
    budget: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """Dollars per hour that the instances of all endpoints together may cost; None: no limit."""
    host_price: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 0.0
    """Dollars per hour of a host whose node has no label ``headrace.price``; 0: it is paid for anyway."""
    late_s: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = KeepConfig().late_s
    """What a late request costs, in seconds of an instance: more costs more, and fewer wait."""
    wait_goal: Annotated[float, msgspec.Meta(gt=0, le=86400)] = DemandConfig().goal_s
    """Who waits for longer than this is late; waiting less is worth nothing to the autoscaler."""
    wait_share: Annotated[float, msgspec.Meta(ge=0, le=0.9999)] = KeepConfig().share
    """So many of an endpoint's requests shall not be late; 0: ``late_s`` alone decides."""
    store: str = ""
    """Where jobs are kept: empty for SQLite in ``data_dir``, or ``postgresql://...``."""
    blobs: str = ""
    """Large inputs and outputs: empty for ``data_dir``, or ``s3://bucket/prefix``."""
    webhook_private: bool = False
    """Whether webhooks may go to private, loopback and link-local addresses."""
    webhook_ca: str = ""
    """PEM file of authorities that may have signed receivers' certificates, beside those of the system."""
    weights_dir: str = ""
    """Where hosts keep fetched weights, across restarts; empty: chosen from ``data_dir``."""
    weights_bytes: Amount = 100 << 30
    """Disk that fetched weights may use on a host; what was used longest ago goes first."""
    weights_memory: Annotated[float, msgspec.Meta(ge=0, le=0.9)] = 0.25
    """Part of the host's memory that holds the files of weights used last, so that no disk is read."""
    weights_allow: str = ""
    """Sources beside public http(s) addresses that endpoints may name: prefixes, separated by commas,
    for example ``/srv/models,s3://models/``."""
    weights_private: bool = False
    """Whether weights may come from private, loopback and link-local addresses."""
    paused_memory: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.25
    """Part of the host's memory that paused instances may hold; 0: none is paused."""
    pause_accelerators: bool = False
    """Whether instances with accelerators are paused: their device memory stays taken."""
    log_level: LogLevel = "info"

    @property
    def data(self) -> Path:
        """The data directory."""
        return Path(self.data_dir)

    @property
    def control_socket(self) -> Path:
        """Control's unix socket: in the data directory, or the run directory when that path is too long."""
        path = self.data / "control.sock"
        return path if len(os.fsencode(path)) < UNIX_PATH_BOUND else self.run / "control.sock"

    @property
    def weights(self) -> Path:
        """Fetched weights. Instances read there, so it is not in the data directory, which is closed."""
        return Path(self.weights_dir) if self.weights_dir else default_weights_dir(self.data)

    @property
    def weights_prefixes(self) -> tuple[str, ...]:
        """``weights_allow`` as a list."""
        return tuple(part.strip() for part in self.weights_allow.split(",") if part.strip())

    @property
    def run(self) -> Path:
        """The run directory: sockets, unpacked bundles, instance directories. Empty after a stop."""
        return Path(self.run_dir)

    @property
    def images(self) -> Path:
        """Where images are kept."""
        return Path(self.images_dir) if self.images_dir else default_images_dir()


def load_settings(
    cli: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    toml: Path | None = None,
    *,
    starting: bool = False,
    finding: bool = False,
    check: Check | None = None,
) -> Settings:
    """Merge the sources. Raises `SettingsError` naming the source and the setting.

    ``cli`` values that are None were not given. ``toml`` defaults to ``headrace.toml`` in the
    current directory, when there is one. ``starting``: files that the platform reads at its start must be
    there. ``finding``: the caller only looks for a platform (`headrace down`, a client): a wrong value that
    does not say where it is counts as not given, and what starts with it is told. ``check`` finds the first
    setting that cannot work on this machine, and why.
    """
    environ = os.environ if environ is None else environ
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    path = toml or Path("headrace.toml")
    if path.is_file():
        try:
            table = tomllib.loads(path.read_text())
        except (tomllib.TOMLDecodeError, OSError) as error:
            raise SettingsError(f"{path}: {error}.", hint="Correct the file or remove it.") from error
        # `[bundle]` in the same file is about the project's code (headrace.sdk.bundle), no setting.
        table.pop("bundle", None)
        _take(merged, sources, table, lambda name: f"{path}: {name}", finding=finding)
    fields = {f.name for f in msgspec.structs.fields(Settings)}
    given = {name: environ.get(f"HEADRACE_{name.upper()}") for name in fields}
    from_env = {name: value for name, value in given.items() if value}
    _take(merged, sources, from_env, lambda name: f"HEADRACE_{name.upper()}", finding=finding)
    given_here = {k: v for k, v in (cli or {}).items() if v is not None}
    _take(merged, sources, given_here, lambda name: f"--{name.replace('_', '-')}", finding=finding)
    if starting:
        _check_start(merged, sources)
    data = Path(merged.get("data_dir", Settings.__struct_defaults__[0])).expanduser().absolute()
    merged["data_dir"] = str(data)
    if not merged.get("run_dir"):
        merged["run_dir"] = str(default_run_dir(data))
    settings = msgspec.convert(merged, Settings)
    if check is not None and (wrong := check(settings)) is not None:
        name, why = wrong
        raise _refused(sources.get(name, name), getattr(settings, name), why)
    return settings


def _take(
    merged: dict[str, Any],
    sources: dict[str, str],
    values: Mapping[str, Any],
    source: Callable[[str], str],
    *,
    finding: bool,
) -> None:
    """Convert one source's values, each by itself, so that an error names it. They win over earlier ones."""
    for name, value in values.items():
        known = name in Settings.__struct_fields__
        try:
            found = getattr(msgspec.convert({name: value}, Settings, strict=False), name)
            why = wrong_address(name, found) or _wrong_template(name, found) or _wrong_form(name, found)
        except msgspec.ValidationError as error:
            why = _why_wrong(name, error)
        if why:
            # What is unknown may be a data directory in other letters: that of another platform is no answer.
            if finding and known and name not in _PLACE:
                continue
            # Addresses may hold a password.
            raise _refused(source(name), value if known and name not in _ADDRESSES else "", why)
        merged[name], sources[name] = found, source(name)


def _refused(source: str, value: object, why: str) -> SettingsError:
    shown = f"={str(value)[:80]}" if value != "" else ""
    return SettingsError(f"{source}{shown}: {why}.", hint="`headrace up --help` lists the settings.")


_PLACE = ("data_dir", "run_dir")
"""Settings that say where a platform is."""
_ADDRESSES = {
    "store": (r"postgres(ql)?://.*", "postgresql://user@host/database", "SQLite in the data directory"),
    "blobs": (r"s3://[^/?#@]+(/[^?#]*)?", "s3://bucket/prefix", "a directory in the data directory"),
}
"""Setting -> what its values look like, an example, and what an empty one means."""
_LISTS = ("build_allow", "weights_allow")
_SOURCES = ("/", "s3://", "http://", "https://")
EXTRAS = {"store": ("asyncpg", "postgres"), "blobs": ("boto3", "s3")}
"""Setting -> the package that any value of it needs, and the extra that has it."""


def wrong_address(name: str, value: str) -> str:
    """Why ``value`` cannot be the setting ``store`` or ``blobs``, without showing what may be a password.

    Empty: it can, or ``name`` is another setting.
    """
    if name not in _ADDRESSES or not value:
        return ""
    pattern, example, default = _ADDRESSES[name]
    if re.fullmatch(pattern, value):
        return ""
    return f"not an address like {example}; leave it empty for {default}"


def _wrong_template(name: str, value: str) -> str:
    if name != "python_image" or not value or "{version}" in value:
        return ""
    return "it does not hold {version}, as in docker.io/library/python:{version}-slim"


def _wrong_form(name: str, value: Any) -> str:
    """Why lists and directories cannot be meant so; what is in their places is seen when they are used."""
    if name in {"images_dir", "weights_dir"} and value and not Path(value).is_absolute():
        return "use an absolute path"
    parts = [part for part in map(str.strip, value.split(",")) if part] if name in _LISTS else []
    if name == "weights_allow" and (wrong := [part for part in parts if not part.startswith(_SOURCES)]):
        return f"{wrong[0]!r:.60} is no absolute path and does not begin with s3://"
    if name == "build_allow" and parts != ["host"]:
        if "host" in parts:
            return "host is all that the host reaches: name nothing beside it"
        try:
            Network("egress", tuple(parts) or ("*",))
        except SpecError as error:
            return error.message.partition("]): ")[2].rstrip(".")
    return ""


def _why_wrong(name: str, error: msgspec.ValidationError) -> str:
    if name not in Settings.__struct_fields__:
        return "there is no such setting"
    if name == "log_level":
        *others, last = get_args(LogLevel)
        return f"use {', '.join(others)} or {last}"
    return str(error).partition(" - at ")[0]


def _check_start(merged: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    """What would end each gateway, and let it be started again and again."""
    if why := _unreadable_ca(merged.get("webhook_ca", "")):
        raise SettingsError(
            f"{sources['webhook_ca']}={merged['webhook_ca']}: {why}.",
            hint="Name a PEM file with one or more certificates.",
        )
    for name, (package, extra) in EXTRAS.items():
        if merged.get(name) and not _installed(package):
            raise missing_extra(sources[name], package, extra)


def missing_extra(option: str, package: str, extra: str) -> SettingsError:
    """An option needs a package that is not there."""
    return SettingsError(
        f"{option} needs the package {package}.", hint=f"Install it: pip install 'headrace[{extra}]'."
    )


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # taken out of sys.modules by somebody
        return False


def _unreadable_ca(path: str) -> str:
    """Why certificates cannot be read from ``path``; empty: they can, or there is no path."""
    if not path:
        return ""
    import ssl  # noqa: PLC0415 - only a start with this setting needs it

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except ssl.SSLError:
        return "it holds no certificate"
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


def default_run_dir(data: Path) -> Path:
    """A short path (unix sockets!) that is the same for the same data directory."""
    digest = hashlib.sha256(str(data).encode()).hexdigest()[:10]
    if os.geteuid() == 0:
        return Path("/run/headrace") / digest
    return Path("/tmp") / f"headrace-{os.geteuid()}-{digest}"  # noqa: S108 - created 0711, owner checked


def default_weights_dir(data: Path) -> Path:
    """A lasting path that is the same for the same data directory."""
    digest = hashlib.sha256(str(data).encode()).hexdigest()[:10]
    if os.geteuid() == 0:
        return Path("/var/lib/headrace") / digest / "weights"
    return Path("~/.cache/headrace").expanduser() / digest / "weights"


def default_images_dir() -> Path:
    """One place for all platforms of a user: what is in it is named by content.

    Neither below the data directory, which is private while instances under uids of their own must read their
    environment, nor below the run directory, which is emptied at every stop.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/headrace/images")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace/images"


def client_url(environ: Mapping[str, str] | None = None) -> str:
    """Where clients and the command line find the platform."""
    environ = os.environ if environ is None else environ
    return environ.get("HEADRACE_URL", DEFAULT_URL).rstrip("/")
