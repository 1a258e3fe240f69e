"""Probes, deaths, crash loops, logs and use of instances, on each runtime alike."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from headrace.config import Settings

from tests.integration.conftest import Platform, make_settings, running_platform, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
RUNTIMES = [
    "process",
    pytest.param("oci", marks=pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")),
    pytest.param("docker", marks=pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")),
]
APP = """
import os, sys
up, alive, well, me = False, True, True, ""

async def app(scope, receive, send):
    global up, alive, well, me
    # Processes of containers have the same numbers.
    me = me or os.urandom(8).hex()
    path = scope["path"]
    if path == "/set":
        exec(scope["query_string"].decode(), globals())  # noqa: S102
    ok = {"/up": up, "/alive": alive, "/ready": well}.get(path, True)
    up = True
    if path == "/hang":
        import time
        time.sleep(3600)
    await send({"type": "http.response.start", "status": 200 if ok else 503, "headers": []})
    await send({"type": "http.response.body", "body": me.encode()})
"""
PROBE = "period=0.2, timeout=0.5, failure_threshold=2"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(request: pytest.FixtureRequest) -> AsyncIterator[Platform]:
    with (
        tempfile.TemporaryDirectory(prefix="hrp-") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        work = Path(folder)
        work.chmod(0o711)
        runtimes = "process"
        if os.geteuid() == 0:
            runtimes = "process,oci,docker"
            patch.setenv("DOCKER_HOST", request.getfixturevalue("docker_daemon"))
        settings = make_settings(work / "d", runtimes=runtimes)
        async with running_platform(settings, work) as platform:
            yield platform


async def get(platform: Platform, name: str, path: str = "/", query: str = "") -> tuple[int, Any]:
    status, _, value = await platform.request("GET", f"/e/{name}{path}?{query}")
    return status, value


def asgi(name: str, runtime: str, probes: str, more: str = "") -> str:
    return f"""{APP}
