"""Requests that survive: what a loss costs, who runs alone, when a circuit opens, copies, fairness."""

from __future__ import annotations

import asyncio
import hashlib

import headrace.gateway.circuit as circuit_module
import headrace.gateway.verdict as verdict_module
import pytest
from headrace import wire
from headrace.gateway.call import Call
from headrace.gateway.receipt import why_waiting
from headrace.gateway.recent import brief, document
from headrace.gateway.request import Request


class Gate:
    """Answers when it is told to."""

    def __init__(self):
        self.open = asyncio.Event()
        self.started = 0

    async def __call__(self, exchange):
        self.started += 1
        await self.open.wait()
        await exchange.answer()


class Breaking:
    """Breaks the connection off when it is told to."""

    def __init__(self):
        self.now = asyncio.Event()
        self.started = 0

    async def __call__(self, exchange):
        self.started += 1
        await self.now.wait()
        exchange.reset()


async def dying(exchange):
    exchange.reset()


def dead(rig, instance, reason):
    rig.control.instances.pop(instance.id, None)
    rig.control.send(
        wire.RouteDelta(epoch=1, dead_instances=[instance.id], dead_reasons={instance.id: reason})
    )


async def begin(rig, count=1, **kwargs):
    return [asyncio.create_task(rig.call(**kwargs)) for _ in range(count)]


def state_of(rig):
    return rig.gateway.dispatcher.state("default/echo")


# -- what a loss costs ----------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["host-lost: silent", "stopped: grace over"])
async def test_a_lost_host_costs_nothing_even_when_the_reset_comes_first(rig, monkeypatch, reason):
    monkeypatch.setattr(verdict_module, "VERDICT_S", 5.0)
    monkeypatch.setattr(verdict_module, "SURE_S", 5.0)
    rig.endpoint(retries=0)
    await rig.up()
    lost = await rig.instance(dying)
    await rig.known(lambda t: t.instances)
    (task,) = await begin(rig)
    await rig.until(lambda: rig.control.of(wire.InstanceTrouble))
    spare = await rig.instance(host="h2")
    assert not task.done()
    dead(rig, lost, reason)
    answer = await task
    assert (answer.status, answer.get("X-Headrace-Attempt")) == (200, "2")
    assert lost.requests[0].get("X-Headrace-Request-Id") == spare.requests[0].get("X-Headrace-Request-Id")
    assert state_of(rig).circuit.losses == 0
    await rig.quiet()


@pytest.mark.parametrize("word", ["signalled: 9", None])
async def test_its_own_death_costs_a_retry_by_controls_word_or_without_it(rig, monkeypatch, word):
    monkeypatch.setattr(verdict_module, "VERDICT_S", 30.0 if word else 0.02)
    monkeypatch.setattr(verdict_module, "SURE_S", 30.0 if word else 0.02)
    rig.endpoint(retries=0)
    await rig.up()
    doomed = await rig.instance(dying)
    await rig.known(lambda t: t.instances)
    (task,) = await begin(rig)
    await rig.until(lambda: rig.control.of(wire.InstanceTrouble))
    if word:
        dead(rig, doomed, word)
    answer = await task
    assert (answer.status, answer.json()["type"]) == (502, "urn:headrace:instance-died")
    await rig.quiet()


async def test_a_retry_is_paid_back_when_the_host_turns_out_to_be_lost(rig):
    gate, breaking = Gate(), Breaking()
    rig.endpoint(retries=1)
    await rig.up()
    first = await rig.instance(dying)
    await rig.known(lambda t: t.instances)
    (task,) = await begin(rig)
    await rig.until(lambda: rig.control.of(wire.InstanceTrouble))
    await rig.instance(breaking, host="h2")
    await rig.until(lambda: breaking.started)
    dead(rig, first, "host-lost: silent")
    await rig.known(lambda t: first.id not in t.instances)
    breaking.now.set()
    await rig.until(lambda: len(rig.control.of(wire.InstanceTrouble)) == 2)
    gate.open.set()
    await rig.instance(gate, host="h3")
    answer = await task
    assert (answer.status, answer.get("X-Headrace-Attempt")) == (200, "3")
    await rig.quiet()


