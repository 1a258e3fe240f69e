"""The kept orders of hosts give what looking at each host for each start gives."""

from __future__ import annotations

import pytest
from headrace_autoscaler.placement import FEW, Book
from headrace_autoscaler.rooms import EPSILON, Order, Room, kind_of, pick_gpu, qualifies
from headrace_autoscaler.spec import HostObservation, InstanceObservation, ScalingSpec
from hypothesis import given, settings
from hypothesis import strategies as st

NAMES = "abcdefgh"


class Scan:
    """The oracle: every host is looked at for every start."""

    def __init__(self, hosts):
        self.rooms = {h.host: [h, h.cpu_free, h.memory_free, dict(h.gpu_free)] for h in hosts}

    def place(self, wish, endpoint):
        best = None
        for host, cpu, memory, gpus in self.rooms.values():
            gpu = pick_gpu(gpus, wish.gpu)
            if cpu + EPSILON < wish.cpu or memory < wish.memory or not qualifies(host, wish) or gpu is None:
                continue
            key = (
                gpu[0],
                endpoint not in host.warm,
                0 if wish.gpu or not host.gpu_free else 1,
                0 if wish.spot == "never" or host.spot else 1,
                host.price,
                -cpu,
                -memory,
                host.host,
            )
            best = min(best, (key, gpu[1])) if best is not None else (key, gpu[1])
        if best is None:
            return None
        room = self.rooms[best[0][-1]]
        room[1] -= wish.cpu
        room[2] -= wish.memory
        if best[1] is not None:
            room[3][best[1][0]] -= best[1][1]
        return best[0][-1]

    def give_back(self, name, wish):
        room = self.rooms[name]
        room[1] += wish.cpu
        room[2] += wish.memory
        for gpu, count in wish.gpu[:1]:
            room[3][gpu] = room[3].get(gpu, 0) + count


def hosts_named(names):
    return st.tuples(
        *(
            st.builds(
                HostObservation,
                host=st.just(name),
                provider=st.sampled_from("pq"),
                region=st.sampled_from("rs"),
                spot=st.booleans(),
                price=st.sampled_from([0.0, 1.0, 2.0]),
                state=st.sampled_from(["ready", "ready", "ready", "suspect"]),
                cpu_free=st.sampled_from([0.0, 1.0, 2.0, 4.0]),
                memory_free=st.sampled_from([0, 100, 400]),
                gpu_free=st.dictionaries(st.sampled_from("XY"), st.integers(0, 3)),
                runtimes=st.sampled_from([("process",), ("process", "oci")]),
                warm=st.lists(st.sampled_from("EFG"), unique=True).map(tuple),
            )
            for name in names
        )
    )


wishes = st.builds(
    ScalingSpec,
    cpu=st.sampled_from([0.0, 0.5, 1.0]),
    memory=st.sampled_from([0, 100]),
    gpu=st.sampled_from([(), (("X", 1),), (("X", 2), ("Y", 1)), (("Y", 1), ("X", 1))]),
    providers=st.sampled_from([(), ("p",)]),
    regions=st.sampled_from([(), ("r",)]),
    spot=st.sampled_from(["prefer", "never", "only"]),
    runtime=st.sampled_from(["process", "oci"]),
)
endpoints = st.sampled_from("EFGH")


@given(
    hosts=st.integers(0, len(NAMES)).flatmap(lambda n: hosts_named(NAMES[:n])),
    starts=st.lists(st.tuples(wishes, endpoints), max_size=15),
)
@settings(max_examples=50)
def test_each_start_goes_where_a_look_at_all_hosts_sends_it(hosts, starts):
    book, scan = Book(hosts), Scan(hosts)
    for wish, endpoint in starts:
        found = scan.place(wish, endpoint)
        assert book.place(wish, endpoint) == found
        assert book.has_room(wish) == any(
            Scan([_now(room)]).place(wish, endpoint) is not None for room in scan.rooms.values()
        )


def _now(room):
    host, cpu, memory, gpus = room
    return HostObservation(
        host=host.host, provider=host.provider, region=host.region, spot=host.spot, price=host.price,
        state=host.state, cpu_free=cpu, memory_free=memory, gpu_free=gpus, runtimes=host.runtimes,
        warm=host.warm,
    )  # fmt: skip


