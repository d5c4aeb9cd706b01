"""Saying something else instead of an earlier message: what is replaced, what is stopped, what is history then."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
import redis
from sqlalchemy import Connection, create_engine

from turnkeeper import turns
from turnkeeper.events import Event, read_event
from turnkeeper.exceptions import (
    IdempotencyConflict,
    InvalidRequest,
    NotEditable,
    NotRetryable,
    TurnRejected,
    UnknownTurn,
)
from turnkeeper.follow import FIELD
from turnkeeper.keys import CANCEL_CHANNEL, events_key
from turnkeeper.messages import ToolCall
from turnkeeper.states import TurnState
from turnkeeper.turns import Enqueued
from turnkeeper_ops.services.redis import Redis
from turnkeeper_worker import store, upkeep
from turnkeeper_worker.history import hear

if TYPE_CHECKING:
    from tests.integration.conftest import OpenKeeper, Stage


def answered_chat(stage: "Stage", *questions: str) -> list[UUID]:
    """Return the turns of a chat in which each question has its answer."""
    turn_ids: list[UUID] = []
    chat: UUID | None = None
    for number, words in enumerate(questions, start=1):
        enqueued = stage.enqueue(words, chat_id=chat)
        chat = enqueued.chat_id
        stage.complete(stage.claim(enqueued.id), f"to {words}", response_id=f"resp_{number}")
        turn_ids.append(enqueued.id)
    return turn_ids


def edit(stage: "Stage", turn_id: UUID, words: str = "Anew", **fields: Any) -> Enqueued:
    return stage.enqueue(words, edits=turn_id, **({"provider": None} | fields))


def history(stage: "Stage", turn_id: UUID) -> list[str]:
    return [said.message.text for said in stage.history(stage.claim(turn_id))]


class TestHistory:
    def test_the_model_sees_what_came_before_and_the_new_message(self, stage: "Stage") -> None:
        _, second, _ = answered_chat(stage, "One", "Two", "Three")

        edited = edit(stage, second)

        assert history(stage, edited.id) == ["One", "to One", "Anew"]

    def test_all_that_is_replaced_says_by_what(self, stage: "Stage") -> None:
        first, second, third = answered_chat(stage, "One", "Two", "Three")

        edited = edit(stage, second)

        replaced = [stage.row(turn)["superseded_by"] for turn in (first, second, third, edited.id)]
        assert replaced == [None, edited.id, edited.id, None]
        assert (edited.is_new, edited.is_due, stage.row(edited.id)["seq"]) == (True, True, 4)

    def test_an_edit_of_an_edit_leaves_the_first_one_what_it_replaced(self, stage: "Stage") -> None:
        first, second = answered_chat(stage, "One", "Two")
        middle = edit(stage, second, "Too").id

        last = edit(stage, middle, "Also").id

        assert [stage.row(turn)["superseded_by"] for turn in (first, second, middle)] == [None, middle, last]
        assert history(stage, last) == ["One", "to One", "Also"]

    def test_an_edit_of_the_first_message_begins_the_chat_anew(self, stage: "Stage") -> None:
        first, second = answered_chat(stage, "One", "Two")
        edit(stage, second, "Too")

        assert history(stage, edit(stage, first, "Alone").id)[-1:] == ["Alone"]

    def test_the_message_of_a_turn_that_was_retried_is_the_first_turns(self, stage: "Stage") -> None:
        (first,) = answered_chat(stage, "One")
        failed = stage.enqueue("Two", chat_id=stage.row(first)["chat_id"]).id
        stage.fail(stage.claim(failed))
        again = stage.do(turns.retry, failed).id

        edited = edit(stage, again)

        assert history(stage, edited.id) == ["One", "to One", "Anew"]
        assert [stage.row(turn)["superseded_by"] for turn in (failed, again)] == [edited.id] * 2

    def test_a_turn_that_runs_on_for_a_moment_sees_what_it_answers(self, stage: "Stage") -> None:
        first, second = answered_chat(stage, "One", "Two")
        running = stage.claim(stage.enqueue("Three", chat_id=stage.row(first)["chat_id"]).id)

        edit(stage, second)

        seen = [said.message.text for said in stage.history(running)]
        assert seen == ["One", "to One", "Two", "to Two", "Three"]

    def test_other_chats_are_not_touched(self, stage: "Stage") -> None:
        (mine,), (other,) = answered_chat(stage, "One"), answered_chat(stage, "Else")

        edit(stage, mine)

        assert stage.row(other)["superseded_by"] is None


class TestAnchor:
    def test_one_that_stands_for_what_was_replaced_does_not_fit(self, stage: "Stage") -> None:
        _, second = answered_chat(stage, "One", "Two")

        claimed = stage.claim(edit(stage, second).id)

        assert claimed.anchor is not None
        assert self.present_digest(stage, claimed) != claimed.anchor.digest

    def test_one_from_before_fits_where_it_is_the_last_there_is(self, stage: "Stage") -> None:
        (first,) = answered_chat(stage, "One")
        failed = stage.enqueue("Two", chat_id=stage.row(first)["chat_id"]).id
        stage.fail(stage.claim(failed))

        claimed = stage.claim(edit(stage, failed).id)

        assert claimed.anchor is not None
        assert claimed.anchor.response_id == "resp_1"
        assert self.present_digest(stage, claimed) == claimed.anchor.digest

    def test_one_that_a_replaced_turn_leaves_behind_afterwards_does_not_fit(self, stage: "Stage") -> None:
        (first,) = answered_chat(stage, "One")
        running = stage.claim(stage.enqueue("Two", chat_id=stage.row(first)["chat_id"]).id)
        edited = edit(stage, running.id)
        # Its worker had the answer before it heard of the edit.
        stage.complete(running, "to Two", response_id="resp_2")

        claimed = stage.claim(edited.id)

        assert claimed.anchor is not None
        assert claimed.anchor.response_id == "resp_2"
        assert self.present_digest(stage, claimed) != claimed.anchor.digest

    def test_the_new_answers_fits_from_then_on(self, stage: "Stage") -> None:
        _, second = answered_chat(stage, "One", "Two")
        edited = edit(stage, second)
        stage.complete(stage.claim(edited.id), "to Anew", response_id="resp_3")

        claimed = stage.claim(stage.enqueue("Next", chat_id=edited.chat_id).id)

        assert claimed.anchor is not None
        assert claimed.anchor.response_id == "resp_3"
        assert self.present_digest(stage, claimed) == claimed.anchor.digest

    def present_digest(self, stage: "Stage", turn: store.Claimed) -> str:
        assert turn.anchor is not None
        through = (turn.anchor.seq, turn.anchor.position)
        return stage.do(hear, turn.chat_id, after=through, seen_by=turn.seq).digest


class TestWhatIsUnderWay:
    @pytest.mark.parametrize("state", [TurnState.QUEUED, TurnState.RETRYING])
    def test_a_waiting_turn_ends(self, stage: "Stage", state: TurnState) -> None:
        waiting = stage.turn(state)
        epoch = stage.row(waiting)["epoch"]

        edited = edit(stage, waiting)

        assert stage.state(waiting) == "cancelled"
        assert edited.cancelled == ((waiting, epoch + 1),)
        assert edited.is_due

    def test_a_running_turn_is_asked_to_stop_and_waited_for(self, stage: "Stage") -> None:
        (first,) = answered_chat(stage, "One")
        running = stage.claim(stage.enqueue("Two", chat_id=stage.row(first)["chat_id"]).id)

        edited = edit(stage, first)

        assert (edited.interrupted, edited.is_due) == ((running.id,), False)
        assert stage.row(running.id)["cancel_requested_at"] is not None
        assert stage.complete(running).woken == edited.id
        assert history(stage, edited.id) == ["Anew"]

    def test_a_turn_before_the_message_goes_on(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue("One").id)
        second = stage.enqueue("Two", chat_id=running.chat_id)
        third = stage.enqueue("Three", chat_id=running.chat_id)

        edited = edit(stage, second.id)

        assert stage.row(running.id)["cancel_requested_at"] is None
        assert [turn for turn, _ in edited.cancelled] == [second.id, third.id]
        assert stage.complete(running, "to One").woken == edited.id
        assert history(stage, edited.id) == ["One", "to One", "Anew"]

    def test_a_turn_that_runs_tools_is_asked_to_stop(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue("One").id)
        running = stage.call_tools(running, ToolCall(call_id="c", name="look", arguments="{}"))

        edited = edit(stage, running.id)

        assert edited.interrupted == (running.id,)


class TestSettings:
    def test_they_are_those_of_the_turn_that_is_replaced(self, stage: "Stage") -> None:
        asked = {"model": "big", "options": {"seed": 1}, "background": True, "tools": ("look",)}
        turn = stage.enqueue(**asked).id

        row = stage.row(edit(stage, turn).id)

        kept = {name: row[name] for name in ("provider", "model", "options", "background", "tools")}
        assert kept == asked | {"provider": "openai", "tools": ["look"]}

    def test_another_provider_takes_over_none_of_its_settings(self, stage: "Stage") -> None:
        turn = stage.enqueue(model="big", options={"seed": 1}, background=True, tools=("look",)).id

        row = stage.row(edit(stage, turn, provider="anthropic").id)

        assert (row["provider"], row["model"], row["options"], row["background"]) == ("anthropic", None, {}, None)
        assert row["tools"] == ["look"]

    def test_what_is_asked_for_counts(self, stage: "Stage") -> None:
        turn = stage.enqueue(model="big", options={"seed": 1}, background=True, tools=("look",)).id

        row = stage.row(edit(stage, turn, model="m", options={"seed": 2}, background=False, tools=()).id)

        assert (row["model"], row["options"], row["background"], row["tools"]) == ("m", {"seed": 2}, False, [])


class TestRepetition:
    def test_the_same_key_is_the_same_edit(self, stage: "Stage") -> None:
        (turn,) = answered_chat(stage, "One")

        first = edit(stage, turn, idempotency_key="k")
        before = stage.dump()
        second = edit(stage, turn, idempotency_key="k")

        assert (second.id, second.is_new) == (first.id, False)
        assert stage.dump() == before

    def test_the_same_key_for_the_edit_of_another_turn_is_refused(self, stage: "Stage") -> None:
        first, second = answered_chat(stage, "One", "Two")
        edit(stage, second, idempotency_key="k")

        with pytest.raises(IdempotencyConflict):
            edit(stage, first, idempotency_key="k")

    def test_an_edit_of_what_was_replaced_is_refused(self, stage: "Stage") -> None:
        (turn,) = answered_chat(stage, "One")
        first = edit(stage, turn)
        before = stage.dump()

        with pytest.raises(NotEditable) as caught:
            edit(stage, turn, "Again")

        assert caught.value.superseded_by == first.id
        assert stage.dump() == before


class TestRefused:
    def test_a_replaced_turn_is_not_retried(self, stage: "Stage") -> None:
        failed = stage.turn(TurnState.FAILED)
        edited = edit(stage, failed)

        with pytest.raises(
            NotRetryable, match=f"its message was edited, and turn {edited.id} stands in its place"
        ):
            stage.do(turns.retry, failed)

    def test_a_turn_that_does_not_exist_is_told(self, stage: "Stage") -> None:
        rejected = uuid4()
        stage.do(upkeep.reject, rejected, "the text is empty")

        with pytest.raises(UnknownTurn):
            edit(stage, uuid4())
        with pytest.raises(TurnRejected, match="the text is empty"):
            edit(stage, rejected)

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            pytest.param({"chat_id": uuid4()}, "leave chat_id out", id="a chat besides"),
            pytest.param({"on_busy": "reject"}, "leave on_busy out", id="a manner besides"),
        ],
    )
    def test_what_an_edit_decides_by_itself_is_not_asked_for(
        self, stage: "Stage", fields: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(InvalidRequest, match=words):
            edit(stage, stage.turn(TurnState.COMPLETED), **fields)


class TestClients:
    @pytest.fixture
    def cache(self, redis_server: Redis) -> Iterator["redis.Redis"]:
        with redis.Redis.from_url(redis_server.url()) as client:
            yield client

    def test_followers_and_workers_are_told(
        self, open_keeper: "OpenKeeper", stage: "Stage", cache: "redis.Redis"
    ) -> None:
        keeper = open_keeper()
        running = stage.claim(stage.enqueue("One").id)
        waiting = stage.enqueue("Two", chat_id=running.chat_id).id
        with cache.pubsub(ignore_subscribe_messages=True) as channel:  # type: ignore[no-untyped-call]  # half typed
            channel.subscribe(CANCEL_CHANNEL)
            channel.get_message(timeout=5)

            edited = keeper.edit(str(running.id), "Anew")

            message = channel.get_message(timeout=5)
        assert message is not None
        assert UUID(message["data"].decode()) == running.id
        assert [event.type for event in published(cache, waiting)] == ["turn.cancelled"]
        assert keeper.show(waiting).superseded_by == edited.id
        assert keeper.show(edited.id).superseded_by is None

    def test_no_default_provider_comes_between(self, open_keeper: "OpenKeeper", stage: "Stage") -> None:
        turn = stage.enqueue(provider="anthropic").id

        edited = open_keeper(default_provider="openai").edit(turn, "Anew")

        assert stage.row(edited.id)["provider"] == "anthropic"

    def test_what_is_no_id_is_refused(self, open_keeper: "OpenKeeper") -> None:
        with pytest.raises(InvalidRequest, match="'x' is no id"):
            open_keeper().edit("x", "Anew")


def test_an_edit_disappears_with_the_callers_transaction(stage: "Stage", database_url: Any) -> None:
    (turn,) = answered_chat(stage, "One")
    before = stage.dump()
    engine = create_engine(database_url)

    def edit_and_regret(connection: Connection) -> None:
        turns.enqueue(connection, turns.TurnRequest(text="Anew", edits=turn), is_rung=False)
        connection.rollback()

    with engine.connect() as connection:
        edit_and_regret(connection)
    engine.dispose()

    assert stage.dump() == before


def published(cache: "redis.Redis", turn_id: UUID) -> list[Event]:
    entries: Any = cache.xrange(events_key(turn_id))
    return [read_event(cursor.decode(), content[FIELD]) for cursor, content in entries]
