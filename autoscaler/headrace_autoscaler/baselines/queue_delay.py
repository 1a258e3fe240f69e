"""Scaling by how long requests wait, as GPU clouds offer it.

Source: Runpod's documentation of serverless endpoints ("Endpoint settings": auto-scaling type "Queue
delay", its default with 4 s; idle timeout 5 s): with no worker the first request adds one; further requests
each add one after they have waited in the queue for the delay. A worker stops when it was idle for the idle
timeout.

Adapted: an observation has no list of the waiting requests. The queue is first in, first out, so those that
wait are the last that arrived, and those of them that arrived within the delay are not due: due = queued
less what arrived lately, from readings of the counter ``arrived``, linear between them. Where it is not
known only the oldest, whose wait is known, is due. A due request has its worker as long as one starts: no
worker is added for one that a starting worker will take.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from headrace_autoscaler.baselines.base import Fleet, Verdict, each, expire
from headrace_autoscaler.baselines.windows import Samples, average, push
from headrace_autoscaler.interface import Plan, Policy
from headrace_autoscaler.spec import EndpointObservation, Observation
from headrace_autoscaler.values import Value

TICK_S = 2.0
DEFAULT_DELAY_S = 4.0
IDLE_S = 5.0
_EPSILON = 1e-6


class QueueDelayConfig(Value, frozen=True, kw_only=True):
    """The endpoint's settings."""

    delay_s: float = DEFAULT_DELAY_S
    idle_s: float = IDLE_S


class QueueDelayState(Value, frozen=True, kw_only=True):
    """Readings of ``arrived`` while there is a queue."""

    samples: Samples = ()


_EMPTY = QueueDelayState()


def judge(
    now: float,
    endpoint: EndpointObservation,
    fleet: Fleet,
    memory: QueueDelayState,
    config: QueueDelayConfig,
) -> Verdict:
    """Start one for each request that has waited for the delay; release what was idle for the time-out."""
    queued = endpoint.queued
    if not queued:
        due, soonest = expire(now, fleet, lambda _: config.idle_s)
        gone = ("idle for %g s", config.idle_s)
        return Verdict(_EMPTY, release=due, gone=gone, look_again_at=soonest)
    after, waiting = _waiting(now, endpoint, memory, config)
    overdue = endpoint.oldest_wait_s + _EPSILON >= config.delay_s
    count = max(1, waiting) if overdue else 0
    if not fleet.alive:
        count = max(1, count)
    # What starts already was added for some of them.
    missing = count - (len(fleet.alive) - fleet.ready)
    again = None if overdue else now + config.delay_s - endpoint.oldest_wait_s
    why = ("%d of %d requests waited %g s", count, queued, config.delay_s)
    return Verdict(after, start=max(0, missing), why=why, look_again_at=again)


def _waiting(
    now: float, endpoint: EndpointObservation, memory: QueueDelayState, config: QueueDelayConfig
) -> tuple[QueueDelayState, int]:
    """(the readings, how many of the queue arrived before the delay's begin)."""
    if config.delay_s <= 0:
        return _EMPTY, endpoint.queued
    if endpoint.arrived is None:
        return _EMPTY, 0
    arrived = float(endpoint.arrived)
    samples = memory.samples
    if not samples:
        # The queue was empty at the look before: all of it has come since then.
        samples = ((now - TICK_S, arrived - endpoint.queued),)
    samples = push(samples, now, arrived, config.delay_s)
    rate = average(samples, now, arrived, config.delay_s) or 0.0
    span = min(config.delay_s, now - samples[0][0])
    return QueueDelayState(samples=samples), math.floor(endpoint.queued - rate * span + _EPSILON)


def decide(
    now: float, observation: Observation, state: Mapping[str, QueueDelayState], config: QueueDelayConfig
) -> Plan:
    """One decision, as `headrace_autoscaler.interface.Policy` describes it."""
    return each(now, observation, state, config, judge=judge, fresh=_EMPTY)


def policy(delay_s: float = DEFAULT_DELAY_S) -> Policy:
    """A worker for each request that waits ``delay_s`` seconds."""
    return Policy("queue-delay", decide, {}, QueueDelayConfig(delay_s=delay_s), TICK_S, wakes="from-zero")
