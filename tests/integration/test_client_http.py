"""The client against a real HTTP server that misbehaves: retries, streams, problems, deadlines."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import headrace
import pytest
from headrace.errors import (
    ControlAway,
    DeadlineExceeded,
    EndpointFailed,
    EndpointNotFound,
    GatewayStopping,
    HandlerFailed,
    InstanceDied,
    NotRunning,
    QueueFull,
    RequestError,
    StorageFull,
    StoreUnavailable,
    UsageError,
    ValidationFailed,
)
from headrace.sdk import background, manage
from headrace.sdk.client import Client, default_client
from headrace.sdk.inspect import inspect_file

Answer = bytes | None


class Request:
    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        self.method, self.path, self.headers, self.body = method, path, headers, body


class Server:
    """Speaks HTTP/1.1 keep-alive, one thread per connection; ``answer`` gives raw bytes, None hangs up."""

    def __init__(self, answer: Callable[[Request], Answer]) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.connections = 0
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listen(0)

    def _listen(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._start(self._accept, self._listener)

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args)
        thread.start()
        self._threads.append(thread)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as reader, contextlib.suppress(OSError):
            while request := self._read(reader):
                self.requests.append(request)
                answer = self.answer(request)
                if answer is None:
                    connection.shutdown(socket.SHUT_RDWR)
                    return
                connection.sendall(answer)
                if b"Connection: close" in answer:
                    connection.shutdown(socket.SHUT_RDWR)
                    return

    @staticmethod
    def _read(reader: BinaryIO) -> Request | None:
        """The next request; None when the connection ended, also in the middle of one (a caller gave up)."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (line := reader.readline()):
                return None
            head += line
        first, *fields = head.decode().split("\r\n")[:-2]
        method, path, _ = first.split()
        headers = {
            name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)
        }
        size = int(headers.get("content-length", 0))
        body = reader.read(size)
        return Request(method, path, headers, body) if len(body) == size else None

    def drop(self) -> None:
        """Close all connections and listen no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def again(self) -> None:
        """Listen on the same port again."""
        self._listen(self.port)

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.drop()
        for thread in self._threads:
            thread.join(5)


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[Request], Answer]], Server]]:
    servers: list[Server] = []

    def start(answer: Callable[[Request], Answer]) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


Serve = Callable[[Callable[[Request], Answer]], Server]


def reply(body: Any, status: int = 200, kind: str = "application/json", extra: str = "") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n{extra}\r\n"
    return head.encode() + data


def problem(error: RequestError, extra: str = "") -> bytes:
    return reply(error.to_problem("r1"), error.status, "application/problem+json", extra)


def chunked(kind: str, *pieces: bytes, end: bool = True) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + body + (b"0\r\n\r\n" if end else b"")


def client(server: Server, **options: Any) -> Client:
    return Client(server.url, "hr_key", **{"timeout": 10.0, **options})


def echo(request: Request) -> bytes:
    value = {"body": request.body.decode("latin-1"), "type": request.headers.get("content-type")}
    return reply({**value, "path": request.path})


def test_input_goes_one_way(serve: Serve) -> None:
    server = serve(echo)
    with client(server) as c:
        assert json.loads(c.call("x", a=1, b=[2])["body"]) == {"a": 1, "b": [2]}
        assert json.loads(c.call("x", {"a": 1})["body"]) == {"a": 1}
        assert json.loads(c.call("x", json={"timeout": 1})["body"]) == {"timeout": 1}
        assert json.loads(c.call("x", json=None)["body"]) is None
        assert c.call("x") == {"body": "", "type": None, "path": "/e/x"}
        assert c.call("x@3")["path"] == "/e/x@3"
        raw = c.call("x", b"\x00\xff")
        assert (raw["body"], raw["type"]) == ("\x00\xff", "application/octet-stream")
        assert c.call("x", data=b"i", content_type="image/png")["type"] == "image/png"
    assert server.connections == 1
    assert {r.headers["authorization"] for r in server.requests} == {"Bearer hr_key"}
    assert len({r.headers["idempotency-key"] for r in server.requests}) == len(server.requests)
    for wrong in ({"json": 1, "a": 2}, {"data": b"", "json": 1}):
        with pytest.raises(UsageError, match="one way"):
            client(server).call("x", **wrong)
    with pytest.raises(UsageError, match="one way"):
        client(server).call("x", 1, 2)
    with pytest.raises(UsageError, match="JSON"):
        client(server).call("x", a=object())


def test_answers_are_decoded(serve: Serve) -> None:
    answers = {"/e/bytes": reply(b"\x01", kind="application/octet-stream"), "/e/none": reply(b"", 204, "")}
    server = serve(lambda r: answers.get(r.path, reply([1, None])))
    with client(server) as c:
        assert c.call("json") == [1, None]
        assert c.call("bytes") == b"\x01"
        assert c.call("none") == b""
        assert c.request("GET", "/e/api/x?y=1").json() == [1, None]
    assert server.requests[-1].path == "/e/api/x?y=1"
    assert "idempotency-key" not in server.requests[-1].headers


@pytest.mark.parametrize(
    "error",
    [
        EndpointNotFound("no endpoint 'helo'.", hint="Did you mean 'hello'?"),
        ValidationFailed("x: wrong", errors=[{"loc": ["x"], "msg": "wrong", "type": "int"}]),
        HandlerFailed("ValueError: no", exception="ValueError"),
        EndpointFailed("import failed"),
    ],
)
def test_problems_come_back_as_their_types(serve: Serve, error: RequestError) -> None:
    server = serve(lambda _: problem(error))
    with client(server) as c, pytest.raises(type(error)) as caught:
        c.call("x")
    assert caught.value.message == error.message
    assert caught.value.hint == error.hint
    assert caught.value.extra["request_id"] == "r1"
    assert error.extra.items() <= caught.value.extra.items()
    assert len(server.requests) == 1


def test_other_errors_show_what_was_answered(serve: Serve) -> None:
    server = serve(lambda _: reply(b"<h1>teapot</h1>", 418, "text/html"))
    with client(server) as c, pytest.raises(RequestError, match="HTTP 418: <h1>teapot"):
        c.call("x")


def test_a_connection_that_dies_is_retried_with_the_same_key(serve: Serve) -> None:
    left = [2]

    def answer(request: Request) -> Answer:
        left[0] -= 1
        return None if left[0] >= 0 else echo(request)

    server = serve(answer)
    with client(server) as c:
        assert json.loads(c.call("x", a=1)["body"]) == {"a": 1}
    assert len(server.requests) == 3
    assert len({r.headers["idempotency-key"] for r in server.requests}) == 1


def test_not_idempotent_is_never_sent_twice(serve: Serve) -> None:
    server = serve(lambda _: None)
    with client(server) as c, pytest.raises(InstanceDied, match="died under the request"):
        c.call("x", idempotent=False)
    assert len(server.requests) == 1


def test_retries_have_an_end(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.sdk.transport._backoff", lambda attempt: 0.001)
    server = serve(lambda _: None)
    with client(server) as c, pytest.raises(InstanceDied):
        c.call("x")
    assert len(server.requests) == 10


def test_a_restarted_gateway_is_found_again(serve: Serve) -> None:
    server = serve(echo)
    with client(server) as c:
        c.call("x")
        server.drop()
        timer = threading.Timer(0.3, server.again)
        timer.start()
        try:
            assert c.call("x", a=1)["path"] == "/e/x"
        finally:
            timer.join()


def test_stale_connections_cost_no_wait(serve: Serve) -> None:
    server = serve(echo)
    with client(server) as c:
        c.call("x")
        server.drop()
        server.again()
        c.call("x")
    assert server.connections == 2


def test_nobody_there_is_said_soon() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    with pytest.raises(NotRunning, match=rf"no platform answers at http://127.0.0.1:{port}"):
        Client(f"http://127.0.0.1:{port}", "k").call("x")
    for url in ("ftp://x", "localhost:8700", "http://", "http://x:y"):
        with pytest.raises(UsageError):
            Client(url, "k")


def head(status: int) -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode()


def test_a_deploy_while_control_restarts_waits_for_it(serve: Serve, tmp_path: Path) -> None:
    """The first question is a HEAD, whose answer cannot say why."""
    (tmp_path / "b.zip").write_bytes(b"zip")
    heads = [head(503), head(404)]
    states = [problem(ControlAway("away"), "Retry-After: 0\r\n"), reply({})]

    def answer(request: Request) -> bytes:
        if request.method == "HEAD":
            return heads.pop(0)
        return states.pop(0) if request.path.endswith("/status") else reply({}, 201)

    with client(serve(answer)) as c:
        assert c.put_bundle(tmp_path / "b.zip", "0" * 64)
    assert (heads, states) == ([], [])


def test_a_deploy_that_cannot_even_begin_says_why(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "b.zip").write_bytes(b"zip")

    def answer(request: Request) -> bytes:
        return head(503) if request.method == "HEAD" else problem(StorageFull("no space is left"))

    with client(serve(answer)) as c, pytest.raises(StorageFull, match="no space"):
        c.put_bundle(tmp_path / "b.zip", "0" * 64)


RUNNING = {"id": "d1", "state": "running", "endpoints": []}


def test_a_deployment_is_followed_over_a_restart(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manage, "AWAY_POLL_S", 0.01)
    answers = [reply(RUNNING), problem(ControlAway("away")), reply({**RUNNING, "state": "succeeded"})]
    server = serve(lambda request: answers.pop(0))
    with client(server) as c:
        assert c.wait_deployment(dict(RUNNING))["state"] == "succeeded"
    assert answers == []


def test_a_platform_that_does_not_come_back_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manage, "AWAY_S", 0.05)
    monkeypatch.setattr(manage, "AWAY_POLL_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}", "k") as c, pytest.raises(NotRunning):
        c.wait_deployment(dict(RUNNING), timeout=3600.0)


@pytest.mark.parametrize("kind", [QueueFull, ControlAway, GatewayStopping])
def test_not_now_is_asked_again_after_retry_after(serve: Serve, kind: type[RequestError]) -> None:
    left = [2]

    def answer(request: Request) -> bytes:
        left[0] -= 1
        return problem(kind("later"), "Retry-After: 0\r\n") if left[0] >= 0 else reply("done")

    server = serve(answer)
    with client(server) as c:
        assert c.call("x") == "done"
    assert len({r.headers["idempotency-key"] for r in server.requests}) == 1


def test_what_may_have_run_is_not_sent_again_when_a_gateway_stops(serve: Serve) -> None:
    server = serve(lambda _: problem(GatewayStopping("stops"), "Retry-After: 0\r\n"))
    with client(server) as c, pytest.raises(GatewayStopping):
        c.call("x", idempotent=False)
    assert len(server.requests) == 1


def pieces_of_a_job(*pieces: bytes) -> bytes:
    """A stream that breaks off."""
    data = chunked("application/x-ndjson", *pieces, end=False)
    return data.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)


def test_the_stream_of_a_job_goes_on_at_another_gateway(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.sdk.job.BROKEN_PAUSE_S", 0.0)
    stops = json.dumps({"error": GatewayStopping("stops").to_problem()}).encode() + b"\n"
    end = b'{"end":{"state":"succeeded","error":null}}\n'
    streams = [
        pieces_of_a_job(b'{"attempt":1,"seq":0,"item":"a"}\n', stops),
        pieces_of_a_job(b'{"attempt":1,"seq":1,"item":"b"}\n'),
        chunked("application/x-ndjson", b'{"attempt":1,"seq":2,"item":"c"}\n', end),
    ]
    job = reply({"id": "j", "state": "running"})
    server = serve(lambda r: streams.pop(0) if "/stream" in r.path else job)
    with client(server) as c:
        assert list(c.job("j").stream()) == ["a", "b", "c"]
    asked = [r.path.partition("after=")[2] for r in server.requests if "/stream" in r.path]
    assert asked == ["", "1.0", "1.1"]


def test_who_streams_a_job_sees_a_new_attempt_and_outlasts_the_store(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.sdk.job.BROKEN_PAUSE_S", 0.0)
    away = json.dumps({"error": StoreUnavailable("away").to_problem()}).encode() + b"\n"
    end = b'{"end":{"state":"succeeded","error":null}}\n'
    pieces = [
        [b'{"attempt":1,"seq":0,"item":"a"}\n', away],
        [b'{"attempt":3,"seq":0,"item":"A"}\n', b'{"attempt":3,"seq":1,"item":"B"}\n', end],
    ]
    streams: list[list[bytes]] = []
    job = reply({"id": "j", "state": "running"})
    server = serve(lambda r: pieces_of_a_job(*streams.pop(0)) if "/stream" in r.path else job)
    with client(server) as c:
        streams += pieces
        assert list(c.job("j").stream(attempts=True)) == [(1, "a"), (3, "A"), (3, "B")]
        streams += pieces
        assert list(c.job("j").stream()) == ["a", "A", "B"]


def test_a_stream_that_always_breaks_off_is_given_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.sdk.job.BROKEN_PAUSE_S", 0.0)
    job = reply({"id": "j", "state": "running"})
    server = serve(lambda r: pieces_of_a_job() if "/stream" in r.path else job)
    with client(server) as c, pytest.raises(InstanceDied):
        list(c.job("j").stream())


def test_a_wait_beyond_the_deadline_is_not_begun(serve: Serve) -> None:
    server = serve(lambda _: problem(QueueFull("full"), "Retry-After: 60\r\n"))
    with client(server) as c, pytest.raises(QueueFull) as caught:
        c.call("x", timeout=5)
    assert caught.value.extra["retry_after"] == 60
    assert len(server.requests) == 1


def test_the_deadline_ends_a_call(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.sdk.client.MARGIN_S", 0.0)
    stop = threading.Event()
    server = serve(lambda _: reply("late") if stop.wait(10) else None)
    with client(server) as c, pytest.raises(DeadlineExceeded):
        c.call("x", timeout=0.2)
    stop.set()
    assert server.requests[0].headers["x-headrace-timeout"] == "0.200"


def test_lines_are_streamed(serve: Serve) -> None:
    pieces = (b'{"a": 1}\n{"a"', b": 2}\n", b"\n3\n")
    server = serve(lambda _: chunked("application/x-ndjson", *pieces))
    with client(server) as c:
        assert list(c.call("x")) == [{"a": 1}, {"a": 2}, 3]
        assert list(c.call("x")) == [{"a": 1}, {"a": 2}, 3]
    assert server.connections == 1


def test_events_are_streamed(serve: Serve) -> None:
    server = serve(
        lambda _: chunked("text/event-stream", b"data: 1\n\n: ping\n\nda", b"ta: [2,\ndata: 3]\n\n")
    )
    with client(server) as c:
        assert list(c.call("x")) == [1, [2, 3]]


@pytest.mark.parametrize("events", [False, True])
def test_a_failure_within_a_stream_is_raised(serve: Serve, events: bool) -> None:
    text = json.dumps(HandlerFailed("ValueError: three").to_problem())
    if events:
        answer = chunked("text/event-stream", b"data: 1\n\n", f"event: error\ndata: {text}\n\n".encode())
    else:
        answer = chunked("application/x-ndjson", b"1\n", f'{{"error": {text}}}\n'.encode())
    server = serve(lambda _: answer)
    with client(server) as c, c.call("x") as stream:
        assert next(stream) == 1
        with pytest.raises(HandlerFailed, match="ValueError: three"):
            next(stream)


def test_an_item_named_error_is_an_item(serve: Serve) -> None:
    server = serve(
        lambda _: chunked("application/x-ndjson", b'{"error": "mine"}\n{"error": {"type": "x"}}\n')
    )
    with client(server) as c:
        assert list(c.call("x")) == [{"error": "mine"}, {"error": {"type": "x"}}]


def test_a_stream_that_breaks_off_is_an_error(serve: Serve) -> None:
    answer = chunked("application/x-ndjson", b"1\n", end=False).replace(
        b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1
    )
    server = serve(lambda _: answer)
    with client(server) as c, c.call("x") as stream:
        assert next(stream) == 1
        with pytest.raises(InstanceDied, match="before the answer was complete"):
            next(stream)


def test_an_answer_that_breaks_off_is_an_error(serve: Serve) -> None:
    server = serve(lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\nhalf")
    with client(server) as c, pytest.raises(InstanceDied):
        c.call("x")


def test_leaving_a_stream_closes_its_connection(serve: Serve) -> None:
    def answer(request: Request) -> Answer:
        if request.path == "/e/y":
            return reply("fine")
        return chunked("application/x-ndjson", b"1\n", end=False)

    server = serve(answer)
    with client(server) as c:
        with c.call("x") as stream:
            assert next(stream) == 1
        assert c.call("y") == "fine"
    assert server.connections == 2


def test_the_admin_key_of_this_machine_goes_to_loopback_only(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADRACE_API_KEY", raising=False)
    monkeypatch.setenv("HEADRACE_DATA_DIR", str(tmp_path))
    (tmp_path / "admin.key").write_text("hr_admin\n")
    server = serve(echo)
    Client(server.url).call("x")
    assert server.requests[-1].headers["authorization"] == "Bearer hr_admin"
    assert "Authorization" not in Client("http://192.0.2.1:8700")._transport._headers
    assert "Authorization" not in Client("http://example.com")._transport._headers
    monkeypatch.setenv("HEADRACE_API_KEY", "hr_env")
    Client(server.url).call("x")
    assert server.requests[-1].headers["authorization"] == "Bearer hr_env"
    Client(server.url, "hr_given").call("x")
    assert server.requests[-1].headers["authorization"] == "Bearer hr_given"


@headrace.endpoint
def add(a: int, b: int = 1) -> int:
    return a + b


@headrace.endpoint
def size(data: bytes) -> int:
    return len(data)


@pytest.fixture
def remote(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that runs `add`, behind the environment's address."""

    def answer(request: Request) -> Answer:
        if request.path == "/e/size":
            return reply([len(request.body), request.headers["content-type"]])
        given = json.loads(request.body)
        if given["a"] < 0:
            return problem(HandlerFailed("negative"))
        return reply(given["a"] + given.get("b", 1))

    server = serve(answer)
    monkeypatch.setenv("HEADRACE_URL", server.url)
    monkeypatch.setenv("HEADRACE_API_KEY", "hr_key")
    yield server
    default_client().close()


