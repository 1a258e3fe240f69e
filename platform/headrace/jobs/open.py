"""Which job store and which blob store the settings name; the modules of others are not even imported."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
from typing import Any, cast

from headrace.config import EXTRAS, Settings, missing_extra, wrong_address
from headrace.datadir import read_cluster_token
from headrace.errors import DataDirError, SettingsError
from headrace.jobs.blobs import BlobStore, open_local_blobs
from headrace.jobs.sqlite import open_sqlite
from headrace.jobs.store import JobStore
from headrace.jobs.text import masked


async def open_store(settings: Settings) -> JobStore:
    """Open ``settings.store``: SQLite in the data directory, or PostgreSQL.

    Raises `SettingsError` (no such address, extra not installed), `DataDirError`, `StoreUnavailable`.
    """
    url = settings.store
    if why := wrong_address("store", url):
        raise SettingsError(f"--store: {why}.")
    if not url:
        return await open_sqlite(settings.data / "jobs.db")
    module = _extra("headrace.jobs.postgres", "store", "--store postgresql://...")
    platform = await asyncio.to_thread(platform_id, settings)
    return cast(JobStore, await module.open_postgres(url, platform=platform))


async def open_blobs(settings: Settings) -> BlobStore:
    """Open ``settings.blobs``: ``<data-dir>/blobs-jobs``, or S3, which need not answer: most jobs have none.

    Raises `SettingsError`, `DataDirError`.
    """
    url = settings.blobs
    if why := wrong_address("blobs", url):
        raise SettingsError(f"--blobs: {why}.")
    if not url:
        return await asyncio.to_thread(open_local_blobs, settings.data / "blobs-jobs")
    module = _extra("headrace.jobs.blobs_s3", "blobs", "--blobs s3://...")
    return cast(BlobStore, await module.open_s3(url, must_answer=False))


def not_open_yet(settings: Settings) -> str:
    """Why there is no job store before the first attempt to open it has ended: it may take seconds."""
    where = masked(settings.store) if settings.store else "jobs.db"
    return f"the job store is not open yet: {where} has not answered so far"


def platform_id(settings: Settings) -> str:
    """What names the platform of a data directory to a database; empty: it has no token yet."""
    try:
        token = read_cluster_token(settings)
    except DataDirError:
        return ""
    return hashlib.sha256(f"headrace-platform:{token}".encode()).hexdigest()[:16]


def _extra(module: str, setting: str, option: str) -> Any:
    """Import a module that needs an extra. Raises `SettingsError` that names the extra."""
    package, extra = EXTRAS[setting]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package and not (error.name or "").startswith(f"{package}."):
            raise
        raise missing_extra(option, package, extra) from None
