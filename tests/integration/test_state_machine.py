"""Producers, workers and time do to turns whatever they like, in any order; what design and schema promise holds.

Hypothesis chooses the order. Everything goes through the functions that production calls, on a real PostgreSQL;
only the provider, the tools and the clock are played. The machine knows which belief of a worker is the valid one,
so it can tell what each write must come to. What must hold whatever happened, SQL asks after every step.

`CHAOS_SEED` chooses other orders than those of every commit, and `CHAOS_RUNS` so many seeds from there.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run
from sqlalchemy import Connection, TextClause, text

from turnkeeper import limits, turns
from turnkeeper.errors import ChatError, ErrorKind
from turnkeeper.exceptions import ChatBusy, IdempotencyConflict, NotRetryable, UsageLimitExceeded
from turnkeeper.messages import Message, Text, ToolCall, ToolResult
from turnkeeper.requests import Fallback, TurnRequest
from turnkeeper.states import WAITING_STATES, AttemptOutcome, OnBusy, TurnState
from turnkeeper.turns import Enqueued
from turnkeeper_worker import ledger, store, tool_step, upkeep
from turnkeeper_worker.chain import Credential
from turnkeeper_worker.chain_health import broke
from turnkeeper_worker.checkpoint import Checkpoint
from turnkeeper_worker.config import ProviderConfig
from turnkeeper_worker.ledger import Run
from turnkeeper_worker.planner import Planner
from turnkeeper_worker.store import Claimed, Early, Ended, LeaseLost, NotMine, Origin, Taken
from turnkeeper_worker.tool_step import ToolStep
from turnkeeper_worker.tools import Toolbox
from turnkeeper_worker.upkeep import Identity, Orphan

if TYPE_CHECKING:
    from tests.integration.conftest import Stage

T = TypeVar("T")

FIRST_SEED = int(os.environ.get("CHAOS_SEED", "1"))
SEEDS = range(FIRST_SEED, FIRST_SEED + int(os.environ.get("CHAOS_RUNS", "1")))

TICK = timedelta(seconds=40)
"""Time passes in these, so that no age is ever near `TTL`: real time, which goes on beside, must not decide."""
TTL = timedelta(seconds=70)
LONG = timedelta(hours=1)
BELIEFS_KEPT = 20
"""How many beliefs of the past are remembered, to be tried again."""
MOST_TURNS = 10
"""What the limit of the month lets in; few orders of events come to it, and those must be refused."""
MOST_CHATS = 3
"""Few chats, for more to happen in each."""
LONGEST_WAY = 60
"""More rounds than any order of events can leave to do: each ends the first turn of every chat."""
PROFILE = settings(
    max_examples=50,
    stateful_step_count=30,
    deadline=None,
    database=None,
    print_blob=False,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)

PLANNER = Planner(
    configs={"openai": ProviderConfig(base_url="https://api.openai.com/v1", model="m")},
    keys={"openai": "abc"},
    toolbox=Toolbox(),
)
HERE = Credential(provider="openai", base_url="https://api.openai.com/v1", key="abc", model="m")
NEXT = Fallback(provider="openai", model="n")
ERROR = ChatError(kind=ErrorKind.OVERLOADED, message="OpenAI is short of capacity.", provider="openai")
USAGE = {"input_tokens": 3}

INVARIANTS = {
    "a final turn is finished, and no other": """
        SELECT id FROM turns
        WHERE (state IN ('completed', 'failed', 'cancelled')) <> (finished_at IS NOT NULL)""",
    "a running turn has a worker, and no other": """
        SELECT id FROM turns WHERE (state = 'running') <> (worker_id IS NOT NULL)""",
    "a failed turn has an error, and no other": """
        SELECT id FROM turns WHERE (state = 'failed') <> (error IS NOT NULL)""",
    "one turn of a chat runs": """
        SELECT chat_id FROM turns WHERE state = 'running' GROUP BY chat_id HAVING count(*) > 1""",
    "the turns of a chat are numbered without gaps": """
        SELECT chats.id FROM chats JOIN turns ON turns.chat_id = chats.id GROUP BY chats.id
        HAVING count(*) <> turn_count OR min(seq) <> 1 OR max(seq) <> turn_count""",
    "no turn starts before an earlier one of its chat has ended": """
        SELECT later.id FROM turns AS later JOIN turns AS earlier USING (chat_id)
        WHERE earlier.seq < later.seq AND later.started_at IS NOT NULL
          AND (earlier.finished_at IS NULL OR earlier.finished_at > later.started_at)""",
    "of a chat's unfinished turns the first runs or is due, and no other": """
        SELECT id FROM (
            SELECT *, row_number() OVER (PARTITION BY chat_id ORDER BY seq) = 1 AS is_first
            FROM turns WHERE finished_at IS NULL) AS unfinished
        WHERE (state = 'running' OR available_at IS NOT NULL) <> is_first""",
    "a running turn that waits for the model has an open attempt, its own, and no other has one": """
        SELECT coalesce(open.turn_id, calling.id)
        FROM (SELECT * FROM attempts WHERE outcome = 'running') AS open
        FULL JOIN (SELECT * FROM turns WHERE state = 'running' AND NOT runs_tools) AS calling
          ON (calling.id, calling.step, calling.attempt, calling.epoch, calling.worker_id)
           = (open.turn_id, open.step, open.number, open.epoch, open.worker_id)
        WHERE open.turn_id IS NULL OR calling.id IS NULL""",
    "a step is completed once": """
        SELECT turn_id FROM attempts WHERE outcome = 'completed' GROUP BY turn_id, step HAVING count(*) > 1""",
    "a step follows one that is completed": """
        SELECT turn_id FROM attempts AS later WHERE step > 1 AND NOT EXISTS (
            SELECT FROM attempts AS earlier WHERE earlier.turn_id = later.turn_id
              AND earlier.step = later.step - 1 AND earlier.outcome = 'completed')""",
    "a completed step has its answer, once, and no answer is without its step": """
        SELECT turn_id FROM (
            SELECT turn_id, response_id, count(*) AS steps FROM attempts WHERE outcome = 'completed'
            GROUP BY turn_id, response_id) AS completed
        FULL JOIN (
            SELECT turn_id, response_id, count(*) AS answers FROM messages WHERE response_id IS NOT NULL
            GROUP BY turn_id, response_id) AS stored USING (turn_id, response_id)
        WHERE steps IS DISTINCT FROM 1 OR answers IS DISTINCT FROM 1""",
    "a completed turn has the answer to its last step": """
        SELECT id FROM turns WHERE state = 'completed' AND NOT EXISTS (
            SELECT FROM attempts WHERE turn_id = id AND attempts.step = turns.step AND outcome = 'completed')""",
    "a tool's result is told once": """
        SELECT turn_id FROM messages, jsonb_array_elements(parts) AS part WHERE part ->> 'type' = 'tool_result'
        GROUP BY turn_id, part ->> 'call_id' HAVING count(*) > 1""",
    "the messages of a turn are numbered without gaps": """
        SELECT turn_id FROM messages GROUP BY turn_id
        HAVING min(position) <> 0 OR max(position) <> count(*) - 1""",
    "an open run belongs to the step that its turn is at, under no later lease": """
        SELECT turn_id FROM tool_runs JOIN turns ON turns.id = turn_id
        WHERE tool_runs.epoch > turns.epoch
           OR (tool_runs.state = 'started' AND (tool_runs.step <> turns.step OR NOT runs_tools))""",
    "every turn is counted once, and every token": """
        SELECT count(*) FROM (
            SELECT count(*) AS turns, coalesce(sum((usage ->> 'input_tokens')::int), 0) AS tokens FROM turns
        ) AS stored, (
            SELECT coalesce(sum(turns), 0) AS turns, coalesce(sum(input_tokens), 0) AS tokens FROM usage_periods
        ) AS counted
        WHERE (stored.turns, stored.tokens) <> (counted.turns, counted.tokens) HAVING count(*) > 0""",
    "a turn that fell back is not where it began, and no other": """
        SELECT id FROM turns WHERE (first_choice IS NOT NULL) <> EXISTS (
            SELECT FROM attempts WHERE turn_id = turns.id AND outcome = 'fell_back')""",
    "a response that is left behind belongs to an attempt that fell back": """
        SELECT turn_id FROM left_responses WHERE NOT EXISTS (
            SELECT FROM attempts WHERE attempts.turn_id = left_responses.turn_id
              AND attempts.step = left_responses.step AND number = attempt AND outcome = 'fell_back')""",
    "a chat's anchor stands at a message of its response": """
        SELECT chats.id FROM chats WHERE anchor IS NOT NULL AND NOT EXISTS (
            SELECT FROM messages WHERE chat_id = chats.id AND turn_seq = (anchor ->> 'seq')::int
              AND position = (anchor ->> 'position')::int AND response_id = anchor ->> 'response_id')""",
}
BROKEN = text(
    " UNION ALL ".join(
        f"SELECT '{name.replace(chr(39), chr(39) * 2)}', broken::text FROM ({query}) AS found (broken)"
        for name, query in INVARIANTS.items()
    )
)
SEEN = text(
    """
    SELECT id, epoch, state,
        available_at <= now() AND NOT EXISTS (
            SELECT FROM turns AS earlier
            WHERE earlier.chat_id = turns.chat_id AND earlier.seq < turns.seq AND earlier.finished_at IS NULL
        ) AS is_due,
        CASE WHEN finished_at IS NOT NULL THEN
            (to_jsonb(turns) - 'usage' - 'checkpoint')::text
            || (SELECT coalesce(string_agg(digest, ' ' ORDER BY position), '') FROM messages WHERE turn_id = id)
        END AS ending
    FROM turns ORDER BY id
    """
)
"""What a final turn may still get is the cost of its background response, once that is called off."""
SHIFTS = (
    text("UPDATE workers SET heartbeat_at = heartbeat_at - :by"),
    text("UPDATE turns SET available_at = available_at - :by, rung_at = rung_at - :by WHERE finished_at IS NULL"),
)
UNFINISHED = text("SELECT id, chat_id, state FROM turns WHERE finished_at IS NULL ORDER BY id")
RUNNING = text("SELECT id, epoch, step, attempt, runs_tools, worker_id FROM turns WHERE state = 'running'")

RunKey: TypeAlias = tuple[UUID, int, str]
"""A run of a tool: turn, step, call."""


@dataclass(eq=False)
class Hand:
    """What a worker believes of a turn, and how far it has come with the tools."""

    turn: Claimed
    runs: tuple[Run, ...] = ()
    results: dict[str, ToolResult] = field(default_factory=dict)
    """What tools gave; the ledger need not have it yet."""
    entered: set[str] = field(default_factory=set)
    """The calls whose results the ledger has."""

    @property
    def has_all_results(self) -> bool:
        return self.turn.runs_tools and not (self.unrun or self.unentered)

    @property
    def unrun(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.call.call_id not in self.results)

    @property
    def unentered(self) -> tuple[ToolResult, ...]:
        return tuple(result for call_id, result in self.results.items() if call_id not in self.entered)


@dataclass(eq=False)
class Worker:
    """A worker process, and what it holds, or so it believes."""

    id: UUID
    hands: dict[UUID, Hand] = field(default_factory=dict)


def one_of(items: Sequence[T], which: int) -> T:
    return items[which % len(items)]


def run_key(hand: Hand, call_id: str) -> RunKey:
    return hand.turn.id, hand.turn.step, call_id


def rows(connection: Connection, query: TextClause) -> list[Any]:
    return list(connection.execute(query))


def look(connection: Connection) -> tuple[list[Any], list[Any], list[Any]]:
    broken, running, seen = (rows(connection, query) for query in (BROKEN, RUNNING, SEEN))
    return broken, running, seen


def empty(connection: Connection) -> None:
    for table in ("chats", "workers", "chain_health", "left_responses", "usage_periods"):
        connection.execute(text(f"DELETE FROM {table}"))
    limits.set_limit(connection, limits.EVERYBODY, "month", max_turns=MOST_TURNS)


def shift(connection: Connection, by: timedelta) -> None:
    for query in SHIFTS:
        connection.execute(query, {"by": by})


# The transactions of a delivery, put together as `turn`, `model_step`, `tool_step` and `remedies` do.


def claim(connection: Connection, turn_id: UUID, worker_id: UUID) -> Hand | Early | NotMine:
    match store.claim(connection, turn_id, worker_id, PLANNER.directory()):
        case Taken(turn=Claimed(runs_tools=True) as turn):
            return taken_over(tool_step.take_over(connection, turn))
        case Taken(turn=turn) as taken:
            planned, anew = PLANNER.plan_taken(taken), PLANNER.plan_anew(connection, turn)
            assert planned in (None, anew)
            return Hand(anew.turn)
        case other:
            return other


def taken_over(step: ToolStep) -> Hand:
    results = {run.call.call_id: run.result for run in step.runs if run.result is not None}
    return Hand(step.turn, step.runs, results, set(results))


def begun(connection: Connection, turn: Claimed) -> Hand:
    return Hand(PLANNER.begin(connection, turn).turn)


def ended(outcome: AttemptOutcome, **more: Any) -> Ended:
    return Ended(outcome=outcome, usage=USAGE, **more)


def answer(turn: Claimed, *calls: ToolCall) -> tuple[Ended, tuple[Message, ...], Origin]:
    response_id = f"resp_{turn.id}_{turn.epoch}_{turn.step}_{turn.attempt}"
    said = Message(role="assistant", parts=(Text(text=response_id), *calls))
    origin = Origin(credential=HERE, response_id=response_id, anchors=True)
    return ended(AttemptOutcome.COMPLETED, response_id=response_id), (said,), origin


def complete(connection: Connection, hand: Hand) -> None:
    store.complete(connection, hand.turn, *answer(hand.turn))


def call_tools(connection: Connection, hand: Hand) -> Hand:
    """Store an answer that calls two tools, of which one must not run again."""
    calls = [ToolCall(call_id=f"call_{hand.turn.step}_{number}", name="tool", arguments="{}") for number in (1, 2)]
    runs = tuple(Run(call=call, number=number, idempotent=number == 1) for number, call in enumerate(calls, 1))
    turn, _ = store.complete_step(connection, hand.turn, *answer(hand.turn, *calls), runs_tools=True)
    ledger.open_runs(connection, turn, runs)
    return Hand(turn, runs)


def pause(connection: Connection, hand: Hand) -> Hand:
    turn, _ = store.complete_step(connection, hand.turn, *answer(hand.turn), runs_tools=False)
    return begun(connection, store.next_step(connection, turn))


def heal(connection: Connection, hand: Hand) -> Hand:
    broke(connection, HERE, tolerated=3, rest=LONG)
    return begun(connection, store.heal(connection, hand.turn, ended(AttemptOutcome.HEALED, error=ERROR)))


def fall_back(connection: Connection, hand: Hand) -> Hand:
    failed = ended(AttemptOutcome.FELL_BACK, error=ERROR)
    choice = PLANNER.choice(hand.turn, NEXT)
    return begun(connection, store.fall_back(connection, hand.turn, failed, choice, goes_on=True))


def retry(connection: Connection, hand: Hand) -> None:
    failed = ended(AttemptOutcome.RETRIED, error=ERROR, delay=timedelta(0))
    store.retry(connection, hand.turn, failed, is_rung=True)


def retry_later(connection: Connection, hand: Hand) -> None:
    failed = ended(AttemptOutcome.RETRIED, error=ERROR, delay=TICK / 2)
    store.retry(connection, hand.turn, failed, is_rung=False, goes_on=True)


def park(connection: Connection, hand: Hand) -> None:
    """Let a turn wait for its provider; one that runs tools has nothing to ask of it."""
    if hand.turn.runs_tools:
        hand_back(connection, hand)
    else:
        store.park(connection, hand.turn, TICK / 2, is_rung=False)


def fail(connection: Connection, hand: Hand) -> None:
    store.fail(connection, hand.turn, ended(AttemptOutcome.FAILED, error=ERROR), goes_on=True)


def cancel(connection: Connection, hand: Hand) -> None:
    if hand.turn.runs_tools:
        told = tool_step._told(tool_step_of(hand), hand.results)
        tool_step._cancel(connection, tool_step_of(hand), hand.results, told)
    else:
        partial = (Message(role="assistant", parts=(Text(text="Well"),)),)
        store.cancel(connection, hand.turn, ended(AttemptOutcome.CANCELLED), partial)


def hand_back(connection: Connection, hand: Hand) -> None:
    if hand.turn.runs_tools:
        tool_step._hand_back(connection, tool_step_of(hand), hand.results)
    else:
        store.hand_back(connection, hand.turn, ended(AttemptOutcome.HANDED_BACK))


def keep(connection: Connection, hand: Hand) -> Hand:
    checkpoint = Checkpoint(response_id="resp_9", credential=HERE, began_at=datetime.now(UTC), cursor=7)
    store.keep(connection, hand.turn, checkpoint)
    return hand


def tell(connection: Connection, hand: Hand) -> Hand:
    """Store the results of all tools, and go on to the next step."""
    store.store_messages(connection, hand.turn, tool_step._told(tool_step_of(hand), hand.results))
    return begun(connection, store.next_step(connection, hand.turn))


def leave_the_rest(connection: Connection, hand: Hand) -> None:
    """Store the results of the workers' tools; those of the producer's come with the next turn."""
    store.store_messages(connection, hand.turn, tool_step._told(tool_step_of(hand), hand.results))
    store.complete_after_tools(connection, hand.turn)


def tool_step_of(hand: Hand) -> ToolStep:
    return ToolStep(turn=hand.turn, runs=hand.runs, awaits_more=False)


Write: TypeAlias = Callable[[Connection, Hand], Hand | None]
"""A transaction of a delivery; returns what the worker believes then, or None when it is through with the turn."""
AFTER_TOOLS: tuple[Write, ...] = (tell, leave_the_rest)


class Act(Enum):
    """What a worker does next; where it runs tools, what is none of the last six takes them a step further."""

    COMPLETE = auto()
    PAUSE = auto()
    CALL_TOOLS = auto()
    HEAL = auto()
    FALL_BACK = auto()
    KEEP = auto()
    RETRY = auto()
    RETRY_LATER = auto()
    PARK = auto()
    FAIL = auto()
    CANCEL = auto()
    HAND_BACK = auto()


CALLING: dict[Act, Write] = {
    Act.COMPLETE: complete,
    Act.PAUSE: pause,
    Act.HEAL: heal,
    Act.FALL_BACK: fall_back,
    Act.KEEP: keep,
}
BREAKING_OFF: dict[Act, Write] = {
    Act.RETRY: retry,
    Act.RETRY_LATER: retry_later,
    Act.PARK: park,
    Act.FAIL: fail,
    Act.CANCEL: cancel,
    Act.HAND_BACK: hand_back,
}


def may_come_next(hand: Hand, write: Write) -> bool:
    """Tell whether a worker with this belief ever comes to write that."""
    if write in BREAKING_OFF.values():
        return True
    if write in AFTER_TOOLS:
        return hand.has_all_results
    return not hand.turn.runs_tools and not (write is heal and hand.turn.healed)


which = st.integers(min_value=0, max_value=20)
"""One of several; taken modulo how many there are."""
workers = st.integers(min_value=0, max_value=1)
acts = st.sampled_from(Act)
WRITES = (*CALLING.values(), *BREAKING_OFF.values(), *AFTER_TOOLS, call_tools)

WHAT_HAPPENS: dict[str, tuple[int, tuple[st.SearchStrategy[Any], ...]]] = {
    "enqueue": (1, ()),
    "enqueue_beside": (1, (which, st.sampled_from(OnBusy))),
    "enqueue_the_same_again": (1, (which,)),
    "cancel_from_outside": (1, (which,)),
    "retry_by_hand": (1, (which,)),
    "deliver": (1, (workers, which)),
    "claim_but_lose_the_answer": (1, (workers, which)),
    "take": (5, (workers, which, st.lists(acts, max_size=3))),
    "go_on": (6, (which, acts)),
    "go_on_unknowing": (4, (which, acts)),
    "write_what_is_superseded": (4, (which, st.sampled_from(WRITES))),
    "pass_time": (1, (st.integers(0, 3), st.sets(workers))),
    "stall": (3, (workers,)),
    "replace_the_process": (1, (workers, st.booleans())),
}
"""Methods of `Turns`, each with how often it happens and what it is given."""
EVENTS = st.sampled_from([name for name, (weight, _) in WHAT_HAPPENS.items() for _ in range(weight)]).flatmap(
    lambda name: st.tuples(st.just(name), st.tuples(*WHAT_HAPPENS[name][1]))
)
"""One rule for all: of many, Hypothesis leaves half out of each example, and a turn gets nowhere without most."""


class Turns(RuleBasedStateMachine):
    """Two workers, and the producers of a few chats."""

    stage: ClassVar["Stage"]

    def __init__(self) -> None:
        super().__init__()
        self.numbers = count(1)
        self.now = timedelta(0)
        self.beats: dict[UUID, timedelta] = {}
        """When each worker last renewed; one that signed off is not there."""
        self.known: list[UUID] = []
        """Every turn that was ever enqueued."""
        self.requests: dict[UUID, TurnRequest] = {}
        self.due: list[UUID] = []
        """What may be claimed."""
        self.valid: dict[UUID, Hand] = {}
        """The beliefs that the database must honour; no others."""
        self.past: list[Hand] = []
        self.open_runs: dict[RunKey, int] = {}
        """The runs that may still get a result, and the lease under which."""
        self.starts: Counter[RunKey] = Counter()
        self.epochs: dict[UUID, int] = {}
        self.ends: dict[UUID, str] = {}
        self.stage.do(empty)
        self.workers = [self.new_worker(), self.new_worker()]

    def teardown(self) -> None:
        if sys.exc_info()[0] is None:
            self.drive_all_to_their_end()

    # What producers do.

    @initialize(chats=st.lists(st.integers(1, 3), min_size=1, max_size=MOST_CHATS))
    def begin_with(self, chats: list[int]) -> None:
        """Enqueue so many turns in each chat."""
        for turns_of_chat in chats:
            first = self.do_enqueue()
            assert first is not None
            for _ in range(turns_of_chat - 1):
                self.do_enqueue(chat_id=first.chat_id)

    @rule(event=EVENTS)
    def happen(self, event: tuple[str, Any]) -> None:
        name, arguments = event
        getattr(self, name)(*arguments)

    def enqueue(self) -> None:
        if len(self.due) + len(self.valid) < MOST_CHATS:
            enqueued = self.do_enqueue()
            assert enqueued is None or (enqueued.is_new, enqueued.is_due) == (True, True)

    def enqueue_beside(self, which: int, on_busy: OnBusy) -> None:
        beside = one_of(self.known, which)
        open_turns = self.open_turns_beside(beside)
        running = {turn for turn, state in open_turns.items() if state is TurnState.RUNNING}
        try:
            enqueued = self.do_enqueue(chat_id=self.chat_of(beside), on_busy=on_busy)
        except ChatBusy:
            assert on_busy is OnBusy.REJECT
            assert open_turns
            return
        if enqueued is None:
            return
        assert on_busy is not OnBusy.REJECT or not open_turns
        stays = running if on_busy is OnBusy.INTERRUPT else set(open_turns)
        assert enqueued.is_due == (not stays)
        if on_busy is OnBusy.INTERRUPT:
            assert {turn for turn, _ in enqueued.cancelled} == open_turns.keys() - running
            assert set(enqueued.interrupted) == running

    def cancel_from_outside(self, which: int) -> None:
        turn = one_of(self.known, which)
        state = TurnState(self.stage.state(turn))
        cancelled = self.stage.do(turns.cancel, turn)
        is_waiting = state in WAITING_STATES
        assert cancelled.changed == is_waiting
        assert cancelled.state == (TurnState.CANCELLED if is_waiting else state)

    def retry_by_hand(self, which: int) -> None:
        turn = one_of(self.known, which)
        row = self.stage.row(turn)
        is_later = row["available_at"] is not None and row["available_at"] > datetime.now(UTC)
        has_to_wait = row["state"] == TurnState.RETRYING or (row["state"] == TurnState.QUEUED and is_later)
        is_last = row["seq"] == self.stage.chat(row["chat_id"])["turn_count"]
        try:
            again = self.stage.do(turns.retry, turn)
        except NotRetryable:
            assert not has_to_wait
            assert row["state"] != TurnState.FAILED or not is_last
            return
        except UsageLimitExceeded:
            assert len(self.known) == MOST_TURNS
            return
        if has_to_wait:
            assert (again.id, again.is_new) == (turn, False)
        else:
            assert (row["state"], is_last, again.is_new) == (TurnState.FAILED, True, True)
            self.known.append(again.id)

    def enqueue_the_same_again(self, which: int) -> None:
        turn = one_of(list(self.requests), which)
        request = self.requests[turn]
        before = self.stage.dump()
        again = self.stage.do(turns.enqueue, request)
        assert (again.id, again.is_new) == (turn, False)
        with pytest.raises(IdempotencyConflict):
            self.stage.do(turns.enqueue, request.model_copy(update={"text": "Something else"}))
        assert self.stage.dump() == before

    # What a worker does with a message: with any, for doubled and old ones do no harm.

    def deliver(self, worker: int, which: int) -> None:
        self.claim_for(self.workers[worker], one_of(self.known, which))

    def claim_but_lose_the_answer(self, worker: int, which: int) -> None:
        if self.due and (turn := one_of(self.due, which)) not in self.workers[worker].hands:
            self.do_claim(self.workers[worker], turn)

    # What it does with a turn, whether its belief is valid or not.

    def take(self, worker: int, which: int, acts: list[Act]) -> None:
        """Take a turn that is due, and do so much with it."""
        if not self.due:
            return
        me, turn = self.workers[worker], one_of(self.due, which)
        self.claim_for(me, turn)
        for act in acts:
            self.every_promise_is_kept()
            if hand := me.hands.get(turn):
                self.act(me, hand, act)

    def go_on(self, which: int, act: Act) -> None:
        if held := self.held():
            self.act(*one_of(held, which), act)

    def go_on_unknowing(self, which: int, act: Act) -> None:
        """Go on with a turn that another worker runs by now."""
        if lost := [(worker, hand) for worker, hand in self.held() if self.is_superseded(hand)]:
            self.act(*one_of(lost, which), act)

    def held(self) -> list[tuple[Worker, Hand]]:
        return [(worker, hand) for worker in self.workers for hand in worker.hands.values()]

    def is_superseded(self, hand: Hand) -> bool:
        return self.valid.get(hand.turn.id, hand) is not hand

    def act(self, worker: Worker, hand: Hand, act: Act) -> None:
        if act in BREAKING_OFF:
            self.do_write(worker, hand, BREAKING_OFF[act])
        elif act is Act.CALL_TOOLS and not hand.turn.runs_tools:
            self.do_write(worker, hand, call_tools)
        elif hand.turn.runs_tools:
            self.go_on_with_tools(worker, hand, act)
        elif act is not Act.HEAL or not hand.turn.healed:
            self.do_write(worker, hand, CALLING[act])

    def go_on_with_tools(self, worker: Worker, hand: Hand, act: Act) -> None:
        if hand.unentered:
            self.enter(worker, hand, hand.unentered[0])
        elif hand.unrun:
            self.run_tool(hand, hand.unrun[0])
        else:
            self.do_write(worker, hand, leave_the_rest if act is Act.COMPLETE else tell)

    def write_what_is_superseded(self, which: int, write: Write) -> None:
        """What a worker believes that stalled, or that tries again because an answer was lost."""
        if worth := [hand for hand in self.past if self.is_superseded(hand)]:
            hand = one_of(worth, which)
            if may_come_next(hand, write):
                self.do_write(None, hand, write)

    # What happens to workers, and what they do for turns that nobody holds.

    def pass_time(self, ticks: int, beating: set[int]) -> None:
        self.shift(ticks * TICK)
        for worker in sorted(beating):
            self.beat_of(self.workers[worker])
        self.look_after_turns()

    def stall(self, worker: int) -> None:
        """Let the turns of a worker be taken away without its knowing."""
        self.shift(TTL + TICK)
        self.beat_of(self.workers[1 - worker])
        self.look_after_turns()

    def look_after_turns(self) -> None:
        """Free orphans, ring for what was forgotten, call responses off, as the rescue loop does."""
        self.free_orphans()
        self.ring()
        for abandoned in self.stage.do(upkeep.find_abandoned):
            self.stage.do(upkeep.close_abandoned, abandoned, USAGE)

    def replace_the_process(self, worker: int, signs_off: bool) -> None:
        gone = self.workers[worker]
        self.past.extend(gone.hands.values())
        if signs_off:
            self.stage.do(upkeep.sign_off, gone.id)
            del self.beats[gone.id]
        self.workers[worker] = self.new_worker()

    # What must hold.

    @invariant()
    def every_promise_is_kept(self) -> None:
        broken, running, seen = self.stage.do(look)
        assert broken == []
        assert set(running) == {
            (one.id, one.epoch, one.step, one.attempt, one.runs_tools, one.worker_id)
            for one in (hand.turn for hand in self.valid.values())
        }
        self.due = [turn.id for turn in seen if turn.is_due]
        for turn in seen:
            assert turn.epoch >= self.epochs.get(turn.id, 0)
            assert self.ends.get(turn.id) in {None, turn.ending}
            self.epochs[turn.id] = turn.epoch
            if turn.ending is not None:
                self.ends[turn.id] = turn.ending

    def drive_all_to_their_end(self) -> None:
        """Show that nothing is stuck: time passes, messages are all lost, one fresh worker is left."""
        worker = self.new_worker()
        for _ in range(LONGEST_WAY):
            self.shift(LONG)
            self.beat_of(worker)
            self.free_orphans()
            for turn in self.ring():
                self.finish(worker, turn)
            if not self.stage.do(rows, UNFINISHED):
                break
        assert self.stage.do(rows, UNFINISHED) == []
        self.every_promise_is_kept()

    def finish(self, worker: Worker, turn: UUID) -> None:
        hand = self.claim_for(worker, turn)
        assert hand is not None
        while hand is not None and not hand.turn.is_cancelled and hand.turn.runs_tools:
            for one in hand.unrun:
                self.run_tool(hand, one)
            for result in hand.unentered:
                self.enter(worker, hand, result)
            hand = self.do_write(worker, hand, tell)
        if hand is not None:
            self.do_write(worker, hand, cancel if hand.turn.is_cancelled else complete)

    # How it is done, and what each act must come to.

    def new_id(self) -> UUID:
        return UUID(int=next(self.numbers))

    def new_worker(self) -> Worker:
        worker = Worker(self.new_id())
        self.beat_of(worker)
        return worker

    def do_enqueue(self, **fields: Any) -> Enqueued | None:
        """Enqueue a turn; None where the limit keeps it out."""
        turn_id = self.new_id()
        words = {"text": f"Question {turn_id.int}", "provider": "openai", "idempotency_key": str(turn_id.int)}
        request = TurnRequest.parse(words | fields)
        before = self.stage.dump() if len(self.known) == MOST_TURNS else None
        try:
            enqueued = self.stage.do(turns.enqueue, request, turn_id=turn_id)
        except UsageLimitExceeded:
            assert before == self.stage.dump()
            return None
        assert before is None
        self.requests[turn_id] = request
        self.known.append(turn_id)
        return enqueued

    def chat_of(self, turn: UUID) -> UUID:
        chat: UUID = self.stage.row(turn)["chat_id"]
        return chat

    def open_turns_beside(self, turn: UUID) -> dict[UUID, TurnState]:
        chat = self.chat_of(turn)
        return {row.id: TurnState(row.state) for row in self.stage.do(rows, UNFINISHED) if row.chat_id == chat}

    def due_turns(self) -> set[UUID]:
        return {turn.id for turn in self.stage.do(rows, SEEN) if turn.is_due}

    def free_orphans(self) -> None:
        orphaned = {turn for turn, hand in self.valid.items() if self.is_silent(hand.turn.worker_id)}
        expected = self.expected_ends(orphaned)
        self.released(self.stage.do(upkeep.rescue, TTL), expected)

    def ring(self) -> list[UUID]:
        due = self.due_turns()
        rung = [one.id for one in self.stage.do(upkeep.take_due, forgotten_after=TTL)]
        assert due.issuperset(rung)
        return rung

    def claim_for(self, worker: Worker, turn: UUID) -> Hand | None:
        if turn in worker.hands:
            # The worker drops the message: it runs the turn already.
            return None
        hand = self.do_claim(worker, turn)
        if hand is not None:
            worker.hands[turn] = hand
        return hand

    def do_claim(self, worker: Worker, turn: UUID) -> Hand | None:
        before = self.stage.row(turn)
        may_claim = turn in self.due_turns()
        hand = self.stage.do(claim, turn, worker.id)
        assert isinstance(hand, Hand) == may_claim
        if not isinstance(hand, Hand):
            return None
        assert hand.turn.epoch == before["epoch"] + 1
        assert (hand.turn.step, hand.turn.attempt) == (before["step"], before["attempt"] + 1)
        assert all(run.idempotent for run in hand.unrun)
        self.valid[turn] = hand
        self.open_runs = {one: epoch for one, epoch in self.open_runs.items() if one[0] != turn}
        self.note_open_runs(hand)
        return hand

    def note_open_runs(self, hand: Hand) -> None:
        self.open_runs |= {run_key(hand, run.call.call_id): hand.turn.epoch for run in hand.unrun}

    def do_write(self, worker: Worker | None, hand: Hand, write: Write) -> Hand | None:
        """Write; it gets through where the belief is valid, and otherwise leaves nothing behind."""
        turn, is_valid = hand.turn.id, self.valid.get(hand.turn.id) is hand
        before = None if is_valid else self.stage.dump()
        try:
            after = self.stage.do(write, hand)
        except LeaseLost:
            assert not is_valid
            assert self.stage.dump() == before
            after = None
        else:
            assert is_valid
            self.note_runs(hand, write, after)
            self.believe(turn, after)
        if worker is not None and after is not hand:
            self.let_go(worker, turn)
            if after is not None:
                worker.hands[turn] = after
        return after

    def note_runs(self, hand: Hand, write: Write, after: Hand | None) -> None:
        if write is call_tools and after is not None:
            self.note_open_runs(after)
        if write is cancel:
            closed = [run.call.call_id for run in hand.runs]
        elif write in {hand_back, park}:
            closed = list(hand.results)
        else:
            return
        for call_id in closed:
            self.open_runs.pop(run_key(hand, call_id), None)

    def believe(self, turn: UUID, hand: Hand | None) -> None:
        if hand is None:
            del self.valid[turn]
        else:
            self.valid[turn] = hand

    def let_go(self, worker: Worker, turn: UUID) -> None:
        self.past.append(worker.hands.pop(turn))
        del self.past[:-BELIEFS_KEPT]

    def run_tool(self, hand: Hand, run: Run) -> None:
        call_id = run.call.call_id
        if not run.idempotent:
            self.starts[run_key(hand, call_id)] += 1
            assert self.starts[run_key(hand, call_id)] == 1
        hand.results[call_id] = ToolResult(call_id=call_id, output="done")

    def enter(self, worker: Worker, hand: Hand, result: ToolResult) -> None:
        """Enter a result: it is taken from whoever the run belongs to, and that can be after the turn was lost."""
        this = run_key(hand, result.call_id)
        is_ours = self.open_runs.get(this) == hand.turn.epoch
        before = None if is_ours else self.stage.dump()
        try:
            self.stage.do(ledger.close_run, hand.turn, result)
        except LeaseLost:
            assert not is_ours
            assert self.stage.dump() == before
            self.let_go(worker, hand.turn.id)
        else:
            assert is_ours
            del self.open_runs[this]
            hand.entered.add(result.call_id)

    def beat_of(self, worker: Worker) -> None:
        """Renew, and compare what the worker and the database believe, as `leases` does."""
        held = self.stage.do(upkeep.beat, Identity(id=worker.id, host="here", pid=1, concurrency=1))
        self.beats[worker.id] = self.now
        ours = {turn: hand.turn.epoch for turn, hand in self.valid.items() if hand.turn.worker_id == worker.id}
        assert {one.turn_id: one.epoch for one in held} == ours
        for turn, hand in list(worker.hands.items()):
            if ours.get(turn) != hand.turn.epoch:
                self.let_go(worker, turn)
        for turn in ours.keys() - worker.hands.keys():
            expected = self.expected_ends({turn})
            self.released(self.stage.do(upkeep.give_back, turn, ours[turn]), expected)

    def expected_ends(self, orphaned: set[UUID]) -> dict[UUID, TurnState]:
        """Return what must become of turns that are taken from their workers."""
        found = {}
        for turn in orphaned:
            row = self.stage.row(turn)
            is_poison = row["lost"] + 1 >= upkeep.MAX_LOST
            state = TurnState.FAILED if is_poison else TurnState.QUEUED
            found[turn] = TurnState.CANCELLED if row["cancel_requested_at"] else state
        return found

    def released(self, orphans: list[Orphan], expected: dict[UUID, TurnState]) -> None:
        assert {orphan.id: orphan.state for orphan in orphans} == expected
        for orphan in orphans:
            assert orphan.epoch == self.valid.pop(orphan.id).turn.epoch + 1

    def is_silent(self, worker_id: UUID) -> bool:
        return worker_id not in self.beats or self.now - self.beats[worker_id] >= TTL

    def shift(self, by: timedelta) -> None:
        self.now += by
        self.stage.do(shift, by)


def machine_on(stage: "Stage") -> type[Turns]:
    return type("TurnsOnThisStage", (Turns,), {"stage": stage})


@pytest.mark.parametrize("number", SEEDS)
@pytest.mark.timeout(900)
def test_whatever_happens_in_whatever_order_every_promise_is_kept(stage: "Stage", number: int) -> None:
    run(seed(number)(machine_on(stage)), settings=PROFILE)


def test_of_two_workers_that_run_the_same_tool_the_one_that_holds_the_turn_is_heard(stage: "Stage") -> None:
    """An order that chance seldom finds."""
    machine = machine_on(stage)()
    machine.begin_with([1])

    for event in (
        ("take", (0, 0, [Act.CALL_TOOLS])),
        ("stall", (0,)),
        ("take", (1, 0, [])),
        ("go_on_unknowing", (0, Act.PAUSE)),
        ("go_on_unknowing", (0, Act.PAUSE)),
    ):
        machine.every_promise_is_kept()
        machine.happen(event)

    assert [len(worker.hands) for worker in machine.workers] == [0, 1]
    assert [run["state"] for run in stage.tool_runs(machine.known[0])] == ["started", "interrupted"]
    machine.drive_all_to_their_end()


def test_what_the_limit_keeps_out_leaves_nothing_behind(stage: "Stage") -> None:
    """Another one, for few orders enqueue so much."""
    machine = machine_on(stage)()
    machine.begin_with([3, 3, 3])

    for _ in range(3):
        machine.happen(("enqueue_beside", (0, OnBusy.QUEUE)))
        machine.every_promise_is_kept()

    assert len(machine.known) == MOST_TURNS
    machine.drive_all_to_their_end()
