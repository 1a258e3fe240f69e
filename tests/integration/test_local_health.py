"""The user's `health` says no: the instance is replaced."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from headrace.host.watch import Watch

from tests.integration.conftest import Platform, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_an_ill_instance_is_replaced(platform: Platform) -> None:
    done = await platform.deploy("""
        import os

        @headrace.endpoint(name="moody")
        class Moody:
            def load(self) -> None:
                self.well = True
            def health(self) -> bool:
                return self.well
            def __call__(self, well: bool = True) -> int:
                self.well = well
                return os.getpid()

        @headrace.endpoint(name="sound")
        def sound() -> int:
            return os.getpid()
    """)
    assert done["state"] == "succeeded", done
    pid, other = await asyncio.gather(platform.call("moody"), platform.call("sound"))
    # The host's own watch looks every 10 s: the same, sooner.
    watch = Watch(platform.cluster.host.instances, health_period_s=0.05)
    watch.start()
    try:
        assert await platform.call("moody", {"well": False}) == pid

        async def replaced() -> bool:
            return pid not in {i["pid"] for i in await platform.instances("moody")}

        await until(replaced)
    finally:
        await watch.stop()
    assert await platform.call("moody") != pid
    assert await platform.call("sound") == other
    described = await platform.endpoint("moody")
    assert any("unhealthy" in d["reason"] for d in described["decisions"]), described["decisions"]


async def test_a_stopped_process_loses_its_requests_to_another(platform: Platform) -> None:
    platform.work.chmod(0o711)
    gate = platform.work / "gate"
    done = await platform.deploy(f"""
        import asyncio, os

        @headrace.endpoint(name="frozen", concurrency=2)
        async def frozen() -> int:
            while os.path.exists({str(gate)!r}):
                await asyncio.sleep(0.02)
            return os.getpid()
    """)
    assert done["state"] == "succeeded", done
    pid = await platform.call("frozen")
    gate.touch()
    calls = [asyncio.create_task(platform.call("frozen")) for _ in range(2)]

    async def running() -> bool:
        return sum(i["in_flight"] for i in await platform.instances("frozen")) > 0

    await until(running)
    os.kill(pid, signal.SIGSTOP)
    gate.unlink()
    # Neither hangs until its own timeout of ten minutes.
    assert pid not in await asyncio.gather(*calls)

    async def gone() -> bool:
        return pid not in {i["pid"] for i in await platform.instances("frozen")}

    # The answers may come before the stopped one's end is known.
    await until(gone)