async def test_controls_word_before_the_reset_counts_the_same(rig):
    gate = Gate()
    rig.endpoint(retries=1)
    await rig.up()
    doomed = [await rig.instance(gate) for _ in range(2)]
    await rig.known(lambda t: len(t.instances) == 2)
    (task,) = await begin(rig)
    for n in range(2):
        await rig.until(lambda n=n: gate.started == n + 1)
        dead(rig, next(i for i in doomed if i.in_flight and i.id in rig.control.instances), "oom: 2 GiB")
    answer = await task
    assert (answer.status, answer.get("X-Headrace-Attempt")) == (502, "2")
    assert "oom: 2 GiB" in answer.json()["detail"]
    await rig.quiet()


async def test_a_request_that_kills_ends_alone_and_its_neighbours_are_answered(rig):
    instances, alone_when_killed = [], []

    async def behaviour(exchange):
        me = next(i for i in instances if exchange.request in i.requests)
        if exchange.request.body != b'"poison"':
            await asyncio.sleep(0.05)
            await exchange.answer()
            return
        if exchange.request.get("X-Headrace-Attempt") == "3":
            await asyncio.sleep(0.05)
        else:
            await rig.until(lambda: me.in_flight > 1)
        alone_when_killed.append(me.in_flight == 1)
        for writer in list(me._writers):
            writer.transport.abort()
        dead(rig, me, "signalled: 11")

    rig.endpoint(retries=2, queue_requests=100)
    await rig.up()
    for _ in range(6):
        made = await rig.instance(behaviour, announce=False, concurrency=4)
        instances.append(made)
    for one in instances[:2]:
        rig.announce(one, concurrency=4)
    await rig.known(lambda t: len(t.instances) == 2)
    (poison,) = await begin(rig, body=b'"poison"')
    await rig.until(lambda: any(i.in_flight for i in instances))
    neighbours = await begin(rig, 20)

    async def replace():
        for one in instances[2:]:
            count = len(alone_when_killed)
            await rig.until(lambda count=count: len(alone_when_killed) > count or poison.done())
            rig.announce(one, concurrency=4)

    replacing = asyncio.create_task(replace())
    answer = await poison
    assert (answer.status, answer.json()["type"]) == (502, "urn:headrace:instance-killed"), answer.body
    assert {a.status for a in await asyncio.gather(*neighbours)} == {200}
    assert alone_when_killed == [False, False, True]
    sent = [r for one in instances for r in one.requests if r.body == b'"poison"']
    said = {r.get("X-Headrace-Attempt"): r.get("X-Headrace-Alone") for r in sent}
    assert said == {"1": None, "2": None, "3": "1"}, "other gateways know it from the instance"
    await replacing
    await rig.quiet()
    assert all(i.reserved is None for i in state_of(rig).instances.values())


async def test_only_so_many_requests_are_sent_again(rig):
    rig.endpoint(retries=2)
    await rig.up()
    state = state_of(rig)
    while state.budget.take():
        pass
    await rig.instance(dying)
    await rig.instance(dying)
    await rig.known(lambda t: len(t.instances) == 2)
    while state.budget.take():
        pass
    answer = await rig.call()
    assert answer.status == 502
    assert "sent again" in answer.json()["detail"]
    assert answer.get("Retry-After") == "1"
    await rig.quiet()


# -- circuit --------------------------------------------------------------------------------------


