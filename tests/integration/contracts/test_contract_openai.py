"""The unmodified ``openai`` client, sync and asyncio, against a running platform; and what it hides."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.integration.conftest import Platform

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "chat_openai.py"
SOURCE = """
    import asyncio, json, os

    async def reply(send, status, body, kind=b"application/json"):
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": body})

    async def fault(send, status, message, code):
        error = {"message": message, "type": "x", "param": "user", "code": code}
        await reply(send, status, json.dumps({"error": error}).encode())

    @headrace.endpoint(name="odd", api="openai", concurrency=4, retries=0, max_body="64KiB")
    async def odd(scope, receive, send):
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        request = json.loads(body)
        what = request.get("user")
        if what == "raises":
            raise ValueError("no such luck")
        elif what == "dies":
            os._exit(3)
        elif what == "naps":
            await asyncio.sleep(20)
        elif what == "teapot":
            await fault(send, 418, "short", "pot")
        elif what == "plain":
            await reply(send, 200, json.dumps({"choices": [], "raw": body.decode()}).encode())
        elif what == "half":
            head = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "odd",
                     "choices": [{"index": 0, "delta": {"content": "half"}, "finish_reason": None}]}
            data = b"data: " + json.dumps(chunk).encode() + b"\\n\\n"
            await send({"type": "http.response.body", "body": data, "more_body": True})
            await asyncio.sleep(0.2)
            await send({"type": "http.response.body", "body": b'data: {"choi', "more_body": True})
            if request.get("n") == 2:
                raise ValueError("half way")
            os._exit(3)
        else:
            await fault(send, 400, "what?", None)

    class Slow:
        async def __call__(self, scope, receive, send):
            if scope["type"] == "lifespan":
                await receive()
                await asyncio.sleep(3.2)
                await send({"type": "lifespan.startup.complete"})
                await receive()
                await send({"type": "lifespan.shutdown.complete"})
                return
            request = json.loads((await receive())["body"])
            if request.get("user") == "refuse":
                await fault(send, 400, "not today", "c")
                return
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "slow",
                     "choices": [{"index": 0, "delta": {"content": "awake"}, "finish_reason": None}]}
            data = b"data: " + json.dumps(chunk).encode() + b"\\n\\ndata: [DONE]\\n\\n"
            await reply(send, 200, data, b"text/event-stream")

    slow = headrace.endpoint(name="slow", api="openai", concurrency=4)(Slow())

    @headrace.endpoint(name="tiny", api="openai", queue=headrace.Queue(max_requests=1),
                       scaling=headrace.Scaling(max=1), timeout=20)
    async def tiny(scope, receive, send):
        if scope["type"] == "http":
            await asyncio.sleep(1.5)
            await reply(send, 200, b'{"choices": []}')

    @headrace.endpoint(name="plain")
    def plain() -> int:
        return 1
