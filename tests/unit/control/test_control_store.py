"""The store, its group commit, blobs and the history file."""

from __future__ import annotations

import asyncio
import hashlib
import resource
import sqlite3
import stat

import msgspec
import pytest
from headrace import wire
from headrace.control.blobs import Blobs
from headrace.control.deployments import NewVersion
from headrace.control.history import History
from headrace.control.progress import Deployment, Part
from headrace.control.sql import load_migrations
from headrace.control.store import Intent, NodeRow, open_store
from headrace.errors import DataDirError, NotFound, ValidationFailed
from headrace.sqlite_writer import StoreBusy, open_database
from headrace_autoscaler.history import Writer
from headrace_autoscaler.policy import decide
from headrace_autoscaler.replay import replay_file
from headrace_autoscaler.spec import Config, Observation, Record, Release, State


@pytest.fixture
async def store(tmp_path):
    opened = await open_store(tmp_path / "control.db")
    yield opened
    await opened.close()


async def test_the_epoch_grows_with_every_leader(tmp_path):
    for expected in (1, 2, 3):
        store = await open_store(tmp_path / "control.db")
        assert await store.take_epoch() == expected
        await store.close()


def deployment(id, *parts):
    return Deployment(id, "p", [Part(endpoint, version) for endpoint, version in parts])


async def trial(store, id, endpoint, data=b"", bundle="x", version=0):
    """A deployment of one endpoint that is being tried; of a new version when there is data."""
    made = deployment(id, (endpoint, version))
    new = {endpoint: NewVersion("p", endpoint, data, bundle)} if data else {}
    await store.deployments.begin(made, new)
    return made, made.parts[0]


async def states(store):
    return {d.id: [(p.endpoint, p.version, p.state) for p in d.parts] for d in await store.deployments.all()}


async def test_versions_are_numbered_flipped_and_pruned(store):
    new = [NewVersion("p", "a", b"1", "x"), NewVersion("p", "b", b"1", "x")]
    assert await store.deployments.register(new) == [1, 1]
    second = await trial(store, "d2", "a", b"2", "y")
    assert second[1].version == 2
    rows = {r.name: r for r in await store.load_endpoints()}
    assert (rows["a"].current_version, rows["a"].spec) == (1, b"1")
    assert await store.deployments.flip(*second) == ""
    assert (await store.load_endpoints())[0].current_version == 2
    assert await store.version_numbers() == [("p", "a", 1), ("p", "a", 2), ("p", "b", 1)]
    assert await store.deployments.flip(*await trial(store, "back", "a", version=1)) == ""
    held = await trial(store, "held", "a", version=2)
    for number in range(3, 15):
        _, part = await trial(store, f"d{number}", "a", b"n", "z")
        assert part.version == number
        part.state = "failed"
        await store.deployments.settle(deployment(f"d{number}"), part)
    # The current one, and what is tried, are not pruned.
    kept = [r.version for r in await store.versions("p", "a")]
    assert kept == [*range(14, 4, -1), 2, 1]
    assert await store.version_spec("p", "a", 3) is None
    assert await store.bundles() == {"x", "y", "z"}
    await store.delete_endpoint("p", "a")
    assert [r.name for r in await store.load_endpoints()] == ["b"]
    assert await store.versions("p", "a") == []
    assert "deleted" in await store.deployments.flip(*held)


async def test_a_trial_ends_with_what_it_makes_current_and_with_what_began_before_it(store):
    both = deployment("d1", ("x", 0), ("y", 0))
    await store.deployments.begin(both, {n: NewVersion("p", n, b"1", "b") for n in ("x", "y")})
    later, part = await trial(store, "d2", "x", b"2")
    part.notes.append("a note")
    assert await store.deployments.flip(later, part) == ""
    assert await states(store) == {
        "d1": [("x", 1, "failed"), ("y", 1, "starting")],
        "d2": [("x", 2, "ready")],
    }
    d1, d2 = await store.deployments.all()
    assert ("later deployment" in d1.parts[0].detail, d2.parts[0].notes) == (True, ["a note"])
    # It began earlier: it does not replace the later one, nor does what its end is said to be.
    assert "later deployment" in await store.deployments.flip(both, both.parts[0])
    part.state = "failed"
    await store.deployments.settle(later, part)
    assert (await states(store))["d2"] == [("x", 2, "ready")]
    assert (await store.load_endpoints())[0].current_version == 2
    # Without a trial it is current at once, and so is what stays as it is.
    y = await trial(store, "d3", "y", b"2")
    await store.deployments.register([NewVersion("p", "x", b"3", "b")], [("p", "y")])
    assert "later deployment" in await store.deployments.flip(*y)
    assert not [p for d in await store.deployments.all() for p in d.parts if p.state == "starting"]


