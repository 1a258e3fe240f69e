"""Which losses are deaths, and who runs alone for them: only control knows."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from headrace import wire
from headrace.gateway import deaths, verdict

CONCURRENCY = 4


async def resets(exchange: Any) -> None:
    exchange.reset()


def dies(rig: Any, id: str, reason: str = "exited: exit code 3") -> None:
    rig.control.instances.pop(id, None)
    rig.control.send(wire.RouteDelta(epoch=rig.control.epoch, dead_instances=[id], dead_reasons={id: reason}))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """So long that only control's word can end the wait in a test."""
    monkeypatch.setattr(verdict, "VERDICT_S", 3600.0)
    monkeypatch.setattr(verdict, "SURE_S", 3600.0)


def troubles(rig: Any) -> int:
    return len(rig.control.of(wire.InstanceTrouble))


@pytest.mark.parametrize("announced", [True, False])
async def test_broken_connections_to_several_living_instances_are_no_deaths(
    rig: Any, monkeypatch: pytest.MonkeyPatch, announced: bool
) -> None:
    """Control announces them again later than a verdict on one that is dead takes, or is silent."""
    monkeypatch.setattr(verdict, "SURE_S", 3600.0 if announced else 0.5)
    rig.endpoint(retries=2)
    await rig.up()
    both = [await rig.instance(resets) for _ in range(2)]
    await rig.known(lambda t: len(t.instances) == 2)
    waiting = asyncio.create_task(rig.call())
    await rig.until(lambda: troubles(rig) == 2)
    if announced:
        await asyncio.sleep(verdict.VERDICT_S * 2)
    for one in both:
        rig.announce(one)
    await rig.until(lambda: troubles(rig) == 3)
    if announced:
        await asyncio.sleep(verdict.VERDICT_S * 2)
        assert not waiting.done(), "whether it died is not known yet"
        for one in both:
            rig.announce(one)
    answer = await waiting
    assert (answer.status, answer.json()["type"]) == (502, "urn:headrace:instance-died")
    assert "sent 3 times, and its instance or the connection was lost" in answer.json()["detail"]
    requests = [r for one in both for r in one.requests]
    assert [r.get("X-Headrace-Alone") for r in requests] == [None] * 3
    await rig.quiet()


async def test_what_is_gone_from_controls_table_is_dead_without_a_word(
    rig: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdict, "SURE_S", 0.3)
    rig.endpoint(retries=0)
    await rig.up()
    one = await rig.instance(resets)
    await rig.known(lambda t: t.instances)
    waiting = asyncio.create_task(rig.call())
    await rig.until(lambda: troubles(rig))
    del rig.control.instances[one.id]
    rig.control.send(wire.RouteDelta(epoch=rig.control.epoch, removed_instances=[one.id]))
    answer = await waiting
    assert answer.json()["detail"].startswith("the instance died while it worked on the request")


async def test_alone_for_a_death_that_control_denies_it_goes_on_with_the_retries_it_has(
    rig: Any, patient: None
) -> None:
    rig.endpoint(retries=3)
    await rig.up()
    first = await rig.instance(resets)
    await rig.known(lambda t: t.instances)
    waiting = asyncio.create_task(rig.call())
    await rig.until(lambda: troubles(rig) == 1)
    dies(rig, first.id)
    second = await rig.instance(resets)
    await rig.until(lambda: troubles(rig) == 2)
    dies(rig, second.id)
    third = await rig.instance(resets)
    await rig.until(lambda: troubles(rig) == 3)
    good = await rig.instance()
    rig.announce(third)
    answer = await waiting
    assert (answer.status, answer.get("X-Headrace-Attempt")) == (200, "4")
    assert [r.get("X-Headrace-Alone") for r in (*third.requests, *good.requests)] == ["1", "1"]
    await rig.quiet()


