"""Accelerators on made-up machines: what is found, and what a container gets of it."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from headrace_runtimes.containers.driver import ContainerSpec, Root
from headrace_runtimes.devices import cdi
from headrace_runtimes.devices.edits import Bind, Edits, Hook, Node, by_name, into_docker, into_oci, join_env
from headrace_runtimes.devices.machine import find
from headrace_runtimes.devices.tree import Tree
from headrace_runtimes.devices.vendors import short_model
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.oci.bundle import Place, configuration
from headrace_runtimes.oci.cgroup import Cgroup
from headrace_runtimes.spec import Network
from hypothesis import given
from hypothesis import strategies as st

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="device nodes are made by root")


def device(root: Path, path: str, major: int, minor: int) -> None:
    at = root / path.lstrip("/")
    at.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(at, stat.S_IFCHR | 0o600, os.makedev(major, minor))


def text(root: Path, path: str, content: str = "") -> Path:
    at = root / path.lstrip("/")
    at.parent.mkdir(parents=True, exist_ok=True)
    at.write_text(content)
    return at


def nvidia(root: Path) -> None:
    """Two H100: the first on the bus has the second node. One of them is partitioned."""
    for minor in (0, 1):
        device(root, f"/dev/nvidia{minor}", 195, minor)
    device(root, "/dev/nvidiactl", 195, 255)
    device(root, "/dev/nvidia-uvm", 510, 0)
    for minor in (1, 2, 12, 13, 40):
        device(root, f"/dev/nvidia-caps/nvidia-cap{minor}", 240, minor)
    for bus, minor in (("0000:04:00.0", 1), ("0000:85:00.0", 0)):
        text(
            root, f"/proc/driver/nvidia/gpus/{bus}/information",
            f"Model: \t\t NVIDIA H100 80GB HBM3\nIRQ: 42\nDevice Minor: \t {minor}\n",
        )  # fmt: skip
    minors = "config 1\nmonitor 2\ngpu1/gi1/access 12\ngpu1/gi1/ci0/access 13\ngpu0/gi2/access 40\n"
    text(root, "/proc/driver/nvidia-caps/mig-minors", minors)
    lib = "/usr/lib/x86_64-linux-gnu"
    real = text(root, f"{lib}/libcuda.so.550.54.15")
    (real.parent / "libcuda.so.1").symlink_to(real.name)
    text(root, f"{lib}/libc.so.6")
    text(root, "/usr/bin/nvidia-smi")


def paths(edits: Edits) -> list[str]:
    return [node.path for node in edits.nodes]


def test_an_ordinary_machine_has_none(tmp_path: Path) -> None:
    machine = find(tmp_path)
    assert machine.accelerators == ()
    assert "/etc/cdi" in machine.why_none()
    assert machine.at_creation() == Edits()
    assert machine.at_assignment((0, 2)) == Edits(), (
        "what was declared there is who declared it to answer for"
    )
    text(tmp_path, "/dev/nvidia0", "a file is no device")
    assert find(tmp_path).accelerators == ()


@needs_root
def test_nvidia_gives_the_assigned_and_nothing_before(tmp_path: Path) -> None:
    nvidia(tmp_path)
    machine = find(tmp_path)
    assert machine.count() == {"H100": 2}
    assert machine.why_none() == ""
    before = machine.at_creation()
    assert before.nodes == ()
    assert {b.target for b in before.binds} == {
        "/headrace/drivers/libcuda.so.1", "/headrace/drivers/libcuda.so.550.54.15", "/usr/bin/nvidia-smi",
    }  # fmt: skip
    assert all(Path(b.source).is_file() and not Path(b.source).is_symlink() for b in before.binds)
    assert before.env == {"LD_LIBRARY_PATH": "/headrace/drivers"}
    first = machine.at_assignment((0,))
    assert paths(first) == [
        "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia1",
        "/dev/nvidia-caps/nvidia-cap12", "/dev/nvidia-caps/nvidia-cap13",
    ]  # fmt: skip
    assert first.env == {"CUDA_VISIBLE_DEVICES": "0"}
    second = machine.at_assignment((1,))
    assert "/dev/nvidia0" in paths(second)
    assert "/dev/nvidia1" not in paths(second)
    assert second.env == {"CUDA_VISIBLE_DEVICES": "0"}, "it sees one, and counts from 0"
    assert second.nodes[2].rule == "c 195:0 rw"
    assert machine.at_assignment((0, 1)).env == {"CUDA_VISIBLE_DEVICES": "0,1"}
    caps = {p for p in paths(machine.at_assignment((0, 1))) if "cap" in p}
    assert not caps & {"/dev/nvidia-caps/nvidia-cap1", "/dev/nvidia-caps/nvidia-cap2"}, "administration"
    assert machine.at_assignment(()) == Edits()
    with pytest.raises(PrepareFailed, match="no accelerator 2 here, only 0 to 1"):
        machine.at_assignment((1, 2))


@needs_root
def test_amd_in_the_order_of_its_topology(tmp_path: Path) -> None:
    device(tmp_path, "/dev/kfd", 234, 0)
    for minor, vendor in ((128, "0x1002"), (129, "0x8086"), (130, "0x1002")):
        device(tmp_path, f"/dev/dri/renderD{minor}", 226, minor)
        text(tmp_path, f"/sys/class/drm/renderD{minor}/device/vendor", vendor + "\n")
    text(tmp_path, "/sys/class/drm/renderD130/device/product_name", "AMD Instinct MI300X OAM")
    assert [paths(a.edits) for a in find(tmp_path).accelerators] == [
        ["/dev/dri/renderD128"], ["/dev/dri/renderD130"],
    ]  # fmt: skip
    nodes = "/sys/class/kfd/kfd/topology/nodes"
    text(tmp_path, f"{nodes}/0/properties", "cpu_cores_count 64\nsimd_count 0\ndrm_render_minor 0\n")
    text(tmp_path, f"{nodes}/1/properties", "simd_count 1216\ndrm_render_minor 130\n")
    text(tmp_path, f"{nodes}/2/properties", "simd_count 1216\ndrm_render_minor 128\n")
    machine = find(tmp_path)
    assert paths(machine.at_assignment((0,))) == ["/dev/kfd", "/dev/dri/renderD130"]
    assert machine.accelerators[0].model == "MI300X"


@needs_root
def test_different_models_are_counted_one_after_the_other(tmp_path: Path) -> None:
    for minor, model in enumerate(("NVIDIA H100", "NVIDIA A100-SXM4-80GB", "NVIDIA H100")):
        device(tmp_path, f"/dev/nvidia{minor}", 195, minor)
        information = f"Model: {model}\nDevice Minor: {minor}\n"
        text(tmp_path, f"/proc/driver/nvidia/gpus/0000:0{minor}:00.0/information", information)
    machine = find(tmp_path)
    assert machine.count() == {"H100": 2, "A100": 1}
    assert [paths(a.edits) for a in machine.accelerators] == [
        ["/dev/nvidia0"], ["/dev/nvidia2"], ["/dev/nvidia1"],
    ]  # fmt: skip


@needs_root
def test_ascend_and_enflame(tmp_path: Path) -> None:
    for name, minor in (("davinci0", 0), ("davinci10", 10), ("davinci2", 2)):
        device(tmp_path, f"/dev/{name}", 236, minor)
    for name in ("davinci_manager", "devmm_svm", "hisi_hdc"):
        device(tmp_path, f"/dev/{name}", 237, 0)
    (tmp_path / "usr/local/Ascend/driver/lib64").mkdir(parents=True)
    device(tmp_path, "/dev/gcu0", 238, 0)
    device(tmp_path, "/dev/gcuctl", 238, 255)
    machine = find(tmp_path)
    assert machine.count() == {"Ascend": 3, "GCU": 1}
    given = machine.at_assignment((2,))
    assert paths(given) == ["/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc", "/dev/davinci10"]
    assert "CUDA_VISIBLE_DEVICES" not in given.env
    assert paths(machine.at_assignment((3,))) == ["/dev/gcuctl", "/dev/gcu0"]
    assert machine.at_creation().binds == (
        Bind(f"{tmp_path}/usr/local/Ascend/driver", "/usr/local/Ascend/driver"),
    )


NVIDIA_CTK = """
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- name: 0
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
- name: "1"
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia1
      major: 195
      minor: 1
      permissions: rwm
    hooks:
    - hookName: createContainer
      path: /usr/bin/nvidia-cdi-hook
      args: [nvidia-cdi-hook, create-symlinks]