async def test_deployments_that_go_on_are_kept_beside_the_newest_hundred(store):
    await trial(store, "goes-on", "x", b"1")
    for number in range(110):
        made, part = await trial(store, f"d{number}", "y", b"1")
        part.state = "failed"
        await store.deployments.settle(made, part)
    kept = [d.id for d in await store.deployments.all()]
    assert kept == ["goes-on", *[f"d{n}" for n in range(10, 110)]]


async def test_a_name_that_is_used_again_has_nothing_of_the_deleted_one(store):
    before = await trial(store, "d1", "x", b"1")
    await store.delete_endpoint("p", "x")
    again = await trial(store, "d2", "x", b"other")
    assert again[1].version == before[1].version == 1
    assert "deleted" in await store.deployments.flip(*before)
    assert (await store.load_endpoints())[0].current_version is None


async def test_pages_go_by_name_within_a_project(store):
    new = [NewVersion(p, f"e{n:03}", b"{}", "x") for p in ("p", "q") for n in range(25)]
    await store.deployments.register(new)
    first = await store.page_names("p", "", 10)
    assert first == [f"e{n:03}" for n in range(10)]
    assert await store.page_names("p", first[-1], 100) == [f"e{n:03}" for n in range(10, 25)]
    assert await store.page_names("nobody", "", 10) == []


async def test_keys_scale_intents_and_nodes(store):
    key = wire.KeyRecord(
        id="k",
        hash="h",
        scopes=("admin", "call"),
        name="n",
        endpoints=("a", "b"),
        rate=2.5,
        burst=4,
        created_at=7.0,
    )
    await store.put_key(key)
    await store.put_key(key)
    assert await store.keys() == [key]
    await store.deployments.register([NewVersion("p", "a", b"1", "x")])
    await store.scale("p", "a", 1, None)
    row = (await store.load_endpoints())[0]
    assert (row.min_override, row.max_override) == (1, None)
    intent = Intent("i", "p", "local", "launch", {"cpu": 1}, "written", 1.0, 1.0)
    await store.put_intent(intent)
    with pytest.raises(sqlite3.IntegrityError):
        await store.put_intent(intent)
    await store.update_intent("i", "launched", "n")
    await store.update_intent("i", "ended")
    (back,) = await store.intents()
    assert (back.state, back.node, back.spec) == ("ended", "n", {"cpu": 1})
    node = NodeRow("n", "p", "local", {"cpu": 1}, "joining", 1.0, 1.0, "i")
    await store.put_node(node)
    assert await store.nodes() == [node]
    await store.delete_node("n")
    assert await store.nodes() == []


async def test_writes_share_a_commit_and_one_that_fails_is_undone_alone(tmp_path):
    database = open_database(tmp_path / "x.db", ["CREATE TABLE t (n INTEGER PRIMARY KEY);"])
    try:

        def insert(n):
            return lambda db: db.execute("INSERT INTO t VALUES (?)", (n,))

        jobs = [database.write(insert(n % 90)) for n in range(100)]
        results = await asyncio.gather(*jobs, return_exceptions=True)
        assert sum(isinstance(r, sqlite3.IntegrityError) for r in results) == 10
        assert await database.read(lambda db: db.execute("SELECT count(*) FROM t").fetchone()[0]) == 90
        assert database.commits < 50
    finally:
        await database.close()
    with pytest.raises(StoreBusy):
        await database.write(insert(1000))
    await database.close()


async def test_the_file_is_private_and_durable(tmp_path):
    store = await open_store(tmp_path / "control.db")
    try:
        assert stat.S_IMODE((tmp_path / "control.db").stat().st_mode) == 0o600
        found = await store._db.write(
            lambda db: [
                db.execute(f"PRAGMA {p}").fetchone()[0]
                for p in ("journal_mode", "synchronous", "foreign_keys")
            ]
        )
        assert found == ["wal", 2, 1]
        with pytest.raises(sqlite3.OperationalError):
            await store._db.read(lambda db: db.execute("DELETE FROM meta"))
    finally:
        await store.close()


async def test_what_cannot_be_opened_is_told(tmp_path):
    with pytest.raises(DataDirError, match="another --data-dir"):
        await open_store(tmp_path / "missing" / "control.db")
    (tmp_path / "bad.db").write_bytes(b"this is not a database" * 100)
    with pytest.raises(DataDirError):
        await open_store(tmp_path / "bad.db")