def test_a_decorated_function_calls_the_platform(remote: Server) -> None:
    assert add.remote(1) == 2
    assert add.remote(1, 5) == 6
    assert add.remote(b=3, a=1) == 4
    assert json.loads(remote.requests[1].body) == {"a": 1, "b": 5}
    assert size.remote(b"123") == [3, "application/octet-stream"]


def test_map_keeps_the_order(remote: Server) -> None:
    assert list(add.map(range(20), concurrency=4)) == list(range(1, 21))
    assert list(add.map([])) == []
    with pytest.raises(HandlerFailed):
        list(add.map([1, -1, 2]))
    with pytest.raises(UsageError, match="from 1 to 32"):
        add.map([1], concurrency=0)


def test_map_takes_inputs_as_results_are_consumed(remote: Server) -> None:
    taken: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            taken.append(len(taken))
            yield taken[-1]

    results = add.map(endless(), concurrency=3)
    assert [next(results) for _ in range(4)] == [1, 2, 3, 4]
    assert len(taken) <= 4 + 3
    results.close()  # type: ignore[attr-defined]


def test_a_cancelled_call_in_the_background_hangs_up(serve: Serve) -> None:
    arrived, stop = threading.Event(), threading.Event()

    def answer(request: Request) -> Answer:
        arrived.set()
        stop.wait(10)
        return None

    server = serve(answer)
    client = Client(server.url, "key")
    job = background.submit(lambda cancel: client.call("add", 1, cancel=cancel))
    assert arrived.wait(10)
    assert job.cancel()
    with pytest.raises(RequestError, match="cancelled"):
        job.result(10)
    stop.set()
    assert job.cancelled()
    assert not job.cancel()
    assert len(server.requests) == 1


