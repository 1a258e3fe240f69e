import asyncio
import contextlib
import json
import os
import socket

import pytest
from headrace_runtimes.instance.channel import MAX_PACKET, MAX_WAITING, UNASKED, Channel, ChannelError, pair
from headrace_runtimes.instance.child import Child


class Peer:
    def __init__(self):
        self.ours, self.theirs = pair()
        self.got, self.closed = [], 0
        self.channel = Channel(self.ours, self.got.append, self._closed)

    def _closed(self):
        self.closed += 1


def flood(peer, *fds):
    """Send until it is refused; how many went."""
    for sent in range(10_000):
        try:
            peer.channel.send({"n": sent, "pad": "x" * 8000}, fds)
        except ChannelError:
            return sent
    raise AssertionError("unbounded")


async def eventually(what):
    async with asyncio.timeout(5):
        while not what():
            await asyncio.sleep(0)


@pytest.fixture
async def peer():
    peer = Peer()
    yield peer
    peer.channel.close()
    peer.theirs.close()


async def test_packets_and_descriptors_arrive(peer):
    read, write = os.pipe()
    peer.channel.send({"op": "fork", "id": "x"}, [write])
    data, fds, _, _ = socket.recv_fds(peer.theirs, MAX_PACKET, 4)
    assert json.loads(data) == {"op": "fork", "id": "x"}
    os.write(fds[0], b"hi")
    assert os.read(read, 2) == b"hi"
    for fd in (read, write, *fds):
        os.close(fd)
    peer.theirs.send(b'{"ev":"forked","pid":1}')
    await eventually(lambda: peer.got == [{"ev": "forked", "pid": 1}])


async def test_a_reader_that_stops_is_noticed_and_what_waits_arrives_in_order(peer):
    sent = flood(peer)
    assert sent > MAX_WAITING
    got = []
    peer.theirs.setblocking(False)

    def drain():
        try:
            while True:
                got.append(json.loads(peer.theirs.recv(MAX_PACKET))["n"])
        except BlockingIOError:
            return len(got) == sent

    await eventually(drain)
    assert got == list(range(sent))


async def test_waiting_descriptors_are_copies_that_are_closed(peer):
    read, write = os.pipe()
    flood(peer, write)
    os.close(write)
    peer.channel.close()
    peer.theirs.close()
    assert os.read(read, 1) == b""  # no copy of the writing end is left anywhere
    os.close(read)


JUNK = [
    b"\xff", b"[1]", b"not json", b"null", b"[" * 100_000, b'{"a":' * 10_000, b'{"a": NaN}',
    b'{"a": -Infinity}', b'{"a": ' + b"9" * 10_000 + b"}",
]  # fmt: skip


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: junk[:12])
async def test_junk_from_the_peer_closes(peer, junk):
    peer.theirs.send(junk)
    await eventually(lambda: peer.closed == 1)
    assert not peer.got
    with pytest.raises(ChannelError, match="has ended"):
        peer.channel.send({})


async def test_a_flood_that_nobody_asked_for_closes(peer):
    peer.theirs.setblocking(False)
    for _ in range(100 * UNASKED):
        try:
            peer.theirs.send(b'{"ev":"stats"}')
        except BlockingIOError:
            await asyncio.sleep(0)
        except OSError:
            break
    await eventually(lambda: peer.closed)
    assert len(peer.got) == UNASKED


async def test_answers_are_no_flood(peer):
    for asked in range(1, 2 * UNASKED):
        peer.channel.send({"op": "fork"})
        peer.theirs.recv(MAX_PACKET)
        for event in (b'{"ev":"forked"}', b'{"ev":"exited"}'):
            peer.theirs.send(event)
        await eventually(lambda asked=asked: len(peer.got) == 2 * asked)
    assert not peer.closed


@pytest.mark.parametrize(
    "packet", [b'{"ev": "failed", "message": "\\udcff", "\\ud800": ["\\udfff", {"a": "\\uD8ab"}]}',
               b'{"ev": "failed", "message": "\xed\xb3\xbf"}', b'{"ev": "\xff"}']
)  # fmt: skip
async def test_texts_of_the_peer_can_be_told_on(peer, packet):
    peer.theirs.send(packet)
    await eventually(lambda: peer.got)
    json.dumps(peer.got, ensure_ascii=False).encode()
    assert peer.closed == 0


async def test_a_packet_that_its_receiver_chokes_on_closes():
    ours, theirs = pair()
    closed = []
    channel = Channel(ours, lambda packet: packet["pid"] + 1, lambda: closed.append(1))
    theirs.send(b'{"pid": "x"}')
    await eventually(lambda: closed)
    assert channel.closed
    theirs.close()


async def test_a_gone_peer_closes_once(peer):
    peer.theirs.close()
    await eventually(lambda: peer.closed == 1)
    peer.channel.close()
    assert peer.closed == 1


async def test_a_packet_above_the_bound_is_refused(peer):
    with pytest.raises(ChannelError, match="above the bound"):
        peer.channel.send({"env": "x" * MAX_PACKET})
    peer.channel.send({"small": 1})
    assert peer.theirs.recv(100) == b'{"small":1}'


async def test_descriptors_from_a_child_are_refused_or_closed(peer):
    read, write = os.pipe()
    many = [os.dup(write) for _ in range(200)]
    with contextlib.suppress(PermissionError):  # where the kernel can refuse them
        socket.send_fds(peer.theirs, [b"{}"], [write, *many])
        await eventually(lambda: peer.got == [{}])
    for fd in (write, *many):
        os.close(fd)
    assert os.read(read, 1) == b""
    os.close(read)


async def test_last_words_are_heard_when_the_end_is_known_first():
    child = Child("x", None, False)
    words = []
    child.on_packet = words.append
    with socket.socket(fileno=os.dup(child.descriptors()[0])) as theirs:
        child.handed_over()
        theirs.send(b'{"ev":"imported"}')
        theirs.send(b'{"ev":"failed"}')
    child.died(1, None)  # no turn of the loop in between
    assert [w["ev"] for w in words] == ["imported", "failed"]
    assert (await child.exited).code == 1
