"""What goes and what stays when images are too many, and what tools say without their passwords."""

import asyncio
import os

import pytest
from headrace_runtimes.errors import ImageFailed, PrepareFailed
from headrace_runtimes.images.auth import Challenge, from_docker_config, parse_challenge
from headrace_runtimes.images.gc import Kept, to_forget
from headrace_runtimes.images.locks import alone
from headrace_runtimes.images.reference import OCI_CONFIG, Descriptor, choose, manifest_of
from headrace_runtimes.images.store import Store
from headrace_runtimes.images.tool import run_tool
from hypothesis import given
from hypothesis import strategies as st

kept = st.lists(
    st.builds(
        lambda n, used, parts: Kept(f"r{n}", f"d{n}", float(used), {f"p{p}": 10 * (p + 1) for p in parts}),
        st.integers(0, 30), st.integers(0, 100), st.sets(st.integers(0, 6)),
    ),
    unique_by=lambda k: k.reference, max_size=10,
)  # fmt: skip


@given(images=kept, limit=st.integers(0, 300), age=st.integers(0, 100), pins=st.sets(st.integers(0, 30)))
def test_what_is_pinned_stays_and_the_rest_fits(images, limit, age, pins):
    pinned = {f"d{n}" for n in pins}
    gone = set(to_forget(images, pinned, 100.0, limit, float(age)))
    left = [i for i in images if i.reference not in gone]
    assert not any(i.digest in pinned for i in images if i.reference in gone)
    assert all(i.digest in pinned or 100.0 - i.used_at <= age for i in left)
    parts = {name: size for i in left for name, size in i.parts.items()}
    assert sum(parts.values()) <= limit or all(i.digest in pinned for i in left)
    young = [i.used_at for i in images if i.reference in gone and 100.0 - i.used_at <= age]
    assert all(i.digest in pinned or i.used_at >= max(young, default=0.0) for i in left)


async def test_a_blob_is_there_whole_or_not_at_all(tmp_path):
    store = Store(tmp_path)
    await store.open()
    wanted = await store.put(b"hello", OCI_CONFIG)
    assert store.has(wanted)
    other = Descriptor(OCI_CONFIG, f"sha256:{'0' * 64}", 5)
    with pytest.raises(ImageFailed, match="not what its digest says"):
        async with store.write(other) as blob:
            blob.add(b"world")
    with pytest.raises(ImageFailed, match="longer"):
        async with store.write(other) as blob:
            blob.add(b"too long")
    assert not store.has(other)
    store.blob(wanted.digest).write_bytes(b"[1, 2")
    with pytest.raises(ImageFailed, match="damaged"):
        store.document(wanted.digest)
    (tmp_path / "index.json").write_text("{half")
    assert store.references() == {}
    for wrong in ("sha256:12", "../../etc/passwd", f"md5:{'0' * 64}"):
        with pytest.raises(ImageFailed):
            store.blob(wrong)


async def test_only_one_is_in_at_a_time(tmp_path):
    inside, most = 0, 0

    async def one():
        nonlocal inside, most
        async with alone(tmp_path / "lock", "it"):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(one() for _ in range(8)))
    assert most == 1
    assert list(tmp_path.iterdir()) == []
    async with alone(tmp_path / "lock", "it"):
        with pytest.raises(PrepareFailed, match="too long"):
            async with alone(tmp_path / "lock", "it", wait_s=0.0):
                pass


async def test_what_a_tool_says_is_told_without_passwords(tmp_path):
    told = []
    code, words = await run_tool(
        ["/bin/sh", "-c", "echo get https://me:secret@host/x; printf '\\033[1mlast' >&2; exit 3"],
        env=os.environ, cwd=tmp_path, what="tool", timeout_s=10, progress=lambda *a: told.append(a[0]),
    )  # fmt: skip
    assert (code, words) == (3, "get https://***@host/x | [1mlast")
    assert told[0] == "tool: get https://***@host/x"


def test_challenges_and_what_docker_login_kept(tmp_path):
    found = parse_challenge('Bearer realm="https://a/t",service="s, t",scope="repository:x:pull,push"')
    assert found == Challenge("bearer", "https://a/t", "s, t", "repository:x:pull,push")
    assert parse_challenge("Negotiate abc") is None
    config = tmp_path / "config.json"
    config.write_text(
        '{"auths": {"https://index.docker.io/v1/": {"auth": "YTpiOmM="}, "h:1": {"auth": "%%"}}}'
    )
    hub = from_docker_config("registry-1.docker.io", config)
    assert (hub.username, hub.password) == ("a", "b:c")
    assert "b:c" not in repr(hub)
    assert from_docker_config("h:1", config) is None
    assert from_docker_config("other", config) is None
    config.write_text("[")
    with pytest.raises(PrepareFailed, match="Log in again") as failed:
        from_docker_config("h", config)
    assert "[" not in str(failed.value)


def test_manifests_are_for_this_machine_or_refused():
    entry = {"digest": f"sha256:{'a' * 64}", "size": 1, "platform": {"os": "linux", "architecture": "arm64"}}
    other = {
        "digest": f"sha256:{'b' * 64}",
        "size": 1,
        "platform": {"os": "windows", "architecture": "amd64"},
    }
    assert choose({"manifests": [other, entry]}, "arm64").digest == entry["digest"]
    with pytest.raises(ImageFailed, match=r"linux/amd64.*windows/amd64"):
        choose({"manifests": [other, entry]}, "amd64")
    for wrong in (
        {},
        [],
        None,
        {"config": entry, "layers": [{"digest": "sha256:x", "size": 1}]},
        {"config": 1},
    ):
        with pytest.raises(ImageFailed):
            manifest_of(wrong)
    with pytest.raises(ImageFailed, match="layers"):
        manifest_of({"config": entry, "layers": [entry] * 200})
