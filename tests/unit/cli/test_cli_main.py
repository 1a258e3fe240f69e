"""The command as a whole: what is imported, exit codes, one line per error, JSON documents."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import headrace.cli.main as cli_main
import pytest
from headrace.cli.app import COMMANDS, SUMMARIES, cli, run
from headrace.errors import DataDirError, EndpointNotFound, SpecError
from headrace.sdk.client import Client


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unused_tcp_port: int) -> None:
    """No platform, no key, no settings of whoever runs the tests."""
    monkeypatch.setenv("HEADRACE_URL", f"http://127.0.0.1:{unused_tcp_port}")
    monkeypatch.setenv("HEADRACE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("HEADRACE_API_KEY", raising=False)
    monkeypatch.delenv("HEADRACE_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)


def test_every_command_is_there_with_the_summary_that_help_shows() -> None:
    assert list(COMMANDS) == list(SUMMARIES)
    context = cli.make_context("headrace", [], resilient_parsing=True)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        assert command.help == SUMMARIES[name]


GROUPS = {
    "nodes": ("list", "add", "remove"),
    "jobs": ("submit", "list", "show", "cancel", "retry", "purge", "webhook-secret"),
    "images": ("list", "push"),
    "keys": ("create", "list", "revoke"),
    "secrets": ("set", "list", "delete", "rotate-key"),
}
LEAVES = [f"{name} {leaf}".strip() for name in COMMANDS for leaf in GROUPS.get(name, ("",))]


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_takes_json_and_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*name.split(), "--help"]) == 0
    assert "--json" in capsys.readouterr().out


def test_help_imports_neither_ray_nor_a_command_and_is_quick_to_load() -> None:
    script = (
        "import sys; from headrace.cli.app import run; code = run(['--help']);"
        "heavy = {'ray', 'rich', 'asyncio', 'psutil', 'headrace.cli.up', 'headrace.sdk.client'};"
        "print(sorted(heavy & set(sys.modules)), code, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stderr.strip() == "[] 0"
    assert "deploy" in done.stdout


def test_no_command_imports_ray() -> None:
    modules = sorted(set(COMMANDS.values()) | {"headrace.cluster.supervisor", "headrace.cluster.dev"})
    script = (
        f"import sys, importlib as i; [i.import_module(m) for m in {modules!r}]; print('ray' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lst"], "did you mean `headrace list`?"),
        (["deplyo", "app.py"], "did you mean `headrace deploy`?"),
        (["xyzzy"], "`headrace --help` lists them."),
        (["list", "--limt", "3"], "'--limit'"),
        (["list", "--limit", "many"], "--limit"),
        (["call"], "NAME"),
        (["call", "echo", "{not json"], "not JSON"),
        (["call", "echo", "@missing.json"], "missing.json: No such file"),
        (["call", "echo", "{}", "--data-file", "x"], "not both"),
        (["scale", "echo"], "--min, --max or --to"),
        (["scale", "echo", "--min", "3", "--max", "2"], "--min 3 is above --max 2"),
        (["delete", "echo"], "add --yes"),
        (["nodes", "add", "--gpu", "H100"], "NAME=VALUE"),
        (["nodes", "add", "--gpu", "H100=none"], "whole number"),
        (["nodes", "add", "--memory", "much"], "--memory"),
        (["nodes", "drop"], "drop"),
        (["up", "--store", "mysql://somewhere"], "'--store': not an address like postgresql://"),
        (["up", "--blobs", "ftp://somewhere"], "'--blobs': not an address like s3://"),
        (["up", "--log-level", "loud"], "'--log-level': 'loud' is not one of"),
        (["up", "--port", "70000"], "--port"),
        (["list", "--url", "nonsense"], "is not an address"),
        (["deploy", "missing.py"], "missing.py"),
        (["--url", "http://x", "list"], "goes behind the command"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("headrace: ")
    assert shown.err.count("\n") == 1
    assert said in shown.err


@pytest.mark.parametrize("command", [["up"], ["dev", "app.py"]])
@pytest.mark.parametrize(
    ("setting", "value"),
    [("log_level", "loud"), ("store", "mysql://x"), ("blobs", "ftp://x"), ("webhook_ca", "/nope.pem")],
)
def test_a_wrong_setting_is_one_line_that_names_its_source_before_anything_starts(
    command: list[str],
    setting: str,
    value: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    toml = tmp_path / "headrace.toml"
    toml.write_text(f'{setting} = "{value}"\n')
    assert run(command) == 1
    from_file = capsys.readouterr().err
    toml.unlink()
    monkeypatch.setenv(f"HEADRACE_{setting.upper()}", value)
    assert run(command) == 1
    from_environment = capsys.readouterr().err
    assert from_file.startswith(f"headrace: headrace.toml: {setting}")
    assert from_environment.startswith(f"headrace: HEADRACE_{setting.upper()}")
    assert from_file.count("\n") == from_environment.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_a_file_whose_import_fails_is_shown_with_its_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "broken_file.py"
    file.write_text("import headrace\nimport nothing_of_that_name\n")
    assert run(["deploy", str(file), "--json"]) == 1
    said = capsys.readouterr()
    *trace, last = said.err.splitlines()
    assert "line 2, in <module>" in "".join(trace)
    assert last.startswith("headrace: importing broken_file failed: ModuleNotFoundError")
    assert "line 2, in <module>" in json.loads(said.out)["error"]["traceback"]


def test_a_refused_option_is_told_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "typo_file.py"
    file.write_text("import headrace\n\n@headrace.endpoint(timout=3)\ndef f(): ...\n")
    assert run(["deploy", str(file)]) == 2
    said = capsys.readouterr().err
    assert (
        said == "headrace: typo_file.py, line 3: @endpoint has no option 'timout'. Did you mean 'timeout'?\n"
    )


def test_without_a_command_it_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    assert "Commands:" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["list"], ["status"], ["hosts"], ["logs", "echo"], ["call", "echo", "1"]])
def test_without_a_platform_it_says_how_to_start_one(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*words, "--json"]) == 1
    shown = capsys.readouterr()
    assert "headrace up" in shown.err
    document = json.loads(shown.out)
    assert document["error"]["type"] == "NotRunning"
    assert document["error"]["exit_code"] == 1


@pytest.mark.parametrize("line", ['store = "mysql://u:p@h"', 'log_level = "loud"'])
def test_who_only_looks_for_a_platform_is_not_refused_for_a_value_that_is_wrong(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADRACE_API_KEY", raising=False)
    Path("headrace.toml").write_text(f'data_dir = "{tmp_path}/d"\n{line}\n')
    assert run(["down", "--json"]) == 0
    assert f"{tmp_path}/d" in capsys.readouterr().out
    Client("http://127.0.0.1:1").close()


def test_down_without_a_platform_is_done_already(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["down", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stopped"] is False


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SpecError("no\nsuch option."), 2),
        (DataDirError("held."), 1),
        (EndpointNotFound("no endpoint 'x'.", hint="Did you mean 'y'?"), 1),
        (RuntimeError("a bug"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_the_error_tree_gives_the_exit_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_args: object, **_more: object) -> None:
        raise error

    monkeypatch.setattr("headrace.cli.options.open_session", fail)
    assert run(["list", "--json"]) == code
    shown = capsys.readouterr()
    if code != 130:
        assert shown.err.count("\n") == 1
        document = json.loads(shown.out)["error"]
        assert document["exit_code"] == code
        assert ("problem" in document) == isinstance(error, EndpointNotFound)


def test_a_bug_is_shown_whole_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("headrace.cli.options.open_session", fail)
    monkeypatch.setenv("HEADRACE_DEBUG", "1")
    with pytest.raises(RuntimeError, match="a bug"):
        run(["list"])


def test_an_old_python_gives_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    with pytest.raises(SystemExit) as ended:
        cli_main.main()
    assert ended.value.code == 1
    shown = capsys.readouterr().err
    assert shown == "headrace: needs Python 3.11 or newer, this is 3.9.2: run it with a newer one.\n"


def test_the_version_check_is_written_for_old_pythons() -> None:
    source = Path(cli_main.__file__).read_text()
    ast.parse(source, feature_version=(3, 7))
    assert "headrace" not in source.partition("def main")[0].replace("``headrace``", ""), (
        "imports before the check"
    )


def test_a_reader_that_has_seen_enough_is_no_failure() -> None:
    command = f"{sys.executable} -m headrace.cli --help | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
