"""What nobody looks after: turns of dead workers, rings that were lost, and who takes them up."""

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, func, select, text

from turnkeeper import turns
from turnkeeper.messages import ToolCall, ToolResult
from turnkeeper.requests import TurnRequest
from turnkeeper.states import AttemptOutcome, TurnState
from turnkeeper.tables import rejections, workers
from turnkeeper_worker import ledger, store, upkeep
from turnkeeper_worker.store import Claimed, Ended, NotMine, claim
from turnkeeper_worker.upkeep import Abandoned, Due, Held, Waiting

if TYPE_CHECKING:
    from tests.integration.conftest import Stage

TTL = timedelta(seconds=15)
A_MINUTE = timedelta(minutes=1)


def orphan(stage: "Stage", *, chat_id: UUID | None = None, silent_for: float = 16) -> UUID:
    """Return a running turn whose worker has been silent for a while."""
    worker = stage.worker()
    turn_id = stage.enqueue(chat_id=chat_id).id
    stage.claim(turn_id, worker)
    stage.silence(worker, silent_for)
    return turn_id


class TestBeat:
    def test_a_beat_renews_and_tells_what_is_held(self, stage: "Stage") -> None:
        worker = stage.worker()
        one, two = (stage.claim(stage.enqueue().id, worker) for _ in range(2))
        stage.do(turns.cancel, two.id)
        stage.claim(stage.enqueue().id)
        stage.silence(worker)

        held = stage.beat(worker)

        assert sorted(held, key=lambda one: one.is_cancelled) == [
            Held(turn_id=one.id, epoch=1, is_cancelled=False),
            Held(turn_id=two.id, epoch=1, is_cancelled=True),
        ]
        assert stage.do(upkeep.rescue, TTL) == []

    def test_what_is_not_running_is_not_held(self, stage: "Stage") -> None:
        worker = stage.worker()
        stage.complete(stage.claim(stage.enqueue().id, worker))
        stage.retry(stage.claim(stage.enqueue().id, worker))

        assert stage.beat(worker) == []

    def test_a_worker_whose_row_was_removed_enters_again_with_its_next_beat(self, stage: "Stage") -> None:
        worker = stage.worker()
        stage.claim(stage.enqueue().id, worker)
        stage.do(upkeep.sign_off, worker)

        stage.beat(worker)

        assert stage.do(upkeep.rescue, TTL) == []

    def test_a_worker_that_signs_off_is_gone(self, stage: "Stage") -> None:
        stage.do(upkeep.sign_off, stage.worker())

        assert stage.count(workers) == 0


