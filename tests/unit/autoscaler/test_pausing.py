"""Who gives way is paused where that helps, goes on before anything new is started, and ends in the end."""

from __future__ import annotations

from typing import Any

import msgspec
from headrace_autoscaler.placement import Book, Given
from headrace_autoscaler.policy import decide
from headrace_autoscaler.spec import (
    Config,
    EndpointObservation,
    HostObservation,
    InstanceObservation,
    Observation,
    Pause,
    Release,
    Resume,
    ScalingSpec,
    Start,
    State,
    Wait,
)
from hypothesis import given
from hypothesis import strategies as st

NOW = 1000.0
CONFIG = Config()
GPU = (("X1", 1),)
SCALING = ScalingSpec(cpu=1.0, memory=100, gpu=GPU, runtime="oci")


def host(name: str = "h", **changes: Any) -> HostObservation:
    base: dict[str, Any] = {
        "host": name, "cpu_free": 0.0, "memory_free": 100, "gpu_free": {"X1": 0}, "runtimes": ("oci",),
        "pauses": ("oci",), "pauses_gpu": True, "paused_free": 1000,
    }  # fmt: skip
    return HostObservation(**(base | changes))


def instance(id: str, state: str = "ready", used: float = 990.0, **changes: Any) -> InstanceObservation:
    base: dict[str, Any] = {
        "id": id, "host": "h", "version": 1, "state": state, "last_used_at": used, "cpu": 1.0, "memory": 100,
        "gpu": GPU,
    }  # fmt: skip
    return InstanceObservation(**(base | changes))


def wants(*instances: InstanceObservation, queued: int = 1, version: int = 1, **scaling: Any) -> Any:
    return EndpointObservation(
        endpoint="b", version=version, scaling=msgspec.structs.replace(SCALING, **scaling), queued=queued,
        instances=instances,
    )  # fmt: skip


def decided(endpoint: Any, hosts: Any, *donors: InstanceObservation) -> list[Any]:
    seen = Observation(
        endpoints=(endpoint,),
        hosts=tuple(hosts),
        idle_elsewhere=tuple(("a", donor, msgspec.structs.replace(SCALING)) for donor in donors),
    )
    return list(decide(NOW, seen, State(), CONFIG).actions)


def test_an_idle_one_is_paused_and_the_next_starts_after_it() -> None:
    pause, start = decided(wants(), [host()], instance("i1"))
    assert isinstance(pause, Pause)
    assert (pause.endpoint, pause.instance) == ("a", "i1")
    assert isinstance(start, Start)
    assert start.after == ("i1",)


def test_a_paused_one_goes_on_before_anything_is_started() -> None:
    pause, resume = decided(wants(instance("i2", "paused")), [host(memory_free=0)], instance("i1"))
    assert isinstance(pause, Pause)
    assert resume == Resume(
        endpoint="b", instance="i2", reason="0 in flight and 1 queued ask for 1", after=("i1",)
    )


def test_where_there_is_room_nobody_gives_way() -> None:
    free = host(cpu_free=1.0, memory_free=0, gpu_free={"X1": 1})
    (resume,) = decided(wants(instance("i2", "paused")), [free], instance("i1"))
    assert isinstance(resume, Resume)
    assert resume.after == ()


def test_a_free_host_is_used_rather_than_one_that_is_busy() -> None:
    other = host("h2", cpu_free=4.0, memory_free=400, gpu_free={"X1": 1})
    (start,) = decided(wants(instance("i2", "paused")), [host(), other], instance("i1"))
    assert isinstance(start, Start)
    assert start.host == "h2"


def test_accelerators_are_given_back_by_an_end_where_pausing_keeps_them() -> None:
    for full in (host(pauses_gpu=False), host(pauses=()), host(paused_free=99)):
        release, start = decided(wants(), [full], instance("i1"))
        assert isinstance(release, Release)
        assert isinstance(start, Start)
        assert start.after == ("i1",)


def test_when_memory_is_short_a_paused_one_ends_and_nobody_is_paused() -> None:
    short = host(cpu_free=4.0, memory_free=0, gpu_free={"X1": 1})
    release, start = decided(wants(), [short], instance("i1"), instance("i3", "paused", used=900.0))
    assert (type(release), release.instance) == (Release, "i3")
    assert isinstance(start, Start)
    release, start = decided(wants(), [short], instance("i1"))
    assert (type(release), release.instance) == (Release, "i1")


