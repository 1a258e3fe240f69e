"""What a type checker says of a user's file: good code passes, a wrong option or argument does not."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from mypy import api

GOOD = """
    import headrace


    @headrace.endpoint(concurrency=4, scaling=headrace.Scaling(max=2), snapshot="loaded", timeout=3)
    async def embed(texts: list[str]) -> list[list[float]]:
        return [[0.0] for _ in texts]


    @headrace.endpoint
    def add(x: int, y: int = 1) -> int:
        return x + y


    total: int = add.local(1, y=2)
    job = add.submit(1)
    for result in add.map([1, 2], concurrency=2):
        print(result, job.result(timeout=1))
"""
BAD = """
    import headrace


    @headrace.endpoint(concurency=4)  # wrong
    def one(x: int) -> int:
        return x


    @headrace.endpoint(scaling=headrace.Scaling(mim=1))  # wrong
    def two(x: int) -> int:
        return x


    @headrace.endpoint(snapshot="laoded")  # wrong
    def three(x: int) -> int:
        return x


    two.local("1")  # wrong
    two.remote(y=1)  # wrong
"""


def test_a_type_checker_sees_wrong_options_and_arguments(tmp_path: Path) -> None:
    good, bad = tmp_path / "good_user.py", tmp_path / "bad_user.py"
    good.write_text(textwrap.dedent(GOOD))
    bad.write_text(textwrap.dedent(BAD))
    said, errors, _ = api.run(
        ["--cache-dir", str(tmp_path / "cache"), "--no-error-summary", str(good), str(bad)]
    )
    assert not errors
    assert "good_user.py" not in said, said
    wrong = {n for n, line in enumerate(bad.read_text().splitlines(), 1) if "# wrong" in line}
    assert wrong == {int(n) for n in re.findall(r"bad_user.py:(\d+): error", said)}, said
