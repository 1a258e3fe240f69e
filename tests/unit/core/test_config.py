"""Settings: who wins over whom, and what a wrong one says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from headrace.config import UNIX_PATH_BOUND, Settings, load_settings
from headrace.control.server import config_of
from headrace.errors import SettingsError
from headrace_autoscaler.spec import Config


def test_command_line_over_environment_over_file_over_default(tmp_path: Path) -> None:
    toml = tmp_path / "headrace.toml"
    toml.write_text("port = 1\ngateways = 2\nspares = 3\n")
    environ = {"HEADRACE_PORT": "11", "HEADRACE_GATEWAYS": "12"}
    settings = load_settings({"port": 111, "gateways": None}, environ, toml)
    assert (settings.port, settings.gateways, settings.spares, settings.control_port) == (111, 12, 3, 8701)


def test_a_wrong_value_names_its_source_and_setting(tmp_path: Path) -> None:
    for variable, value in {"PORT": "many", "SPARES": "-1", "GATEWAYS": "0", "DRAIN_GRACE": "-2"}.items():
        with pytest.raises(SettingsError, match=f"^HEADRACE_{variable}={value}: Expected") as wrong:
            load_settings({}, {f"HEADRACE_{variable}": value}, tmp_path / "none.toml")
        assert "$" not in wrong.value.message
    with pytest.raises(SettingsError, match="--port=70000"):
        load_settings({"port": 70000}, {}, tmp_path / "none.toml")
    toml = tmp_path / "headrace.toml"
    toml.write_text("prot = 1\n")
    with pytest.raises(SettingsError, match=r"headrace\.toml.*prot"):
        load_settings({}, {}, toml)
    toml.write_text("spares = -1\n")
    with pytest.raises(SettingsError, match=r"headrace\.toml: spares=-1"):
        load_settings({}, {}, toml)
    toml.write_text("port = \n")
    with pytest.raises(SettingsError, match=r"headrace\.toml"):
        load_settings({}, {}, toml)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("log_level", "loud", "use debug, info, warning or error"),
        ("store", "mysql://u:geheim@h/d", "postgresql://user@host/database"),
        ("store", "jobs.db", "SQLite"),
        ("blobs", "ftp://geheim@x", "s3://bucket/prefix"),
        ("blobs", "s3://", "s3://bucket/prefix"),
        ("build_allow", "http://x", "http://x: use a host name"),
        ("build_allow", "a.corp,host", "nothing beside it"),
        ("build_allow", "127.0.0.1", "never reach that"),
        ("weights_allow", "/srv/models,models", "'models' is no absolute path"),
        ("images_dir", "rel/dir", "use an absolute path"),
        ("webhook_ca", "/nope.pem", "No such file or directory"),
        ("webhook_ca", "headrace.toml", "it holds no certificate"),
    ],
)
def test_what_would_end_a_start_is_refused_with_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    toml = tmp_path / "headrace.toml"
    toml.write_text(f'{name} = "{value}"\n')
    sources: dict[str, tuple[dict[str, str], dict[str, str], Path]] = {
        f"{toml}: {name}": ({}, {}, toml),
        f"HEADRACE_{name.upper()}": ({}, {f"HEADRACE_{name.upper()}": value}, tmp_path / "none.toml"),
        f"--{name.replace('_', '-')}": ({name: value}, {}, tmp_path / "none.toml"),
    }
    for source, (cli, environ, file) in sources.items():
        with pytest.raises(SettingsError) as wrong:
            load_settings(cli, environ, file, starting=True)
        assert wrong.value.message.startswith(source)
        assert why in wrong.value.message
        assert "geheim" not in str(wrong.value)
        assert "\n" not in str(wrong.value)


@pytest.mark.parametrize(
    ("name", "value", "package", "extra"),
    [
        ("store", "postgresql://u:geheim@h/d", "asyncpg", "postgres"),
        ("blobs", "s3://bucket/geheim", "boto3", "s3"),
    ],
)
def test_an_extra_that_is_missing_is_named_before_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, package: str, extra: str
) -> None:
    environ, toml = {f"HEADRACE_{name.upper()}": value}, tmp_path / "none.toml"
    assert getattr(load_settings({}, environ, toml, starting=True), name) == value
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda of: None if of == package else real(of))
    with pytest.raises(SettingsError) as wrong:
        load_settings({}, environ, toml, starting=True)
    assert wrong.value.message == f"HEADRACE_{name.upper()} needs the package {package}."
    assert f"headrace[{extra}]" in str(wrong.value)
    assert "geheim" not in str(wrong.value)
    assert getattr(load_settings({}, environ, toml), name) == value


def test_a_file_that_is_gone_keeps_nobody_from_stopping_the_platform(tmp_path: Path) -> None:
    settings = load_settings({}, {"HEADRACE_WEBHOOK_CA": "/nope.pem"}, tmp_path / "none.toml")
    assert settings.webhook_ca == "/nope.pem"


@pytest.mark.parametrize(
    "line",
    [
        'store = "mysql://u:p@h"',
        'blobs = "ftp://x"',
        'log_level = "loud"',
        "port = 70000",
        'webhook_ca = "/no"',
    ],
)
def test_a_wrong_value_keeps_nobody_from_finding_the_platform(tmp_path: Path, line: str) -> None:
    toml = tmp_path / "headrace.toml"
    toml.write_text(f'{line}\ndata_dir = "{tmp_path}/d"\ndrain_grace = 7\n')
    environ = {"HEADRACE_SPARES": "-1"}
    settings = load_settings({}, environ, toml, finding=True)
    assert (settings.data, settings.drain_grace, settings.spares) == (tmp_path / "d", 7, 2)
    with pytest.raises(SettingsError):
        load_settings({}, environ, toml, starting=True)
    # That may be where it is, in other letters.
    toml.write_text('data_dri = "d"\n')
    with pytest.raises(SettingsError, match="data_dri: there is no such setting"):
        load_settings({}, {}, toml, finding=True)


def test_values_that_are_right_are_taken(tmp_path: Path) -> None:
    given = {
        "store": "postgresql://u:p@h/d?sslmode=require",
        "blobs": "s3://bucket/a/prefix",
        "log_level": "error",
        "build_allow": "mirror.corp, 10.1.0.0/16,*.b.corp",
        "weights_allow": "/srv/models,s3://models/",
    }
    settings = load_settings(given, {}, tmp_path / "none.toml", starting=True)
    assert {name: getattr(settings, name) for name in given} == given
    assert load_settings({"store": "postgres://", "blobs": "s3://b"}, {}, tmp_path / "none.toml")


def test_the_run_directory_follows_the_data_directory(tmp_path: Path) -> None:
    one = load_settings({"data_dir": str(tmp_path / "a")}, {}, tmp_path / "none")
    two = load_settings({"data_dir": str(tmp_path / "b")}, {}, tmp_path / "none")
    again = load_settings({"data_dir": str(tmp_path / "a")}, {}, tmp_path / "none")
    assert one.run_dir != two.run_dir
    assert one.run_dir == again.run_dir


def test_the_control_socket_moves_when_its_path_is_too_long() -> None:
    assert Settings(data_dir="/d", run_dir="/run/x").control_socket == Path("/d/control.sock")
    long = Settings(data_dir="/" + "d" * UNIX_PATH_BOUND, run_dir="/run/x")
    assert long.control_socket == Path("/run/x/control.sock")


def test_what_the_autoscaler_is_told() -> None:
    assert config_of(Settings()) == Config()
    environment = {"HEADRACE_WAIT_GOAL": "2.5", "HEADRACE_WAIT_SHARE": "0.95", "HEADRACE_BUDGET": "7"}
    told = config_of(load_settings({"late_s": 300.0}, environment))
    assert (told.keep.late_s, told.keep.share) == (300.0, 0.95)
    assert (told.demand.goal_s, told.limits.budget) == (2.5, 7.0)
    assert told.demand.late_s == Config().demand.late_s  # of the same name, and another


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("late_s", "-1"),
        ("late_s", "inf"),
        ("late_s", "nan"),
        ("wait_goal", "0"),
        ("wait_goal", "nan"),
        ("wait_share", "1"),
    ],
)
def test_what_a_wait_is_worth_is_a_number_that_can_be_reckoned_with(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^HEADRACE_{name.upper()}={value}: Expected"):
        load_settings({}, {f"HEADRACE_{name.upper()}": value})
