"""Bursts, and what tokens in flight ask for: from two windows, the queue's age, and tokens. Pure.

Knative's idea: concurrency averaged over a long (stable) window follows demand and leaves noise out; when
a short (panic) window asks for a multiple of what is ready, that is a burst: the short window counts, and
nothing shrinks until it has been over for a while. Averages keep the instances few, and let a short
queue stand. So a third signal: once a request has waited too long, all that is there now counts.

All of that sizes endpoints that are scaled on tokens (`demand`). Those scaled on requests are sized by what
is there and by completions (`staffing`), which knows more than an average does: neither the stable window,
nor the size of a burst, nor the age of a request asks for instances there. Of them only whether there is a
burst is asked (`burst`): while it lasts nothing is let go, where starts take longer than
`DemandConfig.goal_s` (else what was let go too soon is soon back).
"""

from __future__ import annotations

from headrace_autoscaler.configs import DemandConfig
from headrace_autoscaler.service import add
from headrace_autoscaler.signals import average, observe
from headrace_autoscaler.spec import EndpointObservation
from headrace_autoscaler.states import DemandState, PanicState, WindowState
from headrace_autoscaler.values import Value


class Demand(Value, frozen=True, kw_only=True):
    """What was found. Instances are real numbers, not yet rounded up nor bounded."""

    instances: float
    """That demand asks for now."""
    reason: str
    concurrency_now: int
    """In flight and queued."""
    stable: float | None = None
    """Mean concurrency over the long window; None, here and below: not known."""
    burst: float | None = None
    """Mean concurrency over the short window."""
    tokens: float | None = None
    """Tokens of what is in flight and queued; None also when it isn't scaled on them."""
    late: bool = False
    """A request has waited too long."""
    panic: PanicState | None = None
    """To be remembered. None: there is no burst."""

    @property
    def in_panic(self) -> bool:
        """Whether a burst goes on: nothing may shrink."""
        return self.panic is not None


def remember(
    now: float, endpoint: EndpointObservation, before: DemandState, config: DemandConfig
) -> DemandState:
    """What was seen before and now; the same object when there is nothing new. Its ``panic`` is kept."""
    span_s = max(config.stable_s, config.goal_s)
    window = observe(before.window, now, endpoint.demand_s, endpoint.arrived, span_s)
    service = add(before.service, endpoint.served)
    if window is before.window and service is before.service:
        return before
    return DemandState(window=window, service=service, panic=before.panic)


def demand(
    now: float,
    endpoint: EndpointObservation,
    window: WindowState,
    config: DemandConfig,
    panic: PanicState | None = None,
    *,
    ready: int | None = None,
) -> Demand:
    """What demand asks for now. ``panic`` is that of the decision before; ``ready`` how many instances are,
    where the caller has counted them.

    While a window is not known, what is there now counts instead of its average.
    """
    here = endpoint.in_flight + endpoint.queued
    stable = average(window, now, config.stable_s)
    burst = average(window, now, config.panic_s)
    late = endpoint.queued > 0 and endpoint.oldest_wait_s >= config.late_s
    tokens = _tokens(endpoint)
    size = _instance_size(endpoint, tokens)
    asked = (here if stable is None else stable) / size
    reason = f"{here} requests now" if stable is None else f"{stable:.2f} requests over {config.stable_s:g} s"
    if ready is None:
        ready = sum(instance.state == "ready" for instance in endpoint.instances)
    panic = _panic(now, ready, (here if burst is None else burst) / size, config, panic)
    if panic is not None and panic.most > asked:
        asked, reason = panic.most, f"a burst asks for {panic.most:.2f} instances (until {panic.until:.0f})"
    if late and here / size > asked:
        asked, reason = here / size, f"{here} requests, one waits for {endpoint.oldest_wait_s:.1f} s"
    if tokens is not None:
        reason += f", {tokens:g} tokens"
    elif endpoint.scaling.tokens is not None:
        reason += ", tokens not known"
    return Demand(
        instances=asked,
        reason=reason,
        concurrency_now=here,
        stable=stable,
        burst=burst,
        tokens=tokens,
        late=late,
        panic=panic,
    )


def burst(
    now: float,
    endpoint: EndpointObservation,
    window: WindowState,
    config: DemandConfig,
    panic: PanicState | None,
    *,
    ready: int,
) -> PanicState | None:
    """Only whether there is a burst, of an endpoint that is scaled on requests; see `demand`."""
    mean = average(window, now, config.panic_s)
    asked = (
        endpoint.in_flight + endpoint.queued if mean is None else mean
    ) / endpoint.scaling.target_concurrency
    return _panic(now, ready, asked, config, panic)


def _tokens(endpoint: EndpointObservation) -> float | None:
    """Tokens of all that is there: those that wait are taken to be as long as those in flight."""
    if endpoint.scaling.tokens is None or endpoint.tokens_in_flight is None or not endpoint.in_flight:
        return None
    return endpoint.tokens_in_flight * (1 + endpoint.queued / endpoint.in_flight)


def _instance_size(endpoint: EndpointObservation, tokens: float | None) -> float:
    """Requests that one instance takes: by their tokens where those are known."""
    scaling = endpoint.scaling
    if tokens is None or scaling.tokens is None or tokens <= 0:
        return scaling.target_concurrency
    return scaling.tokens * (endpoint.in_flight + endpoint.queued) / tokens


def _panic(
    now: float, ready: int, asked: float, config: DemandConfig, before: PanicState | None
) -> PanicState | None:
    if before is None and (asked <= 0 or asked < config.panic_threshold * max(1, ready)):
        return None
    if before is not None and (now >= before.until or before.until > now + config.panic_hold_s):
        before = None
    most = asked if before is None else max(before.most, asked)
    if asked > 0 and asked >= config.panic_threshold * max(1, ready):
        return PanicState(until=now + config.panic_hold_s, most=most)
    return before if before is None or before.most == most else PanicState(until=before.until, most=most)
