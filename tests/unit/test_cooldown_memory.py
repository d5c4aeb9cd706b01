"""What one process remembers of a gate: enough to ask seldom, and to carry on without Redis."""

from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.errors import ChatError, ErrorKind
from turnkeeper_worker.cooldown import Memory, Rest, Verdict, _what_rests, as_failure
from turnkeeper_worker.failures import Classified, Hint

SECOND = timedelta(seconds=1)


def verdict(*, allowance: float = 0, rest: float = 0, interval: float = 0) -> Verdict:
    return Verdict(
        says="go",
        wait=timedelta(0),
        rest=rest * SECOND,
        kind=ErrorKind.RATE_LIMIT,
        allowance=allowance,
        interval=interval * SECOND,
    )


def failed(kind: ErrorKind, *, hint: bool = False, status: int | None = 500, retryable: bool = True) -> Classified:
    return Classified(
        error=ChatError(kind=kind, message="No.", retryable=retryable, status_code=status),
        hint=Hint(wait=SECOND, source="retry-after") if hint else None,
    )


def test_a_key_that_is_well_is_asked_about_once_a_second_and_not_for_every_call() -> None:
    memory = Memory()
    memory.learn(verdict(allowance=5), now=10)

    assert [memory.may_go(10.5) for _ in range(6)] == [True] * 5 + [False]
    assert memory.take_unsaid() == (5, 0)
    assert memory.may_go(11.0) is False


def test_a_key_that_is_not_well_is_asked_about_for_every_call() -> None:
    memory = Memory()
    memory.learn(verdict(), now=10)

    assert memory.may_go(10) is False


def test_a_rest_of_which_only_this_process_knows_ends_what_it_believed() -> None:
    memory = Memory()
    memory.learn(verdict(allowance=5), now=10)

    memory.rest(15, ErrorKind.RATE_LIMIT)

    assert memory.may_go(10.1) is False
    assert memory.wait_alone(10.1) == pytest.approx(4.9)


@given(st.lists(st.floats(0, 5), max_size=30), st.floats(0.01, 2), st.floats(0, 20))
def test_without_redis_no_wait_is_negative_and_no_two_calls_are_closer_than_the_pace(
    gaps: list[float], interval: float, rest: float
) -> None:
    memory, now, calls = Memory(), 0.0, []
    memory.learn(verdict(rest=rest, interval=interval), now=now)
    for gap in gaps:
        now += gap
        wait = memory.wait_alone(now)
        assert wait >= 0
        calls.append(now + wait)

    assert all(at >= rest - 1e-5 for at in calls)
    assert all(later - earlier >= interval - 1e-5 for earlier, later in pairwise(calls))


@pytest.mark.parametrize(
    ("classified", "whose"),
    [
        (failed(ErrorKind.RATE_LIMIT), "key"),
        (failed(ErrorKind.RATE_LIMIT, status=None), "key"),
        (failed(ErrorKind.RATE_LIMIT, retryable=False), None),
        (failed(ErrorKind.OVERLOADED), "model"),
        (failed(ErrorKind.TIMEOUT, hint=True), "model"),
        (failed(ErrorKind.TIMEOUT), None),
        (failed(ErrorKind.USAGE_LIMIT, hint=True, retryable=False), None),
        (failed(ErrorKind.AUTH, retryable=False), None),
    ],
)
def test_what_must_rest_after_a_failure(classified: Classified, whose: str | None) -> None:
    assert _what_rests(classified) == whose


def test_a_rest_that_is_too_long_fails_as_the_call_would_have() -> None:
    failure = as_failure(Rest(wait=1200 * SECOND, rest=1200 * SECOND, kind=ErrorKind.OVERLOADED), "openai")

    assert failure.headers == {"retry-after": "1200.000"}
