"""The life of an endpoint on one machine: deploy, answer, zero, wake, new versions, failures."""

from __future__ import annotations

import asyncio
import os

import pytest
from headrace.cluster.local import LocalCluster
from headrace.errors import DataDirError

from tests.integration.conftest import Platform, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_from_deploy_to_answer(platform: Platform) -> None:
    done = await platform.deploy("""
        @headrace.endpoint(name="hello")
        def hello(name: str = "world") -> str:
            return f"hello {name}"
    """)
    assert done["state"] == "succeeded", done
    status, headers, value = await platform.request("POST", "/e/hello", json={"name": "Ada"})
    assert (status, value) == (200, "hello Ada")
    assert headers["X-Headrace-Request-Id"]
    assert "Server-Timing" in headers
    assert not [h for h in headers if h.lower() in ("x-headrace-token", "x-headrace-timing")]


async def test_without_a_key_nothing_is_answered(platform: Platform) -> None:
    for path in ("/e/hello", "/api/v1/endpoints"):
        status, _, problem = await platform.request("GET", path, headers={"Authorization": "Bearer hr_wrong"})
        assert status == 401, problem


async def test_to_zero_and_back(platform: Platform) -> None:
    await platform.call("hello")
    await platform.to_zero("hello")
    assert (await platform.endpoint("hello"))["state"] == "idle"
    assert await platform.call("hello", {"name": "again"}) == "hello again"
    assert (await platform.endpoint("hello"))["state"] == "ready"


async def test_idle_instances_go_by_themselves(platform: Platform) -> None:
    await platform.deploy("""
        @headrace.endpoint(name="brief", scaling=headrace.Scaling(idle_timeout=0.2))
        def brief() -> int:
            return 1
    """)
    assert await platform.call("brief") == 1

    async def gone() -> bool:
        return not await platform.instances("brief")

    await until(gone)


async def test_the_same_code_again_is_no_deployment(platform: Platform) -> None:
    source = """
        @headrace.endpoint(name="same")
        def same() -> int:
            return 1
    """
    first = await platform.deploy(source)
    again = await platform.deploy(source)
    assert first["endpoints"][0]["version"] == again["endpoints"][0]["version"]
    assert again["endpoints"][0]["state"] == "unchanged"


async def test_new_version_and_back(platform: Platform) -> None:
    for n in (1, 2):
        await platform.deploy(f"""
            @headrace.endpoint(name="versions")
            def versions() -> int:
                return {n}
        """)
        assert await platform.call("versions") == n
    back = await platform.api("POST", "/endpoints/versions/rollback", {})
    assert (await platform.finished(back["id"]))["state"] == "succeeded"
    assert await platform.call("versions") == 1


async def test_a_load_that_raises_is_told(platform: Platform) -> None:
    done = await platform.deploy("""
        @headrace.endpoint(name="unloadable")
        class Unloadable:
            def load(self) -> None:
                raise RuntimeError("no weights")
            def __call__(self) -> int:
                return 1
    """)
    assert done["state"] == "failed"
    assert "RuntimeError: no weights" in done["endpoints"][0]["traceback"]
    status, _, problem = await platform.request("POST", "/e/unloadable", json={})
    assert status == 503
    assert "no weights" in problem["detail"]
    assert (await platform.endpoint("unloadable"))["state"] == "failed"


async def test_a_failed_new_version_keeps_the_old_one(platform: Platform) -> None:
    await platform.deploy("""
        @headrace.endpoint(name="kept")
        def kept() -> int:
            return 1
    """)
    assert await platform.call("kept") == 1
    done = await platform.deploy("""
        @headrace.endpoint(name="kept")
        class Kept:
            def load(self) -> None:
                raise RuntimeError("broken")
            def __call__(self) -> int:
                return 2
    """)
    assert done["state"] == "failed"
    assert await platform.call("kept") == 1


