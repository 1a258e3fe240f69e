"""How long the client goes on: by time, not only by the number of tries."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from headrace.errors import BlobsUnavailable, ControlAway, DeadlineExceeded, RequestError, StoreUnavailable
from headrace.sdk import manage, transport
from headrace.sdk.client import Client
from headrace.sdk.job import POLL_MARGIN_S, STREAM_TRIES, Job


class Restarting(BaseHTTPRequestHandler):
    """Says "not now" for some requests, without asking for patience."""

    protocol_version = "HTTP/1.1"
    left = 0
    asked = 0
    hung = threading.Event()
    hangs_after = 10**9
    """From this request on there is no answer at all."""
    value = b"1"
    error: RequestError = ControlAway("just started.", retry_after=0)
    heard: ClassVar[list[tuple[str | None, str | None]]] = []
    """Of each request: its key, and whether it may run without the store."""

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        type(self).asked += 1
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.heard.append((self.headers["Idempotency-Key"], self.headers["X-Headrace-If-Unstored"]))
        if type(self).asked > type(self).hangs_after:
            type(self).hung.wait(10)
            self.close_connection = True
            return
        type(self).left -= 1
        if type(self).left >= 0:
            status, kind = 503, "application/problem+json"
            data = transport.json.dumps(type(self).error.to_problem()).encode()
        else:
            status, kind, data = 200, "application/json", type(self).value
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
        Restarting.hung, Restarting.hangs_after, Restarting.value = threading.Event(), 10**9, b"1"
        Restarting.error, Restarting.asked = ControlAway("just started.", retry_after=0), 0
        Restarting.heard.clear()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        Restarting.hung.set()
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


def test_when_the_time_is_up_what_was_answered_before_is_told(server: str) -> None:
    Restarting.left, Restarting.asked, Restarting.hangs_after = 10**6, 0, 2
    with Client(server, "key") as client:
        with pytest.raises(ControlAway, match="just started"):
            client.request("GET", "/api/v1/status", timeout=1)
        Restarting.asked = 0
        with pytest.raises(DeadlineExceeded, match="the last was: just started"):
            client.request("POST", "/api/v1/deployments", timeout=1)
        # Nothing was answered at all.
        Restarting.asked = 10
        with pytest.raises(DeadlineExceeded, match=r"no answer within the client's timeout\. Give"):
            client.request("GET", "/api/v1/status", timeout=0.3)


def test_who_waits_for_a_deployment_is_told_that_the_platform_is_away(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manage, "AWAY_POLL_S", 0.01)
    Restarting.left, Restarting.asked = transport.MAX_ATTEMPTS + 3, 0
    Restarting.value = b'{"id": "d", "state": "succeeded", "endpoints": []}'
    told: list[dict[str, object]] = []
    with Client(server, "key", retry_for=0.0) as client:
        running = {"id": "d", "state": "running", "endpoints": []}
        client.wait_deployment(running, on_progress=told.append)
    assert [doc["state"] for doc in told] == ["running", "running", "succeeded"]
    assert ["away" in doc for doc in told] == [False, True, False]


@pytest.mark.parametrize("error", [StoreUnavailable("away.", retry_after=0), BlobsUnavailable("away.")])
def test_what_a_store_that_is_away_has_refused_is_sent_again_under_its_key(
    server: str, error: RequestError
) -> None:
    Restarting.left, Restarting.error = 2, error
    with Client(server, "key", retry_for=30.0) as client:
        assert client.call("anything", timeout=30) == 1
        heard = Restarting.heard[:]
        assert [may for _, may in heard] == ["run"] * 3
        assert len({key for key, _ in heard}) == 1
        # What is to run once may run without the store only while the store cannot have it.
        Restarting.left = 1
        assert client.call("anything", timeout=30, idempotent=False) == 1
        assert [may for _, may in Restarting.heard[3:]] == ["run", None]
        assert len({key for key, _ in Restarting.heard[3:]}) == 1


def test_a_store_that_is_away_for_longer_is_told(server: str) -> None:
    Restarting.left, Restarting.error = 10**6, StoreUnavailable("away.", retry_after=0)
    with Client(server, "key", retry_for=0.2) as client:
        with pytest.raises(StoreUnavailable):
            client.submit("anything")
        assert len(Restarting.heard) > 1
        Restarting.heard.clear()
        # Nothing says whether it was stored.
        answer = client.request("POST", "/api/v1/jobs", body=b"{}", repeatable=False)
        assert (answer.status, len(Restarting.heard)) == (503, 1)
        answer.close()


def test_a_result_is_waited_for_while_the_store_is_away(server: str) -> None:
    Restarting.left, Restarting.error = 3, StoreUnavailable("away.", retry_after=0)
    Restarting.value = b'{"id": "j", "state": "succeeded", "output": 7}'
    # No time to repeat within one request: the wait itself goes on.
    with Client(server, "key", retry_for=0.0) as client:
        assert Job(client, {"id": "j"}).result(30) == 7
        Restarting.left = 2
        assert Job(client, {"id": "j"}).result() == 7


def test_a_result_is_not_waited_for_longer_than_was_asked_for(server: str) -> None:
    Restarting.left, Restarting.error = 10**6, StoreUnavailable("away.", retry_after=0.8)
    # Were each request repeated for its whole time, this would take that long.
    with Client(server, "key", retry_for=60.0) as client:
        started = time.monotonic()
        with pytest.raises(TimeoutError, match="away") as late:
            Job(client, {"id": "j"}).result(0.3)
        assert isinstance(late.value.__cause__, StoreUnavailable)
        Restarting.hangs_after = 0
        with pytest.raises(TimeoutError, match="no answer"):
            Job(client, {"id": "j"}).result(0.3)
        assert time.monotonic() - started < POLL_MARGIN_S


def test_a_stream_is_waited_for_while_the_store_is_away(server: str) -> None:
    Restarting.left, Restarting.error = STREAM_TRIES + 2, StoreUnavailable("away.", retry_after=0)
    Restarting.value = (
        b"""{"item": 1, "attempt": 1, "seq": 0}\n{"end": {"state": "succeeded", "error": null}}\n"""
    )
    with Client(server, "key", retry_for=0.0) as client:
        assert list(Job(client, {"id": "j"}).stream()) == [1]
    Restarting.left = 10**6
    with Client(server, "key", timeout=0.3, retry_for=0.0) as client, pytest.raises(StoreUnavailable):
        list(Job(client, {"id": "j"}).stream())
