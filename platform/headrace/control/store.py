"""What control remembers: endpoints, versions, deployments, keys, intents, nodes, and its leader epoch.

Typed methods over `headrace.sqlite_writer.Database`; the statements are in ``sql/queries.sql``. What a method
has returned is on disk.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from headrace import wire
from headrace.control.deployments import Deployments, end_trials
from headrace.control.sql import load_migrations, load_queries
from headrace.control.stored_secrets import StoredSecrets
from headrace.sqlite_writer import Database, open_database

T = TypeVar("T", bound=msgspec.Struct)
_Q = load_queries()


class EndpointRow(msgspec.Struct, frozen=True):
    """An endpoint as stored; ``spec`` is its current version's, None while it has none."""

    project: str
    name: str
    current_version: int | None
    min_override: int | None
    max_override: int | None
    created_at: float
    updated_at: float
    spec: bytes | None


class VersionRow(msgspec.Struct, frozen=True):
    """A stored version; ``verified``: it was current once."""

    version: int
    bundle: str
    verified: bool
    created_at: float


class Intent(msgspec.Struct, frozen=True):
    """What is about to be done to a node; written before it is done."""

    id: str
    project: str
    provider: str
    kind: str
    spec: dict[str, Any]
    state: str
    created_at: float
    updated_at: float
    node: str | None = None


class NodeRow(msgspec.Struct, frozen=True):
    """A node that a provider launched for us."""

    id: str
    project: str
    provider: str
    spec: dict[str, Any]
    state: str
    created_at: float
    updated_at: float
    intent: str | None = None
    detail: str = ""
    """Why it is in this state."""


