"""What a producer may do to a turn: enqueue, cancel, retry; one producer at a time."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from turnkeeper import turns
from turnkeeper.exceptions import (
    ChatBusy,
    IdempotencyConflict,
    InvalidRequest,
    NotRetryable,
    TurnRejected,
    UnknownChat,
    UnknownTurn,
)
from turnkeeper.requests import TurnRequest
from turnkeeper.states import TurnState
from turnkeeper.tables import chats, messages
from turnkeeper.tables import turns as turns_table
from turnkeeper_worker import store, upkeep
from turnkeeper_worker.store import NotMine, claim

if TYPE_CHECKING:
    from tests.integration.conftest import Stage

OPEN = [TurnState.QUEUED, TurnState.RUNNING, TurnState.RETRYING]
FINAL = [TurnState.COMPLETED, TurnState.FAILED, TurnState.CANCELLED]


class TestEnqueue:
    def test_a_turn_of_a_new_chat_is_due_at_once(self, stage: "Stage") -> None:
        enqueued = stage.enqueue("Hello", model="m", instructions="Be kind.", owner="ada", options={"seed": 1})

        turn, chat = stage.row(enqueued.id), stage.chat(enqueued.chat_id)
        assert (enqueued.is_new, enqueued.is_due, enqueued.is_rung) == (True, True, True)
        assert (turn["state"], turn["seq"], turn["epoch"]) == ("queued", 1, 0)
        assert turn["available_at"] == turn["rung_at"] is not None
        assert (turn["provider"], turn["model"], turn["options"]) == ("openai", "m", {"seed": 1})
        assert (chat["owner"], chat["instructions"], chat["turn_count"]) == ("ada", "Be kind.", 1)
        assert stage.texts(enqueued.id) == [("user", "Hello")]

    def test_a_later_turn_waits_behind_an_open_one(self, stage: "Stage") -> None:
        first = stage.enqueue()

        second = stage.enqueue(chat_id=first.chat_id)

        assert (second.is_due, second.is_rung) == (False, False)
        assert stage.row(second.id)["available_at"] is None
        assert stage.row(second.id)["seq"] == 2

    @pytest.mark.parametrize("state", FINAL)
    def test_a_turn_behind_an_ended_one_is_due(self, stage: "Stage", state: TurnState) -> None:
        chat = stage.row(stage.turn(state))["chat_id"]

        assert stage.enqueue(chat_id=chat).is_due

    def test_the_chats_provider_and_model_are_the_turns_unless_it_names_its_own(self, stage: "Stage") -> None:
        chat = stage.enqueue(model="m").chat_id

        plain = stage.enqueue(chat_id=chat, provider=None)
        other = stage.enqueue(chat_id=chat, provider="anthropic")
        same = stage.enqueue(chat_id=chat, provider="openai", model="n")

        chosen = [(stage.row(one.id)["provider"], stage.row(one.id)["model"]) for one in (plain, other, same)]
        assert chosen == [("openai", "m"), ("anthropic", None), ("openai", "n")]

    def test_a_new_chat_needs_a_provider(self, stage: "Stage") -> None:
        with pytest.raises(InvalidRequest, match="no provider is named"):
            stage.enqueue(provider=None)

        assert stage.count(chats) == 0

    def test_an_unknown_chat_is_told(self, stage: "Stage") -> None:
        with pytest.raises(UnknownChat):
            stage.enqueue(chat_id=uuid4())

    def test_ten_mebibytes_come_back_whole(self, stage: "Stage") -> None:
        words = "é" * (5 * 1024 * 1024)

        enqueued = stage.enqueue(words)

        assert stage.texts(enqueued.id) == [("user", words)]

    def test_a_turn_disappears_with_the_callers_transaction(self, stage: "Stage", engine: Engine) -> None:
        with engine.connect() as connection:
            enqueued = turns.enqueue(connection, TurnRequest(text="Hello", provider="openai"), is_rung=False)
            assert (enqueued.is_due, enqueued.is_rung) == (True, False)
            connection.rollback()

        assert [stage.count(table) for table in (chats, turns_table, messages)] == [0, 0, 0]

    def test_a_turn_that_nobody_rings_for_is_found_by_the_rescue(self, stage: "Stage") -> None:
        enqueued = stage.do(turns.enqueue, TurnRequest(text="Hello", provider="openai"), is_rung=False)

        assert stage.row(enqueued.id)["rung_at"] is None


class TestIdempotency:
    def test_the_same_key_is_the_same_turn(self, stage: "Stage") -> None:
        first = stage.enqueue(idempotency_key="k")

        second = stage.enqueue(idempotency_key="k")

        assert (second.id, second.chat_id, second.is_new) == (first.id, first.chat_id, False)
        assert stage.count(turns_table) == stage.count(chats) == 1

    def test_the_same_id_is_the_same_turn(self, stage: "Stage") -> None:
        turn_id = uuid4()

        assert stage.enqueue(turn_id=turn_id).is_new
        assert not stage.enqueue(turn_id=turn_id).is_new

    def test_the_same_key_for_another_request_is_refused(self, stage: "Stage") -> None:
        first = stage.enqueue("Hello", idempotency_key="k")

        with pytest.raises(IdempotencyConflict) as caught:
            stage.enqueue("Goodbye", idempotency_key="k")

        assert (caught.value.key, caught.value.turn_id) == ("k", first.id)

    def test_a_key_belongs_to_its_owner(self, stage: "Stage") -> None:
        assert stage.enqueue(idempotency_key="k", owner="ada").is_new
        assert stage.enqueue(idempotency_key="k", owner="bob").is_new

    def test_a_key_is_remembered_when_its_turn_has_ended(self, stage: "Stage") -> None:
        turn_id = stage.turn(TurnState.COMPLETED, idempotency_key="k")

        assert stage.enqueue(idempotency_key="k").id == turn_id

    @pytest.mark.parametrize("on_busy", ["reject", "interrupt"])
    def test_a_repetition_does_not_meet_itself_as_a_busy_chat(self, stage: "Stage", on_busy: str) -> None:
        chat = stage.row(stage.turn(TurnState.COMPLETED))["chat_id"]
        first = stage.enqueue(chat_id=chat, idempotency_key="k", on_busy=on_busy)

        second = stage.enqueue(chat_id=chat, idempotency_key="k", on_busy=on_busy)

        assert (second.id, second.is_new) == (first.id, False)
        assert stage.state(first.id) == "queued"


class TestBusyChats:
    @pytest.mark.parametrize("state", OPEN)
    def test_reject_refuses_and_stores_nothing(self, stage: "Stage", state: TurnState) -> None:
        chat = stage.row(stage.turn(state))["chat_id"]
        before = stage.dump()

        with pytest.raises(ChatBusy):
            stage.enqueue(chat_id=chat, on_busy="reject")

        assert stage.dump() == before

    @pytest.mark.parametrize("state", FINAL)
    def test_reject_takes_a_chat_that_is_free(self, stage: "Stage", state: TurnState) -> None:
        chat = stage.row(stage.turn(state))["chat_id"]

        assert stage.enqueue(chat_id=chat, on_busy="reject").is_due

    @pytest.mark.parametrize("state", [TurnState.QUEUED, TurnState.RETRYING])
    def test_interrupt_ends_what_waits_and_goes_next(self, stage: "Stage", state: TurnState) -> None:
        waiting = stage.turn(state)
        row = stage.row(waiting)

        enqueued = stage.enqueue(chat_id=row["chat_id"], on_busy="interrupt")

        assert enqueued.is_due
        assert enqueued.cancelled == ((waiting, row["epoch"] + 1),)
        assert enqueued.interrupted == ()
        assert stage.state(waiting) == "cancelled"

    def test_interrupt_asks_the_running_turn_to_stop_and_waits_for_it(self, stage: "Stage") -> None:
        first = stage.enqueue()
        running = stage.claim(first.id)
        waiting = stage.enqueue(chat_id=first.chat_id)

        enqueued = stage.enqueue(chat_id=first.chat_id, on_busy="interrupt")

        assert not enqueued.is_due
        assert enqueued.interrupted == (first.id,)
        assert [turn for turn, _ in enqueued.cancelled] == [waiting.id]
        assert stage.row(first.id)["cancel_requested_at"] is not None
        assert stage.complete(running).woken == enqueued.id


class TestCancel:
    @pytest.mark.parametrize("state", [TurnState.QUEUED, TurnState.RETRYING])
    def test_a_waiting_turn_ends_at_once(self, stage: "Stage", state: TurnState) -> None:
        turn_id = stage.turn(state)
        epoch = stage.row(turn_id)["epoch"]

        cancelled = stage.do(turns.cancel, turn_id)

        assert (cancelled.state, cancelled.changed, cancelled.epoch) == (TurnState.CANCELLED, True, epoch + 1)
        assert stage.row(turn_id)["finished_at"] is not None

    def test_a_running_turn_is_asked_to_stop(self, stage: "Stage") -> None:
        turn_id = stage.turn(TurnState.RUNNING)

        cancelled = stage.do(turns.cancel, turn_id)

        assert (cancelled.state, cancelled.changed) == (TurnState.RUNNING, False)
        assert stage.row(turn_id)["cancel_requested_at"] is not None

    def test_asking_twice_keeps_the_first_moment(self, stage: "Stage") -> None:
        turn_id = stage.turn(TurnState.RUNNING)
        stage.do(turns.cancel, turn_id)
        asked_at = stage.row(turn_id)["cancel_requested_at"]

        stage.do(turns.cancel, turn_id)

        assert stage.row(turn_id)["cancel_requested_at"] == asked_at

    @pytest.mark.parametrize("state", FINAL)
    def test_an_ended_turn_stays_as_it_ended(self, stage: "Stage", state: TurnState) -> None:
        turn_id = stage.turn(state)
        before = stage.dump()

        cancelled = stage.do(turns.cancel, turn_id)

        assert (cancelled.state, cancelled.changed) == (state, False)
        assert stage.dump() == before

    def test_the_next_turn_of_the_chat_becomes_due(self, stage: "Stage") -> None:
        first = stage.enqueue()
        second = stage.enqueue(chat_id=first.chat_id)

        cancelled = stage.do(turns.cancel, first.id)

        assert cancelled.woken == second.id
        assert stage.row(second.id)["available_at"] is not None

    def test_the_turn_behind_a_cancelled_one_stays_behind_the_head(self, stage: "Stage") -> None:
        first = stage.enqueue()
        second, third = stage.enqueue(chat_id=first.chat_id), stage.enqueue(chat_id=first.chat_id)

        cancelled = stage.do(turns.cancel, second.id)

        assert cancelled.woken is None
        assert stage.row(third.id)["available_at"] is None

    def test_a_cancelled_turn_is_never_claimed(self, stage: "Stage") -> None:
        turn_id = stage.turn(TurnState.CANCELLED)

        assert stage.do(claim, turn_id, stage.worker()) == NotMine(TurnState.CANCELLED)

    def test_a_claim_that_was_under_way_is_fenced_off(self, stage: "Stage") -> None:
        turn_id = stage.turn(TurnState.RETRYING)
        epoch = stage.row(turn_id)["epoch"]

        stage.do(turns.cancel, turn_id)

        assert stage.row(turn_id)["epoch"] > epoch


class TestRetry:
    def test_a_countdown_is_skipped(self, stage: "Stage") -> None:
        turn_id = stage.turn(TurnState.RETRYING)

        retried = stage.do(turns.retry, turn_id)

        assert (retried.id, retried.is_new, retried.is_due) == (turn_id, False, True)
        assert stage.claim(turn_id).attempt == 2

    def test_the_wait_for_a_cooldown_is_skipped(self, stage: "Stage") -> None:
        parked = stage.claim(stage.enqueue().id)
        stage.do(store.park, parked, timedelta(seconds=60), is_rung=False)

        retried = stage.do(turns.retry, parked.id)

        assert (retried.id, retried.is_new, retried.is_due) == (parked.id, False, True)
        assert stage.row(parked.id)["rung_at"] is not None
        assert stage.claim(parked.id).attempt == 1

    def test_a_failed_turn_is_answered_anew_by_another_turn(self, stage: "Stage") -> None:
        failed = stage.turn(TurnState.FAILED, options={"seed": 1}, owner="ada", idempotency_key="k")

        retried = stage.do(turns.retry, failed)

        turn = stage.row(retried.id)
        assert (retried.is_new, retried.is_due) == (True, True)
        assert (turn["retry_of"], turn["seq"], turn["state"]) == (failed, 2, "queued")
        assert (turn["options"], turn["owner"], turn["idempotency_key"]) == ({"seed": 1}, "ada", None)
        assert stage.state(failed) == "failed"
        assert stage.texts(retried.id) == []

    @pytest.mark.parametrize("state", sorted({*TurnState} - {TurnState.RETRYING, TurnState.FAILED}))
    def test_any_other_turn_cannot_be_retried(self, stage: "Stage", state: TurnState) -> None:
        turn_id = stage.turn(state)
        before = stage.dump()

        with pytest.raises(NotRetryable, match=f"it is {state}"):
            stage.do(turns.retry, turn_id)

        assert stage.dump() == before

    def test_a_failed_turn_that_the_chat_has_left_behind_cannot_be_retried(self, stage: "Stage") -> None:
        failed = stage.turn(TurnState.FAILED)
        stage.enqueue(chat_id=stage.row(failed)["chat_id"])

        with pytest.raises(NotRetryable, match="the chat has gone on since"):
            stage.do(turns.retry, failed)

    def test_a_retry_of_a_retry_points_at_the_last(self, stage: "Stage") -> None:
        first = stage.turn(TurnState.FAILED)
        second = stage.do(turns.retry, first).id
        stage.fail(stage.claim(second))

        third = stage.do(turns.retry, second)

        assert stage.row(third.id)["retry_of"] == second


class TestUnknown:
    @pytest.mark.parametrize("work", [turns.cancel, turns.retry, turns.find_state], ids=lambda work: work.__name__)
    def test_a_turn_that_does_not_exist_is_told(self, stage: "Stage", work: Any) -> None:
        with pytest.raises(UnknownTurn):
            stage.do(work, uuid4())

    @pytest.mark.parametrize("work", [turns.cancel, turns.retry, turns.find_state], ids=lambda work: work.__name__)
    def test_a_request_that_was_rejected_says_why(self, stage: "Stage", work: Any) -> None:
        turn_id = uuid4()
        stage.do(upkeep.reject, turn_id, "the text is empty")

        with pytest.raises(TurnRejected, match="was rejected: the text is empty"):
            stage.do(work, turn_id)

    def test_the_state_of_a_turn_is_found(self, stage: "Stage") -> None:
        assert stage.do(turns.find_state, stage.turn(TurnState.RETRYING)) is TurnState.RETRYING
