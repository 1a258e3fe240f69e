"""A stand-in for ``headrace`` in environments that don't have it: decorators that change nothing."""

from __future__ import annotations

import importlib
import os
import pathlib
import sys
import types
from typing import Any, Callable

import hr_context


class _Anything:
    """Accepts every call and attribute: ``Image.python("3.11").pip("x")``, ``Scaling(min=1)``."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> "_Anything":
        return self

    def __getattr__(self, name: str) -> "_Anything":
        if name.startswith("__"):
            raise AttributeError(name)
        return self


def endpoint(target: Any = None, **_: Any) -> Any:
    """``@endpoint`` and ``@endpoint(...)``: the function, class or app itself."""
    if target is not None:
        return target
    unchanged: Callable[[Any], Any] = lambda decorated: decorated  # noqa: E731
    return unchanged


def weights(name: str) -> pathlib.Path:
    """The directory with the weights of that name. Raises ``FileNotFoundError``."""
    found = pathlib.Path(os.environ.get("HEADRACE_WEIGHTS", "/weights")) / name.replace("/weights/", "", 1)
    if not found.is_dir():
        raise FileNotFoundError(f"there are no weights at {found}: name them with endpoint(weights=...).")
    return found


def install() -> None:
    """Offer the stand-in when ``headrace`` cannot be imported."""
    if "headrace" in sys.modules:
        return
    try:
        importlib.import_module("headrace")
    except ImportError:
        module = types.ModuleType("headrace", __doc__)
        module.__dict__.update(
            endpoint=endpoint, Image=_Anything(), traceparent=hr_context.current, weights=weights
        )
        values = "Scaling Batch Queue Placement Gpu Probe Probes Secret Network Weights"
        for name in values.split():
            module.__dict__[name] = _Anything
        sys.modules["headrace"] = module
