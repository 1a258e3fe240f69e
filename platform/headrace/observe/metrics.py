"""Counters of one gateway, and how Prometheus reads them. Counting is arithmetic; names are made at a scrape.

Names and units follow OpenTelemetry's semantic conventions as its Prometheus mapping spells them
(``http.server.request.duration`` in seconds becomes ``http_server_request_duration_seconds``).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from headrace.observe.use import of_checkpoints, of_instances

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Seconds: the buckets that OpenTelemetry recommends for request durations."""
LONG_BOUNDS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
"""Seconds: for jobs and starts."""
MAX_ENDPOINTS = 1000
"""The busiest are shown by name; the others together, as `OTHERS`."""
OTHERS = "_other"
CANCELLED = 0
"""In place of a status class: the client left before there was an answer."""


class Histogram:
    """Counts per bucket (the last one is above all bounds), and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = BOUNDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """One more observation."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    def merge(self, other: Histogram) -> None:
        """Add what another one with the same bounds has seen."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    @property
    def total(self) -> int:
        """All observations."""
        return sum(self.counts)


class Meter:
    """Counters of one endpoint, or of several together."""

    __slots__ = ("attempts", "cold_start_s", "cold_starts", "jobs", "late", "queue", "requests", "retries")

    def __init__(self) -> None:
        self.requests: dict[int, Histogram] = {}
        """By status class (2: 2xx), `CANCELLED` among them."""
        self.jobs: dict[str, Histogram] = {}
        """By final state, from submission to the stored result."""
        self.queue = Histogram()
        self.attempts: dict[str, int] = defaultdict(int)
        self.retries: dict[str, int] = defaultdict(int)
        self.cold_starts: dict[str, int] = defaultdict(int)
        self.cold_start_s: dict[str, Histogram] = {}
        self.late = 0

    def request(self, status: int, seconds: float) -> None:
        """A request of a client has come to its end."""
        kind = status // 100
        found = self.requests.get(kind)
        if found is None:
            found = self.requests[kind] = Histogram()
        found.counts[bisect_left(BOUNDS, seconds)] += 1
        found.sum += seconds

    def job(self, state: str, seconds: float) -> None:
        """A job's result was stored."""
        if state not in self.jobs:
            self.jobs[state] = Histogram(LONG_BOUNDS)
        self.jobs[state].add(seconds)

    def cold_start(self, tier: str, seconds: float) -> None:
        """A request waited for an instance that came up for it."""
        self.cold_starts[tier] += 1
        if tier not in self.cold_start_s:
            self.cold_start_s[tier] = Histogram(LONG_BOUNDS)
        self.cold_start_s[tier].add(seconds)

    @property
    def weight(self) -> int:
        """How much it has seen: who is shown by name."""
        return sum(h.total for h in self.requests.values()) + sum(self.attempts.values())

    def merge(self, other: Meter) -> None:
        """Add another one's counts."""
        for mine, theirs in (
            (self.attempts, other.attempts),
            (self.retries, other.retries),
            (self.cold_starts, other.cold_starts),
        ):
            for name, count in theirs.items():
                mine[name] = mine.get(name, 0) + count
        for kind, histogram in other.requests.items():
            self.requests.setdefault(kind, Histogram()).merge(histogram)
        for long, those in ((self.jobs, other.jobs), (self.cold_start_s, other.cold_start_s)):
            for name, histogram in those.items():
                long.setdefault(name, Histogram(LONG_BOUNDS)).merge(histogram)
        self.queue.merge(other.queue)
        self.late += other.late


@dataclass
class EndpointFacts:
    """One endpoint at the time of a scrape."""

    project: str
    name: str
    meter: Meter
    in_flight: int = 0
    waiting: int = 0
    instances: Mapping[str, int] = field(default_factory=dict)
    """State as this gateway sees it -> how many."""
    circuit_open: bool = False

    def merge(self, other: EndpointFacts) -> None:
        """Take another endpoint in."""
        self.meter.merge(other.meter)
        self.in_flight += other.in_flight
        self.waiting += other.waiting
        self.circuit_open = self.circuit_open or other.circuit_open
        self.instances = {
            state: self.instances.get(state, 0) + other.instances.get(state, 0)
            for state in {*self.instances, *other.instances}
        }


