"""A node of the provider `local`: real raylet, its own host, and gone without a trace of it on the head."""

from __future__ import annotations

import contextlib

import psutil
import pytest
from headrace.cluster import supervisor

from tests.e2e.conftest import until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]


def add(up):
    """A new node and its host."""
    status, value = up.request("POST", "/api/v1/nodes", {"provider": "local", "cpu": 1, "memory": "512MiB"})
    assert status == 202, value
    node = value["items"][0]["id"]
    return node, until(lambda: next((h for h in up.hosts() if h["node"] == node), None))


def raylet(up, node):
    for process in up.processes():
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if "raylet/raylet" in line and node in line:
                return process
    return None


def test_a_node_joins_on_loopback_and_a_lost_one_takes_only_its_own_host(up):
    until(up.hosts)
    head = next(h["id"] for h in up.hosts() if h["node"] == "head")
    node, host = add(up)
    assert host["resources"]["cpu"] == 1
    assert host["resources"]["memory"] == 512 << 20
    status, value = up.request("GET", "/api/v1/nodes")
    shown = next(n for n in value["items"] if n["id"] == node)
    assert (status, shown["cpu"], shown["memory"]) == (200, 1, 512 << 20)
    assert supervisor.doctor_ports(up.settings) == []
    until(lambda: raylet(up, node)).kill()
    until(lambda: [h["id"] for h in up.hosts()] == [head])
    until(lambda: not raylet(up, node))
    # Of its host nothing is left, and what happened is told until somebody has read it.
    until(lambda: not (up.settings.run / "hosts" / node).exists())
    (lost,) = until(
        lambda: [n for n in up.get("/nodes")["items"] if n["id"] == node and n["state"] == "lost"]
    )
    assert lost["detail"]
    assert up.request("DELETE", f"/api/v1/nodes/{node}")[1]["state"] == "removed"
    assert not (up.data / "hosts" / node).exists()
    assert list((up.data / "nodes" / "local").iterdir()) == []


def test_a_removed_node_goes_with_its_processes(up):
    head = next(h["id"] for h in until(up.hosts) if h["node"] == "head")
    node, _ = add(up)
    status, value = up.request("DELETE", f"/api/v1/nodes/{node}")
    assert status == 202, value
    until(lambda: [h["id"] for h in up.hosts()] == [head])
    until(lambda: not raylet(up, node))
    until(lambda: len(up.replica("Host")) == 1)
    assert [h["id"] for h in up.hosts()] == [head]
    until(lambda: node not in [n["id"] for n in up.get("/nodes")["items"]])
    assert not (up.settings.run / "hosts" / node).exists()
    assert not (up.data / "hosts" / node).exists()
    assert list((up.data / "nodes" / "local").iterdir()) == []
