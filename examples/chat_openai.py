"""An endpoint that speaks OpenAI's protocol: chat, completions and embeddings, without a framework.

    headrace deploy examples/chat_openai.py
    python -c '
    import os, openai
    client = openai.OpenAI(base_url="http://127.0.0.1:8700/v1", api_key=os.environ["HEADRACE_API_KEY"])
    for chunk in client.chat.completions.create(
        model="chat", messages=[{"role": "user", "content": "the river"}], stream=True
    ):
        print(chunk.choices[0].delta.content or "", end="") if chunk.choices else None
    '

The model is a toy: it continues a text word by word, each word followed by the one that most often came next
in a few sentences about rivers. Put a real one in its place; the protocol stays.
"""

import asyncio
import hashlib
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import headrace

TEXT = """
the river turns the wheel and the wheel turns the mill .
the headrace brings the water to the wheel .
the water waits at the gate until the gate opens .
when the gate opens the water turns the wheel at once .
"""
DIMENSIONS = 64
KIND: dict[str, Any] = {"type": "invalid_request_error", "param": None, "code": None}


class Toy:
    """Deterministic: the same text always goes on in the same way."""

    def __init__(self) -> None:
        words = TEXT.split()
        pairs = list(itertools.pairwise(words))
        self.after = {w: [b for b, _ in Counter(b for a, b in pairs if a == w).most_common()] for w in words}

    def words(self, prompt: str, limit: int) -> list[str]:
        """Up to ``limit`` words that go on where the prompt ends."""
        found: list[str] = []
        word = next((w for w in reversed(prompt.lower().split()) if w in self.after), "the")
        seen: Counter[str] = Counter()
        while len(found) < limit:
            following = self.after.get(word) or ["the"]
            word, seen[word] = following[seen[word] % len(following)], seen[word] + 1
            found.append(word)
            if word == ".":
                break
        return found

    def vector(self, text: str) -> list[float]:
        """Words hashed into a vector of length 1."""
        values = [0.0] * DIMENSIONS
        for word in text.lower().split():
            values[hashlib.sha256(word.encode()).digest()[0] % DIMENSIONS] += 1.0
        norm = math.sqrt(sum(v * v for v in values)) or 1.0
        return [v / norm for v in values]


class Refused(Exception):
    """A request that the model cannot answer; its text is for the client."""


class Server:
    """The ASGI app."""

    def __init__(self) -> None:
        self.model = Toy()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer the three routes."""
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        routes = {
            "/v1/chat/completions": self.chat,
            "/v1/completions": self.complete,
            "/v1/embeddings": self.embed,
        }
        try:
            route = routes.get(scope["path"])
            request = json.loads(body) if route and scope["method"] == "POST" else None
            if not route or not isinstance(request, dict):
                fault = {"message": "POST an object to one of " + ", ".join(routes)}
                await answer(send, 400, {"error": fault | KIND})
            else:
                await route(request, send)
        except (Refused, ValueError) as error:
            await answer(send, 400, {"error": {"message": str(error)} | KIND})

    async def chat(self, request: dict[str, Any], send: Any) -> None:
        """``/v1/chat/completions``"""
        messages = request.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise Refused("messages: give a list of objects with role and content")
        prompt = " ".join(str(m.get("content") or "") for m in messages)
        await self.generate(request, send, prompt, chat=True)

    async def complete(self, request: dict[str, Any], send: Any) -> None:
        """``/v1/completions``"""
        prompt = request.get("prompt")
        if not isinstance(prompt, str):
            raise Refused("prompt: give a string")
        await self.generate(request, send, prompt, chat=False)

    async def embed(self, request: dict[str, Any], send: Any) -> None:
        """``/v1/embeddings``"""
        texts = request.get("input")
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise Refused("input: give a string or a list of strings")
        data = [
            {"object": "embedding", "index": i, "embedding": self.model.vector(t)}
            for i, t in enumerate(texts)
        ]
        used = sum(len(t.split()) for t in texts)
        usage = {"prompt_tokens": used, "total_tokens": used}
        await answer(
            send, 200, {"object": "list", "data": data, "model": str(request.get("model")), "usage": usage}
        )

    async def generate(self, request: dict[str, Any], send: Any, prompt: str, *, chat: bool) -> None:
        """A whole answer, or a stream of words."""
        limit = request.get("max_completion_tokens") or request.get("max_tokens") or 16
        if not isinstance(limit, int) or limit < 1:
            raise Refused("max_tokens: give a number from 1")
        words = self.model.words(prompt, min(limit, 1000))
        used, made = len(prompt.split()), len(words)
        reason = "stop" if words[-1] == "." else "length"
        usage = {"prompt_tokens": used, "completion_tokens": made, "total_tokens": used + made}
        base = {
            "id": ("chatcmpl-" if chat else "cmpl-") + hashlib.sha256(prompt.encode()).hexdigest()[:24],
            "created": int(time.time()),
            "model": str(request.get("model")),
            "object": "chat.completion" if chat else "text_completion",
        }
        if not request.get("stream"):
            text = " ".join(words)
            part: dict[str, Any] = (
                {"message": {"role": "assistant", "content": text}}
                if chat
                else {"text": text, "logprobs": None}
            )
            choices = [{"index": 0, "finish_reason": reason, **part}]
            await answer(send, 200, {**base, "choices": choices, "usage": usage})
            return
        if chat:
            base["object"] = "chat.completion.chunk"
        options = request.get("stream_options")
        with_usage = isinstance(options, dict) and bool(options.get("include_usage"))

        async def events() -> AsyncIterator[dict[str, Any]]:
            for i, word in enumerate(words):
                text = word if i == 0 else " " + word
                delta = {"role": "assistant", "content": text} if i == 0 else {"content": text}
                part = {"delta": delta} if chat else {"text": text, "logprobs": None}
                yield {**base, "choices": [{"index": 0, "finish_reason": None, **part}]}
                await asyncio.sleep(0)
            end: dict[str, Any] = {"delta": {}} if chat else {"text": "", "logprobs": None}
            yield {**base, "choices": [{"index": 0, "finish_reason": reason, **end}]}
            if with_usage:
                yield {**base, "choices": [], "usage": usage}

        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for event in events():
            data = b"data: " + json.dumps(event).encode() + b"\n\n"
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def answer(send: Any, status: int, value: dict[str, Any]) -> None:
    """A JSON answer."""
    body = json.dumps(value).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


chat = headrace.endpoint(name="chat", api="openai", concurrency=16)(Server())
