"""The routing table: what control said last, and nothing else. Pure data, no I/O, no clock.

A snapshot replaces the table, deltas change it, and both are refused when they come from an older
leader than the one that was heard last. Losing control changes nothing here: what is routable stays.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace import wire


@dataclass(slots=True)
class Changes:
    """What a message changed, for those who hold state per endpoint or per instance."""

    endpoints: set[str] = field(default_factory=set)
    """Endpoints that were added or changed."""
    removed_endpoints: set[str] = field(default_factory=set)
    instances: list[wire.InstanceRoute] = field(default_factory=list)
    """Announced: new, changed, or told again after trouble."""
    removed: list[wire.InstanceRoute] = field(default_factory=list)
    """Take no new requests; what runs there ends by itself."""
    dead: list[wire.InstanceRoute] = field(default_factory=list)
    """Gone, with all that ran there."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why the dead ones ended, by id."""
    keys: bool = False


class RoutingTable:
    """Endpoints, instances and keys, by name; `epoch` is the newest leader heard."""

    def __init__(self) -> None:
        self.epoch = -1
        self.complete = False
        """Whether a snapshot has ever come."""
        self.endpoints: dict[str, wire.EndpointRoute] = {}
        self.instances: dict[str, wire.InstanceRoute] = {}
        self.keys: list[wire.KeyRecord] = []
        self.unconfirmed: set[str] = set()
        """Instances that a new leader has not named yet: its hosts may still be on their way back."""

    def apply_snapshot(self, msg: wire.Snapshot) -> Changes | None:
        """Replace the table. None when the epoch is old: nothing was changed.

        Instances that a *newer* leader does not name are kept, as suspects, until
        `drop_unconfirmed`: it may not have heard of them yet.
        """
        if msg.epoch < self.epoch:
            return None
        newer = self.complete and msg.epoch > self.epoch
        old, old_endpoints = self.instances, self.endpoints
        self.epoch, self.complete = msg.epoch, True
        self.endpoints = {e.endpoint: e for e in msg.endpoints}
        self.instances = {i.id: i for i in msg.instances}
        self.keys = msg.keys
        self.unconfirmed = set()
        changes = Changes(
            endpoints={k for k, e in self.endpoints.items() if old_endpoints.get(k) != e},
            removed_endpoints=old_endpoints.keys() - self.endpoints.keys(),
            instances=list(msg.instances),
            keys=True,
        )
        for id, instance in old.items():
            if id in self.instances:
                continue
            if newer and instance.endpoint in self.endpoints:
                suspect = _as_suspect(instance)
                self.instances[id] = suspect
                self.unconfirmed.add(id)
                changes.instances.append(suspect)
            else:
                changes.removed.append(instance)
        return changes

    def apply_delta(self, msg: wire.RouteDelta) -> Changes | None:
        """Change the table. None when the epoch is old: nothing was changed."""
        if msg.epoch < self.epoch:
            return None
        self.epoch = msg.epoch
        changes = Changes(keys=msg.keys is not None, reasons=msg.dead_reasons)
        for endpoint in msg.endpoints:
            self.endpoints[endpoint.endpoint] = endpoint
            changes.endpoints.add(endpoint.endpoint)
        for instance in msg.instances:
            self.instances[instance.id] = instance
            self.unconfirmed.discard(instance.id)
            changes.instances.append(instance)
        for ids, into in ((msg.removed_instances, changes.removed), (msg.dead_instances, changes.dead)):
            for id in ids:
                gone = self.instances.pop(id, None)
                self.unconfirmed.discard(id)
                if gone is None:
                    # It may have been removed before, and now it is dead: its requests must hear of it.
                    gone = wire.InstanceRoute(id=id, endpoint="", version=0, host="", address="", token="")
                into.append(gone)
        for key in msg.removed_endpoints:
            if self.endpoints.pop(key, None) is not None:
                changes.removed_endpoints.add(key)
                changes.endpoints.discard(key)
            for id in [i.id for i in self.instances.values() if i.endpoint == key]:
                changes.removed.append(self.instances.pop(id))
        if msg.keys is not None:
            self.keys = msg.keys
        return changes

    def drop_unconfirmed(self) -> Changes:
        """The new leader has had its time: what it has not named by now is not there."""
        gone = [self.instances.pop(id) for id in self.unconfirmed if id in self.instances]
        self.unconfirmed = set()
        return Changes(removed=gone)

    def names(self, project: str) -> list[str]:
        """Names of the project's endpoints."""
        prefix = project + "/"
        return [key[len(prefix) :] for key in self.endpoints if key.startswith(prefix)]


def _as_suspect(i: wire.InstanceRoute) -> wire.InstanceRoute:
    return wire.InstanceRoute(
        id=i.id, endpoint=i.endpoint, version=i.version, host=i.host, address=i.address, token=i.token,
        concurrency=i.concurrency, tier=i.tier, timings=i.timings, suspect=True,
    )  # fmt: skip
