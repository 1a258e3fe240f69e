"""Nodes: what becomes of those that fail or vanish, and that nothing of them stays."""

from __future__ import annotations

import hashlib
import json

import pytest
from headrace.config import Settings
from headrace.control import node_manager
from headrace.control.node_manager import Nodes
from headrace.control.server import Control
from headrace_providers import registry
from headrace_providers.errors import NoCapacity
from headrace_providers.fake import FakeProvider
from headrace_providers.offers import JoinInfo

from tests.integration.control.conftest import TOKEN, Platform


class Cluster:
    """A cluster that knows no node."""

    async def nodes(self):
        raise OSError("the cluster does not answer")

    async def drain_node(self, node_id, deadline_s):
        raise AssertionError("there is no node")


class WithNodes(Platform):
    """Control with a node manager and the fake provider."""

    def new_control(self) -> Control:
        self.swept: list[str] = []
        self.alive: set[str] = set()

        def sweep(node: str) -> bool:
            self.swept.append(node)
            return node not in self.alive

        self.nodes = Nodes(
            Cluster(), cluster_id="c-1", state_dir=self.settings.data / "nodes", sweep=sweep,
            join=lambda: JoinInfo(address="127.0.0.1:1", token_path="/nowhere"),
        )  # fmt: skip
        hashed = hashlib.sha256(b"key").hexdigest()
        return Control(self.settings, token=TOKEN, admin_key_hash=hashed, nodes=self.nodes)

    async def add(self, **body):
        status, doc = await self.gateway.api("POST", "/nodes", {"provider": "fake", **body})
        assert status == 202, doc
        return doc["items"][0]["id"]

    def row(self, node):
        return next((n for n in self.nodes.all_nodes() if n["id"] == node), None)


@pytest.fixture
def provider():
    return FakeProvider()


@pytest.fixture
async def platform(tmp_path, monkeypatch, provider):
    # The tests say when it reconciles.
    monkeypatch.setattr(node_manager, "PERIOD_S", 3600.0)
    monkeypatch.setattr(registry, "installed", lambda: {"fake": None})
    monkeypatch.setattr(registry, "load", lambda name, state_dir: provider)
    (tmp_path / "d").mkdir(mode=0o700)
    made = WithNodes(Settings(data_dir=str(tmp_path / "d"), run_dir=str(tmp_path / "r"), control_port=0))
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def test_a_lost_node_is_cleaned_up_once_and_remembers_why(platform, provider):
    node = await platform.add()
    await platform.new_host(node, gpu={"H100": 2})
    await platform.nodes.reconcile()
    assert platform.row(node)["state"] == "ready"
    assert platform.row(node)["gpu"] == {"H100": 2}
    await provider.terminate(node)
    # Its host still lives: its directory is not touched.
    await platform.nodes.reconcile()
    await platform.nodes.reconcile()
    assert (platform.row(node)["state"], platform.swept) == ("lost", [])
    platform.parts[-1].cut()
    await platform.until(lambda: all(h.state == "dead" for h in platform.control.hosts()))
    platform.alive.add(node)
    await platform.nodes.reconcile()
    platform.alive.clear()
    for _ in range(3):
        await platform.nodes.reconcile()
    assert platform.swept == [node, node]
    detail = platform.row(node)["detail"]
    assert "does not know it any more" in detail
    await platform.restart()
    assert platform.row(node)["detail"] == detail


async def test_a_failed_node_is_terminated_at_its_provider(platform, provider):
    node = await platform.add()
    cluster, found = provider._nodes[node]
    provider._nodes[node] = cluster, type(found)(**{f: getattr(found, f) for f in found.__struct_fields__} | {
        "state": "failed", "detail": "no power",
    })  # fmt: skip
    await platform.nodes.reconcile()
    assert (platform.row(node)["state"], platform.row(node)["detail"]) == ("failed", "no power")
    await platform.nodes.reconcile()
    assert await provider.list_owned("c-1") == []
    assert platform.row(node)["state"] == "failed"


async def test_a_removed_node_leaves_nothing(platform):
    node = await platform.add()
    logs = platform.settings.data / "hosts" / node / "logs"
    logs.mkdir(parents=True)
    (logs / "x.log").write_text("x")
    status, doc = await platform.gateway.api("DELETE", f"/nodes/{node}")
    assert (status, doc["state"]) == (202, "draining")
    for _ in range(2):
        await platform.nodes.reconcile()
    assert platform.row(node) is None
    assert platform.swept == [node]
    assert not logs.parent.exists()


async def test_a_lost_node_is_forgotten_at_once(platform, provider):
    node = await platform.add()
    await platform.nodes.reconcile()
    await provider.terminate(node)
    await platform.nodes.reconcile()
    status, doc = await platform.gateway.api("DELETE", f"/nodes/{node}")
    assert (status, doc["state"]) == (202, "removed")
    assert platform.row(node) is None


@pytest.mark.parametrize("label", ["headrace.node", "headrace.provider", "headrace.cpu"])
async def test_the_platforms_own_labels_cannot_be_given(platform, provider, label):
    body = json.dumps({"provider": "fake", "labels": {label: "head"}}).encode()
    status, doc = await platform.gateway.api("POST", "/nodes", body)
    assert status == 422
    assert label in doc["detail"]
    assert await provider.list_owned("c-1") == []


async def test_a_launch_that_fails_leaves_nothing_and_says_where_to_look(platform, provider):
    provider.fail_next(NoCapacity("none today"))
    status, doc = await platform.gateway.api("POST", "/nodes", {"provider": "fake"})
    assert status == 503
    assert "none today" in doc["detail"]
    assert platform.nodes.all_nodes() == []
