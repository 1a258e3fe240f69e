"""Images from registries: a real one with and without passwords, and one that does everything wrong."""

import asyncio
import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile

import pytest
from aiohttp import web
from headrace.host.images import find_image
from headrace_runtimes.errors import ImageFailed, PrepareFailed, RegistryFailed
from headrace_runtimes.images import gc
from headrace_runtimes.images.archive import write_docker_archive
from headrace_runtimes.images.auth import Credentials
from headrace_runtimes.images.build import Builder, BuildSettings
from headrace_runtimes.images.definition import Image
from headrace_runtimes.images.reference import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    parse,
)
from headrace_runtimes.images.registry import Registry
from headrace_runtimes.images.store import Store
from headrace_runtimes.images.wire import Patience, Refused, Wire, seconds_of

from tests.fixtures_registry import real_registry

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="layers have owners and whiteouts")
QUICK = Patience(attempts=3, pause_s=0.01, pause_max_s=0.05, stall_s=1.0, slow_s=0.3, slow_bytes_s=1 << 17)
PASSWORD = "open sesame"
HTPASSWD = "ali:$2b$05$y4a1nFs4NTXS.Ht8U31h/epdFF5CWO896bwudlwoIrjLTPcUVjM1W\n"


def tar(**files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def sha(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def made_image(size=2_000_000):
    """Blobs by digest, and the manifest's."""
    raws = [tar(a=b"lower", big=os.urandom(size)), tar(a=b"upper")]
    layers = [gzip.compress(raw, 1) for raw in raws]
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "config": {"Env": ["X=1"]},
         "rootfs": {"type": "layers", "diff_ids": [sha(raw) for raw in raws]}}
    ).encode()  # fmt: skip
    manifest = json.dumps(
        {
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": Descriptor(OCI_CONFIG, sha(config), len(config)).encode(),
            "layers": [Descriptor(OCI_LAYER + "+gzip", sha(b), len(b)).encode() for b in layers],
        }
    ).encode()  # fmt: skip
    return {sha(blob): blob for blob in (*layers, config, manifest)}, sha(manifest)


async def fill(store, blobs, manifest):
    for digest, data in blobs.items():
        assert (await store.put(data, OCI_MANIFEST)).digest == digest
    await store.name("mine", manifest)


@pytest.fixture
async def store(tmp_path):
    store = Store(tmp_path / "images")
    await store.open()
    return store


async def test_what_is_pushed_comes_back_and_is_unpacked_once(store, tmp_path):
    blobs, manifest = made_image()
    await fill(store, blobs, manifest)
    seen = []
    async with real_registry(tmp_path) as host:
        reference = parse(f"{host}/some/where:v1")
        async with Registry(reference, patience=QUICK) as registry:
            assert await registry.push(store, manifest, lambda *a: seen.append(a)) == manifest
            assert await registry.push(store, manifest) == manifest
            assert await registry.resolve() == manifest
        other = Store(tmp_path / "other")
        await other.open()
        pulled = []
        async with Registry(reference, patience=QUICK) as registry:
            found = await registry.pull(other, lambda *a: pulled.append(a))
        pinned = parse(f"{host}/some/where@{manifest}")
        async with Registry(pinned, patience=QUICK) as registry:
            assert (await registry.pull(other)).digest == manifest
    assert found.digest == manifest
    for told in (seen, pulled):
        big = max(total for _, _, total in told)
        assert [done for _, done, total in told if total == big][-1] == big
        assert len({what for what, _, _ in told}) >= 2
    assert other.find(str(reference)).digest == manifest
    config = other.document(found.manifest.config.digest)
    tops = [
        await other.layer(layer, diff_id)
        for layer, diff_id in zip(found.manifest.layers, config["rootfs"]["diff_ids"], strict=True)
    ]
    assert [(top / "a").read_text() for top in tops] == ["lower", "upper"]
    assert list((other.directory / "part").iterdir()) == []
    assert list((other.directory / "locks").iterdir()) == []


