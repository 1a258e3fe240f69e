"""`OciRuntime`: containers by runc or its kin."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from headrace_runtimes.containers.runtime import ContainerRuntime
from headrace_runtimes.images.build import BuildSettings
from headrace_runtimes.oci.driver import OciDriver
from headrace_runtimes.oci.keeper import LEAST_LOAD_S
from headrace_runtimes.oci.network import Networks


class OciRuntime(ContainerRuntime):
    """Sandboxes in namespaces of their own; see `containers.runtime`.

    ``binary``: the low-level runtime, a name or a path; None takes the first of runc, crun and youki that is
    installed. ``networks`` makes network namespaces, None: `network.egress.Egress`; ``build``: with what
    images are built; ``devices``: the root of the tree whose accelerators can be assigned; ``least_load_s``:
    no checkpoint of what loads in a shorter time; ``criu``: what makes those, a path or a name (empty: see
    `oci.criu.chosen`).
    """

    name: ClassVar[str] = "oci"

    def __init__(
        self,
        binary: str | None = None,
        networks: Networks | None = None,
        build: BuildSettings | None = None,
        devices: Path = Path("/"),
        *,
        least_load_s: float = LEAST_LOAD_S,
        criu: str = "",
    ) -> None:
        super().__init__(OciDriver(binary, networks, build, devices, least_load_s=least_load_s, criu=criu))
