"""The policies by the names that they have on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from headrace_autoscaler import policy as headrace
from headrace_autoscaler.baselines import (
    always_on,
    break_even,
    hpa,
    hybrid_histogram,
    keep_alive,
    knative,
    queue_delay,
    ray_serve,
    request_count,
    spothedge,
)
from headrace_autoscaler.interface import Policy
from headrace_autoscaler.spec import Config, State

HEADRACE_TICK_S = 30.0
"""Seconds between looks of the platform's own policy in a simulation; it asks for earlier ones itself."""


class UnknownPolicy(ValueError):
    """No policy has this name; the message lists those that there are."""


def _headrace() -> Policy:
    return Policy("headrace", headrace.decide, State(), Config(), HEADRACE_TICK_S, hears_losses=True)


_PLAIN: dict[str, Callable[[], Policy]] = {
    "headrace": _headrace,
    "knative": knative.policy,
    "ray-serve": ray_serve.policy,
    "hpa": hpa.policy,
    "request-count": request_count.policy,
    "queue-delay": queue_delay.policy,
    "hybrid-histogram": hybrid_histogram.policy,
    "keep-alive": keep_alive.policy,
    "break-even": break_even.policy,
    "spothedge": spothedge.policy,
}

_WITH_NUMBER: dict[str, tuple[Callable[[Any], Policy], Callable[[str], Any], float]] = {
    "always-on": (always_on.policy, int, 0),
    "ray-serve": (ray_serve.policy, float, 0.01),
    "request-count": (request_count.policy, int, 1),
    "queue-delay": (queue_delay.policy, float, 0),
    "keep-alive": (keep_alive.policy, float, 0),
}
"""By what comes before the number: (what makes the policy, what reads the number, the least of it)."""

_MOST = 1e6


def names() -> tuple[str, ...]:
    """The policies to choose from, as help texts list them (N stands for a number)."""
    return (
        "headrace",
        "always-on-N",
        "knative",
        "ray-serve",
        "ray-serve-1",
        "hpa",
        "request-count",
        "queue-delay",
        "hybrid-histogram",
        "keep-alive",
        "break-even",
        "spothedge",
    )


def policy_of(name: str) -> Policy:
    """The policy of this name: one of `names`, or a name with another number, as keep-alive-60.

    It is called as it was asked for. Raises `UnknownPolicy`.
    """
    if name in _PLAIN:
        return replace(_PLAIN[name](), name=name)
    stem, _, number = name.rpartition("-")
    if stem in _WITH_NUMBER:
        make, read, least = _WITH_NUMBER[stem]
        try:
            value = read(number)
        except ValueError:
            raise UnknownPolicy(_message(name)) from None
        if least <= value <= _MOST:
            return replace(make(value), name=name)
    raise UnknownPolicy(_message(name))


def _message(name: str) -> str:
    numbered = ", ".join(f"{stem}-N" for stem in _WITH_NUMBER)
    return f"no policy is called {name!r}: use one of {', '.join(names())}; with a number N: {numbered}"
