"""How many hosts a cluster shall have, and what a node's labels say."""

from __future__ import annotations

import pytest
from headrace.cluster.ports import ClusterNode, hosts_wanted


def node(id="a", **more):
    return ClusterNode(**{"id": id, "name": id, "address": "127.0.0.1", "alive": True, "head": False, **more})


def test_one_host_for_each_living_node_of_the_kind():
    nodes = [node("a"), node("b"), node("c", alive=False), node("d", draining=True), node("e", kind="h100")]
    assert hosts_wanted(nodes, "generic") == 2
    assert hosts_wanted(nodes, "h100") == 1


def test_never_none_since_serve_refuses_it():
    assert hosts_wanted([], "generic") == 1


@pytest.mark.parametrize("labels", [{}, {"headrace.cpu": "2"}, {"headrace.cpu": "x", "headrace.memory": "1"}])
def test_without_labels_the_host_detects(labels):
    deployments = pytest.importorskip("headrace.cluster.ray_deployments")
    assert deployments.declared_resources(labels) is None


def test_labels_declare_resources():
    deployments = pytest.importorskip("headrace.cluster.ray_deployments")
    found = deployments.declared_resources(
        {"headrace.cpu": "2.5", "headrace.memory": "1024", "headrace.gpu.L4": "2", "other": "x"}
    )
    assert (found.cpu, found.memory, found.gpu) == (2.5, 1024, {"L4": 2})


@pytest.mark.parametrize(
    ("label", "price"),
    [({}, 1.5), ({"headrace.price": "3.29"}, 3.29), ({"headrace.price": "0"}, 0.0),
     ({"headrace.price": "dear"}, 1.5), ({"headrace.price": "-1"}, 1.5), ({"headrace.price": "nan"}, 1.5)],
)  # fmt: skip
def test_a_node_costs_what_its_label_says_if_that_is_a_price(label, price):
    deployments = pytest.importorskip("headrace.cluster.ray_deployments")
    assert deployments.declared_price(label, 1.5) == price
