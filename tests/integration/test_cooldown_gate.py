"""The gate's core in a real Redis, with a clock of the test's own: who may call a model, and when."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis as Client

from turnkeeper_ops.services.redis import Redis
from turnkeeper_worker.chain import Credential
from turnkeeper_worker.cooldown import gate_keys, script

IN_PLACE = 500
LONG = 3_600_000
PROBES = 4
LABEL = "{}"


@dataclass
class Gate:
    """The gate of one credential and model, at a moment of the test's choosing; all times are milliseconds."""

    client: Client
    run: Any
    key: str = field(default_factory=lambda: uuid4().hex)
    address: str = field(default_factory=lambda: uuid4().hex)
    now: float = field(default_factory=lambda: 1_800_000_000_000.0)
    names: Iterator[int] = field(default_factory=count)

    def ask(
        self,
        turn: str | None = None,
        *,
        in_place: float = IN_PLACE,
        longest: float = LONG,
        rest: float = LONG,
        calls: int = 0,
    ) -> tuple[str, float]:
        """Return the verdict, and the wait."""
        turn = turn or f"turn-{next(self.names)}"
        says, wait, *_ = self._exchange("ask", calls, turn, in_place, longest, rest)
        return says.decode(), wait / 1000

    def heard(
        self, *, remaining: int | None = None, limit: int = 10, reset: float = 0, age: float = 0, status: int = 200
    ) -> None:
        told = ("", "", "", "") if remaining is None else (limit, remaining, reset, 0)
        self._exchange("heard", 0, age, int(status == 429), *told, answers=int(status != 429))

    def throttled(self, rest: float = 0, *, whose: str = "key", age: float = 0) -> None:
        self._exchange("throttled", 0, age, whose, rest, "rate_limit" if whose == "key" else "overloaded")

    def state(self) -> tuple[float, str, int]:
        """Return the rest that is left, why, and how many calls need not ask."""
        _, _, rest, why, allowance, _ = self._exchange("look", 0)
        return rest / 1000, why.decode(), allowance

    def other_key(self) -> "Gate":
        return Gate(self.client, self.run, address=self.address, now=self.now)

    def _exchange(self, op: str, calls: int, *said: object, answers: int = 0) -> Any:
        credential = Credential(provider="p", base_url=self.address, key=self.key, model="m")
        return self.run(keys=gate_keys(credential), args=[op, self.now, LABEL, LABEL, calls, answers, *said])


Open = Callable[[], Gate]


@pytest.fixture(scope="module")
def open_gate(redis_server: Redis) -> Iterator[Open]:
    with Client.from_url(redis_server.url()) as client:
        run = client.register_script(script())
        yield lambda: Gate(client, run)


@pytest.fixture
def gate(open_gate: Open) -> Gate:
    return open_gate()


def test_of_an_unknown_key_only_a_few_calls_go_first_and_each_answer_lets_two_more_go(gate: Gate) -> None:
    first = [gate.ask()[0] for _ in range(10)]

    gate.heard()
    then = [gate.ask()[0] for _ in range(10)]

    assert first == ["go"] * PROBES + ["ask again"] * 6
    assert then == ["go"] * 2 + ["ask again"] * 8


def test_an_unknown_key_whose_provider_stays_silent_is_probed_again_after_a_while(gate: Gate) -> None:
    for _ in range(PROBES):
        gate.ask()

    gate.now += 2100

    assert [gate.ask()[0] for _ in range(3)] == ["go", "ask again", "ask again"]


def test_a_key_that_has_answered_often_without_telling_of_limits_is_trusted(gate: Gate) -> None:
    for _ in range(64):
        gate.ask()
        gate.heard()

    assert [gate.ask()[0] for _ in range(500)] == ["go"] * 500
    assert gate.state() == (0, "rate_limit", -1)


def test_turns_get_slots_at_the_pace_that_the_provider_tells(gate: Gate) -> None:
    gate.ask()
    gate.heard(limit=10, remaining=0, reset=1000)

    waits = [gate.ask(in_place=0)[1] for _ in range(100)]

    gaps = [after - before for before, after in pairwise(waits)]
    assert all(99 <= gap <= 101 for gap in gaps)
    assert 0 < waits[0] <= 300