"""
HI: list[Any] = [{"role": "user", "content": "the river"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ready(platform: Platform) -> Platform:
    example = EXAMPLE.read_text()
    for source in (SOURCE, example):
        found = await platform.deploy(source)
        assert found["state"] == "succeeded", found
    return platform


@pytest_asyncio.fixture(loop_scope="module")
async def client(ready: Platform) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{ready.cluster.url}/v1", api_key=ready.cluster.admin_key, max_retries=0, timeout=30
    ) as client:
        yield client


async def in_thread(ready: Platform, work: Callable[[openai.OpenAI], Any], **options: Any) -> Any:
    """What the sync client gives."""

    def run() -> Any:
        settings = {"base_url": f"{ready.cluster.url}/v1", "api_key": ready.cluster.admin_key} | options
        with openai.OpenAI(max_retries=0, timeout=30, **settings) as client:
            return work(client)

    return await asyncio.wait_for(asyncio.to_thread(run), 60)


async def test_the_sync_client(ready: Platform) -> None:
    def work(client: openai.OpenAI) -> Any:
        chat = client.chat.completions.create(model="chat", messages=HI)
        stream = client.chat.completions.create(
            model="chat", messages=HI, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        text = client.completions.create(model="chat@1", prompt="the river", max_tokens=4)
        vectors = client.embeddings.create(model="chat", input=["water", "a wheel"])
        models = [model.id for model in client.models.list()]
        one = client.models.retrieve("chat")
        return chat, chunks, text, vectors, models, one

    chat, chunks, text, vectors, models, one = await in_thread(ready, work)
    said = chat.choices[0].message.content
    assert len(said.split()) == 16
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == said
    assert chunks[-1].usage.completion_tokens == chat.usage.completion_tokens == len(said.split())
    assert len(text.choices[0].text.split()) == 4
    assert [len(item.embedding) for item in vectors.data] == [64, 64]
    assert models == ["chat", "odd", "slow", "tiny"]
    assert (one.id, one.object) == ("chat", "model")


async def test_the_asyncio_client(client: openai.AsyncOpenAI) -> None:
    chat = await client.chat.completions.create(model="chat", messages=HI)
    stream = await client.chat.completions.create(model="chat", messages=HI, stream=True)
    said = [c.choices[0].delta.content or "" async for c in stream]
    assert "".join(said) == chat.choices[0].message.content
    text = await client.completions.create(model="chat", prompt="the gate", stream=True)
    assert "".join([c.choices[0].text async for c in text])
    assert len((await client.embeddings.create(model="chat", input="water")).data) == 1
    assert [m.id async for m in client.models.list()] == ["chat", "odd", "slow", "tiny"]


async def test_one_endpoint_under_runpods_path(ready: Platform) -> None:
    def work(client: openai.OpenAI) -> Any:
        chat = client.chat.completions.create(model="any/model-name", messages=HI)
        return chat, [m.id for m in client.models.list()]

    chat, models = await in_thread(ready, work, base_url=f"{ready.cluster.url}/v2/chat/openai/v1")
    assert chat.model == "any/model-name"
    assert models == ["chat"]
    with pytest.raises(openai.NotFoundError):
        await in_thread(ready, work, base_url=f"{ready.cluster.url}/v2/plain/openai/v1")


@pytest.mark.parametrize("model", ["nothing", "chat@9", "plain", "a/b", "x:y"])
async def test_an_unknown_model(client: openai.AsyncOpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model=model, messages=HI)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    if "/" not in model:
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve(model)


async def test_error_classes(ready: Platform, client: openai.AsyncOpenAI) -> None:
    async def say(user: str, **more: Any) -> Any:
        return await client.chat.completions.create(model="odd", messages=HI, user=user, **more)

    with pytest.raises(openai.BadRequestError) as caught:
        await say("what")
    assert caught.value.param == "user"
    with pytest.raises(openai.InternalServerError) as failed:
        await say("raises")
    assert failed.value.code == "handler_error"
    assert "no such luck" in failed.value.message
    with pytest.raises(openai.InternalServerError) as died:
        await say("dies")
    assert (died.value.status_code, died.value.code) == (502, "instance_died")
    assert died.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.InternalServerError) as late:
        await say("naps", extra_headers={"X-Headrace-Timeout": "0.5"})
    assert (late.value.status_code, late.value.code) == (504, "deadline_exceeded")
    with pytest.raises(openai.APITimeoutError):
        await say("naps", timeout=0.3)
    with pytest.raises(openai.APIStatusError) as teapot:
        await say("teapot")
    assert (teapot.value.status_code, teapot.value.code) == (418, "pot")
    with pytest.raises(openai.APIStatusError) as large:
        await client.chat.completions.create(model="odd", messages=HI, user="x" * 70_000)
    assert (large.value.status_code, large.value.code) == (413, "body_too_large")
    for key in ("wrong", ""):
        with pytest.raises(openai.AuthenticationError) as unknown:
            await client.with_options(api_key=key or "x y").models.list()
        assert unknown.value.code == "invalid_api_key"


async def test_bodies_the_gateway_refuses(ready: Platform) -> None:
    for body in (b"{", b"[]", b"{}", b'{"model": 1}', b'{"model": "chat", "stream": "yes"}', b"\xff"):
        status, headers, doc = await ready.request(
            "POST", "/v1/chat/completions", data=body, headers={"Content-Type": "application/json"}
        )
        assert status == 400, (body, doc)
        assert set(doc["error"]) == {"message", "type", "param", "code"}
        assert headers["Content-Type"] == "application/json"
    for method, path, expected in (
        ("GET", "/v1/chat/completions", 405), ("POST", "/v1/models", 405), ("GET", "/v1/nothing", 404),
    ):  # fmt: skip
        status, _, doc = await ready.request(method, path)
        assert status == expected
        assert doc["error"]["code"]


async def test_bodies_pass_as_they_are(ready: Platform) -> None:
    body = b'{ "user":"plain",\n "model" : "odd", "odd number": 1.0e0}'
    status, _, doc = await ready.request(
        "POST", "/v1/completions", data=body, headers={"Content-Type": "application/json"}
    )
    assert status == 200
    assert doc["raw"] == body.decode()


async def test_a_key_sees_and_calls_only_its_endpoints(ready: Platform) -> None:
    key = await ready.api("POST", "/keys", {"name": "few", "scopes": ["invoke"], "endpoints": ["chat"]})
    slow = await ready.api(
        "POST",
        "/keys",
        {"name": "slow", "scopes": ["invoke"], "rate_limit": {"requests_per_s": 0.1, "burst": 1}},
    )
    blind = await ready.api("POST", "/keys", {"name": "blind", "scopes": ["metrics"]})

    def few(client: openai.OpenAI) -> Any:
        assert [m.id for m in client.models.list()] == ["chat"]
        assert client.chat.completions.create(model="chat", messages=HI).choices
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="odd", messages=HI)

    def limited(client: openai.OpenAI) -> Any:
        client.models.list()
        with pytest.raises(openai.RateLimitError) as caught:
            client.models.list()
        return caught.value

    def refused(client: openai.OpenAI) -> Any:
        with pytest.raises(openai.PermissionDeniedError):
            client.models.list()

    await in_thread(ready, few, api_key=key["key"])
    await in_thread(ready, refused, api_key=blind["key"])
    error = await in_thread(ready, limited, api_key=slow["key"])
    assert error.code == "rate_limit_exceeded"
    assert int(error.response.headers["Retry-After"]) >= 1


async def test_a_full_queue(client: openai.AsyncOpenAI) -> None:
    async def one() -> Any:
        return await client.chat.completions.create(model="tiny", messages=HI)

    results = await asyncio.gather(*(one() for _ in range(6)), return_exceptions=True)
    refused = [r for r in results if isinstance(r, openai.RateLimitError)]
    assert refused
    assert all(r.code == "queue_full" and r.response.headers["Retry-After"] for r in refused)
    assert all(not isinstance(r, BaseException) or isinstance(r, openai.RateLimitError) for r in results)


@pytest.mark.parametrize(("n", "code"), [(1, "instance_died"), (2, "handler_error")])
async def test_a_stream_that_breaks_off_says_so(client: openai.AsyncOpenAI, n: int, code: str) -> None:
    stream = await client.chat.completions.create(model="odd", messages=HI, user="half", n=n, stream=True)
    said = []

    async def read() -> None:
        async for chunk in stream:
            said.append(chunk.choices[0].delta.content)

    with pytest.raises(openai.APIError) as caught:
        await read()
    assert said == ["half"]
    assert caught.value.code == code
    assert n == 1 or "half way" in caught.value.message


async def test_an_idempotency_key_is_answered_once(ready: Platform) -> None:
    body = {"model": "chat", "messages": HI}
    headers = {"Idempotency-Key": "chat-1"}
    answers = [
        await ready.request("POST", "/v1/chat/completions", json=body, headers=headers) for _ in range(2)
    ]
    assert [status for status, _, _ in answers] == [200, 200]
    assert answers[0][2] == answers[1][2]
    bad = {"model": "odd", "messages": HI, "user": "raises"}
    status, _, doc = await ready.request(
        "POST", "/v1/chat/completions", json=bad, headers={"Idempotency-Key": "odd-1"}
    )
    assert status == 500
    assert doc["error"]["code"] == "handler_error"


async def test_waking_from_zero(ready: Platform, client: openai.AsyncOpenAI) -> None:
    """The stream says that it waits, the client hears nothing of it, and gets its answer."""
    await ready.to_zero("slow")
    stream = client.chat.completions.create(model="slow", messages=HI, stream=True)
    raw = raw_stream(ready, {"model": "slow", "messages": HI, "stream": True})
    refused = client.chat.completions.create(model="slow", messages=HI, user="refuse", stream=True)
    found, data, late = await asyncio.gather(stream, raw, refused)
    assert [c.choices[0].delta.content async for c in found] == ["awake"]
    comments = [line for line in data.split(b"\n") if line.startswith(b":")]
    assert len(comments) >= 2
    assert comments[0].startswith(b": waking, 1.")
    assert data.rstrip().endswith(b"data: [DONE]")
    with pytest.raises(openai.APIError) as caught:
        _ = [c async for c in late]
    assert (caught.value.code, caught.value.message) == ("c", "not today")
    # Awake, and without comments: the status is the instance's own.
    assert b"\n:" not in b"\n" + await raw_stream(ready, {"model": "slow", "messages": HI, "stream": True})
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(model="slow", messages=HI, user="refuse", stream=True)


async def test_a_deadline_while_waking(ready: Platform) -> None:
    await ready.to_zero("slow")
    data = await raw_stream(
        ready, {"model": "slow", "messages": HI, "stream": True}, {"X-Headrace-Timeout": "1.6"}
    )
    last = data.strip().split(b"\n\n")[-1]
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "deadline_exceeded"


async def raw_stream(ready: Platform, body: Any, headers: dict[str, str] | None = None) -> bytes:
    status, _, data = await ready.request("POST", "/v1/chat/completions", json=body, headers=headers)
    assert status == 200
    return data
