"""Ports are checked before anything starts, and what others can reach is seen."""

from __future__ import annotations

import os
import socket

import psutil
import pytest
from headrace.cluster.listeners import RAY_PORTS, Listener, check_ports, free_port, listeners, with_ports
from headrace.config import load_settings
from headrace.errors import PortInUse, SettingsError


def settings(tmp_path, **more):
    return load_settings({"data_dir": str(tmp_path), **more})


def test_ports_of_zero_become_free_ones(tmp_path):
    chosen = with_ports(settings(tmp_path, port=0, control_port=0, ray_port=0))
    assert chosen.ray_port in RAY_PORTS
    assert 0 not in (chosen.port, chosen.control_port)
    check_ports(chosen)
    assert with_ports(chosen) is chosen


@pytest.mark.parametrize(
    ("field", "option"), [("port", "--port"), ("control_port", "--control-port"), ("ray_port", "--ray-port")]
)
def test_a_taken_port_names_its_option_and_holder(tmp_path, field, option):
    chosen = with_ports(settings(tmp_path, port=0, control_port=0, ray_port=0))
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", getattr(chosen, field)))
        taken.listen()
        with pytest.raises(PortInUse) as caught:
            check_ports(chosen)
    text = str(caught.value)
    assert option in text
    assert f"HEADRACE_{field.upper()}" in text
    assert f"pid {os.getpid()}" in text
    assert "\n" not in text


def test_an_existing_cluster_needs_no_ray_port(tmp_path):
    chosen = with_ports(settings(tmp_path, port=0, control_port=0, ray_port=0, address="127.0.0.1:6379"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", chosen.ray_port))
        taken.listen()
        check_ports(chosen)


def test_one_port_for_two_is_refused(tmp_path):
    port = free_port("127.0.0.1")
    with pytest.raises(SettingsError, match="different ports"):
        check_ports(settings(tmp_path, port=port, control_port=port))


def test_an_address_that_is_not_ours_is_refused(tmp_path):
    for host in ("203.0.113.7", "no-such-host.invalid"):
        with pytest.raises(SettingsError, match="--host"):
            check_ports(settings(tmp_path, host=host, port=8123))


@pytest.mark.parametrize(
    ("host", "exposed"),
    [("127.0.0.1", False), ("::1", False), ("::ffff:127.0.0.1", False), ("0.0.0.0", True), ("::", True),
     ("192.0.2.2", True), ("fe80::1%eth0", True)],
)  # fmt: skip
def test_exposed_addresses(host, exposed):
    assert Listener(1, "x", host, 1).exposed is exposed


def test_listeners_of_a_process_are_found():
    with socket.socket() as mine:
        mine.bind(("127.0.0.1", 0))
        mine.listen()
        port = mine.getsockname()[1]
        assert port in {found.port for found in listeners([psutil.Process()])}
