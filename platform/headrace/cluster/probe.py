"""One small HTTP GET, for the supervisor to see whether its own gateway answers."""

from __future__ import annotations

import asyncio
import contextlib

MAX_BODY = 1 << 20


async def get(host: str, port: int, path: str, *, key: str = "", timeout_s: float = 2.0) -> tuple[int, bytes]:
    """Status and body. Raises ``OSError``, ``TimeoutError`` or ``ValueError`` (not an HTTP answer)."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - where to reach a wildcard
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            name = f"[{host}]" if ":" in host else host
            headers = f"GET {path} HTTP/1.1\r\nHost: {name}:{port}\r\nConnection: close\r\n"
            if key:
                headers += f"Authorization: Bearer {key}\r\n"
            writer.write(f"{headers}\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            words = head.split(maxsplit=2)
            if len(words) < 2 or not words[1].isdigit():
                raise ValueError(f"not HTTP: {head[:60]!r}")
            body = await reader.read(MAX_BODY)
        except asyncio.IncompleteReadError as error:
            raise ConnectionResetError("closed before an answer") from error
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    return int(words[1]), body
