"""`OciRuntime`: containers by runc."""

from __future__ import annotations

from typing import ClassVar

from headrace_runtimes.containers.runtime import ContainerRuntime
from headrace_runtimes.oci.driver import OciDriver


class OciRuntime(ContainerRuntime):
    """Sandboxes in namespaces of their own; see `containers.runtime`."""

    name: ClassVar[str] = "oci"

    def __init__(self, binary: str | None = None) -> None:
        super().__init__(OciDriver(binary))
