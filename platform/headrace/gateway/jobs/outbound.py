"""HTTP POST to an address that a user chose: never to one inside, whatever its name resolves to.

The name is resolved once, every address is checked, and the connection goes to a checked one: a name that
resolves differently a moment later changes nothing. Redirects are not followed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from headrace_runtimes.addresses import is_public

from headrace.errors import HeadraceError, SettingsError, ValidationFailed

MAX_URL_BYTES = 2048
MAX_ANSWER_HEAD = 16 << 10


class AddressForbidden(HeadraceError):
    """The address is not one that requests on a user's behalf may go to."""


class SendFailed(HeadraceError):
    """No answer came."""


def check_url(url: str, *, private: bool) -> SplitResult:
    """Raises `ValidationFailed` for what can never be delivered: form, scheme, a literal inner address."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValidationFailed(f"webhook: {error}.", hint="Give an http(s) URL.") from None
    if len(url.encode()) > MAX_URL_BYTES or any(c <= " " or c == "\x7f" for c in url):
        raise ValidationFailed(f"webhook: longer than {MAX_URL_BYTES} bytes, or with control characters.")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValidationFailed("webhook: not an http(s) URL.", hint="For example https://example.com/hook.")
    if parts.username is not None or parts.password is not None:
        raise ValidationFailed("webhook: a URL with credentials.", hint="Check the signature instead.")
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(parts.hostname.partition("%")[0])
        if not private and not is_public(address):
            raise ValidationFailed(
                f"webhook: {parts.hostname} is a private address.",
                hint="Set webhook_private (HEADRACE_WEBHOOK_PRIVATE=1) to allow it.",
            )
    return parts


def tls_context(ca: str = "") -> ssl.SSLContext:
    """What certificates are checked with: the system's authorities (or those in ``SSL_CERT_FILE``), and those
    in the PEM file ``ca`` (blocking). Raises `SettingsError`."""
    context = ssl.create_default_context()
    if ca:
        try:
            context.load_verify_locations(cafile=ca)
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"webhook_ca {ca}: {error}.", hint="Name a PEM file with one or more certificates."
            ) from None
    return context


async def resolve(host: str, port: int, *, private: bool) -> list[str]:
    """Addresses of the host, all of them checked. Raises `AddressForbidden` or `SendFailed`."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise SendFailed(f"{host} does not resolve: {error}.") from None
    addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
    for text in addresses:
        if not private and not is_public(ipaddress.ip_address(text.partition("%")[0])):
            raise AddressForbidden(f"{host} is at {text}, a private address.")
    if not addresses:
        raise SendFailed(f"{host} does not resolve.")
    return addresses


async def post(
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    private: bool,
    timeout_s: float,
    tls: ssl.SSLContext | None = None,
) -> int:
    """The status of the answer. Raises `AddressForbidden`, `SendFailed`, `ValidationFailed`."""
    parts = check_url(url, private=private)
    host = parts.hostname or ""
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    name = f"[{host}]" if ":" in host else host
    netloc = name if parts.port is None else f"{name}:{port}"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [
        f"POST {target} HTTP/1.1",
        f"Host: {netloc}",
        "Connection: close",
        f"Content-Length: {len(body)}",
    ]
    lines += [f"{key}: {value}" for key, value in headers.items()]
    head = "\r\n".join(lines) + "\r\n\r\n"
    if head.count("\r\n") != len(lines) + 1 or "\0" in head or head.count("\n") != head.count("\r\n"):
        raise ValidationFailed("webhook: a control character in its URL or headers.")
    context = (tls or ssl.create_default_context()) if secure else None
    try:
        async with asyncio.timeout(timeout_s):
            addresses = await resolve(host, port, private=private)
            return await _exchange(addresses, port, host, context, head.encode("utf-8") + body)
    except TimeoutError:
        raise SendFailed(f"no answer within {timeout_s:g} s.") from None


async def _exchange(
    addresses: list[str], port: int, host: str, tls: ssl.SSLContext | None, data: bytes
) -> int:
    failure: Exception = OSError("no address")
    for address in addresses[:3]:
        try:
            reader, writer = await asyncio.open_connection(
                address, port, ssl=tls, server_hostname=host if tls else None, limit=MAX_ANSWER_HEAD
            )
        except OSError as error:  # TLS errors are OSErrors, too
            failure = error
            continue
        try:
            writer.write(data)
            line = await reader.readuntil(b"\n")
            words = line.split(None, 2)
            if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
                raise SendFailed("the answer is not HTTP/1.")
            return int(words[1])
        except (OSError, EOFError, asyncio.LimitOverrunError) as error:
            raise SendFailed(f"the connection broke: {str(error) or type(error).__name__}.") from None
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await writer.wait_closed()
    raise SendFailed(f"cannot connect to {host}:{port}: {str(failure) or type(failure).__name__}.")
