"""Checkpoints of real containers by the real runc, with whatever CRIU this machine has."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import headrace
import pytest
from headrace_runtimes.conformance_bench import Bench, Harness, call, opened
from headrace_runtimes.oci import OciRuntime, criu
from headrace_runtimes.oci.binary import Binary, find
from headrace_runtimes.oci.cgroup import Cgroup
from headrace_runtimes.oci.checkpoint import CheckpointFailed, Checkpoints, Counts, Identity
from headrace_runtimes.oci.driver import OciDriver
from headrace_runtimes.oci.keeper import OciKeeper
from headrace_runtimes.spec import Base, LoadedEndpoint, Network, RuntimeSettings

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")
ENGINE = Path(headrace.__file__).parent / "engines" / "python"
VERSIONS = criu.Versions("kernel", "criu", "runc", "cpu", "boot")
IDENTITY = Identity(VERSIONS, "bundle", "image", "engine", "more", {})
CODE = """
import os, random, socket, subprocess, sys, time

class Loads:
    def load(self):
        self.at, self.drawn = time.time(), random.random()
        with open("/tmp/loaded", "w") as file:
            file.write("by load")
        os.chmod("/tmp/loaded", 0o640)

    def health(self):
        return not os.path.exists("/headrace/code/sick")

    def __call__(self):
        try:
            open("/headrace/engine/new", "w").close()
            writable = True
        except OSError:
            writable = False
        print("said afterwards", flush=True)
        with open("/proc/self/uid_map") as file:
            ids = file.read().split()[1]
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), 5).close()
        with open("/tmp/loaded") as file:
            text = file.read()
        owner = os.stat("/tmp/loaded")
        return {
            "at": self.at, "drawn": self.drawn, "draws": random.random(), "ids": ids, "writable": writable,
            "text": text, "owner": [owner.st_uid, owner.st_gid, owner.st_mode & 0o777],
            "mounts": [line.split()[4:6] for line in open("/proc/self/mountinfo")],
            "status": [line.strip() for line in open("/proc/self/status")
                       if line.startswith(("Cap", "NoNewPrivs", "Seccomp:", "Uid", "Gid", "Groups"))],
        }

class Connects(Loads):
    def load(self):
        super().load()
        server = socket.create_server(("127.0.0.1", 0))
        self.kept = server, socket.create_connection(server.getsockname(), 5), server.accept()[0]

class Leaves(Loads):
    def load(self):
        super().load()
        self.child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
"""
TAKES = """#!/bin/sh
# The machine's runc, but for ``checkpoint``: it says that it has taken one.
for word in "$@"; do
    [ "$word" = checkpoint ] && exit 0
