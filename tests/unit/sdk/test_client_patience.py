"""How long the client goes on: by time, not only by the number of tries."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from headrace.errors import ControlAway
from headrace.sdk import transport
from headrace.sdk.client import Client


class Restarting(BaseHTTPRequestHandler):
    """Says "not now" for some requests, without asking for patience."""

    protocol_version = "HTTP/1.1"
    left = 0
    asked = 0

    def do_POST(self) -> None:
        type(self).asked += 1
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        type(self).left -= 1
        if type(self).left >= 0:
            status, kind, body = 503, "application/problem+json", ControlAway("just started.", retry_after=0)
            data = transport.json.dumps(body.to_problem()).encode()
        else:
            status, kind, data = 200, "application/json", b"1"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Restarting) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_platform_that_starts_again_gets_its_time(server: str) -> None:
    Restarting.left, Restarting.asked = 3 * transport.MAX_ATTEMPTS, 0
    with Client(server, "key", retry_for=30.0) as client:
        assert client.call("anything", timeout=30) == 1
    assert Restarting.asked == 3 * transport.MAX_ATTEMPTS + 1


def test_tries_end_once_that_time_is_over(server: str) -> None:
    Restarting.left, Restarting.asked = 10**6, 0
    with Client(server, "key", retry_for=0.0) as client, pytest.raises(ControlAway):
        client.call("anything", timeout=30)
    assert Restarting.asked == transport.MAX_ATTEMPTS
