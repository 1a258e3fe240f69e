"""What pages show is true: their Python runs, their commands are parsed, and the suite they name works."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from headrace.cli.app import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, kind: str) -> list[str]:
    return [text for found, text in FENCE.findall(page.read_text()) if found == kind]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# Signatures without bodies, for people who work on Headrace itself.
SIGNATURES = ROOT / "docs/reference/internals.md"


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python") and p != SIGNATURES], ids=name_of)
def test_python_is_python(page: Path) -> None:
    for text in blocks(page, "python"):
        compile(text, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("page", sorted((ROOT / "docs/how-to").glob("*.md")), ids=name_of)
def test_what_how_to_pages_declare_is_accepted(page: Path, tmp_path: Path) -> None:
    for number, text in enumerate(blocks(page, "python")):
        file = tmp_path / f"block{number}.py"
        file.write_text(f"import headrace\n{text}")
        runpy.run_path(str(file))


def commands(page: Path) -> list[list[str]]:
    lines = [line for text in blocks(page, "console") for line in text.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line[2:], comments=True) for line in lines if line.startswith("$ ")]
    return [line[1:] for line in words if line and line[0] == "headrace"]


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=name_of)
def test_commands_and_options_exist(page: Path) -> None:
    for words in commands(page):
        command: click.Command = cli
        rest = [word for word in words if word not in ("|", "&")]
        context = click.Context(cli, info_name="headrace")
        while isinstance(command, click.Group):
            name = rest.pop(0)
            found = command.get_command(context, name)
            assert found is not None, f"{name_of(page)}: there is no `headrace {name}`"
            command = found
        try:
            command.make_context(command.name, rest, parent=context)
        except click.exceptions.Exit:  # --help, --version
            continue
        except click.UsageError as error:
            pytest.fail(f"{name_of(page)}: headrace {' '.join(words)}: {error.format_message()}")


def test_the_suite_of_runtimes_runs_as_its_page_says(tmp_path: Path) -> None:
    text = next(b for b in blocks(ROOT / "docs/reference/runtimes.md", "python") if "CHECKS" in b)
    (tmp_path / "test_my_runtime.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "serves or steps",
         "test_my_runtime.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
