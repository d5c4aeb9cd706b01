"""The worker's arrows: each one moves the turn it may move, writes all that belongs together, or nothing."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, func, update

from turnkeeper import turns
from turnkeeper.erasing import erase_chat
from turnkeeper.errors import ChatError, ErrorKind
from turnkeeper.messages import Message, Reasoning, Text, ToolCall, ToolResult
from turnkeeper.states import AttemptOutcome, TurnState
from turnkeeper.tables import chats, messages
from turnkeeper.tables import turns as turns_table
from turnkeeper_worker import history, store, upkeep
from turnkeeper_worker.chain import Anchor, Credential
from turnkeeper_worker.store import Choice, Claimed, Early, Ended, LeaseLost, NotMine, Origin

if TYPE_CHECKING:
    from tests.integration.conftest import Stage

ERROR = ChatError(kind=ErrorKind.TIMEOUT, message="It was cut.", provider="openai", retryable=True)
HERE = Credential(provider="openai", base_url="https://api.openai.com/v1", key="abc", model="m")
ORIGIN = Origin(credential=HERE, response_id="resp_1", anchors=True)
WORDS = (Message(role="assistant", parts=(Text(text="Hi"),)),)
WELL = Ended(outcome=AttemptOutcome.COMPLETED, response_id="resp_1", usage={"input_tokens": 3})
INSTEAD = Choice(provider="anthropic", model="n", options={}, background=None, fallbacks=())
LOOK = ToolCall(call_id="a", name="look", arguments="{}")
SEEN = ToolResult(call_id="a", output="seen")


def pause(connection: Connection, turn: Claimed) -> Claimed:
    """Store the answer of a model that paused, and let it go on."""
    following, _ = store.complete_step(connection, turn, WELL, WORDS, ORIGIN, runs_tools=False)
    return store.next_step(connection, following)


def complete_at_once(connection: Connection, turn: Claimed) -> store.Settled:
    """Complete a turn that nobody waits behind, as a delivery does."""
    settled = store.complete_at_once(connection, turn, WELL, WORDS, ORIGIN)
    return settled or store.complete(connection, turn, WELL, WORDS, ORIGIN)


Arrow = Callable[[Connection, Claimed], object]
ARROWS: dict[str, Arrow] = {
    "complete": lambda c, turn: store.complete(c, turn, Ended(outcome=AttemptOutcome.COMPLETED), WORDS, ORIGIN),
    "complete at once": complete_at_once,
    "call tools": lambda c, turn: store.complete_step(c, turn, WELL, WORDS, ORIGIN, runs_tools=True),
    "pause": pause,
    "fail": lambda c, turn: store.fail(c, turn, Ended(outcome=AttemptOutcome.FAILED, error=ERROR)),
    "cancel": lambda c, turn: store.cancel(c, turn, Ended(outcome=AttemptOutcome.CANCELLED), WORDS),
    "retry": lambda c, turn: store.retry(
        c, turn, Ended(outcome=AttemptOutcome.RETRIED, error=ERROR, delay=timedelta(seconds=9)), is_rung=False
    ),
    "heal": lambda c, turn: store.heal(c, turn, Ended(outcome=AttemptOutcome.HEALED, error=ERROR)),
    "fall back": lambda c, turn: store.fall_back(
        c, turn, Ended(outcome=AttemptOutcome.FELL_BACK, error=ERROR), INSTEAD, goes_on=True
    ),
    "hand back": lambda c, turn: store.hand_back(c, turn, Ended(outcome=AttemptOutcome.HANDED_BACK)),
}
ARROWS_FROM_TOOLS: dict[str, Arrow] = {
    "next step": store.next_step,
    "complete after tools": store.complete_after_tools,
    **{name: ARROWS[name] for name in ("fail", "cancel", "retry", "hand back")},
}
every_arrow = pytest.mark.parametrize(
    ("arrow", "runs_tools"),
    [
        *(pytest.param(arrow, False, id=name) for name, arrow in ARROWS.items()),
        *(pytest.param(arrow, True, id=f"{name}, while tools run") for name, arrow in ARROWS_FROM_TOOLS.items()),
    ],
)


def under_way(stage: "Stage", *, runs_tools: bool, worker: UUID | None = None) -> Claimed:
    """Return a running turn: its model speaks, or its tools do."""
    running = stage.claim(stage.enqueue().id, worker)
    return stage.call_tools(running, LOOK) if runs_tools else running


def anchored(stage: "Stage", **fields: Any) -> Claimed:
    """Return a running turn of a chat that has an anchor."""
    first = stage.claim(stage.enqueue(**fields).id)
    stage.complete(first)
    return stage.claim(stage.enqueue("And?", chat_id=first.chat_id).id)


class TestClaim:
    def test_a_due_turn_runs_under_a_new_epoch(self, stage: "Stage") -> None:
        enqueued, worker = stage.enqueue(model="m", instructions="Be kind.", options={"seed": 1}), stage.worker()

        claimed = stage.claim(enqueued.id, worker)

        turn = stage.row(enqueued.id)
        assert (claimed.epoch, claimed.step, claimed.attempt, claimed.spent) == (1, 1, 1, 0)
        assert (claimed.instructions, claimed.options, claimed.anchor) == ("Be kind.", {"seed": 1}, None)
        assert (claimed.is_cancelled, claimed.elapsed) == (False, timedelta(0))
        assert (turn["state"], turn["worker_id"], turn["available_at"]) == ("running", worker, None)
        assert turn["started_at"] is not None

    @pytest.mark.parametrize("state", sorted({*TurnState} - {TurnState.QUEUED, TurnState.RETRYING}))
    def test_a_turn_that_does_not_wait_is_not_ours(self, stage: "Stage", state: TurnState) -> None:
        turn_id = stage.turn(state)

        assert stage.do(store.claim, turn_id, stage.worker()) == NotMine(state)

    def test_a_turn_that_does_not_exist_is_not_ours(self, stage: "Stage") -> None:
        assert stage.do(store.claim, uuid4(), stage.worker()) == NotMine()

    def test_a_turn_in_its_countdown_is_not_ours_yet(self, stage: "Stage") -> None:
        turn_id = stage.turn(TurnState.RETRYING)

        assert stage.do(store.claim, turn_id, stage.worker()) == NotMine(TurnState.RETRYING)

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

        assert stage.do(store.claim, second.id, stage.worker()) == NotMine(TurnState.QUEUED)

    def test_a_claim_tells_how_long_the_turn_had_been_due(self, stage: "Stage") -> None:
        turn_id = stage.enqueue().id
        due = func.now() - timedelta(seconds=40)
        long_due = update(turns_table).where(turns_table.c.id == turn_id).values(available_at=due)
        stage.do(lambda connection: connection.execute(long_due))

        waited = stage.claim(turn_id).waited

        assert timedelta(seconds=40) <= waited < timedelta(seconds=60)

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
    @pytest.mark.parametrize("belief", ["epoch", "step", "attempt"])
    def test_whoever_believes_the_turn_elsewhere_writes_nothing(
        self, stage: "Stage", arrow: Arrow, runs_tools: bool, belief: str
    ) -> None:
        running = under_way(stage, runs_tools=runs_tools)
        stale = replace(running, **{belief: getattr(running, belief) - 1})
        before = stage.dump()

        with pytest.raises(LeaseLost) as caught:
            stage.do(arrow, stale)

        assert (caught.value.turn_id, caught.value.epoch) == (running.id, stale.epoch)
        assert stage.dump() == before

    @every_arrow
    def test_whoever_believes_the_wrong_half_of_the_step_writes_nothing(
        self, stage: "Stage", arrow: Arrow, runs_tools: bool
    ) -> None:
        running = under_way(stage, runs_tools=not runs_tools)
        before = stage.dump()

        with pytest.raises(LeaseLost):
            stage.do(arrow, replace(running, runs_tools=runs_tools))

        assert stage.dump() == before

    @every_arrow
    @pytest.mark.parametrize("rescuer", ["rescue", "rescue and claim"])
    def test_a_worker_that_was_rescued_from_writes_nothing(
        self, stage: "Stage", arrow: Arrow, runs_tools: bool, rescuer: str
    ) -> None:
        worker = stage.worker()
        running = under_way(stage, runs_tools=runs_tools, worker=worker)
        stage.silence(worker)
        stage.do(upkeep.rescue, timedelta(seconds=15))
        if rescuer == "rescue and claim":
            stage.claim(running.id)
        before = stage.dump()

        with pytest.raises(LeaseLost):
            stage.do(arrow, running)

        assert stage.dump() == before

    @every_arrow
    def test_a_turn_that_was_erased_is_lost(self, stage: "Stage", arrow: Arrow, runs_tools: bool) -> None:
        running = under_way(stage, runs_tools=runs_tools)
        stage.do(erase_chat, running.chat_id)

        with pytest.raises(LeaseLost):
            stage.do(arrow, running)

    @every_arrow
    def test_an_arrow_that_is_tried_again_after_its_commit_writes_nothing(
        self, stage: "Stage", arrow: Arrow, runs_tools: bool
    ) -> None:
        running = under_way(stage, runs_tools=runs_tools)
        stage.do(arrow, running)
        before = stage.dump()

        with pytest.raises(LeaseLost):
            stage.do(arrow, running)

        assert stage.dump() == before

    @every_arrow
    def test_an_arrow_that_is_rolled_back_wrote_nothing(
        self, stage: "Stage", arrow: Arrow, runs_tools: bool
    ) -> None:
        running = under_way(stage, runs_tools=runs_tools)
        before = stage.dump()

        with stage.engine.connect() as connection:
            arrow(connection, running)
            connection.rollback()

        assert stage.dump() == before


GOING_ON: dict[str, Arrow] = {
    "fail": lambda c, turn: store.fail(c, turn, Ended(outcome=AttemptOutcome.FAILED, error=ERROR), goes_on=True),
    "retry": lambda c, turn: store.retry(
        c, turn, Ended(outcome=AttemptOutcome.RETRIED, error=ERROR), is_rung=False, goes_on=True
    ),
}


class TestCheckpoints:
    def test_a_checkpoint_that_was_kept_comes_with_the_next_claim(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)
        kept = stage.keep(running, pieces=(("text", "Hel"),))
        stage.do(store.hand_back, running, Ended(outcome=AttemptOutcome.HANDED_BACK))

        assert running.checkpoint is None
        assert stage.claim(running.id).checkpoint == kept

    def test_the_last_one_counts(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)
        stage.keep(running)
        last = stage.keep(running, cursor=8)
        stage.do(store.hand_back, running, Ended(outcome=AttemptOutcome.HANDED_BACK))

        assert stage.claim(running.id).checkpoint == last

    @pytest.mark.parametrize("belief", ["epoch", "step", "attempt"])
    def test_it_is_kept_under_the_lease_only(self, stage: "Stage", belief: str) -> None:
        running = stage.claim(stage.enqueue().id)
        before = stage.dump()

        with pytest.raises(LeaseLost):
            stage.keep(replace(running, **{belief: getattr(running, belief) - 1}))

        assert stage.dump() == before

    @pytest.mark.parametrize(
        ("arrow", "is_kept"),
        [
            pytest.param(ARROWS["complete"], False, id="complete: the response is over"),
            pytest.param(ARROWS["call tools"], False, id="call tools: the response is over"),
            pytest.param(ARROWS["pause"], False, id="pause: the response is over"),
            pytest.param(ARROWS["heal"], False, id="heal: another one is asked for"),
            pytest.param(ARROWS["fail"], False, id="fail: the response is over"),
            pytest.param(GOING_ON["fail"], True, id="fail, while it goes on: it is to be called off"),
            pytest.param(ARROWS["retry"], False, id="retry: another one is asked for"),
            pytest.param(GOING_ON["retry"], True, id="retry, while it goes on: the next attempt comes back"),
            pytest.param(ARROWS["cancel"], True, id="cancel: it is to be called off"),
            pytest.param(ARROWS["hand back"], True, id="hand back: the successor comes back"),
        ],
    )
    def test_each_arrow_keeps_it_while_somebody_still_has_to_look_after_the_response(
        self, stage: "Stage", arrow: Arrow, is_kept: bool
    ) -> None:
        running = stage.claim(stage.enqueue().id)
        kept = stage.keep(running)

        stage.do(arrow, running)

        stored = stage.row(running.id)["checkpoint"]
        assert stored == (kept.model_dump(mode="json") if is_kept else None)

    def test_one_that_cannot_be_read_is_none(self, stage: "Stage") -> None:
        turn_id = stage.enqueue().id
        stage.set(turn_id, checkpoint={"response_id": "resp_9"})

        assert stage.claim(turn_id).checkpoint is None


class TestSteps:
    def test_an_answer_that_calls_tools_is_stored_and_the_turn_stays_ours(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)
        behind = stage.enqueue(chat_id=running.chat_id)

        following, position = stage.do(
            store.complete_step, running, WELL, WORDS, replace(ORIGIN, response_id="resp_7"), runs_tools=True
        )

        turn, (attempt,) = stage.row(running.id), stage.attempts(running.id)
        assert (turn["state"], turn["worker_id"], turn["epoch"]) == ("running", running.worker_id, running.epoch)
        assert (turn["runs_tools"], turn["step"], turn["finished_at"]) == (True, 1, None)
        assert stage.texts(running.id) == [("user", "Hello"), ("assistant", "Hi")]
        assert attempt["outcome"] == "completed"
        assert (following.runs_tools, following.step, position) == (True, 1, 1)
        assert following.anchor == Anchor.model_validate(stage.chat(running.chat_id)["anchor"])
        assert following.anchor.response_id == "resp_7"
        assert stage.row(behind.id)["available_at"] is None

    def test_the_anchor_of_an_answer_with_calls_waits_for_their_results(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)
        calls = [LOOK, LOOK.model_copy(update={"call_id": "b"})]

        following = stage.complete_step(running, "Hm", Reasoning(text="So"), *calls, runs_tools=True)

        assert following.anchor is not None
        assert following.anchor.calls == ("a", "b")
        assert (following.anchor.seq, following.anchor.position) == (1, 1)

    def test_the_next_step_has_all_of_its_attempts_before_it(self, stage: "Stage") -> None:
        turn_id = stage.enqueue().id
        stage.retry(stage.claim(turn_id), seconds=0)
        second = stage.claim(turn_id)
        assert (second.attempt, second.spent) == (2, 1)

        following = stage.tell(stage.call_tools(second, LOOK), SEEN)

        turn = stage.row(turn_id)
        assert (turn["step"], turn["attempt"], turn["spent"], turn["runs_tools"]) == (2, 1, 0, False)
        assert (turn["state"], turn["epoch"]) == ("running", second.epoch)
        assert (following.step, following.attempt, following.spent, following.runs_tools) == (2, 1, 0, False)
        stage.do(store.begin, following)
        assert [(row["step"], row["number"]) for row in stage.attempts(turn_id)] == [(1, 1), (1, 2), (2, 1)]

    def test_a_turn_whose_tools_were_told_is_complete_where_the_producer_answers_for_the_rest(
        self, stage: "Stage"
    ) -> None:
        running = under_way(stage, runs_tools=True)
        behind = stage.enqueue(chat_id=running.chat_id)

        woken = stage.do(store.complete_after_tools, running)

        turn = stage.row(running.id)
        assert (turn["state"], turn["worker_id"], turn["usage"]) == ("completed", None, {"input_tokens": 3})
        assert turn["finished_at"] is not None
        assert woken == behind.id
        assert stage.chat(running.chat_id)["anchor"]["calls"] == ["a"]

    def test_the_messages_of_all_steps_stand_in_their_order(self, stage: "Stage") -> None:
        running = under_way(stage, runs_tools=True)
        following = stage.tell(running, SEEN)
        stage.do(store.begin, following)

        settled = stage.complete(following, "Sunny")

        assert settled.position == 3
        said = [one.message for one in stage.history(following)]
        assert [message.role for message in said] == ["user", "assistant", "user", "assistant"]
        assert said[1].parts == (Text(text="Hm"), LOOK)
        assert said[2].parts == (SEEN,)
        assert said[3].text == "Sunny"

    def test_a_cancel_while_tools_run_keeps_what_they_told(self, stage: "Stage") -> None:
        running = under_way(stage, runs_tools=True)
        told = (Message(role="user", parts=(SEEN,)),)

        settled = stage.do(store.cancel, running, Ended(outcome=AttemptOutcome.CANCELLED), told)

        assert (stage.state(running.id), settled.position) == ("cancelled", 2)
        assert [one["outcome"] for one in stage.attempts(running.id)] == ["completed"]

    @pytest.mark.parametrize("arrow", ["hand back", "retry"])
    def test_whoever_takes_the_turn_over_while_tools_run_goes_on_with_them(
        self, stage: "Stage", arrow: str
    ) -> None:
        running = under_way(stage, runs_tools=True)
        stage.do(ARROWS[arrow], running)
        stage.set(running.id, available_at=stage.row(running.id)["created_at"])

        successor = stage.claim(running.id)

        assert successor.runs_tools
        assert (successor.step, successor.usage) == (1, {"input_tokens": 3})
        assert successor.anchor == running.anchor


class TestUsage:
    def test_it_adds_up_over_attempts_and_steps(self, stage: "Stage") -> None:
        turn_id = stage.enqueue().id
        cost = {"input_tokens": 10, "output_tokens": 1}
        broken = Ended(outcome=AttemptOutcome.RETRIED, error=ERROR, usage=cost, delay=timedelta(0))
        stage.do(store.retry, stage.claim(turn_id), broken, is_rung=False)
        healed = stage.do(
            store.heal, stage.claim(turn_id), replace(broken, outcome=AttemptOutcome.HEALED, delay=None)
        )
        stage.do(store.begin, healed)
        following = stage.tell(stage.call_tools(healed, LOOK), SEEN)
        stage.do(store.begin, following)
        stage.do(store.hand_back, following, Ended(outcome=AttemptOutcome.HANDED_BACK, usage=cost))
        last = stage.claim(turn_id)

        stage.complete(last)

        assert last.usage == {"input_tokens": 33, "output_tokens": 3}
        assert stage.row(turn_id)["usage"] == {"input_tokens": 36, "output_tokens": 3}
        spent = [(row["usage"] or {}).get("input_tokens") for row in stage.attempts(turn_id)]
        assert sum(spent) == 36

    @pytest.mark.parametrize(
        "arrow",
        [
            pytest.param(store.fail, id="fail"),
            pytest.param(lambda c, turn, ended: store.cancel(c, turn, ended, ()), id="cancel"),
        ],
    )
    def test_what_ends_without_an_answer_has_its_cost_as_well(
        self, stage: "Stage", arrow: Callable[..., object]
    ) -> None:
        following = stage.tell(under_way(stage, runs_tools=True), SEEN)
        ended = Ended(outcome=AttemptOutcome.FAILED, error=ERROR, usage={"input_tokens": 4})

        stage.do(arrow, following, ended)

        assert stage.row(following.id)["usage"] == {"input_tokens": 7}

    def test_what_nobody_counted_is_not_zero(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)

        stage.do(store.complete, running, Ended(outcome=AttemptOutcome.COMPLETED), WORDS, ORIGIN)

        assert stage.row(running.id)["usage"] is None


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


class TestCompleteAtOnce:
    def complete(self, stage: "Stage", turn: Claimed) -> store.Settled | None:
        return stage.do(store.complete_at_once, turn, WELL, WORDS, ORIGIN)

    def test_it_stores_what_complete_stores(self, stage: "Stage") -> None:
        turn = stage.claim(stage.enqueue().id)

        settled = self.complete(stage, turn)

        assert settled == store.Settled(position=1, woken=None)
        assert stage.state(turn.id) == "completed"
        assert stage.texts(turn.id) == [("user", "Hello"), ("assistant", "Hi")]
        assert [row["outcome"] for row in stage.attempts(turn.id)] == ["completed"]
        follower = stage.claim(stage.enqueue(chat_id=turn.chat_id).id)
        heard = stage.do(history.hear, turn.chat_id, seen_by=2, after=(1, 1))
        assert follower.anchor is not None
        assert (follower.anchor.seq, follower.anchor.position, follower.anchor.digest) == (1, 1, heard.digest)

    def test_a_turn_that_another_one_waits_behind_takes_more(self, stage: "Stage") -> None:
        turn = stage.claim(stage.enqueue().id)
        stage.enqueue(chat_id=turn.chat_id)
        before = stage.dump()

        assert self.complete(stage, turn) is None
        assert stage.dump() == before

    def test_so_does_one_whose_cost_is_counted(self, stage: "Stage") -> None:
        turn = replace(stage.claim(stage.enqueue().id), metered=True)
        before = stage.dump()

        assert self.complete(stage, turn) is None
        assert stage.dump() == before


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
        stage.do(store.begin, healed)
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

        whole, news = stage.history(second), stage.history(second, after=(1, 1))

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

        assert [said.message.text for said in stage.history(stage.claim(second.id))] == ["Two"]

    def test_the_fingerprint_is_the_one_of_the_anchor_until_somebody_edits(self, stage: "Stage") -> None:
        running = anchored(stage)
        assert running.anchor is not None

        before = stage.do(history.hear, running.chat_id, after=(1, 1), seen_by=2).digest
        edited = update(messages).where(messages.c.position == 1).values(parts=[{"type": "text", "text": "No"}])
        stage.do(Connection.execute, edited)
        after = stage.do(history.hear, running.chat_id, after=(1, 1), seen_by=2).digest

        assert before == running.anchor.digest
        assert after != before

    def test_what_happens_behind_the_anchor_does_not_change_its_fingerprint(self, stage: "Stage") -> None:
        running = anchored(stage)
        assert running.anchor is not None
        stage.do(store.cancel, running, Ended(outcome=AttemptOutcome.CANCELLED), WORDS)
        third = stage.claim(stage.enqueue("Go on", chat_id=running.chat_id).id)

        past = stage.do(history.hear, third.chat_id, after=(1, 1), seen_by=3).digest

        assert past == running.anchor.digest


class TestOfferedTools:
    def offered(self, stage: "Stage", turn_id: UUID) -> tuple[str, ...]:
        claimed = stage.claim(turn_id)
        stage.complete(claimed)
        return claimed.tools

    def test_a_turn_offers_what_it_names_and_else_what_its_chat_offers(self, stage: "Stage") -> None:
        first = stage.enqueue(tools=("look", "pay"))
        chat_id = first.chat_id
        others = ({}, {"tools": ("saw",)}, {"tools": ()}, {"tools": None})

        offered = [
            self.offered(stage, turn_id)
            for turn_id in (first.id, *(stage.enqueue(chat_id=chat_id, **fields).id for fields in others))
        ]

        assert offered == [("look", "pay"), ("look", "pay"), ("saw",), (), ("look", "pay")]
        assert stage.chat(chat_id)["tools"] == ["look", "pay"]

    def test_a_chat_that_names_none_offers_none(self, stage: "Stage") -> None:
        assert self.offered(stage, stage.enqueue().id) == ()

    def test_a_turn_that_is_tried_again_offers_the_same_and_runs_in_the_same_way(self, stage: "Stage") -> None:
        failed = stage.turn(TurnState.FAILED, tools=("look",), background=True)

        retried = stage.claim(stage.do(turns.retry, failed).id)

        assert (retried.tools, retried.background) == (("look",), True)

    @pytest.mark.parametrize("background", [None, True, False])
    def test_whether_it_runs_in_the_background_is_the_turns_own_matter(
        self, stage: "Stage", background: bool | None
    ) -> None:
        first = stage.enqueue(background=background)
        second = stage.enqueue(chat_id=first.chat_id)

        assert stage.row(first.id)["background"] is background
        assert stage.row(second.id)["background"] is None
