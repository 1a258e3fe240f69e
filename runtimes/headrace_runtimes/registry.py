"""Which runtimes are installed: plugins of the entry point group ``headrace.runtimes``."""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points

from headrace_runtimes.base import Runtime
from headrace_runtimes.errors import NotSupported, PrepareFailed

GROUP = "headrace.runtimes"


class UnknownRuntime(NotSupported):
    """No installed package offers a runtime of that name; ``closest`` is what may have been meant."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        self.name = name
        self.closest = near[0] if near else None
        hint = (
            f"did you mean {self.closest!r}?" if self.closest else f"installed: {', '.join(known) or 'none'}."
        )
        super().__init__(f"There is no runtime {name!r}: {hint}")


def names() -> tuple[str, ...]:
    """Names of all installed runtimes, sorted."""
    return tuple(sorted(entry_points(group=GROUP).names))


def load(name: str, **options: str) -> Runtime:
    """A new, unopened runtime of that name. ``options`` go to its plugin, which must know them.

    Raises `UnknownRuntime`, and `PrepareFailed` when its plugin cannot be imported or is no runtime.
    """
    found = entry_points(group=GROUP, name=name)
    if not found:
        raise UnknownRuntime(name, names())
    entry = next(iter(found))
    try:
        runtime = entry.load()(**options)
    except Exception as error:
        raise PrepareFailed(
            f"The runtime {name!r} ({entry.value}) cannot be loaded: {type(error).__name__}: {error}. "
            "Reinstall the package that offers it."
        ) from error
    if not isinstance(runtime, Runtime):
        raise PrepareFailed(f"{entry.value} is no runtime: it lacks parts of headrace_runtimes.base.Runtime.")
    return runtime
