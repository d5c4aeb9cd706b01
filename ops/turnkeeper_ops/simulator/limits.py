"""How many requests a key may make: one token bucket for each key and model, as providers keep them.

A bucket fills steadily up to its burst, and each request that is accepted takes one token.  Time is handed in.
"""

import math
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict, Field

from turnkeeper_ops.simulator.wire import Headers

_A_SECOND = 1000
"""In milliseconds."""


class Limit(BaseModel):
    """What each key may ask of each model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_second: float = Field(gt=0, le=1_000_000)
    burst: int = Field(default=10, ge=1, le=1_000_000)
    """How many requests a bucket that has filled lets through at once."""
    headers: bool = True
    """Whether answers and refusals tell how the bucket is, and when to come back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A bucket after a request."""

    is_accepted: bool
    limit: Limit
    remaining: int
    full_in: float
    """Seconds until it has filled."""
    next_in: float
    """Seconds until it holds a token; 0 where it does."""


@dataclass(slots=True)
class Bucket:
    """The tokens of one key for one model."""

    tokens: float
    at: float
    """When they were so many."""

    def take(self, limit: Limit, now: float) -> Level:
        """Take a token, if there is one."""
        self.tokens = min(limit.burst, self.tokens + (now - self.at) * limit.requests_per_second)
        self.at = now
        # The tolerance is for who comes back exactly when a token was promised.
        is_accepted = self.tokens >= 1 - 1e-6
        self.tokens -= is_accepted
        return Level(
            is_accepted=is_accepted,
            limit=limit,
            remaining=max(0, math.floor(self.tokens)),
            full_in=(limit.burst - self.tokens) / limit.requests_per_second,
            next_in=max(0.0, 1 - self.tokens) / limit.requests_per_second,
        )


@dataclass(slots=True)
class Limiter:
    """The limit in force, and the buckets."""

    limit: Limit | None = None
    _buckets: dict[tuple[str, str], Bucket] = field(default_factory=dict)

    def set(self, limit: Limit | None) -> None:
        """Put a limit in force, or none; every bucket is full."""
        self.limit = limit
        self._buckets.clear()

    def take(self, key: str, model: str, now: float) -> Level | None:
        """Count a request; None where nothing is limited."""
        if self.limit is None:
            return None
        bucket = self._buckets.setdefault((key, model), Bucket(self.limit.burst, now))
        return bucket.take(self.limit, now)


def openai_headers(level: Level) -> Headers:
    """Tell of a bucket as OpenAI does, with Go's durations."""
    wait = {} if level.is_accepted else {"retry-after-ms": str(math.ceil(level.next_in * 1000)), **_retry(level)}
    return {
        "x-ratelimit-limit-requests": str(level.limit.burst),
        "x-ratelimit-remaining-requests": str(level.remaining),
        "x-ratelimit-reset-requests": go_duration(level.full_in),
        **wait,
    }


def anthropic_headers(level: Level, now: datetime) -> Headers:
    """Tell of a bucket as Anthropic does, with a moment that names no fraction of a second."""
    full = (now + timedelta(seconds=math.ceil(level.full_in))).replace(microsecond=0)
    return {
        "anthropic-ratelimit-requests-limit": str(level.limit.burst),
        "anthropic-ratelimit-requests-remaining": str(level.remaining),
        "anthropic-ratelimit-requests-reset": full.isoformat().replace("+00:00", "Z"),
        **({} if level.is_accepted else _retry(level)),
    }


def go_duration(seconds: float) -> str:
    """Write a duration as Go does, to the millisecond, rounded up.

    >>> go_duration(0.12), go_duration(1.5), go_duration(432), go_duration(0)
    ('120ms', '1.5s', '7m12s', '0s')
    """
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if 0 < milliseconds < _A_SECOND:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60 * _A_SECOND)
    return (f"{minutes}m" if minutes else "") + f"{rest / _A_SECOND:g}s"


def _retry(level: Level) -> Headers:
    return {"retry-after": str(max(1, math.ceil(level.next_in)))}
