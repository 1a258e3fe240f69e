from __future__ import annotations

import asyncio

import headrace.gateway.dispatch as module
from headrace import wire


class Gate:
    """A behaviour that answers when it is told to."""

    def __init__(self):
        self.open = asyncio.Event()
        self.started = 0

    async def __call__(self, exchange):
        self.started += 1
        await self.open.wait()
        await exchange.answer()


def refusing(why):
    async def behaviour(exchange):
        await exchange.answer(b"{}", status=503, extra=f"X-Headrace-Refused: {why}\r\n")

    return behaviour


async def dying(exchange):
    exchange.reset()


async def start(rig, count, **kwargs):
    """So many requests at once, on a connection each; gives the tasks."""
    return [asyncio.create_task(rig.call(**kwargs)) for _ in range(count)]


async def test_a_burst_at_zero_wakes_once_and_is_never_above_the_concurrency(rig):
    rig.endpoint(state="idle")
    await rig.up()
    tasks = await start(rig, 200)
    await rig.until(lambda: rig.gateway.dispatcher.in_use() == (0, 200))
    await rig.until(lambda: any(d.queued == 200 for m in rig.control.of(wire.Demand) for d in m.items))

    async def behaviour(exchange):
        await asyncio.sleep(0.001)
        await exchange.answer()

    instances = [await rig.instance(behaviour, concurrency=4) for _ in range(4)]
    answers = await asyncio.gather(*tasks)
    assert {a.status for a in answers} == {200}
    assert [(w.endpoint, w.version) for w in rig.control.of(wire.Wake)] == [("default/echo", None)]
    assert all(0 < i.most <= 4 for i in instances), [i.most for i in instances]
    assert all(i.connections <= 4 for i in instances)
    assert all("boot;dur=" in a.get("Server-Timing") for a in answers), "all waited for the start"
    await rig.quiet()


async def test_a_wake_is_sent_again_while_nothing_comes(rig, monkeypatch):
    monkeypatch.setattr(module, "WAKE_AGAIN_S", 0.2)
    rig.endpoint(state="idle")
    await rig.up()
    task = (await start(rig, 1))[0]
    await rig.until(lambda: len(rig.control.of(wire.Wake)) >= 2)
    await rig.instance()
    assert (await task).status == 200
    # A new episode wakes anew.
    first = len(rig.control.of(wire.Wake))
    rig.control.send(wire.RouteDelta(epoch=1, removed_instances=["i0"]))
    await rig.known(lambda t: not t.instances)
    task = (await start(rig, 1))[0]
    await rig.until(lambda: len(rig.control.of(wire.Wake)) > first)
    await rig.instance()
    assert (await task).status == 200


async def test_the_queue_is_first_in_first_out(rig):
    order = []

    async def behaviour(exchange):
        order.append(int(exchange.request.body))
        await exchange.answer()

    rig.endpoint(state="idle")
    await rig.up()
    tasks = []
    for n in range(20):
        tasks.append(asyncio.create_task(rig.call(body=str(n).encode())))
        await rig.until(lambda n=n: rig.gateway.dispatcher.in_use() == (0, n + 1))
    await rig.instance(behaviour)
    await asyncio.gather(*tasks)
    assert order == list(range(20))


async def test_the_queue_is_bounded_in_number_and_bytes(rig):
    rig.endpoint(state="idle", queue_requests=3, queue_bytes=100)
    await rig.up()
    tasks = await start(rig, 3)
    await rig.until(lambda: rig.gateway.dispatcher.in_use() == (0, 3))
    answer = await rig.call()
    assert answer.status == 429
    assert answer.json()["type"] == "urn:headrace:queue-full"
    assert int(answer.get("Retry-After")) >= 1
    await rig.instance()
    assert {a.status for a in await asyncio.gather(*tasks)} == {200}
    rig.control.send(wire.RouteDelta(epoch=1, removed_instances=["i0"]))
    await rig.known(lambda t: not t.instances)
    answer = await rig.call(body=b" " * 101)
    assert (answer.status, answer.json()["limit"]) == (413, 100), "to try again would never help"


async def test_a_failed_endpoint_says_why_at_once(rig):
    rig.endpoint(state="idle")
    await rig.up()
    waiting = await start(rig, 2)
    await rig.until(lambda: rig.gateway.dispatcher.in_use() == (0, 2))
    rig.endpoint(state="failed", reason="load raised ValueError: no weights")
    for answer in [*await asyncio.gather(*waiting), await rig.call()]:
        assert answer.status == 503
        assert answer.json()["detail"] == "load raised ValueError: no weights"
    # An old version that still runs goes on answering.
    await rig.instance()
    await rig.known(lambda t: t.instances)
    assert (await rig.call()).status == 200


