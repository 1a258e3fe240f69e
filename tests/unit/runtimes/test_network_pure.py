"""Messages of names, allow-lists and addresses: decisions without a network."""

from __future__ import annotations

import contextlib
import os
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.network import blocks, dns, ranges, upstream
from headrace_runtimes.network.policy import normal, policy_of
from headrace_runtimes.network.resolver import Resolver
from headrace_runtimes.network.space import Space
from headrace_runtimes.spec import Network
from hypothesis import given
from hypothesis import strategies as st


def question(name: str, kind: int = dns.A, id: int = 7) -> bytes:
    raw = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
    return dns.HEADER.pack(id, dns.WANTED, 1, 0, 0, 0) + raw + kind.to_bytes(2, "big") + b"\0\1"


@given(st.binary(max_size=300))
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    asked = dns.read_question(question("a.example"))
    for read in (dns.read_question, lambda d: dns.read_answer(d, 7, asked)):
        with contextlib.suppress(dns.Malformed):
            read(data)


@given(st.binary(max_size=60), st.integers(0, 60))
def test_answers_that_were_tampered_with(junk: bytes, at: int) -> None:
    asked = dns.read_question(question("a.example"))
    sound = dns.reply(asked, dns.NOERROR, ((IPv4Address("198.51.100.1"), 60),) * 3)
    with contextlib.suppress(dns.Malformed):
        dns.read_answer(sound[:at] + junk + sound[at + len(junk) :], 7, asked)


def test_what_answers_something_else() -> None:
    asked, other = dns.read_question(question("a.example")), dns.read_question(question("b.example"))
    for sent in (dns.reply(other, 0), dns.under(dns.reply(asked, 0), 8), question("a.example")):
        with pytest.raises(dns.Malformed):
            dns.read_answer(sent, 7, asked)
    loop = question("a.example")[:12] + b"\xc0\x0c\0\1\0\1"
    with pytest.raises(dns.Malformed):
        dns.read_question(loop)
    dotted = dns.HEADER.pack(7, 0, 1, 0, 0, 0) + b"\x09a.example\0\0\1\0\1"
    with pytest.raises(dns.Malformed):
        dns.read_question(dotted)


def test_a_long_answer_is_cut_for_datagrams() -> None:
    asked = dns.read_question(question("a.example"))
    short = dns.reply(asked, 0, ((IPv4Address("198.51.100.1"), 60),))
    assert dns.cut(short) == short
    cut = dns.cut(dns.reply(asked, 0, ((IPv4Address("198.51.100.1"), 60),) * 100))
    assert len(cut) < dns.UDP_BYTES
    assert dns.read_answer(cut, 7, asked).truncated


def test_names_as_they_are_compared() -> None:
    assert normal("Shop.Example.") == "shop.example"
    assert normal("bücher.example") == "xn--bcher-kva.example"
    for none in ("", ".", "a..b", "-a.b", "a b", "1.2.3.4", "10.1.2", "x" * 64, "a." * 130 + "b", "a/b", "*"):
        assert normal(none) is None, none


def test_how_a_name_is_allowed() -> None:
    listed = policy_of(Network("egress", ("shop.example", "*.mail.example")))
    assert [listed.how(n) for n in ("shop.example", "a.shop.example", "x.mail.example", "mail.example")] == [
        "named", None, "wild", None,
    ]  # fmt: skip
    assert listed.how("notmail.example") is None
    assert policy_of(Network()).how("any.example") == "open"
    assert policy_of(Network("egress", ("*", "db.internal"))).how("db.internal") == "named"
    for name in ranges.NEVER_NAMES:
        assert policy_of(Network("egress", (name, "*"))).how(name) is None


@pytest.mark.parametrize("entry", ["::1", "fd00::/8", "a b", "http://x/", "", "10.0.0.0/99", "a.example:80"])
def test_entries_that_cannot_be_held(entry: str) -> None:
    with pytest.raises(PrepareFailed, match="cannot be allowed"):
        policy_of(Network("egress", (entry,)))