def test_the_one_that_was_paused_longest_ago_makes_room_for_the_next() -> None:
    full = host(paused_free=50)
    old, older = instance("i3", "paused", used=900.0), instance("i4", "paused", used=800.0)
    actions = decided(wants(), [full], instance("i1"), old, older)
    assert [(type(a), getattr(a, "instance", "")) for a in actions] == [
        (Release, "i4"), (Pause, "i1"), (Start, ""),
    ]  # fmt: skip


def test_paused_ones_count_neither_as_capacity_nor_against_max() -> None:
    room = host(cpu_free=4.0, memory_free=400, gpu_free={"X1": 1})
    (start,) = decided(wants(instance("i2", "paused", host="gone"), max=1), [room])
    assert isinstance(start, Start)


def test_a_paused_one_of_another_version_never_goes_on() -> None:
    room = host(cpu_free=4.0, memory_free=400, gpu_free={"X1": 2})
    start, release = decided(wants(instance("i2", "paused"), version=2), [room])
    assert (type(start), type(release)) == (Start, Release)


def test_one_that_nobody_calls_ends_in_the_end() -> None:
    kept = wants(instance("i2", "paused", used=NOW - CONFIG.paused_hold_s + 1), queued=0)
    assert decided(kept, [host()]) == []
    (release,) = decided(wants(instance("i2", "paused", used=NOW - CONFIG.paused_hold_s), queued=0), [host()])
    assert isinstance(release, Release)


def test_a_host_that_is_suspect_resumes_nothing() -> None:
    (wait,) = decided(wants(instance("i2", "paused")), [host(state="suspect")], instance("i1"))
    assert isinstance(wait, Wait)


@given(
    st.lists(
        st.tuples(st.sampled_from(["ready", "paused"]), st.integers(1, 300), st.floats(0, 990)), max_size=8
    ),
    st.integers(0, 300), st.integers(0, 300), st.floats(0, 2), st.integers(0, 1), st.integers(0, 600),
)  # fmt: skip
def test_never_more_is_handed_out_than_there_is(
    others: list[tuple[str, int, float]], need: int, memory: int, cpu: float, gpu: int, budget: int
) -> None:
    room = host(memory_free=memory, cpu_free=cpu, gpu_free={"X1": gpu}, paused_free=budget)
    donors = [
        ("a", instance(f"i{n}", state, used, memory=size), msgspec.structs.replace(SCALING, memory=size))
        for n, (state, size, used) in enumerate(others)
    ]
    wish = msgspec.structs.replace(SCALING, memory=need)
    book = Book([room])
    if book.has_room(wish):
        return
    made = book.make_room(wish, donors)
    if made is None:
        # Then not even the end of all of them would do.
        assert memory + sum(size for _, size, _ in others) < need or not any(
            state == "ready" for state, _, _ in others
        )
        return
    given: list[Given] = made[1]
    assert len({one.donor[1].id for one in given}) == len(given)
    released = sum(one.donor[1].memory for one in given if not one.pause)
    assert memory + released >= need
    awake = [one for one in given if one.donor[1].state == "ready"]
    assert cpu + len(awake) >= 1.0 - 1e-6
    assert gpu + len(awake) >= 1
    paused = sum(one.donor[1].memory for one in given if one.pause)
    freed = sum(one.donor[1].memory for one in given if not one.pause and one.donor[1].state == "paused")
    assert paused <= budget + freed or not paused
    assert not any(one.pause and one.donor[1].state == "paused" for one in given)


def test_nobody_gives_way_for_nothing() -> None:
    """Three small ones have been idle for longest, and the large one alone makes room."""
    room = host(cpu_free=0.4, memory_free=10_000, gpu_free={}, pauses=())
    wish = ScalingSpec(cpu=1.5, runtime="oci")
    donors = [
        ("a", instance(name, used=used, cpu=cpu, gpu=()), ScalingSpec(cpu=cpu, runtime="oci"))
        for name, used, cpu in (("s1", 1.0, 0.1), ("s2", 2.0, 0.1), ("s3", 3.0, 0.1), ("big", 4.0, 1.5))
    ]
    made = Book([room]).make_room(wish, donors)
    assert made is not None
    assert [one.donor[1].id for one in made[1]] == ["big"]
    # With less of it, the small ones that were idle for longest go, too.
    some = Book([room]).make_room(msgspec.structs.replace(wish, cpu=2.1), donors)
    assert some is not None
    assert [one.donor[1].id for one in some[1]] == ["s2", "s3", "big"]
