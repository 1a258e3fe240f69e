"""What we ask Docker for, and what we make of its answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from headrace_runtimes.containers.driver import ContainerSpec, Root
from headrace_runtimes.devices.edits import Bind, Edits, Node
from headrace_runtimes.docker.api import demultiplex, socket_of, version_of
from headrace_runtimes.docker.collect import parts_of, used_at
from headrace_runtimes.docker.daemon import Daemon, daemon_of, refuse_runtime
from headrace_runtimes.docker.images import volumes_of, write_root
from headrace_runtimes.docker.network import again, links_of
from headrace_runtimes.docker.request import Place, creation, disk_places, execution
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.images.archive import labelled
from headrace_runtimes.spec import Network
from hypothesis import given
from hypothesis import strategies as st

SPEC = ContainerSpec(
    id="c1", root=Root("", "/py", reference="headrace/plain:1", binds=((Path("/venv"), "/venv"),)),
    door_dir=Path("/run/door"), argv=("/py", "-B", "x"), network=Network("none"), env={"A": "1"},
)  # fmt: skip
PLACE = Place(
    engine="/engine", disk="/disk", uid=870_001, cgroup_parent="/headrace/t/c1", tag="t", seccomp={"a": 1}
)


def test_nothing_is_left_to_it_that_it_does_not_need() -> None:
    asked = creation(SPEC, PLACE)
    host = asked["HostConfig"]
    assert asked["User"] == "870001:870001"
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true", 'seccomp={"a": 1}']
    assert (host["NetworkMode"], "UsernsMode" in host, host["Privileged"]) == ("none", False, False)
    writable = [m["Target"] for m in host["Mounts"] if not m["ReadOnly"]]
    assert sorted(writable) == ["/headrace/home", "/tmp", "/var/tmp"]
    assert {m["BindOptions"]["Propagation"] for m in host["Mounts"]} == {"rprivate"}
    assert all("size=" in options for options in host["Tmpfs"].values())
    assert asked["Labels"] == {"headrace.run": "t", "headrace.id": "c1"}


def test_what_is_asked_for_besides() -> None:
    edits = Edits(binds=(Bind("/lib/x", "/headrace/drivers"),), env={"LD_LIBRARY_PATH": "/headrace/drivers"})
    node = Node("/dev/a", "/dev/a", "c", 195, 0)
    place = Place(
        engine="/engine", disk="/disk", uid=1, cgroup_parent="x.slice", tag="t", volumes=("/data", "/tmp"),
        remapped=True, resolv="/resolv", edits=edits, later=(node,),
    )  # fmt: skip
    spec = ContainerSpec(
        id="c", root=SPEC.root, door_dir=SPEC.door_dir, argv=SPEC.argv, network=Network("host")
    )
    asked = creation(spec, place)
    host = asked["HostConfig"]
    assert (host["NetworkMode"], host["UsernsMode"]) == ("host", "host")
    assert host["DeviceCgroupRules"] == ["c 195:0 rw"]
    assert "LD_LIBRARY_PATH=/headrace/drivers" in asked["Env"]
    targets = [m["Target"] for m in host["Mounts"]]
    assert {"/data", "/etc/resolv.conf", "/headrace/drivers"} <= set(targets)
    assert targets.count("/tmp") == 1
    assert "seccomp" not in str(host["SecurityOpt"])


@given(st.lists(st.text(min_size=1)))
def test_places_of_the_disk_are_different_directories(volumes: list[str]) -> None:
    places = disk_places(volumes)
    assert len(set(places.values())) == len(places)
    assert all("/" not in name for name in places.values())


def test_a_command_is_the_instance() -> None:
    asked = execution(["a"], {"X": "1", "PATH": "/own"}, 5)
    assert (asked["User"], asked["WorkingDir"], asked["Privileged"]) == ("5:5", "/headrace/home", False)
    assert sorted(asked["Env"]) == ["PATH=/own", "X=1"]


@pytest.mark.parametrize(
    ("newest", "oldest", "spoken"),
    [("1.41", "1.12", "1.41"), ("1.47", "1.24", "1.47"), ("1.52", "1.44", "1.47"), ("1.60", "1.50", "1.50")],
)
def test_versions(newest: str, oldest: str, spoken: str) -> None:
    assert version_of({"ApiVersion": newest, "MinAPIVersion": oldest}) == spoken


@pytest.mark.parametrize("told", [{}, {"ApiVersion": "x", "MinAPIVersion": "1.1"}, {"ApiVersion": "1.40"}])
def test_what_is_no_docker(told: dict[str, str]) -> None:
    with pytest.raises(PrepareFailed):
        version_of(told)
    with pytest.raises(PrepareFailed, match="too old"):
        version_of({"ApiVersion": "1.40", "MinAPIVersion": "1.12", "Version": "19"})


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    assert socket_of(None) == "/var/run/docker.sock"
    monkeypatch.setenv("DOCKER_HOST", "unix:///x/y")
    assert socket_of(None) == "/x/y"
    assert socket_of("unix:///z") == "/z"
    for wrong in ("tcp://1.2.3.4:5", "ssh://host", "unix://relative", "/plain"):
        with pytest.raises(PrepareFailed, match="on this machine"):
            socket_of(wrong)


def test_daemons() -> None:
    info = {"KernelVersion": "6", "CgroupDriver": "cgroupfs", "SecurityOptions": ["name=seccomp,profile=x"]}
    plain = daemon_of(info, "6")
    assert plain == Daemon(seccomp=True, remapped=False, own_cgroups=True)
    assert plain.cgroups("/up", "t") == "/up/headrace/t"
    assert plain.parent("/up/headrace/t", "c") == "/up/headrace/t/c"
    other = daemon_of(info | {"CgroupDriver": "systemd", "SecurityOptions": ["name=userns"]}, "6")
    assert other == Daemon(seccomp=False, remapped=True, own_cgroups=False)
    assert other.parent(other.cgroups("", "t"), "c") == "headrace-t.slice"
    with pytest.raises(PrepareFailed, match="another kernel"):
        daemon_of(info, "7")
    with pytest.raises(PrepareFailed, match="rootless"):
        daemon_of(info | {"SecurityOptions": ["name=rootless"]}, "6")


def test_what_gives_dev_null_away_is_not_used() -> None:
    def version(number: str) -> dict[str, object]:
        return {"Components": [{"Name": "Engine", "Version": "1.1.4"}, {"Name": "runc", "Version": number}]}

    plain = {"DefaultRuntime": "runc", "Runtimes": {"runc": {"path": "runc"}, "crun": {"path": "crun"}}}
    for fine in ("1.1.1", "1.1.5+ds1", "1.1.15", "1.2.0-rc.1"):
        refuse_runtime(plain, version(fine))
    refuse_runtime({}, {})
    for bad in ("1.1.2", "1.1.3", "1.1.4-0ubuntu1"):
        with pytest.raises(PrepareFailed, match="/dev/null"):
            refuse_runtime(plain, version(bad))
    other = plain | {"DefaultRuntime": "mine", "Runtimes": {"mine": {"path": "/opt/bin/crun"}}}
    with pytest.raises(PrepareFailed, match="by crun here"):
        refuse_runtime(other, version("1.1.15"))


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=50))), st.integers(1, 7))
def test_frames_come_out_as_they_went_in(frames: list[tuple[int, bytes]], step: int) -> None:
    raw = b"".join(bytes([kind, 0, 0, 0]) + len(data).to_bytes(4, "big") + data for kind, data in frames)
    buffer, found = bytearray(), []
    for at in range(0, len(raw), step):
        buffer += raw[at : at + step]
        found += demultiplex(buffer)
    assert found == frames
    assert not buffer


def test_links_are_as_they_were() -> None:
    addresses = [
        {"ifname": "lo", "flags": ["LOOPBACK"], "addr_info": [{"local": "127.0.0.1", "prefixlen": 8}]},
        {"ifname": "eth0", "flags": ["UP"], "addr_info": [{"local": "198.18.1.2", "prefixlen": 32}]},
    ]
    routes = [
        {"dst": "default", "gateway": "198.18.0.1", "dev": "eth0"},
        {"dst": "198.18.0.1", "dev": "eth0"},
        {"dst": "198.18.1.0/24", "dev": "eth0", "protocol": "kernel"},
        {"dst": "127.0.0.0/8", "dev": "lo"},
    ]
    assert links_of(addresses) == ["eth0"]
    assert again(addresses, routes).splitlines() == [
        "link set lo up",
        "address add 198.18.1.2/32 dev eth0",
        "link set eth0 up",
        "route add 198.18.0.1 dev eth0",
        "route add default via 198.18.0.1 dev eth0",
    ]


def test_roots_are_named_by_what_is_in_them(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "b").mkdir(parents=True)
    (root / "b" / "file").write_text("x")
    (root / "link").symlink_to("b/file")
    first = write_root(root, tmp_path / "one.tar")
    (root / "b" / "new").write_text("y")
    (root / "b" / "new").unlink()
    assert write_root(root, tmp_path / "two.tar") == first
    (root / "b" / "file").write_text("z")
    assert write_root(root, tmp_path / "three.tar") != first
    with pytest.raises(PrepareFailed):
        write_root(root, tmp_path / "no" / "four.tar")


def test_volumes() -> None:
    assert volumes_of({"Config": {"Volumes": {"/b": {}, "/a": {}}}}) == ("/a", "/b")
    assert volumes_of({"Config": {"Volumes": None}}) == volumes_of({}) == volumes_of(None) == ()


def test_when_an_image_was_used_last() -> None:
    def told(text: str) -> float:
        return used_at({"Metadata": {"LastTagTime": text}}, 5.0)

    assert told("1970-01-02T00:00:00.123456789Z") == 86_400
    assert told("2026-11-22T21:00:00+00:00") == told("2026-11-22T21:00:00Z")
    # It has never been given a name, or the daemon does not say: as if it was now.
    for unknown in ("0001-01-01T00:00:00Z", "", "never"):
        assert told(unknown) == 5.0
    assert used_at({}, 5.0) == 5.0


def test_layers_that_images_share_count_once_where_they_are_known() -> None:
    about = {"Id": "i", "Size": 30, "RootFS": {"Layers": ["a", "b"]}}
    history = [{"Size": 20}, {"Size": 0}, {"Size": 10}]
    assert parts_of(about, history) == {"a": 10, "b": 20}
    assert parts_of(about, history[:1]) == {"i": 30}


def test_a_configuration_gets_labels_and_keeps_its_own() -> None:
    whole = {"config": {"Labels": {"a": "1"}, "Env": ["X=1"]}, "rootfs": {"diff_ids": []}}
    made = json.loads(labelled(json.dumps(whole).encode(), {"b": "2"}))
    assert made == whole | {"config": {"Labels": {"a": "1", "b": "2"}, "Env": ["X=1"]}}
    assert json.loads(labelled(b'{"config": {"Labels": null}}', {"b": "2"}))["config"]["Labels"] == {"b": "2"}
    assert json.loads(labelled(b"{}", {"b": "2"})) == {"config": {"Labels": {"b": "2"}}}
