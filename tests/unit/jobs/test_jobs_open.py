"""What is said of a job store before anybody has heard from it."""

from __future__ import annotations

from pathlib import Path

from headrace.config import Settings
from headrace.jobs.open import not_open_yet


def test_a_store_that_is_not_open_yet_is_named_without_its_password(tmp_path: Path) -> None:
    said = not_open_yet(Settings(data_dir=str(tmp_path), store="postgresql://me:geheim@db:5433/jobs"))
    assert "the job store is not open yet" in said
    assert "@db:5433/jobs" in said
    assert "geheim" not in said
    assert "jobs.db" in not_open_yet(Settings(data_dir=str(tmp_path)))