@dataclass
class Facts:
    """All that one scrape shows."""

    gateway: str
    version: str
    endpoints: Sequence[EndpointFacts]
    clients: int = 0
    body_bytes: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    """Problem type -> requests refused before they reached an endpoint."""
    webhooks: Mapping[str, int] = field(default_factory=dict)
    jobs: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    """(project, endpoint, state) -> jobs in the store."""
    platform: Mapping[str, Mapping[str, int]] | None = None
    """``instances`` and ``hosts`` by state, as control knows them; None: it does not answer."""
    use: Sequence[Mapping[str, Any]] = ()
    """What instances use, as control knows it."""
    checkpoints: Sequence[Mapping[str, Any]] = ()
    """Of each host that makes them, what became of them."""


def render(facts: Facts, accept: str) -> tuple[bytes, str]:
    """The exposition in the format that the scraper prefers, and its content type."""
    registry = CollectorRegistry()
    registry.register(_Facts(facts))
    encoder, content_type = choose_encoder(accept)
    return encoder(registry), content_type


def shown(endpoints: Iterable[EndpointFacts], most: int = MAX_ENDPOINTS) -> list[EndpointFacts]:
    """At most ``most`` of them by name, the busiest, and the rest together."""
    ordered = sorted(endpoints, key=lambda e: (-e.meter.weight, e.project, e.name))
    kept, rest = ordered[:most], ordered[most:]
    if rest:
        others = EndpointFacts(OTHERS, OTHERS, Meter())
        for endpoint in rest:
            others.merge(endpoint)
        kept.append(others)
    return kept


class _Facts(Collector):
    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        yield from _of_endpoints(shown(self._facts.endpoints), self._facts.gateway)
        yield from _of_gateway(self._facts)
        yield from _of_platform(self._facts)
        yield from of_instances(self._facts.use)
        yield from of_checkpoints(self._facts.checkpoints)


Values = Mapping[str, int] | Mapping[str, Histogram]


class _Family(NamedTuple):
    """A metric that every endpoint has, of the gateway that answers."""

    kind: type[CounterMetricFamily] | type[GaugeMetricFamily] | type[HistogramMetricFamily]
    name: str
    text: str
    label: str
    """Beside project, endpoint and gateway; empty: none."""
    values: Callable[[EndpointFacts], Values]
    """By that label; without one by the empty string."""


_OF_ENDPOINTS = (
    _Family(
        HistogramMetricFamily, "http_server_request_duration_seconds",
        "Duration of requests to endpoints, from the whole request to the last byte.",
        "status_class", lambda e: {_status_class(kind): seen for kind, seen in e.meter.requests.items()},
    ),
    _Family(
        GaugeMetricFamily, "headrace_requests_in_flight", "Attempts under way in instances.",
        "", lambda e: {"": e.in_flight},
    ),
    _Family(
        GaugeMetricFamily, "headrace_queue_length", "Requests that wait for a free slot.",
        "", lambda e: {"": e.waiting},
    ),
    _Family(
        HistogramMetricFamily, "headrace_queue_wait_seconds",
        "Time in the queue of requests that had to wait.",
        "", lambda e: {"": e.meter.queue} if e.meter.queue.total else {},
    ),
    _Family(
        CounterMetricFamily, "headrace_attempts", "Attempts at instances, by how they ended.",
        "outcome", lambda e: e.meter.attempts,
    ),
    _Family(
        CounterMetricFamily, "headrace_retries", "Attempts after which the request was sent again, by why.",
        "reason", lambda e: e.meter.retries,
    ),
    _Family(
        CounterMetricFamily, "headrace_cold_starts", "Instances that requests had to wait for, by tier.",
        "tier", lambda e: e.meter.cold_starts,
    ),
    _Family(
        HistogramMetricFamily, "headrace_cold_start_duration_seconds", "How long those took to start.",
        "tier", lambda e: e.meter.cold_start_s,
    ),
    _Family(
        GaugeMetricFamily, "headrace_endpoint_instances",
        "Instances that this gateway knows: ready, suspect (its host is late), or in trouble.",
        "state", lambda e: e.instances,
    ),
    _Family(
        GaugeMetricFamily, "headrace_circuit_open",
        "1 while nothing is sent to instances that keep failing.",
        "", lambda e: {"": int(e.circuit_open)},
    ),
    _Family(
        HistogramMetricFamily, "headrace_job_duration_seconds",
        "From a job's submission to its stored result, by its final state.",
        "state", lambda e: e.meter.jobs,
    ),
    _Family(
        CounterMetricFamily, "headrace_late_results_dropped",
        "Results of attempts that had lost their lease.",
        "", lambda e: {"": e.meter.late},
    ),
)  # fmt: skip


