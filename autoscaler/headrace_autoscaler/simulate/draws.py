"""Random seconds that are the same for every policy: the k-th draw of a stream depends on nothing else."""

from __future__ import annotations

import math
import zlib

import numpy as np

from headrace_autoscaler.simulate.scenario import Draw

_BLOCK = 256


class Stream:
    """The draws of one distribution for one purpose: ``stream.at(k)`` is its k-th, from 0, in seconds.

    It depends on the seed, the purpose's name and ``k`` alone, so that policies which start different
    numbers of instances at different times see the same start-up times in the same order.
    """

    def __init__(self, seed: int, purpose: str, draw: Draw) -> None:
        self._random = np.random.default_rng([seed, zlib.crc32(purpose.encode())])
        self._draw = draw
        self._samples = _scaled(draw)
        self._drawn: list[float] = []

    def at(self, k: int) -> float:
        """The k-th draw; never negative."""
        while k >= len(self._drawn):
            self._drawn += self._more()
        return self._drawn[k]

    def _more(self) -> list[float]:
        draw, random = self._draw, self._random
        if len(self._samples):
            drawn = self._samples[random.integers(len(self._samples), size=_BLOCK)]
        elif draw.sigma > 0:
            drawn = draw.median * np.exp(draw.sigma * random.standard_normal(_BLOCK))
        else:
            drawn = draw.median * (1 + draw.jitter * random.uniform(-1, 1, _BLOCK))
        return [max(0.0, float(seconds)) for seconds in drawn]


class Lifetimes:
    """Seconds between failures, exponential with a mean; as for `Stream`, the k-th is always the same."""

    def __init__(self, seed: int, purpose: str, mean_s: float | None) -> None:
        self._random = np.random.default_rng([seed, zlib.crc32(purpose.encode())])
        self._mean = mean_s
        self._drawn: list[float] = []

    def at(self, k: int) -> float:
        """The k-th lifetime; infinite where nothing fails."""
        if self._mean is None:
            return math.inf
        while k >= len(self._drawn):
            self._drawn += [float(s) for s in self._random.exponential(self._mean, _BLOCK)]
        return self._drawn[k]


def _scaled(draw: Draw) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    samples = np.asarray(draw.samples, dtype=np.float64)
    if not len(samples) or not draw.median:
        return samples
    return samples * (draw.median / float(np.median(samples)))
