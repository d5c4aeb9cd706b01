"""What follows a failed attempt: another one, a heal, or the end of the turn.

Pure: time and chance are arguments.

`failures` says what happened; here stands what we do about it, and nowhere else.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from random import Random
from typing import TypeAlias

from turnkeeper.errors import ChatError, with_try_after
from turnkeeper_worker import backoff
from turnkeeper_worker.config import RetryPolicy
from turnkeeper_worker.failures import Classified


class Reason(StrEnum):
    """Why a turn is given up."""

    TERMINAL = "terminal"
    """Another attempt would fail the same way."""
    CHAIN_BROKEN_TWICE = "chain_broken_twice"
    """The full replay, which depends on no anchor, was refused like one."""
    ATTEMPTS = "attempts"
    """The step's budget is spent."""
    HINT_TOO_LONG = "hint_too_long"
    """The provider asks for more patience than a turn has."""
    DEADLINE = "deadline"
    """The next attempt would start after the turn's deadline."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Try the step again after *delay*."""

    delay: timedelta
    hinted: bool = False
    """The provider's hint, and not our backoff, set the delay."""


@dataclass(frozen=True, slots=True)
class Heal:
    """Clear the anchor and replay the full history at once, on no budget."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End the turn with *error*."""

    error: ChatError
    reason: Reason


Decision: TypeAlias = Retry | Heal | GiveUp


def decide(
    classified: Classified,
    *,
    spent: int,
    elapsed: timedelta,
    healed: bool,
    policy: RetryPolicy,
    rng: Random,
    now: datetime,
) -> Decision:
    """Choose what follows a failed attempt.

    Args:
        classified: What the attempt failed of.
        spent: Attempts charged to the step's budget, the one that failed included; counts from 1.
        elapsed: The time since the turn first ran.
        healed: The turn has healed a broken chain before.
        policy: The budgets, the backoff, and the longest wait.
        rng: The chance in the backoff.
        now: The present, from which a time to try after is reckoned.
    """
    error = classified.error
    if not error.retryable:
        return GiveUp(error, Reason.TERMINAL)
    if classified.chain_broken:
        return _heal(error, healed=healed)
    hint = classified.hint.wait if classified.hint else timedelta(0)
    if hint > policy.max_hint:
        return GiveUp(with_try_after(error, now + hint), Reason.HINT_TOO_LONG)
    if spent >= policy.attempts(error.kind):
        return GiveUp(error, Reason.ATTEMPTS)
    return _retry(error, spent, elapsed, hint, policy, rng, now)


def _heal(error: ChatError, *, healed: bool) -> Decision:
    if healed:
        # What healed once and broke again is not healed by doing the same once more.
        return GiveUp(error.model_copy(update={"retryable": False}), Reason.CHAIN_BROKEN_TWICE)
    return Heal()


def _retry(
    error: ChatError,
    spent: int,
    elapsed: timedelta,
    hint: timedelta,
    policy: RetryPolicy,
    rng: Random,
    now: datetime,
) -> Retry | GiveUp:
    drawn = backoff.delay(spent, base=policy.backoff_base, cap=policy.backoff_cap, rng=rng)
    # The hint is a floor: a longer backoff stands, and jitter never undercuts it.
    delay = max(drawn, hint)
    if elapsed + delay <= policy.turn_deadline:
        return Retry(delay, hinted=hint >= drawn)
    # Only a provider's own wait is worth naming; our backoff says nothing about when it recovers.
    return GiveUp(with_try_after(error, now + hint) if hint else error, Reason.DEADLINE)
