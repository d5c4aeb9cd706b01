"""What follows a failed attempt."""

from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.errors import ChatError, ErrorKind
from turnkeeper.requests import Fallback
from turnkeeper_worker.config import RetryPolicy
from turnkeeper_worker.decide import FALLS_BACK, Decision, FallBack, FallsBack, GiveUp, Heal, Reason, Retry, decide
from turnkeeper_worker.failures import Classified, Hint

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
POLICY = RetryPolicy()


def failed(
    kind: ErrorKind = ErrorKind.OVERLOADED,
    *,
    retryable: bool = True,
    hint: timedelta | None = None,
    chain_broken: bool = False,
    provider: str | None = "openai",
) -> Classified:
    return Classified(
        error=ChatError(kind=kind, message="as classified", provider=provider, retryable=retryable),
        hint=Hint(wait=hint, source="retry-after") if hint is not None else None,
        chain_broken=chain_broken,
    )


def after(classified: Classified, **facts: Any) -> Decision:
    given: dict[str, Any] = {
        "spent": 1,
        "elapsed": timedelta(0),
        "healed": False,
        "policy": POLICY,
        "rng": Random(1),
        "now": NOW,
    }
    return decide(classified, **(given | facts))


def test_a_retryable_failure_is_retried_after_a_backoff() -> None:
    decision = after(failed())

    assert isinstance(decision, Retry)
    assert 0.5 * SECOND <= decision.delay <= SECOND
    assert not decision.hinted


def test_the_backoff_grows_with_the_attempts_spent() -> None:
    decision = after(failed(), spent=5)

    assert isinstance(decision, Retry)
    assert 8 * SECOND <= decision.delay <= 16 * SECOND


def test_a_hint_is_a_floor() -> None:
    assert after(failed(hint=90 * SECOND)) == Retry(90 * SECOND, hinted=True)


def test_a_hint_shorter_than_the_backoff_does_not_shorten_it() -> None:
    decision = after(failed(hint=SECOND / 10), spent=5)

    assert isinstance(decision, Retry)
    assert decision.delay >= 8 * SECOND
    assert not decision.hinted


def test_a_hint_of_just_the_limit_is_waited_for() -> None:
    assert after(failed(hint=POLICY.max_hint)) == Retry(POLICY.max_hint, hinted=True)


def test_a_hint_beyond_the_limit_ends_the_turn_with_a_time_to_try_after() -> None:
    decision = after(failed(ErrorKind.RATE_LIMIT, hint=POLICY.max_hint + SECOND))

    assert isinstance(decision, GiveUp)
    assert decision.reason is Reason.HINT_TOO_LONG
    assert decision.error.message.endswith("Try after 2026-03-01 12:16 UTC.")


@pytest.mark.parametrize("kind", ErrorKind)
def test_a_hint_never_makes_a_terminal_error_retryable(kind: ErrorKind) -> None:
    error = failed(kind, retryable=False, hint=SECOND)

    assert after(error) == GiveUp(error.error, Reason.TERMINAL)


@pytest.mark.parametrize("spent", [1, 11])
def test_attempts_are_made_up_to_the_budget(spent: int) -> None:
    assert isinstance(after(failed(), spent=spent), Retry)


@pytest.mark.parametrize("spent", [12, 13])
def test_a_spent_budget_ends_the_turn_with_the_facts(spent: int) -> None:
    error = failed()

    assert after(error, spent=spent) == GiveUp(error.error, Reason.ATTEMPTS)


def test_a_kind_may_have_a_smaller_budget() -> None:
    policy = RetryPolicy(max_attempts_by_kind={ErrorKind.TIMEOUT: 2})

    assert isinstance(after(failed(ErrorKind.TIMEOUT), spent=1, policy=policy), Retry)
    assert isinstance(after(failed(ErrorKind.TIMEOUT), spent=2, policy=policy), GiveUp)
    assert isinstance(after(failed(ErrorKind.OVERLOADED), spent=2, policy=policy), Retry)


def test_a_kind_has_no_larger_budget_than_the_step() -> None:
    policy = RetryPolicy(max_attempts=3, max_attempts_by_kind={ErrorKind.TIMEOUT: 9})

    assert policy.attempts(ErrorKind.TIMEOUT) == 3


def test_no_retry_starts_after_the_deadline() -> None:
    error = failed()

    assert after(error, elapsed=60 * MINUTE) == GiveUp(error.error, Reason.DEADLINE)


def test_a_retry_may_start_at_the_deadline() -> None:
    assert after(failed(hint=MINUTE), elapsed=59 * MINUTE) == Retry(MINUTE, hinted=True)


def test_a_hint_past_the_deadline_names_the_time_to_try_after() -> None:
    decision = after(failed(hint=2 * MINUTE), elapsed=59 * MINUTE)

    assert isinstance(decision, GiveUp)
    assert decision.reason is Reason.DEADLINE
    assert decision.error.message.endswith("Try after 2026-03-01 12:02 UTC.")


def test_a_broken_chain_heals_at_once() -> None:
    assert after(failed(ErrorKind.GENERIC, chain_broken=True)) == Heal()


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param({"spent": 99}, id="a spent budget"),
        pytest.param({"elapsed": timedelta(days=1)}, id="a passed deadline"),
    ],
)
def test_healing_costs_no_budget(facts: dict[str, Any]) -> None:
    assert after(failed(ErrorKind.GENERIC, chain_broken=True, hint=timedelta(days=1)), **facts) == Heal()


def test_a_second_break_in_a_turn_is_final() -> None:
    decision = after(failed(ErrorKind.GENERIC, chain_broken=True), healed=True)

    assert isinstance(decision, GiveUp)
    assert decision.reason is Reason.CHAIN_BROKEN_TWICE
    assert decision.error.message == "as classified"
    assert not decision.error.retryable


