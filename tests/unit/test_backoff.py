"""The arithmetic of waiting."""

from datetime import timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper_worker import backoff

SECOND = timedelta(seconds=1)
DURATIONS = st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=1))


class Edge(Random):
    """A chance that always falls on the same number."""

    def __init__(self, number: float) -> None:
        super().__init__(0)
        self.number = number

    def random(self) -> float:
        return self.number


@pytest.mark.parametrize(
    ("attempt", "seconds"),
    [
        pytest.param(1, 1, id="the first failure waits up to the base"),
        pytest.param(2, 2, id="it doubles"),
        pytest.param(6, 32, id="and doubles"),
        pytest.param(7, 60, id="up to the cap"),
        pytest.param(10_000, 60, id="and never overflows"),
        pytest.param(0, 1, id="no attempt counts as the first"),
        pytest.param(-5, 1, id="nor does less"),
    ],
)
def test_the_ceiling_doubles_up_to_the_cap(attempt: int, seconds: int) -> None:
    assert backoff.ceiling(attempt, base=SECOND, cap=60 * SECOND) == seconds * SECOND


def test_a_base_above_the_cap_is_capped() -> None:
    assert backoff.ceiling(1, base=90 * SECOND, cap=60 * SECOND) == 60 * SECOND


@pytest.mark.parametrize(
    ("chance", "seconds"),
    [
        pytest.param(0.0, 4, id="at least half"),
        pytest.param(0.5, 6, id="linear between"),
        pytest.param(1.0, 8, id="at most all"),
    ],
)
def test_jitter_stays_in_the_upper_half(chance: float, seconds: int) -> None:
    assert backoff.delay(4, base=SECOND, cap=60 * SECOND, rng=Edge(chance)) == seconds * SECOND


@given(attempt=st.integers(-10, 10**9), base=DURATIONS, cap=DURATIONS, seed=st.integers())
def test_a_delay_lies_between_half_of_its_ceiling_and_the_cap(
    attempt: int, base: timedelta, cap: timedelta, seed: int
) -> None:
    ceiling = backoff.ceiling(attempt, base=base, cap=cap)

    delay = backoff.delay(attempt, base=base, cap=cap, rng=Random(seed))

    tick = timedelta(microseconds=1)  # of rounding
    assert ceiling / 2 - tick <= delay <= ceiling <= cap + tick


@given(attempt=st.integers(1, 100), base=DURATIONS, cap=DURATIONS)
def test_ceilings_never_fall(attempt: int, base: timedelta, cap: timedelta) -> None:
    earlier, later = (backoff.ceiling(n, base=base, cap=cap) for n in (attempt, attempt + 1))

    assert earlier <= later


def test_chance_spreads_the_delays() -> None:
    rng = Random(7)

    delays = {backoff.delay(5, base=SECOND, cap=60 * SECOND, rng=rng) for _ in range(100)}

    assert len(delays) > 90
