"""What the PostgreSQL store does when the server restarts, several gateways share it, or values are bad."""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
import uuid

import asyncpg
import psutil
import pytest
from fixtures_postgres import PASSWORD, running_postgres
from headrace.errors import BadRequest, DataDirError, SettingsError
from headrace.jobs import postgres_link, postgres_writes
from headrace.jobs.model import NewJob, Payload, Result, Webhook
from headrace.jobs.postgres import _Q, open_postgres
from headrace.jobs.sql import load_migrations
from headrace.jobs.store import StoreUnavailable
from headrace.jobs.text import masked

DEADLINE_S = 30.0


def _new(endpoint: str = "e", **more) -> NewJob:
    values = {"id": uuid.uuid4().hex, "input": Payload(data=b"{}", size=2)} | more
    return NewJob(project="p", endpoint=endpoint, **values)


def _ok(text: bytes = b"1") -> Result:
    return Result(state="succeeded", output=Payload(data=text, size=len(text)))


@pytest.fixture
def own_server():
    """A server that the test may stop and kill."""
    with running_postgres() as server:
        yield server


@pytest.fixture
async def store(postgres_server):
    store = await open_postgres(postgres_server.empty_database())
    yield store
    await store.close()


class Load:
    """Submitters and workers on one store each; what they were told is what must be true at the end."""

    def __init__(self) -> None:
        self.stop = False
        self.stored: list[str] = []
        self.finished: dict[str, int] = {}
        self.unavailable = 0

    async def submit(self, store) -> None:
        while not self.stop:
            new = _new(webhook=Webhook(url="https://example.org/hook"))
            with contextlib.suppress(StoreUnavailable):
                job, is_new = await store.submit(new, time.time())
                assert is_new
                self.stored.append(job.id)

    async def work(self, store, owner: str, *, until_empty: bool = False) -> None:
        while True:
            try:
                now = time.time()
                leases = await store.lease(owner, "p", "e", limit=20, now=now, until=now + 2.0)
                if until_empty and not leases and (await store.counts("p", "e")).running == 0:
                    return
                await asyncio.gather(*(self._finish(store, lease) for lease in leases))
                await store.sweep(time.time())
            except StoreUnavailable:
                self.unavailable += 1
            if self.stop and not until_empty:
                return
            await asyncio.sleep(0)

    async def _finish(self, store, lease) -> None:
        if await store.finish(lease.job.id, lease.fence, _ok(b"%d" % lease.fence), time.time()):
            self.finished[lease.job.id] = self.finished.get(lease.job.id, 0) + 1


async def _in_thread(fn, *args):
    return await asyncio.to_thread(fn, *args)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["fast", "crash"])
async def test_a_restart_under_load_loses_and_doubles_nothing(own_server, how):
    dsn = own_server.new_database()
    stores = [await open_postgres(dsn), await open_postgres(dsn)]
    load = Load()
    tasks = [asyncio.create_task(load.submit(stores[i % 2])) for i in range(8)]
    tasks += [asyncio.create_task(load.work(store, f"w{i}")) for i, store in enumerate(stores)]
    try:
        for _ in range(2):
            before = len(load.finished)
            async with asyncio.timeout(DEADLINE_S):
                while len(load.finished) < before + 100:
                    await asyncio.sleep(0.01)
            await _in_thread(own_server.stop, how)
            await _in_thread(own_server.start)
        before = len(load.finished)
        async with asyncio.timeout(DEADLINE_S):
            while len(load.finished) < before + 100:
                await asyncio.sleep(0.01)
        load.stop = True
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*tasks)
            # Leases whose answer went down with the server end by themselves.
            await load.work(stores[0], "last", until_empty=True)
        counts = await stores[0].counts("p", "e")
        assert (counts.queued, counts.running, counts.failed) == (0, 0, 0)
        assert counts.succeeded >= len(load.stored), "a job that was acknowledged is gone"
        assert set(load.stored) <= set(load.finished), "an acknowledged job was never finished"
        assert set(load.finished.values()) == {1}, "a job was finished twice"
        # The webhooks as well: one end of each job, whoever was told of it.
        told: list[str] = []
        while due := await stores[0].due("s", time.time(), time.time() + 600, limit=1000):
            told += [delivery.job for delivery in due]
        assert len(told) == len(set(told)) == counts.succeeded
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for store in stores:
            await store.close()


