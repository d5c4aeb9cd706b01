"""What workers tidy up: old records go in small batches, chats stay; and a turn that nobody woke is woken."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, Table, func, select, update

from turnkeeper import turns as transitions
from turnkeeper.messages import ToolCall
from turnkeeper.states import TurnState
from turnkeeper.tables import attempts, chain_health, messages, rejections, tool_runs, turns, workers
from turnkeeper_worker import pruning, store, upkeep
from turnkeeper_worker.chain import Credential
from turnkeeper_worker.chain_health import broke
from turnkeeper_worker.pruning import Pruned, prune
from turnkeeper_worker.upkeep import Due

if TYPE_CHECKING:
    from tests.integration.conftest import Stage

A_MONTH = timedelta(days=30)
LONG_AGO = func.now() - timedelta(days=31)
SOMEWHERE = Credential(provider="openai", base_url="https://api.openai.com/v1", key="abc", model="m")
CALL = ToolCall(call_id="c", name="look", arguments="{}")


def age(stage: "Stage", table: Table, *columns: str) -> None:
    """Let the rows of a table be a month old."""
    stage.do(Connection.execute, update(table).values(dict.fromkeys(columns, LONG_AGO)))


def old_turn(stage: "Stage", state: TurnState = TurnState.COMPLETED) -> UUID:
    """Return a turn with an attempt and a tool's run that began a month ago, as it ended if it has."""
    running = stage.call_tools(stage.claim(stage.enqueue().id), CALL)
    if state is TurnState.COMPLETED:
        stage.do(store.complete_after_tools, running)
        stage.set(running.id, finished_at=LONG_AGO)
    age(stage, attempts, "started_at")
    age(stage, tool_runs, "started_at")
    return running.id


class TestRecords:
    def test_the_attempts_and_tools_of_a_turn_that_ended_long_ago_go(self, stage: "Stage") -> None:
        old_turn(stage)

        assert stage.do(prune, A_MONTH) == Pruned(attempts=1, tool_runs=1)

        assert [stage.count(table) for table in (attempts, tool_runs)] == [0, 0]

    def test_the_turn_and_what_was_said_stay(self, stage: "Stage") -> None:
        turn_id = old_turn(stage)

        stage.do(prune, timedelta(0))

        assert [stage.count(table) for table in (turns, messages)] == [1, 2]
        assert stage.row(turn_id)["usage"] == {"input_tokens": 3}

    def test_what_is_younger_stays(self, stage: "Stage") -> None:
        old_turn(stage)

        assert not stage.do(prune, timedelta(days=32))

    def test_a_turn_that_goes_on_keeps_all_it_has(self, stage: "Stage") -> None:
        old_turn(stage, TurnState.RUNNING)

        assert not stage.do(prune, A_MONTH)

    def test_an_attempt_of_long_ago_is_kept_as_long_as_the_end_of_its_turn(self, stage: "Stage") -> None:
        turn_id = old_turn(stage)
        stage.set(turn_id, finished_at=func.now())

        assert not stage.do(prune, A_MONTH)

    def test_a_rejection_of_long_ago_goes(self, stage: "Stage") -> None:
        stage.do(upkeep.reject, uuid4(), "the text is empty")
        age(stage, rejections, "received_at")
        stage.do(upkeep.reject, uuid4(), "the text is empty")

        assert stage.do(prune, A_MONTH) == Pruned(rejections=1)

    def test_nothing_of_that_goes_where_all_is_kept_for_ever(self, stage: "Stage") -> None:
        old_turn(stage)

        assert not stage.do(prune, None)


class TestWorkers:
    def test_one_that_is_gone_for_long_is_forgotten(self, stage: "Stage") -> None:
        gone, paused, alive = (stage.worker() for _ in range(3))
        stage.silence(gone, pruning.WORKER_GONE_FOR.total_seconds() + 1)
        stage.silence(paused, pruning.WORKER_GONE_FOR.total_seconds() - 60)

        assert stage.do(prune, None) == Pruned(workers=1)

        with stage.engine.connect() as connection:
            assert set(connection.scalars(select(workers.c.id))) == {paused, alive}

    def test_one_that_comes_back_enters_itself_again(self, stage: "Stage") -> None:
        worker = stage.worker()
        stage.silence(worker, 2 * pruning.WORKER_GONE_FOR.total_seconds())
        stage.do(prune, None)

        stage.beat(worker)

        assert stage.count(workers) == 1

    def test_the_turns_of_one_that_was_forgotten_are_rescued(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)
        stage.silence(running.worker_id, 2 * pruning.WORKER_GONE_FOR.total_seconds())

        stage.do(prune, None)

        assert [one.id for one in stage.do(upkeep.rescue, timedelta(seconds=15))] == [running.id]


