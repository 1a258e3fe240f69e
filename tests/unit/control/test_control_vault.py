"""Keys and sealed secrets: what opens, what does not, and what a cut between two steps leaves."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from headrace import wire
from headrace.control.claims import base_of
from headrace.control.keyring import FILE, Keyring, Unreadable
from headrace.control.model import World
from headrace.control.store import Store, open_store
from headrace.control.vault import MAX_SECRETS, Vault
from headrace.errors import Conflict, DataDirError, NotFound, ValidationFailed
from headrace.sdk.secrets import Secret
from headrace.sdk.spec import EndpointSpec
from hypothesis import given
from hypothesis import strategies as st

CANARY = "canary-5f2d8b"


class Place:
    """A vault that can be opened again, as after a restart."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store: Store
        self.vault: Vault
        self.world: World

    async def open(self) -> Place:
        self.store = await open_store(self.path / "control.db")
        self.world = World()
        self.vault = Vault(self.store.secrets, self.path / FILE, self.world)
        await self.vault.load()
        return self

    async def again(self) -> Place:
        await self.store.close()
        return await self.open()

    def value(self, name: str) -> str | None:
        values, why = self.vault.given(spec(name))
        return None if why else values.values[name]

    def on_disk(self, text: str) -> list[str]:
        return [p.name for p in self.path.iterdir() if text.encode() in p.read_bytes()]


def spec(*names: str, **options: object) -> EndpointSpec:
    return EndpointSpec(
        name="e", entry="a:b", handler="class", secrets=tuple(Secret(n) for n in names), **options
    )


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    made = await Place(tmp_path).open()
    yield made
    await made.store.close()


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    made = Keyring(tmp_path_factory.mktemp("ring") / FILE)
    made.make()
    return made


@given(value=st.text(min_size=1), name=st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), version=st.integers(1))
def test_what_is_sealed_opens_as_itself_only(ring: Keyring, value: str, name: str, version: int) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        return
    id, sealed = ring.seal("p", name, version, value)
    assert ring.open(id, "p", name, version, sealed) == value
    assert ring.seal("p", name, version, value)[1] != sealed
    for other in (("q", name, version), ("p", name + "X", version), ("p", name, version + 1)):
        with pytest.raises(Unreadable):
            ring.open(id, *other, sealed)
    with pytest.raises(Unreadable):
        ring.open("k0", "p", name, version, sealed)


@given(cut=st.binary(max_size=60))
def test_what_was_changed_does_not_open(ring: Keyring, cut: bytes) -> None:
    with pytest.raises(Unreadable):
        ring.open(next(iter(ring.ids)), "p", "A", 1, cut)


async def test_only_the_sealed_value_is_on_disk(place: Place) -> None:
    row = await place.vault.set("default", "A", CANARY)
    assert (row.version, place.value("A")) == (1, CANARY)
    assert (place.path / FILE).stat().st_mode & 0o777 == 0o600
    assert place.on_disk(CANARY) == []
    assert CANARY not in f"{row} {place.vault.listed('default')} {place.vault.given(spec('A'))}"
    await place.again()
    assert place.value("A") == CANARY


async def test_versions_go_up_also_over_a_deletion(place: Place) -> None:
    assert [(await place.vault.set("default", "A", v)).version for v in ("one", "two")] == [1, 2]
    await place.vault.delete("default", "A")
    assert place.value("A") is None
    with pytest.raises(NotFound, match="A"):
        await place.vault.delete("default", "A")
    await place.again()
    assert place.value("A") is None
    row = await place.vault.set("default", "A", "three")
    assert (row.version, row.created_at) == (3, row.updated_at)


async def test_one_project_has_nothing_of_another(place: Place) -> None:
    await place.vault.set("other", "A", CANARY)
    assert place.value("A") is None
    assert place.vault.listed("default") == []


@pytest.mark.parametrize("value", ["", "a\0b", "\ud800", "x" * 40_000])
async def test_values_that_no_instance_could_have_are_refused(place: Place, value: str) -> None:
    with pytest.raises(ValidationFailed) as caught:
        await place.vault.set("default", "A", value)
    assert not value or value not in str(caught.value)


async def test_secrets_of_one_endpoint_are_bounded_together(place: Place) -> None:
    for name in ("A", "B"):
        await place.vault.set("default", name, "x" * 30_000)
    with pytest.raises(ValidationFailed, match="48 KiB"):
        place.vault.require([spec("A", "B")])
    place.vault.require([spec("A"), spec("B")])


async def test_the_number_of_secrets_is_bounded(place: Place) -> None:
    await asyncio.gather(*(place.vault.set("default", f"S{n}", "x") for n in range(MAX_SECRETS)))
    with pytest.raises(Conflict, match="1000"):
        await place.vault.set("default", "ONE_MORE", "x")
    await place.vault.set("default", "S1", "y")


