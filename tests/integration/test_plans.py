"""No statement on the path of a turn looks through a whole table: on a filled database each one has its index."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, create_engine, event, make_url, text

from turnkeeper import turns, views
from turnkeeper.follow import stored_events
from turnkeeper.messages import ToolCall, ToolResult
from turnkeeper.requests import TurnRequest
from turnkeeper_ops.services.postgres import Postgres
from turnkeeper_worker import ledger, store, upkeep
from turnkeeper_worker.config import ProviderConfig
from turnkeeper_worker.planner import Planner
from turnkeeper_worker.tools import Toolbox
from turnkeeper_worker.upkeep import Identity

if TYPE_CHECKING:
    from uuid import UUID

    from .conftest import Stage

CHATS = 10_000
TURNS_PER_CHAT = 12
BIG = {"turns", "messages", "attempts", "tool_runs"}
DEAREST = 1_500.0
"""In the planner's units: less than half of what the smallest of these tables costs to look through."""
PLANNED = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")
TTL = timedelta(seconds=15)

_FILL = """
INSERT INTO workers (id, host, pid, concurrency) VALUES (md5('worker')::uuid, 'there', 1, 200);
INSERT INTO chats (id, owner, provider, turn_count)
SELECT md5('chat ' || chat)::uuid, 'owner ' || chat / 10, 'openai', {per_chat}
FROM generate_series(1, {chats}) AS chat;
INSERT INTO turns (id, chat_id, seq, owner, state, epoch, attempt, worker_id, available_at, rung_at, provider,
                   request_digest, idempotency_key, created_at, started_at, finished_at)
SELECT md5(chat || ' ' || seq)::uuid, md5('chat ' || chat)::uuid, seq, 'owner ' || chat / 10, state, 1, 1,
       CASE WHEN state = 'running' THEN md5('worker')::uuid END,
       CASE WHEN state = 'queued' THEN now() END, CASE WHEN state = 'queued' AND chat % 2 = 0 THEN now() END,
       'openai', md5(chat || ' ' || seq), chat || ' ' || seq, at, at, CASE WHEN state = 'completed' THEN at END
FROM generate_series(1, {chats}) AS chat, generate_series(1, {per_chat}) AS seq,
     LATERAL (SELECT now() - (random() * 80) * interval '1 day' AS at,
                     CASE WHEN seq < {per_chat} OR chat % 20 > 1 THEN 'completed'
                          WHEN chat % 20 = 1 THEN 'running' ELSE 'queued' END AS state) AS drawn;
INSERT INTO messages (turn_id, position, chat_id, turn_seq, role, parts, created_at)
SELECT id, position, chat_id, seq, (ARRAY['user', 'assistant'])[position + 1],
       jsonb_build_array(jsonb_build_object('type', 'text', 'text', repeat('words ', 20))), created_at
FROM turns, generate_series(0, 1) AS position;
INSERT INTO attempts (turn_id, step, number, epoch, worker_id, provider, chained, outcome, started_at, finished_at)
SELECT id, 1, 1, 1, md5('worker')::uuid, 'openai', true, 'completed', created_at, created_at FROM turns;
INSERT INTO tool_runs (turn_id, step, call_id, number, name, arguments, idempotent, state, epoch, result,
                       started_at, finished_at)
SELECT id, 1, 'call', 1, 'look', '{{}}', true, 'finished', 1, '{{}}', created_at, created_at FROM turns;
"""


@dataclass(frozen=True)
class Said:
    """A statement as it went to the driver."""

    statement: str
    parameters: Any


@contextmanager
def overheard(engine: Engine) -> Iterator[list[Said]]:
    """Note every different statement that goes through *engine*."""
    heard: dict[str, Said] = {}

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.lstrip().startswith(PLANNED):
            heard.setdefault(statement, Said(statement, parameters))

    found: list[Said] = []
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", note)
        found += heard.values()


