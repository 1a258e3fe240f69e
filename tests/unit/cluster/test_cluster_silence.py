"""A gateway that hangs is noticed by its silence, killed and replaced; nobody else is."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time

import pytest
from headrace import heartbeat
from headrace.cluster.http import ApiClient
from headrace.cluster.identity import new_record
from headrace.cluster.parts import Platform
from headrace.cluster.processes import Child
from headrace.config import Settings
from headrace.datadir import open_data_dir
from headrace.errors import NotRunning
from headrace.heartbeat import FD_VARIABLE, Heartbeat

BEATS = """
import asyncio
from headrace.errors import NotRunning
from headrace.heartbeat import start_beating
async def main():
    start_beating()
    await asyncio.sleep(60)
asyncio.run(main())
"""


async def until(condition, deadline_s=20.0):
    end = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end, "not in time"
        await asyncio.sleep(0.01)
    return found


@pytest.fixture
def quick(monkeypatch):
    """Ticks for a test; a beat still comes once a second."""
    monkeypatch.setattr(heartbeat, "TICK_S", 0.3)


async def test_silence_is_that_of_a_process_that_beat(tmp_path, quick):
    (tmp_path / "hr_beats.py").write_text(BEATS)
    heart = Heartbeat()
    paths = os.pathsep.join([str(tmp_path), *(p for p in sys.path if p)])
    environment = {**os.environ, "PYTHONPATH": paths, FD_VARIABLE: str(heart.fd)}
    child = Child("x", "hr_beats", tmp_path / "x.log", environment, pass_fds=(heart.fd,))
    await child.start()
    silence = asyncio.create_task(heart.silence())
    try:
        # Twice as long as its silence may last.
        done, _ = await asyncio.wait([silence], timeout=2 * heartbeat.SILENT_TICKS * heartbeat.TICK_S)
        assert not done
        child.signal(signal.SIGSTOP)
        await asyncio.wait_for(silence, 30)
    finally:
        silence.cancel()
        await child.kill()
        heart.close()


async def test_ticks_are_counted_and_no_clock(monkeypatch):
    # A supervisor that was stopped itself, with everybody else, finds nobody silent.
    monkeypatch.setattr(heartbeat, "TICK_S", 0.05)
    heart = Heartbeat()
    silence = asyncio.create_task(heart.silence())
    await asyncio.sleep(0)
    os.write(heart.fd, b".")
    await asyncio.sleep(0.06)
    time.sleep(3 * heartbeat.SILENT_TICKS * heartbeat.TICK_S)  # this process stands still
    os.write(heart.fd, b".")
    await asyncio.sleep(2 * heartbeat.TICK_S)
    assert not silence.done()
    await asyncio.wait_for(silence, 30)
    heart.close()


async def test_a_gateway_that_is_stopped_is_replaced(tmp_path, quick):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = Settings(
        data_dir=str(tmp_path / "d"), run_dir=str(tmp_path / "r"), port=port, control_port=1, ray_port=1
    )
    data = open_data_dir(settings)
    told = []
    platform = Platform(settings, new_record(settings, "0"), data.admin_key, lambda *args: told.append(args))
    platform._ready = True
    (child,), (heart,) = platform._gateways, platform._hearts
    keeping = asyncio.create_task(platform._keep_gateway(child, heart))
    try:
        first = await until(lambda: child.identity)
        await answers(port)
        os.kill(first.pid, signal.SIGSTOP)
        second = await until(lambda: child.identity if child.identity != first else None)
        assert second.pid != first.pid
        await answers(port)
        assert [what for kind, what, *_ in told if "silent" in what], told
    finally:
        platform._stop.set()
        await child.kill()
        await asyncio.wait_for(keeping, 10)
        for listener in platform._listeners:
            listener.close()
        heart.close()
        data.close()


async def answers(port, deadline_s=20.0):
    """Somebody answers HTTP there."""
    api = ApiClient(f"http://127.0.0.1:{port}")
    end = time.monotonic() + deadline_s
    while True:
        try:
            return await api.get("/healthz", timeout_s=2)
        except NotRunning:
            assert time.monotonic() < end, "no answer in time"
        await asyncio.sleep(0.05)
