"""A seed decides everything that users and monkeys do."""

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from turnkeeper_ops.simulator.scripts import Script

from .mischief import ON_SERVICES, ON_WORKERS, Prank, plan_mischief
from .plan import KINDS, plan_load

seeds = st.integers(0, 1_000_000)


def test_the_same_seed_plans_the_same_storm_and_another_seed_another() -> None:
    assert plan_load(7, seconds=20, chats_per_second=1) == plan_load(7, seconds=20, chats_per_second=1)
    assert plan_load(7, seconds=20, chats_per_second=1) != plan_load(8, seconds=20, chats_per_second=1)


def test_the_same_seed_plans_the_same_mischief_and_another_seed_another() -> None:
    def mischief(seed: int) -> list[object]:
        return list(islice(plan_mischief(seed, "workers", ON_WORKERS, rest=(1, 2)), 20))

    assert mischief(7) == mischief(7)
    assert mischief(7) != mischief(8)


@given(seeds)
def test_every_script_is_one_that_the_simulator_takes(seed: int) -> None:
    for chat in plan_load(seed, seconds=5, chats_per_second=1):
        for turn in chat.turns:
            Script.model_validate({"steps": turn.steps, "repeat_last": True})


def test_no_two_generations_have_the_same_words() -> None:
    turns = [turn for chat in plan_load(7, seconds=60, chats_per_second=2) for turn in chat.turns]
    texts = [step["text"] for turn in turns for step in turn.steps if "text" in step]

    assert len(texts) > 1000
    assert len(set(texts)) == len(texts)
    assert {turn.kind for turn in turns} == set(KINDS)


@given(seeds)
def test_each_round_of_a_monkey_plays_every_prank(seed: int) -> None:
    played = [one.prank for one in islice(plan_mischief(seed, "services", ON_SERVICES, rest=(1, 2)), 12)]

    assert tuple(played[:6]) == ON_SERVICES
    assert sorted(played[6:]) == sorted(ON_SERVICES)


def test_the_monkeys_play_every_prank_between_them() -> None:
    assert sorted(ON_WORKERS + ON_SERVICES) == sorted(Prank)