done
exec {runc} "$@"
"""


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    short = Path(tempfile.mkdtemp(prefix="hrk-"))
    short.chmod(0o711)
    settings = RuntimeSettings(
        run_dir=short / "o", engine_dir=ENGINE, python=sys.executable, zygote_bytes=1 << 30,
        log_dir=tmp_path / "logs", images_dir=short / "i",
    )  # fmt: skip
    yield Harness(make=lambda: OciRuntime(least_load_s=0.0), settings=settings, code_root=short / "code")
    shutil.rmtree(short)


def test_the_capability_says_what_this_machine_lacks() -> None:
    path, _ = find(None)
    versions, why = criu.support(Binary(path, Path(), criu.chosen()))
    assert (versions is None) == bool(why)
    told = OciDriver().capabilities()["checkpoint"]
    assert told == why
    if shutil.which(criu.chosen()) is None:
        assert "apt-get install criu" in told
    elif why:
        assert os.uname().release in told, "which kernel it does not work with"
        assert told.endswith("(criu check)")


async def test_an_instance_that_cannot_be_dumped_lives_on(harness: Harness, tmp_path: Path) -> None:
    async with opened(harness) as bench:
        sandbox: Any = await bench.start()
        container = sandbox._frame.container
        kept = Checkpoints(tmp_path / "kept", Binary(find(None)[0], container._binary.state, criu.chosen()))
        await kept.open(VERSIONS)

        async def trial(directory: Path) -> None:
            raise AssertionError("there is nothing to try")

        with pytest.raises(CheckpointFailed, match="cannot be taken: runc checkpoint failed: ") as failed:
            await asyncio.wait_for(kept.make(IDENTITY, container.id, trial), 60)
        assert str(failed.value).count("\n") == 0
        assert (await call(sandbox, {"name": "you"}))[0] == 200, "the normal path"
        assert kept.counts == Counts(take_failed=1)
        assert await kept.why_not(IDENTITY) != ""
        assert await kept.find(IDENTITY) is None


async def test_a_trial_restore_that_fails_publishes_nothing(harness: Harness, tmp_path: Path) -> None:
    wrapped = tmp_path / "runc"
    wrapped.write_text(TAKES.format(runc=find(None)[0]))
    wrapped.chmod(0o755)
    async with opened(harness) as bench:
        sandbox: Any = await bench.start()
        container = sandbox._frame.container
        runtime = Binary(str(wrapped), tmp_path / "state")
        kept = Checkpoints(tmp_path / "kept", runtime)
        await kept.open(VERSIONS)
        cgroup = f"/hrk-{os.getpid()}"
        tried: list[Path] = []

        async def trial(directory: Path) -> None:
            tried.append(directory)
            bundle = tmp_path / "trial"
            bundle.mkdir()
            told = json.loads((container.directory / "config.json").read_text())
            told["linux"]["cgroupsPath"] = cgroup
            (bundle / "config.json").write_text(json.dumps(told))
            await criu.restore(runtime, "trial", bundle, directory)

        try:
            with pytest.raises(CheckpointFailed, match="did not pass its trial: runc restore failed: "):
                await asyncio.wait_for(kept.make(IDENTITY, "any", trial), 60)
        finally:
            for path in Cgroup(cgroup).directories():
                path.rmdir()
        assert tried
        assert kept.counts == Counts(taken=1, trial_failed=1)
        assert await kept.find(IDENTITY) is None
        assert "runc restore failed" in await kept.why_not(IDENTITY)
        assert (await call(sandbox, {"name": "you"}))[0] == 200


def base_of(bench: Bench, entry: str = "Loads") -> Base:
    (bench.code / "app.py").write_text(CODE)
    loaded = LoadedEndpoint("default/kept", 1, bench.code, f"app:{entry}", "class")
    return Base(key=f"kept-{entry}", loaded=loaded, network=Network("none"))


def keeper_of(bench: Bench) -> OciKeeper | None:
    """The runtime's; without one the refusal is told."""
    runtime: Any = bench.runtime
    keeper: OciKeeper | None = runtime._driver.keeper
    versions, why = criu.support(Binary(find(None)[0], Path(), criu.chosen()))
    assert (keeper is None) == (versions is None), why
    assert bool(bench.runtime.capabilities()["checkpoint"]) == (keeper is None)
    return keeper


async def held(bench: Bench, base: Base) -> None:
    await bench.runtime.hold([(base, 1)])
    await bench.base(base.key, lambda status: status.spares == 1 and status.loaded)


async def test_loaded_containers_come_back_each_with_ids_of_its_own(harness: Harness) -> None:
    async with opened(harness) as bench:
        base = base_of(bench)
        await held(bench, base)
        keeper = keeper_of(bench)
        answers, sandboxes = [], []
        for _ in range(4):
            sandbox = await bench.start("Loads", base)
            status, answer = await call(sandbox)
            assert status == 200, answer
            answers.append(answer)
            sandboxes.append(sandbox)
        if keeper is None:
            assert {(a["text"], a["writable"]) for a in answers} == {("by load", False)}
            return
        counts = keeper.checkpoints.counts
        assert counts.taken == 1
        assert counts.restored >= 3
        assert counts.rate == 1.0
        assert len({a["at"] for a in answers}) == 1, "loaded once"
        assert len({a["drawn"] for a in answers}) == 1
        assert len({a["draws"] for a in answers}) == 4, "generators were seeded anew"
        assert len({a["ids"] for a in answers}) == 4, "no two share ids while both live"
        lines, _ = await bench.runtime.logs(sandboxes[0].endpoint)
        assert sum(line.text == "said afterwards" for line in lines) == 4, "they have their logs again"
        await bench.runtime.hold([])
        for sandbox in sandboxes:
            await sandbox.stop(1.0)


