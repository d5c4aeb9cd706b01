"""Owners are served in turn: the broker holds a few turns of each, and the others are called up as those run."""

from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from sqlalchemy import func

from turnkeeper.exceptions import InvalidRequest
from turnkeeper.requests import TurnRequest
from turnkeeper.turns import AT_BROKER, Enqueued
from turnkeeper_worker import upkeep
from turnkeeper_worker.upkeep import Due

if TYPE_CHECKING:
    from tests.integration.conftest import Stage

A_MINUTE = timedelta(minutes=1)
CROWD = 3 * AT_BROKER


def enqueue(stage: "Stage", owner: str, count: int = 1, **fields: Any) -> list[Enqueued]:
    return [stage.enqueue(owner=owner, **fields) for _ in range(count)]


def call_up(stage: "Stage", **bounds: int) -> list[UUID]:
    return [one.id for one in stage.do(upkeep.call_up, **bounds)]


class TestEnqueue:
    def test_the_broker_is_told_of_the_first_turns_of_an_owner_and_the_others_stand_back(
        self, stage: "Stage"
    ) -> None:
        enqueued = enqueue(stage, "many", CROWD)

        assert [one.is_rung for one in enqueued] == [True] * AT_BROKER + [False] * (CROWD - AT_BROKER)
        assert all(one.is_held is not one.is_rung for one in enqueued)
        assert all(one.is_due for one in enqueued)

    def test_one_owner_takes_no_place_from_another(self, stage: "Stage") -> None:
        enqueue(stage, "many", CROWD)

        (other,) = enqueue(stage, "one")

        assert (other.is_rung, other.is_held) == (True, False)

    def test_a_turn_that_runs_or_waits_for_later_takes_no_place(self, stage: "Stage") -> None:
        first, second, *_ = enqueue(stage, "many", AT_BROKER)
        stage.claim(first.id)
        stage.retry(stage.claim(second.id), seconds=600, is_rung=True)

        assert [one.is_rung for one in enqueue(stage, "many", 3)] == [True, True, False]

    def test_a_new_turn_does_not_pass_those_that_stand_back(self, stage: "Stage") -> None:
        for one in enqueue(stage, "many", AT_BROKER + 5)[:3]:
            stage.claim(one.id)

        assert [one.is_held for one in enqueue(stage, "many")] == [True]

    def test_a_turn_behind_another_of_its_chat_is_not_held_for_its_owner(self, stage: "Stage") -> None:
        first, *_ = enqueue(stage, "many", AT_BROKER)

        behind = stage.enqueue(owner="many", chat_id=first.chat_id)

        assert (behind.is_due, behind.is_rung, behind.is_held) == (False, False, False)


class TestClaim:
    def test_it_tells_whether_others_of_the_owner_stand_back(self, stage: "Stage") -> None:
        crowd = enqueue(stage, "many", AT_BROKER + 1)
        (other,) = enqueue(stage, "one")

        assert stage.claim(crowd[0].id).others_stand_back
        assert not stage.claim(other.id).others_stand_back

    def test_nobody_stands_back_who_is_not_due(self, stage: "Stage") -> None:
        waiting, now = enqueue(stage, "many", 2)
        stage.retry(stage.claim(waiting.id), seconds=600)

        assert not stage.claim(now.id).others_stand_back


class TestCallUp:
    def test_as_many_are_called_as_there_are_places_and_in_the_order_in_which_they_came(
        self, stage: "Stage"
    ) -> None:
        crowd = [one.id for one in enqueue(stage, "many", CROWD)]
        for turn_id in crowd[:3]:
            stage.claim(turn_id)

        assert call_up(stage) == crowd[AT_BROKER : AT_BROKER + 3]
        assert call_up(stage) == []

    def test_the_highest_priority_is_called_first(self, stage: "Stage") -> None:
        crowd = enqueue(stage, "many", AT_BROKER)
        later = [enqueue(stage, "many", priority=priority)[0].id for priority in (0, -5, 7, 0)]
        for one in crowd[:3]:
            stage.claim(one.id)

        assert call_up(stage) == [later[2], later[0], later[3]]

    def test_where_not_all_can_be_called_each_owner_gets_one_before_any_gets_two(self, stage: "Stage") -> None:
        for owner in ("a", "b", "c"):
            for one in enqueue(stage, owner, AT_BROKER):
                stage.set(one.id, rung_at=None)

        called = call_up(stage, limit=7)

        owners = [stage.row(turn_id)["owner"] for turn_id in called]
        assert Counter(owners[:3]) == Counter(owners[3:6]) == Counter("abc")
        assert len(owners) == 7

    def test_a_turn_that_is_due_later_is_not_called(self, stage: "Stage") -> None:
        (turn,) = enqueue(stage, "many")
        stage.retry(stage.claim(turn.id), seconds=600)

        assert call_up(stage) == []

    def test_what_the_broker_forgot_is_rung_for_again_besides(self, stage: "Stage") -> None:
        crowd = enqueue(stage, "many", AT_BROKER + 2)
        stage.set(crowd[4].id, rung_at=func.now() - timedelta(minutes=2))
        stage.claim(crowd[0].id)

        assert stage.do(upkeep.take_due, forgotten_after=A_MINUTE) == [
            Due(crowd[4].id, 0),
            Due(crowd[AT_BROKER].id, 0),
        ]


@pytest.mark.parametrize("priority", [-101, 101, 1.5, "high"])
def test_a_priority_out_of_range_is_refused(priority: object) -> None:
    with pytest.raises(InvalidRequest, match="priority"):
        TurnRequest.parse({"text": "Hi", "provider": "openai", "priority": priority})
