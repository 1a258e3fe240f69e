"""Where requests on a user's behalf may go."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

import pytest
from headrace.errors import ValidationFailed
from headrace.gateway.jobs import outbound
from headrace.gateway.jobs.outbound import AddressForbidden, SendFailed, check_url, is_public, post
from hypothesis import given
from hypothesis import strategies as st

INSIDE = [
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "100.100.100.200", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.2.1",
    "198.18.0.1", "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "2001:db8::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:7f00:1::1",
    "192.0.0.8", "192.0.0.170", "192.0.0.192", "192.0.0.255", "192.88.99.1", "::ffff:192.0.0.192",
    "64:ff9b::c000:c0", "2002:c000:c0::1", "64:ff9b:1::1", "100::1", "2001:2::1", "3fff::1", "5f00::1",
    "168.63.129.16",
]  # fmt: skip
OUTSIDE = ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808",
           "192.0.1.1", "192.1.0.1", "168.63.129.15", "2001:4860:4860::8888"]  # fmt: skip


@pytest.mark.parametrize("text", INSIDE)
def test_inner_addresses_are_not_public(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", OUTSIDE)
def test_outer_addresses_are(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@given(st.integers(0, 2**32 - 1))
def test_an_ipv6_form_of_an_address_is_as_public_as_the_address(number: int) -> None:
    plain = ipaddress.IPv4Address(number)
    for form in ((0xFFFF << 32) | number, (0x0064FF9B << 96) | number):
        assert is_public(ipaddress.IPv6Address(form)) == is_public(plain)
    assert not is_public(ipaddress.IPv6Address((0x2002 << 112) | (number << 80))) or is_public(plain)


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "ftp://example.com/", "http://", "http:///x", "https://user:pw@example.com/", "http://a:0/",
        "http://a:99999/", "http://exa mple.com/", "http://example.com/\r\nX: y", "http://127.0.0.1/",
        "http://[::1]/", "http://[::ffff:10.0.0.1]:80/", "http://169.254.169.254/latest/meta-data",
        "http://[fe80::1%25eth0]/", "http://example.com/" + "x" * 3000, "file:///etc/passwd", "http://[bad/",
    ],
)  # fmt: skip
def test_urls_that_are_refused_when_the_job_is_submitted(url: str) -> None:
    with pytest.raises(ValidationFailed):
        check_url(url, private=False)


def test_private_ones_pass_where_the_settings_allow_them() -> None:
    assert check_url("http://127.0.0.1:8080/x", private=True).port == 8080
    assert check_url("https://example.com/x?y=1", private=False).hostname == "example.com"


@pytest.mark.parametrize("host", ["localhost", "0x7f000001", "2130706433", "127.1", "0177.0.0.1"])
async def test_names_and_odd_spellings_of_inner_addresses_are_refused_when_they_resolve(host: str) -> None:
    with pytest.raises((AddressForbidden, SendFailed, ValidationFailed)):
        await post(f"http://{host}:9/", {}, b"", private=False, timeout_s=5)


async def test_one_inner_address_among_outer_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    async def both(*args: Any, **kwargs: Any) -> list[Any]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("1.1.1.1", 80)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 80)),
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", both)
    with pytest.raises(AddressForbidden, match="private"):
        await outbound.resolve("example.com", 80, private=False)


async def serve(answer: Callable[[bytes], bytes]) -> tuple[asyncio.Server, int]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(head))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


async def test_a_name_is_resolved_once_and_the_checked_address_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heads: list[bytes] = []

    def answer(head: bytes) -> bytes:
        heads.append(head)
        return b"HTTP/1.1 204 No Content\r\n\r\n"

    server, port = await serve(answer)
    lookups = []
    loop = asyncio.get_running_loop()
    real = loop.getaddrinfo

    async def rebinding(host: str, *args: Any, **kwargs: Any) -> list[Any]:
        if host != "rebind.example":
            return await real(host, *args, **kwargs)
        lookups.append(host)
        return [
            (
                socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                ("127.0.0.1" if len(lookups) == 1 else "127.0.0.9", port),
            )
        ]

    monkeypatch.setattr(loop, "getaddrinfo", rebinding)
    async with server:
        status = await post(
            f"http://rebind.example:{port}/a?b=c", {"webhook-id": "x"}, b"{}", private=True, timeout_s=5
        )
    assert (status, len(lookups)) == (204, 1)
    assert heads[0].startswith(b"POST /a?b=c HTTP/1.1\r\nHost: rebind.example:%d\r\n" % port)
    assert b"\r\nwebhook-id: x\r\n" in heads[0]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\n\r\n", 302),
        (b"nonsense\r\n\r\n", None),
        (b"", None),
        (b"x" * 100_000, None),
    ],
)
async def test_answers_of_all_kinds(data: bytes, expected: int | None) -> None:
    server, port = await serve(lambda head: data)
    async with server:
        sent = post(f"http://127.0.0.1:{port}/", {}, b"", private=True, timeout_s=5)
        if expected is None:
            with pytest.raises(SendFailed):
                await sent
        else:
            assert await sent == expected


async def test_a_receiver_that_never_answers_is_given_up() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(SendFailed, match="within"):
            await post(f"http://127.0.0.1:{port}/", {}, b"", private=True, timeout_s=0.2)


async def test_headers_that_would_split_the_request_are_refused() -> None:
    with pytest.raises(ValidationFailed):
        await post("http://127.0.0.1:9/", {"a": "b\r\nc: d"}, b"", private=True, timeout_s=1)