async def test_a_restart_within_the_budget_is_only_waited_for(own_server):
    store = await open_postgres(own_server.new_database())
    try:
        await store.submit(_new(), time.time())
        await _in_thread(own_server.stop)
        waiting = asyncio.create_task(store.submit(_new(), time.time()))
        await _in_thread(own_server.start)
        assert (await asyncio.wait_for(waiting, DEADLINE_S))[1]
        assert (await store.counts("p", "e")).queued == 2
    finally:
        await store.close()


async def test_a_server_that_is_away_is_told_within_the_budget_and_without_password(own_server):
    dsn = own_server.new_database()
    store = await open_postgres(dsn, budget_s=0.3)
    try:
        await _in_thread(own_server.stop)
        calls = [store.submit(_new(), 1.0) for _ in range(50)]
        calls += [
            store.get("p", "x"),
            store.waiting(time.time()),
            store.lease("w", "p", "e", limit=1, now=1.0, until=2.0),
        ]
        found = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), DEADLINE_S)
        assert {type(error) for error in found} == {StoreUnavailable}
        assert not [error for error in found if PASSWORD in repr(error.__dict__) + str(error)]
        with pytest.raises(StoreUnavailable) as caught:
            await open_postgres(dsn, budget_s=0.3)
        assert PASSWORD not in str(caught.value)
    finally:
        await asyncio.wait_for(store.close(), DEADLINE_S)
    with pytest.raises(StoreUnavailable):
        await store.submit(_new(), 1.0)


async def test_a_wrong_password_or_database_is_a_mistake_in_the_settings(postgres_server):
    for dsn in (postgres_server.dsn(password="wr0ng-one"), postgres_server.dsn("no-such-database")):
        with pytest.raises(SettingsError) as caught:
            await open_postgres(dsn)
        assert "wr0ng-one" not in str(caught.value)
        assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("dsn", ["postgresql://u:hush@h:port/d", "postgresql://u:hush@h/d?sslmode=maybe"])
async def test_an_address_that_is_none_is_refused(dsn):
    with pytest.raises(SettingsError) as caught:
        await open_postgres(dsn, budget_s=0.1)
    assert "hush" not in str(caught.value)


def test_passwords_are_masked_wherever_they_stand():
    assert masked("postgresql://u:hush@h:1/d") == "postgresql://u:***@h:1/d"
    assert masked("postgres://h/d?user=u&password=hush&x=1") == "postgres://h/d?user=u&password=***&x=1"
    assert "hush" not in masked("postgresql://u:a@hush@h/d?sslpassword=hush")
    assert masked("postgresql://u@h/d") == "postgresql://u@h/d"


async def test_a_newer_schema_is_refused_and_left_alone(postgres_server):
    dsn = postgres_server.empty_database()
    await (await open_postgres(dsn)).close()
    connection = await asyncpg.connect(dsn)
    number = len(load_migrations("postgres")) + 1
    await connection.execute("INSERT INTO headrace.migrations (number) VALUES ($1)", number)
    with pytest.raises(DataDirError, match=f"schema {number}"):
        await open_postgres(dsn)
    await connection.close()


async def test_gateways_that_start_at_once_migrate_once(postgres_server):
    dsn = postgres_server.empty_database()
    stores = await asyncio.gather(*(open_postgres(dsn) for _ in range(5)))
    await stores[0].submit(_new(), time.time())
    assert (await stores[4].counts("p", "e")).queued == 1
    for store in stores:
        await store.close()


async def test_one_bad_value_does_not_take_its_neighbours_down(store):
    jobs = [_new() for _ in range(20)]
    bad = {
        5: _new(path="/nul\0"),
        9: _new(fingerprint="\ud800"),
        13: _new(idempotency_key=secrets.token_hex(8000)),
    }
    for place, job in bad.items():
        jobs[place] = job
    found = await asyncio.gather(*(store.submit(job, 1.0) for job in jobs), return_exceptions=True)
    assert [i for i, result in enumerate(found) if isinstance(result, BadRequest)] == [5, 9, 13]
    assert (await store.counts("p", "e")).queued == 17


async def test_a_caller_that_goes_away_leaves_the_batch_alone(store):
    jobs = [_new() for _ in range(10)]
    tasks = [asyncio.create_task(store.submit(job, 1.0)) for job in jobs]
    await asyncio.sleep(0)
    tasks[3].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results].count(asyncio.CancelledError) == 1
    assert (await store.counts("p", "e")).queued == 10


async def test_calls_that_come_together_share_transactions(store):
    await asyncio.gather(*(store.submit(_new(), 1.0) for _ in range(500)))
    assert store._writes.submit.batches <= 10