class Api:
    """Enough of the management API to deploy to."""

    def __init__(self, state: str = "succeeded") -> None:
        self.state, self.bundles, self.polls = state, set[str](), 0

    def __call__(self, request: Request) -> Answer:
        path = request.path.removeprefix("/api/v1").partition("?")[0]
        if path.startswith("/bundles/"):
            sha = path.rpartition("/")[2]
            if request.method == "PUT":
                self.bundles.add(sha)
                return reply({"sha256": sha}, 201)
            return b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % (200 if sha in self.bundles else 404)
        if path == "/deployments":
            self.request = json.loads(request.body)
            return reply(self._deployment("running"), 202)
        if path == "/deployments/d1":
            self.polls += 1
            if self.polls == 1:
                return problem(ControlAway("restarting"), "Retry-After: 0\r\n")
            return reply(self._deployment("running" if self.polls == 2 else self.state))
        if path == "/endpoints":
            second = "cursor=c1" in request.path
            return reply({"items": [{"name": "b" if second else "a"}], "next": None if second else "c1"})
        return problem(EndpointNotFound("no"))

    def _deployment(self, state: str) -> dict[str, Any]:
        detail = "import failed: boom" if state == "failed" else ""
        return {
            "id": "d1",
            "state": state,
            "endpoints": [{"endpoint": "f", "state": state, "detail": detail}],
        }


