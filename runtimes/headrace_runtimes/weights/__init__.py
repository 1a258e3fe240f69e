"""Weights: fetched once per host, kept on its disk and in its memory, shown read-only to instances."""

from headrace_runtimes.weights.cache import Pin, WeightsCache
from headrace_runtimes.weights.memory import Keeper
from headrace_runtimes.weights.values import Item, WeightsFailed, WeightsSettings

__all__ = ["Item", "Keeper", "Pin", "WeightsCache", "WeightsFailed", "WeightsSettings"]
