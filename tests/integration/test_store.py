"""The worker's arrows: each one moves the turn it may move, writes all that belongs together, or nothing."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, update

from turnkeeper import turns
from turnkeeper.errors import ChatError, ErrorKind
from turnkeeper.messages import Message, Text
from turnkeeper.states import AttemptOutcome, TurnState
from turnkeeper.tables import chats, messages
from turnkeeper_worker import store, upkeep
from turnkeeper_worker.chain import Anchor, Credential
from turnkeeper_worker.store import Claimed, Early, Ended, LeaseLost, NotMine, Origin

if TYPE_CHECKING:
    from tests.integration.conftest import Stage

ERROR = ChatError(kind=ErrorKind.TIMEOUT, message="It was cut.", provider="openai", retryable=True)
HERE = Credential(provider="openai", base_url="https://api.openai.com/v1", key="abc", model="m")
ORIGIN = Origin(credential=HERE, response_id="resp_1", anchors=True)
WORDS = (Message(role="assistant", parts=(Text(text="Hi"),)),)

ARROWS: dict[str, Callable[[Connection, Claimed], object]] = {
    "complete": lambda c, turn: store.complete(c, turn, Ended(outcome=AttemptOutcome.COMPLETED), WORDS, ORIGIN),
    "fail": lambda c, turn: store.fail(c, turn, Ended(outcome=AttemptOutcome.FAILED, error=ERROR)),
    "cancel": lambda c, turn: store.cancel(c, turn, Ended(outcome=AttemptOutcome.CANCELLED), WORDS),
    "retry": lambda c, turn: store.retry(
        c, turn, Ended(outcome=AttemptOutcome.RETRIED, error=ERROR, delay=timedelta(seconds=9)), is_rung=False
    ),
    "heal": lambda c, turn: store.heal(c, turn, Ended(outcome=AttemptOutcome.HEALED, error=ERROR)),
    "hand back": lambda c, turn: store.hand_back(c, turn, Ended(outcome=AttemptOutcome.HANDED_BACK)),
}
every_arrow = pytest.mark.parametrize("arrow", [pytest.param(work, id=name) for name, work in ARROWS.items()])


def anchored(stage: "Stage", **fields: Any) -> Claimed:
    """Return a running turn of a chat that has an anchor."""
    first = stage.claim(stage.enqueue(**fields).id)
    stage.complete(first)
    return stage.claim(stage.enqueue("And?", chat_id=first.chat_id).id)


class TestClaim:
    def test_a_due_turn_runs_under_a_new_epoch(self, stage: "Stage") -> None:
        enqueued, worker = stage.enqueue(model="m", instructions="Be kind.", options={"seed": 1}), stage.worker()

        claimed = stage.do(store.claim, enqueued.id, worker)

        turn = stage.row(enqueued.id)
        assert isinstance(claimed, Claimed)
        assert (claimed.epoch, claimed.step, claimed.attempt, claimed.spent) == (1, 1, 1, 0)
        assert (claimed.instructions, claimed.options, claimed.anchor) == ("Be kind.", {"seed": 1}, None)
        assert (claimed.is_cancelled, claimed.elapsed) == (False, timedelta(0))
        assert (turn["state"], turn["worker_id"], turn["available_at"]) == ("running", worker, None)
        assert turn["started_at"] is not None

    @pytest.mark.parametrize("state", sorted({*TurnState} - {TurnState.QUEUED, TurnState.RETRYING}))
    def test_a_turn_that_does_not_wait_is_not_ours(self, stage: "Stage", state: TurnState) -> None:
        turn_id = stage.turn(state)

        assert stage.do(store.claim, turn_id, stage.worker()) == NotMine()

    def test_a_turn_that_does_not_exist_is_not_ours(self, stage: "Stage") -> None:
        assert stage.do(store.claim, uuid4(), stage.worker()) == NotMine()

    def test_a_turn_in_its_countdown_is_not_ours_yet(self, stage: "Stage") -> None:
        turn_id = stage.turn(TurnState.RETRYING)

        assert stage.do(store.claim, turn_id, stage.worker()) == NotMine()

    def test_a_ring_that_is_a_moment_early_waits_that_moment(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)
        stage.retry(running, seconds=0.9)

        early = stage.do(store.claim, running.id, stage.worker())

        assert isinstance(early, Early)
        assert timedelta(0) < early.wait <= timedelta(seconds=0.9)

    def test_a_turn_behind_another_is_not_ours_even_when_it_is_due(self, stage: "Stage") -> None:
        first = stage.enqueue()
        second = stage.enqueue(chat_id=first.chat_id)
        stage.set(second.id, available_at=stage.row(first.id)["available_at"])

        assert stage.do(store.claim, second.id, stage.worker()) == NotMine()

    def test_the_next_claim_is_the_next_attempt_of_the_same_life(self, stage: "Stage") -> None:
        first = stage.claim(stage.enqueue().id)
        stage.retry(first, seconds=0)
        started_at = stage.row(first.id)["started_at"]

        second = stage.claim(first.id)

        assert (second.epoch, second.attempt, second.spent) == (2, 2, 1)
        assert second.elapsed > timedelta(0)
        assert stage.row(first.id)["started_at"] == started_at

    def test_a_cancel_that_was_asked_for_before_is_told(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)
        stage.do(turns.cancel, running.id)
        stage.retry(running, seconds=0)

        assert stage.claim(running.id).is_cancelled

    def test_an_anchor_that_cannot_be_read_is_none(self, stage: "Stage") -> None:
        enqueued = stage.enqueue()
        stage.do(Connection.execute, update(chats).values(anchor={"response_id": "resp_1"}))

        assert stage.claim(enqueued.id).anchor is None


class TestFencing:
    @every_arrow
    def test_a_stale_epoch_writes_nothing(self, stage: "Stage", arrow: Callable[..., object]) -> None:
        running = stage.claim(stage.enqueue().id)
        stale = replace(running, epoch=running.epoch - 1)
        before = stage.dump()

        with pytest.raises(LeaseLost) as caught:
            stage.do(arrow, stale)

        assert (caught.value.turn_id, caught.value.epoch) == (running.id, stale.epoch)
        assert stage.dump() == before

    @every_arrow
    @pytest.mark.parametrize("rescuer", ["rescue", "rescue and claim"])
    def test_a_worker_that_was_rescued_from_writes_nothing(
        self, stage: "Stage", arrow: Callable[..., object], rescuer: str
    ) -> None:
        worker = stage.worker()
        running = stage.claim(stage.enqueue().id, worker)
        stage.silence(worker)
        stage.do(upkeep.rescue, timedelta(seconds=15))
        if rescuer == "rescue and claim":
            stage.claim(running.id)
        before = stage.dump()

        with pytest.raises(LeaseLost):
            stage.do(arrow, running)

        assert stage.dump() == before

    @every_arrow
    def test_a_turn_that_was_erased_is_lost(self, stage: "Stage", arrow: Callable[..., object]) -> None:
        running = stage.claim(stage.enqueue().id)
        stage.do(turns.erase_chat, running.chat_id)

        with pytest.raises(LeaseLost):
            stage.do(arrow, running)

    @pytest.mark.parametrize("name", sorted({*ARROWS} - {"heal"}))
    def test_an_arrow_leads_out_of_running_once(self, stage: "Stage", name: str) -> None:
        running = stage.claim(stage.enqueue().id)
        stage.do(ARROWS[name], running)
        before = stage.dump()

        with pytest.raises(LeaseLost):
            stage.do(ARROWS[name], running)

        assert stage.dump() == before


class TestComplete:
    def test_everything_that_belongs_together_is_written_together(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)

        settled = stage.complete(running, "Hi", response_id="resp_7")

        turn, (attempt,) = stage.row(running.id), stage.attempts(running.id)
        assert (turn["state"], turn["worker_id"], turn["usage"]) == ("completed", None, {"input_tokens": 3})
        assert turn["finished_at"] is not None
        assert stage.texts(running.id) == [("user", "Hello"), ("assistant", "Hi")]
        assert (attempt["outcome"], attempt["response_id"]) == ("completed", "resp_7")
        assert attempt["finished_at"] is not None
        anchor = Anchor.model_validate(stage.chat(running.chat_id)["anchor"])
        assert (anchor.response_id, anchor.seq, anchor.position, anchor.credential) == ("resp_7", 1, 1, HERE)
        assert (settled.position, settled.woken) == (1, None)

    def test_it_wakes_the_next_turn_of_the_chat(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)
        second, third = (stage.enqueue(chat_id=running.chat_id).id for _ in range(2))

        settled = stage.complete(running)

        assert settled.woken == second
        assert stage.row(second)["available_at"] == stage.row(second)["rung_at"] is not None
        assert stage.row(third)["available_at"] is None

    def test_it_clears_the_chats_last_error(self, stage: "Stage") -> None:
        failed = stage.turn(TurnState.FAILED)
        chat = stage.row(failed)["chat_id"]
        assert stage.chat(chat)["last_error"]["kind"] == "overloaded"

        stage.complete(stage.claim(stage.do(turns.retry, failed).id))

        assert stage.chat(chat)["last_error"] is None

    @pytest.mark.parametrize(
        "origin",
        [
            pytest.param(replace(ORIGIN, response_id=None), id="without an id"),
            pytest.param(replace(ORIGIN, anchors=False), id="where the response may not be continued from"),
        ],
    )
    def test_what_cannot_be_continued_from_takes_the_old_anchor_away(self, stage: "Stage", origin: Origin) -> None:
        running = anchored(stage)
        ended = Ended(outcome=AttemptOutcome.COMPLETED, response_id=origin.response_id)

        stage.do(store.complete, running, ended, WORDS, origin)

        assert stage.chat(running.chat_id)["anchor"] is None

    def test_the_answer_of_a_retried_turn_stands_at_its_beginning(self, stage: "Stage") -> None:
        retried = stage.do(turns.retry, stage.turn(TurnState.FAILED))

        settled = stage.complete(stage.claim(retried.id))

        assert settled.position == 0
        assert stage.texts(retried.id) == [("assistant", "Hi")]


class TestFail:
    def test_the_error_is_kept_by_turn_attempt_and_chat(self, stage: "Stage") -> None:
        running = anchored(stage)
        behind = stage.enqueue(chat_id=running.chat_id)

        settled = stage.fail(running)

        turn, (attempt,), chat = stage.row(running.id), stage.attempts(running.id), stage.chat(running.chat_id)
        assert (turn["state"], attempt["outcome"]) == ("failed", "failed")
        assert turn["error"] == attempt["error"] == chat["last_error"]
        assert turn["error"]["kind"] == "overloaded"
        assert chat["anchor"] is not None
        assert settled.woken == behind.id


class TestCancel:
    def test_what_had_been_said_is_kept(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)
        behind = stage.enqueue(chat_id=running.chat_id)

        settled = stage.do(store.cancel, running, Ended(outcome=AttemptOutcome.CANCELLED), WORDS)

        assert stage.state(running.id) == "cancelled"
        assert stage.texts(running.id)[1:] == [("assistant", "Hi")]
        assert (settled.position, settled.woken) == (1, behind.id)

    def test_the_anchor_before_it_stays(self, stage: "Stage") -> None:
        running = anchored(stage)

        stage.do(store.cancel, running, Ended(outcome=AttemptOutcome.CANCELLED), WORDS)

        assert stage.chat(running.chat_id)["anchor"]["seq"] == 1


class TestRetry:
    @pytest.mark.parametrize("is_rung", [True, False])
    def test_the_due_time_is_told_as_it_is_stored(self, stage: "Stage", is_rung: bool) -> None:
        running = stage.claim(stage.enqueue().id)
        ended = Ended(outcome=AttemptOutcome.RETRIED, error=ERROR, delay=timedelta(seconds=7))

        due = stage.do(store.retry, running, ended, is_rung=is_rung)

        turn, (attempt,) = stage.row(running.id), stage.attempts(running.id)
        assert (turn["state"], turn["spent"], turn["worker_id"]) == ("retrying", 1, None)
        assert turn["available_at"] == due
        assert turn["rung_at"] == (due if is_rung else None)
        assert due - attempt["finished_at"] == timedelta(seconds=7)
        assert (attempt["outcome"], attempt["delay_ms"]) == ("retried", 7000)

    def test_who_was_asked_to_stop_in_that_moment_does_not_wait_for_the_countdown(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)
        stage.do(turns.cancel, running.id)

        stage.retry(running, seconds=600, is_rung=True)

        (due,) = stage.do(upkeep.take_due, forgotten_after=timedelta(seconds=60))
        assert due.id == running.id
        assert stage.claim(running.id).is_cancelled

    def test_the_turns_behind_it_go_on_waiting(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)
        behind = stage.enqueue(chat_id=running.chat_id)

        stage.retry(running)

        assert stage.row(behind.id)["available_at"] is None


class TestHeal:
    def test_the_anchor_is_gone_in_the_same_transaction(self, stage: "Stage") -> None:
        running = anchored(stage)
        assert running.anchor is not None

        with stage.engine.connect() as connection:
            healed = store.heal(connection, running, Ended(outcome=AttemptOutcome.HEALED, error=ERROR))
            connection.rollback()
        assert stage.chat(running.chat_id)["anchor"] is not None
        assert stage.attempts(running.id)[0]["outcome"] == "running"
        stage.do(store.heal, running, Ended(outcome=AttemptOutcome.HEALED, error=ERROR))

        assert stage.chat(running.chat_id)["anchor"] is None
        assert stage.attempts(running.id)[0]["outcome"] == "healed"
        assert (healed.attempt, healed.healed, healed.anchor) == (2, True, None)

    def test_it_costs_no_attempt_of_the_budget_and_no_lease(self, stage: "Stage") -> None:
        running = anchored(stage)

        healed = stage.do(store.heal, running, Ended(outcome=AttemptOutcome.HEALED, error=ERROR))

        turn = stage.row(running.id)
        assert (turn["state"], turn["spent"], turn["epoch"]) == ("running", 0, running.epoch)
        assert (turn["healed"], turn["attempt"]) == (True, 2)
        stage.do(store.begin, healed, model="m", chained=False)
        assert [attempt["number"] for attempt in stage.attempts(running.id)] == [1, 2]


class TestHandBack:
    def test_the_turn_is_due_at_once_and_no_attempt_is_spent(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)

        stage.do(store.hand_back, running, Ended(outcome=AttemptOutcome.HANDED_BACK))

        turn, (attempt,) = stage.row(running.id), stage.attempts(running.id)
        assert (turn["state"], turn["spent"], turn["worker_id"]) == ("queued", 0, None)
        assert attempt["outcome"] == "handed_back"
        assert stage.claim(running.id).spent == 0


class TestHistory:
    def test_it_is_read_in_order_up_to_the_turn(self, stage: "Stage") -> None:
        first = stage.claim(stage.enqueue("One").id)
        stage.complete(first, "1")
        second = stage.claim(stage.enqueue("Two", chat_id=first.chat_id).id)
        stage.enqueue("Later", chat_id=first.chat_id)

        whole, news = stage.do(store.load, second), stage.do(store.load, second, after=(1, 1))

        assert [(said.message.text, said.provider) for said in whole] == [
            ("One", None),
            ("1", "openai"),
            ("Two", None),
        ]
        assert [said.message.text for said in news] == ["Two"]

    def test_a_turn_that_was_cancelled_before_it_ran_was_never_said(self, stage: "Stage") -> None:
        first = stage.enqueue("One")
        second = stage.enqueue("Two", chat_id=first.chat_id)
        stage.do(turns.cancel, first.id)

        assert [said.message.text for said in stage.do(store.load, stage.claim(second.id))] == ["Two"]

    def test_the_fingerprint_is_the_one_of_the_anchor_until_somebody_edits(self, stage: "Stage") -> None:
        running = anchored(stage)
        assert running.anchor is not None

        before = stage.do(store.fingerprint, running.chat_id, through=(1, 1))
        edited = update(messages).where(messages.c.position == 1).values(parts=[{"type": "text", "text": "No"}])
        stage.do(Connection.execute, edited)
        after = stage.do(store.fingerprint, running.chat_id, through=(1, 1))

        assert before == running.anchor.digest
        assert after != before

    def test_what_happens_behind_the_anchor_does_not_change_its_fingerprint(self, stage: "Stage") -> None:
        running = anchored(stage)
        assert running.anchor is not None
        stage.do(store.cancel, running, Ended(outcome=AttemptOutcome.CANCELLED), WORDS)
        third = stage.claim(stage.enqueue("Go on", chat_id=running.chat_id).id)

        past = stage.do(store.fingerprint, third.chat_id, through=(1, 1))

        assert past == running.anchor.digest
