"""Rules of the repository that no other tool checks."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, get_overloads

import headrace
import msgspec
import pytest
from headrace.config import Settings
from headrace_autoscaler.configs import (
    BurstConfig,
    DemandConfig,
    ForecastConfig,
    KeepConfig,
    LimitConfig,
    PoolConfig,
)
from headrace_autoscaler.spec import Config

ROOT = Path(__file__).resolve().parents[2]
SOURCE_ROOTS = ("platform", "runtimes", "autoscaler", "providers")
LOCKS = sorted(ROOT.glob("requirements*.lock"))
MAX_LINES = 400


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def _name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None, requirement
    return match[0].lower().replace("_", "-")


def _tracked(*patterns: str) -> list[Path]:
    """Files that git has; in a copy without git, all of them."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if done.returncode != 0:
        return [path for pattern in patterns for path in ROOT.rglob(pattern) if ".venv" not in path.parts]
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("folder", [*SOURCE_ROOTS, "tests"])
def test_no_source_root_is_a_package(folder: str) -> None:
    # `platform/__init__.py` would shadow the standard library's `platform` and break everything.
    assert not (ROOT / folder / "__init__.py").exists()


def test_tests_have_no_packages_and_no_name_twice() -> None:
    files = [path for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert not [path for path in files if path.name == "__init__.py"]
    names = [path.name for path in files]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: str(lock.name))
def test_locks_hold_hashes_and_no_addresses(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert not re.search(r"--(extra-)?index|--find-links|--trusted-host| @ ", text)
    pins = re.findall(r"^[a-z0-9][\w.-]*==\S+", text, re.MULTILINE)
    assert len(pins) == len(re.findall(r"^[a-z0-9]", text, re.MULTILINE))
    assert text.count("--hash=sha256:") >= len(pins)


def test_torch_is_in_no_lock() -> None:
    # Its builds differ by machine, and a hash would allow just one of them (scripts/setup.sh).
    assert LOCKS
    for lock in LOCKS:
        assert not re.search(r"^(torch|nvidia-)", lock.read_text(), re.MULTILINE)


def test_locks_hold_all_that_the_project_asks_for() -> None:
    project = _project()
    locked = {
        _name(line)
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if re.match(r"[a-z0-9]", line)
    }
    wanted = list(project["dependencies"])
    for extra in ("dev", "bench", "examples"):
        wanted += project["optional-dependencies"][extra]
    assert not {_name(requirement) for requirement in wanted} - locked


def test_every_dependency_says_why_it_is_there() -> None:
    project = _project()
    wanted = {_name(requirement) for requirement in project["dependencies"]}
    for requirements in project["optional-dependencies"].values():
        wanted |= {_name(requirement) for requirement in requirements}
    rows = re.findall(
        r"^\| `([^`]+)` \| [^|]* \| ([^|]+) \|$", (ROOT / "docs/dependencies.md").read_text(), re.MULTILINE
    )
    reasons = {name.lower(): reason.strip() for name, reason in rows}
    assert wanted == set(reasons)
    assert all(reasons.values())


def _lines(path: Path) -> int:
    """Lines with something on them."""
    return sum(bool(line.strip()) for line in path.read_text().splitlines())


def test_modules_stay_below_the_hard_bound() -> None:
    files = _tracked(*(f"{root}/**/*.py" for root in SOURCE_ROOTS))
    long = {str(path.relative_to(ROOT)): _lines(path) for path in files}
    assert not {name: lines for name, lines in long.items() if lines > MAX_LINES}


def test_packages_open_with_a_sentence() -> None:
    packages = [
        path for path in _tracked(*(f"{root}/**/*.py" for root in SOURCE_ROOTS)) if path.name == "__init__.py"
    ]
    assert packages
    for path in packages:
        assert re.match(r'"""[A-Z@`].{10,}', path.read_text()), f"{path} opens with no docstring"


def test_only_the_modules_named_for_it_import_ray() -> None:
    importing = re.compile(r"^\s*(?:import ray\b|from ray\b)", re.MULTILINE)
    found = {
        path
        for path in _tracked(*(f"{root}/**/*.py" for root in SOURCE_ROOTS))
        if importing.search(path.read_text())
    }
    named = re.compile(r"platform/headrace/cluster/ray_\w+\.py")
    assert not {str(path) for path in found if not named.search(path.as_posix())}


def test_scripts_can_be_run() -> None:
    for path in (ROOT / ".ci/run", *(ROOT / "scripts").glob("*.sh")):
        assert path.stat().st_mode & 0o111, path
        assert subprocess.run(["bash", "-n", path], timeout=30, check=False).returncode == 0


def test_the_license_is_apache_2() -> None:
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()
    assert _project()["license"] == "Apache-2.0"


def _rows(page: str) -> dict[str, str]:
    """First column (code) -> second column of every table row of a page."""
    text = (ROOT / "docs/reference" / page).read_text()
    return dict(re.findall(r"^\| `([^`|]+)` \| ?`?([^`|]*)`? ?\|", text, re.MULTILINE))


def test_the_settings_page_has_every_setting_with_its_default() -> None:
    rows = _rows("settings.md")
    for field in msgspec.structs.fields(Settings):
        default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
        assert rows.get(field.name, "(missing)").strip() == default, field.name


def test_the_sdk_page_has_every_option() -> None:
    text = (ROOT / "docs/reference/sdk.md").read_text()
    parameters = inspect.signature(get_overloads(headrace.endpoint)[-1]).parameters.values()
    options = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert options
    assert not [name for name in options if not re.search(rf"^\|[^|]*`{name}`", text, re.MULTILINE)]


def test_the_command_line_page_is_what_the_commands_say() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import cli_reference; print(cli_reference.text(), end='')"],
        cwd=ROOT / "scripts", capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert (ROOT / "docs/reference/cli.md").read_text() == done.stdout, "run `make docs`"


def test_the_autoscalers_page_has_its_parameters_with_their_defaults() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        tables = importlib.import_module("autoscaler_reference")
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    page = (ROOT / "docs/reference/autoscaler.md").read_text()
    assert page == tables.written(page), "run `make docs`"
    for kind in (DemandConfig, ForecastConfig, KeepConfig, BurstConfig, LimitConfig, PoolConfig, Config):
        part = page.partition(f"<!-- parameters: {kind.__name__} -->")[2].partition("<!-- /parameters -->")[0]
        shown = dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) \|", part, re.MULTILINE))
        fields = [f for f in msgspec.structs.fields(kind) if not isinstance(f.default, msgspec.Struct)]
        assert list(shown) == [f.name for f in fields]
        for field in fields:
            several = isinstance(field.default, tuple)
            texts = shown[field.name].split(", ") if several else [shown[field.name]]
            values = field.default if several else (field.default,)
            assert [t if t in ("None", "True", "False") else float(t) for t in texts] == [
                str(v) if v is None or isinstance(v, bool) else v for v in values
            ], field.name


def test_links_between_pages_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert not [link for link in broken if not link.endswith("benchmarks/RESULTS.md")]
