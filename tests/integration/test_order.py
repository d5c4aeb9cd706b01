"""Order in one chat, whatever its users and its workers do at once: real threads, real transactions."""

import random
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from sqlalchemy import RowMapping, select
from sqlalchemy.exc import IntegrityError

from turnkeeper import turns
from turnkeeper.exceptions import ChatBusy, NotEditable, NotRetryable
from turnkeeper.messages import ToolCall, ToolResult
from turnkeeper.states import AttemptOutcome
from turnkeeper.tables import turns as turns_table
from turnkeeper_worker import store, upkeep
from turnkeeper_worker.store import Claimed, Ended, LeaseLost, Taken

if TYPE_CHECKING:
    from tests.integration.conftest import Stage

USERS = 4
ACTS = 25
CALL = ToolCall(call_id="c", name="look", arguments="{}")


@dataclass(frozen=True)
class Chat:
    """One chat, and all that users and workers do to it."""

    stage: "Stage"
    id: UUID
    until: Callable[[Callable[[], bool]], bool]
    unexpected: list[BaseException] = field(default_factory=list)

    def rows(self) -> list[RowMapping]:
        with self.stage.engine.connect() as connection:
            query = select(turns_table).where(turns_table.c.chat_id == self.id).order_by(turns_table.c.seq)
            return list(connection.execute(query).mappings())

    def use(self, seed: int) -> None:
        """Be a user who does something else each time."""
        rng = random.Random(seed)
        acts: list[Callable[[UUID], Any]] = [
            *(partial(self.say, manner) for manner in (*["queue"] * 8, "interrupt", "reject", "reject")),
            lambda turn: self.stage.enqueue("Anew", edits=turn),
            lambda turn: self.stage.do(turns.cancel, turn),
            *[lambda turn: self.stage.do(turns.retry, turn)] * 4,
        ]
        for _ in range(ACTS):
            self.until(self.is_not_crowded)
            # The newest are where there is most to be met.
            turn = rng.choice(self.rows()[-4:])["id"]
            self.expecting((ChatBusy, NotEditable, NotRetryable), rng.choice(acts), turn)

    def is_not_crowded(self) -> bool:
        """Tell whether the workers keep up."""
        return sum(row["finished_at"] is None for row in self.rows()) <= USERS

    def say(self, manner: str, _: UUID) -> None:
        self.stage.enqueue(chat_id=self.id, on_busy=manner)

    def work(self, seed: int, users: list[Future[None]]) -> None:
        """Be a worker that takes what it can get, while there are users, and ends it in every way there is."""
        rng, worker = random.Random(seed), self.stage.worker()
        ends = [self.complete, self.fail, self.try_again, self.hand_back, self.use_tools, self.die]
        while not all(user.done() for user in users):
            for row in (row for row in self.rows() if row["finished_at"] is None):
                # One that is not due, not first or running elsewhere must not be had, however it is asked for.
                self.expecting((LeaseLost, IntegrityError), self.take, row["id"], worker, rng.choice(ends))

    def take(self, turn_id: UUID, worker: UUID, end: Callable[[Claimed], Any]) -> None:
        taken = self.stage.do(store.claim, turn_id, worker)
        if not isinstance(taken, Taken):
            return
        claimed = taken.turn
        if claimed.is_cancelled:
            self.stage.do(store.cancel, claimed, Ended(outcome=AttemptOutcome.CANCELLED), ())
        else:
            end(claimed)

    def complete(self, turn: Claimed) -> None:
        self.stage.complete(turn)

    def fail(self, turn: Claimed) -> None:
        self.stage.fail(turn)

    def try_again(self, turn: Claimed) -> None:
        self.stage.retry(turn, seconds=0)

    def hand_back(self, turn: Claimed) -> None:
        self.stage.do(store.hand_back, turn, Ended(outcome=AttemptOutcome.HANDED_BACK))

    def use_tools(self, turn: Claimed) -> None:
        if turn.runs_tools:
            self.stage.do(store.complete_after_tools, turn)
            return
        turn = self.stage.call_tools(turn, CALL)
        turn = self.stage.tell(turn, ToolResult(call_id="c", output="seen"))
        self.stage.do(store.begin, turn)
        self.stage.complete(turn)

    def die(self, turn: Claimed) -> None:
        self.stage.silence(turn.worker_id)
        # A chat that somebody is at is left for the next round.
        self.until(lambda: self.is_rescued(turn))
        self.stage.beat(turn.worker_id)

    def is_rescued(self, turn: Claimed) -> bool:
        self.stage.do(upkeep.rescue, timedelta(seconds=15))
        return bool(self.stage.row(turn.id)["epoch"] != turn.epoch)

    def expecting(self, refusals: tuple[type[Exception], ...], act: Callable[..., Any], *args: Any) -> None:
        try:
            act(*args)
        except refusals as refusal:
            if isinstance(refusal, IntegrityError) and "ix_turns_one_runs" not in str(refusal):
                self.unexpected.append(refusal)
        except Exception as error:  # noqa: BLE001 - a deadlock, for one
            self.unexpected.append(error)

    def finish(self) -> None:
        """Take the chat to its end with one more worker, which only completes."""
        worker = self.stage.worker()
        # What one of the others held when it stopped is nobody's by now.
        self.stage.do(upkeep.rescue, timedelta(0))
        while waiting := [row for row in self.rows() if row["finished_at"] is None]:
            due = [row for row in waiting if row["available_at"] is not None]
            assert due, waiting
            for row in due:
                self.take(row["id"], worker, self.complete)


