"""What a policy is: a pure decision with its first state, its parameters and how often it looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from headrace_autoscaler.spec import Action, Observation


class Outcome(Protocol):
    """What a decision gives back; `spec.Decision` is one, `Plan` another."""

    @property
    def actions(self) -> tuple[Action, ...]:
        """In the order to carry out."""

    @property
    def state(self) -> Any:
        """To be given to the next decision."""

    @property
    def look_again_at(self) -> float | None:
        """When something falls due if nothing else happens; None: only at the next tick."""


class Plan(NamedTuple):
    """The `Outcome` of a policy that keeps a state of its own."""

    actions: tuple[Action, ...]
    state: Any
    look_again_at: float | None = None


@dataclass(frozen=True)
class Policy:
    """One policy, as production and simulator run it.

    ``decide(now, observation, state, config)`` is pure: equal arguments give equal outcomes.
    """

    name: str
    decide: Callable[[float, Observation, Any, Any], Outcome]
    state: Any
    """What the first decision is given."""
    config: Any
    tick_s: float
    """Seconds between looks that nothing else asks for."""
    wakes: Literal["queued", "from-zero", "never"] = "queued"
    """Which arrivals it hears of at once: each that finds no free instance; only those that find no
    instance at all; none."""
    hears_losses: bool = False
    """Whether it also hears at once of instances that are lost or will be (preemption notice) and of
    launches that failed."""
