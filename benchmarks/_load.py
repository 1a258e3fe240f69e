"""HTTP clients for measuring: one request to its first byte, one connection kept alive, and wrk."""

from __future__ import annotations

import http.client
import json
import re
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


@dataclass(frozen=True)
class Answer:
    """One HTTP answer; ``first_byte_ms`` from before the connection is opened to the answer's head."""

    status: int
    first_byte_ms: float
    headers: dict[str, str]
    body: bytes


def request(
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 60.0,
) -> Answer:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        started = time.perf_counter()
        connection.request(method, path, body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        first = (time.perf_counter() - started) * 1000
        data = response.read()
        return Answer(response.status, first, {k.lower(): v for k, v in response.getheaders()}, data)
    finally:
        connection.close()


def one_connection(address: str, head: Mapping[str, str], path: str, body: bytes, count: int) -> list[float]:
    """Milliseconds of ``count`` requests on one connection to ``unix:PATH`` or ``tcp:HOST:PORT``.

    A plain blocking socket, the same for every address, so that only the server differs.
    """
    scheme, _, rest = address.partition(":")
    if scheme == "unix":
        link = socket.socket(socket.AF_UNIX)
        link.connect(rest)
    else:
        host, _, port = rest.rpartition(":")
        link = socket.create_connection((host, int(port)))
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.settimeout(30)
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in head.items()]
    raw = ("\r\n".join([*lines, f"Content-Length: {len(body)}"]) + "\r\n\r\n").encode() + body
    times: list[float] = []
    with link:
        for _ in range(count):
            started = time.perf_counter()
            link.sendall(raw)
            _read_answer(link)
            times.append((time.perf_counter() - started) * 1000)
    return times


def _read_answer(link: socket.socket) -> None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = link.recv(65536)
        if not more:
            raise ConnectionError(f"the server closed the connection: {data[:200]!r}")
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise RuntimeError(f"not 200: {data[:500]!r}")
    match = re.search(rb"(?i)content-length: *(\d+)", head)
    if match is None:
        raise RuntimeError("an answer without Content-Length is not measured here")
    while len(rest) < int(match[1]):
        rest += link.recv(65536)


def wrk(
    url: str, connections: int, seconds: float, body: str, headers: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run wrk with a JSON POST: requests per second, p50 and p99 in ms, and failures."""
    lines = ['wrk.method = "POST"', f"wrk.body = {json.dumps(body)}"]
    for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
        lines.append(f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}")
    # The key goes into a file of our own (mode 0600), not into the command line.
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write("\n".join(lines))
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "--latency"]
        done = subprocess.run(
            [*command, "-s", script.name, url],
            capture_output=True,
            text=True,
            timeout=seconds + 60,
            check=True,
        )
    return parse_wrk(done.stdout)


def parse_wrk(text: str) -> dict[str, Any]:
    """The numbers in wrk's report."""
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    if rate is None:
        raise RuntimeError(f"wrk said: {text}")
    found: dict[str, Any] = {"requests_per_s": float(rate[1])}
    for percentile in (50, 99):
        match = re.search(rf"{percentile}%\s+([\d.]+)(us|ms|s|m)\b", text)
        found[f"p{percentile}_ms"] = round(float(match[1]) * _UNITS[match[2]], 3) if match else None
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    lost = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    found["failed"] = (int(bad[1]) if bad else 0) + (sum(int(n) for n in lost.groups()) if lost else 0)
    return found


def summary(values: Sequence[float]) -> dict[str, float | int]:
    """Count, median, p99 and the largest, in the unit of ``values``."""
    ordered = sorted(values)
    last = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return {
        "count": len(ordered),
        "p50": round(statistics.median(ordered), 3),
        "p99": round(last, 3),
        "max": round(ordered[-1], 3),
    }


def free_ports(count: int, first: int = 6400, last: int = 9999) -> list[int]:
    """Ports below 10000 (higher ones belong to Ray's workers) on which nobody listens now."""
    found: list[int] = []
    for port in range(first + int(time.time()) % 500, last):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports below 10000")


def root() -> Path:
    """The repository."""
    return Path(__file__).resolve().parents[1]
