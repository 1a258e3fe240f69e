"""How many requests a key may send to this gateway: one token bucket per key that has a limit. No I/O."""

from __future__ import annotations

import math
from collections.abc import Iterable

from headrace.wire import KeyRecord


class TokenBucket:
    """``rate`` tokens come in per second, up to ``burst``; a request takes one. Monotonic seconds."""

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = max(1.0, burst)
        self._tokens = self.burst
        self._at = now

    def take(self, now: float) -> float:
        """Take a token: 0.0, or, when there is none, the seconds until there is."""
        if now > self._at:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
            self._at = now
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self.rate


class RateLimits:
    """The buckets of all keys with a limit. What a key has used up survives news of other keys."""

    def __init__(self) -> None:
        self._buckets: dict[str, TokenBucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def keep(self, records: Iterable[KeyRecord]) -> None:
        """These are all keys with a limit: forget the others, and those whose limit has changed."""
        limits = {record.id: (record.rate, max(1.0, record.burst)) for record in records}
        self._buckets = {
            id: bucket
            for id, bucket in self._buckets.items()
            if limits.get(id) == (bucket.rate, bucket.burst)
        }

    def take(self, record: KeyRecord, now: float) -> float:
        """Count one request: 0.0 when it may pass, else the seconds to wait."""
        bucket = self._buckets.get(record.id)
        if bucket is None:
            bucket = self._buckets[record.id] = TokenBucket(record.rate, record.burst, now)
        return bucket.take(now)


def whole_seconds(seconds: float) -> int:
    """For ``Retry-After``: rounded up, at least 1, at most a day."""
    return min(86_400, max(1, math.ceil(seconds)))
