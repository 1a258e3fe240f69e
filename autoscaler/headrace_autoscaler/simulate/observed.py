"""How long starts took, from the platform's recorded history."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import msgspec

from headrace_autoscaler.simulate.recorded import DIRECTORY, PATTERN


# Only what is needed of `spec.Record`.
class _Endpoint(msgspec.Struct):
    endpoint: str
    start_s: float | None = None


class _Observation(msgspec.Struct):
    endpoints: tuple[_Endpoint, ...]


class _Line(msgspec.Struct):
    observation: _Observation


def observed_start(path: Path, endpoint: str | None = None) -> float | None:
    """Seconds that a start took there, the median of all that was told of it; None: nothing was.

    ``path`` and ``endpoint`` are those of `recorded.read_history`. Raises ``OSError``; lines that are no
    record are left out (`read_history` says which).
    """
    decoder = msgspec.json.Decoder(_Line)
    directory = path / DIRECTORY if (path / DIRECTORY).is_dir() else path
    told: list[float] = []
    for file in [path] if path.is_file() else sorted(directory.glob(PATTERN)):
        with file.open("rb") as lines:
            for text in lines:
                try:
                    line = decoder.decode(text)
                except msgspec.DecodeError:
                    continue
                told += [
                    each.start_s
                    for each in line.observation.endpoints
                    if each.start_s and endpoint in (None, each.endpoint, each.endpoint.rpartition("/")[2])
                ]
    return median(told) if told else None
