"""Why an endpoint takes no request now, in the words that its client gets."""

from __future__ import annotations

import math
import time

from headrace import wire
from headrace.errors import CircuitOpen, EndpointFailed, QueueFull
from headrace.gateway.endpoints import EndpointState
from headrace.gateway.room import ahead


def full_error(state: EndpointState) -> QueueFull:
    """The queue is at its bound."""
    after = state.retry_after()
    waiting, size = len(state.queue), state.queue.bytes
    if (coming := ahead(state)) > 0:
        waiting, size = waiting + coming, size + state.coming.bytes
    return QueueFull(
        f"{waiting} requests ({size} bytes) wait for {state.route.endpoint}.",
        hint=f"Try again in {after} s, or raise its queue or scaling.max.",
        retry_after=after,
    )


def circuit_error(state: EndpointState) -> CircuitOpen:
    """Nothing is sent there for a while."""
    name = state.route.endpoint.partition("/")[2]
    after = max(1, math.ceil(state.circuit.until - time.monotonic()))
    reason = f": {state.route.reason}" if state.route.reason else ""
    return CircuitOpen(
        f"the last {state.circuit.losses} instances of {name} died or refused, none answered{reason}.",
        hint=f"One request tries it again in {after} s; `headrace logs {name}` has what they printed.",
        retry_after=after,
    )


def failed_error(route: wire.EndpointRoute) -> EndpointFailed:
    """Why a failed endpoint answers nothing."""
    name = route.endpoint.partition("/")[2]
    return EndpointFailed(
        route.reason or "the endpoint cannot start.",
        hint=f"`headrace logs {name}` and `headrace describe {name}` say more.",
        retry_after=5,
    )
