"""What the conformance checks stand on: the code they run, an open runtime, a call as the gateway does it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
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

def spin(seconds=600):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    return "spun"

def secrets(names):
    where = os.environ.get("HEADRACE_SECRETS")
    kept = {n: open(os.path.join(where, n)).read() for n in names} if where else {}
    print("kept", *kept.values())
    sys.stdout.flush()
    return {"files": kept, "variables": {n: os.environ.get(n) for n in names}, "uid": os.getuid()}

def look(path):
    try:
        open(os.path.join(path, "new"), "w").close()
        written = True
    except OSError:
        written = False
    return {"files": sorted(os.listdir(path)), "written": written}

def many(count):
    made = 0
    try:
        for made in range(count):
            threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
    except RuntimeError:
        return made
    return count

class Sick:
    well = True

    def __call__(self):
        self.well = False

    def health(self):
        if not self.well:
            raise RuntimeError("no pulse")
        return True

class Slow:
    def load(self):
        time.sleep(60)

    def __call__(self):
        return None

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
    """How to make the runtime under test. ``code_root``: where any sandbox may read files.

    ``make`` is something that another process can import, a class or `functools.partial` of one: one of the
    checks kills the process that has the runtime open.
    """

    make: Callable[[], Runtime]
    settings: RuntimeSettings
    code_root: Path


@contextlib.contextmanager
def workshop(
    make: Callable[[], Runtime], engine_dir: Path, *, images_dir: Path | None = None, name: str = "hrc-"
) -> Iterator[Harness]:
    """A harness in a directory of its own, removed at the end: short, for the paths of sockets, and open to
    all users, for sandboxes may have any. ``images_dir``: images that outlive it; None: it has its own.

    Raises ``AssertionError`` when the runtime has left something in its run directory.
    """
    root = Path(tempfile.mkdtemp(prefix=name, dir="/tmp"))
    root.chmod(0o711)
    settings = RuntimeSettings(
        run_dir=root / "r", engine_dir=engine_dir, python=sys.executable, zygote_bytes=1 << 30,
        log_dir=root / "logs", images_dir=images_dir or root / "images",
    )  # fmt: skip
    try:
        yield Harness(make, settings, root / "code")
        left = sorted(map(str, settings.run_dir.rglob("*"))) if settings.run_dir.exists() else []
        assert not left, f"left in the run directory: {left}"
    finally:
        shutil.rmtree(root, ignore_errors=True)


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
