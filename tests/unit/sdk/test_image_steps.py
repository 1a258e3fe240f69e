"""`Image` as its users write it: equal steps, equal images; what is wrong is said in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from headrace.errors import SpecError
from headrace.sdk.image import Image

Anything: Any = Image

WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: Image.python("3"), 'use a version such as "3.11"'),
    (lambda: Anything.python(3.12), "in quotes"),
    (lambda: Image.python("2.7"), 'use "3.9" or newer'),
    (lambda: Image.python("3.8"), 'use "3.9" or newer'),
    (lambda: Anything("3.12"), "Image.python"),
    (lambda: Anything.pip("six"), "begin with Image()"),
    (lambda: Anything().pip(["six"]), "one by one"),
    (lambda: Image().pip(), "at least one argument"),
    (lambda: Image().pip("six numpy"), "one by one"),
    (lambda: Image().pip("six=1.0"), "one by one"),
    (lambda: Image().pip("requirements.txt"), "give its lines"),
    (lambda: Image().pip("--index-url x"), "no options"),
    (lambda: Image().apt("-y"), "names of packages"),
    (lambda: Image().run(""), "non-empty"),
    (lambda: Image().copy("../x", "x"), "below the project's root"),
    (lambda: Image().copy("/etc/passwd", "x"), "below the project's root"),
    (lambda: Image().copy("x", "../x"), "leads outside"),
    (lambda: Image.from_dockerfile("/Dockerfile"), "below the project's root"),
    (lambda: Image.from_registry("https://ghcr.io/a/b"), "no image reference"),
    (lambda: Image().env(HEADRACE_X="1"), "platform's own"),
    (lambda: Image().env(A="\0"), "use a string"),
    (lambda: Image().pip("six").python("3.12"), "starts from one place"),
    (lambda: Image.python("3.12").from_registry("python"), "starts from one place"),
    (lambda: Image.python("3.12").from_dockerfile("Dockerfile"), "starts from one place"),
]


@pytest.mark.parametrize(("make", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_is_wrong_is_said_in_one_line(make: Callable[[], object], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        make()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "requirement",
    [
        "six", "torch==2.13.0", "torch >= 2.1, < 3", "uvicorn[standard]", "numpy<2; python_version < '3.12'",
        "a.b_c-d~=1.0", "pkg @ git+https://example.org/pkg.git@v1", "six (>=1.0)",
        "https://example.org/a-1.0-py3-none-any.whl",
    ],
)  # fmt: skip
def test_requirements_as_pip_takes_them(requirement: str) -> None:
    assert Image().pip(requirement).spec.layers == (("pip", (requirement,)),)


def test_the_start_on_an_empty_image_is_a_start() -> None:
    assert Image().python("3.12") == Image.python("3.12")


def test_equal_definitions_are_equal() -> None:
    def made() -> Image:
        return Image.python("3.11").pip("six").env(B="2", A="1").copy("data", "data")

    assert made() == made()
    assert hash(made()) == hash(made())
    assert made().digest == made().digest
    assert Image().env(A="1", B="2").digest == Image().env(B="2", A="1").digest
    assert made().digest != made().run("true").digest
    assert Image().digest == ""


def test_copied_files_count(tmp_path: Path) -> None:
    image = Image().copy("data", "data")
    for root in ("a", "b"):
        (tmp_path / root / "data").mkdir(parents=True)
        (tmp_path / root / "data/x.txt").write_text("same")
    first = image.digest_in(tmp_path / "a")
    assert first == image.digest_in(tmp_path / "b") != image.digest
    (tmp_path / "b/data/x.txt").write_text("other")
    assert image.digest_in(tmp_path / "b") != first
    with pytest.raises(SpecError, match="data"):
        image.digest_in(tmp_path)