@given(st.integers(0, (1 << 32) - 1).map(IPv4Address), st.sampled_from(["named", "wild", "open"]))
def test_where_names_may_lead(address: IPv4Address, how: str) -> None:
    wide = policy_of(Network("egress", ("0.0.0.0/0", "*", str(address))))
    plain = policy_of(Network())
    if ranges.is_never(address):
        assert not wide.reaches(how, address)  # type: ignore[arg-type]
    else:
        assert wide.reaches(how, address)  # type: ignore[arg-type]
        assert plain.reaches(how, address) == (how == "named" or not ranges.is_private(address))  # type: ignore[arg-type]


def test_the_never_list_has_what_clouds_use() -> None:
    for address in ("169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192"):
        assert ranges.is_never(IPv4Address(address))
    assert not ranges.is_never(IPv4Address("198.51.100.1"))


def test_blocks_avoid_what_the_machine_routes(tmp_path: Path) -> None:
    taken = ["198.19.0.0/16", "100.64.0.0/10", "172.31.5.0/24", "10.213.7.9", "default", "fd00::/8"]
    found = list(blocks.candidates("tag", taken))
    assert found
    networks = [IPv4Network(t) for t in taken[:4]]
    assert not any(block.overlaps(network) for block in found[:300] for network in networks)
    assert list(blocks.candidates("tag", ["0.0.0.0/1", "128.0.0.0/1"])) == []
    one, two = (blocks.lock_one(blocks.candidates("tag", []), tmp_path) for _ in range(2))
    try:
        assert one[0] != two[0], "two hosts with the same wish"
        assert one[0].machine + 1 == one[0].plain
    finally:
        os.close(one[1])
        os.close(two[1])
    with pytest.raises(PrepareFailed, match="No addresses"):
        blocks.lock_one([], tmp_path)


def test_addresses_come_back_last() -> None:
    pool = blocks.Addresses()
    first = pool.take()
    pool.give_back(first)
    assert pool.take() != first


def test_files_of_the_machine() -> None:
    text = "# x\nsearch a.b\nnameserver 10.0.0.1 # c\nnameserver nonsense\nnameserver fd00::1\noptions x\n"
    assert upstream.servers_of(text) == [("10.0.0.1", 53), ("fd00::1", 53)]
    assert upstream.servers_of("") == [("127.0.0.1", 53)]
    hosts = "127.0.0.1 localhost\n10.0.0.5 DB.internal db # x\n::1 db.internal\nbad db\n#1.2.3.4 db\n"
    assert upstream.from_hosts(hosts, "db.internal") == [IPv4Address("10.0.0.5")]
    assert upstream.from_hosts(hosts, "x") == []


class _Asker:
    allowed = policy_of(Network("egress", ("db.internal", "*.wild.internal")))


async def test_the_machines_own_file_of_hosts(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("10.0.0.5 db.internal x.wild.internal other.internal\n")
    told: list[object] = []

    async def admit(*what: object) -> None:
        told.append(what)

    machine = Space()
    await machine.open()
    ask = upstream.Upstream(machine, [("127.0.0.1", 9)])
    asker = _Asker()
    resolver = Resolver(ask, lambda source: asker if source == "me" else None, admit, tmp_path / "hosts")
    try:
        asked = dns.read_question(question("db.internal"))
        answer = await resolver.answer(question("db.internal"), "me")
        assert answer is not None
        assert dns.read_answer(answer, 7, asked).addresses == ((IPv4Address("10.0.0.5"), 60),)
        assert told == [(asker, "named", ((IPv4Address("10.0.0.5"), 65),))]
        for name, source, code in (
            ("other.internal", "me", dns.NXDOMAIN), ("db.internal", "stranger", dns.REFUSED),
            ("x.wild.internal", "me", dns.NOERROR), ("none.wild.internal", "me", dns.SERVFAIL),
        ):  # fmt: skip
            answer = await resolver.answer(question(name), source)
            assert answer is not None
            said = dns.read_answer(answer, 7, dns.read_question(question(name)))
            assert (said.code, said.addresses) == (code, ()), name
        assert len(told) == 1
        assert await resolver.answer(b"junk", "me") is None
    finally:
        await resolver.close()
        await machine.close()
