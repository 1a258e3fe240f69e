"""A PostgreSQL that hangs under a platform: no call of the client fails, and none runs twice for it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from headrace import Client
from headrace.gateway.jobs import leases, runner
from headrace.jobs import postgres_link

from tests.fixtures_postgres import PostgresServer, running_postgres
from tests.integration.conftest import make_settings, running_platform, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

BUDGET_S = 2.0
"""What a question to the store may take, in place of 8 s."""
HANGS_S = 2.0 * BUDGET_S
CLIENTS = 6
SOURCE = """
    import asyncio

    async def work(tag: str, file: str) -> str:
        with open(file, "a") as f:
            f.write(f"{tag}\\n")
        await asyncio.sleep(0.2)
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
    # A lease whose answer was lost is nobody's until it ends.
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
