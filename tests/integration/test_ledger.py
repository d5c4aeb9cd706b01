"""The ledger of tools: what is known of a run when its worker is gone, and who may still write about it."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis as AsyncRedis
from sqlalchemy import URL, Connection
from sqlalchemy.exc import IntegrityError

from turnkeeper.messages import ToolCall, ToolResult
from turnkeeper.tables import chats
from turnkeeper.tools import Tool, ToolContext
from turnkeeper_ops.services.redis import Redis
from turnkeeper_worker import ledger, store, tool_step, upkeep
from turnkeeper_worker.database import Database
from turnkeeper_worker.leases import Lease
from turnkeeper_worker.ledger import Run
from turnkeeper_worker.live import Live
from turnkeeper_worker.planner import Attempt, Planner
from turnkeeper_worker.replay import INTERRUPTED
from turnkeeper_worker.store import Claimed, LeaseLost
from turnkeeper_worker.tool_step import ToolRunner, ToolStep
from turnkeeper_worker.tools import Toolbox

if TYPE_CHECKING:
    from tests.integration.conftest import Stage


def call(call_id: str, name: str = "look") -> ToolCall:
    return ToolCall(call_id=call_id, name=name, arguments='{"city": "Oslo"}')


def result(call_id: str, output: str = "seen") -> ToolResult:
    return ToolResult(call_id=call_id, output=output)


def interrupted(call_id: str) -> ToolResult:
    return ToolResult(call_id=call_id, output=INTERRUPTED, is_error=True)


def running(stage: "Stage", *runs: Run) -> Claimed:
    """Return a turn whose model asked for *runs*, which have started."""
    turn = stage.complete_step(stage.claim(stage.enqueue().id), "Hm", *(run.call for run in runs), runs_tools=True)
    stage.do(ledger.open_runs, turn, runs)
    return turn


def lose(stage: "Stage", turn: Claimed) -> Claimed:
    """Let the worker of a turn die; return the turn as its successor claims it."""
    stage.silence(turn.worker_id)
    (orphan,) = stage.do(upkeep.rescue, timedelta(seconds=15))
    assert orphan.id == turn.id
    return stage.claim(turn.id)


def states(stage: "Stage", turn_id: UUID) -> list[str]:
    return [str(row["state"]) for row in stage.tool_runs(turn_id)]


REPEATABLE = Run(call=call("a"), number=1, idempotent=True)
OTHER = Run(call=call("b", "pay"), number=2, idempotent=False)


class TestOpening:
    def test_a_run_is_written_down_before_it_starts(self, stage: "Stage") -> None:
        turn = running(stage, REPEATABLE, OTHER)

        one, two = stage.tool_runs(turn.id)

        assert (one["call_id"], one["number"], one["name"], one["arguments"]) == (
            "a",
            1,
            "look",
            '{"city": "Oslo"}',
        )
        assert (one["step"], one["epoch"], one["idempotent"]) == (1, turn.epoch, True)
        assert (one["state"], one["result"], one["finished_at"]) == ("started", None, None)
        assert (two["call_id"], two["number"], two["idempotent"]) == ("b", 2, False)

    def test_a_run_is_written_down_once(self, stage: "Stage") -> None:
        turn = running(stage, REPEATABLE)

        with pytest.raises(IntegrityError, match="pk_tool_runs"):
            stage.do(ledger.open_runs, turn, [REPEATABLE])

    def test_an_id_may_come_again_in_another_step(self, stage: "Stage") -> None:
        turn = running(stage, REPEATABLE)
        stage.do(ledger.close_run, turn, result("a", "one"))
        following = stage.tell(turn, result("a", "one"))
        stage.do(store.begin, following)

        second = stage.call_tools(following, call("a"))
        stage.do(ledger.close_run, second, result("a", "two"))

        assert [(row["step"], row["result"]["output"]) for row in stage.tool_runs(turn.id)] == [
            (1, "one"),
            (2, "two"),
        ]

    def test_the_runs_of_an_erased_chat_are_erased(self, stage: "Stage") -> None:
        turn = running(stage, REPEATABLE)

        stage.do(Connection.execute, chats.delete().where(chats.c.id == turn.chat_id))

        assert stage.tool_runs(turn.id) == []


class TestClosing:
    def test_a_result_is_kept_as_it_was_given(self, stage: "Stage") -> None:
        turn = running(stage, REPEATABLE, OTHER)
        refused = ToolResult(call_id="a", output="größer\ufffd", is_error=True)

        stage.do(ledger.close_run, turn, refused)

        one, two = stage.tool_runs(turn.id)
        assert (one["state"], ToolResult.model_validate(one["result"])) == ("finished", refused)
        assert one["finished_at"] is not None
        assert (two["state"], two["result"]) == ("started", None)

    @pytest.mark.parametrize(
        "belief",
        [
            pytest.param({"epoch": 0}, id="under another lease"),
            pytest.param({"step": 2}, id="of another step"),
            pytest.param({"id": UUID(int=7)}, id="of another turn"),
        ],
    )
    def test_a_run_that_is_not_ours_is_not_closed(self, stage: "Stage", belief: dict[str, Any]) -> None:
        turn = running(stage, REPEATABLE)
        before = stage.dump()
        stranger = replace(turn, **belief)

        with pytest.raises(LeaseLost) as caught:
            stage.do(ledger.close_run, stranger, result("a"))

        assert (caught.value.turn_id, caught.value.epoch) == (stranger.id, stranger.epoch)
        assert stage.do(ledger.close_runs, stranger, [result("a")]) == 0
        assert stage.dump() == before

    def test_a_call_that_was_never_made_is_not_closed(self, stage: "Stage") -> None:
        turn = running(stage, REPEATABLE)

        assert stage.do(ledger.close_runs, turn, [result("z")]) == 0

    def test_the_first_result_of_a_run_stays(self, stage: "Stage") -> None:
        turn = running(stage, REPEATABLE)
        stage.do(ledger.close_run, turn, result("a", "first"))

        with pytest.raises(LeaseLost):
            stage.do(ledger.close_run, turn, result("a", "second"))

        assert stage.tool_runs(turn.id)[0]["result"]["output"] == "first"

    def test_many_are_closed_at_once_and_those_that_were_open_are_counted(self, stage: "Stage") -> None:
        turn = running(stage, REPEATABLE, OTHER)
        stage.do(ledger.close_run, turn, result("a", "first"))

        closed = stage.do(ledger.close_runs, turn, [result("a", "second"), result("b")])

        assert closed == 1
        assert [row["result"]["output"] for row in stage.tool_runs(turn.id)] == ["first", "seen"]

    def test_what_nobody_knows_the_end_of_is_interrupted(self, stage: "Stage") -> None:
        turn = running(stage, REPEATABLE, OTHER)
        stage.do(ledger.close_run, turn, result("a"))

        stage.do(ledger.interrupt_rest, turn)

        assert states(stage, turn.id) == ["finished", "interrupted"]
        assert ToolResult.model_validate(stage.tool_runs(turn.id)[1]["result"]) == interrupted("b")


class TestTakingOver:
    def test_what_may_be_repeated_is_open_again_and_the_rest_is_interrupted(self, stage: "Stage") -> None:
        lost = running(stage, REPEATABLE, OTHER)
        successor = lose(stage, lost)

        runs = stage.do(ledger.take_over, successor)

        assert runs == (REPEATABLE, replace(OTHER, result=interrupted("b")))
        assert states(stage, lost.id) == ["started", "interrupted"]

    def test_what_had_ended_keeps_its_result_whatever_it_was(self, stage: "Stage") -> None:
        lost = running(stage, REPEATABLE, OTHER)
        refused = ToolResult(call_id="b", output="No.", is_error=True)
        stage.do(ledger.close_runs, lost, [result("a"), refused])
        before = stage.tool_runs(lost.id)

        runs = stage.do(ledger.take_over, lose(stage, lost))

        assert [run.result for run in runs] == [result("a"), refused]
        assert stage.tool_runs(lost.id) == before

    def test_the_runs_come_in_the_order_of_the_calls(self, stage: "Stage") -> None:
        ids = ["d", "a", "c", "b"]
        runs = [Run(call=call(one), number=number, idempotent=True) for number, one in enumerate(ids, start=1)]
        lost = running(stage, *runs)
        stage.do(ledger.close_run, lost, result("b"))

        taken = stage.do(ledger.take_over, lose(stage, lost))

        assert [run.call.call_id for run in taken] == ids

    def test_the_former_holder_can_write_nothing_any_more(self, stage: "Stage") -> None:
        lost = running(stage, REPEATABLE, OTHER)
        successor = lose(stage, lost)
        stage.do(ledger.take_over, successor)
        before = stage.dump()

        for run in (REPEATABLE, OTHER):
            with pytest.raises(LeaseLost):
                stage.do(ledger.close_run, lost, result(run.call.call_id, "late"))
        with pytest.raises(LeaseLost):
            stage.do(store.next_step, lost)

        assert stage.dump() == before
        stage.do(ledger.close_run, successor, result("a"))

    def test_a_result_that_comes_between_the_loss_and_the_claim_still_counts(self, stage: "Stage") -> None:
        lost = running(stage, OTHER)
        stage.silence(lost.worker_id)
        stage.do(upkeep.rescue, timedelta(seconds=15))
        stage.do(ledger.close_run, lost, result("b", "paid"))

        (run,) = stage.do(ledger.take_over, stage.claim(lost.id))

        assert run.result == result("b", "paid")

    def test_a_successor_may_be_lost_as_well(self, stage: "Stage") -> None:
        lost = running(stage, REPEATABLE)
        successor = lose(stage, lost)
        stage.do(ledger.take_over, successor)

        third = lose(stage, successor)
        runs = stage.do(ledger.take_over, third)

        assert runs == (REPEATABLE,)
        with pytest.raises(LeaseLost):
            stage.do(ledger.close_run, successor, result("a"))
        stage.do(ledger.close_run, third, result("a"))

    def test_whoever_lost_the_turn_since_the_claim_takes_nothing_over(self, stage: "Stage") -> None:
        stale = lose(stage, running(stage, REPEATABLE, OTHER))
        successor = lose(stage, stale)
        stage.do(tool_step.take_over, successor)
        before = stage.dump()

        with pytest.raises(LeaseLost):
            stage.do(tool_step.take_over, stale)

        assert stage.dump() == before

    def test_the_runs_of_other_steps_and_turns_are_left_alone(self, stage: "Stage") -> None:
        other = running(stage, REPEATABLE, OTHER)
        first = running(stage, OTHER)
        stage.do(ledger.close_run, first, result("b", "paid"))
        following = stage.tell(first, result("b", "paid"))
        stage.do(store.begin, following)
        lost = stage.call_tools(following, call("b", "pay"), idempotent=False)

        (run,) = stage.do(ledger.take_over, lose(stage, lost))

        assert run.result == interrupted("b")
        assert states(stage, first.id) == ["finished", "interrupted"]
        assert states(stage, other.id) == ["started", "started"]

    @pytest.mark.parametrize(
        ("calls", "awaits_more"),
        [
            pytest.param((call("a"),), False, id="every call is ours"),
            pytest.param((call("a"), call("z", "ask_user")), True, id="the producer answers for one"),
        ],
    )
    def test_a_successor_knows_whether_calls_are_open_besides(
        self, stage: "Stage", calls: tuple[ToolCall, ...], awaits_more: bool
    ) -> None:
        lost = stage.complete_step(stage.claim(stage.enqueue().id), "Hm", *calls, runs_tools=True)
        stage.do(ledger.open_runs, lost, [REPEATABLE])

        taken = stage.do(tool_step.take_over, lose(stage, lost))

        assert taken.runs == (REPEATABLE,)
        assert taken.awaits_more is awaits_more

    def test_the_calls_of_the_steps_before_are_none_of_this_ones(self, stage: "Stage") -> None:
        first = running(stage, OTHER)
        following = stage.tell(first, result("b"))
        stage.do(store.begin, following)
        second = stage.call_tools(following, call("c"), call("d"))

        assert stage.do(ledger.calls_of_step, second) == ("c", "d")


class City(BaseModel):
    city: str


def box(**runs: Callable[[City, ToolContext], Any]) -> Toolbox:
    """Return tools by their names."""
    return Toolbox({name: Tool(name=name, description="", arguments=City, run=run) for name, run in runs.items()})


class TestRunning:
    @pytest.fixture
    def run(self, database_url: URL, redis_server: Redis) -> Callable[..., Attempt]:
        """Run the tools of a turn as a delivery does, until the next attempt is planned."""

        async def run_them(toolbox: Toolbox, turn: Claimed, runs: tuple[Run, ...]) -> Attempt:
            database, redis = Database.at(database_url), AsyncRedis.from_url(redis_server.url(0))
            seconds = timedelta(seconds=1)
            runner = ToolRunner(
                database=database,
                live=Live(redis, coalesce=seconds, ttl=60 * seconds, max_events=100),
                toolbox=toolbox,
                planner=Planner(configs={}, keys={}, toolbox=toolbox),
            )
            task = asyncio.current_task()
            assert task is not None
            try:
                ended = await runner.run(ToolStep(turn=turn, runs=runs, awaits_more=False), Lease(turn.id, task))
            finally:
                await redis.aclose()
                await database.close()
            assert isinstance(ended, Attempt)
            return ended

        return lambda *given: asyncio.run(run_them(*given))

    def test_the_results_are_told_in_the_order_of_the_calls_however_they_end(
        self, stage: "Stage", run: Callable[..., Attempt]
    ) -> None:
        second_ended = asyncio.Event()

        async def look(_: City, context: ToolContext) -> str:
            if context.call_id == "b":
                second_ended.set()
            await second_ended.wait()
            return context.call_id

        runs = tuple(
            Run(call=call(one), number=index, idempotent=True) for index, one in enumerate("abc", start=1)
        )
        turn = running(stage, *runs)

        attempt = run(box(look=look), replace(turn, tools=("look",)), runs)

        assert attempt.turn.step == 2
        assert attempt.call.history[-1].parts == tuple(result(one, one) for one in "abc")
        assert states(stage, turn.id) == ["finished"] * 3

    def test_a_tool_that_the_turn_does_not_offer_is_not_run_though_the_worker_has_it(
        self, stage: "Stage", run: Callable[..., Attempt]
    ) -> None:
        paid: list[City] = []
        turn = running(stage, OTHER)

        attempt = run(
            box(look=print, pay=lambda where, _: paid.append(where)), replace(turn, tools=("look",)), (OTHER,)
        )

        assert paid == []
        (told,) = attempt.call.history[-1].parts
        assert told == ToolResult(call_id="b", output="There is no tool pay.", is_error=True)

    def test_no_run_stays_open_behind_a_turn_that_went_on(
        self, stage: "Stage", run: Callable[..., Attempt]
    ) -> None:
        async def look(_: City, __: ToolContext) -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.Event().wait()

        turn = running(stage, REPEATABLE)

        run(box(look=look), replace(turn, tools=("look",)), (REPEATABLE,))

        assert states(stage, turn.id) == ["finished"]
