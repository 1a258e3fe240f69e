"""Finds provider plugins by their entry points (group ``headrace.providers``)."""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from headrace_providers.base import Provider
from headrace_providers.errors import UnknownProvider

GROUP = "headrace.providers"


def installed() -> dict[str, EntryPoint]:
    """Name -> entry point of every installed plugin; nothing is imported."""
    return {point.name: point for point in entry_points(group=GROUP)}


def load(name: str, state_dir: Path) -> Provider:
    """Import and construct one plugin. Raises `UnknownProvider` that names the closest one."""
    points = installed()
    if name not in points:
        close = difflib.get_close_matches(name, points, n=1)
        hint = (
            f"did you mean {close[0]!r}?" if close else f"installed: {', '.join(sorted(points)) or 'none'}."
        )
        raise UnknownProvider(f"no provider plugin is called {name!r}: {hint}")
    provider = points[name].load()(state_dir)
    if not isinstance(provider, Provider):
        raise UnknownProvider(
            f"plugin {name!r} ({points[name].value}) does not implement headrace_providers.base.Provider."
        )
    return provider