def test_after_a_heal_other_failures_are_retried_as_ever() -> None:
    assert isinstance(after(failed(), healed=True), Retry)


NEXT = Fallback(provider="anthropic", model="claude")
LAST = Fallback(provider="local")
AT_ONCE = {
    ErrorKind.RATE_LIMIT,
    ErrorKind.AUTH,
    ErrorKind.CONFIG,
    ErrorKind.USAGE_LIMIT,
    ErrorKind.MISSING_KEY,
    ErrorKind.PROVIDER_DISABLED,
}
NEVER = {ErrorKind.CONTENT_FILTER, ErrorKind.CONTEXT_OVERFLOW}


class TestFallBack:
    def test_the_table_speaks_of_every_kind(self) -> None:
        assert FALLS_BACK.keys() == {*ErrorKind}

    @pytest.mark.parametrize("kind", ErrorKind)
    def test_a_terminal_failure_moves_on_at_once_where_it_is_about_the_provider(self, kind: ErrorKind) -> None:
        error = failed(kind, retryable=False)

        decision = after(error, fallbacks=(NEXT, LAST))

        moves_on = FallBack(NEXT, Reason.TERMINAL)
        assert decision == (moves_on if kind in AT_ONCE else GiveUp(error.error, Reason.TERMINAL))

    @pytest.mark.parametrize("kind", ErrorKind)
    def test_a_failure_moves_on_when_its_attempts_have_run_out(self, kind: ErrorKind) -> None:
        error = failed(kind)

        decision = after(error, spent=12, fallbacks=(NEXT, LAST))

        moves_on = FallBack(NEXT, Reason.ATTEMPTS)
        assert decision == (GiveUp(error.error, Reason.ATTEMPTS) if kind in NEVER else moves_on)

    @pytest.mark.parametrize("kind", ErrorKind)
    def test_while_a_retry_is_worth_it_the_model_stays(self, kind: ErrorKind) -> None:
        assert isinstance(after(failed(kind), spent=11, fallbacks=(NEXT,)), Retry)

    def test_a_hint_that_is_too_long_is_not_waited_for(self) -> None:
        decision = after(failed(ErrorKind.RATE_LIMIT, hint=POLICY.max_hint + SECOND), fallbacks=(NEXT,))

        assert decision == FallBack(NEXT, Reason.HINT_TOO_LONG)

    def test_a_retry_that_would_come_too_late_is_not_waited_for(self) -> None:
        decision = after(failed(hint=2 * MINUTE), elapsed=59 * MINUTE, fallbacks=(NEXT,))

        assert decision == FallBack(NEXT, Reason.DEADLINE)

    @pytest.mark.parametrize(
        "failure",
        [
            pytest.param(failed(), id="that could be retried"),
            pytest.param(failed(ErrorKind.AUTH, retryable=False), id="that is terminal"),
        ],
    )
    def test_the_deadline_of_the_turn_holds_over_all(self, failure: Classified) -> None:
        assert isinstance(after(failure, elapsed=60 * MINUTE + SECOND, fallbacks=(NEXT,)), GiveUp)

    def test_what_healed_and_broke_again_moves_on(self) -> None:
        broken = failed(ErrorKind.GENERIC, chain_broken=True)

        assert after(broken, fallbacks=(NEXT,)) == Heal()
        assert after(broken, healed=True, fallbacks=(NEXT,)) == FallBack(NEXT, Reason.CHAIN_BROKEN_TWICE)

    def test_what_is_no_provider_s_failure_would_follow_the_turn_to_any(self) -> None:
        ours = failed(ErrorKind.USAGE_LIMIT, retryable=False, provider=None)

        assert after(ours, fallbacks=(NEXT,)) == GiveUp(ours.error, Reason.TERMINAL)

    @pytest.mark.parametrize("kind", ErrorKind)
    def test_with_nobody_left_the_turn_ends(self, kind: ErrorKind) -> None:
        assert isinstance(after(failed(kind, retryable=False)), GiveUp)


WAITS = st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=2))


@given(
    kind=st.sampled_from(ErrorKind),
    retryable=st.booleans(),
    chain_broken=st.booleans(),
    hint=st.none() | WAITS,
    spent=st.integers(1, 40),
    elapsed=WAITS,
    healed=st.booleans(),
    seed=st.integers(),
    fallbacks=st.sampled_from([(), (NEXT,), (NEXT, LAST)]),
)
def test_every_decision_keeps_its_promises(
    kind: ErrorKind,
    retryable: bool,
    chain_broken: bool,
    hint: timedelta | None,
    spent: int,
    elapsed: timedelta,
    healed: bool,
    seed: int,
    fallbacks: tuple[Fallback, ...],
) -> None:
    classified = failed(kind, retryable=retryable, hint=hint, chain_broken=chain_broken)

    decision = after(
        classified, spent=spent, elapsed=elapsed, healed=healed, rng=Random(seed), fallbacks=fallbacks
    )

    match decision:
        case Retry(delay, hinted):
            floor = hint or timedelta(0)
            assert retryable
            assert floor <= delay <= max(floor, POLICY.backoff_cap)
            assert not hinted or delay == floor
            assert spent < POLICY.max_attempts
            assert elapsed + delay <= POLICY.turn_deadline
        case Heal():
            assert chain_broken
            assert not healed
        case FallBack(to):
            assert to == fallbacks[0]
            assert FALLS_BACK[kind] is not FallsBack.NEVER
            assert elapsed <= POLICY.turn_deadline
        case GiveUp(error):
            assert error.kind is kind
