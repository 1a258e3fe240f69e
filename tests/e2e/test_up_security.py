"""What user code and strangers can reach of a platform that runs on Ray: nothing."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="own uids for instances need root"),
]

THIEF = """
import os, socket

import headrace

def attempt(what, path):
    try:
        if what == "read":
            return "got " + repr(open(path, "rb").read(50))
        if what == "list":
            return "got " + repr(os.listdir(path)) if os.listdir(path) else "empty"
        if what == "write":
            open(path + "/evil", "w").close()
            return "got it written"
        if what == "move":
            os.rename(path, path + ".mine")
            os.rename(path + ".mine", path)
            return "got it moved"
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(path)
            return "got connected"
    except OSError as error:
        return type(error).__name__

@headrace.endpoint(name="ray-thief")
def thief(attempts: list[list[str]]) -> list[str]:
    return [attempt(what, path) for what, path in attempts]
"""


@pytest.fixture(scope="module")
def thief(up: Any) -> Any:
    file = up.folder / "thief.py"
    file.write_text(THIEF)
    done = up.run("deploy", str(file), HEADRACE_URL=up.url, HEADRACE_API_KEY=up.key)
    assert done.returncode == 0, done.stderr
    yield lambda attempts: up.call("ray-thief", {"attempts": attempts})
    up.request("DELETE", "/api/v1/endpoints/ray-thief")


def sockets_below(path: Path) -> list[Path]:
    return [p for p in path.rglob("*") if p.is_socket()]


def test_user_code_reaches_neither_rays_sockets_nor_its_files(up: Any, thief: Any) -> None:
    ray = up.settings.run / "ray"
    session = (ray / "t" / "session_latest").resolve()
    found = sockets_below(session)
    assert {"raylet", "plasma_store"} <= {p.name for p in found}
    attempts = [["connect", str(p)] for p in found]
    for place in (ray, ray / "t", session, session / "logs", session / "sockets"):
        attempts += [["list", str(place)], ["write", str(place)], ["move", str(place)]]
    for place in (up.settings.run, up.settings.run / "hosts", up.settings.run / "hosts" / "head"):
        attempts += [["list", str(place)], ["write", str(place)]]
    attempts.append(["move", str(up.settings.run / "hosts" / "head")])
    for name in ("admin.key", "cluster.token", "ray.token", "control.db", "up.json", "logs/driver.log"):
        assert (up.data / name).exists()
        attempts.append(["read", str(up.data / name)])
    attempts.append(["connect", str(up.data / "control.sock")])
    attempts += [["read", f"/proc/{p.pid}/environ"] for p in up.processes() if p.uids().real == 0]
    status, answers = thief(attempts)
    assert status == 200
    assert not [pair for pair in zip(attempts, answers, strict=True) if pair[1].startswith("got")]


UNARY = [
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVKeys",
    "/ray.rpc.JobInfoGcsService/AddJob",
    "/ray.rpc.NodeManagerService/ShutdownRaylet",
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.ObjectManagerService/Push",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.serve.ASGIService/HandleRequest",
]


def test_nothing_of_ray_answers_without_its_token(up: Any) -> None:
    refused = set()
    for process in up.processes():
        with contextlib.suppress(psutil.Error):
            for listener in process.net_connections("tcp"):
                if listener.status != psutil.CONN_LISTEN or listener.laddr.port == up.settings.control_port:
                    continue
                with grpc.insecure_channel(f"127.0.0.1:{listener.laddr.port}") as channel:
                    refused |= _refused(channel)
    # Each was found somewhere, and said no: it was really Ray that was asked.
    assert refused == set(UNARY)


def _refused(channel: Any) -> set[str]:
    refused = set()
    for method in UNARY:
        ask = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
        for metadata in ((), (("authorization", "Bearer " + "0" * 64),)):
            with pytest.raises(grpc.RpcError) as error:
                ask(b"", timeout=5, metadata=metadata)
            if error.value.code() is grpc.StatusCode.UNAUTHENTICATED:
                refused.add(method)
            elif error.value.code() is grpc.StatusCode.UNAVAILABLE:  # no gRPC here
                return refused
    return refused


def test_no_secret_is_in_an_argument_or_a_log(up: Any, thief: Any) -> None:
    thief([])
    names = ("admin.key", "cluster.token", "ray.token")
    secrets = [(up.data / name).read_bytes().strip() for name in names]
    assert all(len(secret) > 20 for secret in secrets)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = "\0".join(process.cmdline()).encode()
            assert not [s for s in secrets if s in line], process.pid
    looked = 0
    for root in (up.data, up.settings.run):
        for path in root.rglob("*"):
            if path.name in names or not path.is_file() or path.name.startswith("control.db"):
                continue
            text = path.read_bytes()
            looked += 1
            assert not [s for s in secrets if s in text], path
    assert looked > 10
    # The store keeps the key's hash only.
    assert secrets[0] not in b"".join(p.read_bytes() for p in up.data.glob("control.db*"))