async def test_blobs_are_whole_or_not_there(tmp_path):
    blobs = Blobs(tmp_path / "blobs")
    data = b"x" * 10_000
    sha = hashlib.sha256(data).hexdigest()
    with pytest.raises(ValidationFailed):
        await blobs.put(sha, data + b"!")
    assert not blobs.has(sha)
    assert await blobs.put(sha, data)
    assert not await blobs.put(sha, data)
    assert await blobs.read(sha, 9_990, 100) == (10_000, b"x" * 10)
    assert [p.name for p in (tmp_path / "blobs").iterdir()] == [sha]
    for bad in ("../control.db", sha.upper(), sha + "\n", ""):
        assert not blobs.has(bad)
        with pytest.raises(ValidationFailed):
            await blobs.read(bad, 0, 1)
    with pytest.raises(NotFound):
        await blobs.read("0" * 64, 0, 1)
    assert await blobs.collect(lambda _: False) == 0
    assert await blobs.collect(lambda _: True, grace_s=-1) == 0
    (tmp_path / "blobs" / ".half-written").write_bytes(b"")
    assert await blobs.collect(lambda _: False, grace_s=-1) == 2


def _record(now):
    observation = Observation(endpoints=(), hosts=())
    return Record(
        now=now,
        observation=observation,
        state=State(),
        config=Config(),
        decision=decide(now, observation, State(), Config()),
    )


@pytest.mark.parametrize("torn", [b'{"now":1', b"x" * (1 << 17)])
@pytest.mark.parametrize("whole", [0, 3])
async def test_a_line_that_was_never_finished_does_not_spoil_those_behind_it(tmp_path, torn, whole):
    path = tmp_path / "decisions.jsonl"
    for _ in range(2):
        history = History(tmp_path)
        history.start()
        for n in range(whole):
            history.record(_record(float(n)))
        await history.stop()
        with path.open("ab") as file:
            file.write(torn)
    history = History(tmp_path)
    history.start()
    history.record(_record(9.0))
    await history.stop()
    assert len(path.read_bytes().splitlines()) == 2 * whole + 1
    assert replay_file(path) == []


async def test_the_history_is_bounded_and_replays(tmp_path):
    history = History(tmp_path / "history", max_bytes=2_000)
    history.start()
    for n in range(100):
        history.record(_record(float(n)))
        await asyncio.sleep(0)
    await history.stop()
    files = sorted(p.name for p in (tmp_path / "history").iterdir())
    assert "decisions.1.jsonl" in files
    assert set(files) <= {"decisions.1.jsonl", "decisions.jsonl"}
    assert all(replay_file(tmp_path / "history" / name) == [] for name in files)


async def test_a_full_disk_leaves_no_half_of_a_record(tmp_path):
    history = History(tmp_path / "history")
    history.start()
    path = tmp_path / "history" / "decisions.jsonl"
    line = len(Writer().line(_record(1.0)))
    history.record(_record(1.0))
    await _until(path.exists)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (line + 20, before[1]))
    try:
        history.record(_record(1.0))
        await _until(lambda: history.dropped)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert history.dropped == 1
    history.record(_record(1.0))
    await history.stop()
    assert path.stat().st_size == 2 * line
    assert replay_file(path) == []


async def _until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_changed_decision_is_found(tmp_path):
    record = _record(1.0)
    other = msgspec.structs.replace(
        record.decision, actions=(Release(endpoint="e", instance="i", reason="never decided"),)
    )
    path = tmp_path / "h.jsonl"
    wrong = msgspec.structs.replace(record, decision=other)
    path.write_bytes(msgspec.json.encode(record) + b"\n\n" + msgspec.json.encode(wrong) + b"\n")
    (mismatch,) = replay_file(path)
    assert (mismatch.line, mismatch.decided) == (3, record.decision)


async def test_keys_of_an_older_store_stay_valid(tmp_path):
    path = tmp_path / "control.db"
    old = open_database(path, load_migrations()[:1])
    insert = (
        "INSERT INTO keys (id, project, hash, scopes, created_at) VALUES ('k', 'default', 'h', 'invoke', 5.0)"
    )
    await old.write(lambda db: db.execute(insert))
    await old.close()
    new = await open_store(path)
    try:
        key = wire.KeyRecord(id="k", hash="h", scopes=("invoke",), created_at=5.0)
        assert await new.keys() == [key]
        assert await new.delete_key("other", "k") is False
        assert await new.delete_key("default", "k") is True
        assert await new.keys() == []
    finally:
        await new.close()
