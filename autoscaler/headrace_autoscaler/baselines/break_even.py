"""Break-even keep-alive: an idle instance stays until staying has cost as much as starting it again would.

Source: the ski-rental rule (Karlin et al., "Competitive Snoopy Caching", 1988): with hindsight nobody does
better than half the cost of this, whatever comes. Holding costs the price per second idle, and a start
costs the price times the seconds that it takes, so the price cancels out: the time to stay is the time of a
start.

The start's time is, in this order: what boots of the instance's offer took lately, what starts of the
endpoint took lately, ``start_s``. What minimum billing has paid for anyway is kept until it ends: that
costs nothing. Starts are those of `keep_alive`.
"""

from __future__ import annotations

from collections.abc import Mapping

from headrace_autoscaler.baselines.base import Fleet, Verdict, each, expire, idle_from
from headrace_autoscaler.baselines.keep_alive import needed
from headrace_autoscaler.interface import Plan, Policy
from headrace_autoscaler.spec import EndpointObservation, InstanceObservation, Observation
from headrace_autoscaler.values import Value

TICK_S = 5.0


class BreakEvenConfig(Value, frozen=True, kw_only=True):
    """Its one parameter."""

    start_s: float = 60.0
    """Seconds that a start is taken for while none has been seen."""


def decide(now: float, observation: Observation, state: Mapping[str, None], config: BreakEvenConfig) -> Plan:
    """One decision, as `headrace_autoscaler.interface.Policy` describes it."""
    boots = {o.offer: o.boot_s for o in observation.offers if o.boot_s is not None}

    def judge(
        now: float, endpoint: EndpointObservation, fleet: Fleet, memory: None, config: BreakEvenConfig
    ) -> Verdict:
        missing = needed(endpoint) - len(fleet.alive)
        if missing > 0:
            why = ("%d in flight, %d queued, %d here", endpoint.in_flight, endpoint.queued, len(fleet.alive))
            return Verdict(memory, start=missing, why=why)
        start_s = config.start_s if endpoint.start_s is None else endpoint.start_s

        def timeout_of(instance: InstanceObservation) -> float:
            hold = boots.get(instance.offer, start_s)
            if instance.paid_until is None:
                return hold
            return max(hold, instance.paid_until - idle_from(instance))

        due, soonest = expire(now, fleet, timeout_of)
        gone = ("idle as long as a start takes, which is as dear",)
        return Verdict(memory, release=due, gone=gone, look_again_at=soonest)

    return each(now, observation, state, config, judge=judge, fresh=None)


def policy() -> Policy:
    """The break-even rule."""
    return Policy("break-even", decide, {}, BreakEvenConfig(), TICK_S)