async def test_a_broken_endpoint_opens_its_circuit_and_one_probe_closes_it(rig, monkeypatch):
    monkeypatch.setattr(circuit_module, "FIRST_OPEN_S", 0.3)
    monkeypatch.setattr(verdict_module, "VERDICT_S", 0.01)
    monkeypatch.setattr(verdict_module, "SURE_S", 0.01)
    rig.endpoint(retries=0)
    await rig.up()
    for n in range(circuit_module.OPENS_AFTER):
        doomed = await rig.instance(dying, host=f"h{n}")
        await rig.known(lambda t, id=doomed.id: id in t.instances)
        assert (await rig.call()).status == 502
        dead(rig, doomed, "signalled: 11")
        await rig.known(lambda t, id=doomed.id: id not in t.instances)
    gate = Gate()
    good = await rig.instance(gate, concurrency=8)
    await rig.known(lambda t: good.id in t.instances)
    answer = await rig.call()
    assert (answer.status, answer.json()["type"]) == (503, "urn:headrace:circuit-open")
    assert int(answer.get("Retry-After")) >= 1
    assert good.requests == []
    await rig.until(lambda: state_of(rig).circuit.lets_through(asyncio.get_running_loop().time()))
    probes = await begin(rig, 3)
    await rig.until(lambda: gate.started == 1)
    done, rest = await asyncio.wait(probes, timeout=0.05)
    assert gate.started == 1, "one probe at a time"
    gate.open.set()
    answers = await asyncio.gather(*rest, *done)
    assert {a.status for a in answers} <= {200, 503}
    assert (await rig.call()).status == 200
    assert not state_of(rig).circuit.open
    await rig.quiet()


async def test_a_new_version_has_a_circuit_of_its_own(rig, monkeypatch):
    monkeypatch.setattr(verdict_module, "VERDICT_S", 0.01)
    monkeypatch.setattr(verdict_module, "SURE_S", 0.01)
    rig.endpoint(retries=0)
    await rig.up()
    old = [await rig.instance(dying, host=f"h{n}") for n in range(circuit_module.OPENS_AFTER)]
    await rig.known(lambda t: len(t.instances) == len(old))
    for _ in old:
        assert (await rig.call()).status == 502
    assert (await rig.call()).json()["type"] == "urn:headrace:circuit-open"
    rig.endpoint(retries=0, version=2)
    good = await rig.instance(version=2)
    await rig.known(lambda t: good.id in t.instances)
    assert (await rig.call()).status == 200
    assert not state_of(rig).circuit.open
    await rig.quiet()


async def test_when_probe_after_probe_fails_nobody_is_kept_waiting(rig, monkeypatch):
    monkeypatch.setattr(circuit_module, "FIRST_OPEN_S", 0.01)
    rig.endpoint(retries=100)
    await rig.up()
    tasks = await begin(rig, 8)
    await rig.until(lambda: rig.gateway.dispatcher.in_use() == (0, 8))
    limit = circuit_module.OPENS_AFTER + circuit_module.HOPELESS_AFTER - 1
    for n in range(limit):
        doomed = await rig.instance(dying, host=f"h{n}")
        await rig.until(lambda n=n: len(rig.control.of(wire.InstanceTrouble)) == n + 1)
        dead(rig, doomed, "signalled: 11")
        await rig.known(lambda t, id=doomed.id: id not in t.instances)
    await rig.until(lambda: sum(task.done() for task in tasks) >= 5)
    refused = [task.result() for task in tasks if task.done() and task.result().status == 503]
    assert len(refused) >= 5
    assert {a.json()["type"] for a in refused} == {"urn:headrace:circuit-open"}
    await rig.instance()
    rest = [await task for task in tasks]
    assert {a.status for a in rest} <= {200, 502, 503}, "the probe itself was not in the queue"
    await rig.quiet()


async def test_what_handlers_raise_opens_no_circuit(rig):
    async def raising(exchange):
        await exchange.answer(b"{}", status=500, extra="X-Headrace-Exception: ValueError\r\n")

    rig.endpoint()
    await rig.up()
    await rig.instance(raising)
    await rig.known(lambda t: t.instances)
    answers = [(await rig.call()).status for _ in range(3 * circuit_module.OPENS_AFTER)]
    assert set(answers) == {500}


# -- a second copy --------------------------------------------------------------------------------


