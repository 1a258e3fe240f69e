"""Docker's daemon goes away and comes back, is not there, is no daemon: what the runtime says and loses."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import os
import shutil
import signal
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import headrace
import pytest
from headrace.cli.support import in_words, support
from headrace_runtimes.conformance_bench import Bench, Harness, call, opened, until
from headrace_runtimes.docker import DockerRuntime, api, sweeper
from headrace_runtimes.docker.api import Engine
from headrace_runtimes.docker.collect import collect
from headrace_runtimes.docker.probe import why_none
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.oci.network import LoopbackOnly
from headrace_runtimes.spec import RuntimeSettings

from benchmarks._docker import Daemon, own_daemon
from tests.integration.conftest import make_settings, running_platform
from tests.integration.conftest import until as eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")
ENGINE = Path(headrace.__file__).parent / "engines" / "python"


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """One of the test's own: the suite's must live on."""
    with own_daemon() as daemon:
        yield daemon


def harness(directory: Path, address: str, *, kept: bool = True) -> Harness:
    settings = RuntimeSettings(
        run_dir=directory / "o", engine_dir=ENGINE, python=sys.executable, zygote_bytes=1 << 30,
        log_dir=directory / "logs", images_dir=directory / "images" if kept else None,
    )  # fmt: skip
    return Harness(lambda: DockerRuntime(address, LoopbackOnly()), settings, directory / "code")


def ask(address: str, method: str, what: str) -> object:
    raw = sweeper.ask(address.removeprefix("unix://"), method, what)
    return json.loads(raw) if raw else None


def containers(address: str) -> list[str]:
    told = ask(address, "GET", "/containers/json?all=1")
    assert isinstance(told, list)
    return [str(one["Names"]) for one in told]


def image_names(address: str) -> list[str]:
    told = ask(address, "GET", "/images/json")
    assert isinstance(told, list)
    return [tag for one in told for tag in one["RepoTags"] or ()]


@pytest.mark.timeout(200)
async def test_it_is_ended_and_comes_back(directory: Path, daemon: Daemon) -> None:
    async with opened(harness(directory, daemon.address)) as bench:
        await bench.base("plain", lambda status: status.spares > 0)
        # Killed: what runs goes on, what was to be made is not, and what has ended is removed later.
        one, two = await bench.start(), await bench.start()
        daemon.stop(signal.SIGKILL)
        assert (await call(one, {}))[0] == 200
        await two.pause()
        await two.resume()
        with pytest.raises(PrepareFailed, match=r"Docker does not answer at .*: .*Start it"):
            await bench.start(fresh=True)
        assert (await one.stop(1.0)).reason == "stopped"
        assert (await call(two, {}))[0] == 200
        await asyncio.to_thread(daemon.start)
        # The daemon has ended those that it did not know to be alive.
        await asyncio.wait_for(two.exited, 30)
        await answers_again(bench)
        await until(lambda: len(containers(daemon.address)) <= 3, "what was left to be removed", 60)
        # Ended in order: it ends its containers, and that is told.
        three = await bench.start()
        await asyncio.to_thread(daemon.stop)
        assert (await asyncio.wait_for(three.exited, 30)).reason in {"exited", "signalled", "stopped"}
        assert bench.runtime.capabilities()["exec"] == "", "it is open, and comes back"
        await asyncio.to_thread(daemon.start)
        await answers_again(bench)
    assert containers(daemon.address) == []
    assert len(image_names(daemon.address)) == 1, "the image is kept for the next time"


async def answers_again(bench: Bench) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                sandbox = await bench.start(fresh=True)
            except PrepareFailed:
                await asyncio.sleep(0.2)
                continue
            assert (await call(sandbox, {}))[0] == 200
            await sandbox.stop(0.0)
            return


@pytest.mark.timeout(200)
async def test_it_hangs(directory: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "CALL_TIMEOUT_S", 3.0)
    monkeypatch.setattr(api, "READ_TIMEOUT_S", 2.0)
    async with opened(harness(directory, daemon.address)) as bench:
        await bench.base("plain", lambda status: status.spares > 0)
        one, two = await bench.start(), await bench.start()
        assert daemon.process is not None
        os.kill(daemon.process.pid, signal.SIGSTOP)
        try:
            # What runs needs no daemon, and whoever waits for it is told.
            async with asyncio.timeout(60):
                assert (await call(two, {}))[0] == 200
                await two.pause()
                await two.resume()
                assert bench.runtime.capabilities()["isolation"] == ""
                with pytest.raises(PrepareFailed, match=r"has not answered POST .* within 3 s"):
                    await bench.start(fresh=True)
                with pytest.raises(PrepareFailed, match=r"has not answered GET .* within 2 s"):
                    await bench.runtime.list_owned()
                assert (await one.stop(1.0)).reason == "stopped"
        finally:
            os.kill(daemon.process.pid, signal.SIGCONT)
        await answers_again(bench)
        await until(lambda: len(containers(daemon.address)) <= 3, "what was left to be removed", 60)
    assert containers(daemon.address) == []


@pytest.mark.timeout(200)
async def test_the_host_serves_on_without_it(
    directory: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", daemon.address)
    source = """
        @headrace.endpoint(name="{name}", runtime="{name}", retries=0)
        def hello() -> str:
            return "{name}"
    """
    async with running_platform(
        make_settings(directory / "d", runtimes="process,docker"), directory
    ) as platform:
        for name in ("process", "docker"):
            assert (await platform.deploy(source.format(name=name)))["state"] == "succeeded"
            assert await platform.call(name) == name
            await platform.to_zero(name)
        await asyncio.to_thread(daemon.stop)
        assert await platform.call("process") == "process"

        async def told() -> bool:
            # What was made while the daemon was ending may still serve.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2.0):
                    if (await platform.request("POST", "/e/docker", json={}))[0] == 200:
                        await platform.to_zero("docker")
            death = (await platform.endpoint("docker"))["last_death"]
            return bool(death) and "Docker does not answer" in death["detail"]

        await eventually(told)
        assert await platform.call("process") == "process"
        await asyncio.to_thread(daemon.start)

        async def back() -> bool:
            status, _, value = await platform.request("POST", "/e/docker", json={})
            return bool(status == 200 and value == "docker")

        await eventually(back, 60.0)
        await platform.to_zero("docker")
    assert containers(daemon.address) == []


async def test_an_image_that_somebody_has_removed_comes_again(directory: Path, docker_daemon: str) -> None:
    async with opened(harness(directory, docker_daemon, kept=False)) as bench:
        await bench.runtime.hold([])
        own = [name for name in image_names(docker_daemon) if (directory / "o").exists()]
        await bench.base("plain", lambda status: status.spares > 0)
        (name,) = [n for n in own if "-" in n.partition(":")[2]]
        ask(docker_daemon, "DELETE", f"/images/{name}?force=1")
        assert (await call(await bench.start(fresh=True), {}))[0] == 200
        assert name in image_names(docker_daemon)
    assert name not in image_names(docker_daemon)


async def test_images_are_collected_but_never_one_in_use(directory: Path, daemon: Daemon) -> None:
    foreign = directory / "foreign.tar"
    (directory / "empty").mkdir()
    shutil.make_archive(str(foreign.with_suffix("")), "tar", directory / "empty")
    engine = Engine(daemon.address.removeprefix("unix://"))
    await engine.open()
    try:
        await engine.send(
            "/images/create", foreign, {"fromSrc": "-", "repo": "headrace/image", "tag": "theirs"}
        )
        async with opened(harness(directory, daemon.address)) as bench:
            sandbox = await bench.start()
            (ours,) = [n for n in image_names(daemon.address) if n.startswith("headrace/plain:")]
            assert await collect(engine, 0, 0.0) == [], "a container is made of it"
            assert (await call(sandbox, {}))[0] == 200
        assert await collect(engine, 1 << 40, 3600.0) == [], "neither old nor too much"
        assert await collect(engine, 0, 3600.0, own={ours}) == [], "somebody here has prepared it"
        assert sorted(image_names(daemon.address)) == sorted([ours, "headrace/image:theirs"])
        assert await collect(engine, 1 << 40, -1.0) == [ours], "not used for as long"
        assert image_names(daemon.address) == ["headrace/image:theirs"], "it has not our label"
        async with opened(harness(directory, daemon.address)) as bench:
            assert (await call(await bench.start(), {}))[0] == 200
        assert await collect(engine, 0, 3600.0) == [ours], "too much"
    finally:
        await engine.close()


class _Old(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"Version": "19.03.1", "ApiVersion": "1.40", "MinAPIVersion": "1.12"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:
        pass


def row(monkeypatch: pytest.MonkeyPatch, path: Path) -> str:
    """What ``headrace doctor`` says of the docker runtime."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    found, _ = support("auto")
    (item,) = [item for item in found if item.name == "docker"]
    assert not item.offered
    return in_words(item, "auto")[0]