@given(
    hosts=hosts_named(NAMES),
    starts=st.lists(st.tuples(wishes, endpoints), min_size=1, max_size=12),
    later=st.lists(st.tuples(wishes, endpoints), max_size=12),
)
@settings(max_examples=40)
def test_also_after_instances_gave_way(hosts, starts, later):
    book, scan = Book(hosts), Scan(hosts)
    donors = []
    for number, (wish, endpoint) in enumerate(starts):
        name = scan.place(wish, endpoint)
        assert book.place(wish, endpoint) == name
        if name is not None:
            idle = InstanceObservation(id=str(number), host=name, version=1, state="ready")
            donors.append((endpoint, idle, wish))
    for wish, endpoint in later:
        found = scan.place(wish, endpoint)
        assert book.place(wish, endpoint) == found
        if found is not None:
            continue
        made = book.make_room(wish, donors)
        if made is None:
            continue
        name, given_ = made
        for one in given_:
            scan.give_back(name, one.donor[2])
            donors.remove(one.donor)
        gpu = pick_gpu(scan.rooms[name][3], wish.gpu)
        assert gpu is not None
        scan.rooms[name][1] -= wish.cpu
        scan.rooms[name][2] -= wish.memory
        if gpu[1] is not None:
            scan.rooms[name][3][gpu[1][0]] -= gpu[1][1]
        assert scan.rooms[name][1] >= -EPSILON
        assert scan.rooms[name][2] >= 0


def test_donors_on_hosts_that_are_gone_or_do_not_qualify_do_not_help():
    hosts = [HostObservation(host="a", state="suspect")]
    idle = [InstanceObservation(id=name, host=name, version=1, state="ready", cpu=1.0) for name in "ab"]
    wish = ScalingSpec(cpu=1.0)
    assert Book(hosts).make_room(wish, [("E", one, wish) for one in idle]) is None


def test_wishes_share_an_order_apart_from_how_much_they_want():
    assert kind_of(ScalingSpec(cpu=1.0, max=3)) == kind_of(ScalingSpec(cpu=2.0, memory=5))
    assert kind_of(ScalingSpec(spot="never")) != kind_of(ScalingSpec())


@pytest.mark.parametrize("number", range(FEW + 2))
def test_a_zygote_that_is_ready_is_found_however_many_were_looked_for(number):
    hosts = [HostObservation(host=name, cpu_free=99.0, warm=(f"E{name}",)) for name in NAMES]
    book = Book(hosts)
    for asked in range(number):
        assert book.place(ScalingSpec(), f"E{NAMES[asked]}") == NAMES[asked]
    assert book.place(ScalingSpec(), f"E{NAMES[number]}") == NAMES[number]


def test_of_two_hosts_the_one_whose_instance_is_idle_longest_makes_room():
    hosts = [HostObservation(host=name) for name in "ab"]
    wish = ScalingSpec(cpu=1.0)
    for used in ({"a": 5.0, "b": 9.0}, {"a": 9.0, "b": 5.0}):
        donors = [
            (
                "E",
                InstanceObservation(id=name, host=name, version=1, state="ready", last_used_at=at),
                wish,
            )
            for name, at in used.items()
        ]
        made = Book(hosts).make_room(wish, donors)
        assert made is not None
        assert made[0] == min(used, key=lambda name: used[name])


def test_an_order_catches_up_with_what_changed():
    hosts = [
        HostObservation(host=name, cpu_free=cpu, memory_free=8, gpu_free={"L4": 1})
        for name, cpu in (("a", 4.0), ("b", 2.0))
    ]
    rooms = {h.host: Room(h, h.cpu_free, h.memory_free, dict(h.gpu_free)) for h in hosts}
    changed = []
    wish = ScalingSpec(cpu=1.0, gpu=(("L4", 1),))
    order = Order(wish, rooms, changed)
    assert [order.best(wish, ()), order.best(wish, ())] == ["a", "a"]
    assert order.fits(wish)
    # Its accelerator is taken, and a change more leaves it so; then it is given back.
    rooms["a"].gpu["L4"] = 0
    changed.append("a")
    assert order.best(wish, ()) == "b"
    rooms["a"].cpu = 3.0
    changed.append("a")
    assert order.best(wish, ()) == "b"
    rooms["a"].gpu["L4"] = 1
    changed.append("a")
    assert order.best(wish, ()) == "a"
    # One that it may not run on is not its business.
    changed.append("elsewhere")
    assert order.best(wish, ("b",)) == "b"