@pytest.mark.parametrize("seed", range(3))
def test_users_and_workers_at_once_leave_every_turn_in_its_place(
    stage: "Stage", threads: ThreadPoolExecutor, until: Callable[[Callable[[], bool]], bool], seed: int
) -> None:
    chat = Chat(stage, stage.enqueue().chat_id, until)

    users = [threads.submit(chat.use, seed * 100 + number) for number in range(USERS)]
    workers = [threads.submit(chat.work, seed * 100 + 50 + number, users) for number in range(3)]
    for one in (*users, *workers):
        one.result()
    assert chat.unexpected == []
    chat.finish()

    rows = chat.rows()
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    assert stage.chat(chat.id)["turn_count"] == len(rows)
    assert all(row["finished_at"] is not None for row in rows)
    assert_one_at_a_time(rows)
    assert_replaced_by_later_ones(rows)


def assert_one_at_a_time(rows: list[RowMapping]) -> None:
    ran = [row for row in rows if row["started_at"] is not None]
    for before, after in pairwise(ran):
        assert before["finished_at"] <= after["started_at"]


def assert_replaced_by_later_ones(rows: list[RowMapping]) -> None:
    seqs = {row["id"]: row["seq"] for row in rows}
    for row in rows:
        if row["superseded_by"] is not None:
            assert seqs[row["superseded_by"]] > row["seq"]


def test_of_many_edits_of_one_message_exactly_one_is_made(stage: "Stage", threads: ThreadPoolExecutor) -> None:
    first = stage.enqueue()

    tries = [threads.submit(stage.enqueue, f"Version {number}", edits=first.id) for number in range(8)]
    made = [one.result() for one in tries if one.exception() is None]
    refused = [type(one.exception()) for one in tries if one.exception() is not None]

    assert refused == [NotEditable] * 7
    assert stage.row(first.id)["superseded_by"] == made[0].id
    assert stage.chat(first.chat_id)["turn_count"] == 2


def test_the_same_edit_sent_twice_at_once_is_one(stage: "Stage", threads: ThreadPoolExecutor) -> None:
    first = stage.enqueue()

    tries = [threads.submit(stage.enqueue, "Anew", edits=first.id, idempotency_key="k") for _ in range(8)]

    assert len({one.result().id for one in tries}) == 1
    assert sum(one.result().is_new for one in tries) == 1
    assert stage.chat(first.chat_id)["turn_count"] == 2