- name: all
  containerEdits:
    deviceNodes: [{path: /dev/nvidia0}, {path: /dev/nvidia1}]
containerEdits:
  env: [NVIDIA_VISIBLE_DEVICES=void]
  deviceNodes:
  - path: /dev/nvidiactl
  hooks:
  - hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
    args: [nvidia-cdi-hook, update-ldcache, --folder, /usr/lib64]
  mounts:
  - hostPath: /usr/lib64/libcuda.so.550
    containerPath: /usr/lib64/libcuda.so.550
    options: [ro, nosuid, nodev, bind]
"""


@needs_root
def test_a_specification_counts_more_than_what_is_known_of_nodes(tmp_path: Path) -> None:
    nvidia(tmp_path)
    text(tmp_path, "/etc/cdi/nvidia.yaml", NVIDIA_CTK)
    machine = find(tmp_path)
    assert machine.problems == ()
    assert [(a.name, a.model) for a in machine.accelerators] == [
        ("nvidia.com/gpu=0", "H100"), ("nvidia.com/gpu=1", "H100"),
    ]  # fmt: skip
    before = machine.at_creation()
    assert before.nodes == ()
    assert before.env == {"NVIDIA_VISIBLE_DEVICES": "void"}
    assert before.binds == (Bind(f"{tmp_path}/usr/lib64/libcuda.so.550", "/usr/lib64/libcuda.so.550"),)
    assert [hook.args[1] for hook in before.hooks] == ["update-ldcache"]
    at = machine.at_assignment((1,))
    assert paths(at) == ["/dev/nvidiactl", "/dev/nvidia1"]
    assert at.hooks == ()
    assert {node.access for node in at.nodes} == {"rw"}, "nobody makes nodes"
    assert machine.names((1, 0)) == ["nvidia.com/gpu=1", "nvidia.com/gpu=0"]
    assert set(paths(Edits(nodes=machine.nodes()))) == {"/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia1"}


def spec(**changes: Any) -> dict[str, Any]:
    node = {"path": "/dev/x0", "type": "c", "major": 5, "minor": 0}
    device = {"name": "0", "containerEdits": {"deviceNodes": [node]}}
    return {"cdiVersion": "0.6.0", "kind": "example.com/x", "devices": [device]} | changes


def with_edits(**edits: Any) -> dict[str, Any]:
    return spec(containerEdits=edits)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ([], "no object"),
        (spec(cdiVersion="9.0.0"), "not understood, only 0.3 to 1.1"),
        (spec(cdiVersion="new"), "no version"),
        (spec(kind="x"), "vendor/class"),
        (spec(devices=[]), "no devices"),
        (spec(devices="all"), "no list"),
        (spec(devices=[{"name": "../0"}]), "no name"),
        (spec(devices=[{"name": "0"}, {"name": "0"}]), "twice"),
        (with_edits(deviceNodes=[{"path": "/dev/none"}]), "no device here"),
        (with_edits(deviceNodes=[{"path": "dev/x"}]), "no absolute path"),
        (with_edits(mounts=[{"hostPath": "/a/../../etc", "containerPath": "/b"}]), "no absolute path"),
        (with_edits(mounts=[{"hostPath": "/a"}]), "no absolute path"),
        (with_edits(hooks=[{"hookName": "whenever", "path": "/bin/true"}]), "no hook"),
        (with_edits(env=["A"]), "no variable"),
    ],
)
def test_a_wrong_specification_is_told_and_not_used(told: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(cdi.BadSpec, match=why):
        cdi.parse(told, Tree(tmp_path))
    text(tmp_path, "/etc/cdi/x.json", json.dumps(told))
    text(tmp_path, "/var/run/cdi/good.json", json.dumps(spec()))
    registry = cdi.read(Tree(tmp_path))
    assert len(registry.problems) == 1
    assert registry.problems[0].startswith("/etc/cdi/x.json: ")
    assert [s.kind for s in registry.specs] == ["example.com/x"]


def test_files_that_cannot_be_trusted_or_read_are_told(tmp_path: Path) -> None:
    text(tmp_path, "/etc/cdi/open.json", json.dumps(spec())).chmod(0o666)
    text(tmp_path, "/etc/cdi/broken.yaml", "{")
    text(tmp_path, "/etc/cdi/broken.json", "[" * 100_000)
    text(tmp_path, "/etc/cdi/python.yaml", "!!python/object/apply:os.system [true]")
    text(tmp_path, "/etc/cdi/notes.txt", "not ours")
    registry = cdi.read(Tree(tmp_path))
    assert registry.specs == ()
    assert [p.partition(": ")[0].rpartition("/")[2] for p in registry.problems] == [
        "broken.json", "broken.yaml", "open.json", "python.yaml",
    ]  # fmt: skip
    assert "chmod go-w" in registry.problems[2]


def test_the_later_directory_counts_more(tmp_path: Path) -> None:
    text(tmp_path, "/etc/cdi/x.json", json.dumps(spec(containerEdits={"env": ["A=etc"]})))
    text(tmp_path, "/var/run/cdi/x.json", json.dumps(spec(containerEdits={"env": ["A=run"]})))
    registry = cdi.read(Tree(tmp_path))
    assert registry.device("example.com/x=0").env == {"A": "run"}
    assert [s.shared.env["A"] for _, _, s in registry.numbered("example.com/x")] == ["run"]
    with pytest.raises(KeyError):
        registry.device("example.com/x=7")


NODE = Node("/dev/x0", "/dev/y0", "c", 5, 0)


def test_engines_are_told() -> None:
    edits = Edits(
        nodes=(NODE,), binds=(Bind("/a", "/b"),), env={"LD_LIBRARY_PATH": "/d", "A": "2"},
        hooks=(Hook("createContainer", "/h", ("h", "x"), ("E=1",), 5),),
    )  # fmt: skip
    base = {
        "process": {"env": ["A=1", "LD_LIBRARY_PATH=/c"]}, "mounts": [{"destination": "/proc"}],
        "linux": {"resources": {"devices": [{"allow": False, "access": "rwm"}], "pids": {"limit": 1}}},
        "hooks": {"createContainer": [{"path": "/first"}]},
    }  # fmt: skip
    untouched = json.dumps(base)
    made = into_oci(base, edits)
    assert json.dumps(base) == untouched
    assert made["process"]["env"] == ["A=2", "LD_LIBRARY_PATH=/d:/c"]
    assert made["mounts"][1] == {
        "destination": "/b", "type": "bind", "source": "/a", "options": ["rbind", "ro", "nosuid", "nodev"],
    }  # fmt: skip
    assert made["hooks"]["createContainer"] == [
        {"path": "/first"}, {"path": "/h", "args": ["h", "x"], "env": ["E=1"], "timeout": 5},
    ]  # fmt: skip
    rules = made["linux"]["resources"]["devices"]
    assert rules[0] == {"allow": False, "access": "rwm"}, "all is refused first"
    assert rules[1] == {"allow": True, "type": "c", "major": 5, "minor": 0, "access": "rw"}
    assert into_oci(base, Edits())["linux"] == base["linux"]
    docker = into_docker({"Memory": 1}, edits)
    assert docker["Devices"] == [
        {"PathOnHost": "/dev/y0", "PathInContainer": "/dev/x0", "CgroupPermissions": "rw"}
    ]
    assert docker["Mounts"] == [{"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": True}]
    assert by_name({}, ["n/g=0"])["DeviceRequests"] == [{"Driver": "cdi", "DeviceIDs": ["n/g=0"]}]
    assert by_name({"Memory": 1}, []) == {"Memory": 1}


@given(st.dictionaries(st.sampled_from(["A", "PATH", "LD_LIBRARY_PATH"]), st.text("ab:", max_size=4)))
def test_joining_twice_is_joining_once(env: dict[str, str]) -> None:
    once = join_env({"PATH": "/bin"}, env)
    assert join_env(once, env) == once
    assert "/bin" in once["PATH"].split(":")


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA RTX A6000", "RTXA6000"),
        ("AMD Instinct MI300X OAM", "MI300X"),
        ("", "?"),
    ],
)
def test_models_are_called_as_people_call_them(text: str, model: str) -> None:
    assert short_model(text, "?") == model


def test_where_nothing_can_be_allowed_later_it_is_allowed_from_the_start(tmp_path: Path) -> None:
    spec = ContainerSpec("c", Root("", "/python"), Path("/door"), ("python",), Network("none"))
    place = Place(Path("/root"), Path("/engine"), "/c", 1 << 30)
    before = configuration(spec, place)["linux"]
    made = configuration(spec, replace(place, later=(NODE,)))["linux"]
    assert made["resources"]["devices"] == [
        *before["resources"]["devices"],
        {"allow": True, "type": "c", "major": 5, "minor": 0, "access": "rw"},
    ], "without ``m``: nobody makes a node"
    assert "devices" not in made, "and it sees none"
    (tmp_path / "devices" / "c").mkdir(parents=True)
    Cgroup("/c", tmp_path).allow_device(NODE.rule)
    assert (tmp_path / "devices/c/devices.allow").read_text() == "c 5:0 rw"
    (tmp_path / "unified").mkdir()
    (tmp_path / "unified/cgroup.controllers").write_text("cpu memory")
    Cgroup("/c", tmp_path / "unified").allow_device(NODE.rule)
    assert sorted(path.name for path in (tmp_path / "unified").iterdir()) == ["cgroup.controllers"]
