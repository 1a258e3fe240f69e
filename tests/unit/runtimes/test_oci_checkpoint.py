"""Checkpoints: what they are of, where CRIU is refused, and how long they are kept."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.oci import criu
from headrace_runtimes.oci.binary import Binary
from headrace_runtimes.oci.checkpoint import CheckpointFailed, Checkpoints, Counts, Identity
from headrace_runtimes.oci.criu import Versions, first_error
from headrace_runtimes.oci.keeper import with_ids
from headrace_runtimes.oci.slots import FIRST_ID, ID_COUNT
from hypothesis import given
from hypothesis import strategies as st

VERSIONS = Versions("6.18.44", "4.1.1", "runc version 1.1.5", "0123456789abcdef", "boot")
IDENTITY = Identity(VERSIONS, "bundle", "image", "engine", "more", {"A": "1"})
DUMPS = """#!/bin/sh
# Stands in for a runc on a machine whose CRIU works: ``checkpoint`` writes an image of its own.
while [ "$1" != checkpoint ]; do shift; done
while [ $# -gt 1 ]; do
    [ "$1" = --image-path ] && head -c 1000 /dev/zero > "$2/pages-1.img"
    shift
done
"""
REFUSES = """#!/bin/sh
while [ "$1" != checkpoint ]; do shift; done
while [ $# -gt 1 ]; do
    [ "$1" = --work-path ] && echo "(00.1) Error (criu/x.c:1): inet: Connected TCP socket" > "$2/dump.log"
    shift
done
echo "level=error msg=\\"criu failed\\"" >&2
exit 1
"""


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def place(directory: Path) -> Path:
    directory.mkdir()
    return directory / "criu"


async def passes(directory: Path) -> None:
    assert (directory / "image" / "pages-1.img").stat().st_size == 1000


async def fails(directory: Path) -> None:
    raise OSError("no answer within 10 s")


async def checkpoints(tmp_path: Path, text: str = DUMPS, **more: object) -> Checkpoints:
    made = Checkpoints(
        tmp_path / "kept",
        Binary(str(program(tmp_path / "runc", text)), tmp_path / "state"),
        **more,  # type: ignore[arg-type]
    )
    await made.open(VERSIONS)
    return made


@given(
    st.sampled_from(["bundle", "image", "engine", "more", "env", "versions"]),
    st.text(max_size=5),
)
def test_a_key_is_of_all_that_matters(name: str, text: str) -> None:
    other = {
        "bundle": f"bundle{text}", "image": f"image{text}", "engine": f"engine{text}",
        "more": f"more{text}", "env": {"A": f"1{text}"},
        "versions": replace(VERSIONS, kernel=f"6.18.44{text}"),
    }  # fmt: skip
    changed = replace(IDENTITY, **{name: other[name]})  # type: ignore[arg-type]
    assert (changed.key == IDENTITY.key) == (not text)
    assert replace(IDENTITY, env={"A": "1", "B": "2"}).key == replace(IDENTITY, env={"B": "2", "A": "1"}).key


def test_where_criu_is_refused_the_reason_is_told(tmp_path: Path) -> None:
    runc = Binary(str(program(tmp_path / "runc", "#!/bin/sh\necho runc version 1.1.5\n")), tmp_path)
    assert criu.support(replace(runc, path="/usr/bin/crun"))[1].startswith("checkpoints are made by runc")
    assert "is not installed" in criu.support(replace(runc, criu="no-such-criu"))[1]
    named = program(tmp_path / "criu-4", "#!/bin/sh\n")
    assert criu.support(replace(runc, criu=str(named)))[1].endswith("is called criu, not criu-4")
    if os.geteuid() != 0:
        return
    old = program(
        place(tmp_path / "old"),
        "#!/bin/sh\n[ $1 = --version ] && echo Version: 3.17.1 && exit\n"
        "echo 'Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds' >&2\n"
        "echo 'Error (criu/crtools.c:260): Could not initialize' >&2\nexit 1\n",
    )
    versions, why = criu.support(replace(runc, criu=str(old)))
    assert versions is None
    assert why == (
        f"criu 3.17.1 does not work with the kernel {os.uname().release}: "
        "vdso: Unexpected rt vDSO area bounds (criu check)"
    )
    new = program(place(tmp_path / "new"), "#!/bin/sh\n[ $1 = --version ] && echo Version: 4.1.1\nexit 0\n")
    versions, why = criu.support(replace(runc, criu=str(new)))
    assert why == ""
    assert versions is not None
    assert (versions.criu, versions.runtime) == ("4.1.1", "runc version 1.1.5")
    broken = program(place(tmp_path / "broken"), "no program")
    assert "does not run" in criu.support(replace(runc, criu=str(broken)))[1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("(00.01) Warn\n(00.02) Error (a.c:1): first\n(00.03) Error (b.c:2): second\n", "first"),
        ("runc: something\nelse\n", "else"),
        ("", "it gives no reason"),
    ],
)
def test_the_first_complaint_counts(text: str, told: str) -> None:
    assert first_error(text) == told


async def test_published_after_its_trial_only(tmp_path: Path) -> None:
    kept = await checkpoints(tmp_path)
    seen: list[Path] = []

    async def trial(directory: Path) -> None:
        assert await kept.find(IDENTITY) is None, "nobody uses it before"
        await passes(directory)
        seen.append(directory)

    await kept.make(IDENTITY, "c1", trial)
    assert seen
    assert not seen[0].exists()
    made = await kept.find(IDENTITY)
    assert made is not None
    assert made.bytes == 4096, "what it takes on the disk"
    assert await kept.find(replace(IDENTITY, bundle="other")) is None
    assert stat.S_IMODE((tmp_path / "kept/good").stat().st_mode) == 0o700, "it is somebody's memory"
    assert b'"A"' not in (made.directory / "checkpoint.json").read_bytes()
    assert kept.counts == Counts(taken=1)


async def test_one_that_fails_its_trial_is_set_aside(tmp_path: Path) -> None:
    now = [1000.0]
    kept = await checkpoints(tmp_path, now=lambda: now[0])
    with pytest.raises(CheckpointFailed, match="did not pass its trial: no answer within 10 s") as failed:
        await kept.make(IDENTITY, "c1", fails)
    assert failed.value.ended
    assert await kept.find(IDENTITY) is None
    bad = tmp_path / "kept/bad" / IDENTITY.key
    assert json.loads((bad / "why.json").read_text())["why"] == "trial: no answer within 10 s"
    assert not (bad / "image").exists(), "memory of a bad one is not kept"
    assert not list((tmp_path / "kept/new").iterdir())
    with pytest.raises(CheckpointFailed, match="made now: the last one failed"):
        await kept.make(IDENTITY, "c2", passes)
    assert await kept.why_not(replace(IDENTITY, bundle="other")) == "", "others are not concerned"
    now[0] += 3601.0
    assert await kept.make(IDENTITY, "c3", passes) is None, "what the trial gave"
    assert await kept.find(IDENTITY) is not None
    assert not bad.exists()
    assert kept.counts == Counts(taken=2, trial_failed=1)
    assert kept.counts.rate == pytest.approx(2 / 3)


async def test_what_is_beside_the_memory_belongs_to_it(tmp_path: Path) -> None:
    kept = await checkpoints(tmp_path)
    steps: list[str] = []

    async def before() -> None:
        steps.append("before")

    async def beside(directory: Path) -> None:
        steps.append("beside")
        assert (directory / "image" / "pages-1.img").exists(), "it has been taken by then"
        (directory / "disk.img").write_bytes(b"x" * 8192)

    async def trial(directory: Path) -> str:
        steps.append("trial")
        assert (directory / "disk.img").exists()
        return "up"

    assert await kept.make(IDENTITY, "c1", trial, before=before, beside=beside) == "up"
    assert steps == ["before", "beside", "trial"]
    found = await kept.find(IDENTITY)
    assert found is not None
    assert found.bytes == 4096 + 8192

    async def breaks(directory: Path) -> None:
        (directory / "disk.img").write_bytes(b"x")
        raise OSError("no space")

    other = replace(IDENTITY, bundle="other")
    with pytest.raises(CheckpointFailed, match="cannot be taken: no space") as failed:
        await kept.make(other, "c2", trial, beside=breaks)
    assert failed.value.ended, "it was dumped before that"
    assert not (tmp_path / "kept/bad" / other.key / "disk.img").exists()


async def test_one_that_does_not_park_is_not_dumped(tmp_path: Path) -> None:
    kept = await checkpoints(tmp_path)

    async def before() -> None:
        raise PrepareFailed("The engine does not let go.")

    with pytest.raises(CheckpointFailed, match="does not let go") as failed:
        await kept.make(IDENTITY, "c1", passes, before=before)
    assert not failed.value.ended
    assert kept.counts == Counts(take_failed=1)


@given(st.integers(0, 15_999), st.integers(0, 15_999))
def test_the_image_gets_the_ids_of_another_namespace(old: int, new: int) -> None:
    ids = [FIRST_ID + slot * ID_COUNT for slot in (old, new)]
    images = [bytes.fromhex("19435654064947551c000000") + entry(first) + entry(first) for first in ids]
    assert with_ids(images[0], *ids) == images[1]


def entry(first: int) -> bytes:
    """A mapping as CRIU writes it: from 0 inside to ``first`` on the host, 65536 ids."""
    number = bytes([first >> shift & 0x7F | 0x80 for shift in (0, 7, 14, 21)]) + bytes([first >> 28])
    return bytes.fromhex("0a0c080010") + number + bytes.fromhex("18808004")


def test_an_image_of_another_form_is_refused() -> None:
    with pytest.raises(OSError, match="1 times instead of 2"):
        with_ids(entry(FIRST_ID), FIRST_ID, FIRST_ID + ID_COUNT)


async def test_what_cannot_be_taken_is_told_in_crius_words(tmp_path: Path) -> None:
    kept = await checkpoints(tmp_path, REFUSES)
    with pytest.raises(CheckpointFailed, match="inet: Connected TCP socket"):
        await kept.make(IDENTITY, "c1", passes)
    assert kept.counts == Counts(take_failed=1)
    assert kept.counts.rate == 0.0
    assert Counts().rate is None
    assert "Connected TCP socket" in (tmp_path / "kept/bad" / IDENTITY.key / "work/dump.log").read_text()


async def test_one_that_fails_later_is_set_aside_and_the_normal_path_used(tmp_path: Path) -> None:
    kept = await checkpoints(tmp_path)
    await kept.make(IDENTITY, "c1", passes)

    async def start(directory: Path) -> str:
        await passes(directory)
        return "up"

    assert await kept.restore(IDENTITY, start) == "up"
    assert await kept.restore(IDENTITY, fails) is None
    assert await kept.find(IDENTITY) is None
    assert await kept.restore(IDENTITY, start) is None
    assert kept.counts == Counts(taken=1, restored=1, restore_failed=1)


async def test_who_opens_lets_go_what_cannot_be_restored(tmp_path: Path) -> None:
    kept = await checkpoints(tmp_path)
    await kept.make(IDENTITY, "c1", passes)
    (tmp_path / "kept/new/half").mkdir()
    (tmp_path / "kept/good/broken").mkdir()
    await kept.open(VERSIONS)
    assert await kept.find(IDENTITY) is not None
    assert not (tmp_path / "kept/new/half").exists()
    assert not (tmp_path / "kept/good/broken").exists()
    await kept.open(replace(VERSIONS, kernel="6.19"))
    assert await kept.find(IDENTITY) is None


async def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    kept = await checkpoints(tmp_path, keep_bytes=2 * 4096 + 2048)
    several = [replace(IDENTITY, bundle=name) for name in ("a", "b", "c")]
    for age, identity in enumerate(several[:2]):
        await kept.make(identity, "c", passes)
        made = await kept.find(identity)
        assert made is not None
        os.utime(made.directory, (1000.0 + age, 1000.0 + age))
    assert await kept.restore(several[0], passes) is None
    await kept.make(several[2], "c", passes)
    assert [await kept.find(identity) is not None for identity in several] == [True, False, True]
