"""The fake provider is product code: it passes the suite that real ones pass."""

from __future__ import annotations

import pytest
from headrace_providers import conformance, registry
from headrace_providers.errors import NoCapacity, UnknownProvider
from headrace_providers.fake import FakeProvider
from headrace_providers.offers import JoinInfo, NodeRequest

REQUEST = NodeRequest(id="n-1", cluster="c-1", join=JoinInfo(address="127.0.0.1:1", token_path="/nowhere"))


async def test_conformance() -> None:
    await conformance.run(FakeProvider, REQUEST)


async def test_boots_after_its_time() -> None:
    now = 100.0
    provider = FakeProvider(boot_s=30, clock=lambda: now)
    assert (await provider.launch(REQUEST)).state == "pending"
    now = 129.9
    assert (await provider.get("n-1")).state == "pending"
    now = 130.0
    assert (await provider.get("n-1")).state == "running"


async def test_scheduled_failures_come_in_order_and_leave_nothing() -> None:
    provider = FakeProvider()
    provider.fail_next(NoCapacity("none today"))
    with pytest.raises(NoCapacity):
        await provider.launch(REQUEST)
    assert await provider.list_owned("c-1") == []
    assert (await provider.launch(REQUEST)).state == "running"


def test_the_local_plugin_is_found_by_its_entry_point(tmp_path) -> None:
    assert registry.load("local", tmp_path).name == "local"


def test_an_unknown_plugin_names_the_closest(tmp_path) -> None:
    with pytest.raises(UnknownProvider, match="did you mean 'local'"):
        registry.load("locl", tmp_path)
