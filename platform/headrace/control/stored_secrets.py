"""Secrets in control's database: of each name the newest version, sealed. Use it as `Store.secrets`.

A name that was deleted keeps its number, so that no version ever means two values.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence

import msgspec

from headrace.control.sql import load_queries
from headrace.sqlite_writer import Database

_Q = load_queries()
Seal = Callable[[str, str, int], tuple[str, bytes]]
"""(project, name, version) -> (id of the key, sealed value)."""


class SecretRow(msgspec.Struct, frozen=True):
    """One secret as stored."""

    project: str
    name: str
    version: int
    key: str
    """Id of the key that seals it."""
    sealed: bytes
    created_at: float
    updated_at: float


class StoredSecrets:
    """Secrets in control's database."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def all(self) -> list[SecretRow]:
        """All that have a value."""
        return await self._db.read(lambda db: [SecretRow(*row) for row in db.execute(_Q["secrets_all"])])

    async def put(self, project: str, name: str, seal: Seal) -> SecretRow:
        """Store the next version; ``seal`` is told its number."""
        at = time.time()
        who = {"project": project, "name": name}

        def run(db: sqlite3.Connection) -> SecretRow:
            # What a row held before is overwritten with zeros, not only forgotten.
            db.execute("PRAGMA secure_delete=ON")
            version = int(db.execute(_Q["secret_next"], who).fetchone()[0])
            key, sealed = seal(project, name, version)
            row = who | {"version": version, "key": key, "sealed": sealed, "at": at}
            return SecretRow(*db.execute(_Q["secret_put"], row).fetchone())

        return await self._db.write(run)

    async def delete(self, project: str, name: str) -> bool:
        """Forget the value; whether there was one."""
        who = {"project": project, "name": name, "at": time.time()}

        def run(db: sqlite3.Connection) -> bool:
            db.execute("PRAGMA secure_delete=ON")
            return db.execute(_Q["secret_delete"], who).rowcount > 0

        return await self._db.write(run)

    async def reseal(self, rows: Sequence[SecretRow]) -> None:
        """Replace the sealed values, all or none; versions stay."""

        def run(db: sqlite3.Connection) -> None:
            db.execute("PRAGMA secure_delete=ON")
            for row in rows:
                db.execute(_Q["secret_reseal"], msgspec.structs.asdict(row))

        await self._db.write(run)
