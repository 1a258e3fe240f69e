"""What control remembers of deployments, and the versions that they make current.

An endpoint's part of a deployment (a trial) ends in one transaction with what its end means: it is never
``starting`` in the store when its version has become current, and never tried again when a later deployment's
has. Use it as `headrace.control.store.Store.deployments`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence

import msgspec

from headrace.control.progress import Deployment, Part
from headrace.control.sql import load_queries
from headrace.sqlite_writer import Database

VERSIONS_KEPT = 10
DEPLOYMENTS_KEPT = 100
SUPERSEDED = "a later deployment has taken its place"
_Q = load_queries()


class NewVersion(msgspec.Struct, frozen=True):
    """A version to be stored."""

    project: str
    name: str
    spec: bytes
    bundle: str


class _Outcome(msgspec.Struct):
    detail: str = ""
    traceback: str = ""
    notes: list[str] = []


class Deployments:
    """Deployments in control's database."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def begin(self, deployment: Deployment, new: Mapping[str, NewVersion]) -> None:
        """Keep a deployment, with the versions that are new (by endpoint): all or nothing.

        The parts get their versions' numbers. The newest hundred deployments are kept, and those that go on.
        """
        at = time.time()

        def run(db: sqlite3.Connection) -> dict[str, int]:
            row = {"id": deployment.id, "project": deployment.project, "at": at}
            number = db.execute(_Q["deployment_insert"], row).lastrowid
            numbers: dict[str, int] = {}
            for place, part in enumerate(deployment.parts):
                version = part.version
                if part.endpoint in new:
                    version = numbers[part.endpoint] = _add(db, new[part.endpoint], at, flip=False)
                row = {
                    "deployment": number, "place": place, "project": deployment.project,
                    "endpoint": part.endpoint, "version": version, "state": part.state,
                    "outcome": _outcome(part),
                }  # fmt: skip
                db.execute(_Q["trial_insert"], row)
            db.execute(_Q["deployments_prune"], {"kept": DEPLOYMENTS_KEPT})
            return numbers

        numbers = await self._db.write(run)
        for part in deployment.parts:
            part.version = numbers.get(part.endpoint, part.version)

    async def register(self, new: Sequence[NewVersion], same: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Store versions and make them current at once, all or none; their numbers.

        What is being tried of these endpoints, and of ``same`` (project and name; they stay as they are),
        has failed: it began earlier.
        """
        at = time.time()

        def run(db: sqlite3.Connection) -> list[int]:
            for project, name in same:
                end_trials(db, project, name, SUPERSEDED)
            for item in new:
                end_trials(db, item.project, item.name, SUPERSEDED)
            return [_add(db, item, at, flip=True) for item in new]

        return await self._db.write(run)

    async def flip(self, deployment: Deployment, part: Part) -> str:
        """Make a part's version the current one; the part is ready and what began earlier has failed.

        Empty when that was done; else why not: the part has come to an end already, or its version is gone.
        """
        who = {"project": deployment.project, "name": part.endpoint, "version": part.version}
        key = {"id": deployment.id, "endpoint": part.endpoint}
        outcome = _outcome(part)

        def run(db: sqlite3.Connection) -> str:
            row = db.execute(_Q["trial_of"], key).fetchone()
            if row is None:
                return "the deployment is not kept any more"
            number, state, before = row
            if state != "starting":
                return msgspec.json.decode(before, type=_Outcome).detail or SUPERSEDED
            if db.execute(_Q["version_verified"], who).rowcount != 1:
                return "its version is not kept any more"
            db.execute(_Q["endpoint_flip"], who | {"at": time.time()})
            db.execute(_Q["trial_settle"], key | {"state": "ready", "outcome": outcome})
            end_trials(db, deployment.project, part.endpoint, SUPERSEDED, below=number)
            return ""

        return await self._db.write(run)

    async def settle(self, deployment: Deployment, part: Part) -> None:
        """A part came to its end without making anything current."""
        row = {"id": deployment.id, "endpoint": part.endpoint}
        row |= {"state": part.state, "outcome": _outcome(part)}
        await self._db.write(lambda db: db.execute(_Q["trial_settle"], row))

    async def all(self) -> list[Deployment]:
        """All that are kept, in the order in which they began."""

        def run(db: sqlite3.Connection) -> list[Deployment]:
            found = {n: Deployment(id, project) for n, id, project in db.execute(_Q["deployments_all"])}
            for number, endpoint, version, state, data in db.execute(_Q["trials_all"]):
                outcome = msgspec.json.decode(data, type=_Outcome)
                part = Part(endpoint, version, state, outcome.detail, outcome.traceback, outcome.notes)
                found[number].parts.append(part)
            return list(found.values())

        return await self._db.read(run)


def end_trials(
    db: sqlite3.Connection, project: str, endpoint: str, why: str, *, below: int | None = None
) -> None:
    """Within a transaction: what deployments before number ``below`` still try of the endpoint has failed."""
    outcome = msgspec.json.encode(_Outcome(why)).decode()
    db.execute(
        _Q["trials_end"], {"project": project, "endpoint": endpoint, "outcome": outcome, "below": below}
    )


def _add(db: sqlite3.Connection, item: NewVersion, at: float, *, flip: bool) -> int:
    who = {"project": item.project, "name": item.name}
    db.execute(_Q["endpoint_insert"], who | {"at": at})
    number = int(db.execute(_Q["version_next"], who).fetchone()[0])
    row = {"version": number, "spec": item.spec, "bundle": item.bundle, "verified": int(flip), "at": at}
    db.execute(_Q["version_insert"], who | row)
    if flip:
        db.execute(_Q["endpoint_flip"], who | {"version": number, "at": at})
    if number > VERSIONS_KEPT:
        db.execute(_Q["versions_prune"], who | {"below": number - VERSIONS_KEPT})
    return number


def _outcome(part: Part) -> str:
    return msgspec.json.encode(_Outcome(part.detail, part.traceback, part.notes)).decode()
