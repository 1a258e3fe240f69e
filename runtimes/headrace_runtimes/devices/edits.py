"""What a container is given of a device: nodes, mounts, hooks, variables; and how engines are told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

_T = TypeVar("_T")

HookName = Literal["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]
HOOK_NAMES: tuple[HookName, ...] = (
    "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop",
)  # fmt: skip
JOINED = frozenset({"LD_LIBRARY_PATH", "PATH"})
"""Variables whose values are lists: what is added stands before what was there."""


@dataclass(frozen=True)
class Node:
    """A device node: where the container sees it, where the host has it, and what it is to the kernel."""

    path: str
    host: str
    kind: Literal["c", "b"]
    major: int
    minor: int
    access: str = "rw"
    """Of ``r`` and ``w``; making nodes (``m``) is never allowed."""

    @property
    def rule(self) -> str:
        """As cgroup v1 wants it in ``devices.allow``."""
        return f"{self.kind} {self.major}:{self.minor} {self.access}"


@dataclass(frozen=True)
class Bind:
    """A file or directory of the host at a path of the container."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True)
class Hook:
    """A program that the low-level runtime runs, as root, at a moment of a container's life."""

    name: HookName
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout_s: int | None = None


@dataclass(frozen=True)
class Edits:
    """All that is added to a container."""

    nodes: tuple[Node, ...] = ()
    binds: tuple[Bind, ...] = ()
    hooks: tuple[Hook, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    def __add__(self, other: Edits) -> Edits:
        """Both, without what is in both; a later variable wins, a list grows."""
        return Edits(
            nodes=_once((*self.nodes, *other.nodes)),
            binds=_once((*self.binds, *other.binds)),
            hooks=_once((*self.hooks, *other.hooks)),
            env=join_env(self.env, other.env),
        )


def _once(items: Sequence[_T]) -> tuple[_T, ...]:
    return tuple(dict.fromkeys(items))


def join_env(env: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """``env`` with ``more``; of a list, the entries of ``more`` come first."""
    joined = dict(env)
    for name, value in more.items():
        if name in JOINED:
            # An empty entry would mean the working directory.
            listed = [*value.split(":"), *joined.get(name, "").split(":")]
            joined[name] = ":".join(_once([entry for entry in listed if entry]))
        else:
            joined[name] = value
    return joined


def oci_rules(nodes: Sequence[Node]) -> list[dict[str, Any]]:
    """``linux.resources.devices`` of the OCI runtime specification."""
    return [
        {"allow": True, "type": n.kind, "major": n.major, "minor": n.minor, "access": n.access} for n in nodes
    ]


def into_oci(configuration: Mapping[str, Any], edits: Edits) -> dict[str, Any]:
    """A copy of an OCI ``config.json`` with the edits in it. The order of hooks is kept."""
    process, linux = dict(configuration["process"]), dict(configuration["linux"])
    words = (entry.partition("=") for entry in process.get("env", ()))
    process["env"] = [f"{k}={v}" for k, v in join_env({k: v for k, _, v in words}, edits.env).items()]
    mounts = [*configuration.get("mounts", ()), *(_oci_mount(bind) for bind in edits.binds)]
    hooks = {name: list(hooks) for name, hooks in configuration.get("hooks", {}).items()}
    for hook in edits.hooks:
        entry: dict[str, Any] = {"path": hook.path}
        if hook.args:
            entry["args"] = list(hook.args)
        if hook.env:
            entry["env"] = list(hook.env)
        if hook.timeout_s is not None:
            entry["timeout"] = hook.timeout_s
        hooks.setdefault(hook.name, []).append(entry)
    if edits.nodes:
        resources = dict(linux.get("resources", {}))
        resources["devices"] = [*resources.get("devices", ()), *oci_rules(edits.nodes)]
        linux["resources"] = resources
        linux["devices"] = [
            *linux.get("devices", ()),
            *(
                {"path": n.path, "type": n.kind, "major": n.major, "minor": n.minor, "fileMode": 0o666}
                for n in edits.nodes
            ),
        ]
    made = dict(configuration) | {"process": process, "linux": linux, "mounts": mounts}
    return made | {"hooks": hooks} if hooks else made


def _oci_mount(bind: Bind) -> dict[str, Any]:
    options = ["rbind", "ro" if bind.read_only else "rw", "nosuid", "nodev"]
    return {"destination": bind.target, "type": "bind", "source": bind.source, "options": options}


def into_docker(host_config: Mapping[str, Any], edits: Edits) -> dict[str, Any]:
    """A copy of Docker's ``HostConfig`` with the edits' nodes and mounts in it.

    Its variables go into ``Env`` beside ``HostConfig`` (`join_env`). Docker runs no hooks for others: a
    device that needs them is asked for by `by_name`.
    """
    made = dict(host_config)
    if edits.nodes:
        made["Devices"] = [
            *made.get("Devices", ()),
            *(
                {"PathOnHost": n.host, "PathInContainer": n.path, "CgroupPermissions": n.access}
                for n in edits.nodes
            ),
        ]
    if edits.binds:
        made["Mounts"] = [
            *made.get("Mounts", ()),
            *(
                {"Type": "bind", "Source": b.source, "Target": b.target, "ReadOnly": b.read_only}
                for b in edits.binds
            ),
        ]
    return made


def by_name(host_config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A copy of Docker's ``HostConfig`` that asks for devices by their CDI names; Engine 25 and later."""
    if not names:
        return dict(host_config)
    request = {"Driver": "cdi", "DeviceIDs": list(names)}
    return dict(host_config) | {"DeviceRequests": [*host_config.get("DeviceRequests", ()), request]}
