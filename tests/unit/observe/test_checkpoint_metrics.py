"""What becomes of checkpoints, from the heartbeat's counts to the lines of a scrape."""

from __future__ import annotations

from headrace.observe.use import of_checkpoints
from prometheus_client.metrics_core import Metric


def samples(hosts: list[dict[str, object]]) -> dict[tuple[str, str], float]:
    families: list[Metric] = list(of_checkpoints(hosts))
    assert [family.name for family in families] == ["headrace_checkpoints"]
    return {(s.labels["host"], s.labels["outcome"]): s.value for f in families for s in f.samples}


def test_each_outcome_of_each_host_is_a_line() -> None:
    hosts: list[dict[str, object]] = [
        {"host": "h1", "taken": 1, "restored": 3, "restore_failed": 0},
        {"host": "h2", "take_failed": 2},
    ]
    assert samples(hosts) == {
        ("h1", "taken"): 1, ("h1", "restored"): 3, ("h1", "restore_failed"): 0, ("h2", "take_failed"): 2,
    }  # fmt: skip


def test_without_hosts_that_make_them_there_is_no_line() -> None:
    assert samples([]) == {}
