"""SIGKILL of each part of `headrace up`: what DESIGN.md says happens, and nothing is left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket

import psutil
import pytest
from headrace.cluster import supervisor

from tests.e2e.conftest import alive, until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

APP = """
import os
import headrace

@headrace.endpoint(scaling=headrace.Scaling(idle_timeout=300))
def hello(name: str) -> dict:
    return {"hello": name, "pid": os.getpid()}
"""


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def answers(up):
    """The endpoint's answer, or None while there is none."""
    status, value = up.call("hello", {"name": "x"})
    return value if status == 200 and value["hello"] == "x" else None


@pytest.fixture(scope="module")
def deployed(up):
    """The platform with one endpoint that answers."""
    folder = up.folder / "code"
    folder.mkdir(exist_ok=True)
    (folder / "app.py").write_text(APP)
    with contextlib.closing(up.client()) as client:
        deployment = client.deploy(folder / "app.py")
    assert deployment["state"] == "succeeded", deployment
    until(lambda: answers(up))
    return up


def test_no_listener_can_be_reached_from_elsewhere(deployed):
    assert deployed.processes()
    assert supervisor.doctor_ports(deployed.settings) == []


def test_no_secret_in_any_command_line(deployed):
    secrets = [
        (deployed.data / name).read_text().strip() for name in ("admin.key", "cluster.token", "ray.token")
    ]
    for name in ("admin.key", "cluster.token", "ray.token", "up.json"):
        assert (deployed.data / name).stat().st_mode & 0o077 == 0
    for process in deployed.processes():
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            assert not any(secret in line for secret in secrets), line


def test_a_killed_control_comes_back_with_a_higher_epoch(deployed):
    before = deployed.get("/status")
    host = deployed.hosts()[0]["id"]
    pid = until(lambda: answers(deployed))["pid"]
    (control,) = deployed.replica("Control")
    control.kill()
    until(lambda: gone(control.pid))
    # The gateway keeps serving what is routable.
    assert answers(deployed)["pid"] == pid
    after = until(lambda: (s := deployed.get("/status")) and s["epoch"] > before["epoch"] and s)
    assert after["endpoints"] == before["endpoints"]
    # The host and its instances never noticed.
    assert until(deployed.hosts)[0]["id"] == host
    assert until(lambda: answers(deployed))["pid"] == pid


def test_a_killed_host_takes_its_sandboxes_with_it(deployed):
    pid = until(lambda: answers(deployed))["pid"]
    before = until(deployed.hosts)[0]["id"]
    (host,) = deployed.replica("Host")
    sandboxes = [p.pid for p in host.children(recursive=True)]
    assert sandboxes
    host.kill()
    until(lambda: gone(pid))
    until(lambda: all(gone(one) for one in sandboxes))
    until(lambda: (hosts := deployed.hosts()) and len(hosts) == 1 and hosts[0]["id"] != before)
    assert until(lambda: answers(deployed))["pid"] != pid


def test_a_killed_gateway_is_started_again(deployed):
    gateway = until(lambda: deployed.child("gateway-0"))
    gateway.kill()
    until(lambda: (now := deployed.child("gateway-0")) is not None and now.pid != gateway.pid)
    assert until(lambda: answers(deployed))


def test_a_killed_driver_brings_a_new_ray(deployed):
    driver = until(lambda: deployed.child("driver"))
    old = [p.pid for name in ("Control", "Host") for p in deployed.replica(name)]
    driver.kill()
    until(lambda: all(gone(pid) for pid in old))
    until(lambda: (now := deployed.child("driver")) is not None and now.pid != driver.pid)
    assert until(lambda: answers(deployed), 60)


@pytest.mark.parametrize("server", ["raylet/raylet", "gcs_server"])
def test_a_killed_server_of_the_head_brings_a_new_ray(deployed, server):
    driver = until(lambda: deployed.child("driver"))
    old = [p.pid for name in ("Control", "Host") for p in deployed.replica(name)]
    (found,) = [p for p in deployed.processes() if server in p.cmdline()[0]]
    found.kill()
    # Ray alone would go on without it for a minute or for ever, with nobody to replace what ends.
    until(lambda: all(gone(pid) for pid in old))
    until(lambda: (now := deployed.child("driver")) is not None and now.pid != driver.pid)
    until(lambda: {len(deployed.replica(name)) for name in ("Control", "Host")} == {1})
    assert until(lambda: answers(deployed), 60)


def test_after_a_kill_of_everything_the_next_start_cleans_up_and_goes_on(deployed):
    before = deployed.get("/endpoints")["items"]
    old = deployed.processes()
    deployed.process.kill()
    for process in old:
        with contextlib.suppress(psutil.Error):
            process.kill()
    assert deployed.wait() == -signal.SIGKILL
    deployed.start()
    now = {p.pid for p in deployed.processes()}
    assert not [p for p in old if not gone(p.pid) and p.pid in now]
    assert [e["name"] for e in deployed.get("/endpoints")["items"]] == [e["name"] for e in before]
    assert until(lambda: answers(deployed))


def test_a_killed_supervisor_takes_all_with_it(deployed):
    old = deployed.processes()
    deployed.process.kill()
    deployed.wait()
    # Ray's agents try to report the death of their raylet before they end.
    until(lambda: not any(alive(p) for p in old), 120)
    deployed.start()
    assert until(lambda: answers(deployed))


def test_a_second_up_on_the_same_data_directory_is_refused(deployed):
    done = deployed.run("up", *deployed.options)
    assert done.returncode == 1
    assert "held by a running platform" in done.stderr + done.stdout
    assert answers(deployed)


def test_a_taken_port_is_one_line_and_nothing_runs(deployed, tmp_path):
    options = [str(tmp_path / "other") if o == deployed.settings.data_dir else o for o in deployed.options]
    run = f"/tmp/hr-port-{os.getpid()}"
    done = deployed.run("up", *options, HEADRACE_RUN_DIR=run)
    assert done.returncode == 1
    text = (done.stderr + done.stdout).strip()
    assert str(deployed.settings.port) in text
    assert "--port" in text
    assert not (tmp_path / "other" / "up.json").exists()
    assert not os.path.exists(run)


def test_down_ends_in_order_and_leaves_nothing(deployed):
    old = deployed.processes()
    ports = (deployed.settings.port, deployed.settings.control_port, deployed.settings.ray_port)
    assert deployed.stop() == 0
    assert [p for p in old if not gone(p.pid)] == []
    assert deployed.processes() == []
    assert not (deployed.data / "up.json").exists()
    assert not deployed.settings.control_socket.exists()
    assert not deployed.settings.run.exists()
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    again = deployed.run("down", "--data-dir", deployed.settings.data_dir, "--json")
    assert again.returncode == 0
    assert json.loads(again.stdout)["stopped"] is False


def test_it_starts_again_after_down(deployed):
    deployed.start()
    assert (deployed.folder / "up.err").read_text().count(deployed.key) == 1, "shown at the first start only"
    assert until(lambda: answers(deployed))