async def test_a_slow_request_is_copied_and_the_first_answer_wins(rig):
    gate = Gate()
    rig.endpoint(hedge_after_s=0.05)
    await rig.up()
    slow = await rig.instance(gate)
    await rig.known(lambda t: t.instances)
    (task,) = await begin(rig)
    await rig.until(lambda: gate.started)
    fast = await rig.instance()
    answer = await task
    assert (answer.status, answer.get("X-Headrace-Attempt")) == (200, "2")
    assert slow.requests[0].get("X-Headrace-Request-Id") == fast.requests[0].get("X-Headrace-Request-Id")
    await rig.until(lambda: slow.cancelled == 1)
    await rig.quiet()


async def test_what_becomes_of_a_copy_is_not_the_requests_status_nor_a_retry(rig):
    gate = Gate()

    async def full(exchange):
        await exchange.answer(b"{}", status=503, extra="X-Headrace-Refused: full\r\n")

    rig.endpoint(hedge_after_s=0.02, retries=0)
    await rig.up()
    await rig.instance(gate)
    await rig.known(lambda t: t.instances)
    (task,) = await begin(rig)
    await rig.until(lambda: gate.started)
    other = await rig.instance(full)
    meter = state_of(rig).meter
    await rig.until(lambda: meter.attempts["refused"] == 1)
    gate.open.set()
    assert (await task).status == 200
    await rig.quiet()
    assert {kind: h.total for kind, h in meter.requests.items()} == {2: 1}
    assert meter.attempts["answered"] == 1
    assert meter.attempts["refused"] == len(other.requests)
    assert not meter.retries


async def test_refusals_without_end_are_counted_and_not_kept(rig):
    refusals = 0

    async def full(exchange):
        nonlocal refusals
        if refusals < 8:
            refusals += 1
            await exchange.answer(b"{}", status=503, extra="X-Headrace-Refused: full\r\n")
        else:
            await exchange.answer()

    rig.endpoint(retries=0)
    await rig.up()
    await rig.instance(full)
    await rig.known(lambda t: t.instances)
    call, ended = make_call(rig)
    rig.gateway.dispatcher.submit(call)
    await rig.until(lambda: ended)
    assert [a.outcome for a in call.attempts] == ["answered"]
    meter = state_of(rig).meter
    assert (meter.attempts["refused"], meter.attempts["answered"], meter.retries["refused"]) == (8, 1, 8)
    await rig.quiet()


async def test_a_copy_dies_quietly_and_the_first_goes_on(rig):
    gate = Gate()
    rig.endpoint(hedge_after_s=0.02, retries=0)
    await rig.up()
    first = await rig.instance(gate)
    await rig.known(lambda t: t.instances)
    (task,) = await begin(rig)
    await rig.until(lambda: gate.started)
    await rig.instance(dying)
    await rig.until(lambda: rig.control.of(wire.InstanceTrouble))
    gate.open.set()
    assert (await task).status == 200
    assert first.cancelled == 0
    await rig.quiet()


async def test_copies_that_die_count_and_what_killed_two_runs_alone(rig):
    breaking, alone = [Breaking() for _ in range(2)], Breaking()
    rig.endpoint(hedge_after_s=0.02, retries=5)
    await rig.up()
    doomed = [await rig.instance(one) for one in breaking]
    await rig.known(lambda t: len(t.instances) == 2)
    (task,) = await begin(rig)
    for n, one in enumerate(breaking):
        await rig.until(lambda: all(b.started for b in breaking))
        one.now.set()
        await rig.until(lambda n=n: len(rig.control.of(wire.InstanceTrouble)) == n + 1)
    for one in doomed:
        dead(rig, one, "exited: exit code 3")
    third = [await rig.instance(alone) for _ in range(2)]
    await rig.until(lambda: alone.started)
    assert state_of(rig).queue.alone == {}
    alone.now.set()
    await rig.until(lambda: len(rig.control.of(wire.InstanceTrouble)) == 3)
    dead(rig, next(i for i in third if i.requests), "exited: exit code 3")
    answer = await task
    assert (answer.status, answer.json()["type"]) == (502, "urn:headrace:instance-killed")
    assert answer.json()["detail"].startswith("3 instances died")
    assert sum(len(i.requests) for i in third) == 1, "no copy of what has killed before"
    await rig.quiet()