async def test_counts_are_right_while_everything_moves(store, postgres_server):
    ids = [(await store.submit(_new(), 1.0))[0].id for _ in range(60)]
    leases = await store.lease("w", "p", "e", limit=60, now=1.0, until=9.0)

    async def move(i: int) -> None:
        lease = leases[i]
        if i % 3 == 0:
            await store.finish(lease.job.id, lease.fence, _ok(), 2.0)
        elif i % 3 == 1:
            await store.cancel("p", lease.job.id, 2.0)
        else:
            await store.release(lease.job.id, lease.fence, 2.0, reason="r", lost=True)

    async def fold() -> None:
        for _ in range(20):
            await store.sweep(1.5)
            counts = await store.counts("p", "e")
            assert counts.queued + counts.running + counts.succeeded + counts.cancelled == len(ids)

    await asyncio.gather(fold(), *(move(i) for i in range(60)))
    counts = await store.counts("p", "e")
    assert (counts.queued, counts.running, counts.succeeded, counts.cancelled) == (20, 0, 20, 20)


async def test_other_gateways_hear_at_once(postgres_server):
    dsn = postgres_server.empty_database()
    one, two = await open_postgres(dsn), await open_postgres(dsn)
    heard: asyncio.Queue = asyncio.Queue()
    own: list = []
    tasks = [
        asyncio.create_task(two.watch(lambda *hint: heard.put_nowait(hint))),
        asyncio.create_task(one.watch(lambda *hint: own.append(hint))),
    ]

    async def hear(*wanted: str) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while await heard.get() != wanted:
                pass

    try:
        await hear("resync", "", "")
        job, _ = await one.submit(_new(), time.time())
        await hear("queued", "p", "e")
        (lease,) = await two.lease("w", "p", "e", limit=1, now=time.time(), until=time.time() + 9)
        await one.append(job.id, lease.fence, 0, [b"x"])
        await hear("chunks", "", job.id)
        await one.finish(job.id, lease.fence, _ok(), time.time())
        await hear("final", "", job.id)
        assert {hint for hint, *_ in own} <= {"resync"}, "a gateway hears its own hints"
        # A connection that is cut is made again, and says that something may have been missed.
        postgres_server.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ILIKE 'LISTEN%'"
        )
        await hear("resync", "", "")
        await one.submit(_new("after"), time.time())
        await hear("queued", "p", "after")
        # More than one notification can hold.
        await asyncio.gather(*(one.submit(_new(f"{'n' * 90}{i}"), time.time()) for i in range(200)))
        await hear("queued", "p", f"{'n' * 90}199")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await one.close()
        await two.close()


async def test_what_was_done_before_the_connection_broke_is_found_again(store):
    """Calls that are repeated because their answer was lost with the connection, after their commit."""
    link = store._link
    run = link.run

    def broken_once():
        broke = False

        async def lossy(work, **options):
            async def twice(connection, repeated):
                nonlocal broke
                result = await work(connection, repeated)
                if not broke:
                    broke = True
                    raise ConnectionResetError
                return result

            return await run(twice, **options)

        link.run = lossy

    broken_once()
    new = _new(idempotency_key="k")
    job, is_new = await store.submit(new, 1.0)
    assert (job.id, is_new) == (new.id, True), "the job is there, and it is the caller's own"
    broken_once()
    (lease,) = await store.lease("w", "p", "e", limit=5, now=1.0, until=9.0)
    assert (lease.job.id, lease.fence) == (new.id, 1)
    broken_once()
    assert await store.finish(new.id, 1, _ok(), 2.0), "its own result is told as late"
    link.run = run
    assert await store.dropped() == 0
    assert not await store.finish(new.id, 1, _ok(), 2.0)
    assert await store.dropped() == 1


async def test_a_submission_that_was_given_up_is_not_stored_when_a_server_that_hung_goes_on(
    own_server, monkeypatch
):
    monkeypatch.setattr(postgres_link, "STATEMENT_S", 0.5)
    monkeypatch.setattr(postgres_writes, "BEGIN_S", 0.25)
    store = await open_postgres(own_server.empty_database(), budget_s=1.0)
    postmaster = psutil.Process(own_server.pid)

    def send(signal_number: signal.Signals) -> None:
        for process in [postmaster, *postmaster.children()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal_number)

    given_up = []
    try:
        # Now and then the server hears first that nobody waits, and stores nothing in any case.
        for _ in range(5):
            await store.submit(_new(), time.time())
            new = _new()
            given_up.append(new.id)
            send(signal.SIGSTOP)
            try:
                with pytest.raises(StoreUnavailable):
                    await store.submit(new, time.time())
            finally:
                send(signal.SIGCONT)
            await _rest(store)
        assert [await store.get("p", job_id) for job_id in given_up] == [None] * len(given_up)
    finally:
        await store.close()


