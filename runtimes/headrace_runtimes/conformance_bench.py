"""What the conformance checks stand on: the code they run, an open runtime, a call as the gateway does it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace_runtimes.base import Runtime, Sandbox
from headrace_runtimes.spec import Assignment, Base, BaseStatus, RuntimeSettings

TOKEN = "conformance-token"  # noqa: S105 - given to the sandbox under test only
ENDPOINT = "default/conformance"
WITHIN_S = 20.0
SECRET = "HEADRACE_CONFORMANCE_SECRET"  # noqa: S105 - the name of a variable

CODE = """
import os, sys, threading, time

def hello(name="world"):
    print("hello", name)
    return {"hello": name, "pid": os.getpid()}

def slow(seconds=0.3):
    time.sleep(seconds)
    return "slept"

def leave(code=3):
    os._exit(code)

def crash():
    os.kill(os.getpid(), 9)

def environment(names):
    return {n: os.environ.get(n) for n in names}

def talk(lines, tag="line"):
    for n in range(lines):
        print(f"{tag} {n}")
    print("to stderr", file=sys.stderr)
    sys.stdout.flush()
    return lines

def grow(mib):
    kept = []
    for _ in range(mib):
        kept.append(b"x" * (1 << 20))
        time.sleep(0.002)
    time.sleep(20)
    return len(kept)

class Loads:
    def load(self):
        self.pid = os.getpid()

    def __call__(self):
        return {"loaded_in": self.pid, "pid": os.getpid()}

class Breaks:
    def load(self):
        raise RuntimeError("no weights here")

    def __call__(self):
        return None
"""


@dataclass(frozen=True)
class Harness:
    """How to make the runtime under test. ``code_root``: where any sandbox may read files."""

    make: Callable[[], Runtime]
    settings: RuntimeSettings
    code_root: Path


@dataclass
class Bench:
    """An open runtime, the endpoint's code, and what was heard of bases."""

    runtime: Runtime
    harness: Harness
    code: Path
    heard: list[BaseStatus] = field(default_factory=list)
    count: int = 0

    def assignment(self, entry: str = "hello", **options: Any) -> Assignment:
        """An assignment of a function of `CODE`."""
        self.count += 1
        values: dict[str, Any] = {
            "id": f"c{self.count}", "endpoint": ENDPOINT, "version": 1, "code_dir": self.code,
            "entry": f"app:{entry}", "handler": "class" if entry[0].isupper() else "function", "token": TOKEN,
        }  # fmt: skip
        return Assignment(**(values | options))

    async def start(self, entry: str = "hello", base: Base | None = None, **options: Any) -> Sandbox:
        """An instance of a function of `CODE`."""
        return await self.runtime.claim(base or Base(key="conformance"), self.assignment(entry, **options))

    async def base(self, key: str, what: Callable[[BaseStatus], bool]) -> BaseStatus:
        """Wait until the status of a base fulfils ``what``."""
        found: list[BaseStatus] = []

        def seen() -> bool:
            found[:] = [s for s in self.runtime.bases() if s.key == key and what(s)]
            return bool(found)

        await until(seen, f"base {key} to get there; bases: {self.runtime.bases()}")
        return found[0]


async def until(what: Callable[[], bool], text: str, within_s: float = WITHIN_S) -> None:
    """Poll with a deadline."""
    deadline = asyncio.get_running_loop().time() + within_s
    while not what():
        assert asyncio.get_running_loop().time() < deadline, f"waited {within_s} s for {text}"
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def opened(harness: Harness) -> AsyncIterator[Bench]:
    """The runtime, opened and closed."""
    harness.code_root.mkdir(parents=True, exist_ok=True)
    (harness.code_root / "app.py").write_text(CODE)
    runtime = harness.make()
    heard: list[BaseStatus] = []
    await runtime.open(harness.settings, heard.append)
    try:
        yield Bench(runtime, harness, harness.code_root, heard)
    finally:
        await runtime.close()


async def call(sandbox: Sandbox, value: object = None, *, token: str = TOKEN) -> tuple[int, Any]:
    """POST a JSON value to an instance, as the gateway does: status and decoded body."""
    kind, _, where = sandbox.address.partition(":")
    if kind == "unix":
        reader, writer = await asyncio.open_unix_connection(where)
    else:
        host, _, port = where.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
    body = b"" if value is None else json.dumps(value).encode()
    head = (
        f"POST / HTTP/1.1\r\nHost: instance\r\nX-Headrace-Token: {token}\r\nX-Headrace-Request-Id: r\r\n"
        f"X-Headrace-Attempt: 1\r\nX-Headrace-Deadline-Ms: 30000\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    try:
        writer.write(head.encode() + body)
        raw = await asyncio.wait_for(reader.read(), WITHIN_S)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    if not raw:
        raise ConnectionResetError("the instance closed the connection without an answer")
    first, _, rest = raw.partition(b"\r\n")
    content = rest.partition(b"\r\n\r\n")[2]
    try:
        return int(first.split()[1]), json.loads(content)
    except ValueError:
        return int(first.split()[1]), content
