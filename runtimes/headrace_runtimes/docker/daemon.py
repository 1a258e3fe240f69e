"""What a daemon says of itself, as far as it matters to us. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrace_runtimes.errors import PrepareFailed

GIVES_AWAY = ("1.1.2", "1.1.3", "1.1.4")
"""Versions of runc that give a container's standard streams to its user, also when that is ``/dev/null``."""


@dataclass(frozen=True)
class Daemon:
    """``own_cgroups``: each container may lie in a cgroup that we make, as it is where systemd has no say."""

    seccomp: bool
    remapped: bool
    """It shifts the ids of containers (``userns-remap``)."""
    own_cgroups: bool

    def cgroups(self, above: str, tag: str) -> str:
        """Where all containers of one runtime are. ``above``: what is delegated to us, empty for the top."""
        return f"{above}/headrace/{tag}" if self.own_cgroups else f"/headrace.slice/headrace-{tag}.slice"

    def parent(self, cgroups: str, id: str) -> str:
        """``CgroupParent`` of a container."""
        return f"{cgroups}/{id}" if self.own_cgroups else cgroups.rpartition("/")[2]


def daemon_of(info: Mapping[str, Any], kernel: str) -> Daemon:
    """From ``GET /info``; ``kernel``: our release. Raises `PrepareFailed` for one that won't do."""
    options = {str(option).partition(",")[0] for option in info.get("SecurityOptions") or ()}
    if "name=rootless" in options:
        raise PrepareFailed(
            "A rootless Docker cannot be used: its containers are out of reach. Use a system one."
        )
    if info.get("KernelVersion") != kernel:
        raise PrepareFailed(
            f"Docker runs on another kernel ({info.get('KernelVersion')}): the docker runtime needs a daemon "
            "on this machine."
        )
    return Daemon(
        seccomp="name=seccomp" in options,
        remapped="name=userns" in options,
        own_cgroups=info.get("CgroupDriver") != "systemd",
    )


def refuse_runtime(info: Mapping[str, Any], version: Mapping[str, Any]) -> None:
    """Raises `PrepareFailed` for a daemon that starts containers with what cannot be used. ``version``: of
    ``GET /version``.

    Docker hands the machine's ``/dev/null`` to containers: it would be one container's afterwards.
    """
    name = str(info.get("DefaultRuntime") or "runc")
    known = (info.get("Runtimes") or {}).get(name) or {}
    program = str(known.get("path") or known.get("runtimeType") or name).rpartition("/")[2]
    numbers = {
        str(part.get("Version", "")).partition("+")[0].partition("-")[0]
        for part in version.get("Components") or () if part.get("Name") == "runc"
    }  # fmt: skip
    bad = program if "crun" in program else "".join(f"runc {n}" for n in numbers if n in GIVES_AWAY)
    if bad:
        raise PrepareFailed(
            f"Docker starts containers by {bad} here, which gives the machine's /dev/null to them: "
            "install runc 1.1.5 or later as its default runtime."
        )
