"""The same no-op without a platform: an interpreter that connects, ``runc run`` and ``docker run``."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks._load import free_ports, request

WITHIN_S = 30.0
PAUSE_S = 0.0005
PYTHON = "/usr/bin/python3"
"""In the root file system that containers of the plain image have."""
SERVER = """
import socket
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("127.0.0.1", {port}))
s.listen(16)
while True:
    c, _ = s.accept()
    c.recv(65536)
    c.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: 11\\r\\n"
              b"Connection: close\\r\\n\\r\\n{{\\"echo\\": 1}}")
    c.close()
"""


def interpreter(rounds: int) -> list[float]:
    """Milliseconds from the start of a bare interpreter until it has connected to us."""
    found = []
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(WITHIN_S)
        code = f"import socket; socket.create_connection(('127.0.0.1', {door.getsockname()[1]}))"
        for _ in range(rounds):
            began = time.perf_counter()
            process = subprocess.Popen([sys.executable, "-I", "-c", code])
            link, _ = door.accept()
            found.append((time.perf_counter() - began) * 1000)
            link.close()
            process.wait(WITHIN_S)
    return found


def runc(root: Path, scratch: Path, rounds: int) -> list[float]:
    """Milliseconds from ``runc run`` on this root, read-only, to the first byte of its answer."""
    bundle, state = scratch / "bundle", scratch / "state"
    bundle.mkdir(mode=0o700)
    subprocess.run(["runc", "spec"], cwd=bundle, check=True, timeout=WITHIN_S)
    config = json.loads((bundle / "config.json").read_text())
    config["root"] = {"path": str(root), "readonly": True}
    config["process"]["terminal"] = False
    config["linux"]["namespaces"] = [n for n in config["linux"]["namespaces"] if n["type"] != "network"]
    found = []
    for number in range(rounds):
        (port,) = free_ports(1)
        config["process"]["args"] = _server(port)
        (bundle / "config.json").write_text(json.dumps(config))
        name = f"{scratch.name}-{number}"
        command = ["runc", "--root", str(state)]
        end = [*command, "kill", name, "KILL"]
        found.append(_answer([*command, "run", "--bundle", str(bundle), name], port, end))
    return found


def docker(address: str, image: str, rounds: int) -> list[float]:
    """Milliseconds from ``docker run`` of this image, on the host's network, to the first byte."""
    found = []
    for number in range(rounds):
        (port,) = free_ports(1)
        name = f"bare-{number}"
        command = ["docker", "--host", address]
        run = [*command, "run", "--rm", "--name", name, "--network", "host", "--read-only", image]
        found.append(_answer([*run, *_server(port)], port, [*command, "kill", name]))
    return found


def plain_image(address: str) -> str:
    """The image of a daemon that the docker runtime has put there for the plain base."""
    listed = ["docker", "--host", address, "image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]
    done = subprocess.run(listed, capture_output=True, text=True, check=True, timeout=WITHIN_S)
    return next(line for line in done.stdout.splitlines() if line.startswith("headrace/plain:"))


def _server(port: int) -> list[str]:
    return [PYTHON, "-I", "-c", SERVER.format(port=port)]


def _answer(command: Sequence[str], port: int, end: Sequence[str]) -> float:
    """Run it, ask it again and again until it answers, and end it."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        while time.perf_counter() < began + WITHIN_S:
            with suppress(OSError, http.client.HTTPException):
                if request(port, "POST", "/", b'{"x": 1}', timeout=5.0).status == 200:
                    return (time.perf_counter() - began) * 1000
            if process.poll() is not None:
                break
            time.sleep(PAUSE_S)
    finally:
        subprocess.run(end, capture_output=True, check=False, timeout=WITHIN_S)
        try:
            said = process.communicate(timeout=WITHIN_S)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            said = process.communicate()[1]
    raise RuntimeError(f"{' '.join(command[:3])} does not answer: {said[-2000:]}")
