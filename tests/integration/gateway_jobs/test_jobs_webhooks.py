"""Webhooks reach a real receiver, signed, again and again until it takes them, and never go inside."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from headrace.cli.app import run
from headrace.gateway.jobs import webhooks as webhooks_module
from standardwebhooks.webhooks import Webhook

from tests.integration.conftest import Platform, make_settings, running_platform, until
from tests.integration.gateway_jobs.old_events import add_old_events

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    @headrace.endpoint(name="add", concurrency=4)
    def add(a: int, b: int = 1) -> int:
        return a + b

    @headrace.endpoint(name="big")
    def big(size: int) -> str:
        return "x" * size
"""


class Receiver:
    """A server that notes what comes and answers as ``plan`` says, then with 200."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, str], bytes]] = []
        self.plan: list[int] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.seen.append((dict(request.headers), await request.read()))
        status = self.plan.pop(0) if self.plan else 200
        extra = {"Location": self.url + "/elsewhere"} if status == 302 else {}
        return web.Response(status=status, headers=extra)

    def reset(self, *plan: int) -> None:
        self.seen.clear()
        self.plan = list(plan)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def receiver() -> AsyncIterator[Receiver]:
    found = Receiver()
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/{tail:.*}", found.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    await runner.cleanup()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(work: Path) -> AsyncIterator[Platform]:
    async with running_platform(make_settings(work / "data", webhook_private=True), work) as platform:
        found = await platform.deploy(SOURCE)
        assert found["state"] == "succeeded", found
        yield platform


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], float]:
    """Tries follow each other at once."""
    real = webhooks_module.delay_s
    monkeypatch.setattr(webhooks_module, "delay_s", lambda tries: 0.01)
    return real


async def submit(platform: Platform, webhook: Any, **input: Any) -> dict[str, Any]:
    job: dict[str, Any] = await platform.api(
        "POST", "/jobs", {"endpoint": "add", "input": {"a": 1, **input}, "webhook": webhook}
    )
    return job


async def test_a_webhook_is_signed_and_tried_until_it_is_taken(
    platform: Platform, receiver: Receiver, quick: Callable[[int], float]
) -> None:
    receiver.reset(500, 503, 302)
    job = await submit(platform, receiver.url + "/hook?a=1")
    await until(lambda: len(receiver.seen) >= 4)
    secret = (await platform.api("GET", "/webhooks/secret"))["key"]
    file = platform.work / "data" / "webhook.secret"
    assert file.read_text().strip() == secret
    assert file.stat().st_mode & 0o777 == 0o600
    for headers, body in receiver.seen:
        Webhook(secret).verify(body, {k.lower(): v for k, v in headers.items()})
    assert len({headers["webhook-id"] for headers, _ in receiver.seen}) == 1
    event = json.loads(receiver.seen[-1][1])
    assert (event["type"], event["data"]["id"], event["data"]["output"]) == ("job.completed", job["id"], 2)
    await asyncio.sleep(0.3)
    assert len(receiver.seen) == 4


async def test_events_that_an_earlier_build_queued_are_delivered(
    platform: Platform, receiver: Receiver
) -> None:
    receiver.reset()
    store = platform.cluster.gateway.jobs.service.store
    await store._db.write(lambda db: add_old_events(db, receiver.url))  # type: ignore[attr-defined]
    await until(lambda: len(receiver.seen) == 3)
    found = {headers["webhook-id"]: json.loads(body) for headers, body in receiver.seen}
    assert {id: event["type"] for id, event in found.items()} == {
        "job_old.0.start": "job.start",
        "job_old.0.1.output.0": "job.output",
        "job_old.0.completed": "job.completed",
    }
    completed = found["job_old.0.completed"]["data"]
    assert (completed["id"], completed["output"]) == ("job_old", [1, "two"])


async def test_events_that_were_asked_for_come_and_others_do_not(
    platform: Platform, receiver: Receiver
) -> None:
    receiver.reset()
    await submit(platform, {"url": receiver.url, "events": ["start", "completed"]})
    await until(lambda: len(receiver.seen) == 2)
    kinds = {json.loads(body)["type"] for _, body in receiver.seen}
    assert kinds == {"job.start", "job.completed"}


async def test_a_failed_job_is_told_with_its_error(platform: Platform, receiver: Receiver) -> None:
    receiver.reset()
    await submit(platform, receiver.url, a="x")
    await until(lambda: receiver.seen)
    event = json.loads(receiver.seen[0][1])
    assert (event["data"]["state"], event["data"]["error"]["status"]) == ("failed", 422)


@pytest.mark.parametrize(("size", "carried"), [(1_500_000, True), (5_000_000, True), (7_000_000, False)])
async def test_large_outputs_travel_or_their_absence_is_told(
    platform: Platform, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, size: int, carried: bool
) -> None:
    monkeypatch.setattr(webhooks_module, "MAX_OUTPUT_BYTES", 6_000_000)
    for path, key in (("/v2/big/run", "COMPLETED"), ("/cog/big/predictions", "succeeded")):
        receiver.reset()
        asked: dict[str, Any] = {"input": {"size": size}, "webhook": receiver.url}
        if key == "succeeded":
            asked["webhook_events_filter"] = ["completed"]
        status, _, _ = await platform.request("POST", path, json=asked, headers={"Prefer": "respond-async"})
        assert status < 300
        await until(lambda: receiver.seen)
        told = json.loads(receiver.seen[0][1])
        assert told["status"] == key
        if carried:
            assert told["output"] == "x" * size
            assert not told.get("error")
        else:
            assert told.get("output") is None
            assert f"{size + 2} bytes" in told["error"]
            assert "/output" in told["error"]
    receiver.reset()
    await platform.api("POST", "/jobs", {"endpoint": "big", "input": {"size": size}, "webhook": receiver.url})
    await until(lambda: receiver.seen)
    data = json.loads(receiver.seen[0][1])["data"]
    assert (data["output"], data["output_size"]) == (None, size + 2)


async def test_numbers_above_64_bits_stop_nothing(platform: Platform, receiver: Receiver) -> None:
    receiver.reset()
    text = json.dumps({"input": {"a": 2**80, "b": 1}, "webhook": receiver.url})
    headers = {"Prefer": "respond-async", "Content-Type": "application/json"}
    status, _, _ = await platform.request("POST", "/cog/add/predictions", data=text, headers=headers)
    assert status == 202
    job = await submit(platform, receiver.url)
    await until(lambda: job["id"] in str(receiver.seen))
    await until(lambda: any(json.loads(body).get("output") == 2**80 + 1 for _, body in receiver.seen))


async def test_one_bad_round_does_not_end_the_deliveries(
    platform: Platform, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.reset()
    store, failed = platform.cluster.gateway.jobs.service.store, []
    real = store.due

    async def due(*args: Any) -> Any:
        if not failed:
            failed.append(1)
            raise OverflowError("a delivery that cannot be read")
        return await real(*args)

    monkeypatch.setattr(store, "due", due)
    await until(lambda: failed)
    await submit(platform, receiver.url)
    await until(lambda: receiver.seen)


async def test_pauses_begin_at_one_second_and_sixteen_tries_are_all(
    platform: Platform, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = webhooks_module.delay_s, []

    def quick(tries: int) -> float:
        asked.append(tries)
        return 0.01

    monkeypatch.setattr(webhooks_module, "delay_s", quick)
    sender = platform.cluster.gateway.jobs.service.webhooks
    assert sender is not None
    before = sender.counts["given_up"]
    receiver.reset(*[500] * 30)
    await submit(platform, receiver.url)
    await until(lambda: sender.counts["given_up"] > before)
    assert len(receiver.seen) == 16
    # What is paused for is the number of tries so far: 1 s, 2 s, 4 s, with up to 1 s on top.
    assert asked == list(range(1, 16))
    for tries, least in ((1, 1.0), (2, 2.0), (3, 4.0), (15, 3600.0)):
        assert least <= real(tries) <= least + 1.0


async def test_what_was_not_delivered_is_shown_with_the_job_and_the_secret_by_the_command(
    platform: Platform,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HEADRACE_URL", platform.cluster.url)
    monkeypatch.setenv("HEADRACE_API_KEY", platform.cluster.admin_key)

    async def command(*words: str) -> str:
        assert await asyncio.to_thread(run, ["jobs", *words]) == 0
        return capsys.readouterr().out

    receiver.reset(410, 500)
    job = await submit(platform, receiver.url)

    async def given_up() -> Any:
        found = (await platform.api("GET", f"/jobs/{job['id']}"))["webhooks"]
        return found and found[0]["state"] == "given_up" and found

    (found,) = await until(given_up)
    assert found == {
        "event": "completed", "state": "given_up", "tries": 1, "next_at": None, "detail": "HTTP 410"
    }  # fmt: skip
    assert "webhook completed: given up after 1 tries: HTTP 410" in await command("show", job["id"])
    monkeypatch.setattr(webhooks_module, "delay_s", lambda tries: 600.0)
    job = await submit(platform, receiver.url)

    async def waits() -> bool:
        return "not delivered yet, 1 tries" in await command("show", job["id"])

    await until(waits)
    (found,) = (await platform.api("GET", f"/jobs/{job['id']}"))["webhooks"]
    assert (found["state"], found["detail"]) == ("waiting", "HTTP 500")
    assert found["next_at"] > job["created_at"] + 500
    job = await submit(platform, receiver.url)

    async def delivered() -> bool:
        doc = await platform.api("GET", f"/jobs/{job['id']}")
        return doc["state"] == "succeeded" and doc["webhooks"] == []

    await until(delivered)
    secret = (await command("webhook-secret")).strip()
    headers, body = receiver.seen[-1]
    Webhook(secret).verify(body, {k.lower(): v for k, v in headers.items()})


async def test_a_job_that_is_refused_for_its_webhook_leaves_no_large_input_behind(platform: Platform) -> None:
    def kept() -> set[Path]:
        return {path for path in (platform.work / "data" / "blobs-jobs").rglob("*") if path.is_file()}

    before = kept()
    large = {"a": 1, "pad": "x" * 1_500_000}
    for path, body in (
        ("/api/v1/jobs", {"endpoint": "add", "input": large, "webhook": "ftp://example.com/"}),
        ("/v2/add/run", {"input": large, "webhook": "ftp://example.com/"}),
    ):
        data = io.BytesIO(json.dumps(body).encode())
        headers = {"Content-Type": "application/json"}
        status, _, problem = await platform.request("POST", path, data=data, headers=headers)
        assert (status, "webhook" in json.dumps(problem)) == (422, True), problem
    assert kept() == before


async def test_the_schedule_survives_a_restart_of_the_gateway(
    platform: Platform, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks_module, "delay_s", lambda tries: 1.0)
    receiver.reset(500)
    await submit(platform, receiver.url)
    await until(lambda: len(receiver.seen) == 1)
    await platform.cluster.restart_gateway()
    await platform.cluster.wait_ready()
    await until(lambda: len(receiver.seen) == 2)
    assert receiver.seen[0][0]["webhook-id"] == receiver.seen[1][0]["webhook-id"]


async def test_a_name_that_leads_inside_gets_nothing(platform: Platform, receiver: Receiver) -> None:
    receiver.reset()
    sender = platform.cluster.gateway.jobs.service.webhooks
    assert sender is not None
    port = receiver.url.rpartition(":")[2]
    sender._private = False
    try:
        # A name passes the check at submission; its address is refused when the webhook is sent.
        platform.cluster.gateway.jobs.service._private = False
        job = await submit(platform, f"http://localhost:{port}/")

        async def given_up() -> Any:
            found = (await platform.api("GET", f"/jobs/{job['id']}"))["webhooks"]
            return found and found[0]["state"] == "given_up" and found

        (found,) = await until(given_up)
        assert "a private address" in found["detail"]
        assert (found["tries"], receiver.seen) == (1, [])
    finally:
        sender._private = True
        platform.cluster.gateway.jobs.service._private = True


async def test_a_file_of_authorities_that_is_gone_ends_no_gateway(receiver: Receiver, work: Path) -> None:
    """It was there when the platform was started, and is not when a gateway is started again."""
    receiver.reset()
    file = work / "authorities.pem"
    settings = make_settings(work / "authorities", webhook_private=True, webhook_ca=str(file))
    async with running_platform(settings, work) as platform:
        assert (await platform.deploy(SOURCE))["state"] == "succeeded"
        job = await submit(platform, receiver.url)

        async def waits() -> Any:
            hooks = (await platform.api("GET", f"/jobs/{job['id']}"))["webhooks"]
            return hooks and hooks[0]

        hook = await until(waits)
        assert (hook["state"], hook["tries"], receiver.seen) == ("waiting", 0, [])
        assert f"webhook_ca {file}: " in hook["detail"]
        subject = ("-subj", "/CN=an authority", "-keyout", str(work / "authority.key"), "-out", str(file))
        subprocess.run(
            ["openssl", "req", "-newkey", "rsa:2048", "-nodes", "-x509", *subject],
            check=True,
            capture_output=True,
            timeout=60,
        )
        await until(lambda: receiver.seen)

        async def delivered() -> bool:
            return not (await platform.api("GET", f"/jobs/{job['id']}"))["webhooks"]

        await until(delivered)
