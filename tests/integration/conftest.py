"""Turns in every state, made by the transitions that make them in production."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Concatenate, ParamSpec, TypeVar
from uuid import UUID, uuid4

import pytest
from sqlalchemy import URL, Connection, Engine, RowMapping, Table, func, select, text, update

from turnkeeper import turns
from turnkeeper.client import AsyncTurnkeeper, Turnkeeper
from turnkeeper.errors import ChatError, ErrorKind
from turnkeeper.events import Event
from turnkeeper.messages import Message, Part, Text, ToolCall, ToolResult
from turnkeeper.requests import TurnRequest
from turnkeeper.states import AttemptOutcome, TurnState
from turnkeeper.tables import attempts as attempts_table
from turnkeeper.tables import chain_health as chain_health_table
from turnkeeper.tables import chats as chats_table
from turnkeeper.tables import left_responses as left_responses_table
from turnkeeper.tables import messages as messages_table
from turnkeeper.tables import tool_runs as tool_runs_table
from turnkeeper.tables import turns as turns_table
from turnkeeper.tables import usage_periods as usage_periods_table
from turnkeeper.tables import workers as workers_table
from turnkeeper.turns import Enqueued
from turnkeeper_ops.services.redis import Redis
from turnkeeper_worker import history, ledger, store, upkeep
from turnkeeper_worker.chain import Credential
from turnkeeper_worker.checkpoint import Checkpoint
from turnkeeper_worker.history import START, Place
from turnkeeper_worker.ledger import Run
from turnkeeper_worker.replay import Said
from turnkeeper_worker.store import Claimed, Ended, Origin, Taken
from turnkeeper_worker.upkeep import Held, Identity

P = ParamSpec("P")
T = TypeVar("T")

DEADLINE_SECONDS = 10.0
ERROR = ChatError(kind=ErrorKind.OVERLOADED, message="OpenAI is short of capacity.", provider="openai")
HERE = Credential(provider="openai", base_url="https://api.openai.com/v1", key="abc", model="m")


def said(words: str, *more: Part) -> tuple[Message, ...]:
    return (Message(role="assistant", parts=(Text(text=words), *more)),)


def heard(*results: ToolResult) -> tuple[Message, ...]:
    return (Message(role="user", parts=results),)


@dataclass(frozen=True)
class Stage:
    """Producers and workers of one database; each call is a transaction of its own."""

    engine: Engine

    def do(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self.engine.begin() as connection:
            return work(connection, *args, **kwargs)

    def enqueue(self, words: str = "Hello", *, turn_id: UUID | None = None, **fields: Any) -> Enqueued:
        request = TurnRequest.parse({"text": words, "provider": "openai"} | fields)
        return self.do(turns.enqueue, request, turn_id=turn_id)

    def worker(self) -> UUID:
        worker = uuid4()
        self.beat(worker)
        return worker

    def beat(self, worker: UUID) -> list[Held]:
        return self.do(upkeep.beat, Identity(id=worker, host="here", pid=1, concurrency=1))

    def silence(self, worker: UUID, seconds: float = 3600) -> None:
        """Let a worker's last heartbeat be this long ago."""
        beat = func.now() - timedelta(seconds=seconds)
        self.do(
            Connection.execute, update(workers_table).values(heartbeat_at=beat).where(_is(workers_table, worker))
        )

    def take(self, turn_id: UUID, worker: UUID | None = None, *, providers: str = "{}") -> Taken:
        """Claim a turn, and hear what the claim read of its chat."""
        taken = self.do(store.claim, turn_id, worker or self.worker(), providers)
        assert isinstance(taken, Taken), taken
        return taken

    def claim(self, turn_id: UUID, worker: UUID | None = None) -> Claimed:
        """Claim a turn, as a delivery does."""
        return self.take(turn_id, worker).turn

    def complete(
        self, turn: Claimed, words: str = "Hi", *more: Part, response_id: str | None = "resp_1"
    ) -> store.Settled:
        return self.do(store.complete, turn, *answered(words, *more, response_id=response_id))

    def complete_first(self) -> UUID:
        """Begin a chat with a turn that leaves an anchor."""
        first = self.claim(self.enqueue().id)
        self.complete(first)
        return first.chat_id

    def history(self, turn: Claimed, *, after: Place = START) -> tuple[Said, ...]:
        """Read what the turn sees of its chat."""
        return self.do(history.hear, turn.chat_id, seen_by=turn.seq, after=after).said()

    def complete_step(
        self,
        turn: Claimed,
        words: str = "Hm",
        *more: Part,
        response_id: str | None = "resp_1",
        runs_tools: bool = False,
    ) -> Claimed:
        """Store the answer of a step, after which the turn goes on."""
        answer = answered(words, *more, response_id=response_id)
        following, _ = self.do(store.complete_step, turn, *answer, runs_tools=runs_tools)
        return following

    def call_tools(self, turn: Claimed, *calls: ToolCall, idempotent: bool = True) -> Claimed:
        """Store an answer that calls tools, and enter their runs."""
        turn = self.complete_step(turn, "Hm", *calls, runs_tools=True)
        runs = [Run(call=one, number=number, idempotent=idempotent) for number, one in enumerate(calls, start=1)]
        self.do(ledger.open_runs, turn, runs)
        return turn

    def tell(self, turn: Claimed, *results: ToolResult) -> Claimed:
        """Store the results of tools, and number the next step."""
        self.do(store.store_messages, turn, heard(*results))
        return self.do(store.next_step, turn)

    def keep(self, turn: Claimed, **fields: Any) -> Checkpoint:
        """Write down that a background response of the turn is under way."""
        usual = {"response_id": "resp_9", "credential": HERE, "began_at": datetime.now(UTC), "cursor": 7}
        checkpoint = Checkpoint(**(usual | fields))
        self.do(store.keep, turn, checkpoint)
        return checkpoint

    def fail(self, turn: Claimed) -> store.Settled:
        return self.do(store.fail, turn, Ended(outcome=AttemptOutcome.FAILED, error=ERROR))

    def retry(self, turn: Claimed, *, seconds: float = 60, is_rung: bool = False) -> None:
        ended = Ended(outcome=AttemptOutcome.RETRIED, error=ERROR, delay=timedelta(seconds=seconds))
        self.do(store.retry, turn, ended, is_rung=is_rung)

    def turn(self, state: TurnState, **fields: Any) -> UUID:
        """Bring a turn up to *state*."""
        turn_id = self.enqueue(**fields).id
        if state is TurnState.QUEUED:
            return turn_id
        if state is TurnState.CANCELLED:
            self.do(turns.cancel, turn_id)
            return turn_id
        claimed = self.claim(turn_id)
        match state:
            case TurnState.COMPLETED:
                self.complete(claimed)
            case TurnState.FAILED:
                self.fail(claimed)
            case TurnState.RETRYING:
                self.retry(claimed)
        return turn_id

    def set(self, turn_id: UUID, **values: Any) -> None:
        """Change a turn behind everybody's back."""
        self.do(Connection.execute, update(turns_table).values(**values).where(_is(turns_table, turn_id)))

    def row(self, turn_id: UUID) -> RowMapping:
        return self._one(turns_table, turn_id)

    def state(self, turn_id: UUID) -> str:
        return str(self.row(turn_id)["state"])

    def chat(self, chat_id: UUID) -> RowMapping:
        return self._one(chats_table, chat_id)

    def attempts(self, turn_id: UUID) -> list[RowMapping]:
        order = (attempts_table.c.step, attempts_table.c.number)
        with self.engine.connect() as connection:
            query = select(attempts_table).where(attempts_table.c.turn_id == turn_id).order_by(*order)
            return list(connection.execute(query).mappings())

    def tool_runs(self, turn_id: UUID) -> list[RowMapping]:
        order = (tool_runs_table.c.step, tool_runs_table.c.number)
        with self.engine.connect() as connection:
            query = select(tool_runs_table).where(tool_runs_table.c.turn_id == turn_id).order_by(*order)
            return list(connection.execute(query).mappings())

    def texts(self, turn_id: UUID) -> list[tuple[str, str]]:
        """Return who said what in a turn."""
        with self.engine.connect() as connection:
            rows = connection.execute(
                select(messages_table.c.role, messages_table.c.parts)
                .where(messages_table.c.turn_id == turn_id)
                .order_by(messages_table.c.position)
            )
            return [(row.role, "".join(part["text"] for part in row.parts)) for row in rows]

    def count(self, table: Table) -> int:
        with self.engine.connect() as connection:
            return connection.scalar(select(func.count()).select_from(table)) or 0

    def dump(self) -> str:
        """Return everything that is stored, to see that nothing changed."""
        with self.engine.connect() as connection:
            tables = (
                chats_table,
                turns_table,
                messages_table,
                attempts_table,
                tool_runs_table,
                chain_health_table,
                left_responses_table,
                usage_periods_table,
            )
            rows = [list(map(tuple, connection.execute(select(table).order_by(*table.c[:2])))) for table in tables]
        return json.dumps(rows, default=str)

    def wait_until_blocked(self, count: int = 1) -> None:
        """Wait until *count* sessions of this database wait for a lock."""
        query = text(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )

        def is_blocked() -> bool:
            with self.engine.connect() as connection:
                return bool(connection.scalar(query) >= count)

        wait_for(is_blocked)

    def _one(self, table: Table, identifier: UUID) -> RowMapping:
        with self.engine.connect() as connection:
            return connection.execute(select(table).where(_is(table, identifier))).mappings().one()


