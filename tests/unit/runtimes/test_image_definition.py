"""A definition is its own name, and travels with its files in bytes that are the same everywhere."""

import io
import os
import zipfile

import pytest
from headrace_runtimes.errors import ImageFailed
from headrace_runtimes.images.context import pack, unpack
from headrace_runtimes.images.definition import Image, check, decode, refused_by_process
from hypothesis import given
from hypothesis import strategies as st

COPY = Image(steps=(("pip", ("x==1",)), ("copy", ("data", "/srv/data")), ("copy", ("one.txt", "one"))))


@pytest.fixture
def project(tmp_path):
    root = tmp_path / "project"
    (root / "data/deep/__pycache__").mkdir(parents=True)
    (root / "data/deep/__pycache__/x.pyc").write_bytes(b"no")
    (root / "data/deep/tool").write_text("#!/bin/sh\n")
    (root / "data/deep/tool").chmod(0o755)
    (root / "data/ü").write_text("1")
    (root / "one.txt").write_text("one")
    return root


def test_the_same_content_gives_the_same_bytes_and_other_content_another_digest(project, tmp_path):
    image, data = pack(COPY, project)
    os.utime(project / "one.txt", (1, 1))
    assert pack(COPY, project) == (image, data)
    assert image.digest != COPY.digest
    target = tmp_path / "there"
    target.mkdir()
    assert unpack(data, target) == image
    assert decode(image.encode()) == image
    found = sorted(str(p.relative_to(target)) for p in target.rglob("*") if p.is_file())
    assert found == ["data/deep/tool", "data/ü", "one.txt"]
    assert (target / "data/deep/tool").stat().st_mode & 0o777 == 0o755
    (project / "one.txt").write_text("two")
    assert pack(COPY, project)[0].digest != image.digest
    (project / "one.txt").write_text("one")
    (project / "data/deep/tool").chmod(0o644)
    assert pack(COPY, project)[0].digest != image.digest


def test_a_context_may_hold_what_another_step_names(project, tmp_path):
    (project / "Dockerfile").write_text("FROM scratch\n")
    (project / "venv").mkdir()
    (project / "venv/x").write_text("1")
    image = Image(steps=(("from_dockerfile", ("Dockerfile", ".")), ("copy", ("venv", "/v"))))
    whole, data = pack(image, project)
    assert [name for name, _ in whole.files] == [".", "Dockerfile", "venv"]
    (tmp_path / "t").mkdir()
    assert unpack(data, tmp_path / "t") == whole


@pytest.mark.parametrize(
    "path", ["../project/one.txt", "/etc/passwd", "missing", "out", "way/passwd", "way", "pipe"]
)
def test_files_come_from_the_project_only(project, path):
    (project / "out").symlink_to("/etc/passwd")
    (project / "way").symlink_to("/etc")
    os.mkfifo(project / "pipe")
    with pytest.raises(ImageFailed):
        pack(Image(steps=(("copy", (path, "/x")),)), project)


def test_what_was_changed_on_the_way_is_refused(project, tmp_path):
    _, data = pack(COPY, project)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {e.filename: archive.read(e) for e in archive.infolist()}

    def changed(**more):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in (entries | more.get("add", {})).items():
                if name != more.get("drop"):
                    archive.writestr(name, content)
        return buffer.getvalue()

    for wrong in (
        b"", data[:-30], changed(drop="image.json"), changed(drop="files/one.txt"),
        changed(add={"files/one.txt": b"evil"}), changed(add={"files/../../evil": b"x"}),
        changed(add={"files//etc/evil": b"x"}), changed(add={"files/data/more": b"x"}),
        changed(add={"image.json": b"[]"}),
    ):  # fmt: skip
        target = tmp_path / os.urandom(4).hex()
        target.mkdir()
        with pytest.raises(ImageFailed):
            unpack(wrong, target)
        assert list(target.iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir() if "evil" in p.name) == []


@pytest.mark.parametrize(
    "image",
    [
        Image(steps=(("pip", ("--index-url=http://evil",)),)),
        Image(steps=(("apt", ("-o=x",)),)),
        Image(steps=(("apt", ("a;b",)),)),
        Image(steps=(("env", ("1X=2",)),)),
        Image(steps=(("env", ("LD PRELOAD=x",)),)),
        Image(steps=(("copy", ("a",)),)),
        Image(steps=(("copy", ("a", "/x/../y")),)),
        Image(steps=(("run", ("a\0b",)),)),
        Image(steps=(("from_registry", ("NOT A REF",)),)),
        Image(steps=(("pip", ("x",)), ("from_registry", ("a/b",)))),
        Image(python="3.11", steps=(("from_registry", ("a/b",)),)),
        Image(python="3.11; rm"),
        Image(steps=(("rm", ("x",)),)),
        Image(steps=(("run", ()),)),
    ],
)
def test_steps_that_make_no_sense_are_refused(image):
    with pytest.raises(ImageFailed):
        check(image)


def test_the_process_runtime_says_what_it_cannot_do():
    for step in (("apt", ("x",)), ("run", ("x",)), ("from_registry", ("a/b",)), ("copy", ("a", "/b"))):
        assert "host" in refused_by_process(Image(steps=(step,)))
    assert refused_by_process(Image("3.11", (("pip", ("x",)), ("env", ("A=1",)), ("copy", ("a", "b"))))) == ""


@given(st.binary(max_size=200))
def test_no_bytes_but_ours_are_a_definition(data):
    try:
        image = decode(data)
    except ImageFailed:
        return
    check(image)
