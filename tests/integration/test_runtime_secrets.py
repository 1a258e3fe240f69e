"""Secrets in sandboxes: there for the instance that they were given to, and nowhere else on the machine."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import headrace
import pytest
import pytest_asyncio
from headrace_runtimes.base import Runtime, Sandbox
from headrace_runtimes.conformance_bench import TOKEN, call
from headrace_runtimes.docker import DockerRuntime
from headrace_runtimes.errors import AssignFailed
from headrace_runtimes.instance.inmemory import secrets_place
from headrace_runtimes.oci import OciRuntime
from headrace_runtimes.process import ProcessRuntime
from headrace_runtimes.spec import Assignment, Base, LoadedEndpoint, RuntimeSettings

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="containers, and uids of their own, need root"),
    pytest.mark.asyncio(loop_scope="module"),
]
ENGINE = Path(headrace.__file__).parent / "engines" / "python"
CODE = """
import os, stat, sys

def tell():
    place = os.environ["HEADRACE_SECRETS"]
    found = {}
    for name in sorted(os.listdir(place)):
        path = os.path.join(place, name)
        with open(path, newline="") as file:
            seen = os.stat(path)
            found[name] = [file.read(), stat.S_IMODE(seen.st_mode), seen.st_uid == os.getuid()]
    kind = ""
    for line in open("/proc/self/mounts"):
        point, of = line.split()[1:3]
        if place == point or place.startswith(point.rstrip("/") + "/"):
            kind = of
    names = {k: v for k, v in os.environ.items() if k in ("IN_FILE", "AS_VARIABLE")}
    return {"files": found, "place": place, "kind": kind, "variables": names, "uid": os.getuid()}

def look(path):
    try:
        return ["got", str(os.listdir(path) if os.path.isdir(path) else open(path).read())]
    except OSError as error:
        return ["refused", type(error).__name__]

def say():
    value = open(os.path.join(os.environ["HEADRACE_SECRETS"], "AS_VARIABLE")).read()
    print("token:", value, flush=True)
    print("again", value, file=sys.stderr, flush=True)

class Fails:
    def load(self):
        raise RuntimeError("cannot log in with " + os.environ["AS_VARIABLE"])

    def __call__(self):
        return None

class Loads:
    def load(self):
        with open(os.path.join(os.environ["HEADRACE_SECRETS"], "IN_FILE")) as file:
            self.seen = [os.environ["AS_VARIABLE"], file.read(), os.getpid()]

    def __call__(self):
        return [*self.seen, os.getpid(), tell()]
