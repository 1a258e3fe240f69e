"""What each installed runtime can do on this machine, and why not: for ``headrace doctor``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace_runtimes import registry
from headrace_runtimes.base import Runtime

from headrace.errors import SettingsError
from headrace.host.runtimes import AUTO, maker, offered, why_not


@dataclass(frozen=True)
class Support:
    """One runtime here."""

    name: str
    offered: bool
    """Whether hosts with these settings offer it."""
    why_not: str = ""
    """Why it cannot be offered; empty when it can, even when the settings leave it out."""
    capabilities: Mapping[str, str] = field(default_factory=dict)
    """All capabilities: empty, or one line of why not."""

    @property
    def able(self) -> tuple[str, ...]:
        """What it can do."""
        return tuple(name for name, why in self.capabilities.items() if not why)

    @property
    def unable(self) -> dict[str, str]:
        """What it cannot do, and why."""
        return {name: why for name, why in self.capabilities.items() if why}


def support(wish: str, oci_binary: str = "", criu: str = "") -> tuple[list[Support], str]:
    """Each installed runtime, and what is wrong with the setting ``runtimes`` (empty: nothing). Blocks."""
    make = maker(oci_binary, criu)
    loaded: dict[str, Runtime] = {}
    broken: dict[str, str] = {}
    for name in registry.names():
        try:
            loaded[name] = make(name)
        except Exception as error:
            broken[name] = f"{error}"
    wrong = ""
    chosen: frozenset[str] = frozenset()
    try:
        chosen = frozenset(offered(wish, make))
    except SettingsError as error:
        wrong = str(error)
    found = [Support(name, offered=False, why_not=why) for name, why in broken.items()]
    for name, runtime in loaded.items():
        able = {str(capability): why for capability, why in runtime.capabilities().items()}
        found.append(Support(name, name in chosen, why_not(name, runtime), able))
    return sorted(found, key=lambda item: (item.name != "process", item.name)), wrong


def in_words(item: Support, wish: str) -> tuple[str, str]:
    """What to say of it, and what to do."""
    if item.why_not:
        todo = "apt-get install runc e2fsprogs nftables" if item.name == "oci" else ""
        return f"not offered: {item.why_not}", todo
    words = f"can {', '.join(item.able) or 'run code'}"
    # One reason for several is told once.
    reasons: dict[str, list[str]] = {}
    for name, why in item.unable.items():
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        words += f"; no {', '.join(names)}: {why}"
    if not item.offered and wish != AUTO:
        words = f"left out by runtimes={wish!r}; {words}"
    return words, ""
