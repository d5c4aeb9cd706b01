"""What follows a failed attempt: another one, a heal, another model, or the end of the turn.

Pure: time and chance are arguments.

`failures` says what happened; here stands what we do about it, and nowhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, StrEnum
from random import Random
from typing import TypeAlias

from turnkeeper.errors import ChatError, ErrorKind, with_try_after
from turnkeeper.requests import Fallback
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
class FallBack:
    """Let another model go on with the step, at once and on a budget of its own."""

    to: Fallback
    reason: Reason
    """Why the model that failed is given up."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End the turn with *error*."""

    error: ChatError
    reason: Reason


Decision: TypeAlias = Retry | Heal | FallBack | GiveUp


class FallsBack(Enum):
    """When a kind of failure moves a turn on to its next model."""

    AT_ONCE = "at once, unless it is retried"
    """When it is terminal as well: it is about this provider, its account or its model, and no other's."""
    AFTER_RETRIES = "after its retries"
    """When it could be retried, and no retry is left or worth the wait."""
    NEVER = "never"


FALLS_BACK: dict[ErrorKind, FallsBack] = {
    ErrorKind.OVERLOADED: FallsBack.AFTER_RETRIES,
    # Terminal where the request is larger than the whole allowance; another model has another one.
    ErrorKind.RATE_LIMIT: FallsBack.AT_ONCE,
    # Terminal where the deadline was ours, which holds for all models.
    ErrorKind.TIMEOUT: FallsBack.AFTER_RETRIES,
    ErrorKind.STARTUP_TIMEOUT: FallsBack.AFTER_RETRIES,
    ErrorKind.STREAM_SILENCE_TIMEOUT: FallsBack.AFTER_RETRIES,
    ErrorKind.AUTH: FallsBack.AT_ONCE,
    # A model that is gone, a region, a setting that this model does not take: refused requests cost nothing.
    ErrorKind.CONFIG: FallsBack.AT_ONCE,
    # What a longer context costs is for the owner of the chat to choose, turn after turn; compaction is cheaper.
    ErrorKind.CONTEXT_OVERFLOW: FallsBack.NEVER,
    ErrorKind.USAGE_LIMIT: FallsBack.AT_ONCE,
    ErrorKind.MISSING_KEY: FallsBack.AT_ONCE,
    ErrorKind.PROVIDER_DISABLED: FallsBack.AT_ONCE,
    # What one provider has declined is not offered to the others until one of them takes it.
    ErrorKind.CONTENT_FILTER: FallsBack.NEVER,
    # Terminal where nobody knows what it was: the fault may be ours, or the chat's.
    ErrorKind.GENERIC: FallsBack.AFTER_RETRIES,
}


def decide(
    classified: Classified,
    *,
    spent: int,
    elapsed: timedelta,
    healed: bool,
    policy: RetryPolicy,
    rng: Random,
    now: datetime,
    fallbacks: Sequence[Fallback] = (),
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
        fallbacks: The models that have not been tried, in order.
    """
    decision = _with_this_model(classified, spent, elapsed, policy, rng, now, healed=healed)
    if isinstance(decision, GiveUp) and fallbacks and elapsed <= policy.turn_deadline and _moves_on(decision):
        return FallBack(fallbacks[0], decision.reason)
    return decision


def _moves_on(end: GiveUp) -> bool:
    """Tell whether another model may do better where this one is given up."""
    if end.error.provider is None:
        # It is nobody's failure but ours, and would be met again wherever we go.
        return False
    falls_back = FALLS_BACK[end.error.kind]
    return falls_back is FallsBack.AT_ONCE or (
        falls_back is FallsBack.AFTER_RETRIES and end.reason is not Reason.TERMINAL
    )


def _with_this_model(
    classified: Classified,
    spent: int,
    elapsed: timedelta,
    policy: RetryPolicy,
    rng: Random,
    now: datetime,
    *,
    healed: bool,
) -> Retry | Heal | GiveUp:
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


def _heal(error: ChatError, *, healed: bool) -> Heal | GiveUp:
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