def test_a_turn_comes_back_once_and_goes_at_its_slot_whoever_asked_meanwhile(gate: Gate) -> None:
    gate.ask()
    gate.heard(limit=10, remaining=0, reset=1000)
    for _ in range(50):
        gate.ask()
    verdict, wait = gate.ask("mine")
    for _ in range(50):
        gate.ask()

    gate.now += wait - 250
    comes_back = gate.ask("mine")

    assert (verdict, wait > 4000) == ("wait", True)
    assert comes_back == ("go", pytest.approx(250, abs=1))


def test_what_a_bucket_holds_may_go_at_once_but_for_a_spare(gate: Gate) -> None:
    gate.ask()
    gate.heard(limit=100, remaining=99, reset=10)

    waits = [gate.ask()[1] for _ in range(120)]

    assert sum(wait == 0 for wait in waits) == 89


def test_calls_that_somebody_else_made_with_the_key_put_the_slots_off(gate: Gate) -> None:
    gate.ask()
    gate.heard(limit=100, remaining=50, reset=5000)
    before = [gate.ask(f"mine-{number}", in_place=0)[1] for number in range(60)]

    gate.heard(limit=100, remaining=0, reset=10_000)
    after = gate.ask("mine-59")[1]

    # Of the fifty that are gone, forty are ours: they went at once.
    assert before[59] == pytest.approx(2000, abs=1)
    assert after - before[59] == pytest.approx(1000, abs=1)


def test_a_rest_puts_everybody_off_without_losing_anybodys_place(gate: Gate) -> None:
    gate.throttled(0)
    gate.now += 2000
    gate.ask()
    before = [gate.ask(name, in_place=0)[1] for name in ("a", "b", "c")]

    gate.throttled(6000)
    after = [gate.ask(name, in_place=0) for name in ("c", "a", "b")]

    assert before == sorted(before)
    assert [verdict for verdict, _ in after] == ["wait"] * 3
    assert after[1][1] < after[2][1] < after[0][1]
    assert after[1][1] >= 6000


def test_a_throttle_that_names_no_wait_rests_longer_each_time_but_once_for_calls_under_way(gate: Gate) -> None:
    rests = []
    for _ in range(4):
        gate.throttled(0)
        gate.throttled(0, age=gate.state()[0] + 100)
        rests.append(gate.state()[0])
        gate.now += rests[-1] + 10

    assert rests == pytest.approx([1000, 2000, 4000, 8000], abs=1)


def test_an_answer_ends_the_row_of_throttles(gate: Gate) -> None:
    for _ in range(3):
        gate.throttled(0)
        gate.now += gate.state()[0] + 10
    gate.heard()

    gate.throttled(0)

    assert gate.state()[0] == pytest.approx(1000, abs=1)


def test_after_a_rest_without_headers_a_few_probes_go_first(gate: Gate) -> None:
    gate.throttled(5000)

    waits = [gate.ask()[1] for _ in range(20)]

    assert all(wait >= 5000 for wait in waits)
    assert sum(wait < 5500 for wait in waits) <= 4


def test_lacking_capacity_rests_the_model_for_every_key_and_a_rate_limit_one_key_only(gate: Gate) -> None:
    other = gate.other_key()

    gate.throttled(10_000)
    untouched = other.ask()
    gate.throttled(20_000, whose="model")

    assert untouched == ("go", 0)
    assert other.ask()[1] >= 20_000
    assert other.state()[:2] == (pytest.approx(20_000, abs=1), "overloaded")


def test_a_turn_that_cannot_wait_so_long_takes_nobodys_place(gate: Gate) -> None:
    gate.ask()
    gate.heard(limit=10, remaining=0, reset=1000)
    for _ in range(50):
        gate.ask()
    expected = gate.ask()[1] + 100

    too_far = [gate.ask(longest=1000)[0] for _ in range(20)]

    assert too_far == ["too far"] * 20
    assert gate.ask()[1] == pytest.approx(expected, abs=1)


