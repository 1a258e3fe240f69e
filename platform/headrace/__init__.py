"""Headrace's public names, each imported when it is first used, so that ``import headrace`` costs nothing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.errors import HeadraceError as HeadraceError
    from headrace.sdk.client import Client as Client
    from headrace.sdk.context import traceparent as traceparent
    from headrace.sdk.context import weights as weights
    from headrace.sdk.endpoint import Endpoint as Endpoint
    from headrace.sdk.endpoint import endpoint as endpoint
    from headrace.sdk.image import Image as Image
    from headrace.sdk.job import Job as Job
    from headrace.sdk.network import Network as Network
    from headrace.sdk.probes import Probe as Probe
    from headrace.sdk.probes import Probes as Probes
    from headrace.sdk.secrets import Secret as Secret
    from headrace.sdk.spec import Batch as Batch
    from headrace.sdk.spec import EndpointSpec as EndpointSpec
    from headrace.sdk.spec import Gpu as Gpu
    from headrace.sdk.spec import Placement as Placement
    from headrace.sdk.spec import Queue as Queue
    from headrace.sdk.spec import Scaling as Scaling
    from headrace.sdk.weights import Weights as Weights

__version__ = "0.1.0"

_HOMES = {
    "Batch": "headrace.sdk.spec",
    "Client": "headrace.sdk.client",
    "Endpoint": "headrace.sdk.endpoint",
    "EndpointSpec": "headrace.sdk.spec",
    "Gpu": "headrace.sdk.spec",
    "HeadraceError": "headrace.errors",
    "Image": "headrace.sdk.image",
    "Job": "headrace.sdk.job",
    "Network": "headrace.sdk.network",
    "Placement": "headrace.sdk.spec",
    "Probe": "headrace.sdk.probes",
    "Probes": "headrace.sdk.probes",
    "Queue": "headrace.sdk.spec",
    "Scaling": "headrace.sdk.spec",
    "Secret": "headrace.sdk.secrets",
    "Weights": "headrace.sdk.weights",
    "endpoint": "headrace.sdk.endpoint",
    "traceparent": "headrace.sdk.context",
    "weights": "headrace.sdk.context",
}

__all__ = [
    "Batch",
    "Client",
    "Endpoint",
    "EndpointSpec",
    "Gpu",
    "HeadraceError",
    "Image",
    "Job",
    "Network",
    "Placement",
    "Probe",
    "Probes",
    "Queue",
    "Scaling",
    "Secret",
    "Weights",
    "endpoint",
    "traceparent",
    "weights",
]


def __getattr__(name: str) -> Any:
    """PEP 562: import a public name's module at its first use."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
