"""What instances use, as metrics: the names are OpenTelemetry's for containers and hardware."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric


class _Family(NamedTuple):
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily]
    name: str
    text: str
    field: str


_OF_INSTANCES = (
    _Family(CounterMetricFamily, "container_cpu_time_seconds", "Processor time of instances.", "cpu_s"),
    _Family(GaugeMetricFamily, "container_cpu_usage", "Cores that instances use now.", "cpu"),
    _Family(GaugeMetricFamily, "container_memory_usage_bytes", "Memory that instances use.", "memory"),
    _Family(
        CounterMetricFamily, "container_disk_io_bytes",
        "Read and written by instances, where the kernel counts it.", "io_bytes",
    ),
    _Family(
        GaugeMetricFamily, "container_processes", "Processes of instances; of containers, threads too.",
        "processes",
    ),
    _Family(
        GaugeMetricFamily, "hw_gpu_utilization_ratio",
        "Busy part of instances' accelerators, 0 to 1 each, together.", "gpu",
    ),
    _Family(
        GaugeMetricFamily, "hw_gpu_memory_usage_bytes", "Memory in use on instances' accelerators.",
        "gpu_memory",
    ),
)  # fmt: skip


def of_checkpoints(hosts: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    """The family; ``hosts``: of each its id as ``host`` and how many came to which end."""
    family = CounterMetricFamily(
        "headrace_checkpoints", "Checkpoints of loaded containers, by what became of them.",
        labels=["host", "outcome"],
    )  # fmt: skip
    for told in hosts:
        for outcome, count in told.items():
            if outcome != "host":
                family.add_metric([str(told["host"]), outcome], count)
    yield family


def of_instances(use: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    """The families; what is not known of an instance is left out."""
    for one in _OF_INSTANCES:
        family: Any = one.kind(one.name, one.text, labels=["project", "endpoint", "instance", "host"])
        for seen in use:
            value = seen.get(one.field)
            if value is not None:
                labels = [str(seen[name]) for name in ("project", "endpoint", "instance", "host")]
                family.add_metric(labels, value)
        yield family