def test_a_rest_that_is_too_long_for_a_turn_is_told_as_such(gate: Gate) -> None:
    gate.throttled(1_000_000)

    assert gate.ask(rest=900_000)[0] == "too far"
    assert gate.ask(rest=1_100_000)[0] == "wait"


def test_a_slot_that_was_missed_by_long_is_not_made_up_for(gate: Gate) -> None:
    """All workers stood still for a minute: what comes back then must not go all at once."""
    gate.ask()
    gate.heard(limit=10, remaining=0, reset=1000)
    names = [f"turn-{number}" for number in range(300)]
    for name in names:
        gate.ask(name)

    gate.now += 60_000
    waits = [gate.ask(name)[1] for name in names]

    assert sum(wait == 0 for wait in waits) <= 10
    assert max(waits) > 25_000


def test_a_provider_that_is_stricter_than_it_says_is_given_smaller_bursts(gate: Gate) -> None:
    def burst() -> int:
        gate.now += 600_000
        gate.heard(limit=600, remaining=599, reset=100)
        return sum(gate.ask()[1] == 0 for _ in range(600))

    before = burst()
    gate.heard(limit=600, remaining=550, reset=5000, status=429)

    assert burst() < before * 0.6


def test_a_key_that_is_well_need_not_ask_for_every_call_and_one_that_is_not_must(gate: Gate) -> None:
    gate.ask()
    gate.heard(limit=1000, remaining=999, reset=60)
    well = gate.state()[2]
    gate.heard(limit=1000, remaining=300, reset=42_000)
    low = gate.state()[2]
    gate.now += 42_000
    gate.throttled(1000)

    assert (well, low, gate.state()[2]) == (89, 0, 0)


def test_calls_that_did_not_ask_are_counted_when_they_are_told(gate: Gate) -> None:
    gate.ask()
    gate.heard(limit=100, remaining=99, reset=600)

    gate.ask(calls=80)

    assert sum(gate.ask()[1] == 0 for _ in range(20)) <= 9


def test_without_headers_the_pace_follows_what_the_provider_takes(gate: Gate) -> None:
    """A provider that takes ten calls a second and tells nothing: hardly any is refused, and few go unused."""
    interval, tokens, at = 100.0, 5.0, gate.now
    taken = refused = 0
    began = gate.now
    while gate.now < began + 120_000:
        _, wait = gate.ask(f"turn-{taken + refused}", in_place=LONG)
        gate.now += max(wait, 1)
        tokens, at = min(5.0, tokens + (gate.now - at) / interval), gate.now
        if tokens >= 1:
            tokens -= 1
            taken += 1
            gate.heard()
        else:
            refused += 1
            gate.heard(status=429)
            gate.throttled(0)

    assert taken >= 0.7 * 1200
    assert refused <= 0.03 * (taken + refused)


steps = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 60)),
    st.tuples(st.just("pass"), st.integers(1, 3000)),
    st.tuples(st.just("rest"), st.integers(0, 5000)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(script=st.lists(steps, max_size=60), interval=st.sampled_from([10, 100, 700]), limit=st.integers(1, 30))
def test_whatever_happens_no_wait_is_negative_and_no_more_go_than_the_bucket_gives(
    open_gate: Open, script: list[tuple[str, int]], interval: int, limit: int
) -> None:
    gate, gone, rests = open_gate(), [], []
    gate.heard(limit=limit, remaining=0, reset=limit * interval)
    began = gate.now
    for what, value in script:
        match what:
            case "ask":
                says, wait = gate.ask(f"turn-{value}")
                assert wait >= 0
                assert all(gate.now + wait >= until for since, until in rests if since <= gate.now < until)
                if says == "go":
                    gone.append(gate.now + wait)
            case "pass":
                gate.now += value
            case _:
                gate.throttled(value)
                rests.append((gate.now, gate.now + value))

    gone.sort()
    for first, at in enumerate(gone):
        for last in range(first, len(gone)):
            # What the bucket holds at most, and what comes in meanwhile; the turns may be late for their slots.
            late = 500 / interval
            assert last - first + 1 <= limit + late + (gone[last] - at) / interval + 1
        assert at >= began
