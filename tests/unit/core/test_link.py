"""Links: the handshake, questions and answers, and what happens when a peer misbehaves."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from headrace import wire
from headrace.errors import LinkClosed, LinkError, LinkRefused
from headrace.link import MAX_STRANGERS, Handler, Link, connect, listen


@asynccontextmanager
async def control(
    tmp_path: Path, handler: Handler, *, tcp: bool = False
) -> AsyncIterator[tuple[str, list[Link]]]:
    links: list[Link] = []

    def on_link(link: Link, hello: wire.Hello) -> None:
        links.append(link)
        link.start(handler)

    address = "tcp:127.0.0.1:0" if tcp else f"unix:{tmp_path}/control.sock"
    (server,) = await listen([address], token="secret", epoch=7, on_link=on_link)
    if tcp:
        address = f"tcp:127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield address, links
    finally:
        server.close()
        for link in links:
            link.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def ignore(link: Link, msg: wire.AnyMessage) -> None:
    """Take everything."""


@pytest.mark.parametrize("tcp", [False, True])
async def test_handshake_then_messages_in_order(tmp_path: Path, tcp: bool) -> None:
    seen: list[wire.AnyMessage] = []
    async with control(tmp_path, lambda link, msg: seen.append(msg), tcp=tcp) as (address, links):
        link = await connect(address, role="gateway", id="g-1", token="secret")
        assert link.peer_epoch == 7
        link.start(ignore)
        for n in range(200):
            link.send(wire.Wake(endpoint=f"default/e{n}"))
        await until(lambda: len(seen) == 200)
        assert [m.endpoint for m in seen if isinstance(m, wire.Wake)] == [f"default/e{n}" for n in range(200)]
        assert (links[0].peer_id, links[0].role) == ("g-1", "gateway")
        link.close()


async def test_the_socket_is_the_owners_alone(tmp_path: Path) -> None:
    async with control(tmp_path, ignore):
        assert stat.S_IMODE((tmp_path / "control.sock").stat().st_mode) == 0o600


async def test_a_wrong_token_is_refused(tmp_path: Path) -> None:
    async with control(tmp_path, ignore) as (address, links):
        with pytest.raises(LinkRefused, match="wrong cluster token"):
            await connect(address, role="host", id="h-1", token="guess")
        assert links == []


async def test_an_oversized_first_frame_closes_before_it_is_read(tmp_path: Path) -> None:
    async with control(tmp_path, ignore):
        reader, writer = await asyncio.open_unix_connection(f"{tmp_path}/control.sock")
        writer.write((wire.MAX_HELLO_FRAME + 1).to_bytes(4, "big"))
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_rubbish_closes_the_link(tmp_path: Path) -> None:
    async with control(tmp_path, ignore):
        reader, writer = await asyncio.open_unix_connection(f"{tmp_path}/control.sock")
        writer.write(b"\x00\x00\x00\x04oops")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_calls_are_answered_out_of_order_and_by_number(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def answer(msg: wire.ApiCall) -> wire.AnyMessage:
        if msg.path == "/slow":
            await gate.wait()
        else:
            gate.set()
        return wire.ApiReply(status=200, body=msg.path.encode())

    async with control(tmp_path, lambda link, msg: answer(msg)) as (address, _):
        link = await connect(address, role="gateway", id="g", token="secret")
        link.start(ignore)
        slow = asyncio.create_task(link.call(wire.ApiCall(method="GET", path="/slow"), 5))
        await asyncio.sleep(0)
        fast = await link.call(wire.ApiCall(method="GET", path="/fast"), 5)
        assert isinstance(fast, wire.ApiReply)
        assert fast.body == b"/fast"
        reply = await slow
        assert isinstance(reply, wire.ApiReply)
        assert reply.body == b"/slow"
        link.close()


async def test_a_handler_that_raises_answers_with_an_error(tmp_path: Path) -> None:
    def broken(link: Link, msg: wire.AnyMessage) -> None:
        raise RuntimeError("no such table")

    async with control(tmp_path, broken) as (address, _):
        link = await connect(address, role="gateway", id="g", token="secret")
        link.start(ignore)
        reply = await link.call(wire.ApiCall(method="GET", path="/x"), 5)
        assert isinstance(reply, wire.Error)
        assert "no such table" in reply.detail
        link.close()


async def test_calls_end_when_the_link_does(tmp_path: Path) -> None:
    async def never(link: Link) -> None:
        link.close("restarting")
        await asyncio.Event().wait()

    async with control(tmp_path, lambda link, msg: never(link)) as (address, _):
        link = await connect(address, role="gateway", id="g", token="secret")
        ended: list[str] = []
        link.start(ignore, lambda _, why: ended.append(why))
        with pytest.raises(LinkClosed):
            await link.call(wire.ApiCall(method="GET", path="/x"), 5)
        assert len(ended) == 1
        with pytest.raises(LinkClosed):
            link.send(wire.Wake(endpoint="default/x"))


async def test_a_call_without_an_answer_times_out(tmp_path: Path) -> None:
    async with control(tmp_path, ignore) as (address, _):
        link = await connect(address, role="gateway", id="g", token="secret")
        link.start(ignore)
        with pytest.raises(TimeoutError):
            await link.call(wire.ApiCall(method="GET", path="/x"), 0.05)
        link.close()


async def test_a_peer_that_does_not_read_is_cut_off(tmp_path: Path) -> None:
    async with control(tmp_path, ignore) as (address, links):
        _, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"))
        hello = wire.Hello(protocol=wire.PROTOCOL, role="gateway", token="secret", id="deaf")
        writer.write(wire.encode(wire.Envelope(1, 0, hello)))
        await until(lambda: bool(links))
        chunk = wire.BlobChunk(total=1, offset=0, data=bytes(wire.BLOB_CHUNK))
        for _ in range(64):
            if links[0].is_open:
                links[0].send(chunk)
        assert "does not read" in await asyncio.wait_for(links[0].closed, 5)
        writer.close()


async def test_strangers_are_bounded_and_do_not_keep_others_out(tmp_path: Path) -> None:
    async with control(tmp_path, ignore) as (address, links):
        path = address.removeprefix("unix:")
        strangers = [await asyncio.open_unix_connection(path) for _ in range(MAX_STRANGERS + 20)]
        # The oldest are closed long before their time, and whoever says who it is comes in.
        for reader, _ in strangers[:20]:
            assert await asyncio.wait_for(reader.read(), 3) == b""
        link = await connect(address, role="gateway", id="g-1", token="secret")
        assert len(links) == 1
        link.close()
        for _, writer in strangers:
            writer.close()


@pytest.mark.parametrize("token", ["", "s", "secret2", "sécret", "\0", "x" * 60_000])
async def test_any_other_token_is_refused(tmp_path: Path, token: str) -> None:
    async with control(tmp_path, ignore) as (address, links):
        with pytest.raises(LinkRefused):
            await connect(address, role="host", id="h-1", token=token)
        assert links == []


@pytest.mark.parametrize("in_flight", [10**30, -(10**30)])
async def test_what_has_no_frame_is_refused_and_the_link_goes_on(tmp_path: Path, in_flight: int) -> None:
    seen: list[wire.AnyMessage] = []
    async with control(tmp_path, lambda link, msg: seen.append(msg)) as (address, _):
        link = await connect(address, role="host", id="h-1", token="secret")
        link.start(ignore)
        with pytest.raises(LinkError, match="cannot be sent"):
            link.send(wire.Heartbeat(at=1.0, in_flight={"i": in_flight}))
        with pytest.raises(LinkError, match="cannot be sent"):
            link.send(wire.Wake(endpoint="\ud800"))
        link.send(wire.Heartbeat(at=2.0))
        await until(lambda: bool(seen))
        assert seen == [wire.Heartbeat(at=2.0)]
        link.close()