def answered(words: str, *more: Part, response_id: str | None) -> tuple[Ended, Sequence[Message], Origin]:
    """Return how an attempt ended well, what it said, and where that came from."""
    return (
        Ended(outcome=AttemptOutcome.COMPLETED, response_id=response_id, usage={"input_tokens": 3}),
        said(words, *more),
        Origin(credential=HERE, response_id=response_id, anchors=True),
    )


def _is(table: Table, identifier: UUID) -> Any:
    return table.c.id == identifier


def wait_for(condition: Callable[[], T]) -> T:
    """Look until *condition* is there; return it."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError(f"{condition} did not come about within {DEADLINE_SECONDS} s")


@pytest.fixture
def stage(engine: Engine) -> Stage:
    """Producers and workers on a fresh database."""
    return Stage(engine)


@dataclass
class Blocking:
    """An AsyncTurnkeeper that is called as if it were a Turnkeeper, so that one test speaks for both."""

    keeper: AsyncTurnkeeper
    runner: asyncio.Runner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.keeper, name)
        return lambda *args, **kwargs: self.runner.run(_call(method, *args, **kwargs))

    def follow(self, *args: Any, **kwargs: Any) -> Iterator[Event]:
        events = self.keeper.follow(*args, **kwargs)
        try:
            while (event := self.runner.run(_next(events))) is not None:
                yield event
        finally:
            self.runner.run(events.aclose())  # type: ignore[attr-defined]  # it is a generator


async def _call(method: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
    return await method(*args, **kwargs)


async def _next(events: AsyncIterator[Event]) -> Event | None:
    return await anext(events, None)


OpenKeeper = Callable[..., Any]


@pytest.fixture(params=["Turnkeeper", "AsyncTurnkeeper"])
def open_keeper(request: pytest.FixtureRequest, database_url: URL, redis_server: Redis) -> Iterator[OpenKeeper]:
    """Open clients of either kind on the test's database, and with other addresses where they are given."""
    usual = {
        "database_url": database_url.render_as_string(hide_password=False),
        "redis_url": redis_server.url(),
        "queue": uuid4().hex,
        "default_provider": "openai",
    }
    with ExitStack() as stack:

        def open_one(**settings: str) -> Any:
            if request.param == "Turnkeeper":
                return stack.enter_context(Turnkeeper(**(usual | settings)))
            runner = stack.enter_context(asyncio.Runner())
            keeper = Blocking(AsyncTurnkeeper(**(usual | settings)), runner)
            stack.callback(keeper.close)
            return keeper

        yield open_one


@pytest.fixture
def until() -> Callable[[Callable[[], T]], T]:
    """Wait for a condition."""
    return wait_for


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads for what happens at the same time."""
    with ThreadPoolExecutor(8) as executor:
        yield executor
