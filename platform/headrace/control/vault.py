"""Secrets: set, listed, sealed at rest, opened for the instances of endpoints that name them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from headrace import wire
from headrace.control.keyring import FILE, Keyring, Unreadable
from headrace.control.model import World
from headrace.control.stored_secrets import SecretRow, StoredSecrets
from headrace.errors import Conflict, DataDirError, NotFound, ValidationFailed
from headrace.sdk.spec import EndpointSpec

log = logging.getLogger("headrace.control")

MAX_SECRETS = 1000
"""Of one project."""
MAX_VALUE = 32 << 10
MAX_TOGETHER = 48 << 10
"""Characters of JSON, of one value and of all that an instance gets: they travel in one packet."""


class Vault:
    """What is sealed stays in memory as it is on disk; values are opened when they are sent."""

    def __init__(self, rows: StoredSecrets, path: Path, world: World) -> None:
        self._stored = rows
        self._ring = Keyring(path)
        self._world = world
        self._rows: dict[tuple[str, str], SecretRow] = {}
        self._lock = asyncio.Lock()
        self._broken = ""

    async def load(self) -> None:
        """Read keys and secrets. Damage to the key file is told when a secret is needed."""
        try:
            await asyncio.to_thread(self._ring.read)
        except DataDirError as error:
            self._broken = str(error)
            log.error("secrets cannot be opened: %s", error)  # noqa: TRY400 - one line says it
        for row in await self._stored.all():
            self._take(row)
        if len(self._ring.ids) > 1 and not {row.key for row in self._rows.values()} - set(self._ring.ids):
            # A change of the key was cut short: it is finished now.
            await self.rotate(fresh=False)

    def listed(self, project: str) -> Sequence[SecretRow]:
        """All secrets of a project."""
        return [row for row in self._rows.values() if row.project == project]

    async def set(self, project: str, name: str, value: str) -> SecretRow:
        """Store a new version. Raises `Conflict`, `ValidationFailed`."""
        check_value(name, value)
        async with self._lock:
            known = (project, name) in self._rows
            if not known and len(self.listed(project)) >= MAX_SECRETS:
                raise Conflict(f"there are {MAX_SECRETS} secrets.", hint="Delete those that nobody uses.")
            await self._need_key()
            ring = self._ring
            row = await self._stored.put(project, name, lambda p, n, v: ring.seal(p, n, v, value))
            self._take(row)
            return row

    async def delete(self, project: str, name: str) -> SecretRow:
        """Forget one. Raises `NotFound`; `Conflict` while an endpoint needs it."""
        async with self._lock:
            row = self._rows.get((project, name))
            if row is None:
                raise NotFound(f"no secret {name}.", hint="`headrace secrets list` shows their names.")
            users = self.users(project, name)
            if users:
                raise Conflict(
                    f"secret {name} is used by {', '.join(users[:5])}.",
                    hint="Deploy without it first, or set a new value: `headrace secrets set`.",
                )
            await self._stored.delete(project, name)
            del self._rows[project, name]
            self._world.secrets.pop((project, name), None)
            return row

    async def rotate(self, *, fresh: bool = True) -> int:
        """Seal everything with a new key (``fresh``), and forget the old ones; how many were sealed.

        At every moment the file has the keys of all that is stored. Raises `Conflict` when a key is missing.
        """
        async with self._lock:
            try:
                opened = [(row, self._open(row)) for row in self._rows.values()]
            except Unreadable as error:
                raise Conflict(error.message, hint=error.hint) from None
            if fresh:
                await asyncio.to_thread(self._ring.make)
            sealed = [self._reseal(row, value) for row, value in opened]
            await self._stored.reseal(sealed)
            for row in sealed:
                self._take(row)
            if self._ring.ids:
                await asyncio.to_thread(self._ring.keep_first)
            return len(sealed)

    def users(self, project: str, name: str) -> list[str]:
        """Endpoints whose present version, or one being tried or pinned, needs the secret."""
        found = []
        for endpoint in self._world.endpoints.values():
            if endpoint.project != project or endpoint.deleting:
                continue
            specs = [*endpoint.trials.values(), *(pin.spec for pin in endpoint.pins.values())]
            if endpoint.version is not None:
                specs.append(endpoint.spec)
            if any(secret.name == name for spec in specs for secret in spec.secrets):
                found.append(endpoint.name)
        return sorted(found)

    def require(self, specs: Iterable[EndpointSpec]) -> None:
        """Raises `ValidationFailed` for an endpoint that could not get its secrets now."""
        for spec in specs:
            if spec.secrets:
                _, why = self.given(spec)
                if why:
                    raise ValidationFailed(f"endpoint {spec.name!r}: {why}")

    def given(self, spec: EndpointSpec) -> tuple[wire.SecretValues, str]:
        """(its values, why they cannot be had): one of them is empty."""
        values: dict[str, str] = {}
        missing = [s.name for s in spec.secrets if (spec.project, s.name) not in self._rows]
        if missing:
            plural = "s" if len(missing) > 1 else ""
            why = f"no secret{plural} {', '.join(missing)}: `headrace secrets set {missing[0]}` stores it."
            return wire.SecretValues(), why
        try:
            for secret in spec.secrets:
                values[secret.name] = self._open(self._rows[spec.project, secret.name])
        except Unreadable as error:
            return wire.SecretValues(), str(error)
        if sum(size(value) for value in values.values()) > MAX_TOGETHER:
            return wire.SecretValues(), f"its secrets hold more than {MAX_TOGETHER >> 10} KiB together."
        return wire.SecretValues(values=values), ""

    def of_bases(self, bases: Iterable[wire.BaseSpec]) -> wire.SecretValues:
        """Values that loaded bases name, by ``project/name@version``, without those that cannot be had."""
        values: dict[str, str] = {}
        for base in bases:
            for ref in base.loaded.secrets if base.loaded else ():
                row = self._rows.get((base.project, ref.name))
                if row is not None and row.version == ref.version:
                    try:
                        values[f"{base.project}/{ref.name}@{ref.version}"] = self._open(row)
                    except Unreadable as error:
                        log.warning("a base is not loaded: %s", error)
        return wire.SecretValues(values=values)

    def _take(self, row: SecretRow) -> None:
        self._rows[row.project, row.name] = row
        self._world.secrets[row.project, row.name] = row.version

    def _open(self, row: SecretRow) -> str:
        if self._broken:
            raise Unreadable(self._broken)
        return self._ring.open(row.key, row.project, row.name, row.version, row.sealed)

    def _reseal(self, row: SecretRow, value: str) -> SecretRow:
        key, sealed = self._ring.seal(row.project, row.name, row.version, value)
        return msgspec.structs.replace(row, key=key, sealed=sealed)

    async def _need_key(self) -> None:
        if self._broken:
            raise Conflict(self._broken)
        if not self._ring.ids:
            if self._rows:
                # A new file would be in the way of the old one's copy.
                raise Conflict(
                    f"{FILE} of the data directory is not there, and {len(self._rows)} secrets need it.",
                    hint="Put a copy of it back and restart, or delete those secrets and set them again.",
                )
            await asyncio.to_thread(self._ring.make)
        else:
            await asyncio.to_thread(self._ring.restore)


def size(value: str) -> int:
    """As it travels to an instance."""
    return len(json.dumps(value))


def check_value(name: str, value: str) -> None:
    """Raises `ValidationFailed` for what can be no file of text and no variable; the value is not told."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValidationFailed(f"secret {name}: the value is no text (UTF-8).") from None
    if not value or "\0" in value:
        raise ValidationFailed(f"secret {name}: the value is empty, or holds a NUL.")
    if size(value) > MAX_VALUE:
        raise ValidationFailed(
            f"secret {name}: the value is longer than {MAX_VALUE >> 10} KiB (as JSON).",
            hint="Store the key of an encrypted file, and put that file into the bundle.",
        )