def _of_endpoints(endpoints: Sequence[EndpointFacts], gateway: str) -> Iterator[Metric]:
    for one in _OF_ENDPOINTS:
        own = [one.label] if one.label else []
        family: Any = one.kind(one.name, one.text, labels=["project", "endpoint", "gateway", *own])
        for e in endpoints:
            for name, value in sorted(one.values(e).items()):
                labels = [e.project, e.name, gateway, *([name] if own else [])]
                if isinstance(value, Histogram):
                    family.add_metric(labels, *_buckets(value))
                else:
                    family.add_metric(labels, value)
        yield family


def _status_class(kind: int) -> str:
    return "cancelled" if kind == CANCELLED else f"{kind}xx"


def _of_gateway(facts: Facts) -> Iterator[Metric]:
    for name, text, label, counts in (
        (
            "headrace_requests_refused",
            "Requests refused before they reached an endpoint, by the type of their problem.",
            "type",
            facts.refused,
        ),
        ("headrace_webhook_deliveries", "Tries to deliver a webhook, by outcome.", "outcome", facts.webhooks),
    ):
        counter = CounterMetricFamily(name, text, labels=["gateway", label])
        for kind, count in sorted(counts.items()):
            counter.add_metric([facts.gateway, kind], count)
        yield counter
    for name, text, value in (
        ("http_server_open_connections", "Open connections of clients.", facts.clients),
        ("headrace_request_body_bytes", "Bytes of request bodies that the gateway holds.", facts.body_bytes),
    ):
        gauge = GaugeMetricFamily(name, text, labels=["gateway"])
        gauge.add_metric([facts.gateway], value)
        yield gauge
    info = GaugeMetricFamily("headrace_info", "The gateway that answers.", labels=["gateway", "version"])
    info.add_metric([facts.gateway, facts.version], 1)
    yield info


def _of_platform(facts: Facts) -> Iterator[Metric]:
    up = GaugeMetricFamily("headrace_control_up", "1 when control answered this scrape.")
    up.add_metric([], int(facts.platform is not None))
    yield up
    for name, text in (("instances", "Instances of the whole platform"), ("hosts", "Hosts")):
        gauge = GaugeMetricFamily(f"headrace_{name}", f"{text}, by state.", labels=["state"])
        for state, count in sorted((facts.platform or {}).get(name, {}).items()):
            gauge.add_metric([state], count)
        yield gauge
    stored = GaugeMetricFamily(
        "headrace_jobs", "Jobs in the store, by state.", labels=["project", "endpoint", "state"]
    )
    for key, number in sorted(facts.jobs.items()):
        stored.add_metric(key, number)
    yield stored


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Cumulative, as Prometheus has them, and the sum."""
    found: list[tuple[str, float]] = []
    running = 0
    for bound, count in zip(histogram.bounds, histogram.counts, strict=False):
        running += count
        found.append((str(bound), running))
    found.append(("+Inf", running + histogram.counts[-1]))
    return found, histogram.sum
