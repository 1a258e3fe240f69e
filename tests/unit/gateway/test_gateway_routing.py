from __future__ import annotations

from headrace import wire
from headrace.gateway.routing import RoutingTable


def endpoint(name, **values):
    return wire.EndpointRoute(**({"endpoint": f"default/{name}", "version": 1, "state": "ready"} | values))


def instance(id, name="a", **values):
    return wire.InstanceRoute(
        **(
            {
                "id": id,
                "endpoint": f"default/{name}",
                "version": 1,
                "host": "h",
                "address": "unix:/x",
                "token": "t",
            }
            | values
        )
    )


def snapshot(epoch, endpoints=(), instances=(), keys=()):
    return wire.Snapshot(epoch=epoch, endpoints=list(endpoints), instances=list(instances), keys=list(keys))


def test_a_snapshot_replaces_and_says_what_changed():
    table = RoutingTable()
    table.apply_snapshot(snapshot(1, [endpoint("a"), endpoint("b")], [instance("i1"), instance("i2")]))
    changes = table.apply_snapshot(
        snapshot(1, [endpoint("a", state="failed"), endpoint("c")], [instance("i2")])
    )
    assert changes.endpoints == {"default/a", "default/c"}
    assert changes.removed_endpoints == {"default/b"}
    assert [i.id for i in changes.removed] == ["i1"]
    assert set(table.instances) == {"i2"}
    assert sorted(table.names("default")) == ["a", "c"]
    assert table.names("other") == []


def test_older_leaders_are_refused_and_change_nothing():
    table = RoutingTable()
    table.apply_snapshot(snapshot(3, [endpoint("a")], [instance("i1")]))
    assert table.apply_snapshot(snapshot(2)) is None
    assert table.apply_delta(wire.RouteDelta(epoch=2, dead_instances=["i1"])) is None
    assert set(table.instances) == {"i1"}
    assert table.epoch == 3
    assert table.apply_delta(wire.RouteDelta(epoch=4, removed_instances=["i1"])) is not None
    assert (table.epoch, table.instances) == (4, {})


def test_a_newer_leader_has_time_to_hear_of_an_instance():
    table = RoutingTable()
    table.apply_snapshot(
        snapshot(1, [endpoint("a"), endpoint("b")], [instance("i1"), instance("i2"), instance("i3", "b")])
    )
    changes = table.apply_snapshot(snapshot(2, [endpoint("a")], []))
    assert [i.id for i in changes.removed] == ["i3"], "its endpoint is gone"
    assert table.unconfirmed == {"i1", "i2"}
    assert all(table.instances[id].suspect for id in ("i1", "i2"))
    table.apply_delta(wire.RouteDelta(epoch=2, instances=[instance("i1")]))
    assert not table.instances["i1"].suspect
    assert [i.id for i in table.drop_unconfirmed().removed] == ["i2"]
    assert set(table.instances) == {"i1"}


def test_deltas_apply_and_tell_of_deaths_even_after_a_removal():
    table = RoutingTable()
    table.apply_snapshot(snapshot(1, [endpoint("a")], [instance("i1")]))
    table.apply_delta(wire.RouteDelta(epoch=1, removed_instances=["i1"]))
    changes = table.apply_delta(wire.RouteDelta(epoch=1, dead_instances=["i1", "never"]))
    assert [i.id for i in changes.dead] == ["i1", "never"]
    changes = table.apply_delta(
        wire.RouteDelta(epoch=1, endpoints=[endpoint("b")], instances=[instance("i2", "b")])
    )
    assert changes.endpoints == {"default/b"}
    changes = table.apply_delta(wire.RouteDelta(epoch=1, removed_endpoints=["default/b", "default/none"]))
    assert changes.removed_endpoints == {"default/b"}
    assert [i.id for i in changes.removed] == ["i2"]
    assert not changes.keys
    assert table.apply_delta(wire.RouteDelta(epoch=1, keys=[])).keys