class TestChains:
    @pytest.mark.parametrize(
        ("columns", "goes"),
        [
            pytest.param({}, False, id="one that broke lately"),
            pytest.param({"broken_at": LONG_AGO}, True, id="one that broke long ago"),
            pytest.param(
                {"broken_at": LONG_AGO, "rests_until": func.now() + timedelta(1)}, False, id="one that still rests"
            ),
            pytest.param({"broken_at": LONG_AGO, "rests_until": LONG_AGO}, True, id="one that has rested"),
        ],
    )
    def test_their_health_is_forgotten_when_it_tells_nothing(
        self, stage: "Stage", columns: dict[str, Any], goes: bool
    ) -> None:
        stage.do(broke, SOMEWHERE, tolerated=3, rest=timedelta(0))
        stage.do(Connection.execute, update(chain_health).values(**({"breaks": 1} | columns)))

        assert bool(stage.do(prune, None).chain_health) is goes


class TestBatches:
    def test_one_transaction_deletes_few_rows(self, stage: "Stage") -> None:
        for _ in range(5):
            old_turn(stage)

        deleted = [stage.do(prune, A_MONTH, limit=2).attempts for _ in range(4)]

        assert deleted == [2, 2, 1, 0]

    def test_workers_that_prune_at_the_same_moment_share(
        self, stage: "Stage", threads: ThreadPoolExecutor
    ) -> None:
        for _ in range(12):
            old_turn(stage)

        shares = list(threads.map(lambda _: stage.do(prune, A_MONTH, limit=4), range(4)))
        while share := stage.do(prune, A_MONTH, limit=4):
            shares.append(share)

        assert sum(share.attempts for share in shares) == sum(share.tool_runs for share in shares) == 12

    def test_nobody_waits_for_a_row_that_another_one_deletes(self, stage: "Stage") -> None:
        old_turn(stage)
        with stage.engine.connect() as connection:
            assert prune(connection, A_MONTH)

            assert not stage.do(prune, A_MONTH)

    def test_batches_add_up_kind_by_kind(self) -> None:
        total = Pruned(attempts=1, workers=2) + Pruned(attempts=3)

        assert {name: count for name, count in asdict(total).items() if count} == {"attempts": 4, "workers": 2}


class TestStuck:
    def test_a_turn_that_waits_behind_nothing_is_woken(self, stage: "Stage") -> None:
        turn_id = stage.turn(TurnState.QUEUED)
        behind = stage.enqueue(chat_id=stage.row(turn_id)["chat_id"]).id
        stage.set(turn_id, available_at=None, rung_at=None)

        assert stage.do(upkeep.wake_stuck) == [Due(turn_id, 0)]

        assert stage.row(turn_id)["available_at"] is not None
        assert stage.row(behind)["available_at"] is None
        assert stage.do(upkeep.wake_stuck) == []

    @pytest.mark.parametrize("state", [TurnState.QUEUED, TurnState.RUNNING, TurnState.RETRYING])
    def test_a_turn_that_waits_behind_another_waits_on(self, stage: "Stage", state: TurnState) -> None:
        stage.enqueue(chat_id=stage.row(stage.turn(state))["chat_id"])

        assert stage.do(upkeep.wake_stuck) == []

    def test_a_chat_that_somebody_is_at_waits_for_the_next_round(self, stage: "Stage") -> None:
        turn_id = stage.turn(TurnState.QUEUED)
        stage.set(turn_id, available_at=None)
        with stage.engine.connect() as connection:
            transitions.lock_chat_of(connection, turn_id)

            assert stage.do(upkeep.wake_stuck) == []

        assert stage.do(upkeep.wake_stuck) == [Due(turn_id, 0)]

    def test_wakers_at_the_same_moment_share(self, stage: "Stage", threads: ThreadPoolExecutor) -> None:
        stuck = [stage.turn(TurnState.QUEUED) for _ in range(12)]
        for turn_id in stuck:
            stage.set(turn_id, available_at=None)
        wake: Callable[..., list[Due]] = partial(stage.do, upkeep.wake_stuck, limit=5)

        shares = list(threads.map(lambda _: wake(), range(6)))
        while more := wake():
            shares.append(more)

        assert sorted(one.id for share in shares for one in share) == sorted(stuck)