async def test_passwords_are_given_or_found_where_docker_keeps_them(store, tmp_path, caplog):
    blobs, manifest = made_image(1000)
    await fill(store, blobs, manifest)
    async with real_registry(tmp_path, HTPASSWD) as host:
        reference = parse(f"{host}/closed:v1")
        for wrong in (None, Credentials("ali", "wrong")):
            async with Registry(reference, credentials=wrong, patience=QUICK) as registry:
                told = "is wrong: run `docker login`" if wrong else "Log in"
                with pytest.raises(RegistryFailed, match=f"asked for {host}/closed:v1[.] .*{told}") as failed:
                    await registry.pull(store)
                assert failed.value.status == 401
                assert "ali" not in str(failed.value)
        async with Registry(reference, credentials=Credentials("ali", PASSWORD)) as registry:
            await registry.push(store, manifest)
        word = "YWxpOm9wZW4gc2VzYW1l"
        config = tmp_path / "config.json"
        config.write_text(json.dumps({"auths": {host: {"auth": word}}}))
        async with Registry(reference, docker_config=config, patience=QUICK) as registry:
            assert (await registry.pull(store)).digest == manifest
    assert PASSWORD not in repr(Credentials("ali", PASSWORD))
    assert PASSWORD not in caplog.text
    assert word not in caplog.text


class Bad:
    """A registry that serves an image and misbehaves as told."""

    def __init__(self, size=2_000_000):
        self.blobs, self.manifest = made_image(size)
        self.asked, self.ranges, self.tricks = [], [], {}
        self.big = max(self.blobs, key=lambda d: len(self.blobs[d]))

    async def answer(self, request):
        kind, wanted = request.path.split("/")[-2:]
        self.asked.append((kind, wanted))
        trick = self.tricks.get(kind)
        if trick and (response := await trick(request, wanted)):
            return response
        if kind == "manifests":
            return web.Response(body=self.blobs[self.manifest], content_type=OCI_MANIFEST)
        return web.Response(body=self.blobs[wanted])