class TestRescue:
    def test_a_turn_that_every_worker_dies_of_fails_and_lets_the_next_one_run(self, stage: "Stage") -> None:
        turn_id = stage.enqueue().id
        chat_id = stage.row(turn_id)["chat_id"]
        behind = stage.enqueue(chat_id=chat_id)

        fates = []
        for _ in range(upkeep.MAX_LOST):
            worker = stage.worker()
            stage.claim(turn_id, worker)
            stage.silence(worker)
            fates += stage.do(upkeep.rescue, TTL)

        *rescued, ended = fates
        assert {one.state for one in rescued} == {"queued"}
        assert (ended.state, ended.woken) == ("failed", behind.id)
        assert ended.error is not None
        assert stage.row(turn_id)["error"] == stage.chat(chat_id)["last_error"]
        assert {one["outcome"] for one in stage.attempts(turn_id)} == {"lost"}

    def test_a_turn_of_a_silent_worker_is_queued_again(self, stage: "Stage") -> None:
        turn_id = orphan(stage)

        (rescued,) = stage.do(upkeep.rescue, TTL)

        turn, (attempt,) = stage.row(turn_id), stage.attempts(turn_id)
        assert (rescued.id, rescued.epoch, rescued.attempt) == (turn_id, 2, 1)
        assert (rescued.state, rescued.woken) == ("queued", None)
        assert (turn["state"], turn["epoch"], turn["spent"]) == ("queued", 2, 0)
        assert turn["available_at"] == turn["rung_at"] is not None
        assert attempt["outcome"] == "lost"
        assert stage.claim(turn_id).epoch == 3

    @pytest.mark.parametrize(
        ("silent_for", "is_rescued"),
        [
            pytest.param(0, False, id="a worker that just beat"),
            pytest.param(13, False, id="a worker within its TTL"),
            pytest.param(15.1, True, id="a worker beyond it"),
        ],
    )
    def test_only_silence_makes_an_orphan(self, stage: "Stage", silent_for: float, is_rescued: bool) -> None:
        orphan(stage, silent_for=silent_for)

        assert bool(stage.do(upkeep.rescue, TTL)) is is_rescued

    def test_a_worker_that_signed_off_leaves_orphans_at_once(self, stage: "Stage") -> None:
        worker = stage.worker()
        running = stage.claim(stage.enqueue().id, worker)

        stage.do(upkeep.sign_off, worker)

        assert [one.id for one in stage.do(upkeep.rescue, TTL)] == [running.id]

    def test_a_turn_that_was_cancelled_is_never_rescued(self, stage: "Stage") -> None:
        turn_id = orphan(stage)
        stage.do(turns.cancel, turn_id)
        behind = stage.enqueue(chat_id=stage.row(turn_id)["chat_id"])

        (ended,) = stage.do(upkeep.rescue, TTL)

        assert (ended.state, ended.woken) == ("cancelled", behind.id)
        assert stage.state(turn_id) == "cancelled"
        assert stage.do(claim, turn_id, stage.worker()) == NotMine(TurnState.CANCELLED)

    def test_a_rescue_keeps_the_order_of_the_chat(self, stage: "Stage") -> None:
        turn_id = orphan(stage)
        behind = stage.enqueue(chat_id=stage.row(turn_id)["chat_id"])

        stage.do(upkeep.rescue, TTL)

        assert stage.do(claim, behind.id, stage.worker()) == NotMine(TurnState.QUEUED)

    @pytest.mark.parametrize("state", sorted({*TurnState} - {TurnState.RUNNING}))
    def test_what_does_not_run_is_left_alone(self, stage: "Stage", state: TurnState) -> None:
        turn_id = stage.turn(state)
        if worker := stage.row(turn_id)["worker_id"]:
            stage.silence(worker)
        before = stage.dump()

        assert stage.do(upkeep.rescue, timedelta(0)) == []
        assert stage.dump() == before

    def test_rescuers_at_the_same_moment_share(self, stage: "Stage", threads: ThreadPoolExecutor) -> None:
        orphans = {orphan(stage) for _ in range(12)}

        found = list(threads.map(lambda _: stage.do(upkeep.rescue, TTL), range(6)))

        rescued = [one.id for share in found for one in share]
        assert set(rescued) == orphans
        assert len(rescued) == len(orphans)
        assert {stage.row(turn_id)["epoch"] for turn_id in orphans} == {2}

    def test_a_chat_that_somebody_is_at_waits_for_the_next_round(self, stage: "Stage") -> None:
        turn_id = orphan(stage)
        with stage.engine.connect() as connection:
            turns.lock_chat_of(connection, turn_id)

            assert stage.do(upkeep.rescue, TTL) == []

        assert [one.id for one in stage.do(upkeep.rescue, TTL)] == [turn_id]