async def _rest(store) -> None:
    """Wait until no other session has anything to do."""
    end = time.monotonic() + DEADLINE_S
    at_rest = 0
    while at_rest < 5:
        assert time.monotonic() < end
        with contextlib.suppress(StoreUnavailable):
            busy = await store._link.run(
                lambda connection, _: connection.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()"
                )
            )
            at_rest = 0 if busy else at_rest + 1
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("ahead", [-3600.0, 3600.0])
async def test_jobs_are_stored_whatever_the_servers_clock_says(store, ahead):
    """It was set, or differs from ours."""
    store._writes._ahead = ahead
    new = _new()
    assert (await store.submit(new, time.time()))[1]
    assert abs(store._writes._ahead) < 60.0
    assert not (await store.submit(new, time.time()))[1]


def _certificate(folder, name: str):
    """(key, certificate) for 127.0.0.1, signed by itself."""
    key, cert = folder / f"{name}.key", folder / f"{name}.crt"
    words = (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(
        ["openssl", *words.split(), "-keyout", str(key), "-out", str(cert)],
        check=True,
        capture_output=True,
        timeout=60,
    )
    key.chmod(0o600)
    if os.geteuid() == 0:
        shutil.chown(key, "postgres", "postgres")
    return key, cert


async def test_tls_is_what_the_address_says(own_server):
    key, cert = _certificate(own_server.folder, "server")
    _, other = _certificate(own_server.folder, "other")
    dsn = own_server.new_database()
    with pytest.raises((StoreUnavailable, SettingsError)):
        await open_postgres(f"{dsn}?sslmode=require", budget_s=0.3)
    await _in_thread(own_server.stop)
    await _in_thread(lambda: own_server.start(ssl="on", ssl_cert_file=str(cert), ssl_key_file=str(key)))
    store = await open_postgres(f"{dsn}?sslmode=verify-full&sslrootcert={cert}")
    try:
        await store.submit(_new(), time.time())
        used = own_server.sql(
            "SELECT bool_and(ssl) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) "
            "WHERE a.application_name = 'headrace'"
        )
        assert used.strip() == "t"
    finally:
        await store.close()
    with pytest.raises(SettingsError, match="TLS"):
        await open_postgres(f"{dsn}?sslmode=verify-full&sslrootcert={other}", budget_s=0.3)


async def test_a_database_belongs_to_one_platform(postgres_server):
    dsn = postgres_server.empty_database()
    for platform in ("", "one", "one", ""):
        store = await open_postgres(dsn, platform=platform)
        await store.close()
    with pytest.raises(SettingsError, match=r"another platform \(one; this one is two\)"):
        await open_postgres(dsn, platform="two")


async def test_hot_statements_neither_scan_nor_sort_the_queue(store):
    # Planned while the tables are empty, as a gateway's are.
    plans = {
        "lease": "'{w}', '{p}', '{e}', '{9}', '{1}', '{2}', '{7}'",
        "oldest": "'p', 'e'",
        "counts": "'p', 'e'",
        "submit": ", ".join(["'{}'"] * 27) + ", 9",
        "retry": "'a', 'p', 1",
        "heartbeat": "'w', '{a}', '{1}', 2",
        "finish": "'{a}','{1}','{failed}','{x}','{x}','{x}','{1}','{x}','{x}','{x}','{1}','{i}','{1}', false",
        "past_deadline": "1, 9",
        "remove": "1, 9",
    }
    async with store._link.pool.acquire() as connection:
        for name, args in plans.items():
            await connection.execute(f"PREPARE q_{name} AS {_Q[name].rstrip().rstrip(';')}")
            rows = await connection.fetch(f"EXPLAIN EXECUTE q_{name}({args})")
            plan = "\n".join(row[0] for row in rows)
            assert "Seq Scan on jobs" not in plan, plan
            assert "Seq Scan on counts" not in plan, plan
            if name == "lease":
                # The jobs it takes, few, are sorted, and never those it takes them from.
                plan = plan[plan.index("CTE picked") : plan.index("CTE latest")]
            if name in ("lease", "oldest"):
                assert "Sort" not in plan, plan
