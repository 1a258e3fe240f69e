"""Settings: who wins over whom, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path

import pytest
from headrace.config import UNIX_PATH_BOUND, Settings, load_settings
from headrace.errors import SettingsError


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
