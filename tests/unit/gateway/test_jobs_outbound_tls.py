"""Certificates of webhooks' receivers are checked against the name in the URL, whatever address it has."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from headrace.errors import SettingsError
from headrace.gateway.jobs.outbound import SendFailed, post, tls_context

NAME = "hook.example"


def _openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority (``ca.crt``), and certificates of it for a name and for an address."""
    folder = tmp_path_factory.mktemp("tls")
    new = ("req", "-newkey", "rsa:2048", "-nodes", "-keyout")
    ca = str(folder / "ca.crt"), str(folder / "ca.key")
    _openssl(*new, ca[1], "-x509", "-days", "2", "-subj", "/CN=an authority", "-out", ca[0])
    for file, alt in (("name", f"DNS:{NAME}"), ("address", "IP:127.0.0.1")):
        start = str(folder / file)
        Path(f"{start}.ext").write_text(f"subjectAltName={alt}\n")
        _openssl(*new, f"{start}.key", "-subj", "/CN=receiver", "-out", f"{start}.csr")
        _openssl(
            *("x509", "-req", "-days", "2", "-in", f"{start}.csr", "-CA", ca[0], "-CAkey", ca[1]),
            *("-CAcreateserial", "-extfile", f"{start}.ext", "-out", f"{start}.crt"),
        )
    return folder


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name is this machine's."""
    real = asyncio.BaseEventLoop.getaddrinfo

    async def here(self: Any, host: Any, port: Any, **more: Any) -> Any:
        if str(host).endswith(".example"):
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        return await real(self, host, port, **more)

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", here)


@asynccontextmanager
async def receiver(folder: Path, certificate: str) -> AsyncIterator[tuple[int, list[str | None]]]:
    """A TLS server that takes everything: its port, and the names that clients asked it for."""
    asked: list[str | None] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / f"{certificate}.crt", folder / f"{certificate}.key")
    context.sni_callback = lambda _, name, __: asked.append(name)
    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1], asked


async def send(host: str, port: int, tls: ssl.SSLContext) -> int:
    return await post(f"https://{host}:{port}/", {}, b"{}", private=True, timeout_s=5, tls=tls)


async def test_an_authority_of_the_settings_is_trusted_and_the_name_is_asked_for(folder: Path) -> None:
    async with receiver(folder, "name") as (port, asked):
        assert await send(NAME, port, tls_context(str(folder / "ca.crt"))) == 204
    assert asked == [NAME]


async def test_so_is_one_of_the_system(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiver(folder, "name") as (port, _):
        with pytest.raises(SendFailed, match="certificate verify failed"):
            await send(NAME, port, tls_context())
        monkeypatch.setenv("SSL_CERT_FILE", str(folder / "ca.crt"))
        assert await send(NAME, port, tls_context()) == 204


@pytest.mark.parametrize(("certificate", "host"), [("name", "other.example"), ("address", NAME)])
async def test_a_certificate_for_something_else_is_refused_also_for_the_address_itself(
    folder: Path, certificate: str, host: str
) -> None:
    async with receiver(folder, certificate) as (port, _):
        with pytest.raises(SendFailed, match=f"not valid for '{host}'"):
            await send(host, port, tls_context(str(folder / "ca.crt")))


async def test_an_address_in_the_url_needs_a_certificate_for_it(folder: Path) -> None:
    tls = tls_context(str(folder / "ca.crt"))
    async with receiver(folder, "address") as (port, _):
        assert await send("127.0.0.1", port, tls) == 204
    async with receiver(folder, "name") as (port, _):
        with pytest.raises(SendFailed, match="certificate verify failed"):
            await send("127.0.0.1", port, tls)


async def test_a_file_that_holds_no_authority_is_named(tmp_path: Path) -> None:
    for content in (None, "no certificate"):
        file = tmp_path / "ca.pem"
        if content is not None:
            file.write_text(content)
        with pytest.raises(SettingsError, match=r"webhook_ca .*ca\.pem"):
            tls_context(str(file))
