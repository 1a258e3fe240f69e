"""Layers of strangers: whatever the archive says, nothing outside is touched, nothing is endless."""

import contextlib
import gzip
import io
import os
import stat
import subprocess
import tarfile
import zlib

import pytest
from headrace_runtimes.errors import ImageFailed, PrepareFailed
from headrace_runtimes.images.tarstream import Bounds
from headrace_runtimes.images.unpack import OPAQUE_XATTR, split, unpack_layer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="owners and whiteouts need root")
pytestmark = root_only


def member(name, kind=tarfile.REGTYPE, data=b"", **more):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, len(data), 0o644 if kind != tarfile.DIRTYPE else 0o755
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def layer(path, *members, form=tarfile.PAX_FORMAT, pack=bytes):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    blob = path / "blob"
    blob.write_bytes(pack(buffer.getvalue()))
    return blob


@pytest.fixture
def place(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("kept")
    target = tmp_path / "deep" / "layer"
    target.mkdir(parents=True)
    return target


def outside_is_whole(place):
    top = place.parent.parent
    assert sorted(p.name for p in top.iterdir()) in (["blob", "deep", "outside"], ["deep", "outside"])
    assert [p.name for p in (top / "outside").iterdir()] == ["secret"]
    assert (top / "outside" / "secret").read_text() == "kept"
    assert [p.name for p in place.parent.iterdir()] == ["layer"]


@pytest.mark.parametrize(
    "pack", [bytes, gzip.compress, lambda d: gzip.compress(d[:700]) + gzip.compress(d[700:])]
)
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_what_is_ordinary_arrives_as_it_was(place, tmp_path, form, pack):
    long = "/".join(["d" * 60] * (2 if form == tarfile.USTAR_FORMAT else 5))
    blob = layer(
        tmp_path,
        member("./", tarfile.DIRTYPE),
        member("/etc/", tarfile.DIRTYPE, mode=0o700, uid=3, gid=4, mtime=1000),
        member("etc/a", data=b"hello", mode=0o4755, uid=5, mtime=2000),
        member("etc/b", tarfile.LNKTYPE, linkname="etc/a"),
        member("etc/c", tarfile.SYMTYPE, linkname="../../../outside"),
        member("etc/pipe", tarfile.FIFOTYPE),
        member(long + "/f", data=b"x" * 3000),
        member("etc/big-id", uid=70_000, gid=65_535),
        form=form,
        pack=pack,
    )
    found = unpack_layer(blob, place)
    etc = (place / "etc").stat()
    assert (stat.S_IMODE(etc.st_mode), etc.st_uid, etc.st_gid, etc.st_mtime) == (0o700, 3, 4, 1000)
    a = (place / "etc/a").stat()
    assert (stat.S_IMODE(a.st_mode), a.st_uid, a.st_mtime, a.st_nlink) == (0o4755, 5, 2000, 2)
    assert (place / "etc/a").read_bytes() == b"hello"
    assert os.readlink(place / "etc/c") == "../../../outside"
    assert stat.S_ISFIFO((place / "etc/pipe").lstat().st_mode)
    assert (place / long / "f").read_bytes() == b"x" * 3000
    strange = (place / "etc/big-id").stat()
    assert (strange.st_uid, strange.st_gid) == (65_534, 65_535)
    assert found.bytes == 3005
    outside_is_whole(place)


@pytest.mark.parametrize(
    "members",
    [
        [member("../outside/x", data=b"x")],
        [member("a/../../outside/x", data=b"x")],
        [member("a", tarfile.SYMTYPE, linkname="../../outside"), member("a/x", data=b"x")],
        [member("a", tarfile.SYMTYPE, linkname="/"), member("a/etc/", tarfile.DIRTYPE)],
        [member("a", tarfile.LNKTYPE, linkname="../../outside/secret")],
        [member("a", tarfile.LNKTYPE, linkname="/outside/secret")],
        [
            member("a", tarfile.SYMTYPE, linkname="../../outside"),
            member("b", tarfile.LNKTYPE, linkname="a/secret"),
        ],
        [member("d/", tarfile.DIRTYPE), member("b", tarfile.LNKTYPE, linkname="d")],
        [member("a", tarfile.LNKTYPE, linkname=".")],
        [member("d/x", data=b"1"), member("d", tarfile.SYMTYPE, linkname="/")],
        [member(".wh..")],
        [member(".wh...")],
        [member("a/.wh.")],
        [member("n" * 300)],
        [member("/".join(["d"] * 1000))],
        [member("a", data=b"1"), member("a/b", data=b"2")],
        [member("odd", b"Z")],
        [member("a", tarfile.SYMTYPE, linkname="x", pax_headers={"linkpath": "a\0b"})],
    ],
    ids=lambda m: f"{m[0][0].name[:20]}-{len(m)}",
)
def test_what_leads_outside_is_refused(place, tmp_path, members):
    blob = layer(tmp_path, *members)
    with pytest.raises((ImageFailed, PrepareFailed)):
        unpack_layer(blob, place)
    outside_is_whole(place)


def test_devices_are_left_out_and_attributes_that_speak_to_overlayfs_too(place, tmp_path):
    headers = {
        "SCHILY.xattr.trusted.overlay.redirect": "/../../etc",
        "SCHILY.xattr.security.selinux": "x",
        "SCHILY.xattr.user.mine": "1",
    }
    blob = layer(
        tmp_path,
        member("dev/mem", tarfile.CHRTYPE, devmajor=1, devminor=1),
        member("dev/white", tarfile.CHRTYPE),
        member("dev/sda", tarfile.BLKTYPE, devmajor=8),
        member("d/", tarfile.DIRTYPE, pax_headers=headers),
    )
    assert unpack_layer(blob, place).left_out == 3
    assert list((place / "dev").iterdir()) == []
    assert set(os.listxattr(place / "d")) <= {"user.mine"}


def test_whiteouts_take_the_form_of_overlayfs(place, tmp_path):
    blob = layer(
        tmp_path,
        member("a/", tarfile.DIRTYPE),
        member("a/.wh.gone"),
        member("b/", tarfile.DIRTYPE),
        member("b/.wh..wh..opq"),
        member("c/new", data=b"1"),
        member(".wh.c"),
        member(".wh.e"),
        member("e/f", data=b"2"),
        member(".wh.g"),
        member("g", data=b"3"),
        member(".wh..wh.plnk"),
    )
    unpack_layer(blob, place)
    gone = (place / "a/gone").lstat()
    assert stat.S_ISCHR(gone.st_mode)
    assert gone.st_rdev == 0
    for name in "bce":
        assert os.getxattr(place / name, OPAQUE_XATTR) == b"y"
    assert (place / "c/new").read_bytes() == b"1"
    assert (place / "g").read_bytes() == b"3"
    assert sorted(p.name for p in place.iterdir()) == list("abceg")


def test_the_later_of_two_wins_and_what_it_was_linked_to_stays(place, tmp_path):
    blob = layer(
        tmp_path,
        member("a", data=b"first"),
        member("b", tarfile.LNKTYPE, linkname="a"),
        member("b", data=b"second"),
        member("c", tarfile.SYMTYPE, linkname="../../outside/secret"),
        member("c", data=b"third"),
        member("s", tarfile.SYMTYPE, linkname="../../outside"),
        member("s/", tarfile.DIRTYPE),
        member("s/in", data=b"fourth"),
        member("a", tarfile.LNKTYPE, linkname="a"),
    )
    unpack_layer(blob, place)
    assert [(place / n).read_text() for n in ("a", "b", "c", "s/in")] == [
        "first",
        "second",
        "third",
        "fourth",
    ]
    outside_is_whole(place)


def test_holes_stay_holes_and_must_make_sense(place, tmp_path):
    source = tmp_path / "holes"
    with open(source, "wb") as file:
        file.write(b"begin")
        file.seek(50 << 20)
        file.write(b"end")
    blob = tmp_path / "blob"
    for form in ("gnu", "posix"):
        assert os.system(f"tar --sparse --format={form} -C {tmp_path} -cf {blob} holes") == 0
        unpack_layer(blob, place)
        there = place / "holes"
        assert there.read_bytes() == source.read_bytes()
        assert there.stat().st_blocks * 512 < 1 << 20
    with pytest.raises(ImageFailed, match="more than"):
        unpack_layer(blob, place, Bounds(unpacked=40 << 20))
    source.unlink()
    blob.unlink()
    outside_is_whole(place)


def test_what_has_no_end_is_refused(place, tmp_path):
    small = Bounds(unpacked=8 << 20, members=100)
    bomb = tmp_path / "blob"
    bomb.write_bytes(gzip.compress(layer(tmp_path, member("a", data=bytes(9 << 20))).read_bytes()))
    with pytest.raises(ImageFailed, match="more than 8 MiB"):
        unpack_layer(bomb, place, small)
    bomb.write_bytes(gzip.compress(bytes(64 << 20)))
    with pytest.raises(ImageFailed, match="more than 8 MiB"):
        unpack_layer(bomb, place, small)
    with pytest.raises(ImageFailed, match="100 members"):
        unpack_layer(layer(tmp_path, *(member(f"f{i}") for i in range(101))), place, small)
    long = layer(tmp_path, member("a", pax_headers={"comment": "x" * (2 << 20)}))
    with pytest.raises(ImageFailed, match="header is too large"):
        unpack_layer(long, place)
    huge, _ = member("a")
    huge.size = 1 << 60
    bomb.write_bytes(huge.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(ImageFailed):
        unpack_layer(bomb, place)


def test_directories_that_only_names_tell_of_are_counted(place, tmp_path):
    deep = [member(f"{i}/" + "a/" * 60 + "file") for i in range(20)]
    blob = layer(tmp_path, *deep)
    assert unpack_layer(blob, place, Bounds(members=2000)).bytes == 0
    again = place.parent / "again"
    again.mkdir()
    with pytest.raises(ImageFailed, match="more than 1000 files and directories"):
        unpack_layer(blob, again, Bounds(members=1000))
    made = sum(len(names) + len(files) for _, names, files in os.walk(again))
    assert made <= 1000


def test_names_without_data_leave_the_file_system_room_for_others(tmp_path):
    blob = layer(tmp_path, *(member(f"{i}/" + "a/" * 99 + "file") for i in range(200)), pack=gzip.compress)
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512m,nr_inodes=15000", "none", small], check=True)
    try:
        (small / "layer").mkdir()
        with pytest.raises(PrepareFailed, match=r"No space left for images \(files; .*Make room"):
            unpack_layer(blob, small / "layer")
        assert os.statvfs(small).f_favail > 4096
    finally:
        subprocess.run(["umount", small], check=True)


def test_what_is_cut_off_or_damaged_is_refused(place, tmp_path):
    whole = gzip.compress(layer(tmp_path, member("a", data=os.urandom(100_000))).read_bytes())
    for cut in (10, 500, 50_000, len(whole) - 1):
        (tmp_path / "blob").write_bytes(whole[:cut])
        with pytest.raises(ImageFailed):
            unpack_layer(tmp_path / "blob", place)
    (tmp_path / "blob").write_bytes(whole[:1000] + b"\xff" * 50 + whole[1050:])
    with pytest.raises(ImageFailed):
        unpack_layer(tmp_path / "blob", place)


names = st.lists(
    st.one_of(
        st.sampled_from(
            ["..", ".", "", "a", "b", "link", "etc", ".wh.a", ".wh..wh..opq", ".wh...", "\uff41", "a\u0301"]
        ),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    ),
    min_size=1,
    max_size=5,
).map("/".join)
kinds = st.sampled_from(
    [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
targets = st.one_of(names, st.sampled_from(["../../outside", "/", "../../outside/secret", "link", "a"]))


@given(members=st.lists(st.tuples(names, kinds, targets, st.integers(0, 0o7777)), max_size=12))
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_archive_reaches_outside(tmp_path_factory, members):
    top = tmp_path_factory.mktemp("any")
    (top / "outside").mkdir()
    (top / "outside" / "secret").write_text("kept")
    place = top / "deep" / "layer"
    place.mkdir(parents=True)
    blob = layer(
        top,
        *(
            member(name, kind, b"evil" if kind == tarfile.REGTYPE else b"", linkname=target, mode=mode)
            for name, kind, target, mode in members
        ),
    )
    with contextlib.suppress(ImageFailed, PrepareFailed):
        unpack_layer(blob, place)
    outside_is_whole(place)
    assert (top / "outside/secret").stat().st_nlink == 1
    for folder, _, files in os.walk(place):
        for name in files:
            about = os.lstat(os.path.join(folder, name))
            assert not stat.S_ISBLK(about.st_mode)
            assert not stat.S_ISCHR(about.st_mode) or about.st_rdev == 0


@given(data=st.binary(max_size=3000), pack=st.sampled_from([bytes, gzip.compress, zlib.compress]))
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_bytes_are_an_archive_or_refused(tmp_path_factory, data, pack):
    top = tmp_path_factory.mktemp("noise")
    (top / "layer").mkdir()
    (top / "blob").write_bytes(pack(data))
    with contextlib.suppress(ImageFailed):
        unpack_layer(top / "blob", top / "layer")


@given(name=names)
def test_parts_are_plain_names(name):
    try:
        parts = split(name)
    except ValueError:
        return
    assert all(part not in ("", ".", "..") and "/" not in part and "\0" not in part for part in parts)
