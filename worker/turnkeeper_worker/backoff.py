"""How long to wait before the next attempt when nobody has asked for a wait.  Pure arithmetic."""

from datetime import timedelta
from random import Random

_MAX_DOUBLINGS = 64
"""2.0**1024 overflows, and stored attempt counts outlive any sane policy; 2**64 s exceeds every cap."""


def ceiling(attempt: int, *, base: timedelta, cap: timedelta) -> timedelta:
    """Return the longest backoff that may follow *attempt*.

    Args:
        attempt: The attempt that just failed; the first is 1, and less counts as 1.
        base: The ceiling after the first attempt; it doubles with each one.
        cap: No ceiling is higher.

    >>> [ceiling(n, base=timedelta(seconds=1), cap=timedelta(seconds=60)).seconds for n in (1, 2, 3, 99)]
    [1, 2, 4, 60]
    """
    doublings = min(max(attempt, 1) - 1, _MAX_DOUBLINGS)
    seconds = min(base.total_seconds() * 2.0**doublings, cap.total_seconds())
    return timedelta(seconds=seconds)


def delay(attempt: int, *, base: timedelta, cap: timedelta, rng: Random) -> timedelta:
    """Draw the backoff that follows *attempt*: between half of its ceiling and all of it.

    Jitter spreads the turns that one outage has stopped at the same moment.  It stays in the upper half
    because a delay near zero would hit a struggling provider at once.
    """
    longest = ceiling(attempt, base=base, cap=cap)
    return longest * (0.5 + 0.5 * rng.random())
