"""What the monkeys of a storm will do, decided by a seed; and the record of what they did.  Pure.

Two monkeys work side by side: one torments single workers, the other what all of them share.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import chain, repeat

LEASE_TTL_SECONDS = 3.0


class Prank(StrEnum):
    """Something that a monkey does."""

    KILL = "kill"
    """SIGKILL; a new worker follows."""
    TERM = "term"
    """SIGTERM; a new worker comes at the same moment."""
    STOP = "stop"
    """SIGSTOP for longer than the lease, then SIGCONT."""
    PART_POSTGRES = "part from postgres"
    """One worker's connections to PostgreSQL fail."""
    PART_REDIS = "part from redis"
    """One worker's connections to Redis fail."""
    REDIS_RESTART = "redis restart"
    REDIS_WIPE = "redis wiped"
    """It comes back empty: queue and live events are gone."""
    POSTGRES_RESTART = "postgres restart"
    CUT_POSTGRES = "cut postgres"
    """The connections of all workers fail."""
    CUT_REDIS = "cut redis"
    CUT_PROVIDER = "cut provider"


class Weather(StrEnum):
    """What a proxy does with connections."""

    FAIR = "fair"
    REFUSE = "refuse"
    """Nobody listens, and what was open is reset."""
    RESET = "reset"
    """What is open is reset; new connections pass."""
    BLACKHOLE = "blackhole"
    """Connections stand, and nothing comes through."""


ON_WORKERS = (Prank.KILL, Prank.STOP, Prank.TERM, Prank.PART_POSTGRES, Prank.PART_REDIS)
ON_SERVICES = (
    Prank.REDIS_RESTART,
    Prank.POSTGRES_RESTART,
    Prank.REDIS_WIPE,
    Prank.CUT_PROVIDER,
    Prank.CUT_POSTGRES,
    Prank.CUT_REDIS,
)
OUTAGES = frozenset(
    {Prank.REDIS_RESTART, Prank.REDIS_WIPE, Prank.POSTGRES_RESTART, Prank.CUT_POSTGRES, Prank.CUT_REDIS}
)
"""While one of these lasts, nobody can be expected to begin a turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mischief:
    """One prank, before it is played."""

    prank: Prank
    pause_seconds: float
    """How long the monkey rests before it."""
    lasts_seconds: float
    weather: Weather
    """Of a wire that is tampered with."""
    choice: float
    """From 0 to 1: which of the workers that are well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """One prank that was played."""

    prank: Prank
    began: datetime
    ended: datetime
    """When what had failed could be used again."""
    pid: int | None = None
    """The worker that it was played on; None: all."""

    def overlaps(self, start: datetime, end: datetime) -> bool:
        """Tell whether it lasted at any moment between *start* and *end*."""
        return self.began <= end and start <= self.ended

    def strikes(self, pid: int | None) -> bool:
        """Tell whether the worker with this process id could suffer from it."""
        return self.pid is None or self.pid == pid


def plan_mischief(
    seed: int, name: str, pranks: Sequence[Prank], *, rest: tuple[float, float]
) -> Iterator[Mischief]:
    """Yield one prank after the other, for ever: each kind equally often, in an order of chance.

    Args:
        seed: Decides everything.
        name: Tells two monkeys of the same seed apart.
        pranks: What this monkey can do; the first round takes them in this order.
        rest: The shortest and the longest pause before each, in seconds.
    """
    rng = random.Random(f"{seed}/{name}")
    rounds = (rng.sample(pranks, len(pranks)) for _ in repeat(None))
    for prank in chain(pranks, chain.from_iterable(rounds)):
        yield Mischief(
            prank=prank,
            pause_seconds=rng.uniform(*rest),
            lasts_seconds=_duration(rng, prank),
            weather=rng.choice([Weather.REFUSE, Weather.RESET, Weather.BLACKHOLE]),
            choice=rng.random(),
        )


def _duration(rng: random.Random, prank: Prank) -> float:
    match prank:
        case Prank.KILL | Prank.TERM:
            return 0.0
        case Prank.STOP:
            return LEASE_TTL_SECONDS * rng.uniform(1.2, 2.0)
        case Prank.PART_POSTGRES | Prank.PART_REDIS:
            return LEASE_TTL_SECONDS * rng.uniform(0.2, 2.0)
        case _:
            return rng.uniform(0.3, 2.5)