app = headrace.endpoint(
    name="{name}", runtime="{runtime}", concurrency=4, probes=headrace.Probes({probes}){more}
)(app)
"""


async def ids(platform: Platform, name: str) -> set[str]:
    return {i["id"] for i in await platform.instances(name)}


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_a_start_waits_for_its_probes(platform: Platform, runtime: str) -> None:
    name = f"slow-{runtime}"
    # It says no once, and yes from then on.
    done = await platform.deploy(
        asgi(
            name, runtime,
            'startup=headrace.Probe(http="/up", period=0.1, failure_threshold=50), '
            f'readiness=headrace.Probe(tcp=True, {PROBE})',
        )
    )  # fmt: skip
    assert done["state"] == "succeeded", done
    assert (await get(platform, name))[0] == 200


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("role", ["startup", "readiness", ""])
async def test_health_may_say_no_after_load_where_a_probe_of_the_start_asks_it(
    platform: Platform, runtime: str, role: str
) -> None:
    name = f"warming-{role or 'alone'}-{runtime}"
    probes = f"{role}=headrace.Probe(period=0.1, failure_threshold=50)" if role else ""
    done = await platform.deploy(f"""
        @headrace.endpoint(name="{name}", runtime="{runtime}", probes=headrace.Probes({probes}))
        class Warming:
            asked = 0
            def __call__(self, x: int = 0) -> int:
                return self.asked
            def health(self) -> bool:
                self.asked += 1
                return self.asked > 3
    """)
    if not role:
        assert done["state"] == "failed", done
        death = (await platform.endpoint(name))["last_death"]
        assert (death["reason"], death["detail"]) == ("load-failed", "health() returned False after load()")
        return
    assert done["state"] == "succeeded", done
    assert await platform.call(name) > 3


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_a_start_that_fails_says_why_with_its_last_lines(platform: Platform, runtime: str) -> None:
    name = f"never-{runtime}"
    done = await platform.deploy(f"""
        @headrace.endpoint(name="{name}", runtime="{runtime}", probes=headrace.Probes(
            startup=headrace.Probe(http="/nothing", {PROBE})))
        async def app(scope, receive, send):
            print("looking for", scope["path"], flush=True)
            await send({{"type": "http.response.start", "status": 404, "headers": []}})
            await send({{"type": "http.response.body", "body": b""}})
    """)
    assert done["state"] == "failed", done
    death = (await platform.endpoint(name))["last_death"]
    assert death["reason"] == "start-timeout"
    assert "startup probe failed after" in death["detail"]
    assert "GET /nothing: status 404" in death["detail"]
    assert death["log"][-1] == "looking for /nothing"
    assert death["runtime"] == runtime
    # Whoever deploys sees it without asking.
    assert done["endpoints"][0]["traceback"].endswith("looking for /nothing")


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_who_is_not_ready_lives_and_takes_no_new_requests(platform: Platform, runtime: str) -> None:
    name = f"moody-{runtime}"
    done = await platform.deploy(
        asgi(
            name, runtime, f'readiness=headrace.Probe(http="/ready", {PROBE})',
            ", scaling=headrace.Scaling(max=2)",
        )
    )  # fmt: skip
    assert done["state"] == "succeeded", done
    _, first = await get(platform, name)
    (before,) = await ids(platform, name)
    await get(platform, name, "/set", "well=False")

    async def unready() -> bool:
        return any("GET /ready" in i["unready"] for i in await platform.instances(name))

    await until(unready)

    async def another() -> bool:
        return (await get(platform, name))[1] != first

    # Nothing goes there, once the gateway knows: another one is started for the next request.
    await until(another)
    found = {i["id"]: i["unready"] for i in await platform.instances(name)}
    assert found[before]
    assert len(found) == 2


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_who_is_not_alive_is_replaced(platform: Platform, runtime: str) -> None:
    name = f"dying-{runtime}"
    done = await platform.deploy(asgi(name, runtime, f'liveness=headrace.Probe(http="/alive", {PROBE})'))
    assert done["state"] == "succeeded", done
    assert (await get(platform, name))[0] == 200
    before = await ids(platform, name)
    await get(platform, name, "/set", "alive=False")

    async def gone() -> bool:
        return not before & await ids(platform, name)

    await until(gone)
    death = (await platform.endpoint(name))["last_death"]
    assert death["reason"] == "unhealthy"
    assert "liveness probe (GET /alive) failed" in death["detail"]
    assert (await get(platform, name))[0] == 200


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_who_takes_connections_and_does_not_answer_loses_its_requests_to_another(
    platform: Platform, runtime: str
) -> None:
    name, flag = f"hung-{runtime}", "gate"
    done = await platform.deploy(f"""
        import os, time

        @headrace.endpoint(name="{name}", runtime="{runtime}", concurrency=2, retries=3,
                           probes=headrace.Probes(liveness=headrace.Probe({PROBE})))
        class Hung:
            def load(self) -> None:
                self.calls = 0
            async def __call__(self, {flag}: bool = False, id: str = "") -> str:
                self.calls += 1
                if {flag} and self.calls == 2:
                    time.sleep(3600)
                return "done"
    """)
    assert done["state"] == "succeeded", done
    await platform.call(name)
    before = await ids(platform, name)
    # The second call of an instance hangs its loop for an hour; on the next instance it is the first.
    assert await platform.call(name, {flag: True}) == "done"

    async def gone() -> bool:
        # The answer may come from the next one while this one still ends.
        return not before & await ids(platform, name)

    await until(gone)
    death = (await platform.endpoint(name))["last_death"]
    assert "no answer within" in death["detail"], death


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_a_stopped_process_is_given_up(platform: Platform, runtime: str) -> None:
    name = f"stopped-{runtime}"
    done = await platform.deploy(f"""
        @headrace.endpoint(name="{name}", runtime="{runtime}")
        def stopped() -> str:
            return "done"
    """)
    assert done["state"] == "succeeded", done
    await platform.call(name)
    (instance,) = await platform.instances(name)
    os.kill(instance["pid"], signal.SIGSTOP)
    assert await platform.call(name) == "done"

    async def told() -> Any:
        return (await platform.endpoint(name))["last_death"]

    death = await until(told)
    assert (death["reason"], death["detail"]) == ("unhealthy", "its process was stopped by a signal")


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_one_that_stops_itself_is_given_up(platform: Platform, runtime: str) -> None:
    name = f"itself-{runtime}"
    done = await platform.deploy(f"""
        import os, signal, threading
        @headrace.endpoint(name="{name}", runtime="{runtime}")
        def itself(stop: bool = False) -> str:
            if stop:
                threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGSTOP)).start()
            return "done"
    """)
    assert done["state"] == "succeeded", done
    assert await platform.call(name, {"stop": True}) == "done"
    await asyncio.sleep(0.6)
    assert await platform.call(name) == "done"

    async def told() -> Any:
        return (await platform.endpoint(name))["last_death"]

    death = await until(told)
    assert (death["reason"], death["detail"]) == ("unhealthy", "its process was stopped by a signal")


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_a_crash_loop_backs_off_and_is_called_one(platform: Platform, runtime: str) -> None:
    name = f"loop-{runtime}"
    platform.work.chmod(0o777)
    done = await platform.deploy(
        f"""
        import os
        @headrace.endpoint(name="{name}", runtime="{runtime}", scaling=headrace.Scaling(min=1))
        class Loop:
            def load(self) -> None:
                print("about to end", flush=True)
                os._exit(7)
            def __call__(self) -> int:
                return 1
    """,
        verify=False,
    )
    assert done["state"] in ("succeeded", "failed"), done

    async def looping() -> Any:
        found = await platform.endpoint(name)
        return found if "crash loop" in found["reason"] else None

    found = await until(looping)
    assert "exit code 7" in found["reason"]
    assert found["failures"] >= 3
    assert found["retry_in_s"] <= 60
    assert found["last_death"]["exit_code"] == 7
    assert found["last_death"]["log"][-1] == "about to end"
    await platform.api("DELETE", f"/endpoints/{name}")


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_deaths_are_told_plainly(platform: Platform, runtime: str) -> None:
    name = f"death-{runtime}"
    done = await platform.deploy(f"""
        import os, signal
        @headrace.endpoint(name="{name}", runtime="{runtime}", memory="128MiB", retries=0)
        def die(how: str = "") -> str:
            if how == "signal":
                os.kill(os.getpid(), signal.SIGSEGV)
            if how == "exit":
                os._exit(9)
            if how == "memory":
                held = []
                while True:
                    held.append(b"x" * (1 << 24))
            return "well"
    """)
    assert done["state"] == "succeeded", done
    for how, reason, words in (
        ("exit", "exited", "exit code 9"),
        ("signal", "signalled", "SIGSEGV"),
        ("memory", "oom", "OOM-killed at 128 MiB"),
    ):
        status, _, _ = await platform.request("POST", f"/e/{name}", json={"how": how})
        assert status >= 500

        async def told(reason: str = reason) -> Any:
            death = (await platform.endpoint(name))["last_death"]
            return death if death and death["reason"] == reason else None

        death = await until(told)
        assert words in death["detail"], death


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_use_is_seen_in_the_api_and_the_metrics(platform: Platform, runtime: str) -> None:
    name = f"busy-{runtime}"
    done = await platform.deploy(f"""
        @headrace.endpoint(name="{name}", runtime="{runtime}")
        def busy() -> int:
            return sum(range(3_000_000))
    """)
    assert done["state"] == "succeeded", done

    async def used() -> Any:
        await platform.call(name)
        seen = [i["use"] for i in await platform.instances(name) if i["use"]]
        return next((use for use in seen if use["cpu"] > 0), None)

    use = await until(used)
    assert use["memory"] > 1 << 20
    assert use["cpu_s"] > 0
    assert (use["gpu"], use["gpu_memory"]) == (None, None)
    _, _, text = await platform.request("GET", "/metrics")
    lines = [line for line in text.decode().splitlines() if f'endpoint="{name}"' in line]
    for metric in ("container_cpu_time_seconds_total", "container_memory_usage_bytes", "container_cpu_usage"):
        assert any(line.startswith(metric + "{") for line in lines), metric


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_logs_are_followed_from_one_instance_to_the_next(platform: Platform, runtime: str) -> None:
    name = f"talk-{runtime}"
    done = await platform.deploy(f"""
        import os
        @headrace.endpoint(name="{name}", runtime="{runtime}", retries=0)
        def talk(text: str = "", end: bool = False) -> str:
            print("said", text, flush=True)
            if end:
                os._exit(3)
            return text
    """)
    assert done["state"] == "succeeded", done
    cursor, said, instances = "", [], set()

    async def more() -> None:
        nonlocal cursor
        page = await platform.api("GET", f"/endpoints/{name}/logs?wait=1&cursor={cursor}")
        cursor = page["next"]
        for line in page["items"]:
            if line["stream"] == "stdout":
                said.append(line["text"])
                instances.add(line["instance"])

    await platform.call(name, {"text": "one"})
    await more()
    await platform.request("POST", f"/e/{name}", json={"text": "two", "end": True})
    await platform.call(name, {"text": "three"})

    async def all_said() -> bool:
        await more()
        return len(said) >= 3

    await until(all_said)
    assert said == ["said one", "said two", "said three"]
    assert len(instances) == 2


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_who_prints_without_end_fills_no_disk_and_delays_nobody(
    platform: Platform, runtime: str
) -> None:
    name, quiet = f"loud-{runtime}", f"quiet-{runtime}"
    done = await platform.deploy(f"""
        import sys
        @headrace.endpoint(name="{name}", runtime="{runtime}")
        def loud(megabytes: int = 0) -> int:
            for _ in range(megabytes):
                sys.stdout.write(("x" * 99 + "\\n") * 10_000)
            return megabytes
        @headrace.endpoint(name="{quiet}", runtime="{runtime}")
        def quiet() -> str:
            return "done"
    """)
    assert done["state"] == "succeeded", done
    await platform.call(quiet)
    printing = asyncio.create_task(platform.call(name, {"megabytes": 40}))
    answered = 0
    while not printing.done():
        assert await asyncio.wait_for(platform.call(quiet), 10) == "done"
        answered += 1
    assert await printing == 40
    assert answered > 5
    files = list((platform.work / "d" / "hosts").rglob(f"*{name}*/*.log"))
    kept = sum(path.stat().st_size for path in files)
    # Three files of the size that is set, each a little over it.
    assert 0 < kept < 3.5 * Settings().log_bytes < 40 << 20, files
    page = await platform.api("GET", f"/endpoints/{name}/logs?limit=10")
    assert page["items"][-1]["text"] == "x" * 99


@pytest.mark.parametrize("runtime", RUNTIMES[1:])
async def test_a_command_is_asked_of_a_container(platform: Platform, runtime: str) -> None:
    name = f"command-{runtime}"
    done = await platform.deploy(f"""
        import pathlib
        LOOK = ["python3", "-c", "import os, sys; sys.exit(os.path.exists('/tmp/ill') and 'ill')"]
        @headrace.endpoint(name="{name}", runtime="{runtime}", probes=headrace.Probes(
            liveness=headrace.Probe(exec=LOOK, period=0.3, timeout=20, failure_threshold=2)))
        def command(ill: bool = False) -> str:
            if ill:
                pathlib.Path("/tmp/ill").touch()
            return "done"
    """)
    assert done["state"] == "succeeded", done
    await platform.call(name)
    before = await ids(platform, name)
    await asyncio.sleep(1)
    assert before <= await ids(platform, name)
    await platform.call(name, {"ill": True})

    async def gone() -> bool:
        return not before & await ids(platform, name)

    await until(gone)
    death = (await platform.endpoint(name))["last_death"]
    assert "failed: exit code 1: ill" in death["detail"]