async def test_unknown_secrets_are_named(place: Place) -> None:
    await place.vault.set("default", "B", "x")
    with pytest.raises(ValidationFailed, match="no secrets A, C: `headrace secrets set A`"):
        place.vault.require([spec("A", "B", "C")])


async def test_a_new_key_seals_everything(place: Place) -> None:
    await place.vault.set("default", "A", "of A")
    await place.vault.set("other", "B", "of B")
    before, old = (place.path / FILE).read_text(), await place.store.secrets.all()
    assert await place.vault.rotate() == 2
    after = (place.path / FILE).read_text()
    assert after != before
    assert len([line for line in after.splitlines() if not line.startswith("#")]) == 1
    new = await place.store.secrets.all()
    assert {r.key for r in new}.isdisjoint(r.key for r in old)
    assert [r.version for r in new] == [r.version for r in old]
    await place.again()
    assert place.value("A") == "of A"


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_a_change_of_key_that_was_cut_short_is_finished(place: Place, cut: str) -> None:
    await place.vault.set("default", "A", "of A")
    ring = Keyring(place.path / FILE)
    ring.read()
    ring.make()
    if cut == "after":
        row = (await place.store.secrets.all())[0]
        key, sealed = ring.seal("default", "A", 1, "of A")
        await place.store.secrets.reseal(
            [type(row)("default", "A", 1, key, sealed, row.created_at, row.updated_at)]
        )
    await place.again()
    assert place.value("A") == "of A"
    lines = (place.path / FILE).read_text().splitlines()
    assert len(lines) == 2
    assert {r.key for r in await place.store.secrets.all()} == {lines[1].split()[0]}


async def test_a_key_file_that_is_taken_away_meanwhile_is_back_with_the_next_secret(place: Place) -> None:
    await place.vault.set("default", "A", CANARY)
    (place.path / FILE).unlink()
    await place.vault.set("default", "B", "other")
    assert (place.path / FILE).stat().st_mode & 0o777 == 0o600
    await place.again()
    assert (place.value("A"), place.value("B")) == (CANARY, "other")


async def test_a_lost_key_is_named_and_no_new_one_takes_its_place(place: Place) -> None:
    await place.vault.set("default", "A", "of A")
    copy = (place.path / FILE).read_bytes()
    (place.path / FILE).unlink()
    await place.again()
    with pytest.raises(ValidationFailed, match=r"its key k\w+ is not in secrets\.key"):
        place.vault.require([spec("A")])
    with pytest.raises(Conflict, match=r"secrets\.key"):
        await place.vault.set("default", "B", "x")
    with pytest.raises(Conflict, match=r"secrets\.key"):
        await place.vault.rotate()
    assert not (place.path / FILE).exists()
    (place.path / FILE).write_bytes(copy)
    (place.path / FILE).chmod(0o600)
    await place.again()
    assert place.value("A") == "of A"


@pytest.mark.parametrize("content", ["k1 AES-256-GCM dG9vIHNob3J0\n", "nonsense\n", "k1 other " + "A" * 44])
async def test_a_damaged_key_file_stops_secrets_and_nothing_else(place: Place, content: str) -> None:
    await place.vault.set("default", "A", "of A")
    (place.path / FILE).write_text(content)
    with pytest.raises(DataDirError) as caught:
        Keyring(place.path / FILE).read()
    assert content.strip() not in str(caught.value)
    await place.again()
    assert place.value("A") is None
    with pytest.raises(Conflict, match="damaged"):
        await place.vault.set("default", "B", "x")


async def test_a_key_file_that_others_can_read_is_not_used(place: Place) -> None:
    await place.vault.set("default", "A", "of A")
    (place.path / FILE).chmod(0o644)
    await place.again()
    assert place.value("A") is None
    assert "chmod 600" in place.vault.given(spec("A"))[1]


async def test_a_row_that_was_moved_in_the_database_does_not_open(place: Place) -> None:
    await place.vault.set("default", "A", "of A")
    await place.vault.set("default", "B", "of B")
    await place.store.close()
    with sqlite3.connect(place.path / "control.db") as db:
        db.execute(
            "UPDATE secrets SET sealed = (SELECT sealed FROM secrets WHERE name = 'A') WHERE name = 'B'"
        )
    db.close()
    await place.open()
    assert place.value("A") == "of A"
    assert "what is stored was changed" in place.vault.given(spec("B"))[1]


async def test_a_loaded_base_is_another_with_every_version(place: Place) -> None:
    loaded = spec("A", snapshot="loaded")
    bases = []
    for value in ("one", "two"):
        await place.vault.set("default", "A", value)
        bases.append(base_of(loaded, 1, place.world.secrets_of(loaded)))
    assert bases[0] != bases[1]
    assert hash(bases[0]) is not None
    assert place.vault.of_bases(bases) == wire.SecretValues(values={"default/A@2": "two"})
    plain = spec("A")
    assert base_of(plain, 1, place.world.secrets_of(plain)) == base_of(spec(), 1)
