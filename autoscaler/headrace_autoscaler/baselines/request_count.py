"""Scaling by the number of requests, as GPU clouds offer it.

Source: Runpod's documentation of serverless endpoints ("Endpoint settings": auto-scaling type "Request
count", idle timeout): workers = ceil((requests in queue + in progress) / k), and a worker stops when it was
idle for the idle timeout, 5 s. k is the user's; 1 is the default here, because one request per GPU is what
is simulated. (The API's ``scalerValue`` has 4 as its one default for both types; that is
``request-count-4``.)

Adapted: nothing; how fast the real one looks is not documented, here it hears of each request that waits. A
worker that starts is not cancelled.
"""

from __future__ import annotations

from collections.abc import Mapping

from headrace_autoscaler.baselines.base import Fleet, Verdict, each, expire
from headrace_autoscaler.interface import Plan, Policy
from headrace_autoscaler.spec import EndpointObservation, Observation
from headrace_autoscaler.values import Value

TICK_S = 5.0
DEFAULT_REQUESTS = 1
IDLE_S = 5.0


class RequestCountConfig(Value, frozen=True, kw_only=True):
    """The endpoint's settings."""

    requests: int = DEFAULT_REQUESTS
    """Requests per worker, k."""
    idle_s: float = IDLE_S


def judge(
    now: float,
    endpoint: EndpointObservation,
    fleet: Fleet,
    memory: None,
    config: RequestCountConfig,
) -> Verdict:
    """Start up to ceil(requests / k); release what was idle for the idle timeout."""
    requests = endpoint.in_flight + endpoint.queued
    missing = -(-requests // config.requests) - len(fleet.alive)
    if missing > 0:
        return Verdict(
            memory, start=missing, why=("%d requests, %d for each worker", requests, config.requests)
        )
    due, soonest = expire(now, fleet, lambda _: config.idle_s)
    return Verdict(memory, release=due, gone=("idle for %g s", config.idle_s), look_again_at=soonest)


def decide(
    now: float, observation: Observation, state: Mapping[str, None], config: RequestCountConfig
) -> Plan:
    """One decision, as `headrace_autoscaler.interface.Policy` describes it."""
    return each(now, observation, state, config, judge=judge, fresh=None)


def policy(requests: int = DEFAULT_REQUESTS) -> Policy:
    """``requests`` per worker."""
    return Policy("request-count", decide, {}, RequestCountConfig(requests=requests), TICK_S)
