"""What was deployed last is what answers: with trials under way, with kills between any two writes."""

from __future__ import annotations

import asyncio
import sqlite3

import msgspec
import pytest
from headrace import wire
from headrace.control import deploy, trial
from headrace.sdk.spec import Gpu

BROKEN = wire.Death(reason="import-failed", detail="ImportError: no module x", traceback="Traceback: x")


async def begin(platform, *specs, verify=True):
    body = {"specs": msgspec.to_builtins(specs), "verify": verify}
    status, doc = await platform.gateway.api("POST", "/deployments", body)
    assert status == 202, doc
    return doc


async def ended(platform, doc):
    return (await platform.gateway.api("GET", f"/deployments/{doc['id']}", wait="20"))[1]


async def back(platform, *hosts):
    """Control is killed and comes back, and so does everybody else."""
    await platform.restart()
    await platform.gateway.connect()
    for host in hosts:
        await host.connect()
    await platform.until(lambda: platform.gateway.snapshots[-1].epoch == platform.control.parts.epoch)


def current(platform, name="x"):
    return platform.world.endpoints[f"default/{name}"].version


def slow(name):
    """Starts of that endpoint do not end."""
    return lambda start: "hang" if start.spec.endpoint == f"default/{name}" else None


async def quiet(platform):
    await platform.until(lambda: not platform.control.parts.deployer._tasks)


async def test_a_part_that_became_current_is_not_tried_again(platform):
    host = await platform.new_host()
    host.script = slow("y")
    old = await begin(platform, platform.spec("x"), platform.spec("y"))
    await platform.until(lambda: current(platform) == 1)
    new = await begin(platform, platform.spec("x", env={"A": "new"}))
    assert (await ended(platform, new))["state"] == "succeeded"
    host.script = lambda start: None
    await back(platform, host)
    done = await ended(platform, old)
    assert [(p["version"], p["state"]) for p in done["endpoints"]] == [(1, "ready"), (1, "ready")]
    await quiet(platform)
    assert (current(platform), current(platform, "y")) == (2, 1)


async def test_what_was_rolled_back_stays_rolled_back(platform):
    host = await platform.new_host()
    await platform.gateway.deploy(platform.spec("x"))
    host.script = slow("y")
    await begin(platform, platform.spec("x", env={"A": "new"}), platform.spec("y"))
    await platform.until(lambda: current(platform) == 2)
    _, rollback = await platform.gateway.api("POST", "/endpoints/x/rollback", {})
    assert (await ended(platform, rollback))["state"] == "succeeded"
    host.script = lambda start: None
    await back(platform, host)
    await quiet(platform)
    assert current(platform) == 1


async def test_what_is_current_already_has_its_turn_after_what_is_being_tried(platform):
    host = await platform.new_host()
    await platform.gateway.deploy(platform.spec("x"))
    host.script = lambda start: "hang"
    other = await begin(platform, platform.spec("x", env={"A": "other"}))
    await platform.until(lambda: host.started[-1].spec.version == 2)
    again = await begin(platform, platform.spec("x"))
    assert again["state"] == "running"
    host.script = lambda start: None
    host.ready(host.started[-1].id)
    assert (await ended(platform, other))["state"] == "succeeded"
    done = await ended(platform, again)
    assert [(p["version"], p["state"]) for p in done["endpoints"]] == [(1, "ready")]
    assert current(platform) == 1
    # And with the other one failed there is nothing to do.
    host.script = lambda start: BROKEN
    await begin(platform, platform.spec("x", env={"A": "broken"}))
    done = await ended(platform, await begin(platform, platform.spec("x")))
    assert [(p["version"], p["state"]) for p in done["endpoints"]] == [(1, "unchanged")]


async def test_without_a_trial_it_takes_the_place_of_what_is_being_tried(platform):
    host = await platform.new_host()
    host.script = lambda start: "hang"
    tried = await begin(platform, platform.spec("x"))
    await platform.until(lambda: host.started)
    await begin(platform, platform.spec("x", env={"A": "new"}), verify=False)
    host.ready(host.started[0].id)
    (part,) = (await ended(platform, tried))["endpoints"]
    assert (part["state"], "later deployment" in part["detail"]) == ("failed", True)
    assert current(platform) == 2
    host.script = lambda start: None
    await back(platform, host)
    await quiet(platform)
    assert current(platform) == 2