async def test_a_deleted_endpoint_answers_404_to_those_who_wait(rig):
    rig.endpoint(state="idle")
    await rig.up()
    task = (await start(rig, 1))[0]
    await rig.until(lambda: rig.gateway.dispatcher.in_use() == (0, 1))
    rig.control.send(wire.RouteDelta(epoch=1, removed_endpoints=["default/echo"]))
    assert (await task).status == 404
    assert (await rig.call()).status == 404


async def test_a_refused_connection_goes_elsewhere_whatever_the_endpoint_is(rig):
    rig.endpoint(idempotent=False, retries=0)
    await rig.up()
    await rig.instance(listen=False)
    await rig.known(lambda t: t.instances)
    task = (await start(rig, 1))[0]
    await rig.until(lambda: rig.control.of(wire.InstanceTrouble))
    assert rig.control.of(wire.InstanceTrouble)[0].what == "refused"
    assert not task.done()
    await rig.instance()
    assert (await task).status == 200


async def test_a_reset_before_the_first_byte_costs_a_retry_and_another_instance(rig):
    rig.endpoint(retries=1)
    await rig.up()
    bad = [await rig.instance(dying) for _ in range(3)]
    await rig.known(lambda t: len(t.instances) == 3)
    answer = await rig.call()
    assert answer.status == 502
    assert answer.json()["type"] == "urn:headrace:instance-died"
    assert answer.get("X-Headrace-Attempt") == "2"
    asked = [i for i in bad if i.requests]
    assert [len(i.requests) for i in asked] == [1, 1], "never the same twice"
    ids = {i.requests[0].get("X-Headrace-Request-Id") for i in asked}
    assert len(ids) == 1
    await rig.instance()
    await rig.known(lambda t: len(t.instances) == 4)
    answer = await rig.call()
    assert answer.status == 200
    # Told again by control, it is used again.
    good = next(i for i in bad if i not in asked)
    rig.announce(good)
    await rig.quiet()


async def test_what_is_not_idempotent_is_not_sent_twice(rig):
    rig.endpoint(idempotent=False)
    await rig.up()
    await rig.instance(dying)
    spare = await rig.instance(announce=False)
    await rig.known(lambda t: t.instances)
    answer = await rig.call()
    assert answer.status == 502
    assert "not idempotent" in answer.json()["detail"]
    assert spare.requests == []


async def test_exceptions_named_by_retry_on_are_tried_again(rig):
    async def raising(exchange):
        await exchange.answer(b"{}", status=500, extra="X-Headrace-Exception: CudaError\r\n")

    rig.endpoint(retry_on=("CudaError",), retries=2)
    await rig.up()
    bad = await rig.instance(raising)
    await rig.known(lambda t: t.instances)
    answer = await rig.call()
    assert (answer.status, len(bad.requests)) == (500, 3)
    assert [r.get("X-Headrace-Attempt") for r in bad.requests] == ["1", "2", "3"]
    rig.endpoint(retry_on=("OtherError",))
    await rig.known(lambda t: t.endpoints["default/echo"].retry_on == ("OtherError",))
    assert (await rig.call()).status == 500
    assert len(bad.requests) == 4


async def test_a_draining_instance_gets_nothing_more(rig):
    rig.endpoint(retries=0)
    await rig.up()
    drains = await rig.instance(refusing("draining"))
    await rig.known(lambda t: t.instances)
    task = (await start(rig, 1))[0]
    await rig.until(lambda: rig.control.of(wire.Wake))
    await rig.instance()
    answer = await task
    assert answer.status == 200
    assert answer.get("X-Headrace-Attempt") is None, "a refusal is no attempt"
    assert (await rig.call()).status == 200
    assert len(drains.requests) == 1


async def test_a_full_instance_is_asked_again_later(rig):
    answers = [refusing("full")] * 3

    async def behaviour(exchange):
        if answers:
            await answers.pop()(exchange)
        else:
            await exchange.answer()

    rig.endpoint(retries=0)
    await rig.up()
    instance = await rig.instance(behaviour)
    await rig.known(lambda t: t.instances)
    assert (await rig.call()).status == 200
    assert len(instance.requests) == 4
    assert rig.control.of(wire.InstanceTrouble) == []
    await rig.quiet()


