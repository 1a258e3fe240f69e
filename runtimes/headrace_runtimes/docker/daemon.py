"""What a daemon says of itself, as far as it matters to us. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrace_runtimes.errors import PrepareFailed


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