async def test_a_copy_that_found_no_room_goes_out_when_there_is_some(rig):
    gate, other = Gate(), Gate()
    rig.endpoint(hedge_after_s=0.02)
    await rig.up()
    await rig.instance(gate)
    await rig.known(lambda t: t.instances)
    (task,) = await begin(rig)
    await rig.until(lambda: gate.started)
    await tried_to_copy(rig, state_of(rig))
    await rig.instance(other)
    await rig.until(lambda: other.started)
    other.open.set()
    answer = await task
    assert (answer.status, answer.get("X-Headrace-Attempt")) == (200, "2")
    await rig.quiet()


async def tried_to_copy(rig, state):
    """Wait until all that run have tried, and have set themselves a time to try again."""
    calls = [a.call for i in state.instances.values() for a in i.running]
    timers = [call._hedge for call in calls]
    await rig.until(lambda: all(c._hedge is not t for c, t in zip(calls, timers, strict=True)))


async def test_nothing_is_copied_while_others_wait_or_the_budget_is_spent(rig):
    gate = Gate()
    rig.endpoint(hedge_after_s=0.02)
    await rig.up()
    instances = [await rig.instance(gate) for _ in range(2)]
    await rig.known(lambda t: len(t.instances) == 2)
    tasks = await begin(rig, 3)
    await rig.until(lambda: gate.started == 2)
    state = state_of(rig)
    await tried_to_copy(rig, state)
    assert gate.started == 2
    gate.open.set()
    assert {a.status for a in await asyncio.gather(*tasks)} == {200}
    while state.budget.take():
        pass
    gate.open.clear()
    (task,) = await begin(rig)
    await rig.until(lambda: gate.started == 4)
    await tried_to_copy(rig, state)
    assert sum(len(i.requests) for i in instances) == 4
    gate.open.set()
    assert (await task).status == 200
    await rig.quiet()


async def test_the_receipt_tells_time_in_lost_attempts_from_waiting(rig):
    breaking = Breaking()
    rig.endpoint(retries=1)
    await rig.up()
    await rig.instance(breaking)
    await rig.known(lambda t: t.instances)
    (task,) = await begin(rig)
    await rig.until(lambda: breaking.started)
    began = asyncio.get_running_loop().time()
    await rig.instance()
    await rig.known(lambda t: len(t.instances) == 2)
    ran_ms = (asyncio.get_running_loop().time() - began) * 1e3
    breaking.now.set()
    line = (await task).get("Server-Timing")
    spent = {name: float(ms) for name, _, ms in (part.partition(";dur=") for part in line.split(", "))}
    assert spent["lost"] >= ran_ms * 0.9
    assert spent["queue"] + spent["lost"] <= spent["total"] + 0.02


async def test_an_instance_that_fails_fast_does_not_draw_all_requests(rig):
    async def fails(exchange):
        await exchange.answer(b"{}", status=500)

    async def works(exchange):
        await asyncio.sleep(0.01)
        await exchange.answer()

    rig.endpoint()
    await rig.up()
    bad = await rig.instance(fails, concurrency=8)
    await rig.instance(works, concurrency=8)
    await rig.known(lambda t: len(t.instances) == 2)

    async def client():
        return [(await rig.call()).status for _ in range(20)]

    found = [status for one in await asyncio.gather(*(client() for _ in range(4))) for status in one]
    assert len(bad.requests) == found.count(500)
    assert found.count(500) < len(found) / 2, "an error is fast, not good"


async def test_p95_needs_samples_and_then_copies_the_slow_ones(rig):
    slow_ones = {"30"}

    async def behaviour(exchange):
        if exchange.request.get("X-N") in slow_ones and exchange.request.get("X-Headrace-Attempt") == "1":
            await asyncio.sleep(20)
        await exchange.answer()

    rig.endpoint(hedge_quantile=0.95)
    await rig.up()
    instances = [await rig.instance(behaviour, concurrency=2) for _ in range(2)]
    await rig.known(lambda t: len(t.instances) == 2)
    assert state_of(rig).hedge_delay() == 0.0
    for n in range(31):
        answer = await rig.call(extra=f"X-N: {n}\r\n")
        assert answer.status == 200
    assert answer.get("X-Headrace-Attempt") == "2"
    assert sum(i.cancelled for i in instances) <= 1
    await rig.until(lambda: sum(i.cancelled for i in instances) == 1)
    await rig.quiet()


