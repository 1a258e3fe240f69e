"""An S3 server of a test module's own, on loopback."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

START_WITHIN_S = 30.0
END_WITHIN_S = 10.0


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def s3_port() -> Iterator[int]:
    """Its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + START_WITHIN_S
        while not _answers(port):
            assert server.poll() is None, "the S3 server ended"
            assert time.monotonic() < end, "the S3 server did not start in time"
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        try:
            server.wait(END_WITHIN_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(END_WITHIN_S)
