from __future__ import annotations

import hashlib

import pytest
from headrace.errors import Forbidden, Unauthorized
from headrace.gateway.auth import Keys, is_loopback_host, require
from headrace.gateway.upstream import AddressRefused, loopback
from headrace.wire import KeyRecord


def keys(*names):
    made = Keys()
    made.replace(KeyRecord(id=n, hash=hashlib.sha256(n.encode()).hexdigest()) for n in names)
    return made


def test_keys_are_found_by_what_is_presented():
    known = keys("one", "two")
    assert known.who(b"Bearer one").id == "one"
    assert known.who(b"bearer  two ").id == "two"
    assert known.who(b"one").id == "one"
    for wrong in (b"", b"Bearer ", b"Bearer three", b"Basic one", b"\xff", b"x" * 10_000):
        with pytest.raises(Unauthorized):
            known.who(wrong)
    known.replace([])
    with pytest.raises(Unauthorized):
        known.who(b"one")


def test_cookies_that_hold_a_key_do_not_travel():
    known = keys("one")
    assert known.clean_cookies(b'a=1; b=one; c=%6fne; d=Bearer%20one; e="one"; f=2') == b"a=1; f=2"
    assert known.clean_cookies(b"k=one") == b""
    assert known.clean_cookies(b"one") == b""
    assert known.clean_cookies(b"one=1; x=%256fne; y=a=one; z=2") == b"z=2"
    long = "hr_" + "k" * 40
    known = keys(long)
    text = long.encode()
    assert (
        known.clean_cookies(b"a=x.%b.y; b={%%22key%%22:%%22%b%%22}; c=%b.; d=ok" % (text, text, text))
        == b"d=ok"
    )


def test_scopes():
    record = KeyRecord(id="k", hash="", scopes=("invoke",))
    require(record, ("invoke",), "call")
    require(KeyRecord(id="k", hash="", scopes=("admin",)), ("invoke",), "call")
    with pytest.raises(Forbidden):
        require(record, ("deploy",), "deploy")


@pytest.mark.parametrize(
    "host", [b"localhost", b"LOCALHOST:1", b"127.0.0.1", b"127.255.1.2:8700", b"[::1]", b"[::1]:80"]
)
def test_loopback_hosts(host):
    assert is_loopback_host(host)


@pytest.mark.parametrize(
    "host",
    [b"", b"::1", b"localhost.evil.example", b"127.0.0.1.nip.io", b"128.0.0.1", b"127.1", b"[::1]x", b"[::2]",
     b"localhost:", b"localhost:80:80", b"evil@localhost", b"\xff", b"0.0.0.0", b"2130706433"],
)  # fmt: skip
def test_other_hosts(host):
    assert not is_loopback_host(host)


def test_only_this_machines_addresses_are_connected_to():
    assert loopback("tcp:127.0.0.1:80") == ("127.0.0.1", 80)
    assert loopback("tcp:[::1]:80") == ("::1", 80)
    for address in ("tcp:10.0.0.1:80", "tcp:example.org:80", "tcp:127.0.0.1:", "http:127.0.0.1:80", "link:x"):
        with pytest.raises(AddressRefused):
            loopback(address)
