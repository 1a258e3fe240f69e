"""The replicas' log files: complete tracebacks, and bounded."""

from __future__ import annotations

import builtins
import logging

import pytest
from headrace.cluster.logs import log_to_file
from headrace.config import Settings


@pytest.fixture
def logger():
    """The platform's logger, put back afterwards."""
    found = logging.getLogger("headrace")
    before = found.handlers[:], found.propagate, found.level
    found.handlers = []
    yield found
    for handler in found.handlers:
        handler.close()
    found.handlers, found.propagate = before[:2]
    found.setLevel(before[2])


def test_a_traceback_is_whole_where_serve_has_replaced_print(tmp_path, logger, monkeypatch):
    (tmp_path / "logs").mkdir()
    log_to_file(Settings(data_dir=str(tmp_path), run_dir=str(tmp_path)), "control")
    printed = builtins.print

    def as_serve_does(*objects, sep=" ", end="\n", file=None, flush=False):
        printed(objects, sep=sep, end=end, file=file, flush=flush)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "print", as_serve_does)
        try:
            int("no such luck")
        except ValueError:
            logger.exception("it failed")
    text = (tmp_path / "logs" / "control.log").read_text()
    assert "headrace: it failed\nTraceback (most recent call last):\n  File" in text
    assert text.endswith("ValueError: invalid literal for int() with base 10: 'no such luck'\n")


def test_the_log_is_bounded(tmp_path, logger):
    (tmp_path / "logs").mkdir()
    settings = Settings(data_dir=str(tmp_path), run_dir=str(tmp_path), log_bytes=2000)
    log_to_file(settings, "control")
    for _ in range(1000):
        logger.warning("x" * 100)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "logs").iterdir()}
    assert sizes.keys() == {"control.log", "control.log.1"}
    assert max(sizes.values()) <= 2000


def test_without_the_data_directory_serve_keeps_the_log(tmp_path, logger):
    log_to_file(Settings(data_dir=str(tmp_path / "none"), run_dir=str(tmp_path)), "host")
    assert logger.handlers == []
