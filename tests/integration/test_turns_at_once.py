"""Producers and workers at the same turn, or the same chat, at the same moment."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, select
from tests.integration.conftest import answered

from turnkeeper import turns
from turnkeeper.exceptions import ChatBusy, NotRetryable
from turnkeeper.requests import TurnRequest
from turnkeeper.states import AttemptOutcome, TurnState
from turnkeeper.tables import chats, messages
from turnkeeper.tables import turns as turns_table
from turnkeeper.turns import Enqueued
from turnkeeper_worker import store
from turnkeeper_worker.store import Ended, Taken

if TYPE_CHECKING:
    from tests.integration.conftest import Stage

MANY = 8


def all_at_once(threads: ThreadPoolExecutor, *work: Callable[[], Any]) -> list[Any]:
    """Run everything at the same time; return results and exceptions."""
    futures = [threads.submit(one) for one in work]
    return [future.exception() or future.result() for future in futures]


def request(chat: UUID | None = None, **fields: Any) -> TurnRequest:
    return TurnRequest.parse({"chat_id": chat, "text": "Hello", "provider": "openai"} | fields)


class TestEnqueue:
    def test_the_same_key_is_one_turn_in_one_chat(self, stage: "Stage", threads: ThreadPoolExecutor) -> None:
        found = all_at_once(threads, *[partial(stage.enqueue, idempotency_key="k")] * MANY)

        assert len({enqueued.id for enqueued in found}) == 1
        assert Counter(enqueued.is_new for enqueued in found) == {True: 1, False: MANY - 1}
        assert [stage.count(table) for table in (chats, turns_table, messages)] == [1, 1, 1]

    @pytest.mark.parametrize("on_busy", ["queue", "reject", "interrupt"])
    def test_the_same_key_is_one_turn_in_a_chat_that_exists(
        self, stage: "Stage", threads: ThreadPoolExecutor, on_busy: str
    ) -> None:
        chat = stage.row(stage.turn(TurnState.COMPLETED))["chat_id"]

        found = all_at_once(
            threads, *[partial(stage.enqueue, chat_id=chat, idempotency_key="k", on_busy=on_busy)] * MANY
        )

        assert len({enqueued.id for enqueued in found}) == 1
        assert Counter(enqueued.is_new for enqueued in found) == {True: 1, False: MANY - 1}
        assert stage.chat(chat)["turn_count"] == 2

    def test_a_repetition_waits_for_the_first_and_is_not_called_busy(
        self, stage: "Stage", threads: ThreadPoolExecutor
    ) -> None:
        chat = stage.row(stage.turn(TurnState.COMPLETED))["chat_id"]
        wanted = request(chat, idempotency_key="k", on_busy="reject")
        with stage.engine.connect() as connection:
            first = turns.enqueue(connection, wanted)
            second: Future[Enqueued] = threads.submit(stage.do, turns.enqueue, wanted)
            stage.wait_until_blocked()
            connection.commit()

        assert second.result().id == first.id

    def test_a_key_whose_first_use_was_rolled_back_is_free(
        self, stage: "Stage", threads: ThreadPoolExecutor
    ) -> None:
        with stage.engine.connect() as connection:
            first = turns.enqueue(connection, request(idempotency_key="k"))
            second: Future[Enqueued] = threads.submit(stage.enqueue, idempotency_key="k")
            stage.wait_until_blocked()
            connection.rollback()

        assert second.result().is_new
        assert second.result().id != first.id

    def test_turns_of_a_chat_get_one_number_each_and_one_is_due(
        self, stage: "Stage", threads: ThreadPoolExecutor
    ) -> None:
        chat = stage.row(stage.turn(TurnState.COMPLETED))["chat_id"]

        found = all_at_once(threads, *[partial(stage.enqueue, chat_id=chat)] * MANY)

        seqs = sorted(stage.row(enqueued.id)["seq"] for enqueued in found)
        assert seqs == list(range(2, MANY + 2))
        (due,) = [enqueued for enqueued in found if enqueued.is_due]
        assert stage.row(due.id)["seq"] == 2

    def test_reject_lets_exactly_one_in(self, stage: "Stage", threads: ThreadPoolExecutor) -> None:
        chat = stage.row(stage.turn(TurnState.COMPLETED))["chat_id"]

        found = all_at_once(threads, *[partial(stage.enqueue, chat_id=chat, on_busy="reject")] * MANY)

        assert Counter(type(one) for one in found) == {Enqueued: 1, ChatBusy: MANY - 1}

    def test_of_many_interrupts_the_last_remains(self, stage: "Stage", threads: ThreadPoolExecutor) -> None:
        chat = stage.row(stage.turn(TurnState.COMPLETED))["chat_id"]

        found = all_at_once(threads, *[partial(stage.enqueue, chat_id=chat, on_busy="interrupt")] * MANY)

        rows = sorted((stage.row(enqueued.id) for enqueued in found), key=lambda row: row["seq"])
        assert [row["state"] for row in rows] == ["cancelled"] * (MANY - 1) + ["queued"]
        assert rows[-1]["available_at"] is not None


class TestAgainstAWorker:
    def test_an_interrupt_that_meets_a_retry_ends_it(self, stage: "Stage", threads: ThreadPoolExecutor) -> None:
        running = stage.claim(stage.enqueue().id)
        failed = Ended(outcome=AttemptOutcome.RETRIED, delay=store.EARLY)
        with stage.engine.connect() as connection:
            store.retry(connection, running, failed, is_rung=False)
            interrupt: Future[Enqueued] = threads.submit(
                stage.do, turns.enqueue, request(running.chat_id, on_busy="interrupt")
            )
            stage.wait_until_blocked()
            connection.commit()

        assert [turn for turn, _ in interrupt.result().cancelled] == [running.id]
        assert interrupt.result().is_due

    def test_a_cancel_that_meets_a_retry_ends_it(self, stage: "Stage", threads: ThreadPoolExecutor) -> None:
        running = stage.claim(stage.enqueue().id)
        failed = Ended(outcome=AttemptOutcome.RETRIED, delay=store.EARLY)
        with stage.engine.connect() as connection:
            store.retry(connection, running, failed, is_rung=False)
            cancel = threads.submit(stage.do, turns.cancel, running.id)
            stage.wait_until_blocked()
            connection.commit()

        assert (cancel.result().state, cancel.result().changed) == (TurnState.CANCELLED, True)

    def test_a_cancel_that_meets_a_claim_asks_the_worker(
        self, stage: "Stage", threads: ThreadPoolExecutor
    ) -> None:
        turn_id, worker = stage.enqueue().id, stage.worker()
        with stage.engine.connect() as connection:
            store.claim(connection, turn_id, worker)
            cancel = threads.submit(stage.do, turns.cancel, turn_id)
            stage.wait_until_blocked()
            connection.commit()

        assert (cancel.result().state, cancel.result().changed) == (TurnState.RUNNING, False)
        assert stage.row(turn_id)["cancel_requested_at"] is not None

    def test_an_answer_that_meets_an_enqueue_is_stored_so_that_the_new_turn_becomes_due(
        self, stage: "Stage", threads: ThreadPoolExecutor
    ) -> None:
        running = stage.claim(stage.enqueue().id)
        answer = answered("Hi", response_id=None)
        with stage.engine.connect() as connection:
            follower = turns.enqueue(connection, request(running.chat_id))
            at_once = threads.submit(stage.do, store.complete_at_once, running, *answer)
            stage.wait_until_blocked()
            connection.commit()

        assert at_once.result() is None
        assert stage.do(store.complete, running, *answer).woken == follower.id

    def test_a_turn_is_claimed_once(self, stage: "Stage", threads: ThreadPoolExecutor) -> None:
        turn_id = stage.enqueue().id
        workers = [stage.worker() for _ in range(MANY)]

        found = all_at_once(threads, *[partial(stage.do, store.claim, turn_id, worker) for worker in workers])

        assert Counter(isinstance(one, Taken) for one in found) == {True: 1, False: MANY - 1}
        assert stage.row(turn_id)["epoch"] == 1

    def test_in_a_chat_one_turn_runs_at_a_time(self, stage: "Stage", threads: ThreadPoolExecutor) -> None:
        first = stage.enqueue()
        others = [stage.enqueue(chat_id=first.chat_id).id for _ in range(3)]
        for turn_id in others:
            # As if something had made them all due.
            stage.set(turn_id, available_at=stage.row(first.id)["available_at"])

        found = all_at_once(
            threads, *[partial(stage.do, store.claim, one, stage.worker()) for one in [*others, first.id]]
        )

        assert [one.turn.id for one in found if isinstance(one, Taken)] == [first.id]

    def test_a_failed_turn_is_answered_anew_once(self, stage: "Stage", threads: ThreadPoolExecutor) -> None:
        failed = stage.turn(TurnState.FAILED)

        found = all_at_once(threads, *[partial(stage.do, turns.retry, failed)] * MANY)

        assert Counter(type(one) for one in found) == {Enqueued: 1, NotRetryable: MANY - 1}

    def test_producers_and_workers_in_one_chat_never_deadlock(
        self, stage: "Stage", threads: ThreadPoolExecutor
    ) -> None:
        chat = stage.row(stage.turn(TurnState.COMPLETED))["chat_id"]

        def work_off() -> None:
            worker = stage.worker()
            for _ in range(40):
                if (head := _head(stage, chat)) and isinstance(
                    taken := stage.do(store.claim, head, worker), Taken
                ):
                    stage.complete(taken.turn)

        def produce(on_busy: str) -> None:
            for _ in range(10):
                enqueued = stage.enqueue(chat_id=chat, on_busy=on_busy)
                stage.do(turns.cancel, enqueued.id)

        found = all_at_once(
            threads, work_off, work_off, partial(produce, "queue"), partial(produce, "interrupt"), work_off
        )

        assert found == [None] * 5


def _head(stage: "Stage", chat: UUID) -> UUID | None:
    def look(connection: Connection) -> UUID | None:
        open_turns = select(turns_table.c.id).where(
            turns_table.c.chat_id == chat, turns_table.c.available_at.is_not(None)
        )
        return connection.scalar(open_turns.limit(1))

    return stage.do(look)