# -- several gateways, fairness, bounds -----------------------------------------------------------


async def test_two_gateways_never_exceed_an_instances_concurrency(rig):
    running = most = 0

    async def behaviour(exchange):
        nonlocal running, most
        if running >= 3:
            await exchange.answer(b"{}", status=503, extra="X-Headrace-Refused: full\r\n")
            return
        running += 1
        most = max(most, running)
        try:
            await asyncio.sleep(0.002)
        finally:
            running -= 1
        await exchange.answer()

    rig.endpoint(retries=0)
    await rig.up()
    await rig.up()
    await rig.instance(behaviour, concurrency=3)
    await rig.until(lambda: all(g.table.instances for g in rig.gateways))

    async def through(gateway):
        client = await asyncio.open_connection("127.0.0.1", gateway.port)
        try:
            found = []
            for _ in range(10):
                client[1].write(rig.request())
                found.append((await client[0].readuntil(b"\r\n\r\n")).split()[1])
                await client[0].readexactly(len(b'{"ok":true}'))
            return found
        finally:
            client[1].close()

    answers = await asyncio.gather(*(through(g) for g in rig.gateways for _ in range(5)))
    assert {status for one in answers for status in one} == {b"200"}
    assert most == 3
    assert rig.control.of(wire.InstanceTrouble) == []


async def test_a_greedy_key_does_not_starve_another_and_makes_room_for_it(rig):
    order = []

    async def behaviour(exchange):
        order.append(exchange.request.get("X-Who"))
        await exchange.answer()

    rig.control.keys.append(wire.KeyRecord(id="k2", hash=hashlib.sha256(b"other").hexdigest()))
    rig.endpoint(state="idle", queue_requests=20)
    await rig.up()
    greedy = await begin(rig, 20, extra="X-Who: greedy\r\n")
    await rig.until(lambda: rig.gateway.dispatcher.in_use() == (0, 20))
    modest = await begin(rig, 2, extra="X-Who: modest\r\n", key="other")
    done, _ = await asyncio.wait(greedy, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    await rig.until(lambda: sum(t.done() for t in greedy) == 2)
    assert {t.result().status for t in greedy if t.done()} == {429}
    assert all(t.result().get("Retry-After") for t in done)
    await rig.instance(behaviour)
    assert {a.status for a in await asyncio.gather(*modest)} == {200}
    await asyncio.gather(*greedy)
    assert order[:4].count("modest") == 2, order
    await rig.quiet()


async def test_priorities_are_kept_and_nonsense_is_refused(rig):
    order = []

    async def behaviour(exchange):
        order.append(exchange.request.get("X-Headrace-Priority"))
        await exchange.answer()

    rig.endpoint(state="idle")
    await rig.up()
    tasks = []
    for n, word in enumerate(["low", "normal", "High"]):
        tasks += await begin(rig, extra=f"X-Headrace-Priority: {word}\r\n")
        await rig.until(lambda n=n: rig.gateway.dispatcher.in_use() == (0, n + 1))
    await rig.instance(behaviour)
    await asyncio.gather(*tasks)
    assert order == ["High", "normal", "low"]
    assert (await rig.call(extra="X-Headrace-Priority: urgent\r\n")).status == 400


# -- streams, hooks, receipts ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("media", "starts"),
    [("text/event-stream", b"event: error\ndata: {"), ("application/x-ndjson", b'{"error":{')],
)
async def test_a_stream_whose_instance_dies_ends_with_the_reason(rig, media, starts):
    began = asyncio.Event()

    async def behaviour(exchange):
        await exchange.begin_chunked(media)
        await exchange.chunk(b'{"n":1}\n')
        began.set()
        await asyncio.sleep(20)

    rig.endpoint()
    await rig.up()
    doomed = await rig.instance(behaviour)
    await rig.instance(announce=False)
    await rig.known(lambda t: t.instances)
    (task,) = await begin(rig)
    await began.wait()
    await rig.until(lambda: rig.gateway.dispatcher.in_use() == (1, 0))
    state = state_of(rig)
    await rig.until(lambda: any(a.call.head_sent for i in state.instances.values() for a in i.running))
    dead(rig, doomed, "oom: above 1 GiB")
    answer = await task
    assert starts in answer.body
    assert b"oom: above 1 GiB" in answer.body
    assert not answer.complete
    await rig.quiet()