@contextlib.asynccontextmanager
async def bad_registry(bad):
    app = web.Application()
    app.router.add_get("/{path:.*}", bad.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def pull(bad, store, **more):
    async with bad_registry(bad) as host, Registry(parse(f"{host}/x:v"), patience=QUICK, **more) as registry:
        return await registry.pull(store)


def nothing_half(store):
    """No name, no blob under a wrong name, no layer that is not whole."""
    for blob in (store.directory / "blobs/sha256").iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    layers = {p.name for p in (store.directory / "l").iterdir()}
    assert layers == {p.name for p in (store.directory / "done").iterdir()}


@pytest.mark.parametrize(("status", "words"), [(401, "Log in"), (403, "right"), (404, "Check the name")])
@pytest.mark.parametrize("kind", ["manifests", "blobs"])
async def test_what_is_refused_is_asked_once_and_said(store, status, words, kind):
    bad = Bad()

    async def refuse(request, wanted):
        return web.Response(status=status)

    bad.tricks[kind] = refuse
    with pytest.raises(RegistryFailed, match=words) as failed:
        await pull(bad, store)
    assert failed.value.status == status
    assert len(bad.asked) == len(set(bad.asked))
    assert store.references() == {}
    nothing_half(store)


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_who_is_busy_is_asked_again_but_not_for_ever(store, status):
    bad, times = Bad(), {}

    async def busy(request, wanted):
        times[wanted] = times.get(wanted, 0) + 1
        return web.Response(status=status, headers={"Retry-After": "0"}) if times[wanted] < 3 else None

    bad.tricks = {"manifests": busy, "blobs": busy}
    assert (await pull(bad, store)).digest == bad.manifest

    async def always(request, wanted):
        times[wanted] = times.get(wanted, 0) + 1
        return web.Response(status=status)

    times.clear()
    bad.tricks = {"manifests": always}
    with pytest.raises(RegistryFailed, match="after 3 attempts") as failed:
        await pull(bad, store)
    assert failed.value.status == status
    assert times == {"v": 3}


async def test_a_download_that_is_cut_goes_on_where_it_was(store):
    bad, sent = Bad(), []

    async def cut(request, wanted):
        data = bad.blobs[wanted]
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if wanted != bad.big:
            return None
        piece = data[start : start + 300_000]
        response = web.StreamResponse(status=206 if start else 200)
        response.content_length = len(data) - start
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        await response.prepare(request)
        await response.write(piece)
        sent.append((start, len(piece)))
        if start + len(piece) < len(data):
            request.transport.close()
        return response

    bad.tricks["blobs"] = cut
    assert (await pull(bad, store)).digest == bad.manifest
    assert len(sent) >= 7, "more cuts than attempts without progress"
    assert sum(size for _, size in sent) < 2 * len(bad.blobs[bad.big])
    nothing_half(store)


async def test_a_download_that_stops_is_given_up_and_goes_on_the_next_time(store):
    bad, stop = Bad(), True

    async def stall(request, wanted):
        if wanted != bad.big or not stop:
            start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
            bad.ranges.append(start)
            return web.Response(
                body=bad.blobs[wanted][start:], status=206 if start else 200,
                headers={"Content-Range": f"bytes {start}-/*"} if start else {},
            )  # fmt: skip
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        response = web.StreamResponse(
            status=206 if start else 200, headers={"Content-Range": f"bytes {start}-/*"}
        )
        response.content_length = len(bad.blobs[wanted]) - start
        await response.prepare(request)
        if not start:
            await response.write(bad.blobs[wanted][:500_000])
        await asyncio.sleep(5)
        return response

    bad.tricks["blobs"] = stall
    with pytest.raises(RegistryFailed, match="in time"):
        await pull(bad, store)
    nothing_half(store)
    stop = False
    assert (await pull(bad, store)).digest == bad.manifest
    assert 500_000 in bad.ranges
    nothing_half(store)


async def test_a_whole_pull_has_an_end_however_steadily_it_is_sent(store):
    bad = Bad()

    async def slowly(request, wanted):
        if wanted != bad.big:
            return None
        response = web.StreamResponse()
        response.content_length = len(bad.blobs[wanted])
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(bad.blobs[wanted]), 1000):
                await response.write(bad.blobs[wanted][start : start + 1000])
                await asyncio.sleep(0.05)
        return response

    bad.tricks["blobs"] = slowly
    never_slow = Patience(slow_bytes_s=1, pull_s=0.5, least_bytes_s=4_000_000)
    async with bad_registry(bad) as host, Registry(parse(f"{host}/x:v"), patience=never_slow) as registry:
        with pytest.raises(RegistryFailed, match=r"has not sent the 1 MiB of .* within 1 s"):
            await registry.pull(store)
    nothing_half(store)
    bad.tricks.clear()
    assert (await pull(bad, store)).digest == bad.manifest


def test_when_to_ask_again_is_told_in_seconds_or_as_a_date():
    now = 784_111_777.0 - 30
    date = "Sun, 06 Nov 1994 08:49:37 GMT"
    assert seconds_of(date, now) == 30.0
    assert seconds_of(date, now + 60) == 0.0
    assert [seconds_of(text, now) for text in ("7", "", "soon", "-3", "inf", "nan")] == [7.0, 0, 0, 0, 0, 0]
    patience = Patience(pause_s=0.01, pause_max_s=0.05)
    assert patience.pause(0, "Fri, 31 Dec 9999 23:59:59 GMT") == pytest.approx(0.15)
    assert Patience().whole_s(0) < Patience().whole_s(1 << 30)


async def test_a_trickle_is_no_download_even_if_it_goes_on_where_it_was(store):
    bad = Bad()

    async def trickle(request, wanted):
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        bad.ranges.append(start)
        response = web.StreamResponse(
            status=206 if start else 200, headers={"Content-Range": f"bytes {start}-/*"} if start else {}
        )
        response.content_length = len(bad.blobs[wanted]) - start
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for byte in bad.blobs[wanted][start : start + 30]:
                await response.write(bytes([byte]))
                await asyncio.sleep(0.1)
        return response

    bad.tricks["blobs"] = trickle
    with pytest.raises(RegistryFailed, match="bytes a second after 3 attempts"):
        await pull(bad, store)
    assert len(bad.ranges) == 3
    assert 0 == bad.ranges[0] < bad.ranges[1] < bad.ranges[2]
    nothing_half(store)