async def test_one_that_came_back_is_as_confined_as_one_that_loaded(harness: Harness) -> None:
    async with opened(harness) as bench:
        base = base_of(bench)
        first = await bench.start("Loads", base)
        plain = (await call(first))[1]
        await held(bench, base)
        second = await bench.start("Loads", base)
        restored = (await call(second))[1]
        if keeper_of(bench) is not None:
            assert restored["at"] != plain["at"]
        for name in ("writable", "text", "owner", "status"):
            assert restored[name] == plain[name], name
        assert sorted(restored["mounts"]) == sorted(plain["mounts"]), (
            "the same places, read-only as they were"
        )


async def test_one_that_is_not_well_after_its_trial_is_never_used(harness: Harness) -> None:
    async with opened(harness) as bench:
        base = base_of(bench)
        (bench.code / "sick").touch()
        await held(bench, base)
        keeper = keeper_of(bench)
        (bench.code / "sick").unlink()
        assert (await call(await bench.start("Loads", base)))[0] == 200, "the normal path"
        if keeper is not None:
            counts = keeper.checkpoints.counts
            assert (counts.taken, counts.trial_failed, counts.restored) == (1, 1, 0)
            assert not list((keeper.checkpoints._good).iterdir())
            (bad,) = keeper.checkpoints._bad.iterdir()
            assert "not well" in json.loads((bad / "why.json").read_text())["why"]
            assert not (bad / "image").exists()


async def test_one_that_fails_later_is_set_aside_and_load_is_run(harness: Harness) -> None:
    async with opened(harness) as bench:
        base = base_of(bench)
        await held(bench, base)
        keeper = keeper_of(bench)
        first = await bench.start("Loads", base)
        if keeper is None:
            return
        await bench.base(base.key, lambda status: status.spares == 1)
        await bench.runtime.hold([])
        (good,) = keeper.checkpoints._good.iterdir()
        for pages in (good / "image").glob("pages-*.img"):
            os.truncate(pages, 4096)
        second = await bench.start("Loads", base)
        answers = [(await call(sandbox))[1] for sandbox in (first, second)]
        assert answers[0]["at"] < answers[1]["at"], "it has loaded by itself"
        assert keeper.checkpoints.counts.restore_failed == 1
        (bad,) = keeper.checkpoints._bad.iterdir()
        assert json.loads((bad / "why.json").read_text())["why"].startswith("restore: ")


@pytest.mark.parametrize(
    ("entry", "why"), [("Connects", "runc checkpoint failed"), ("Leaves", "does not let go")]
)
async def test_what_cannot_be_dumped_runs_on_and_serves(harness: Harness, entry: str, why: str) -> None:
    async with opened(harness) as bench:
        base = base_of(bench, entry)
        await held(bench, base)
        keeper = keeper_of(bench)
        status, answer = await call(await bench.start(entry, base))
        assert (status, answer["text"]) == (200, "by load")
        if keeper is not None:
            assert keeper.checkpoints.counts == Counts(take_failed=1)
            (bad,) = keeper.checkpoints._bad.iterdir()
            assert why in json.loads((bad / "why.json").read_text())["why"]


async def test_what_holds_secrets_is_not_kept(harness: Harness) -> None:
    async with opened(harness) as bench:
        base = base_of(bench)
        assert base.loaded is not None
        secret = replace(base, key="secret", loaded=replace(base.loaded, secrets={"token": "hush"}))
        await held(bench, secret)
        keeper = keeper_of(bench)
        if keeper is not None:
            assert keeper.checkpoints.counts == Counts()