"""


@dataclass
class Place:
    runtime: Runtime
    root: Path
    canary: str
    daemon: Path | None = None
    """Where the daemon that is asked keeps what it knows."""

    @property
    def values(self) -> dict[str, str]:
        """Two secrets that nothing else on this machine holds."""
        return {"IN_FILE": f"lines\r\nof {self.canary}\né\n", "AS_VARIABLE": f"{self.canary}-variable"}

    def assignment(self, entry: str, **options: Any) -> Assignment:
        values: dict[str, Any] = {
            "id": f"i{secrets.token_hex(4)}", "endpoint": "default/s", "version": 1,
            "code_dir": self.root / "code", "entry": f"app:{entry}", "token": TOKEN,
            "handler": "class" if entry[0].isupper() else "function",
        }  # fmt: skip
        return Assignment(**(values | options))

    async def start(self, entry: str = "tell", base: Base | None = None, **options: Any) -> Sandbox:
        options = {"secrets": self.values, "secrets_env": ("AS_VARIABLE",)} | options
        return await self.runtime.claim(base or Base("plain"), self.assignment(entry, **options))


@pytest_asyncio.fixture(params=["process", "oci", "docker"], scope="module", loop_scope="module")
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    root = Path(tempfile.mkdtemp(prefix="hrs-", dir="/tmp"))
    root.chmod(0o711)
    (root / "code").mkdir(mode=0o755)
    (root / "code" / "app.py").write_text(CODE)
    settings = RuntimeSettings(
        run_dir=root / "r", engine_dir=ENGINE, python=sys.executable, zygote_bytes=1 << 30,
        log_dir=root / "logs",
    )  # fmt: skip
    runtime: Runtime = ProcessRuntime() if request.param == "process" else OciRuntime()
    daemon = None
    if request.param == "docker":
        address = request.getfixturevalue("docker_daemon")
        runtime, daemon = DockerRuntime(address), Path(address.removeprefix("unix://")).parent
    await runtime.open(settings, lambda _: None)
    try:
        yield Place(runtime, root, f"canary-{secrets.token_hex(12)}", daemon)
    finally:
        await runtime.close()
        left = list(secrets_place(root / "r").glob("*"))
        shutil.rmtree(root)
        assert left == []


def on_disk(root: Path, needle: str) -> list[str]:
    """Files below ``root`` that hold the text."""
    return [
        str(p) for p in (root, *root.rglob("*")) if p.is_file() and not p.is_symlink() and _holds(p, needle)
    ]


def _holds(path: Path, needle: str) -> bool:
    with path.open("rb") as file:
        at = 0
        while True:
            try:
                # The disk of a container is a sparse file.
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                return False
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            if needle.encode() in os.pread(file.fileno(), end - at, at):
                return True
            at = end


def in_proc(needle: str) -> list[str]:
    """Command lines and environments of all processes that hold the text."""
    found = []
    for name in ("cmdline", "environ"):
        for path in Path("/proc").glob(f"[0-9]*/{name}"):
            try:
                if needle.encode() in path.read_bytes():
                    found.append(str(path))
            except OSError:
                continue
    return found


async def until(condition: Callable[[], Any], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        await asyncio.sleep(0.02)


async def test_files_in_memory_and_only_the_variables_that_were_asked_for(place: Place) -> None:
    sandbox = await place.start()
    status, seen = await call(sandbox)
    assert status == 200, seen
    assert seen["files"] == {name: [value, 0o400, True] for name, value in sorted(place.values.items())}
    assert seen["kind"] == "tmpfs"
    assert seen["variables"] == {"AS_VARIABLE": place.values["AS_VARIABLE"]}
    assert in_proc(place.canary) == []
    await sandbox.stop(1.0)
    assert not list(secrets_place(place.root / "r").glob(f"{sandbox.id}*"))


async def test_another_instance_cannot_read_them(place: Place) -> None:
    mine, other = await asyncio.gather(place.start(), place.start("look", secrets={}, secrets_env=()))
    _, seen = await call(mine)
    for path in (seen["place"], f"{seen['place']}/IN_FILE", str(secrets_place(place.root / "r"))):
        _, got = await call(other, {"path": path})
        # In a container its own, empty directory has the same name.
        assert got[0] == "refused" or got == ["got", "[]"], (path, got)
    for pid in (mine.pid, os.getpid()):
        _, got = await call(other, {"path": f"/proc/{pid}/environ"})
        assert place.canary not in str(got)
    await asyncio.gather(mine.stop(1.0), other.stop(1.0))


async def test_nothing_of_it_is_kept_or_shown(place: Place) -> None:
    sandbox = await place.start("say")
    status, _ = await call(sandbox)
    assert status == 200
    lines: list[str] = []
    while sum("***" in line for line in lines) < 2:
        found, _ = await place.runtime.logs("default/s", sandbox=sandbox.id, wait_s=5.0)
        lines = [line.text for line in found]
    assert "token: ***" in lines
    assert "again ***" in lines
    assert on_disk(place.root, place.canary) == []
    for part in ("d/containers", "x", "words") if place.daemon else ():
        assert place.daemon
        assert on_disk(place.daemon / part, place.canary) == []
    assert in_proc(place.canary) == []
    shown = place.assignment("tell", secrets=place.values)
    assert place.canary not in repr(shown) + repr(sandbox)
    await sandbox.stop(1.0)
    assert on_disk(place.root, place.canary) == []


async def test_a_load_that_fails_does_not_tell_it(place: Place) -> None:
    with pytest.raises(AssignFailed) as failed:
        await place.start("Fails")
    exit = failed.value.exit
    assert exit.reason == "load-failed"
    assert "cannot log in with ***" in exit.detail + exit.traceback
    assert place.canary not in f"{failed.value} {exit}"
    assert on_disk(place.root, place.canary) == []


async def test_a_loaded_base_sees_them(place: Place) -> None:
    if not isinstance(place.runtime, ProcessRuntime):
        sandbox = await place.start("Loads")
        _, seen = await call(sandbox)
        assert seen[:2] == [place.values["AS_VARIABLE"], place.values["IN_FILE"].replace("\r\n", "\n")]
        await sandbox.stop(1.0)
        return
    loaded = LoadedEndpoint(
        "default/s", 1, place.root / "code", "app:Loads", "class",
        secrets=place.values, secrets_env=("AS_VARIABLE",),
    )  # fmt: skip
    base = Base("loads", loaded=loaded)
    assert place.canary not in repr(base)
    await place.runtime.hold([(base, 1)])
    await until(lambda: any(s.key == "loads" and s.state == "ready" for s in place.runtime.bases()))
    sandbox = await place.start("Loads", base)
    _, (variable, file, loader, pid, told) = await call(sandbox)
    assert loader != pid, "it was not loaded in the base"
    assert (variable, file) == (place.values["AS_VARIABLE"], place.values["IN_FILE"].replace("\r\n", "\n"))
    assert told["files"].keys() == place.values.keys()
    assert in_proc(place.canary) == []
    await sandbox.stop(1.0)
    await place.runtime.hold([])
    await until(lambda: not list(secrets_place(place.root / "r").glob("*")))
    assert on_disk(place.root, place.canary) == []