async def test_what_is_no_daemon_is_told_plainly(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = directory / "s"
    assert row(monkeypatch, path) == (
        f"not offered: there is no Docker daemon at {path}: apt-get install docker.io, or start it"
    )
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        assert row(monkeypatch, path) == (
            f"not offered: Docker does not answer at {path} (Connection refused): start it"
        )
        dead.listen()
        assert "does not answer" in row(monkeypatch, path)
    path.unlink()
    with socketserver.ThreadingUnixStreamServer(str(path), _Old) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert "Docker 19.03.1 is too old: install 20.10 or later" in row(monkeypatch, path)
        server.shutdown()
    runtime = DockerRuntime(f"unix://{path}")
    with pytest.raises(PrepareFailed, match="Docker does not answer at"):
        await runtime.open(harness(directory, "").settings, lambda _: None)


def test_a_socket_that_is_not_for_us(directory: Path) -> None:
    """Root may use all of them: another user is asked."""
    from_here = os.environ | {"DOCKER_HOST": f"unix://{directory}/s"}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "s"))
        os.chmod(directory / "s", 0o600)
        listener.listen()
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.environ.update(from_here)
            os.setgroups([])
            os.setgid(65_534)
            os.setuid(65_534)
            told = [why_none(f"{directory}/s", "6"), DockerRuntime().capabilities()["isolation"]]
            os.write(writing, json.dumps(told).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        told = json.loads(os.read(reading, 10_000))
        for fd in (reading, writing):
            os.close(fd)
    assert told == [
        f"there is no permission to use {directory}/s: run the host as root",
        "the host does not run as root",
    ]