class Store:
    """Control's database. Make it with `open_store`."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self.deployments = Deployments(database)
        self.secrets = StoredSecrets(database)

    async def close(self) -> None:
        """Commit what is queued and close."""
        await self._db.close()

    # -- bookkeeping -----------------------------------------------------------------------

    async def take_epoch(self) -> int:
        """Become the leader: the epoch before plus one."""

        def run(db: sqlite3.Connection) -> int:
            row = db.execute(_Q["meta_get"], {"key": "epoch"}).fetchone()
            epoch = int(row[0]) + 1 if row else 1
            db.execute(_Q["meta_set"], {"key": "epoch", "value": str(epoch)})
            return epoch

        return await self._db.write(run)

    async def get_meta(self, key: str) -> str | None:
        """One value of the bookkeeping."""
        row = await self._db.read(lambda db: db.execute(_Q["meta_get"], {"key": key}).fetchone())
        return None if row is None else str(row[0])

    async def set_meta(self, key: str, value: str) -> None:
        """Set one value of the bookkeeping."""
        await self._db.write(lambda db: db.execute(_Q["meta_set"], {"key": key, "value": value}))

    # -- endpoints and versions ------------------------------------------------------------

    async def load_endpoints(self) -> list[EndpointRow]:
        """All endpoints, most recently changed first."""
        return await self._db.read(lambda db: [EndpointRow(*row) for row in db.execute(_Q["endpoints_load"])])

    async def version_numbers(self) -> list[tuple[str, str, int]]:
        """(project, name, version) of every version that was current once, in order."""
        return await self._db.read(lambda db: list(db.execute(_Q["versions_numbers"])))

    async def page_names(self, project: str, after: str, limit: int) -> list[str]:
        """Up to ``limit`` names after ``after``, in order."""
        args = {"project": project, "after": after, "limit": limit}
        return await self._db.read(lambda db: [row[0] for row in db.execute(_Q["endpoints_page"], args)])

    async def version_spec(self, project: str, name: str, version: int) -> bytes | None:
        """The stored spec of one version."""
        who = {"project": project, "name": name, "version": version}
        row = await self._db.read(lambda db: db.execute(_Q["version_spec"], who).fetchone())
        return None if row is None else bytes(row[0])

    async def version_specs(self, project: str, name: str) -> dict[int, bytes]:
        """The specs of all kept versions."""
        who = {"project": project, "name": name}
        return await self._db.read(lambda db: dict(db.execute(_Q["version_specs"], who)))

    async def versions(self, project: str, name: str) -> list[VersionRow]:
        """The kept versions, newest first."""
        who = {"project": project, "name": name}

        def run(db: sqlite3.Connection) -> list[VersionRow]:
            return [VersionRow(v, b, bool(ok), at) for v, b, ok, at in db.execute(_Q["versions_of"], who)]

        return await self._db.read(run)

    async def scale(self, project: str, name: str, minimum: int | None, maximum: int | None) -> None:
        """Set the overrides; None: as the spec says."""
        args = {"project": project, "name": name, "min": minimum, "max": maximum}
        await self._db.write(lambda db: db.execute(_Q["endpoint_scale"], args))

    async def delete_endpoint(self, project: str, name: str) -> None:
        """Remove an endpoint with its versions; what is being tried of it has failed."""

        def run(db: sqlite3.Connection) -> None:
            # One of that name that comes later has versions with the same numbers.
            end_trials(db, project, name, "the endpoint was deleted")
            db.execute(_Q["endpoint_delete"], {"project": project, "name": name})

        await self._db.write(run)

    async def bundles(self) -> set[str]:
        """Hashes of all blobs that a stored version needs: bundles, and the files of images."""

        def run(db: sqlite3.Connection) -> set[str]:
            found = {row[0] for name in ("bundles", "contexts") for row in db.execute(_Q[name])}
            return {sha256 for sha256 in found if sha256}

        return await self._db.read(run)

    # -- keys ------------------------------------------------------------------------------

    async def keys(self) -> list[wire.KeyRecord]:
        """All API keys, as hashes."""

        def run(db: sqlite3.Connection) -> list[wire.KeyRecord]:
            rows = db.execute(_Q["keys_all"])
            return [_key(row) for row in rows]

        return await self._db.read(run)

    async def put_key(self, key: wire.KeyRecord) -> None:
        """Add a key, or replace the one of that id."""
        args = msgspec.structs.asdict(key) | {
            "scopes": " ".join(key.scopes),
            "endpoints": " ".join(key.endpoints),
            "at": key.created_at or time.time(),
        }
        del args["created_at"]
        await self._db.write(lambda db: db.execute(_Q["key_put"], args))

    async def delete_key(self, project: str, id: str) -> bool:
        """Remove a key; whether it was there."""
        args = {"project": project, "id": id}
        return await self._db.write(lambda db: db.execute(_Q["key_delete"], args).rowcount > 0)

    # -- intents and nodes (written by the node manager) -----------------------------------

    async def put_intent(self, intent: Intent) -> None:
        """Write an intent. Raises ``sqlite3.IntegrityError`` when its id is taken."""
        args = msgspec.structs.asdict(intent) | {"spec": json.dumps(intent.spec)}
        await self._db.write(lambda db: db.execute(_Q["intent_put"], args))

    async def update_intent(self, id: str, state: str, node: str | None = None) -> None:
        """An intent came further."""
        args = {"id": id, "state": state, "node": node, "at": time.time()}
        await self._db.write(lambda db: db.execute(_Q["intent_update"], args))

    async def intents(self) -> list[Intent]:
        """All intents, oldest first."""

        def run(db: sqlite3.Connection) -> list[Intent]:
            return [_row(Intent, r) for r in db.execute(_Q["intents_all"])]

        return await self._db.read(run)

    async def put_node(self, node: NodeRow) -> None:
        """Add a node, or replace what is known of it."""
        args = msgspec.structs.asdict(node) | {"spec": json.dumps(node.spec)}
        await self._db.write(lambda db: db.execute(_Q["node_put"], args))

    async def delete_node(self, id: str) -> None:
        """Forget a node."""
        await self._db.write(lambda db: db.execute(_Q["node_delete"], {"id": id}))

    async def nodes(self) -> list[NodeRow]:
        """All nodes, oldest first."""

        def run(db: sqlite3.Connection) -> list[NodeRow]:
            return [_row(NodeRow, r) for r in db.execute(_Q["nodes_all"])]

        return await self._db.read(run)


def _key(row: Sequence[Any]) -> wire.KeyRecord:
    id, digest, project, scopes, name, endpoints, rate, burst, created_at = row
    return wire.KeyRecord(
        id=id,
        hash=digest,
        project=project,
        scopes=tuple(scopes.split()),
        name=name,
        endpoints=tuple(endpoints.split()),
        rate=rate,
        burst=burst,
        created_at=created_at,
    )


def _row(kind: type[T], row: Sequence[Any]) -> T:
    """A row whose columns are the struct's fields, with ``spec`` as JSON."""
    names = [field.name for field in msgspec.structs.fields(kind)]
    values = dict(zip(names, row, strict=True))
    return kind(**(values | {"spec": json.loads(values["spec"])}))


async def open_store(path: Path) -> Store:
    """Open or make ``control.db``. Raises `DataDirError`."""
    return Store(await asyncio.to_thread(open_database, path, load_migrations()))
