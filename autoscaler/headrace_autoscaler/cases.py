"""What a decision works on: each endpoint's case, and what all of them share."""

from __future__ import annotations

from collections.abc import Collection

from headrace_autoscaler.placement import Book, Donor
from headrace_autoscaler.spec import (
    Action,
    Config,
    EndpointObservation,
    EndpointState,
    InstanceObservation,
    Observation,
    Release,
    Wait,
)
from headrace_autoscaler.wants import Crew, Seen, Surplus

_NONE = Surplus()


class Case:
    """One endpoint while a decision is made."""

    __slots__ = (
        "actions", "after", "before", "broke", "crew", "endpoint", "limit", "seen", "surplus", "target",
    )  # fmt: skip

    seen: Seen
    """What its demand comes to; set before anything else is asked."""

    def __init__(self, endpoint: EndpointObservation, before: EndpointState) -> None:
        self.endpoint = endpoint
        self.crew = Crew(endpoint)
        self.before = self.after = before
        self.surplus = _NONE
        self.target = 0
        """Instances that it shall have."""
        self.limit = ""
        """Why not more, when money or a cool-down is why."""
        self.broke = False
        """It is money."""
        self.actions: list[Action] = []

    def release(self, one: InstanceObservation, why: str) -> None:
        """Have one go."""
        self.actions.append(Release(endpoint=self.endpoint.endpoint, instance=one.id, reason=why))

    def wait(self, wanted: int, why: str, *, no_room: bool = False) -> None:
        """Say what does not happen now."""
        name = self.endpoint.endpoint
        self.actions.append(Wait(endpoint=name, wanted=wanted, reason=why, no_room=no_room))


class Round:
    """What the endpoints of one decision share."""

    def __init__(self, now: float, observation: Observation, config: Config) -> None:
        self.now = now
        self.config = config
        self._hosts = observation.hosts
        self._book: Book | None = None
        self.donors = [d for d in observation.idle_elsewhere if _may_give_way(now, d, config)]
        self.offers = observation.offers
        self.alone = len(observation.endpoints) == 1
        """There is no other endpoint that could get what this one takes."""
        self.homeless = not observation.hosts and bool(observation.offers)
        """All that starts is launched."""
        self.suspect: Collection[str] = ()
        if observation.hosts:
            self.suspect = {host.host for host in observation.hosts if host.state == "suspect"}
        """Hosts that have not been heard of lately."""
        self.spot = [offer for offer in observation.offers if offer.spot]
        self.spending = observation.spending
        self.looks: list[float] = []

    @property
    def book(self) -> Book:
        """What is free on all hosts. Most decisions start nothing, and do not ask."""
        if self._book is None:
            self._book = Book(self._hosts)
        return self._book

    def look_again(self, at: float | None) -> None:
        """Something falls due then."""
        if at is not None:
            self.looks.append(at)


def _may_give_way(now: float, donor: Donor, config: Config) -> bool:
    """Idle, and not just started for a request that is about to reach it.

    One that stays unused (its client hung up, or it was only verified) must not keep others waiting.
    """
    _, instance, scaling = donor
    if instance.state == "paused":
        return True
    held = min(scaling.idle_timeout_s, config.unused_hold_s)
    settled = instance.last_used_at is not None or now - instance.started_at >= held
    return instance.state == "ready" and not instance.in_flight and settled
