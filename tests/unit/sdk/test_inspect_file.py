"""Inspection: endpoints found in a file, in this process and in one of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import headrace
import pytest
from headrace.errors import BundleError, SpecError
from headrace.sdk.inspect import InspectionFailed, inspect_file, inspect_fresh

APP = """
import headrace
from helpers import factor
from other import imported
print("noise on stdout")

@headrace.endpoint
def double(x: int) -> int:
    '''Twice.'''
    return x * factor

@headrace.endpoint(name="kept")
class Kept:
    def __call__(self, text: str) -> str:
        return text

async def asgi(scope, receive, send): ...
app = headrace.endpoint(name="api")(asgi)
alias = double
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    (root / "app.py").write_text(APP)
    (root / "helpers.py").write_text("from click import testing\nimport msgspec\nfactor = 2\n")
    (root / "other.py").write_text("import headrace\n@headrace.endpoint\ndef imported() -> int: return 1\n")
    return root


def test_finds_what_the_file_defines(project: Path, tmp_path: Path) -> None:
    found = inspect_file(project / "app.py", tmp_path / "out")
    assert [(spec.name, spec.entry, spec.handler) for spec in found.specs] == [
        ("api", "app:app", "asgi"),
        ("double", "app:double", "function"),
        ("kept", "app:Kept", "class"),
    ]
    assert {spec.bundle for spec in found.specs} == {found.bundle.sha256}
    assert found.specs[1].imports == ("click", "click.testing", "msgspec")
    assert found.specs[1].openapi["info"]["description"] == "Twice."
    assert found.root == str(project.resolve())
    data = Path(found.bundle.path).read_bytes()
    assert len(data) == found.bundle.bytes
    assert zipfile.ZipFile(found.bundle.path).namelist() == ["app.py", "helpers.py", "other.py"]
    assert str(project) not in sys.path


def test_sees_changes_of_local_modules(project: Path, tmp_path: Path) -> None:
    first = inspect_file(project / "app.py", tmp_path / "out")
    (project / "helpers.py").write_text("import rich\nfactor = 3\n")
    second = inspect_file(project / "app.py", tmp_path / "out")
    assert second.specs[1].imports == ("rich",)
    assert second.bundle.sha256 != first.bundle.sha256


def test_a_fresh_process_gives_the_same(project: Path, tmp_path: Path) -> None:
    here = inspect_file(project / "app.py", tmp_path / "out")
    there = inspect_fresh(project / "app.py", tmp_path / "out")
    assert there == here


def test_the_command_prints_one_document(project: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "headrace.sdk.inspect",
        str(project / "app.py"),
        "--out",
        str(tmp_path / "o"),
    ]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    document = json.loads(done.stdout)
    assert sorted(document) == ["bundle", "contexts", "files", "root", "specs"]
    assert b"noise on stdout" in done.stderr


@pytest.mark.parametrize(
    ("source", "says", "traced"),
    [
        ("x = 1", "defines no endpoint", ""),
        ("import headrace\nboom()", "NameError: name 'boom'", "line 2"),
        ("raise SystemExit(3)", "SystemExit", "line 1"),
        ("import os\nos._exit(4)", "ended the process with code 4", ""),
        ("def f(:", "line 1", ""),
        ("import headrace\n@headrace.endpoint(cpus=1)\ndef f(): ...", "Did you mean 'cpu'", ""),
        (
            "import headrace\n@headrace.endpoint\ndef f(): ...\n@headrace.endpoint(name='f')\ndef g(): ...",
            "two endpoints named 'f'",
            "",
        ),
        (
            "import headrace\nclass T: pass\n@headrace.endpoint\ndef f(x: T): ...",
            "parameter 'x' is hinted T, which JSON cannot hold",
            "",
        ),
    ],
)
def test_failures_say_why(tmp_path: Path, source: str, says: str, traced: str) -> None:
    file = tmp_path / "broken_app.py"
    file.write_text(source)
    with pytest.raises(InspectionFailed) as caught:
        inspect_fresh(file, tmp_path / "out")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert traced in caught.value.traceback


def test_where_it_is_wrong_is_said_of_the_projects_own_files(tmp_path: Path) -> None:
    """Headrace and other packages may lie below the project: a clone, or an environment in it."""
    packages = tmp_path / "env" / "site-packages"
    shutil.copytree(
        Path(headrace.__file__).parent, tmp_path / "clone" / "headrace",
        ignore=shutil.ignore_patterns("__pycache__"),
    )  # fmt: skip
    packages.mkdir(parents=True)
    (packages / "thing.py").write_text(
        "import headrace\ndef wrong():\n    headrace.endpoint(cpus=1)\ndef fails():\n    1 / 0\n"
    )
    env = {**os.environ, "PYTHONPATH": f"{tmp_path / 'clone'}:{packages}"}

    def said(source: str) -> dict[str, str]:
        (tmp_path / "an_app.py").write_text(f"import headrace, thing\n\n{source}\n")
        command = [sys.executable, "-m", "headrace.sdk.inspect", "an_app.py", "--out", str(tmp_path / "o")]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, check=False, timeout=60)
        found: dict[str, str] = json.loads(done.stdout)
        return found

    for source in ("headrace.endpoint(cpus=1)", "thing.wrong()", "headrace.endpoint(memory='12')"):
        assert said(source)["error"].startswith("an_app.py, line 3: "), source
    first = said("thing.fails()")["traceback"].splitlines()[1]
    assert first.endswith('an_app.py", line 3, in <module>')


def test_errors_here_have_their_own_types(tmp_path: Path) -> None:
    (tmp_path / "one_app.py").write_text("import headrace\n@headrace.endpoint(gpu=1)\ndef f(): ...")
    with pytest.raises(SpecError):
        inspect_file(tmp_path / "one_app.py", tmp_path)
    with pytest.raises(BundleError):
        inspect_file(tmp_path / "none.py", tmp_path)


def test_an_import_that_hangs_is_given_up(tmp_path: Path) -> None:
    file = tmp_path / "slow_app.py"
    file.write_text("import threading\nthreading.Event().wait()")
    with pytest.raises(InspectionFailed, match="took more than 1 s"):
        inspect_fresh(file, tmp_path, timeout=1.0)


def test_user_code_sees_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_API_KEY", "hr_secret")
    file = tmp_path / "curious_app.py"
    file.write_text("import os\nraise RuntimeError(os.environ.get('HEADRACE_API_KEY'))")
    with pytest.raises(InspectionFailed, match="RuntimeError: None"):
        inspect_fresh(file, tmp_path)
    assert os.environ["HEADRACE_API_KEY"] == "hr_secret"