class TestRescueWhileToolsRun:
    def lost(self, stage: "Stage", turn: Claimed) -> list[upkeep.Orphan]:
        """Let the worker of a turn die."""
        stage.silence(turn.worker_id)
        return stage.do(upkeep.rescue, TTL)

    def running_tools(self, stage: "Stage") -> Claimed:
        return stage.call_tools(
            stage.claim(stage.enqueue().id), ToolCall(call_id="a", name="look", arguments="{}")
        )

    def test_the_turn_is_queued_where_it_was_and_nothing_that_was_stored_is_lost(self, stage: "Stage") -> None:
        running = self.running_tools(stage)

        (rescued,) = self.lost(stage, running)

        turn = stage.row(running.id)
        assert (rescued.state, rescued.step, rescued.attempt) == ("queued", 1, 1)
        assert (turn["state"], turn["runs_tools"], turn["lost"]) == ("queued", True, 1)
        assert [one["outcome"] for one in stage.attempts(running.id)] == ["completed"]
        assert [row["state"] for row in stage.tool_runs(running.id)] == ["started"]
        assert stage.claim(running.id).runs_tools

    def test_a_tool_that_every_worker_dies_of_fails_its_turn(self, stage: "Stage") -> None:
        running = self.running_tools(stage)

        fates = []
        for count in range(upkeep.MAX_LOST):
            if count:
                running = stage.claim(running.id)
                stage.do(ledger.take_over, running)
            fates += self.lost(stage, running)

        assert [one.state for one in fates] == ["queued"] * (upkeep.MAX_LOST - 1) + ["failed"]
        assert stage.row(running.id)["lost"] == upkeep.MAX_LOST
        assert fates[-1].error is not None

    def test_workers_that_were_lost_at_any_step_are_counted_together(self, stage: "Stage") -> None:
        running = self.running_tools(stage)
        self.lost(stage, running)
        successor = stage.claim(running.id)
        stage.do(ledger.take_over, successor)
        following = stage.tell(successor, ToolResult(call_id="a", output="seen"))
        stage.do(store.begin, following)

        self.lost(stage, following)

        assert stage.row(running.id)["lost"] == 2

    def test_a_worker_that_hands_back_or_retries_is_not_lost(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)
        stage.do(store.hand_back, running, Ended(outcome=AttemptOutcome.HANDED_BACK))
        stage.retry(stage.claim(running.id), seconds=0)

        assert stage.row(running.id)["lost"] == 0


