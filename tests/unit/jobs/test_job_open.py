"""Which stores the settings name, and what is told when they cannot be had."""

import sys

import pytest
from headrace.config import Settings
from headrace.errors import SettingsError
from headrace.jobs.blobs import LocalBlobs
from headrace.jobs.open import open_blobs, open_store
from headrace.jobs.sqlite import SqliteStore


async def test_the_data_directory_is_the_default(tmp_path):
    settings = Settings(data_dir=str(tmp_path))
    store = await open_store(settings)
    try:
        assert isinstance(store, SqliteStore)
        assert (tmp_path / "jobs.db").is_file()
        blobs = await open_blobs(settings)
        assert isinstance(blobs, LocalBlobs)
        assert (tmp_path / "blobs-jobs").is_dir()
    finally:
        await store.close()


@pytest.mark.parametrize(
    ("option", "package", "extra"),
    [({"store": "postgresql://u:geheim@h/d"}, "asyncpg", "postgres"), ({"blobs": "s3://b/p"}, "boto3", "s3")],
)
async def test_a_missing_extra_is_named(tmp_path, monkeypatch, option, package, extra):
    for name in [
        name for name in sys.modules if name.startswith(("headrace.jobs.postgres", "headrace.jobs.blobs_s3"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    open_it = open_store if "store" in option else open_blobs
    with pytest.raises(SettingsError) as caught:
        await open_it(Settings(data_dir=str(tmp_path), **option))
    assert f"headrace[{extra}]" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    "option", [{"store": "mysql://u:geheim@h/d"}, {"blobs": "gs://geheim"}, {"store": "jobs"}]
)
async def test_an_unknown_scheme_is_told_without_its_password(tmp_path, option):
    open_it = open_store if "store" in option else open_blobs
    with pytest.raises(SettingsError) as caught:
        await open_it(Settings(data_dir=str(tmp_path), **option))
    assert "geheim" not in str(caught.value)
