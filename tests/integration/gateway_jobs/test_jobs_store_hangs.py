"""A PostgreSQL that hangs under a platform: no call of the client fails, and none runs twice for it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from headrace import Client
from headrace.gateway.jobs import leases, runner, sweeper
from headrace.jobs import postgres_link
from headrace.jobs.model import Job, NewJob, Payload

from tests.fixtures_postgres import PostgresServer, running_postgres
from tests.integration.conftest import Platform, make_settings, running_platform, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

BUDGET_S = 2.0
"""What a question to the store may take, in place of 8 s."""
HANGS_S = 2.0 * BUDGET_S
CLIENTS = 6
SOURCE = """
    import asyncio
    import os

    @headrace.endpoint(name="gate", concurrency=1, scaling=headrace.Scaling(max=1))
    async def gate(file: str) -> int:
        while not os.path.exists(file):
            await asyncio.sleep(0.02)
        return 1

    async def work(tag: str, file: str) -> str:
        with open(file, "a") as f:
            f.write(f"{tag}\\n")
        await asyncio.sleep(0.2)
        return tag

    @headrace.endpoint(name="shut", concurrency=8, scaling=headrace.Scaling(max=1), idempotent=False)
    async def shut(tag: str, file: str, gate: str) -> str:
        with open(file, "a") as f:
            f.write(f"{tag}\\n")
        while not os.path.exists(gate):
            await asyncio.sleep(0.02)
        return tag

    echo = headrace.endpoint(name="echo", concurrency=8, scaling=headrace.Scaling(max=1))(work)
    once = headrace.endpoint(
        name="once", concurrency=8, scaling=headrace.Scaling(max=1), idempotent=False
    )(work)
"""


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[PostgresServer]:
    for name in ("CONNECT_S", "STATEMENT_S"):
        monkeypatch.setattr(postgres_link, name, BUDGET_S / 2)
    # None ends while it hangs.
    for module in (leases, runner):
        monkeypatch.setattr(module, "LEASE_S", 3.0 * HANGS_S)
    monkeypatch.setattr(leases, "HEARTBEAT_S", 1.0)
    with running_postgres() as server:
        yield server


def send(server: PostgresServer, signal_number: signal.Signals) -> None:
    """To all of its processes."""
    postmaster = psutil.Process(server.pid)
    for process in [postmaster, *postmaster.children()]:
        try:
            process.send_signal(signal_number)
        except psutil.NoSuchProcess:
            continue


@pytest.mark.parametrize("name", ["echo", "once"])
async def test_no_call_fails_while_the_store_hangs(hanging: PostgresServer, work: Path, name: str) -> None:
    noted = work / f"noted-{name}"
    noted.touch()
    os.chmod(noted, 0o666)
    os.chmod(work, 0o755)
    settings = make_settings(work / name, store=hanging.new_database())
    async with running_platform(settings, work) as platform:
        assert (await platform.deploy(SOURCE))["state"] == "succeeded"
        service = platform.cluster.gateway.jobs.service
        await until(lambda: service._store is not None)
        service.store._link._budget_s = BUDGET_S  # type: ignore[attr-defined]
        over = threading.Event()
        found: list[tuple[str, str]] = []

        def calls(client_number: int) -> None:
            with Client(platform.cluster.url, platform.cluster.admin_key) as client:
                for n in range(10**6):
                    if over.is_set():
                        return
                    tag = f"{client_number}-{n}"
                    try:
                        given = {"tag": tag, "file": str(noted)}
                        value = client.call(name, json=given, timeout=60, idempotent=name == "echo")
                        found.append((tag, value))
                    except Exception as error:
                        found.append((tag, repr(error)))

        threads = [asyncio.create_task(asyncio.to_thread(calls, n)) for n in range(CLIENTS)]
        try:
            await until(lambda: len(found) >= 3 * CLIENTS)
            send(hanging, signal.SIGSTOP)
            try:
                await asyncio.sleep(HANGS_S)
            finally:
                send(hanging, signal.SIGCONT)
            before = len(found)
            await until(lambda: len(found) >= before + 3 * CLIENTS)
        finally:
            over.set()
            await asyncio.wait_for(asyncio.gather(*threads), 60)
        assert [(tag, value) for tag, value in found if tag != value] == []
        runs = Counter(noted.read_text().split())
        assert [tag for tag, _ in found if not runs[tag]] == []
        if name == "once":
            assert [tag for tag, count in runs.items() if count > 1] == []


async def test_no_attempt_is_lost_when_the_store_hangs_for_longer_than_a_lease(
    hanging: PostgresServer, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could prolong a lease meanwhile, or tell a result; what a dead gateway had comes back soon."""
    for module in (leases, runner):
        monkeypatch.setattr(module, "LEASE_S", 4.0)
    monkeypatch.setattr(leases, "HEARTBEAT_S", 1.0)
    monkeypatch.setattr(sweeper, "GAP_S", 1.5)
    monkeypatch.setattr(sweeper, "STEADY_S", 4.0)
    noted, gate = work / "noted", work / "open"
    noted.touch()
    os.chmod(noted, 0o666)
    os.chmod(work, 0o755)
    settings = make_settings(work / "lease", store=hanging.new_database())
    async with running_platform(settings, work) as platform:
        assert (await platform.deploy(SOURCE))["state"] == "succeeded"
        service = platform.cluster.gateway.jobs.service
        await until(lambda: service._store is not None)
        store = service.store
        store._link._budget_s = BUDGET_S  # type: ignore[attr-defined]
        given = {"file": str(noted), "gate": str(gate)}

        def call(tag: str) -> str:
            with Client(platform.cluster.url, platform.cluster.admin_key) as client:
                value: str = client.call("shut", json={"tag": tag, **given}, timeout=60, idempotent=False)
                return value

        calls = [asyncio.create_task(asyncio.to_thread(call, f"call-{n}")) for n in range(3)]
        jobs = []
        for n in range(3):
            status, _, job = await platform.request(
                "POST", "/e/shut", json={"tag": f"job-{n}", **given}, headers={"Prefer": "respond-async"}
            )
            assert status == 202
            jobs.append(job["id"])
        await until(lambda: len(noted.read_text().split()) == len(calls) + len(jobs))
        now = time.time()
        await store.submit(NewJob(id="other", project="p", endpoint="e", input=Payload()), now)
        assert await store.lease("gw-elsewhere", "p", "e", limit=1, now=now, until=now + 1.0)
        send(hanging, signal.SIGSTOP)
        try:
            gate.touch()
            await asyncio.sleep(7.0)
        finally:
            send(hanging, signal.SIGCONT)
        assert await asyncio.wait_for(asyncio.gather(*calls), 60) == ["call-0", "call-1", "call-2"]

        async def found(job_id: str, project: str, state: str) -> Job | None:
            job = await store.get(project, job_id)
            return job if job is not None and job.state == state else None

        for job_id in jobs:
            job = await until(lambda job_id=job_id: found(job_id, "default", "succeeded"))
            assert (job.lost, job.reason) == (0, "")
        assert max(Counter(noted.read_text().split()).values()) == 1
        assert (await until(lambda: found("other", "p", "queued"))).lost == 1