async def test_with_one_retry_a_request_that_kills_ends_alone_too(
    rig: Any, monkeypatch: pytest.MonkeyPatch, patient: None
) -> None:
    monkeypatch.setattr(deaths, "ALONE_S", 60.0)
    instances: list[Any] = []
    begun, kill, go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def behaviour(exchange: Any) -> None:
        me = next(i for i in instances if exchange.request in i.requests)
        if exchange.request.body == b'"poison"':
            begun.set()
            await kill.wait()
            for writer in list(me._writers):
                writer.transport.abort()
            dies(rig, me.id)
        elif me is instances[0]:
            await asyncio.sleep(60)
        else:
            await go.wait()
            await exchange.answer()

    rig.endpoint(retries=1)
    await rig.up()
    instances.append(await rig.instance(behaviour, concurrency=CONCURRENCY))
    await rig.known(lambda t: t.instances)
    tasks = [asyncio.create_task(rig.call(body=b'"poison"'))]
    await asyncio.wait_for(begun.wait(), 10)
    tasks += [asyncio.create_task(rig.call()) for _ in range(CONCURRENCY - 1)]
    await rig.until(lambda: instances[0].in_flight == CONCURRENCY)
    for _ in range(2):
        instances.append(await rig.instance(behaviour, announce=False))
    kill.set()
    await rig.known(lambda t: not t.instances)
    rig.announce(instances[1], concurrency=CONCURRENCY)
    go.set()
    poison = tasks[0]
    await asyncio.wait({poison}, timeout=10)
    rig.announce(instances[2], concurrency=CONCURRENCY)
    answers = await asyncio.gather(*tasks)
    assert [a.status for a in answers] == [502, 200, 200, 200]
    assert answers[0].json()["type"] == "urn:headrace:instance-killed"
    assert answers[0].json()["detail"].startswith("2 instances died")
    sent = [r for one in instances[1:] for r in one.requests]
    assert {r.get("X-Headrace-Alone") for r in sent} == {"1"}
    assert max(i.most for i in instances[1:]) == 1
    await rig.quiet()


async def first_instance_that_keeps(rig: Any, stay: asyncio.Event) -> tuple[list[Any], Any]:
    """An endpoint with one retry whose first instance answers nothing, and its others after ``stay``."""
    instances: list[Any] = []

    async def behaviour(exchange: Any) -> None:
        if exchange.request in instances[0].requests:
            await asyncio.sleep(60)
        await stay.wait()
        await exchange.answer()

    rig.endpoint(retries=1)
    await rig.up()
    instances.append(await rig.instance(behaviour, concurrency=CONCURRENCY))
    await rig.known(lambda t: t.instances)
    return instances, behaviour


async def test_after_one_death_none_waits_for_long_to_be_alone(
    rig: Any, monkeypatch: pytest.MonkeyPatch, patient: None
) -> None:
    """Those who were beside it would wait for each other, one by one."""
    monkeypatch.setattr(deaths, "ALONE_S", 2.0)
    stay = asyncio.Event()
    instances, behaviour = await first_instance_that_keeps(rig, stay)
    tasks = [asyncio.create_task(rig.call()) for _ in range(CONCURRENCY)]
    await rig.until(lambda: instances[0].in_flight == CONCURRENCY)
    instances += [await rig.instance(behaviour, concurrency=CONCURRENCY) for _ in range(2)]
    await rig.known(lambda t: len(t.instances) == 3)
    for writer in list(instances[0]._writers):
        writer.transport.abort()
    dies(rig, instances[0].id)
    await rig.until(lambda: sum(i.in_flight for i in instances[1:]) == 2)
    stay_alone = [r for one in instances[1:] for r in one.requests]
    assert {r.get("X-Headrace-Alone") for r in stay_alone} == {"1"}
    # The others have no instance of their own; after a while they are sent with whoever comes.
    state = rig.gateway.dispatcher.state("default/echo")
    await rig.until(lambda: not state.queue.alone)
    third = await rig.instance(behaviour, concurrency=CONCURRENCY)
    fourth = await rig.instance(behaviour, concurrency=CONCURRENCY)
    instances += [third, fourth]
    late = [asyncio.create_task(rig.call()) for _ in range(CONCURRENCY)]
    await rig.until(lambda: sum(i.in_flight for i in instances[1:]) == 2 * CONCURRENCY)
    stay.set()
    answers = await asyncio.gather(*tasks, *late)
    assert {a.status for a in answers} == {200}
    await rig.quiet()
    assert all(i.reserved is None for i in state.instances.values())


