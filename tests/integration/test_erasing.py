"""Erasing a chat: nothing of it stays in the database or in Redis, and nobody goes on working for it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import redis
from sqlalchemy import func, select, update

from turnkeeper.erasing import erase_chat
from turnkeeper.errors import ChatError
from turnkeeper.exceptions import UnknownChat, UnknownTurn
from turnkeeper.keys import CANCEL_CHANNEL, events_key
from turnkeeper.messages import ToolCall, ToolResult
from turnkeeper.states import AttemptOutcome, TurnState
from turnkeeper.tables import attempts, chats, erased_turns, messages, tool_runs, turns
from turnkeeper_ops.services.redis import Redis
from turnkeeper_worker import store, upkeep
from turnkeeper_worker.store import Ended
from turnkeeper_worker.upkeep import Abandoned

if TYPE_CHECKING:
    from tests.integration.conftest import OpenKeeper, Stage

MANY = 40
CALL = ToolCall(call_id="c", name="look", arguments="{}")


@pytest.fixture
def cache(redis_server: Redis) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(redis_server.url()) as client:
        yield client


class TestRows:
    def test_a_chat_is_erased_with_everything_in_it(self, stage: "Stage") -> None:
        turn_id = stage.turn(TurnState.COMPLETED)
        chat = stage.row(turn_id)["chat_id"]
        other = stage.turn(TurnState.COMPLETED)

        erased = stage.do(erase_chat, chat)

        assert (erased.chat_id, erased.turns, erased.running) == (chat, (turn_id,), ())
        assert [stage.count(table) for table in (chats, turns, messages, attempts)] == [1, 1, 2, 1]
        assert stage.state(other) == "completed"

    def test_turns_that_refer_to_each_other_go_together(self, stage: "Stage") -> None:
        first = stage.turn(TurnState.COMPLETED)
        stage.enqueue(edits=first)

        stage.do(erase_chat, stage.row(first)["chat_id"])

        assert [stage.count(table) for table in (chats, turns, messages)] == [0, 0, 0]

    def test_an_unknown_chat_is_told(self, stage: "Stage") -> None:
        with pytest.raises(UnknownChat):
            stage.do(erase_chat, uuid4())

    def test_what_runs_is_named_and_can_write_nothing_any_more(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)
        waiting = stage.enqueue(chat_id=running.chat_id).id

        erased = stage.do(erase_chat, running.chat_id)

        assert (erased.turns, erased.running) == ((running.id, waiting), (running.id,))
        with pytest.raises(store.LeaseLost):
            stage.complete(running)
        assert stage.beat(running.worker_id) == []

    def test_workers_that_store_results_meanwhile_are_no_deadlock(
        self, stage: "Stage", threads: ThreadPoolExecutor
    ) -> None:
        running = [stage.call_tools(stage.claim(stage.enqueue().id), CALL) for _ in range(MANY)]
        result = ToolResult(call_id="c", output="seen")

        told = [threads.submit(stage.tell, turn, result) for turn in running]
        erased = [threads.submit(stage.do, erase_chat, turn.chat_id) for turn in running]

        assert [one.exception() for one in erased] == [None] * MANY
        # Whoever came too late finds the chat or the turn gone.
        assert {type(one.exception()).__name__ for one in told} <= {"NoneType", "LeaseLost", "IntegrityError"}
        assert stage.count(tool_runs) == stage.count(messages) == 0


class TestWhatIsLeft:
    def test_a_background_response_is_found_without_its_words(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)
        checkpoint = stage.keep(running, pieces=(("text", "a secret"),))

        stage.do(erase_chat, running.chat_id)

        wordless = checkpoint.model_copy(update={"pieces": ()})
        assert stage.do(upkeep.find_abandoned) == [Abandoned(turn_id=running.id, checkpoint=wordless)]
        with stage.engine.connect() as connection:
            assert "secret" not in str(connection.execute(select(erased_turns)).all())

    def test_a_turn_that_is_submitted_again_may_be_erased_again(self, stage: "Stage") -> None:
        turn_id = stage.turn(TurnState.COMPLETED)
        stage.do(erase_chat, stage.row(turn_id)["chat_id"])
        again = stage.claim(stage.enqueue(turn_id=turn_id).id)
        stage.keep(again)

        stage.do(erase_chat, again.chat_id)

        assert [one.turn_id for one in stage.do(upkeep.find_abandoned)] == [turn_id]

    def test_one_that_was_called_off_is_found_no_more(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)
        stage.keep(running)
        stage.do(erase_chat, running.chat_id)
        (abandoned,) = stage.do(upkeep.find_abandoned)

        stage.do(upkeep.close_abandoned, abandoned, {"input_tokens": 3})

        assert stage.do(upkeep.find_abandoned) == []

    def test_one_that_could_not_be_called_off_is_forgotten_when_it_is_over_by_itself(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)
        stage.keep(running)
        stage.do(erase_chat, running.chat_id)

        assert stage.do(upkeep.forget_abandoned, after=timedelta(hours=1)) == 0
        assert stage.do(upkeep.forget_abandoned, after=timedelta(0)) == 1
        assert stage.do(upkeep.find_abandoned) == []

    def test_they_are_found_whether_their_turns_ended_or_were_erased(self, stage: "Stage") -> None:
        ended, erased = stage.claim(stage.enqueue().id), stage.claim(stage.enqueue().id)
        for turn in (ended, erased):
            stage.keep(turn)
        stage.do(erase_chat, erased.chat_id)
        failed = Ended(outcome=AttemptOutcome.FAILED, error=ChatError(message="No."))
        stage.do(store.fail, ended, failed, goes_on=True)

        assert {one.turn_id for one in stage.do(upkeep.find_abandoned)} == {erased.id, ended.id}

    def test_turns_are_remembered_until_their_workers_are_silent(self, stage: "Stage") -> None:
        turn_id = stage.turn(TurnState.RUNNING)
        stage.do(erase_chat, stage.row(turn_id)["chat_id"])
        lately = stage.do(upkeep.find_erased, after=timedelta(seconds=15))
        stage.do(
            lambda connection: connection.execute(
                update(erased_turns).values(erased_at=func.now() - timedelta(seconds=16))
            )
        )

        assert lately == []
        assert stage.do(upkeep.find_erased, after=timedelta(seconds=15)) == [turn_id]
        stage.do(upkeep.forget_erased, [turn_id])
        assert stage.count(erased_turns) == 0


class TestClients:
    def test_a_chat_goes_with_its_live_events(
        self, open_keeper: "OpenKeeper", stage: "Stage", cache: "redis.Redis"
    ) -> None:
        keeper = open_keeper()
        turn_id = stage.turn(TurnState.QUEUED)
        keeper.cancel(turn_id)

        erased = keeper.erase(stage.row(turn_id)["chat_id"])

        assert erased.turns == (turn_id,)
        assert cache.exists(events_key(turn_id)) == 0
        with pytest.raises(UnknownTurn):
            keeper.show(turn_id)

    def test_the_workers_of_running_turns_are_told(
        self, open_keeper: "OpenKeeper", stage: "Stage", cache: "redis.Redis"
    ) -> None:
        turn_id = stage.turn(TurnState.RUNNING)
        with cache.pubsub(ignore_subscribe_messages=True) as channel:  # type: ignore[no-untyped-call]  # half typed
            channel.subscribe(CANCEL_CHANNEL)
            channel.get_message(timeout=5)

            open_keeper().erase(str(stage.row(turn_id)["chat_id"]))

            message: Any = channel.get_message(timeout=5)
        assert message["data"].decode() == str(turn_id)

    def test_without_redis_the_rows_go_all_the_same(self, open_keeper: "OpenKeeper", stage: "Stage") -> None:
        turn_id = stage.turn(TurnState.RUNNING)

        open_keeper(redis_url="redis://127.0.0.1:1/0").erase(stage.row(turn_id)["chat_id"])

        assert stage.count(turns) == 0
        assert stage.do(upkeep.find_erased, after=timedelta(0)) == [turn_id]