class TestAbandoned:
    """Background responses that go on though their turns have ended."""

    def abandoned(self, stage: "Stage", *, response_id: str = "resp_9") -> UUID:
        """Return a turn that was cancelled while its background response went on."""
        running = stage.claim(stage.enqueue().id)
        stage.keep(running, response_id=response_id)
        stage.do(store.cancel, running, Ended(outcome=AttemptOutcome.CANCELLED), ())
        return running.id

    def found(self, stage: "Stage") -> list[UUID]:
        return [one.turn_id for one in stage.do(upkeep.find_abandoned)]

    def test_a_response_whose_turn_was_cancelled_is_found(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)
        kept = stage.keep(running)
        stage.do(store.cancel, running, Ended(outcome=AttemptOutcome.CANCELLED), ())

        assert stage.do(upkeep.find_abandoned) == [Abandoned(turn_id=running.id, checkpoint=kept)]

    def test_so_is_one_whose_turn_was_cancelled_while_it_waited(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)
        stage.keep(running)
        stage.do(store.hand_back, running, Ended(outcome=AttemptOutcome.HANDED_BACK))

        stage.do(turns.cancel, running.id)

        assert self.found(stage) == [running.id]

    @pytest.mark.parametrize(
        ("is_cancelled", "state"),
        [pytest.param(True, "cancelled", id="cancelled"), pytest.param(False, "failed", id="failed as poison")],
    )
    def test_so_is_one_whose_turn_was_ended_for_its_dead_worker(
        self, stage: "Stage", is_cancelled: bool, state: str
    ) -> None:
        running = stage.claim(stage.enqueue().id)
        stage.keep(running)
        stage.set(running.id, lost=upkeep.MAX_LOST - 1)
        if is_cancelled:
            stage.do(turns.cancel, running.id)
        stage.silence(running.worker_id)

        stage.do(upkeep.rescue, TTL)

        assert (stage.state(running.id), self.found(stage)) == (state, [running.id])

    def test_a_response_that_a_turn_still_waits_for_is_not_abandoned(self, stage: "Stage") -> None:
        running, handed_back = stage.claim(stage.enqueue().id), stage.claim(stage.enqueue().id)
        stage.keep(running)
        stage.keep(handed_back)
        stage.do(store.hand_back, handed_back, Ended(outcome=AttemptOutcome.HANDED_BACK))
        orphaned = stage.claim(stage.enqueue().id)
        stage.keep(orphaned)
        stage.silence(orphaned.worker_id)
        stage.do(upkeep.rescue, TTL)

        assert self.found(stage) == []

    def test_turns_that_ended_with_their_responses_leave_none(self, stage: "Stage") -> None:
        for state in TurnState:
            stage.turn(state)

        assert self.found(stage) == []

    def test_some_are_found_at_once_and_none_stands_before_the_others_for_ever(self, stage: "Stage") -> None:
        ids = {self.abandoned(stage) for _ in range(3)}

        rounds = [stage.do(upkeep.find_abandoned, limit=2) for _ in range(50)]

        assert {len(found) for found in rounds} == {2}
        assert {one.turn_id for found in rounds for one in found} == ids

    def test_one_that_cannot_be_read_is_passed_over(self, stage: "Stage") -> None:
        unreadable, other = self.abandoned(stage), self.abandoned(stage)
        stage.set(unreadable, checkpoint={"response_id": "resp_9"})

        assert self.found(stage) == [other]

    def test_what_it_has_cost_is_added_to_the_turn_and_told_by_its_last_attempt(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)
        failed = Ended(outcome=AttemptOutcome.RETRIED, usage={"input_tokens": 3}, delay=timedelta(0))
        stage.do(store.retry, running, failed, is_rung=False)
        running = stage.claim(running.id)
        stage.keep(running)
        stage.do(store.cancel, running, Ended(outcome=AttemptOutcome.CANCELLED), ())
        (abandoned,) = stage.do(upkeep.find_abandoned)

        stage.do(upkeep.close_abandoned, abandoned, {"input_tokens": 5, "output_tokens": 1})

        turn, (first, last) = stage.row(running.id), stage.attempts(running.id)
        assert turn["checkpoint"] is None
        assert turn["usage"] == {"input_tokens": 8, "output_tokens": 1}
        assert first["usage"] == {"input_tokens": 3}
        assert (last["usage"], last["response_id"]) == ({"input_tokens": 5, "output_tokens": 1}, "resp_9")
        assert (turn["state"], last["outcome"]) == ("cancelled", "cancelled")
        assert self.found(stage) == []

    def test_of_two_workers_that_close_it_one_is_heard(self, stage: "Stage", threads: ThreadPoolExecutor) -> None:
        turn_id = self.abandoned(stage)
        (abandoned,) = stage.do(upkeep.find_abandoned)

        list(threads.map(lambda _: stage.do(upkeep.close_abandoned, abandoned, {"input_tokens": 5}), range(6)))

        assert stage.row(turn_id)["usage"] == {"input_tokens": 5}

    def test_one_that_tells_no_cost_is_closed_without(self, stage: "Stage") -> None:
        turn_id = self.abandoned(stage)
        (abandoned,) = stage.do(upkeep.find_abandoned)
        before = stage.row(turn_id)["usage"]

        stage.do(upkeep.close_abandoned, abandoned, None)

        assert (stage.row(turn_id)["checkpoint"], stage.row(turn_id)["usage"]) == (None, before)

    def test_another_response_than_the_one_that_was_called_off_stays(self, stage: "Stage") -> None:
        turn_id = self.abandoned(stage)
        (abandoned,) = stage.do(upkeep.find_abandoned)
        other = abandoned.checkpoint.model_copy(update={"response_id": "resp_10"})

        stage.do(upkeep.close_abandoned, Abandoned(turn_id=turn_id, checkpoint=other), {"input_tokens": 5})

        assert self.found(stage) == [turn_id]
        assert stage.row(turn_id)["usage"] is None

    def test_those_that_ended_long_ago_are_over_by_themselves(self, stage: "Stage") -> None:
        old, lately = self.abandoned(stage), self.abandoned(stage)
        stage.set(old, finished_at=func.now() - timedelta(minutes=61))
        running = stage.claim(stage.enqueue().id)
        kept = stage.keep(running)

        forgotten = stage.do(upkeep.forget_abandoned, after=timedelta(hours=1))

        assert forgotten == 1
        assert self.found(stage) == [lately]
        assert stage.row(old)["checkpoint"] is None
        assert stage.row(running.id)["checkpoint"] == kept.model_dump(mode="json")


