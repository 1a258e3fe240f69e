"""A 502 says why the instance died, when control knows it in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from headrace import wire
from headrace.gateway import verdict

OOM = "oom: OOM-killed at 512 MiB"


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """So long that only the reason can end the wait in a test."""
    monkeypatch.setattr(verdict, "VERDICT_S", 3600.0)
    monkeypatch.setattr(verdict, "SURE_S", 3600.0)


def dies(rig: Any, id: str, reason: str) -> None:
    rig.control.instances.pop(id, None)
    rig.control.send(wire.RouteDelta(epoch=rig.control.epoch, dead_instances=[id], dead_reasons={id: reason}))


def dying(rig: Any, reason: str = OOM) -> Callable[[Any], Awaitable[None]]:
    """Resets the connection; control tells why only when the gateway has seen that."""

    told: set[asyncio.Task[None]] = set()

    async def tell(id: str) -> None:
        await rig.until(lambda: id in [t.instance for t in rig.control.of(wire.InstanceTrouble)])
        dies(rig, id, reason)

    async def behaviour(exchange: Any) -> None:
        id = (exchange.request.get("X-Headrace-Token") or "").removeprefix("token-")
        # What serves the connection ends with it.
        told.add(asyncio.create_task(tell(id)))
        exchange.reset()

    return behaviour


async def test_what_may_run_only_once_says_why_it_failed(rig: Any, patient: None) -> None:
    rig.endpoint(idempotent=False)
    await rig.up()
    await rig.instance(dying(rig))
    await rig.known(lambda t: t.instances)
    answer = await rig.call()
    assert answer.status == 502
    assert f"({OOM})" in answer.json()["detail"]
    assert answer.json()["type"] == "urn:headrace:instance-died"
    await rig.quiet()


@pytest.mark.parametrize(
    ("retries", "says"),
    [
        (0, "the instance died while it worked on the request: exited: exit code "),
        (1, "2 instances died while they worked on this request, the last one while it ran there alone: "),
        (2, "3 instances died while they worked on this request, the last one while it ran there alone: "),
    ],
)
async def test_the_last_of_several_deaths_is_told_and_retries_do_not_wait(
    rig: Any, patient: None, retries: int, says: str
) -> None:
    rig.endpoint(retries=retries)
    await rig.up()
    for number in range(retries + 1):
        await rig.instance(dying(rig, f"exited: exit code {number}"))
    await rig.known(lambda t: len(t.instances) == retries + 1)
    answer = await rig.call()
    assert answer.status == 502
    assert answer.get("X-Headrace-Attempt") == (str(retries + 1) if retries else None)
    assert answer.json()["detail"].startswith(says)
    assert "exited: exit code " in answer.json()["detail"]


async def test_a_retried_request_is_answered_without_waiting_for_reasons(rig: Any, patient: None) -> None:
    async def resets(exchange: Any) -> None:
        exchange.reset()

    rig.endpoint()
    await rig.up()
    await rig.instance(resets)
    await rig.known(lambda t: t.instances)
    waiting = asyncio.create_task(rig.call())
    await rig.until(lambda: rig.control.of(wire.InstanceTrouble))
    await rig.instance()
    assert (await waiting).status == 200


async def test_a_broken_stream_ends_with_the_reason(rig: Any, patient: None) -> None:
    async def behaviour(exchange: Any) -> None:
        await exchange.begin_chunked()
        await exchange.chunk(b'{"n":1}\n')
        await broken.wait()
        exchange.reset()

    broken = asyncio.Event()
    rig.endpoint()
    await rig.up()
    doomed = await rig.instance(behaviour)
    await rig.known(lambda t: t.instances)
    client = await rig.connect()
    await client.send(rig.request())
    await client.reader.readuntil(b'{"n":1}\n')
    broken.set()
    await rig.until(lambda: not doomed._writers)
    dies(rig, doomed.id, OOM)
    async with asyncio.timeout(10):
        rest = await client.reader.read()
    assert OOM in rest.decode()
    await rig.quiet()


async def test_who_breaks_an_answer_off_is_not_taken_from_the_others(rig: Any) -> None:
    """An ASGI app may fail in the middle of its answer: the instance is well, and so says its host."""

    async def behaviour(exchange: Any) -> None:
        if exchange.request.body == b'"breaks"':
            await exchange.begin_chunked()
            await exchange.chunk(b'{"n":1}\n')
            exchange.reset()
        else:
            await exchange.answer()

    rig.endpoint()
    await rig.up()
    instance = await rig.instance(behaviour, concurrency=2)
    await rig.known(lambda t: t.instances)
    answer = await rig.call(body=b'"breaks"')
    assert "broke off" in answer.body.splitlines()[-1].decode()
    assert (await rig.call()).status == 200
    assert len(instance.requests) == 2
    assert rig.control.of(wire.InstanceTrouble) == []
    assert rig.gateway.dispatcher.state("default/echo").circuit.losses == 0


async def test_broken_connections_to_a_living_instance_are_no_deaths(rig: Any) -> None:
    async def resets(exchange: Any) -> None:
        exchange.reset()

    rig.endpoint(retries=3)
    await rig.up()
    instance = await rig.instance(resets)
    await rig.known(lambda t: t.instances)
    waiting = asyncio.create_task(rig.call())
    for count in range(1, 4):
        await rig.until(lambda count=count: len(rig.control.of(wire.InstanceTrouble)) == count)
        rig.announce(instance)
    answer = await waiting
    assert (answer.status, answer.json()["type"]) == (502, "urn:headrace:instance-died")
    assert "sent 4 times" in answer.json()["detail"]
    assert len(instance.requests) == 4
    assert all(r.get("X-Headrace-Alone") is None for r in instance.requests)


async def test_all_where_it_was_lost_are_the_last_choice(rig: Any) -> None:
    seen: list[str] = []

    async def resets(exchange: Any) -> None:
        seen.append((exchange.request.get("X-Headrace-Token") or "").removeprefix("token-"))
        exchange.reset()

    rig.endpoint(retries=3)
    await rig.up()
    lost = [await rig.instance(resets) for _ in range(2)]
    await rig.known(lambda t: len(t.instances) == 2)
    waiting = asyncio.create_task(rig.call())
    await rig.until(lambda: len(rig.control.of(wire.InstanceTrouble)) == 2)
    good = await rig.instance(announce=False)
    routes = [rig.control.instances[one.id] for one in lost]
    routes.append(
        msgspec.structs.replace(routes[0], id=good.id, address=f"unix:{good.path}", token=f"token-{good.id}")
    )
    rig.control.send(wire.RouteDelta(epoch=rig.control.epoch, instances=routes))
    answer = await waiting
    assert (answer.status, answer.get("X-Headrace-Attempt")) == (200, "3")
    assert len(good.requests) == 1
    assert sorted(seen) == sorted(i.id for i in lost)


async def test_without_a_reason_the_error_comes_all_the_same(rig: Any) -> None:
    async def resets(exchange: Any) -> None:
        exchange.reset()

    rig.endpoint(idempotent=False)
    await rig.up()
    await rig.instance(resets)
    await rig.known(lambda t: t.instances)
    answer = await rig.call()
    assert answer.status == 502
    assert "its instance, or the connection to it, was lost at work" in answer.json()["detail"]
    await rig.quiet()


async def test_a_client_that_leaves_does_not_wait_for_the_reason(rig: Any, patient: None) -> None:
    async def resets(exchange: Any) -> None:
        exchange.reset()

    rig.endpoint(idempotent=False)
    await rig.up()
    await rig.instance(resets)
    await rig.known(lambda t: t.instances)
    client = await rig.connect()
    await client.send(rig.request())
    await rig.until(lambda: rig.control.of(wire.InstanceTrouble))
    assert rig.gateway.dispatcher.in_use() == (1, 0)
    client.close()
    await rig.quiet()


@pytest.mark.parametrize(("reason", "free"), [("host-lost: silent", True), ("exited: exit code 3", False)])
async def test_a_lost_host_costs_no_retry_and_a_death_does(rig: Any, reason: str, free: bool) -> None:
    """Else a request that kills would be sent for ever, were its deaths always told before they are seen."""
    started = asyncio.Event()

    async def hangs(exchange: Any) -> None:
        started.set()
        await asyncio.sleep(60)

    rig.endpoint(retries=0)
    await rig.up()
    first = await rig.instance(hangs)
    await rig.known(lambda t: t.instances)
    waiting = asyncio.create_task(rig.call())
    await asyncio.wait_for(started.wait(), 10)
    await rig.instance()
    await rig.known(lambda t: len(t.instances) == 2)
    dies(rig, first.id, reason)
    answer = await waiting
    assert answer.status == (200 if free else 502)
    assert free or reason in answer.json()["detail"]


async def test_a_lost_host_costs_no_retry_either_when_that_is_told_late(rig: Any, patient: None) -> None:
    """The connection breaks first, as it does when a host dies."""
    rig.endpoint(retries=0)
    await rig.up()
    await rig.instance(dying(rig, "host-lost: host h1 was silent for 3.0 s"))
    await rig.known(lambda t: t.instances)
    waiting = asyncio.create_task(rig.call())
    await rig.until(lambda: rig.control.of(wire.InstanceTrouble))
    await rig.instance()
    answer = await waiting
    assert (answer.status, answer.get("X-Headrace-Attempt")) == (200, "2")


async def test_a_request_whose_instance_and_control_die_together_waits_for_both(
    rig: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "ADOPT_WINDOW_S", -0.9)
    started, end = asyncio.Event(), asyncio.Event()

    async def resets(exchange: Any) -> None:
        started.set()
        await end.wait()
        exchange.reset()

    rig.endpoint(retries=0)
    gateway = await rig.up()
    first = await rig.instance(resets)
    await rig.known(lambda t: t.instances)
    waiting = asyncio.create_task(rig.call())
    await asyncio.wait_for(started.wait(), 10)
    await rig.control.stop()
    await rig.until(lambda: not gateway._control.is_up)
    end.set()
    # Long after the wait for a reason: control is away, and may know one.
    await asyncio.sleep(verdict.VERDICT_S * 2)
    assert not waiting.done()
    del rig.control.instances[first.id]
    rig.control.epoch = 2
    await rig.control.start()
    await rig.instance()
    assert (await waiting).status == 200


async def test_who_waits_for_control_to_return_hears_of_the_death_at_the_deadline(rig: Any) -> None:
    async def resets(exchange: Any) -> None:
        await rig.control.stop()
        await rig.until(lambda: not rig.gateway._control.is_up)
        exchange.reset()

    rig.endpoint(retries=0, timeout_s=1)
    await rig.up()
    await rig.instance(resets)
    await rig.known(lambda t: t.instances)
    answer = await rig.call()
    assert (answer.status, answer.json()["type"]) == (502, "urn:headrace:instance-died")
    await rig.quiet()


@pytest.mark.parametrize("began", [True, False])
async def test_what_is_not_sent_again_waits_for_the_reason_up_to_its_deadline(
    rig: Any, patient: None, began: bool
) -> None:
    async def breaks(exchange: Any) -> None:
        if began:
            await exchange.begin_chunked()
            await exchange.chunk(b'{"n":1}\n')
        exchange.reset()

    rig.endpoint(idempotent=False, timeout_s=0.3)
    await rig.up()
    await rig.instance(breaks)
    await rig.known(lambda t: t.instances)
    answer = await rig.call()
    assert answer.status == (200 if began else 502)
    assert b"urn:headrace:instance-died" in answer.body
    await rig.quiet()


@pytest.mark.parametrize("dead", [True, False])
async def test_a_request_on_a_host_that_is_suspect_waits_for_its_fate(rig: Any, dead: bool) -> None:
    """All instances of a host that dies break off at once; that it is dead is known seconds later."""
    rig.endpoint(retries=1)
    await rig.up()
    end = asyncio.Event()

    async def resets(exchange: Any) -> None:
        await end.wait()
        exchange.reset()

    first, second = await rig.instance(resets), await rig.instance(resets)
    await rig.known(lambda t: len(t.instances) == 2)
    waiting = asyncio.create_task(rig.call())
    await rig.until(lambda: first.requests or second.requests)
    for instance in (first, second):
        rig.announce(instance, suspect=True)
    await rig.known(lambda t: all(i.suspect for i in t.instances.values()))
    end.set()
    await rig.until(lambda: len(rig.control.of(wire.InstanceTrouble)) == 2)
    await asyncio.sleep(verdict.VERDICT_S * 2)
    assert not waiting.done()
    await rig.instance(host="h2")
    if dead:
        for instance in (first, second):
            dies(rig, instance.id, "host-lost: host h1 was silent for 3.0 s")
    else:
        # It had only stood still; what broke off is told as before.
        for instance in (first, second):
            dies(rig, instance.id, "exited: exit code 3")
    assert (await waiting).status == (200 if dead else 502)
