"""What we ask Docker for, as pure functions of what a container is for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace_runtimes.containers.driver import CODE, DOOR_DIR, ENGINE, HOME, SECRETS, ContainerSpec
from headrace_runtimes.devices.edits import Edits, Node, into_docker, join_env
from headrace_runtimes.images.limits import CORE_BYTES
from headrace_runtimes.oci.bundle import MASKED, PATH, READ_ONLY

RUN_LABEL = "headrace.run"
ID_LABEL = "headrace.id"
IMAGE_LABEL = "headrace.image"
"""Of images that we have put into a daemon. With `RUN_LABEL` too they are one runtime's, and go with it."""
OWN_DIR = "/headrace"
WEIGHTS_DIR = "/weights"
"""Directories of the host can be shown below it at the assignment: the root itself takes no new places."""
DISK_PLACES = {HOME: "home", "/tmp": "tmp", "/var/tmp": "vartmp"}  # noqa: S108 - of the container
"""Where its disk appears, and what that part of the disk is called. Nothing else can be written."""


@dataclass(frozen=True)
class Place:
    """Where things are on the host, and what the sandbox runs as."""

    engine: str
    disk: str
    uid: int
    cgroup_parent: str
    tag: str
    """Of the runtime's directory."""
    seccomp: Mapping[str, Any] | None = None
    volumes: Sequence[str] = ()
    """Places of the image that it says must be writable."""
    remapped: bool = False
    """Whether the daemon shifts ids unless told otherwise."""
    resolv: str = ""
    """The file that says who knows names; empty: Docker's."""
    edits: Edits = field(default_factory=Edits)
    """What accelerators need from the creation on; Docker runs no hooks."""
    later: Sequence[Node] = ()
    """Devices that it may be assigned, where nothing can be allowed afterwards; it sees none of them yet."""


def creation(spec: ContainerSpec, place: Place) -> dict[str, Any]:
    """The body of ``POST /containers/create``."""
    owned = f"uid={place.uid},gid={place.uid}"
    options = ["no-new-privileges:true"]
    if place.seccomp is not None:
        options.append(f"seccomp={json.dumps(dict(place.seccomp))}")
    host: dict[str, Any] = {
        "ReadonlyRootfs": True, "CapDrop": ["ALL"], "SecurityOpt": options, "Privileged": False,
        "NetworkMode": "host" if spec.network.mode == "host" else "none",
        "IpcMode": "private", "CgroupnsMode": "private", "PublishAllPorts": False,
        "MaskedPaths": list(MASKED), "ReadonlyPaths": list(READ_ONLY), "OomScoreAdj": 100,
        "Ulimits": [{"Name": "core", "Soft": CORE_BYTES, "Hard": CORE_BYTES}], "ShmSize": 64 << 20,
        "CgroupParent": place.cgroup_parent,
        # What its first process says before anybody listens; afterwards it says nothing.
        "LogConfig": {"Type": "local", "Config": {"max-size": "64k", "max-file": "1", "compress": "false"}},
        "RestartPolicy": {"Name": "no"}, "AutoRemove": False, "Init": False,
        "Tmpfs": {
            OWN_DIR: "rw,nosuid,nodev,noexec,size=64k,mode=755",
            WEIGHTS_DIR: "rw,nosuid,nodev,noexec,size=64k,mode=755",
            CODE: "ro,nosuid,nodev,noexec,size=4k,mode=755",
            # Docker shows the cgroups of the machine there.
            "/sys/fs/cgroup": "ro,nosuid,nodev,noexec,size=4k,mode=755",
            SECRETS: f"rw,nosuid,nodev,noexec,size=4m,mode=700,{owned}",
        },
        "Mounts": [
            _bind(place.engine, ENGINE, read_only=True),
            _bind(str(spec.door_dir), DOOR_DIR, read_only=True),
            *(_bind(f"{place.disk}/{name}", target) for target, name in disk_places(place.volumes).items()),
            *(_bind(str(source), target, read_only=True) for source, target in spec.root.binds),
        ],
        "DeviceCgroupRules": [node.rule for node in place.later],
    }  # fmt: skip
    if place.resolv:
        host["Mounts"].append(_bind(place.resolv, "/etc/resolv.conf", read_only=True))
    if place.remapped:
        # All of them would share one range: ids of the host that are one's own are more.
        host["UsernsMode"] = "host"
    return {
        "Image": spec.root.reference, "Entrypoint": list(spec.argv[:1]), "Cmd": list(spec.argv[1:]),
        "Env": environment(join_env(spec.env, place.edits.env)), "User": f"{place.uid}:{place.uid}",
        "WorkingDir": "/",
        "Hostname": "sandbox", "Tty": False, "OpenStdin": False, "AttachStdout": False,
        "AttachStderr": False, "NetworkDisabled": False, "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGTERM", "Labels": {RUN_LABEL: place.tag, ID_LABEL: spec.id},
        "HostConfig": into_docker(host, place.edits),
    }  # fmt: skip


def disk_places(volumes: Sequence[str]) -> dict[str, str]:
    """Where the disk appears in the container -> the directory on it."""
    more = {path: f"volume{n}" for n, path in enumerate(volumes) if path not in DISK_PLACES and path != "/"}
    return DISK_PLACES | more


def execution(argv: Sequence[str], env: Mapping[str, str], uid: int) -> dict[str, Any]:
    """The body of ``POST /containers/{id}/exec``."""
    return {
        "AttachStdin": False, "AttachStdout": True, "AttachStderr": True, "Tty": False, "Privileged": False,
        "Cmd": list(argv), "Env": environment(env), "User": f"{uid}:{uid}", "WorkingDir": HOME,
    }  # fmt: skip


def environment(env: Mapping[str, str]) -> list[str]:
    """As Docker wants it."""
    return [f"{name}={value}" for name, value in ({"PATH": PATH} | dict(env)).items()]


def _bind(source: str, target: str, *, read_only: bool = False) -> dict[str, Any]:
    return {
        "Type": "bind", "Source": source, "Target": target, "ReadOnly": read_only,
        "BindOptions": {"Propagation": "rprivate"},
    }  # fmt: skip