async def test_what_a_lease_took_whose_answer_was_lost_waits_again(
    hanging: PostgresServer, work: Path
) -> None:
    """The statement is on its way to a server that hangs, and committed when nobody waits for it any more."""
    os.chmod(work, 0o755)
    settings = make_settings(work / "lost", store=hanging.new_database())
    async with running_platform(settings, work) as platform:
        assert (await platform.deploy(SOURCE))["state"] == "succeeded"
        # Now and then the server hears first that nobody waits, and takes nothing.
        found = [await leased_while_it_hangs(hanging, platform, work / "open-0")]
        while not (found[-1].unsent or found[-1].lost) and len(found) < 5:
            found.append(await leased_while_it_hangs(hanging, platform, work / f"open-{len(found)}"))
        assert [(job.state, job.lost, job.reason) for job in found] == [("succeeded", 0, "")] * len(found)
        assert found[-1].unsent


async def leased_while_it_hangs(server: PostgresServer, platform: Platform, gate: Path) -> Job:
    """A job that has ended; the server hung when it was its turn."""
    jobs = platform.cluster.gateway.jobs
    await until(lambda: jobs._runner is not None)
    store, runner = jobs.service.store, jobs._runner
    assert runner is not None
    store._link._budget_s = BUDGET_S  # type: ignore[attr-defined]

    def full() -> bool:
        state = jobs._dispatcher.state("default/gate")
        return state is not None and any(one.in_flight for one in state.group(None))

    call = asyncio.create_task(platform.call("gate", {"file": str(gate)}))
    await until(full)
    status, _, queued = await platform.request(
        "POST", "/e/gate", json={"file": str(gate)}, headers={"Prefer": "respond-async"}
    )
    assert (status, queued["state"]) == (202, "queued")
    known = set(runner._leases._unanswered)
    send(server, signal.SIGSTOP)
    try:
        gate.touch()
        await call
        await until(lambda: set(runner._leases._unanswered) - known)
    finally:
        send(server, signal.SIGCONT)

    async def ended() -> Job | None:
        job = await store.get("default", queued["id"])
        return job if job is not None and job.state not in ("queued", "running") else None

    job: Job = await until(ended)
    return job