async def test_the_end_of_a_failed_trial_is_written_when_the_store_takes_it(platform, monkeypatch):
    monkeypatch.setattr(deploy, "SETTLE_FIRST_S", 0.01)
    host = await platform.new_host()
    host.script = lambda start: BROKEN
    store = platform.control.store.deployments
    real, refused = store.settle, []

    async def full(deployment, part):
        if len(refused) < 3:
            refused.append(part)
            raise sqlite3.OperationalError("database or disk is full")
        await real(deployment, part)

    monkeypatch.setattr(store, "settle", full)
    doc = await platform.gateway.deploy(platform.spec("x"))
    await quiet(platform)
    assert len(refused) == 3
    started = len(host.started)
    host.script = lambda start: None
    await back(platform, host)
    assert await ended(platform, doc) == doc
    await quiet(platform)
    assert (current(platform), len(host.started)) == (None, started)


class Dying:
    """A database whose process is killed at a write: before its commit, or after it."""

    def __init__(self, database, at, after):
        self.database, self.left, self.after = database, at, after
        self.dead = asyncio.Event()
        self.real = database.write
        database.write = self.write

    async def write(self, fn):
        self.left -= 1
        if self.left < 0:
            if self.left == -1 and self.after:
                await self.real(fn)
            self.dead.set()
            await asyncio.get_running_loop().create_future()
        return await self.real(fn)


TARGETS = (1, 2, 3, 1, 1, 5)
"""The version of ``x`` after each step of the story, the one before it first."""


async def story(platform, host, begun):
    """Deploy, deploy again, go back, deploy what is broken, deploy; ``begun`` gets what was taken on."""
    for number in range(1, len(TARGETS)):
        if number == 3:
            _, doc = await platform.gateway.api("POST", "/endpoints/x/rollback", {"version": 1})
        else:
            # The first of them has a part that goes on for as long as the story does.
            more = [platform.spec("y")] if number == 1 else []
            doc = await begin(platform, platform.spec("x", env={"A": str(number)}), *more)
        begun.append(number)
        if number == 1:
            await platform.until(lambda: current(platform) == 2)
        else:
            assert (await ended(platform, doc))["state"] == ("failed" if number == 4 else "succeeded")
        assert current(platform) == TARGETS[number]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(11))
async def test_a_kill_between_any_two_writes_leaves_nothing_older_in_place(platform, at, after):
    host = await platform.new_host()
    broken = {4}
    host.script = lambda s: BROKEN if s.spec.version in broken else slow("y")(s)
    await platform.gateway.deploy(platform.spec("x"))
    await platform.until(lambda: platform.control._known_nodes)
    begun = [0]
    dying = Dying(platform.control.store._db, at, after)
    telling = asyncio.create_task(story(platform, host, begun))
    dead = asyncio.create_task(dying.dead.wait())
    await asyncio.wait([telling, dead], return_when=asyncio.FIRST_COMPLETED, timeout=30)
    assert dying.dead.is_set() or telling.result() is None
    telling.cancel()
    dead.cancel()
    await asyncio.gather(telling, dead, return_exceptions=True)
    started = len(host.started)
    host.script = lambda s: BROKEN if s.spec.version in broken else None
    await back(platform, host)
    await quiet(platform)
    # All that was taken on is done; of what was asked for last nobody heard whether it was.
    possible = set(TARGETS[begun[-1] : begun[-1] + 2])
    assert current(platform) in possible, begun
    # It is tried again, and nothing else of the endpoint.
    tried = [s.spec.version for s in host.started[started:] if s.spec.endpoint == "default/x"]
    assert set(tried) <= possible | broken
    _, shown = await platform.gateway.api("GET", "/endpoints/x")
    assert shown["version"] == current(platform)
    kept = await platform.control.store.deployments.all()
    assert "running" not in [deployment.state for deployment in kept]


async def test_who_found_no_room_is_told_what_helps(platform, monkeypatch):
    monkeypatch.setattr(trial, "ROOM_TIMEOUT_S", 0.2)
    await platform.new_host()
    (part,) = (await platform.gateway.deploy(platform.spec("x", gpu=(Gpu(name="H100"),))))["endpoints"]
    assert part["state"] == "failed"
    assert "deploy it again" in part["detail"]
    # Callers are told the same.
    await platform.until(lambda: platform.gateway.state("x") == "failed")
    assert platform.gateway.endpoints["default/x"].reason == part["detail"]
