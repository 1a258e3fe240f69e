"""The configuration of one container, as a pure function of what it is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace_runtimes.containers.driver import CODE, DOOR_DIR, ENGINE, SECRETS, ContainerSpec
from headrace_runtimes.devices.edits import Edits, Node, into_oci, oci_rules
from headrace_runtimes.images.limits import CORE_BYTES
from headrace_runtimes.oci.slots import ID_COUNT

CAPABILITY_SETS = ("bounding", "effective", "permitted", "inheritable", "ambient")
MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
    "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/proc/interrupts", "/sys/firmware",
    "/sys/devices/virtual/powercap",
)  # fmt: skip
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
TERMINALS = 256
"""Pseudo terminals: without a limit one sandbox takes those of the whole machine."""
PIDS_LIMIT = 1024
"""Processes and threads, when nobody says otherwise."""
CRIU_CONFIG = "criu.conf"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Place:
    """Where things are on the host, and what its sandbox runs as."""

    root: Path
    engine: Path
    cgroup: str
    uid: int
    """The host's uid of the container's uid 0."""
    seccomp: Mapping[str, Any] | None = None
    edits: Edits = field(default_factory=Edits)
    """What accelerators need from the creation on."""
    later: Sequence[Node] = ()
    """Devices that it may be assigned, where nothing can be allowed afterwards; it sees none of them yet."""


def configuration(spec: ContainerSpec, place: Place) -> dict[str, Any]:
    """``config.json`` of the OCI runtime specification, version 1.0.2."""
    mapping = [{"containerID": 0, "hostID": place.uid, "size": ID_COUNT}]
    namespaces: list[dict[str, Any]] = [
        {"type": kind} for kind in ("pid", "ipc", "uts", "mount", "user", "cgroup")
    ]
    if spec.network.mode != "host":
        # Of its own user namespace: in another's it could neither see /sys nor be entered by a command.
        namespaces.append({"type": "network"})
    linux: dict[str, Any] = {
        "namespaces": namespaces, "uidMappings": mapping, "gidMappings": mapping,
        "maskedPaths": list(MASKED), "readonlyPaths": list(READ_ONLY),
        "cgroupsPath": place.cgroup, "rootfsPropagation": "private",
        "resources": {
            "pids": {"limit": PIDS_LIMIT},
            "devices": [{"allow": False, "access": "rwm"}, *oci_rules(place.later)],
        },
    }  # fmt: skip
    if place.seccomp is not None:
        linux["seccomp"] = dict(place.seccomp)
    made: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "hostname": "sandbox",
        "process": process_of(spec.argv, spec.env, "/"),
        "root": {"path": str(place.root), "readonly": False},
        "mounts": _mounts(spec, place),
        "linux": linux,
        # What criu is told beyond runc's words, where a checkpoint is made.
        "annotations": {"org.criu.config": str(place.root.parent / CRIU_CONFIG)},
    }  # fmt: skip
    return into_oci(made, place.edits)


def process_of(argv: Sequence[str], env: Mapping[str, str], cwd: str) -> dict[str, Any]:
    """``process`` of the specification: root of its own namespace, without a capability, for good."""
    return {
        "terminal": False, "user": {"uid": 0, "gid": 0}, "args": list(argv), "cwd": cwd,
        "env": [f"{name}={value}" for name, value in ({"PATH": PATH} | dict(env)).items()],
        "noNewPrivileges": True, "capabilities": {kind: [] for kind in CAPABILITY_SETS},
        "rlimits": [{"type": "RLIMIT_CORE", "soft": CORE_BYTES, "hard": CORE_BYTES}],
        "oomScoreAdj": 100,
    }  # fmt: skip


def _mounts(spec: ContainerSpec, place: Place) -> list[dict[str, Any]]:
    quiet = ("nosuid", "noexec", "nodev")
    return [
        _mount("/proc", "proc", "proc", *quiet),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=64k"),
        _mount("/dev/pts", "devpts", "devpts", *quiet[:2], "newinstance", "ptmxmode=0666", "mode=0620",
               f"max={TERMINALS}"),
        _mount("/dev/shm", "tmpfs", "shm", *quiet, "mode=1777", "size=64m"),  # noqa: S108
        _mount("/dev/mqueue", "mqueue", "mqueue", *quiet),
        _mount("/sys", "none", "/sys", "rbind", "rro", *quiet) if spec.network.mode == "host"
        else _mount("/sys", "sysfs", "sysfs", *quiet, "ro"),
        _mount(SECRETS, "tmpfs", "secrets", *quiet, "mode=700", "size=4m"),
        _mount(ENGINE, "bind", str(place.engine), "bind", "ro", "nosuid", "nodev"),
        _mount(DOOR_DIR, "bind", str(spec.door_dir), "bind", "ro", *quiet),
        *(
            _mount(target, "bind", str(source), "rbind", "ro", "nosuid", "nodev")
            for source, target in spec.root.binds
        ),
        *(
            _mount(CODE, "bind", str(code), "bind", "ro", "nosuid", "nodev")
            for code in (spec.code,) if code is not None
        ),
    ]  # fmt: skip


def _mount(target: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": list(options)}
