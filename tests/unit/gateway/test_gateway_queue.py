from __future__ import annotations

from headrace import wire
from headrace.gateway.endpoints import EndpointState, Instance
from headrace.gateway.queue import WaitQueue
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule


class Item:
    alone = False

    def __init__(self, order, version=None, size=1, *, rank=1, key="k"):
        self.order, self.version, self.size = order, version, size
        self.rank, self.key = rank, key
        self.queued_at = float(order)


class QueueModel(RuleBasedStateMachine):
    """The queue against a plain list."""

    def __init__(self):
        super().__init__()
        self.queue, self.model, self.taken, self.next = WaitQueue(), [], [], 1

    @rule(version=st.sampled_from([None, 1, 2]), size=st.integers(0, 9))
    def push(self, version, size):
        item = Item(self.next, version, size)
        self.next += 1
        self.queue.push(item)
        self.model.append(item)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def pop(self, data):
        version = data.draw(st.sampled_from(sorted({i.version for i in self.model}, key=str)))
        item = self.queue.pop(version)
        assert item is next(i for i in self.model if i.version == version)
        self.model.remove(item)
        self.taken.append(item)

    @precondition(lambda self: self.taken)
    @rule()
    def put_back(self):
        item = self.taken.pop()
        self.queue.push(item, front=True)
        first = next((n for n, i in enumerate(self.model) if i.version == item.version), len(self.model))
        self.model.insert(first, item)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data):
        item = data.draw(st.sampled_from(self.model))
        assert self.queue.remove(item)
        assert not self.queue.remove(item)
        self.model.remove(item)

    @invariant()
    def it_knows_who_insists_on_a_version(self):
        versions = [item.version for item in self.model if item.version is not None]
        assert self.queue.named() == {version: versions.count(version) for version in set(versions)}

    @invariant()
    def agrees(self):
        assert len(self.queue) == len(self.model)
        assert self.queue.bytes == sum(i.size for i in self.model)
        heads = {i.version: i for i in reversed(self.model)}
        assert {i.version: i for i in self.queue.heads()} == heads
        assert self.queue.fits(1, len(self.model) + 1, self.queue.bytes + 1)
        assert not self.queue.fits(1, len(self.model), 10**9)
        assert not self.queue.fits(1, 10**9, self.queue.bytes)


TestQueue = QueueModel.TestCase
TestQueue.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_heads_come_in_their_order_and_drain_gives_all():
    queue: WaitQueue = WaitQueue()
    items = [Item(1, 2), Item(2), Item(3, 2), Item(4)]
    for item in items:
        queue.push(item)
    assert queue.heads() == items[:2]
    assert queue.oldest() == 1.0
    assert queue.drain() == items
    assert (len(queue), queue.bytes, queue.oldest()) == (0, 0, None)


def state_with(*loads, concurrency=4):
    state = EndpointState("default/a", wire.EndpointRoute(endpoint="default/a", version=1, state="ready"))
    for n, load in enumerate(loads):
        route = wire.InstanceRoute(
            id=f"i{n}",
            endpoint="default/a",
            version=1,
            host="h",
            address="unix:/x",
            token="t",
            concurrency=concurrency,
        )
        made = Instance(route, state)
        made.in_flight = load
        state.instances[route.id] = made
    return state


async def test_the_least_loaded_of_a_few_is_taken_and_never_a_busy_one():
    assert state_with(3, 1, 2).pick(None).route.id == "i1"
    assert state_with(4, 4).pick(None) is None
    assert state_with().pick(None) is None
    assert state_with(1, 2).pick(None, avoid=("i0",)).route.id == "i1"
    assert state_with(1, 4).pick(None, avoid=("i0",)).route.id == "i0", "nothing else is free"
    many = state_with(*[4] * 30, 3)
    assert {many.pick(None).route.id for _ in range(50)} == {"i30"}
    assert many.pick(2) is None


async def test_one_is_filled_to_its_target_before_another_is_used():
    state = state_with(0, 0, 0)
    for instance in state.instances.values():
        instance.target = 2
        state.filed(instance)

    def change(id: str, by: int) -> None:
        state.instances[id].in_flight += by
        state.filed(state.instances[id])

    taken = []
    for _ in range(5):
        taken.append(state.pick(None).route.id)
        change(taken[-1], 1)
    assert taken == ["i2", "i2", "i1", "i1", "i0"]
    # What is free of the one used last comes first, and then an idle one again.
    change("i1", -1)
    change("i2", -1)
    assert state.pick(None).route.id == "i2"
    change("i2", -1)
    assert state.pick(None).route.id == "i1"
    assert list(state.idle) == [state.instances["i2"]]
    # Beyond the targets the least loaded is taken; who is gone is not.
    for id, by in (("i0", 1), ("i1", 1), ("i2", 3)):
        change(id, by)
    assert not state.filling
    assert state.pick(None).route.id in {"i0", "i1"}
    gone = state.instances["i0"]
    gone.usable = False
    change("i0", -1)
    assert not state.filling


async def test_retry_after_follows_the_drain_rate():
    state = state_with(1, 1, concurrency=1)
    state.service = 4.0
    for n in range(10):
        state.queue.push(Item(n + 1))
    assert state.retry_after() == 20
    state.service = 1000.0
    assert state.retry_after() == 60


def test_those_that_run_alone_come_in_their_order_also_when_put_back():
    queue: WaitQueue = WaitQueue()
    items = [Item(n) for n in range(5)]
    for n in (3, 1, 4, 0, 2):
        items[n].alone = True
        queue.push(items[n], front=True)
    assert list(queue.alone) == items
    assert queue.remove(items[2])
    queue.push(items[2])
    assert list(queue.alone) == items