@pytest.mark.parametrize("how", ["changed", "longer", "manifest"])
async def test_what_is_not_what_its_digest_says_is_not_kept(store, how):
    bad = Bad()

    async def wrong(request, wanted):
        if how == "manifest" and wanted != "v":
            return web.Response(body=bad.blobs[bad.manifest] + b" ", content_type=OCI_MANIFEST)
        if how == "manifest":
            index = {
                "mediaType": OCI_INDEX,
                "manifests": [Descriptor(OCI_MANIFEST, bad.manifest, 1).encode()],
            }
            return web.Response(body=json.dumps(index), content_type=OCI_INDEX)
        data = bytearray(bad.blobs[wanted])
        data[len(data) // 2] ^= 1
        return web.Response(body=bytes(data) + (b"more" if how == "longer" else b""))

    bad.tricks["manifests" if how == "manifest" else "blobs"] = wrong
    with pytest.raises(RegistryFailed, match=r"damaged|more than"):
        await pull(bad, store)
    assert store.references() == {}
    nothing_half(store)


@pytest.mark.parametrize("where", ["layer", "config"])
async def test_what_has_no_end_is_not_begun(store, where):
    bad = Bad()
    manifest = json.loads(bad.blobs.pop(bad.manifest))
    part = manifest["layers"][0] if where == "layer" else manifest["config"]
    part["size"] = 1 << 50
    data = json.dumps(manifest).encode()
    bad.blobs[sha(data)], bad.manifest = data, sha(data)
    with pytest.raises(ImageFailed, match="more than"):
        await pull(bad, store)
    assert [kind for kind, _ in bad.asked] == ["manifests"]


async def test_documents_that_trickle_or_nest_for_ever_are_given_up(store):
    bad = Bad(1000)

    async def trickle(request, wanted):
        response = web.StreamResponse(headers={"Content-Type": OCI_MANIFEST})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                await response.write(b" ")
                await asyncio.sleep(0.05)
        return response

    async def nest(request, wanted):
        return web.Response(body=b"[" * 100_000, content_type=OCI_MANIFEST)

    async def around(request, wanted):
        return web.Response(status=302, headers={"Location": str(request.url)})

    quick = dataclasses.replace(QUICK, attempts=2, document_s=0.3)
    for trick, words in ((trickle, "in time"), (nest, "no manifest"), (around, "on and on")):
        bad.tricks["manifests"] = trick
        async with bad_registry(bad) as host, Registry(parse(f"{host}/x:v"), patience=quick) as registry:
            with pytest.raises(RegistryFailed, match=words):
                await registry.pull(store)
    nothing_half(store)


async def test_no_download_fills_the_disk(store, monkeypatch):
    free = os.statvfs(store.directory)
    monkeypatch.setattr("headrace_runtimes.images.store.SPARE_BYTES", free.f_blocks * free.f_frsize + 1)
    with pytest.raises(PrepareFailed, match="no room"):
        await pull(Bad(), store)
    assert sum(path.stat().st_size for path in (store.directory / "part").iterdir()) < 1000


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB, and how to give it another size."""
    place = tmp_path / "disk"
    place.mkdir()

    def resize(size, *more):
        options = ",".join([*more, f"size={size}"])
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)

    resize("4m")
    try:
        yield place, lambda size: resize(size, "remount")
    finally:
        subprocess.run(["umount", str(place)], check=True)


async def test_a_disk_that_fills_during_a_pull_is_no_fault_of_the_registry(small_disk, monkeypatch):
    monkeypatch.setattr("headrace_runtimes.images.store.SPARE_BYTES", 0)
    monkeypatch.setattr("headrace_runtimes.images.unpack.SPARE_BYTES", 0)
    place, resize = small_disk
    store, bad = Store(place / "images"), Bad(12_000_000)
    await store.open()
    with pytest.raises(PrepareFailed, match=r"No space left on device\. Make room") as failed:
        await pull(bad, store)
    assert not isinstance(failed.value, RegistryFailed)
    assert bad.asked.count(("blobs", bad.big)) == 1
    assert sum(path.stat().st_size for path in (store.directory / "part").iterdir()) == 0
    nothing_half(store)
    resize("64m")
    assert (await pull(bad, store)).digest == bad.manifest
    nothing_half(store)


async def test_whatever_a_full_disk_does_not_take_is_told_as_that(small_disk, monkeypatch):
    monkeypatch.setattr("headrace_runtimes.images.store.SPARE_BYTES", 0)
    place, _ = small_disk
    store = Store(place / "images")
    await store.open()
    kept = await store.put(b"{}", OCI_CONFIG)
    blobs, manifest = made_image(1000)
    await fill(store, blobs, manifest)
    stored = store.load(manifest)
    with contextlib.suppress(OSError), open(place / "others", "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    said = r"No space left on device\. Make room"
    with pytest.raises(PrepareFailed, match=said):
        await store.put(b"more", OCI_CONFIG)
    with pytest.raises(PrepareFailed, match=said):
        await store.name("yours", kept.digest)
    with pytest.raises(PrepareFailed, match="No space left"):
        await store.layer(stored.manifest.layers[0], stored.config["rootfs"]["diff_ids"][0])
    with pytest.raises(PrepareFailed, match="No space left"):
        await Builder(store, BuildSettings(sys.executable)).build(Image(steps=(("env", ("A=1",)),)), None)
    assert store.references() == {"mine": manifest}
    nothing_half(store)
    (place / "others").unlink()
    assert store.has(await store.put(b"more", OCI_CONFIG))


async def test_a_layer_that_is_not_what_the_configuration_says_is_not_used(store):
    bad = Bad()
    layer = bad.blobs.pop(bad.big)
    raw = bytearray(gzip.decompress(layer))
    raw[-1] ^= 1
    other = gzip.compress(bytes(raw))
    bad.blobs[sha(other)] = other
    manifest = json.loads(bad.blobs.pop(bad.manifest))
    manifest["layers"][0] = Descriptor(OCI_LAYER, sha(other), len(other)).encode()
    data = json.dumps(manifest).encode()
    bad.blobs[sha(data)], bad.manifest = data, sha(data)
    with pytest.raises(ImageFailed, match="something else"):
        await pull(bad, store)
    nothing_half(store)


async def test_passwords_do_not_follow_to_another_place(store):
    bad, heard = Bad(1000), []

    async def elsewhere(request):
        heard.append(request.headers.get("Authorization"))
        return web.Response(body=bad.blobs[request.path.rpartition("/")[2]])

    app = web.Application()
    app.router.add_get("/{path:.*}", elsewhere)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]

    async def send_on(request, wanted):
        if "Authorization" not in request.headers:
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        return web.Response(status=307, headers={"Location": f"http://127.0.0.1:{port}/{wanted}"})

    bad.tricks["blobs"] = send_on
    try:
        await pull(bad, store, credentials=Credentials("ali", PASSWORD))
    finally:
        await runner.cleanup()
    assert heard
    assert set(heard) == {None}
    for place in (
        "http://example.com/x",
        "http://169.254.169.254/x",
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "",
    ):

        async def away(request, wanted, place=place):
            return web.Response(status=307, headers={"Location": place})

        fresh = Bad(1000)
        fresh.tricks["blobs"] = away
        with pytest.raises(RegistryFailed, match="sends us"):
            await pull(fresh, store)


async def test_tokens_are_fetched_where_the_registry_says_if_that_is_safe(store):
    bad, asked = Bad(1000), []

    async def closed(request, wanted):
        if request.headers.get("Authorization") == "Bearer ticket":
            return None
        realm = f"http://{request.host}/token/give"
        return web.Response(
            status=401,
            headers={"WWW-Authenticate": f'Bearer realm="{realm}",service="s",scope="repository:x:pull"'},
        )

    async def give(request, wanted):
        asked.append((request.headers.get("Authorization"), dict(request.query)))
        return web.json_response({"token": "ticket", "expires_in": 300})

    bad.tricks = {"manifests": closed, "blobs": closed, "token": give}
    credentials = Credentials("ali", PASSWORD)
    await pull(bad, store, credentials=credentials)
    assert asked == [(credentials.header(), {"service": "s", "scope": "repository:x:pull"})]

    async def unsafe(request, wanted):
        return web.Response(status=401, headers={"WWW-Authenticate": 'Bearer realm="http://example.com/t"'})

    bad.tricks = {"manifests": unsafe}
    with pytest.raises(RegistryFailed, match="not safe"):
        await pull(bad, store, credentials=credentials)


async def test_two_who_want_the_same_image_bring_it_once(store, tmp_path):
    bad = Bad()
    second = Store(store.directory)
    await second.open()
    async with bad_registry(bad) as host:

        async def one(where):
            async with Registry(parse(f"{host}/x:v"), patience=QUICK) as registry:
                return await registry.pull(where)

        found = await asyncio.gather(one(store), one(second), one(store))
    assert {f.digest for f in found} == {bad.manifest}
    blobs = [wanted for kind, wanted in bad.asked if kind == "blobs"]
    assert len(blobs) == len(set(blobs))


async def test_what_is_old_or_too_much_goes_and_what_is_used_stays(store):
    images = [Bad(1_000_000) for _ in range(3)]
    for number, bad in enumerate(images):
        await pull(bad, store)
        os.utime(store.blob(bad.manifest), (1e9 + number, 1e9 + number))
    names = {digest: name for name, digest in store.references().items()}
    first, second, third = (bad.manifest for bad in images)
    with store.pin(first):
        gone = await gc.collect(store, 5_000_000, 1e12, grace_s=-1)
        assert gone == [names[second]]
        assert store.find(names[first]) is not None
        assert store.find(names[second]) is None
        assert store.find(names[third]) is not None
        nothing_half(store)
    os.utime(store.blob(third), (1e9, 1e9))
    await gc.collect(store, 1 << 40, 3600.0, grace_s=-1)
    assert list(store.references()) == [names[first]]
    os.utime(store.blob(first), (1e9, 1e9))
    await gc.collect(store, 1 << 40, 3600.0, grace_s=-1)
    assert list((store.directory / "l").iterdir()) == []
    assert list((store.directory / "blobs/sha256").iterdir()) == []


@pytest.mark.parametrize(
    "text", ["", "UPPER/x", "a b", "x:", "x@sha256:12", "http://a/b", "-x/y", "a/../b", "x" * 600]
)
def test_what_is_no_reference_is_refused(text):
    with pytest.raises(ImageFailed, match="reference"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "host", "repository", "wanted", "scheme"),
    [
        ("python", "registry-1.docker.io", "library/python", "latest", "https"),
        ("me/x:1", "registry-1.docker.io", "me/x", "1", "https"),
        ("localhost/x", "localhost", "x", "latest", "http"),
        ("127.0.0.1:5000/a/b:t", "127.0.0.1:5000", "a/b", "t", "http"),
        ("[::1]:5000/a", "[::1]:5000", "a", "latest", "http"),
        ("127.0.0.1.evil.com/a", "127.0.0.1.evil.com", "a", "latest", "https"),
        (f"ghcr.io/o/n:t@sha256:{'a' * 64}", "ghcr.io", "o/n", f"sha256:{'a' * 64}", "https"),
    ],
)
def test_references_are_read_as_everybody_reads_them(text, host, repository, wanted, scheme):
    found = parse(text)
    assert (found.host, found.repository, found.wanted, found.scheme) == (host, repository, wanted, scheme)


async def test_a_registry_elsewhere_sends_nobody_to_this_machine():
    wire = Wire("https://registry.example")
    for place in (
        "http://127.0.0.1/x",
        "https://localhost:8700/x",
        "http://[::1]/x",
        "http://registry.example/x",
        "https://[::1]/x",
        "https://[::ffff:127.0.0.1]/x",
        "https://0.0.0.0/x",
        "https://localhost./x",
        "https://169.254.169.254/latest",
        "https://[fe80::1]/x",
    ):
        with pytest.raises(Refused, match="not safe"):
            wire.follow(wire.base, place)
    assert str(wire.follow(wire.base, "https://cdn.example/x")) == "https://cdn.example/x"
    assert str(wire.follow(wire.base, "/y")) == "https://registry.example/y"


async def test_other_tools_read_our_layout_and_we_read_theirs(store, tmp_path):
    blobs, manifest = made_image(100_000)
    await fill(store, blobs, manifest)

    async def skopeo(*arguments):
        binary = shutil.which("skopeo")
        assert binary, "apt-get install skopeo"
        process = await asyncio.create_subprocess_exec(
            binary, "copy", "--src-tls-verify=false", "--dest-tls-verify=false", *arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await process.communicate()
        assert process.returncode == 0, out

    await write_docker_archive(store, store.load(manifest), "some/name:1", tmp_path / "archive.tar")
    async with real_registry(tmp_path) as host:
        await skopeo(f"docker-archive:{tmp_path / 'archive.tar'}:some/name:1", f"docker://{host}/loaded:1")
        await skopeo(f"oci:{store.directory}:mine", f"docker://{host}/theirs:1")
        await skopeo("--format=v2s2", f"docker://{host}/theirs:1", f"docker://{host}/docker:1")
        for name in ("theirs", "docker", "loaded"):
            other = Store(tmp_path / name)
            await other.open()
            async with Registry(parse(f"{host}/{name}:1"), patience=QUICK) as registry:
                found = await registry.pull(other)
            assert len(found.manifest.layers) == 2
            assert len(list((other.directory / "l").iterdir())) == 2


PULL = """
import asyncio, sys
from pathlib import Path
from headrace_runtimes.images.reference import parse
from headrace_runtimes.images.registry import Registry
from headrace_runtimes.images.store import Store
async def main():
    store = Store(Path(sys.argv[1]))
    await store.open()
    print("begin", flush=True)
    async with Registry(parse(sys.argv[2])) as registry:
        await registry.pull(store)
asyncio.run(main())
"""


async def test_who_is_killed_in_the_middle_leaves_nothing_that_is_taken_for_whole(store):
    bad = Bad(12_000_000)
    async with bad_registry(bad) as host:
        reference = parse(f"{host}/x:v")
        for tenths in range(1, 12, 2):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                PULL,
                str(store.directory),
                str(reference),
                stdout=asyncio.subprocess.PIPE,
            )
            await process.stdout.readline()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), tenths * 0.05)
            if process.returncode is None:
                process.kill()
            await process.wait()
            marks = {p.name for p in (store.directory / "done").iterdir()}
            assert marks <= {p.name for p in (store.directory / "l").iterdir()}
            found = store.find(str(reference))
            if found is not None:
                assert len(marks) == 2
        async with Registry(reference, patience=QUICK) as registry:
            found = await registry.pull(store)
    top, low = list((store.directory / "l").iterdir())
    assert sorted(len(list(p.iterdir())) for p in (top, low)) == [1, 2]
    nothing_half(store)
    await store.open()
    assert list((store.directory / "part").iterdir()) == []
    assert await gc.collect(store, 0, 0.0, grace_s=-1) == [str(reference)]
    assert list((store.directory / "l").iterdir()) == []


async def test_what_a_tag_means_is_asked_for_a_deployment(store, tmp_path):
    blobs, manifest = made_image(1000)
    await fill(store, blobs, manifest)
    async with real_registry(tmp_path) as host:
        async with Registry(parse(f"{host}/team/app:v1")) as registry:
            await registry.push(store, manifest)
        found = await find_image(f"{host}/team/app:v1")
        assert (found.digest, found.why) == (manifest, "")
        missing = await find_image(f"{host}/team/app:v2")
        assert missing.digest == ""
        assert "v2" in missing.why
    gone = await find_image(f"{host}/team/app:v1")
    assert gone.digest == ""
    assert host in gone.why
