"""Bundles: what is in them, that they are the same bytes everywhere, and what is refused."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from pathlib import Path

import pytest
from headrace.errors import BundleError
from headrace.sdk import bundle as bundles
from headrace.sdk.bundle import make_bundle
from hypothesis import given
from hypothesis import strategies as st

PROJECT = {
    "app.py": (
        "import json, os.path\n"
        "import numpy as np\n"
        "import headrace\n"
        "from typing import TYPE_CHECKING\n"
        "from helpers import one\n"
        "from pkg.deep import thing, other\n"
        "import nothere_at_all\n"
        "if TYPE_CHECKING:\n    import aiohttp\n"
        "try:\n    import click.testing\nexcept ImportError:\n    pass\n"
        "def late():\n    import lazy_local\n    import rich\n"
        "if __name__ == '__main__':\n    import psutil\n"
    ),
    "helpers.py": "import pydantic\none = 1\n",
    "lazy_local.py": "",
    "unused.py": "import secret_of_unused",
    "pkg/__init__.py": "from . import sibling\n",
    "pkg/sibling.py": "from .deep import other\n",
    "pkg/deep/__init__.py": "",
    "pkg/deep/thing.py": "from ..sibling import *\n",
    "pkg/deep/other.py": "import msgspec\n",
    "pkg/unused.py": "",
}


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def names(data: bytes) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(data)).namelist()


def test_holds_what_the_file_reaches_and_nothing_else(tmp_path: Path) -> None:
    bundle = make_bundle(write(tmp_path, PROJECT) / "app.py")
    assert names(bundle.data) == [
        "app.py",
        "helpers.py",
        "lazy_local.py",
        "pkg/__init__.py",
        "pkg/deep/__init__.py",
        "pkg/deep/other.py",
        "pkg/deep/thing.py",
        "pkg/sibling.py",
    ]
    assert bundle.module == "app"
    assert bundle.sha256 == hashlib.sha256(bundle.data).hexdigest()


def test_packages_are_installed_ones_imported_at_the_top(tmp_path: Path) -> None:
    bundle = make_bundle(write(tmp_path, PROJECT) / "app.py")
    assert bundle.packages == ("click.testing", "msgspec", "numpy", "pydantic")


def test_is_the_same_wherever_and_whenever(tmp_path: Path) -> None:
    one = write(tmp_path / "one", PROJECT)
    two = write(tmp_path / "a" / "b" / "two", dict(reversed(PROJECT.items())))
    for number, path in enumerate(sorted(two.rglob("*.py"))):
        path.chmod(0o700 if number % 2 else 0o444)
        os.utime(path, (1_000_000_000 + number, 1_000_000_000 + number))
    first, second = make_bundle(one / "app.py"), make_bundle(two / "app.py")
    assert first.sha256 == second.sha256
    assert first.data == second.data


def test_a_changed_byte_changes_the_hash(tmp_path: Path) -> None:
    root = write(tmp_path, PROJECT)
    before = make_bundle(root / "app.py").sha256
    (root / "pkg" / "unused.py").write_text("x = 1")
    assert make_bundle(root / "app.py").sha256 == before
    (root / "helpers.py").write_text("one = 2")
    assert make_bundle(root / "app.py").sha256 != before


def test_a_file_of_a_package_is_bundled_from_the_packages_root(tmp_path: Path) -> None:
    root = write(
        tmp_path, {"pkg/__init__.py": "", "pkg/app.py": "from .util import x", "pkg/util.py": "x = 1"}
    )
    bundle = make_bundle(root / "pkg" / "app.py")
    assert (bundle.module, bundle.root) == ("pkg.app", tmp_path.resolve())
    assert names(bundle.data) == ["pkg/__init__.py", "pkg/app.py", "pkg/util.py"]


def test_includes_what_headrace_toml_lists(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "app.py": "",
            "data/a.txt": "a",
            "data/.hidden/b.txt": "b",
            "data/node_modules/c.txt": "c",
            "data/d.pyc": "d",
            "headrace.toml": 'port = 1\n[bundle]\ninclude = ["data/**/*"]\n',
        },
    )
    assert names(make_bundle(root / "app.py").data) == ["app.py", "data/a.txt"]


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ('[bundle]\ninclude = ["../x"]', "must stay below"),
        ('[bundle]\ninclude = ["/etc/passwd"]', "must stay below"),
        ('[bundle]\ninclude = ["none/*"]', "matches no file"),
        ('[bundle]\ninclude = "data"', "list of patterns"),
        ("[bundle]\nexclude = []", "knows only include"),
        ("bundle = 3", "list of patterns"),
        ("[bundle", "headrace.toml"),
    ],
)
def test_a_wrong_headrace_toml_is_refused(tmp_path: Path, toml: str, says: str) -> None:
    root = write(tmp_path, {"app.py": "", "headrace.toml": toml})
    with pytest.raises(BundleError, match=says):
        make_bundle(root / "app.py")


def test_links_out_of_the_root_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"outside.py": "secret = 1", "key.txt": "k"})
    root = write(tmp_path / "project", {"app.py": "import helpers"})
    (root / "helpers.py").symlink_to(tmp_path / "outside.py")
    with pytest.raises(BundleError, match=r"helpers\.py links to .*outside"):
        make_bundle(root / "app.py")
    (root / "helpers.py").unlink()
    (root / "k.txt").symlink_to(tmp_path / "key.txt")
    write(root, {"headrace.toml": '[bundle]\ninclude = ["*.txt"]'})
    with pytest.raises(BundleError, match=r"k\.txt links to"):
        make_bundle(root / "app.py")


def test_a_large_bundle_names_its_largest_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "MAX_BYTES", 2 << 20)
    root = write(tmp_path, {"app.py": "", "headrace.toml": '[bundle]\ninclude = ["*.bin"]'})
    (root / "big.bin").write_bytes(b"x" * (3 << 20))
    with pytest.raises(BundleError, match=r"3 MiB, and 2 MiB is the limit; largest: big\.bin \(3 MiB\)"):
        make_bundle(root / "app.py")


@pytest.mark.parametrize(
    ("name", "says"),
    [("missing.py", "not a file"), ("notes.txt", "not a Python file"), ("my-app.py", "cannot be imported"),
     ("json.py", "would hide"), ("headrace.py", "would hide")],
)  # fmt: skip
def test_files_that_cannot_be_an_entry(tmp_path: Path, name: str, says: str) -> None:
    if name != "missing.py":
        (tmp_path / name).write_text("")
    with pytest.raises(BundleError, match=says):
        make_bundle(tmp_path / name)


def test_a_syntax_error_names_file_and_line(tmp_path: Path) -> None:
    root = write(tmp_path, {"app.py": "import bad", "bad.py": "x = 1\ndef :"})
    with pytest.raises(BundleError, match=r"bad\.py, line 2"):
        make_bundle(root / "app.py")


def test_import_cycles_end(tmp_path: Path) -> None:
    root = write(tmp_path, {"app.py": "import b", "b.py": "import app"})
    assert make_bundle(root / "app.py").files == ("app.py", "b.py")


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{3,8}", fullmatch=True), st.binary(max_size=50), min_size=1, max_size=5
    )
)
def test_zip_does_not_depend_on_the_order(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, bytes]
) -> None:
    root = tmp_path_factory.mktemp("zip")
    (root / "app.py").write_text("")
    (root / "headrace.toml").write_text('[bundle]\ninclude = ["*.dat"]')
    for name, data in content.items():
        (root / f"{name}.dat").write_bytes(data)
    one = make_bundle(root / "app.py")
    archive = zipfile.ZipFile(io.BytesIO(one.data))
    assert archive.namelist() == sorted(archive.namelist())
    assert {name: archive.read(f"{name}.dat") for name in content} == content
    assert make_bundle(root / "app.py").data == one.data