@pytest.fixture(scope="module")
def engine(postgres: Postgres) -> Iterator[Engine]:
    """An engine on a database that holds so much that the planner cares."""
    name = f"test_{uuid4().hex}"
    postgres.create_database(name, template="turnkeeper_template")
    engine = create_engine(make_url(postgres.url(name)).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        connection.exec_driver_sql(_FILL.format(chats=CHATS, per_chat=TURNS_PER_CHAT).replace("%", "%%"))
        connection.exec_driver_sql("ANALYZE")
    yield engine
    engine.dispose()


def _plan(stage: "Stage", turn: store.Claimed) -> store.Claimed:
    config = ProviderConfig(base_url="https://api.openai.com/v1", model="m")
    planner = Planner(configs={"openai": config}, keys={"openai": "abc"}, toolbox=Toolbox())
    return stage.do(planner.plan_anew, turn).turn


def _a_turn(stage: "Stage") -> None:
    """Run a turn that leaves an anchor, then one that is chained to it."""
    first = stage.enqueue(model="m")
    stage.complete(_plan(stage, stage.claim(first.id)))
    second = stage.enqueue(chat_id=str(first.chat_id), model="m")
    turn = _plan(stage, stage.claim(second.id))
    assert turn.anchor is not None
    stage.complete(turn)


def _a_turn_with_tools(stage: "Stage") -> None:
    call = ToolCall(call_id="c", name="look", arguments="{}")
    turn = stage.call_tools(stage.claim(stage.enqueue().id), call)
    stage.do(ledger.take_over, turn)
    stage.do(ledger.close_run, turn, ToolResult(call_id="c", output="seen"))
    stage.do(ledger.calls_of_step, turn)
    following = stage.tell(turn, ToolResult(call_id="c", output="seen"))
    stage.complete(_plan(stage, following))


def _a_retry(stage: "Stage") -> None:
    turn_id = stage.enqueue().id
    stage.retry(stage.claim(turn_id), seconds=0)
    stage.fail(stage.claim(turn_id))


def _a_producer(stage: "Stage") -> None:
    key = stage.enqueue(idempotency_key="k", owner="o")
    assert not stage.enqueue(idempotency_key="k", owner="o").is_new
    stage.enqueue(chat_id=str(key.chat_id), on_busy="interrupt", owner="o")
    stage.do(turns.enqueue, TurnRequest.parse({"text": "Ho", "edits": str(key.id), "owner": "o"}))
    waiting = stage.enqueue()
    stage.do(turns.cancel, waiting.id)
    running = stage.enqueue()
    stage.claim(running.id)
    stage.do(turns.cancel, running.id)


def _a_follower(stage: "Stage") -> None:
    turn_id: UUID = stage.enqueue().id
    assert stage.do(stored_events, turn_id) == []
    stage.complete(stage.claim(turn_id))
    assert stage.do(stored_events, turn_id)
    stage.do(views.show, turn_id)


def _the_rescue_loop(stage: "Stage") -> None:
    worker = stage.worker()
    stage.claim(stage.enqueue().id, worker)
    stage.silence(worker)
    assert stage.do(upkeep.rescue, TTL)
    stage.do(partial(upkeep.take_due, forgotten_after=timedelta(seconds=3), limit=100))
    stage.do(upkeep.call_up)
    stage.do(upkeep.wake_stuck)
    stage.do(upkeep.find_abandoned)
    stage.do(upkeep.beat, Identity(id=worker, host="here", pid=1, concurrency=1))


SCENES: Mapping[str, Callable[["Stage"], object]] = {
    "a turn": _a_turn,
    "a turn with tools": _a_turn_with_tools,
    "a retry": _a_retry,
    "a producer": _a_producer,
    "a follower": _a_follower,
}


@pytest.mark.parametrize("play", SCENES.values(), ids=SCENES.keys())
def test_no_statement_looks_through_a_whole_table(
    stage: "Stage", engine: Engine, play: Callable[["Stage"], object]
) -> None:
    with overheard(engine) as heard:
        play(stage)

    assert len(heard) > 1
    assert [wrong for one in heard for wrong in complaints(engine, one)] == []


def test_the_rescue_loop_looks_through_no_whole_table(stage: "Stage", engine: Engine) -> None:
    with overheard(engine) as heard:
        _the_rescue_loop(stage)

    assert len(heard) > 1
    # Its statements take up hundreds of turns at a time, and may cost accordingly.
    assert [wrong for one in heard for wrong in complaints(engine, one, dearest=math.inf)] == []


def test_a_statement_without_an_index_would_be_found(engine: Engine) -> None:
    with overheard(engine) as heard, engine.connect() as connection:
        connection.execute(text("SELECT id FROM turns WHERE model = :model"), {"model": "m"}).all()

    assert [wrong for one in heard for wrong in complaints(engine, one)]


def complaints(engine: Engine, said: Said, *, dearest: float = DEAREST) -> Iterator[str]:
    """Tell what is wrong with the plan of a statement."""
    many = isinstance(said.parameters, list)
    parameters = said.parameters[0] if many else said.parameters
    with engine.connect() as connection:
        told = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {said.statement}", parameters).scalar_one()
    plan = (json.loads(told) if isinstance(told, str) else told)[0]["Plan"]
    for node in _nodes(plan):
        if node["Node Type"] == "Seq Scan" and node["Relation Name"] in BIG:
            yield f"looks through all of {node['Relation Name']}: {said.statement}"
    if plan["Total Cost"] > dearest:
        yield f"costs {plan['Total Cost']:.0f}: {said.statement}"


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)
