"""`DockerRuntime`: containers by the daemon of Docker."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from headrace_runtimes.containers.runtime import ContainerRuntime
from headrace_runtimes.docker.driver import DockerDriver
from headrace_runtimes.images.build import BuildSettings
from headrace_runtimes.oci.network import Networks


class DockerRuntime(ContainerRuntime):
    """Sandboxes in containers of Docker; see `containers.runtime`.

    ``address``: the daemon's, ``unix:///path``; None: what ``DOCKER_HOST`` says, else the usual one.
    ``networks`` makes networks for ``egress``, None: `network.egress.Egress`, never Docker; ``build``: with
    what images are built; ``devices``: the root of the tree whose accelerators can be assigned.
    """

    name: ClassVar[str] = "docker"

    def __init__(
        self,
        address: str | None = None,
        networks: Networks | None = None,
        build: BuildSettings | None = None,
        devices: Path = Path("/"),
    ) -> None:
        super().__init__(DockerDriver(address, networks, build, devices))
