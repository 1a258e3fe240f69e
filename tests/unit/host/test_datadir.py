from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from headrace.config import Settings
from headrace.datadir import open_data_dir, read_admin_key, read_cluster_token
from headrace.errors import DataDirError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_is_private_and_keeps_its_secrets(settings: Settings) -> None:
    first = open_data_dir(settings)
    assert mode(settings.data) == 0o700
    assert mode(settings.data / "admin.key") == mode(settings.data / "cluster.token") == 0o600
    assert mode(settings.run) == mode(settings.run / "hosts") == 0o711
    assert first.admin_key.startswith("hr_")
    assert len(first.admin_key) >= 46
    assert first.admin_key_hash == hashlib.sha256(first.admin_key.encode()).hexdigest()
    assert first.admin_key not in repr(first)
    assert first.fresh_key
    assert first.cluster_token not in repr(first)
    first.close()
    first.close()
    assert not settings.run.exists()
    with_key = open_data_dir(settings)
    assert (with_key.admin_key, with_key.cluster_token) == (first.admin_key, first.cluster_token)
    assert read_admin_key(settings) == first.admin_key
    assert not with_key.fresh_key
    assert read_cluster_token(settings) == first.cluster_token
    with_key.close()


def test_nothing_is_open_to_others_whatever_the_umask(settings: Settings) -> None:
    settings = msgspec.structs.replace(settings, data_dir=settings.data_dir + "/deep/er")
    before = os.umask(0)
    try:
        data = open_data_dir(settings)
        assert os.umask(0) & 0o022 == 0o022  # also what comes later, and what children make
        data.close()
        made = [settings.data, *settings.data.parent.parents[0].rglob("*"), settings.data.parent]
        assert not [p for p in made if p.stat().st_mode & 0o022]
    finally:
        os.umask(before)


def test_is_held_by_one(settings: Settings) -> None:
    first = open_data_dir(settings)
    with pytest.raises(DataDirError, match=rf"held by a running platform \(pid {os.getpid()}\)"):
        open_data_dir(settings)
    first.close()
    open_data_dir(settings).close()


def test_lock_of_a_killed_process_is_free(settings: Settings) -> None:
    code = (
        "import sys; from headrace.config import Settings; from headrace.datadir import open_data_dir;"
        "open_data_dir(Settings(data_dir=sys.argv[1], run_dir=sys.argv[2])); print('up', flush=True);"
        "sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, settings.data_dir, settings.run_dir],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        with pytest.raises(DataDirError, match=f"pid {child.pid}"):
            open_data_dir(settings)
        child.kill()
    open_data_dir(settings).close()


def test_loose_modes_are_tightened(settings: Settings) -> None:
    open_data_dir(settings).close()
    settings.data.chmod(0o755)
    (settings.data / "admin.key").chmod(0o644)
    open_data_dir(settings).close()
    assert mode(settings.data) == 0o700
    assert mode(settings.data / "admin.key") == 0o600


def test_damage_is_told(settings: Settings) -> None:
    open_data_dir(settings).close()
    (settings.data / "admin.key").write_text("")
    with pytest.raises(DataDirError, match="damaged"):
        open_data_dir(settings)
    (settings.data / "admin.key").unlink()
    open_data_dir(settings).close()


def test_missing_secrets_are_told(settings: Settings) -> None:
    with pytest.raises(DataDirError, match="headrace up"):
        read_admin_key(settings)


def test_a_file_in_its_place_is_told(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for data_dir in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(DataDirError) as failure:
            open_data_dir(msgspec.structs.replace(settings, data_dir=str(data_dir)))
        assert "\n" not in str(failure.value)


def test_a_run_directory_that_is_a_link_is_refused(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    settings.run.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataDirError, match="not a directory"):
        open_data_dir(settings)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("which", ["data_dir", "run_dir"])
def test_anothers_directory_is_refused(settings: Settings, which: str) -> None:
    path = Path(getattr(settings, which))
    path.mkdir()
    os.chown(path, 12345, 12345)
    with pytest.raises(DataDirError, match="belongs to uid 12345"):
        open_data_dir(settings)
