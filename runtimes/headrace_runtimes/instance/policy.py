"""Decisions of the pool, as pure functions: which zygote serves a claim, which ones are let go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace_runtimes.spec import Base


@dataclass(frozen=True)
class Candidate:
    """A base whose zygote is ready. ``modules``: what it really has imported for its users."""

    key: str
    image: str
    modules: frozenset[str]
    loaded: bool
    spares: int


def nearest(base: Base, ready: Sequence[Candidate]) -> str | None:
    """The key of the best ready zygote for ``base``: itself, or else the largest part of what it preloads.

    Never one that has loaded an endpoint (that is another's state), nor of another image, nor one
    that has imported what ``base`` did not ask for.
    """
    wanted = frozenset(base.preload) | frozenset(base.imports)
    best: tuple[int, int] | None = None
    chosen: str | None = None
    for candidate in ready:
        if candidate.key == base.key:
            return candidate.key
        if candidate.loaded or candidate.image != base.image or not candidate.modules <= wanted:
            continue
        score = (len(candidate.modules), candidate.spares)
        if best is None or score > best:
            best, chosen = score, candidate.key
    return chosen


@dataclass(frozen=True)
class Held:
    """A zygote that costs memory, for `over_budget`. ``living``: instances that would die with it."""

    key: str
    bytes: int
    living: int
    keep: bool = False


def over_budget(held: Sequence[Held], budget: int) -> list[str]:
    """Keys to let go so that the rest is within ``budget`` bytes. ``held`` has the most wanted first."""
    left = sum(h.bytes for h in held)
    gone: list[str] = []
    for h in reversed(held):
        if left <= budget:
            break
        if h.living or h.keep:
            continue
        gone.append(h.key)
        left -= h.bytes
    return gone
