"""Weights are fetched in parts, go on where they were cut, are whole or not there, and stay within bounds."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import socket
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from headrace_runtimes.weights import Item, WeightsCache, WeightsFailed, WeightsSettings
from headrace_runtimes.weights import http as weights_http
from headrace_runtimes.weights.parts import plan, state_of
from headrace_runtimes.weights.remote import RemoteFile
from headrace_runtimes.weights.values import PART_BYTES, check_allowed, part_size, safe_path, victims
from hypothesis import given
from hypothesis import strategies as st

DATA = random.Random(4).randbytes(5 * PART_BYTES + 12345)
SHA256 = hashlib.sha256(DATA).hexdigest()


@dataclass
class Server:
    """A file server that does what a test wants."""

    url: str = ""
    data: bytes = DATA
    etag: str = '"one"'
    ranges: bool = True
    heeds: bool = True
    """If-Range."""
    spans: list[tuple[int, int]] = field(default_factory=list)
    cut_after: Callable[[int], int | None] = lambda begin: None
    """Bytes of an answer after which the connection is cut, by its begin."""
    status: list[int] = field(default_factory=list)
    """Taken first."""
    redirect: str = ""
    gate: asyncio.Event | None = None
    at_once: int = 0
    most: int = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self.redirect:
            return web.Response(status=302, headers={"Location": self.redirect})
        if self.status:
            return web.Response(status=self.status.pop(0))
        wanted = request.http_range if self.ranges else slice(None)
        if self.heeds and request.headers.get("If-Range", self.etag) != self.etag:
            wanted = slice(None)
        begin, end = wanted.start or 0, min(len(self.data), wanted.stop or len(self.data))
        partial = wanted.start is not None
        if end - begin > 1:
            self.spans.append((begin, end))
            if self.gate is not None and begin:
                await self.gate.wait()
        headers = {"ETag": self.etag, "Content-Length": str(end - begin)}
        if partial:
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(self.data)}"
        answer = web.StreamResponse(status=206 if partial else 200, headers=headers)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await answer.prepare(request)
            left = self.cut_after(begin) if end - begin > 1 else None
            stop = end if left is None else min(end, begin + left)
            for at in range(begin, stop, 1 << 20):
                await answer.write(self.data[at : min(stop, at + (1 << 20))])
            if stop < end:
                assert request.transport is not None
                request.transport.close()
        finally:
            self.at_once -= 1
        return answer


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    app = web.Application()
    app.router.add_get("/{name:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/models/model.bin?sig=hidden"
    yield server
    await runner.cleanup()


def cache_in(root: Path, **changes: object) -> WeightsCache:
    options: dict[str, object] = {"private": True, "pause_s": 0.001, "attempts": 4} | changes
    return WeightsCache(WeightsSettings(root=root / "weights", **options))  # type: ignore[arg-type]


async def test_parts_come_in_parallel_and_what_is_there_needs_no_network(
    server: Server, tmp_path: Path
) -> None:
    cache = cache_in(tmp_path)
    told: list[str] = []
    pin = await cache.ensure(Item(server.url, SHA256), told.append)
    assert (pin.path / "model.bin").read_bytes() == DATA
    assert len(server.spans) == 6
    assert server.most > 1
    assert any("40 MiB of 40 MiB" in text for text in told)
    assert not any("hidden" in text for text in told)
    pin.release()
    again = await cache_in(tmp_path).ensure(Item(server.url, SHA256))
    assert again.path == pin.path
    assert len(server.spans) == 6
    again.release()
    # Other users can read it, nobody can write.
    assert (pin.path / "model.bin").stat().st_mode & 0o777 == 0o444


async def test_a_connection_that_is_cut_goes_on_in_the_middle(server: Server, tmp_path: Path) -> None:
    server.cut_after = lambda begin: 3 << 20
    pin = await cache_in(tmp_path).ensure(Item(server.url, SHA256))
    assert (pin.path / "model.bin").read_bytes() == DATA
    assert any(begin % PART_BYTES for begin, _ in server.spans)
    pin.release()


async def test_a_fetch_that_was_given_up_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.gate = asyncio.Event()
    first = asyncio.create_task(cache_in(tmp_path).ensure(Item(server.url)))
    root = tmp_path / "weights"
    state = root / "drafts" / Item(server.url).key / "state.json"
    async with asyncio.timeout(20):
        while not (state.exists() and json.loads(state.read_bytes())[0]["done"]):
            await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert not (root / Item(server.url).key).exists()
    server.spans.clear()
    server.gate = None
    pin = await cache_in(tmp_path).ensure(Item(server.url))
    assert (pin.path / "model.bin").read_bytes() == DATA
    assert 0 not in [begin for begin, _ in server.spans]
    assert len(server.spans) == 5
    pin.release()


async def test_a_process_that_is_killed_leaves_no_half_file_and_its_parts_count(
    server: Server, tmp_path: Path
) -> None:
    server.gate = asyncio.Event()
    source = f"""
    import asyncio
    from pathlib import Path
    from headrace_runtimes.weights import Item, WeightsCache, WeightsSettings
    cache = WeightsCache(WeightsSettings(root=Path({str(tmp_path / "weights")!r}), private=True))
    asyncio.run(cache.ensure(Item({server.url!r})))
    """
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", textwrap.dedent(source))
    state = tmp_path / "weights" / "drafts" / Item(server.url).key / "state.json"
    async with asyncio.timeout(30):
        while not (state.exists() and json.loads(state.read_bytes())[0]["done"]):
            await asyncio.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    await child.wait()
    assert not (tmp_path / "weights" / Item(server.url).key).exists()
    server.gate = None
    server.spans.clear()
    pin = await cache_in(tmp_path).ensure(Item(server.url))
    assert (pin.path / "model.bin").read_bytes() == DATA
    assert len(server.spans) == 5
    pin.release()


async def test_a_source_that_changes_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    other = DATA[::-1]

    def change(begin: int) -> int | None:
        if begin == PART_BYTES and server.data is DATA:
            server.data, server.etag = other, '"two"'
            return 1
        return None

    server.cut_after = change
    pin = await cache_in(tmp_path, connections=1).ensure(Item(server.url))
    assert (pin.path / "model.bin").read_bytes() == other
    pin.release()


async def test_a_server_without_ranges_and_one_that_is_busy(server: Server, tmp_path: Path) -> None:
    server.ranges, server.status = False, [503, 429]
    pin = await cache_in(tmp_path).ensure(Item(server.url, SHA256))
    assert (pin.path / "model.bin").read_bytes() == DATA
    pin.release()


@pytest.mark.parametrize("ranges", [True, False])
async def test_a_change_that_the_server_does_not_admit_is_seen(
    server: Server, tmp_path: Path, ranges: bool
) -> None:
    """It has ranges and does not heed If-Range, or has none: its ETag tells."""
    other = DATA[::-1]
    server.ranges, server.heeds = ranges, False

    def change(begin: int) -> int | None:
        if begin == (PART_BYTES if ranges else 0) and server.data is DATA and len(server.spans) > 1:
            server.data, server.etag = other, '"two"'
            return 1
        return None

    server.cut_after = change
    pin = await cache_in(tmp_path, connections=1).ensure(Item(server.url))
    assert (pin.path / "model.bin").read_bytes() == (other if server.data is other else DATA)
    assert server.data is other
    pin.release()


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (404, "HTTP 404: there is nothing"),
        (401, "HTTP 401: hosts have no credentials"),
        (403, "HTTP 403: hosts"),
    ],
)
async def test_refusals_are_told_at_once(server: Server, tmp_path: Path, status: int, said: str) -> None:
    server.status = [status]
    with pytest.raises(WeightsFailed, match=said) as failure:
        await cache_in(tmp_path).ensure(Item(server.url))
    assert "hidden" not in str(failure.value)


async def test_a_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(WeightsFailed, match="correct the checksum"):
        await cache_in(tmp_path).ensure(Item(server.url, "0" * 64))
    assert cache_in(tmp_path).used_bytes() == 0


async def test_private_addresses_are_refused_also_by_name_and_redirect(
    server: Server, tmp_path: Path
) -> None:
    closed = cache_in(tmp_path, private=False)
    with pytest.raises(WeightsFailed, match="private address; set weights_private"):
        await closed.ensure(Item(server.url))
    with pytest.raises(WeightsFailed, match=r"localhost is at .* private address"):
        await closed.ensure(Item(server.url.replace("127.0.0.1", "localhost")))
    server.redirect = "http://[::1"
    with pytest.raises(WeightsFailed, match="sends us to no address"):
        await cache_in(tmp_path).ensure(Item(server.url))
    server.redirect = "file:///etc/passwd"
    with pytest.raises(WeightsFailed, match="no http"):
        await cache_in(tmp_path).ensure(Item(server.url))
    server.redirect = server.url
    with pytest.raises(WeightsFailed, match="on and on"):
        await cache_in(tmp_path).ensure(Item(server.url))
    assert not server.spans


@pytest.mark.parametrize(
    "host",
    ["127.1", "2130706433", "0x7f000001", "0", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
     "169.254.169.254", "[fe80::1]", "[fd00:ec2::254]", "10.0.0.1", "100.64.0.1", "localhost"],
)  # fmt: skip
async def test_no_spelling_of_an_address_inside_is_let_through(tmp_path: Path, host: str) -> None:
    with pytest.raises(WeightsFailed, match=r"private address|not a canonical IPv4 address: correct"):
        await cache_in(tmp_path, private=False, attempts=1).ensure(Item(f"http://{host}/model.bin"))


async def test_a_public_server_cannot_send_us_inside_nor_a_name_change_its_mind(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # For this test the server is public, and the address next to it is not.
    monkeypatch.setattr(weights_http, "is_public", lambda address: str(address) == "127.0.0.1")
    server.redirect = server.url.replace("127.0.0.1", "127.0.0.2")
    with pytest.raises(WeightsFailed, match=r"127\.0\.0\.2 is a private address"):
        await cache_in(tmp_path, private=False).ensure(Item(server.url))
    server.redirect = ""
    answers = [["127.0.0.1"], ["127.0.0.2"]]

    async def lookup(host: str, port: int, **options: Any) -> list[Any]:
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    named = Item(server.url.replace("127.0.0.1", "models.example"))
    # The address that was checked is the one that is connected to, however often the name is asked again.
    (await cache_in(tmp_path, private=False).ensure(named)).release()
    for inside in (["127.0.0.2"], ["127.0.0.1", "127.0.0.2"]):
        answers[:] = [inside]
        with pytest.raises(WeightsFailed, match=r"models.example is at 127.0.0.2"):
            await cache_in(tmp_path / "other", private=False).ensure(named)


async def test_what_was_used_longest_ago_goes_and_what_is_used_stays(server: Server, tmp_path: Path) -> None:
    cache = cache_in(tmp_path, disk_bytes=2 * len(DATA) + (1 << 20))
    items = [Item(server.url + f"&n={n}") for n in range(4)]
    pins = []
    for age, item in zip((300, 200), items[:2], strict=True):
        pins.append(await cache.ensure(item))
        then = os.stat(tmp_path).st_mtime - age
        os.utime(tmp_path / "weights" / item.key / "record.json", (then, then))
        for path in pins[-1].files():
            os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    pins[1].release()
    third = await cache.ensure(items[2])
    root = tmp_path / "weights"
    assert (root / items[0].key).exists()
    assert not (root / items[1].key).exists()
    with pytest.raises(WeightsFailed, match="instances use the rest"):
        await cache.ensure(items[3])
    third.release()
    (await cache.ensure(items[3])).release()
    assert not (root / items[2].key).exists()
    assert cache.used_bytes() <= 2 * len(DATA) + (1 << 20)
    pins[0].release()


async def test_what_is_larger_than_the_bound_is_refused_before_it_is_fetched(
    server: Server, tmp_path: Path
) -> None:
    with pytest.raises(WeightsFailed, match="raise the setting weights_bytes"):
        await cache_in(tmp_path, disk_bytes=1 << 20).ensure(Item(server.url))
    assert not server.spans


async def test_two_at_once_fetch_once(server: Server, tmp_path: Path) -> None:
    pins = await asyncio.gather(*(cache_in(tmp_path).ensure(Item(server.url)) for _ in range(3)))
    assert len(server.spans) == 6
    for pin in pins:
        pin.release()


async def test_a_file_that_somebody_changed_is_fetched_again(server: Server, tmp_path: Path) -> None:
    pin = await cache_in(tmp_path).ensure(Item(server.url))
    pin.release()
    path = pin.path / "model.bin"
    path.chmod(0o644)
    path.write_bytes(b"changed")
    again = await cache_in(tmp_path).ensure(Item(server.url))
    assert (again.path / "model.bin").read_bytes() == DATA
    again.release()


async def test_paths_of_the_host_are_shown_only_where_that_is_allowed(tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "one").mkdir(parents=True)
    (models / "one" / "data").write_text("x")
    (models / "link").symlink_to("/etc")
    cache = cache_in(tmp_path, allow=(str(models),))
    assert (await cache.ensure(Item(str(models / "one")))).path == models / "one"
    file = await cache.ensure(Item(str(models / "one" / "data")))
    assert (file.path / "data").read_text() == "x"
    file.release()
    for source in ("/etc", str(models / "link"), str(tmp_path / "models-other"), f"{models}/../../etc"):
        with pytest.raises(WeightsFailed, match="weights_allow"):
            await cache.ensure(Item(source))
    (models / "one" / "same").symlink_to("data")
    (await cache.ensure(Item(str(models / "one")))).release()
    (models / "one" / "out").symlink_to("../link/hostname")
    with pytest.raises(WeightsFailed, match="the link out leads out of it"):
        await cache.ensure(Item(str(models / "one")))
    with pytest.raises(WeightsFailed, match="nothing there"):
        await cache.ensure(Item(str(models / "missing")))


def test_buckets_are_allowed_by_prefix() -> None:
    for fine in ("s3://models/a", "s3://other/b/c"):
        check_allowed(Item(fine), ("/srv", "s3://models/", "s3://other/b"))
    for wrong in ("s3://models-2/a", "s3://other/bc", "s3://else/a"):
        with pytest.raises(WeightsFailed, match="weights_allow"):
            check_allowed(Item(wrong), ("/srv", "s3://models/", "s3://other/b"))


@pytest.mark.parametrize("name", ["../x", "a//b", "/etc/passwd", "", "a/../b", "x" * 300, "a\0b", "."])
def test_unsafe_names_are_refused(name: str) -> None:
    with pytest.raises(WeightsFailed, match="unsafe path"):
        safe_path(name)


@given(
    st.lists(st.tuples(st.uuids().map(str), st.integers(0, 100), st.floats(0, 100)), max_size=10),
    st.integers(0, 200), st.integers(0, 300),
)  # fmt: skip
def test_no_more_goes_than_must(entries: list[tuple[str, int, float]], need: int, bound: int) -> None:
    used = sum(size for _, size, _ in entries)
    going = victims(entries, used, need, bound)
    left = used - sum(size for key, size, _ in entries if key in going)
    assert left + need <= bound or len(going) == len(entries)
    if going:
        last = next(size for key, size, _ in entries if key == going[-1])
        assert left + last + need > bound


@given(st.integers(0, 1 << 40), st.sets(st.integers(-5, 2000)), st.binary(max_size=50))
def test_a_state_is_believed_only_for_the_same_file(size: int, done: set[int], junk: bytes) -> None:
    file = RemoteFile("a", size, "etag")
    (fresh,) = plan([file], junk)
    assert not fresh.done
    fresh.done = {i for i in done if 0 <= i < fresh.count}
    (again,) = plan([file], state_of([fresh]))
    assert again.done == fresh.done
    assert again.bytes() + sum(e - b for b, e in map(again.span, again.missing())) == size
    for other in (
        RemoteFile("a", size + 1, "etag"),
        RemoteFile("a", size, "new"),
        RemoteFile("b", size, "etag"),
    ):
        assert not plan([other], state_of([fresh]))[0].done
    assert part_size(size) >= PART_BYTES