class TestGiveBack:
    def test_a_turn_that_nobody_here_runs_is_queued_again(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)

        (given,) = stage.do(upkeep.give_back, running.id, running.epoch)

        assert given.id == running.id
        assert stage.state(running.id) == "queued"
        assert stage.attempts(running.id)[0]["outcome"] == "lost"

    def test_a_newer_claim_is_not_given_back(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)

        assert stage.do(upkeep.give_back, running.id, running.epoch - 1) == []

        assert stage.state(running.id) == "running"

    def test_a_turn_that_has_ended_is_not_given_back(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)
        stage.complete(running)

        assert stage.do(upkeep.give_back, running.id, running.epoch) == []

    def test_a_turn_that_was_cancelled_ends(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)
        stage.do(turns.cancel, running.id)

        (ended,) = stage.do(upkeep.give_back, running.id, running.epoch)

        assert ended.state == "cancelled"
        assert stage.state(running.id) == "cancelled"


class TestTakeDue:
    def unheard(self, stage: "Stage", **fields: Any) -> UUID:
        return stage.do(turns.enqueue, TurnRequest(text="Hello", provider="openai", **fields), is_rung=False).id

    def test_a_due_turn_that_nobody_rang_for_is_taken_up_once(self, stage: "Stage") -> None:
        turn_id = self.unheard(stage)

        assert stage.do(upkeep.take_due, forgotten_after=A_MINUTE) == [Due(turn_id, 0)]
        assert stage.do(upkeep.take_due, forgotten_after=A_MINUTE) == []

    def test_what_was_rung_lately_is_skipped_and_what_was_rung_long_ago_is_not(self, stage: "Stage") -> None:
        lately, long_ago = stage.enqueue().id, stage.enqueue().id
        stage.set(long_ago, rung_at=func.now() - timedelta(seconds=61))

        assert stage.do(upkeep.take_due, forgotten_after=A_MINUTE) == [Due(long_ago, 0)]
        assert {one.id for one in stage.do(upkeep.take_due, forgotten_after=timedelta(0))} == {lately, long_ago}

    def test_a_turn_that_a_worker_was_told_of_already_is_not_forgotten(self, stage: "Stage") -> None:
        told, forgotten = stage.enqueue().id, stage.enqueue().id
        for turn_id in (told, forgotten):
            stage.set(turn_id, rung_at=func.now() - timedelta(seconds=61))

        assert stage.do(upkeep.take_due, forgotten_after=A_MINUTE, besides=[told]) == [Due(forgotten, 0)]
        assert stage.do(upkeep.take_due, forgotten_after=A_MINUTE) == [Due(told, 0)]

    def test_a_countdown_that_the_broker_knows_is_left_to_the_broker(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)
        stage.retry(running, seconds=1, is_rung=True)
        stage.set(running.id, available_at=func.now() - timedelta(seconds=1))

        assert stage.do(upkeep.take_due, forgotten_after=timedelta(seconds=3)) == []

    def test_a_turn_that_is_due_later_waits(self, stage: "Stage") -> None:
        stage.turn(TurnState.RETRYING)

        assert stage.do(upkeep.take_due, forgotten_after=timedelta(0)) == []

    def test_a_turn_whose_countdown_is_over_is_taken_up_with_its_attempts(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)
        stage.retry(running, seconds=0)

        assert stage.do(upkeep.take_due, forgotten_after=A_MINUTE) == [Due(running.id, 1)]

    @pytest.mark.parametrize("state", sorted({*TurnState} - {TurnState.QUEUED, TurnState.RETRYING}))
    def test_what_does_not_wait_is_never_due(self, stage: "Stage", state: TurnState) -> None:
        stage.turn(state)

        assert stage.do(upkeep.take_due, forgotten_after=timedelta(0)) == []

    def test_a_turn_behind_another_is_not_due(self, stage: "Stage") -> None:
        running = stage.claim(stage.enqueue().id)
        stage.enqueue(chat_id=running.chat_id)

        assert stage.do(upkeep.take_due, forgotten_after=timedelta(0)) == []

    def test_rescuers_at_the_same_moment_share(self, stage: "Stage", threads: ThreadPoolExecutor) -> None:
        due = {self.unheard(stage, owner=f"owner {number}") for number in range(12)}
        take = partial(stage.do, upkeep.take_due, forgotten_after=A_MINUTE, limit=5)

        shares = list(threads.map(lambda _: take(), range(6)))
        while more := take():
            shares.append(more)

        taken = [one.id for share in shares for one in share]
        assert all(len(share) <= 5 for share in shares)
        assert sorted(taken) == sorted(due)

    def test_a_ring_that_failed_is_forgotten(self, stage: "Stage") -> None:
        turn_id = stage.enqueue().id

        stage.do(upkeep.forget_rings, [turn_id])

        assert stage.do(upkeep.take_due, forgotten_after=A_MINUTE) == [Due(turn_id, 0)]