class Sink:
    """A client that nobody is connected to."""

    writable, gone = True, False

    def __init__(self):
        self.given = []

    def reply(self, request, data):
        self.given.append(("reply", data))

    def write(self, data):
        self.given.append(("write", data))

    def end(self, request):
        self.given.append(("end",))

    def cut(self, request):
        self.given.append(("cut",))

    def fail(self, request, error, extra=b""):
        self.given.append(("fail", error))

    def closes(self, request):
        return False

    def release_body(self, request):
        pass


def make_call(rig, **options):
    request = Request(Sink())
    request.body = b"{}"
    call = Call(rig.gateway.dispatcher, request, state_of(rig), None, b"/", 30.0, **options)
    ended = []
    call.on_done = ended.append
    return call, ended


async def test_a_call_without_a_connection_tells_when_it_is_done_and_how_it_went(rig):
    gate = Gate()
    rig.endpoint(reason="host h1 is full")
    await rig.up()
    call, ended = make_call(rig, priority="high", key="jobs")
    rig.gateway.dispatcher.submit(call)
    assert call.phase == "queued"
    waiting = document(brief(call), "gw", call)
    assert (waiting["state"], waiting["attempts"]) == ("queued", [])
    assert waiting["waiting"]["for"] == "instance"
    assert waiting["waiting"]["reason"].startswith(
        "waking its endpoint: no instance came (host h1 is full); for 0."
    )
    assert why_waiting(call).endswith(" s")
    broken = await rig.instance(dying)
    await rig.until(lambda: rig.control.of(wire.InstanceTrouble))
    good = await rig.instance(gate)
    await rig.until(lambda: gate.started)
    assert call.phase == "sent"
    assert document(brief(call), "gw", call)["attempts"][-1]["outcome"] == "running"
    gate.open.set()
    await rig.until(lambda: ended)
    assert ended == [call]
    assert (call.phase, call.error, call.instance.route.id) == ("answered", None, good.id)
    found = document(brief(call), "gw")
    assert (found["state"], found["priority"], found["lost"]) == ("succeeded", "high", 1)
    assert [(a["number"], a["instance"], a["outcome"]) for a in found["attempts"]] == [
        (1, broken.id, "lost"),
        (2, good.id, "answered"),
    ]
    receipt = found["receipt"]
    assert receipt["tier"] == "forked"
    assert receipt["total_ms"] >= receipt["queued_ms"] > 0
    assert all(a.ended >= a.sent_at > 0 for a in call.attempts)
    assert call.request.client.given[0][0] == "reply"
    await rig.quiet()


async def test_a_call_that_is_cancelled_or_fails_is_told_once(rig):
    gate = Gate()
    rig.endpoint(queue_requests=1)
    await rig.up()
    instance = await rig.instance(gate)
    await rig.known(lambda t: t.instances)
    running, running_ended = make_call(rig)
    waiting, waiting_ended = make_call(rig)
    refused, refused_ended = make_call(rig)
    for call in (running, waiting, refused):
        rig.gateway.dispatcher.submit(call)
    assert (refused.phase, refused_ended, refused.error.type) == ("failed", [refused], "queue-full")
    await rig.until(lambda: gate.started)
    for call in (running, waiting):
        call.cancel()
        call.cancel()
        assert call.phase == "cancelled"
    assert (running_ended, waiting_ended) == ([running], [waiting])
    assert running.attempts[0].outcome == "cancelled"
    assert running.request.client.given == []
    await rig.until(lambda: instance.cancelled == 1)
    await rig.quiet()