async def test_after_one_death_none_runs_alone_if_the_others_would_wait_for_long(
    rig: Any, monkeypatch: pytest.MonkeyPatch, patient: None
) -> None:
    """They had run for longer than all of them may take, one by one; what they need, nobody knows yet."""
    monkeypatch.setattr(deaths, "ALONE_S", 0.2)
    stay = asyncio.Event()
    instances, behaviour = await first_instance_that_keeps(rig, stay)
    tasks = [asyncio.create_task(rig.call()) for _ in range(CONCURRENCY - 1)]
    await rig.until(lambda: instances[0].in_flight == CONCURRENCY - 1)
    await asyncio.sleep(deaths.ALONE_S)
    instances.append(await rig.instance(behaviour, concurrency=CONCURRENCY))
    await rig.known(lambda t: len(t.instances) == 2)
    for writer in list(instances[0]._writers):
        writer.transport.abort()
    dies(rig, instances[0].id)
    await rig.until(lambda: instances[1].in_flight == CONCURRENCY - 1)
    tasks.append(asyncio.create_task(rig.call()))
    await rig.until(lambda: instances[1].in_flight == CONCURRENCY)
    stay.set()
    assert {(await t).status for t in tasks} == {200}
    assert {r.get("X-Headrace-Alone") for r in instances[1].requests} == {None}
    await rig.quiet()


async def test_the_loss_of_a_host_makes_nobody_run_alone(rig: Any, patient: None) -> None:
    gate = asyncio.Event()

    async def hangs(exchange: Any) -> None:
        await gate.wait()
        exchange.reset()

    rig.endpoint(retries=1)
    await rig.up()
    lost = await rig.instance(hangs, concurrency=CONCURRENCY)
    await rig.known(lambda t: t.instances)
    tasks = [asyncio.create_task(rig.call()) for _ in range(CONCURRENCY)]
    await rig.until(lambda: lost.in_flight == CONCURRENCY)
    gate.set()
    await rig.until(lambda: troubles(rig))
    good = await rig.instance(host="h2", concurrency=CONCURRENCY)
    await rig.known(lambda t: good.id in t.instances)
    await asyncio.sleep(0.05)
    assert good.requests == [], "nobody was taken for one that kills before control said what died"
    dies(rig, lost.id, "host-lost: silent")
    assert {(await t).status for t in tasks} == {200}
    assert {r.get("X-Headrace-Alone") for r in good.requests} == {None}
    await rig.quiet()


async def test_who_went_alone_on_suspicion_is_no_suspect_once_control_denies_the_death(
    rig: Any, patient: None
) -> None:
    """While a host is suspect nobody waits for the word on what died there: that may take seconds."""

    async def resets_once(exchange: Any) -> None:
        if len(only.requests) == 1:
            exchange.reset()
        else:
            await exchange.answer()

    rig.endpoint(retries=1)
    await rig.up()
    only = await rig.instance(resets_once, announce=False)
    rig.announce(only, suspect=True)
    await rig.known(lambda t: t.instances)
    waiting = asyncio.create_task(rig.call())
    dispatcher = rig.gateway.dispatcher
    await rig.until(lambda: (state := dispatcher.state("default/echo")) is not None and state.queue.alone)
    rig.announce(only)
    assert (await waiting).status == 200
    assert [r.get("X-Headrace-Alone") for r in only.requests] == [None, None]
    await rig.quiet()


@pytest.mark.parametrize("losses", [2, 3, 4])
async def test_while_control_says_nothing_what_was_lost_twice_runs_alone(
    rig: Any, monkeypatch: pytest.MonkeyPatch, losses: int
) -> None:
    """Its instances may all be dead; that a request killed them needs control's word."""
    monkeypatch.setattr(verdict, "SURE_S", 0.05)
    seen: list[Any] = []

    async def behaviour(exchange: Any) -> None:
        seen.append(exchange.request)
        if len(seen) <= losses:
            exchange.reset()
        else:
            await exchange.answer()

    rig.endpoint(retries=3)
    await rig.up()
    for _ in range(4):
        await rig.instance(behaviour)
    await rig.known(lambda t: len(t.instances) == 4)
    answer = await rig.call()
    assert [r.get("X-Headrace-Alone") for r in seen] == [None, None, "1", "1"][: losses + 1]
    if losses < 4:
        assert (answer.status, answer.get("X-Headrace-Attempt")) == (200, str(losses + 1))
    else:
        assert (answer.status, answer.json()["type"]) == (502, "urn:headrace:instance-died")
        assert "sent 4 times, and its instance or the connection was lost" in answer.json()["detail"]
    await rig.quiet()