def test_the_first_reason_of_a_rejection_stays(stage: "Stage") -> None:
    turn_id = uuid4()

    stage.do(upkeep.reject, turn_id, "one")
    stage.do(upkeep.reject, turn_id, "two")

    with stage.engine.connect() as connection:
        assert list(connection.scalars(select(rejections.c.reason))) == ["one"]


class TestCounting:
    def test_turns_that_wait_are_counted_by_what_they_wait_for(self, stage: "Stage") -> None:
        stage.enqueue()
        chat = stage.enqueue().chat_id
        stage.enqueue(chat_id=chat)
        stage.claim(stage.enqueue().id)
        stage.retry(stage.claim(stage.enqueue().id), seconds=600)

        waiting = stage.do(upkeep.count_waiting)

        assert (waiting.due, waiting.counting_down) == (2, 1)
        assert timedelta(0) < waiting.oldest_due < A_MINUTE

    def test_where_nothing_waits_nothing_is_old(self, stage: "Stage") -> None:
        stage.claim(stage.enqueue().id)

        assert stage.do(upkeep.count_waiting) == Waiting(due=0, counting_down=0, oldest_due=timedelta(0))

    def test_counting_reads_indexes_of_waiting_turns_alone(self, stage: "Stage") -> None:
        def plan(connection: Connection) -> str:
            connection.execute(text("SET LOCAL enable_seqscan = off"))
            compiled = upkeep._COUNT_WAITING.compile(dialect=connection.dialect)
            rows = connection.exec_driver_sql(f"EXPLAIN {compiled}", dict(compiled.params))
            return "\n".join(row[0] for row in rows)

        explained = stage.do(plan)

        indexes = set(re.findall(r"Index.* Scan (?:using|on) (\w+)", explained))
        assert indexes
        assert indexes <= {"ix_turns_due", "ix_turns_waiting", "ix_turns_standing_back"}
        assert "Seq Scan" not in explained