async def test_a_crash_kills_only_its_instance(platform: Platform) -> None:
    await platform.deploy("""
        import os

        @headrace.endpoint(name="fragile", idempotent=False, scaling=headrace.Scaling(max=2))
        def fragile(crash: bool = False) -> int:
            if crash:
                os._exit(3)
            return os.getpid()
    """)
    first = await platform.call("fragile")
    status, _, problem = await platform.request("POST", "/e/fragile", json={"crash": True})
    assert status == 502, problem
    assert problem["type"] == "urn:headrace:instance-died"
    assert await platform.call("fragile") != first
    assert await platform.call("hello") == "hello world"


async def test_requests_that_kill_do_not_shut_out_their_neighbours(platform: Platform) -> None:
    await platform.deploy("""
        import os

        @headrace.endpoint(name="poisoned", retries=1)
        def poisoned(die: bool = False) -> int:
            if die:
                os._exit(3)
            return os.getpid()
    """)
    for _ in range(5):
        status, _, problem = await platform.request("POST", "/e/poisoned", json={"die": True})
        # Each is tried to its end: the endpoint itself starts, so it never is `failed`.
        assert (status, problem["type"]) == (502, "urn:headrace:instance-killed"), problem
        await platform.call("poisoned")
    assert (await platform.endpoint("poisoned"))["state"] != "failed"


async def test_a_leak_ends_its_instance_only(platform: Platform) -> None:
    await platform.deploy("""
        import time

        @headrace.endpoint(name="leaky", memory="128MiB", idempotent=False)
        def leaky(mib: int = 0) -> int:
            held = bytearray(mib << 20)
            if mib:
                for n in range(0, len(held), 4096):
                    held[n] = 1
                time.sleep(20)
            return len(held)
    """)
    assert await platform.call("leaky") == 0
    status, _, problem = await platform.request("POST", "/e/leaky", json={"mib": 300})
    assert status == 502, problem
    assert problem["type"] == "urn:headrace:instance-died"
    assert await platform.call("leaky") == 0

    async def told() -> bool:
        page = await platform.api("GET", "/endpoints/leaky/logs")
        return any("oom" in line["text"] for line in page["items"] if line["stream"] == "system")

    await until(told)


async def test_a_handler_that_raises(platform: Platform) -> None:
    await platform.deploy("""
        @headrace.endpoint(name="raises")
        def raises() -> int:
            print("about to raise")
            raise ValueError("not today")
    """)
    status, _, problem = await platform.request("POST", "/e/raises", json={})
    assert status == 500
    assert "ValueError" in str(problem)
    assert "not today" in problem["detail"]
    assert "Traceback" not in str(problem)

    async def logged() -> str:
        page = await platform.api("GET", "/endpoints/raises/logs")
        text = "\n".join(line["text"] for line in page["items"])
        return text if "Traceback" in text and "about to raise" in text else ""

    assert "not today" in await until(logged)


async def test_bad_input_names_the_field(platform: Platform) -> None:
    await platform.deploy("""
        @headrace.endpoint(name="typed")
        def typed(n: int) -> int:
            return n
    """)
    status, _, problem = await platform.request("POST", "/e/typed", json={"n": "many"})
    assert status == 422
    assert "n" in str(problem["errors"])
    status, _, _ = await platform.request(
        "POST", "/e/typed", data=b"{", headers={"Content-Type": "application/json"}
    )
    assert status == 422
    status, _, problem = await platform.request("POST", "/e/typd", json={})
    assert status == 404
    assert "typed" in str(problem)


async def test_deleted_endpoints_are_gone(platform: Platform) -> None:
    await platform.deploy("""
        @headrace.endpoint(name="shortlived")
        def shortlived() -> int:
            return 1
    """)
    await platform.call("shortlived")
    await platform.api("DELETE", "/endpoints/shortlived")

    async def gone() -> bool:
        status, _, _ = await platform.request("POST", "/e/shortlived", json={})
        return status == 404

    await until(gone)


async def test_two_platforms_do_not_share_a_data_directory(platform: Platform) -> None:
    with pytest.raises(DataDirError, match=f"pid {os.getpid()}"):
        await asyncio.wait_for(LocalCluster(platform.cluster.settings).start(), 10)
