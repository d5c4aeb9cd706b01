"""One delivery of a turn against real PostgreSQL, with a provider that misbehaves as no wire format allows."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from redis.asyncio import Redis as AsyncRedis
from sqlalchemy import URL, Connection, update

from turnkeeper import turns
from turnkeeper.messages import Message, Text
from turnkeeper.tables import messages
from turnkeeper_ops.services.redis import Redis
from turnkeeper_worker import upkeep
from turnkeeper_worker.config import ProviderConfig, Settings
from turnkeeper_worker.cooldown import Cooldowns
from turnkeeper_worker.database import Database
from turnkeeper_worker.leases import Leases
from turnkeeper_worker.live import Live
from turnkeeper_worker.metrics import Metrics
from turnkeeper_worker.observer import Observer
from turnkeeper_worker.outcomes import Completed, Dropped, GaveUp, Outcome
from turnkeeper_worker.providers import Answer, Call, CalledOff, Listener, Result
from turnkeeper_worker.resources import Resources
from turnkeeper_worker.switchboard import Switchboard
from turnkeeper_worker.tools import Toolbox
from turnkeeper_worker.turn import TurnRunner
from turnkeeper_worker.upkeep import Held, Identity

if TYPE_CHECKING:
    from uuid import UUID

    from .conftest import Stage

Behaviour = Callable[[Call, Listener], Result]


class Scripted:
    """A provider without a network."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour

    async def call(self, call: Call, listener: Listener) -> Result:
        await asyncio.sleep(0)
        return self._behaviour(call, listener)

    async def call_off(self, response_id: str) -> CalledOff:
        del response_id
        return CalledOff(is_over=True)

    async def close(self) -> None:
        pass


def answer(text: str) -> Answer:
    said = (Message(role="assistant", parts=(Text(text=text),)),)
    return Answer(messages=said, response_id=None, model=None, usage=None, finish="stop", can_anchor=False)


def crash(_call: Call, _listener: Listener) -> Result:
    raise RuntimeError("the adapter has a bug")


async def run_once(
    url: URL,
    redis_url: str,
    worker: "UUID",
    turn_id: "UUID",
    behaviour: Behaviour,
    metrics: Metrics | None = None,
) -> Outcome:
    database, redis = Database.at(url), AsyncRedis.from_url(redis_url)
    seconds = timedelta(seconds=1)

    async def beat() -> list[Held]:
        return []

    async def give_back(_turn_id: "UUID", _epoch: int) -> None:
        pass

    leases = Leases(ttl=3 * seconds, every=seconds, beat=beat, give_back=give_back)
    has = Resources(
        settings=Settings(),
        me=Identity(id=worker, host="here", pid=1, concurrency=1),
        database=database,
        upkeep_database=database,
        redis=redis,
        # Its provider has no network, so nobody hears the head of a response.
        cooldowns=Cooldowns(redis=redis, off={"openai"}),
        configs={"openai": ProviderConfig(base_url="http://openai.invalid")},
        keys={},
        providers={"openai": Scripted(behaviour)},
        toolbox=Toolbox(),
        switchboard=Switchboard(),
        observer=Observer(metrics or Metrics({})),
        rng=random.Random(1),
    )
    live = Live(redis, coalesce=seconds, ttl=60 * seconds, max_events=100)
    runner = TurnRunner.build(has, live=live, call_up=lambda: None, show=lambda _turn_id, _label: None)
    try:
        with leases.hold(turn_id) as lease:
            assert lease is not None
            return await runner.run(lease)
    finally:
        await redis.aclose()
        await database.close()


