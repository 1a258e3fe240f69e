"""Settings that only hosts use: what cannot work here is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from headrace.cli.app import run
from headrace.cli.start import wrong_here
from headrace.config import load_settings


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of whoever runs the tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADRACE_DATA_DIR", str(tmp_path / "data"))


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("oci_binary", "nope", "nope is no program here"),
        ("oci_binary", "/no/runc", "/no/runc is no program here"),
        ("oci_binary", "runsc", "runsc cannot be used"),
        ("criu", "/nope", "/nope is not installed"),
        ("python_image", "A B:{version}", "no image reference"),
        ("runtimes", "podman", "There is no runtime 'podman'"),
        ("runtimes", "process,", ""),
        ("runtimes", ",", "Name at least one"),
        ("runtimes", "auto,process", "stands alone"),
        ("runtimes", "process,elsewhere", "No module named 'nothing_of_that_name'"),
    ],
)
@pytest.mark.parametrize("command", ["up", "dev"])
def test_a_setting_that_no_host_could_use_is_refused_with_its_source(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    command: str,
    name: str,
    value: str,
    why: str,
) -> None:
    about = tmp_path / "site" / "elsewhere-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[headrace.runtimes]\nelsewhere = nothing_of_that_name:Runtime\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv(f"HEADRACE_{name.upper()}", value)
    if not why:
        assert wrong_here(load_settings(starting=True)) is None
        return
    assert run([command, *(["app.py"] if command == "dev" else [])]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"headrace: HEADRACE_{name.upper()}={value}: ")
    assert why in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "data").exists()


def test_the_usual_settings_are_fine_here() -> None:
    assert wrong_here(load_settings({}, {})) is None