@pytest.fixture
def app(tmp_path: Path) -> Path:
    path = tmp_path / "client_app.py"
    path.write_text("import headrace\n@headrace.endpoint\ndef f(x: int) -> int:\n    return x\n")
    return path


def test_deploy_sends_the_bundle_once_and_follows(serve: Serve, app: Path, tmp_path: Path) -> None:
    api = Api()
    server = serve(api)
    seen: list[str] = []
    inspection = inspect_file(app, tmp_path / "out")
    with client(server) as c:
        done = c.deploy(inspection, on_progress=lambda doc: seen.append(doc["state"]))
        assert done["state"] == "succeeded"
        assert api.request["specs"][0]["bundle"] == inspection.bundle.sha256
        assert api.request["verify"] is True
        assert seen == ["running", "succeeded"]
        assert c.deploy(inspection, verify=False)["state"] == "succeeded"
        assert api.request["verify"] is False
        assert [item["name"] for item in c.endpoints()] == ["a", "b"]
        with pytest.raises(EndpointNotFound):
            c.endpoint("zzz")
    assert [r.method for r in server.requests if "/bundles/" in r.path] == ["HEAD", "PUT", "HEAD"]


def test_a_failed_deployment_says_why(serve: Serve, app: Path) -> None:
    server = serve(Api("failed"))
    with client(server) as c:
        with pytest.raises(EndpointFailed, match="f: import failed: boom") as caught:
            c.deploy(app)
        assert caught.value.extra["deployment"]["id"] == "d1"
        assert c.deploy(app, check=False)["state"] == "failed"


def test_threads_share_a_client(serve: Serve) -> None:
    server = serve(echo)
    with client(server) as c:
        results: list[Any] = []

        def work() -> None:
            results.extend(c.call("x", n=n)["path"] for n in range(20))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 20
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
    assert results == ["/e/x"] * 160
    assert server.connections <= 8
