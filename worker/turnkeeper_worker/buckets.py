"""What the head of a response tells about the provider's limits.  Pure.

OpenAI and Anthropic both tell when a bucket *would be full again*, with successes and refusals alike. So they tell
its pace as well: what has been used comes back in that time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from turnkeeper_worker.failures import BUCKETS, moment_of, reset_after

_REQUESTS = tuple(
    (
        style.format("limit"),
        style.format("remaining"),
        style.format("reset"),
    )
    for style in ("x-ratelimit-{}-requests", "anthropic-ratelimit-requests-{}")
)
_COUNTED = frozenset(name for names in _REQUESTS for name in names)
_WHOLE_SECONDS = timedelta(seconds=1)
_WHOLE_MILLISECONDS = timedelta(milliseconds=1)
MOST_CALLS = 1_000_000_000
"""A larger limit is none, or a mistake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """How many calls a provider still takes."""

    limit: int
    remaining: int
    reset: timedelta
    """Until it would be full again."""
    error: timedelta
    """How inexactly that is told."""

    @property
    def is_ample(self) -> bool:
        """Whether more than half of it is left."""
        return self.remaining * 2 > self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a head tells."""

    bucket: Bucket | None = None
    """Of calls."""
    empty_for: timedelta | None = None
    """Until a bucket of tokens that is empty has filled."""


NOTHING = Limits()


def read_limits(headers: Mapping[str, str], *, now: datetime) -> Limits:
    """Read the headers of a response, by their names in lower case; what makes no sense is not told.

    >>> told = {"limit": "500", "remaining": "499", "reset": "120ms"}
    >>> headers = {f"x-ratelimit-{name}-requests": value for name, value in told.items()}
    >>> read_limits(headers, now=datetime.now().astimezone()).bucket.remaining
    499
    """
    if not any("ratelimit" in name for name in headers):
        return NOTHING
    now = moment_of(headers.get("date", "")) or now
    return Limits(bucket=_bucket(headers, now), empty_for=_empty_for(headers, now))


def _bucket(headers: Mapping[str, str], now: datetime) -> Bucket | None:
    for names in _REQUESTS:
        limit, remaining = (_count(headers.get(name, "")) for name in names[:2])
        reset = reset_after(headers.get(names[2], ""), now)
        if limit and remaining is not None and reset is not None:
            is_moment = ":" in headers[names[2]]
            return Bucket(
                limit=limit,
                remaining=min(remaining, limit),
                reset=max(reset, timedelta(0)),
                error=_WHOLE_SECONDS if is_moment else _WHOLE_MILLISECONDS,
            )
    return None


def _empty_for(headers: Mapping[str, str], now: datetime) -> timedelta | None:
    waits = (
        reset_after(headers[reset], now)
        for remaining, reset in BUCKETS
        if reset in headers and reset not in _COUNTED and headers.get(remaining) == "0"
    )
    return max((wait for wait in waits if wait is not None and wait > timedelta(0)), default=None)


def _count(text: str) -> int | None:
    plain = text.strip()
    is_number = plain.isascii() and plain.isdigit() and len(plain) < len(str(MOST_CALLS))
    return int(plain) if is_number else None
