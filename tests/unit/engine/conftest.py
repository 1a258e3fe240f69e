"""Puts the engine and the harness on the path: last, as the engine is in a sandbox."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
ENGINE = HERE.parents[2] / "platform" / "headrace" / "engines" / "python"
for entry in (HERE, ENGINE):
    if str(entry) not in sys.path:
        sys.path.append(str(entry))

from engine_harness import serve  # noqa: E402, F401