async def test_an_answer_that_cannot_be_stored_fails_the_turn_instead_of_being_paid_for_again(
    stage: "Stage", database_url: URL, redis_server: Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    turn_id, worker = stage.enqueue(model="m").id, stage.worker()

    outcome = await run_once(
        database_url, redis_server.url(0), worker, turn_id, lambda _call, _ear: answer("a secret\0plan")
    )

    assert isinstance(outcome, GaveUp)
    turn = stage.row(turn_id)
    assert turn["state"] == "failed"
    assert "secret" not in str(turn["error"])
    assert "secret" not in str(stage.attempts(turn_id))
    logged = capsys.readouterr()
    assert "turn.crashed" in logged.out + logged.err
    assert "secret" not in logged.out + logged.err
    assert stage.beat(worker) == []


async def test_a_bug_in_an_adapter_fails_the_turn_and_not_the_worker(
    stage: "Stage", database_url: URL, redis_server: Redis
) -> None:
    turn_id, worker = stage.enqueue(model="m").id, stage.worker()

    outcome = await run_once(database_url, redis_server.url(0), worker, turn_id, crash)

    assert isinstance(outcome, GaveUp)
    assert stage.row(turn_id)["state"] == "failed"


async def test_a_history_that_makes_no_sense_fails_the_turn_instead_of_being_claimed_for_ever(
    stage: "Stage", database_url: URL, redis_server: Redis
) -> None:
    turn_id, worker = stage.enqueue(model="m").id, stage.worker()
    stage.do(Connection.execute, update(messages).values(parts=[{"type": "song"}]))

    outcome = await run_once(database_url, redis_server.url(0), worker, turn_id, crash)

    assert isinstance(outcome, GaveUp)
    assert stage.row(turn_id)["state"] == "failed"
    assert stage.beat(worker) == []


@pytest.mark.parametrize("rescued", [False, True], ids=["in time", "after the turn was taken away"])
async def test_an_answer_counts_only_while_the_turn_is_ours(
    stage: "Stage", database_url: URL, redis_server: Redis, rescued: bool
) -> None:
    turn_id, worker = stage.enqueue(model="m").id, stage.worker()

    def say(_call: Call, _listener: Listener) -> Result:
        if rescued:
            stage.silence(worker)
            stage.do(upkeep.rescue, timedelta(seconds=15))
        return answer("Hello")

    outcome = await run_once(database_url, redis_server.url(0), worker, turn_id, say)

    assert isinstance(outcome, Dropped if rescued else Completed)
    assert stage.row(turn_id)["state"] == ("queued" if rescued else "completed")


def counted(metrics: Metrics) -> dict[tuple[str, str], float]:
    """Return the counters that moved, by name and last label."""
    samples = (one for family in metrics.registry.collect() for one in family.samples)
    return {
        (one.name.removeprefix("turnkeeper_"), list(one.labels.values())[-1] if one.labels else ""): one.value
        for one in samples
        if one.name.startswith("turnkeeper_") and one.name.endswith("_total") and one.value
    }


async def test_a_turn_that_was_taken_away_counts_as_a_lost_lease_and_nothing_else(
    stage: "Stage", database_url: URL, redis_server: Redis
) -> None:
    turn_id, worker, metrics = stage.enqueue(model="m").id, stage.worker(), Metrics({"openai": ("m",)})

    def say(_call: Call, _listener: Listener) -> Result:
        stage.silence(worker)
        stage.do(upkeep.rescue, timedelta(seconds=15))
        return answer("Too late.")

    await run_once(database_url, redis_server.url(0), worker, turn_id, say, metrics)

    assert counted(metrics) == {("leases_lost_total", ""): 1}


async def test_a_message_for_a_turn_that_is_not_due_counts_as_nothing(
    stage: "Stage", database_url: URL, redis_server: Redis
) -> None:
    metrics = Metrics({"openai": ("m",)})
    held = stage.claim(stage.enqueue(model="m").id)

    outcome = await run_once(database_url, redis_server.url(0), stage.worker(), held.id, crash, metrics)

    assert isinstance(outcome, Dropped)
    assert counted(metrics) == {}


async def test_tokens_that_no_call_can_cost_are_not_counted_and_cost_no_turn(
    stage: "Stage", database_url: URL, redis_server: Redis
) -> None:
    turn_id, worker, metrics = stage.enqueue(model="m").id, stage.worker(), Metrics({"openai": ("m",)})
    usage = {"input_tokens": -5, "output_tokens": 10**400, "cached_tokens": 7}

    outcome = await run_once(
        *(database_url, redis_server.url(0), worker, turn_id),
        lambda _call, _ear: replace(answer("Hello"), usage=usage),
        metrics,
    )

    assert isinstance(outcome, Completed)
    assert counted(metrics) == {
        ("turns_total", "completed"): 1,
        ("attempts_total", "completed"): 1,
        ("tokens_total", "cached"): 7,
    }


async def test_a_crash_counts_as_the_failure_that_it_is(
    stage: "Stage", database_url: URL, redis_server: Redis
) -> None:
    turn_id, worker, metrics = stage.enqueue(model="m").id, stage.worker(), Metrics({"openai": ("m",)})

    await run_once(database_url, redis_server.url(0), worker, turn_id, crash, metrics)

    assert counted(metrics) == {
        ("turns_total", "failed"): 1,
        ("attempts_total", "failed"): 1,
        ("terminal_failures_total", "generic"): 1,
    }


def test_turns_of_a_worker_that_is_gone_are_counted_as_they_are_freed(stage: "Stage") -> None:
    metrics = Metrics({"openai": ("m",)})
    observer, worker = Observer(metrics), stage.worker()
    again, cancelled = (stage.claim(stage.enqueue(model="m").id, worker) for _ in range(2))
    stage.do(turns.cancel, cancelled.id)
    stage.silence(worker)

    for orphan in stage.do(upkeep.rescue, timedelta(seconds=15)):
        observer.rescued(orphan)

    assert again.id != cancelled.id
    assert counted(metrics) == {
        ("rescues_total", "queued"): 1,
        ("rescues_total", "cancelled"): 1,
        ("attempts_total", "lost"): 2,
        ("turns_total", "cancelled"): 1,
    }