async def test_a_client_that_hangs_up_frees_its_slot(rig):
    gate = Gate()
    rig.endpoint()
    await rig.up()
    instance = await rig.instance(gate)
    await rig.known(lambda t: t.instances)
    running, waiting = await rig.connect(), await rig.connect()
    await running.send(rig.request())
    await rig.until(lambda: instance.in_flight == 1)
    await waiting.send(rig.request())
    await rig.until(lambda: rig.gateway.dispatcher.in_use() == (1, 1))
    waiting.close()
    await rig.until(lambda: rig.gateway.dispatcher.in_use() == (1, 0))
    running.close()
    await rig.until(lambda: instance.cancelled == 1)
    await rig.quiet()
    gate.open.set()
    assert (await rig.call()).status == 200
    assert gate.started == 2


async def test_the_deadline_says_where_the_request_was(rig):
    gate = Gate()
    rig.endpoint(state="idle", timeout_s=30)
    await rig.up()
    answer = await rig.call(extra="X-Headrace-Timeout: 0.1\r\n")
    assert (answer.status, answer.json()["where"]) == (504, "waking")
    instance = await rig.instance(gate)
    await rig.known(lambda t: t.instances)
    answer = await rig.call(extra="X-Headrace-Timeout: 0.1\r\n")
    assert (answer.status, answer.json()["where"]) == (504, "running")
    assert int(instance.requests[0].get("X-Headrace-Deadline-Ms")) <= 100
    await rig.until(lambda: instance.cancelled == 1)
    task = (await start(rig, 1))[0]
    await rig.until(lambda: instance.in_flight == 1)
    answer = await rig.call(extra="X-Headrace-Timeout: 0.1\r\n")
    assert (answer.status, answer.json()["where"]) == (504, "queued")
    gate.open.set()
    assert (await task).status == 200
    assert (await rig.call(extra="X-Headrace-Timeout: never\r\n")).status == 400
    await rig.quiet()


async def test_a_dead_host_costs_no_retry(rig):
    gate = Gate()
    rig.endpoint(retries=0)
    await rig.up()
    doomed = [await rig.instance(gate, concurrency=2) for _ in range(2)]
    await rig.known(lambda t: len(t.instances) == 2)
    tasks = await start(rig, 4)
    await rig.until(lambda: gate.started == 4)
    rig.dead(*doomed)
    await rig.until(lambda: rig.gateway.dispatcher.in_use() == (0, 4))
    await rig.until(lambda: rig.control.of(wire.Wake))
    await rig.instance(concurrency=1)
    answers = await asyncio.gather(*tasks)
    assert {(a.status, a.get("X-Headrace-Attempt")) for a in answers} == {(200, "2")}
    await rig.quiet()


async def test_suspects_and_old_versions_are_the_last_choice(rig):
    rig.endpoint(version=2)
    await rig.up()
    suspect = await rig.instance(version=2, suspect=True)
    old = await rig.instance(version=1)
    await rig.known(lambda t: len(t.instances) == 2)
    assert (await rig.call()).status == 200
    assert (len(old.requests), len(suspect.requests)) == (1, 0)
    new = await rig.instance(version=2)
    await rig.known(lambda t: len(t.instances) == 3)
    for _ in range(3):
        assert (await rig.call()).status == 200
    assert (len(old.requests), len(suspect.requests), len(new.requests)) == (1, 0, 3)


async def test_other_machines_need_tls(rig):
    rig.endpoint()
    await rig.up()
    remote = await rig.instance(announce=False)
    rig.announce(remote, address="tcp:10.1.2.3:80")
    await rig.known(lambda t: t.instances)
    task = (await start(rig, 1))[0]
    await rig.until(lambda: rig.control.of(wire.InstanceTrouble))
    assert "TLS" in rig.control.of(wire.InstanceTrouble)[0].detail
    await rig.instance()
    assert (await task).status == 200


async def test_copies_leave_a_budget_for_what_is_lost(rig):
    """An endpoint that is slower than its `hedge_after` sends one for each of its requests."""
    losses = 0

    async def behaviour(exchange):
        nonlocal losses
        if losses:
            losses -= 1
            exchange.reset()
            return
        await asyncio.sleep(0.05 if exchange.request.get("X-Headrace-Attempt") == "1" else 0)
        await exchange.answer()

    rig.endpoint(hedge_after_s=0.01, retries=5)
    await rig.up()
    instances = [await rig.instance(behaviour) for _ in range(4)]
    await rig.known(lambda t: len(t.instances) == 4)
    assert {(await rig.call()).status for _ in range(40)} == {200}
    assert sum(len(i.requests) for i in instances) > 50, "there were copies"
    losses = 3
    assert (await rig.call()).status == 200
    await rig.quiet()
