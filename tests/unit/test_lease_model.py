"""Leases, in every order in which things can happen: nothing breaks them, and each rule is there for a reason.

The model is a small one, so a proof for it is no proof for the code; `tests/integration/test_state_machine.py` and
the chaos tests look at that. What the model shows is that the protocol is right, and what each rule of it is for.
"""

from collections.abc import Mapping
from typing import Any

import pytest

from .lease_checker import COSTS, INVARIANTS, NONE_IS_STUCK, Explored, Invariant, explore
from .lease_model import Model, Rules, Scenario


def scenario(*may: str, workers: int = 2, turns: int = 1, troubles: int = 2, **more: Any) -> Scenario:
    return Scenario(workers=workers, turns=turns, troubles=troubles, may=frozenset(may), **more)


STALLS = scenario("stall", "lose answers", "fail")
CUTS = scenario("cut off", "lose answers", "fail")
TOOLS = scenario("stall", "lose answers", "tool")

SCENARIOS = {
    "workers stall and come back, and writes are tried again": STALLS,
    "workers are killed, and messages are lost and doubled": scenario("kill", "lose", "double", "fail"),
    "workers are cut off from the database": CUTS,
    "chains heal, and workers shut down": scenario("stall", "lose answers", "heal", "hand back"),
    "a tool runs that must not run again": scenario("stall", "lose answers", "hand back", "tool"),
    "a tool runs that may run again": scenario("kill", "lose answers", "hand back", "tool", idempotent=True),
    "a turn waits behind another": scenario("kill", "lose answers", "fail", turns=2),
    "turns are cancelled": scenario("stall", "lose answers", turns=2, troubles=1, cancels=1),
    "a turn that runs tools is cancelled": scenario("kill", "lose answers", "tool", cancels=1),
    "three workers want the same turn": scenario("stall", "fail", workers=3),
}


def explored(
    world: Scenario, rules: Rules | None = None, invariants: Mapping[str, Invariant] = INVARIANTS
) -> Explored:
    return explore(Model(world, rules or Rules()), invariants)


@pytest.mark.parametrize("world", [pytest.param(world, id=name) for name, world in SCENARIOS.items()])
def test_nothing_that_goes_wrong_breaks_an_invariant(world: Scenario) -> None:
    found = explored(world)

    assert found.trace is None, str(found.trace)
    assert found.states > 500


@pytest.mark.parametrize(
    ("rules", "world", "broken"),
    [
        pytest.param(
            Rules(names_the_epoch=False, names_step_and_attempt=False),
            STALLS,
            "no holder of an old epoch writes",
            id="a write names no lease",
        ),
        pytest.param(
            Rules(names_the_epoch=False),
            scenario("stall", "tool", idempotent=True),
            "no holder of an old epoch writes",
            id="the result of a tool names no lease",
        ),
        pytest.param(
            Rules(names_step_and_attempt=False),
            scenario("lose answers", "tool"),
            "a step is answered once",
            id="a write that is tried again does not say where the turn was",
        ),
        pytest.param(
            Rules(enters_runs_first=False),
            TOOLS,
            "a tool that is not idempotent runs once",
            id="a run is entered when it is over",
        ),
        pytest.param(
            Rules(makes_only_the_head_due=False, claims_only_the_head=False),
            scenario("fail", turns=2),
            "no turn is claimed before an earlier one has ended",
            id="nothing looks at the turns before",
        ),
        pytest.param(
            Rules(rings_again=False), scenario("lose"), NONE_IS_STUCK, id="a lost message is not replaced"
        ),
        pytest.param(Rules(frees_orphans=False), scenario("kill"), NONE_IS_STUCK, id="nobody frees orphans"),
        pytest.param(
            Rules(wakes_the_next=False), scenario("kill", turns=2), NONE_IS_STUCK, id="the next turn is not woken"
        ),
    ],
)
def test_without_a_rule_an_invariant_breaks(rules: Rules, world: Scenario, broken: str) -> None:
    found = explored(world, rules)

    assert found.trace is not None
    assert found.trace.broken == broken, str(found.trace)
    assert explored(world).trace is None


@pytest.mark.parametrize(
    ("rules", "world"),
    [
        pytest.param(
            Rules(names_the_epoch=False),
            scenario("stall", "lose answers", "fail", "heal"),
            id="a claim raises the attempt as well as the epoch",
        ),
        pytest.param(
            Rules(fences_itself=False), CUTS, id="a worker that does not stop itself is stopped by the epoch"
        ),
        pytest.param(
            Rules(claims_only_the_head=False),
            scenario("kill", "double", "fail", turns=2),
            id="only the first turn of a chat becomes due",
        ),
        pytest.param(
            Rules(makes_only_the_head_due=False),
            scenario("kill", "fail", turns=2, troubles=1),
            id="only the first turn of a chat is claimed",
        ),
    ],
)
def test_what_another_rule_guarantees_as_well_breaks_nothing_alone(rules: Rules, world: Scenario) -> None:
    found = explored(world, rules)

    assert found.trace is None, str(found.trace)


class TestCost:
    """Two workers that call for the same turn break nothing, by the epoch; but both calls are paid."""

    def test_a_worker_that_is_cut_off_stops_before_its_turns_are_taken_over(self) -> None:
        found = explored(CUTS, Rules(claims_only_while_fresh=True), COSTS)

        assert found.trace is None, str(found.trace)

    def test_without_self_fencing_it_calls_on_beside_its_successor(self) -> None:
        found = explored(CUTS, Rules(claims_only_while_fresh=True, fences_itself=False), COSTS)

        assert found.trace is not None
        assert found.trace.labels() == (
            "worker a: claim(turn 1)",
            "worker a is cut off",
            "a tick passes",
            "a tick passes",
            "rescue(turn 1)",
            "worker b: claim(turn 1)",
        )

    def test_a_worker_that_comes_back_and_claims_before_it_renews_is_rescued_from_at_once(self) -> None:
        found = explored(CUTS, Rules(), COSTS)

        assert found.trace is not None
        assert found.trace.labels() == (
            "worker a is cut off",
            "a tick passes",
            "a tick passes",
            "worker a is well again",
            "worker a: claim(turn 1)",
            "rescue(turn 1)",
            "worker b: claim(turn 1)",
        )

    def test_a_worker_whose_clock_stood_still_cannot_know_that_it_should_stop(self) -> None:
        found = explored(STALLS, Rules(claims_only_while_fresh=True), COSTS)

        assert found.trace is not None
        assert "worker a is stalled" in found.trace.labels()


def test_the_shortest_trace_is_told_so_that_one_can_follow_it() -> None:
    found = explored(scenario("lose answers", "fail"), Rules(names_the_epoch=False, names_step_and_attempt=False))

    assert [" ".join(line.split()) for line in str(found.trace).splitlines()] == [
        "broken after 5 steps: no holder of an old epoch writes",
        "1. worker a: claim(turn 1) turn 1: state running, is_due False, epoch 1, attempt 1",
        "2. worker a: retry(turn 1), but the answer is lost turn 1: state retrying, spent 1",
        "3. the countdown of turn 1 ends turn 1: is_due True",
        "4. worker b: claim(turn 1) turn 1: state running, is_due False, epoch 2, attempt 2",
        "5. worker a: retry(turn 1) turn 1: state retrying",
    ]
