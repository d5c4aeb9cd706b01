"""Everything that lives on a worker's event loop, put together and taken apart again."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

import turnkeeper_migrations
from turnkeeper import turns
from turnkeeper.database import explaining_database_errors
from turnkeeper.events import TurnCancelled
from turnkeeper.exceptions import BrokerUnavailable, DatabaseUnavailable
from turnkeeper.keys import CANCEL_CHANNEL
from turnkeeper.requests import TurnRequest
from turnkeeper.turns import Cancelled, Enqueued
from turnkeeper_worker import upkeep
from turnkeeper_worker.config import Settings
from turnkeeper_worker.database import Database
from turnkeeper_worker.leases import GiveBack, Leases, Stop
from turnkeeper_worker.live import Live
from turnkeeper_worker.model_step import Show
from turnkeeper_worker.outcomes import Dropped, HandedBack, Outcome
from turnkeeper_worker.rescue import Rescuer
from turnkeeper_worker.resources import REDIS_TIMEOUT_SECONDS, Resources, open_resources
from turnkeeper_worker.telemetry import get_logger
from turnkeeper_worker.turn import TurnRunner
from turnkeeper_worker.upkeep import Due, Ring
from turnkeeper_worker.usher import Usher

log = get_logger(__name__)

DECLINED_FOR = timedelta(seconds=0.5)
"""How long a process that shuts down may still be sent messages."""
RESTART_SECONDS = 1.0
"""How long a loop that crashed rests before it goes on."""
CANCEL_AGAIN_SECONDS = 0.5
"""How long a loop may take to end before it is told again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """What the engine needs of Celery."""

    ring: Callable[[list[Due]], None]
    """Tells of due turns; blocks, so it is called in a thread."""
    queue_length: Callable[[], int]
    """Counts the messages; blocks as well."""
    show: Show
    """Shows in Flower what a turn is at; returns at once."""


@dataclass(slots=True, kw_only=True)
class Engine:
    """What a worker process does: run turns, accept turns, cancel turns, drain."""

    database: Database
    redis: Redis
    live: Live
    leases: Leases
    runner: TurnRunner
    rescuer: Rescuer
    usher: Usher
    is_draining: bool = False

    def loops(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        """Return what goes on for as long as the worker lives."""
        rescuer = self.rescuer
        rescues = rescuer.run, rescuer.run_call_offs, rescuer.run_counting, rescuer.run_housekeeping
        return self.live.run, self.leases.run, self.usher.run, *rescues, self.hear_cancels

    async def run(self, turn_id: UUID) -> Outcome:
        """Run one delivery of a turn."""
        if self.is_draining or not self.leases.are_sure():
            # What is claimed under a stale heartbeat is taken away again at once, and paid for twice.
            return HandedBack(attempt=0, delay=DECLINED_FOR)
        with self.leases.hold(turn_id) as lease:
            if lease is None:
                return Dropped("this worker runs it already")
            return await self.runner.run(lease)

    async def enqueue(self, request: TurnRequest, turn_id: UUID, trace_context: str | None) -> Enqueued:
        """Store a turn that came by message, and tell of those that had to stop for it."""
        enqueued = await self.database.surely(turns.enqueue, request, turn_id=turn_id, trace_context=trace_context)
        for stopped, epoch in enqueued.cancelled:
            self.live.say(TurnCancelled(turn_id=stopped, epoch=epoch))
        for running in enqueued.interrupted:
            await self._stop(running)
        return enqueued

    async def reject(self, turn_id: UUID, reason: str) -> None:
        """Keep the reason why a message is no turn."""
        await self.database.surely(upkeep.reject, turn_id, reason)

    async def cancel(self, turn_id: UUID) -> Cancelled:
        """Cancel a turn, wherever it is; without Redis, one that runs elsewhere stops within its worker's beat."""
        cancelled = await self.database.surely(turns.cancel, turn_id)
        if cancelled.changed:
            self.live.say(TurnCancelled(turn_id=turn_id, epoch=cancelled.epoch))
        await self._stop(turn_id)
        return cancelled

    async def _stop(self, turn_id: UUID) -> None:
        self.leases.stop(turn_id, Stop.CANCELLED)
        with suppress(RedisError, OSError):
            await self.redis.publish(CANCEL_CHANNEL, str(turn_id))

    def drain(self, seconds: float) -> None:
        """Hand back what still runs after *seconds*."""
        self.is_draining = seconds == 0
        asyncio.get_running_loop().call_later(seconds, self._hand_back)

    def _hand_back(self) -> None:
        self.is_draining = True
        if len(self.leases):
            log.info("turns.handed_back", turns=len(self.leases))
        self.leases.stop_all(Stop.HANDED_BACK)

    async def hear_cancels(self) -> None:
        """Stop turns as soon as somebody cancels them; without Redis the beat does it a little later."""
        async with self.redis.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe(CANCEL_CHANNEL)
            while True:
                message = await channel.get_message(timeout=REDIS_TIMEOUT_SECONDS)
                if message is not None:
                    self._hear_cancel(message["data"])

    def _hear_cancel(self, data: bytes) -> None:
        with suppress(ValueError):
            self.leases.stop(UUID(data.decode()), Stop.CANCELLED)


@asynccontextmanager
async def open_engine(settings: Settings, broker: Broker) -> AsyncIterator[Engine]:
    """Open what the worker has, put its parts together and start their loops; take it all apart in reverse."""
    async with open_resources(settings) as has, AsyncExitStack() as stack:
        engine = _assemble(has, broker)
        stack.push_async_callback(engine.live.flush)
        tasks = [asyncio.create_task(_keep_going(loop)) for loop in engine.loops()]
        stack.push_async_callback(_end, tasks)
        yield engine


def _assemble(has: Resources, broker: Broker) -> Engine:
    # What the leases lose concerns parts that need the leases themselves, and so are made after them.
    async def give_back(turn_id: UUID, epoch: int) -> None:
        rescuer.announce(await has.upkeep_database.once(upkeep.give_back, turn_id, epoch))

    def lost(turn_id: UUID) -> None:
        live.unsay(turn_id)

    ring = partial(_ring, broker, has.upkeep_database)
    leases = _make_leases(has, give_back, lost)
    live = _make_live(has, leases)
    rescuer = _make_rescuer(has, leases, live, broker, ring)
    usher = Usher(has.upkeep_database, ring)
    runner = TurnRunner.build(has, live=live, call_up=usher.ask, show=broker.show)
    return Engine(
        database=has.database,
        redis=has.redis,
        live=live,
        leases=leases,
        runner=runner,
        rescuer=rescuer,
        usher=usher,
    )


async def _ring(broker: Broker, database: Database, due: list[Due]) -> None:
    """Tell of due turns; what nobody could be told of is left to the rescue loops.  Raises BrokerUnavailable."""
    try:
        await asyncio.to_thread(broker.ring, due)
    except BrokerUnavailable:
        await database.once(upkeep.forget_rings, [one.id for one in due])
        raise


def _make_leases(has: Resources, give_back: GiveBack, lost: Callable[[UUID], None]) -> Leases:
    leases = Leases(
        ttl=timedelta(seconds=has.settings.lease_ttl_seconds),
        every=timedelta(seconds=has.settings.beat_seconds),
        beat=partial(has.upkeep_database.once, upkeep.beat, has.me),
        give_back=give_back,
        lost=lost,
    )
    # As they are when Prometheus asks.
    has.observer.metrics.in_flight.set_function(lambda: len(leases))
    has.observer.metrics.held.set_function(leases.count_claimed)
    has.observer.metrics.lease_age.set_function(leases.age)
    return leases


def _make_live(has: Resources, leases: Leases) -> Live:
    return Live(
        has.redis,
        coalesce=timedelta(milliseconds=has.settings.coalesce_ms),
        ttl=timedelta(seconds=has.settings.events_ttl_seconds),
        max_events=has.settings.events_max,
        may_speak=leases.are_sure,
        dropped=has.observer.metrics.live_events_dropped.inc,
    )


def _make_rescuer(has: Resources, leases: Leases, live: Live, broker: Broker, ring: Ring) -> Rescuer:
    return Rescuer(
        database=has.upkeep_database,
        live=live,
        ring=ring,
        queue_length=lambda: asyncio.to_thread(broker.queue_length),
        holds=leases.turn_ids,
        may_judge=leases.may_judge,
        providers=has.providers,
        switchboard=has.switchboard,
        redis=has.redis,
        lease_ttl=timedelta(seconds=has.settings.lease_ttl_seconds),
        every=timedelta(seconds=has.settings.rescue_seconds),
        tidy_every=timedelta(seconds=has.settings.housekeeping_seconds),
        retention=timedelta(days=has.settings.retention_days) or None,
        rng=has.rng,
        observer=has.observer,
    )


async def _keep_going(loop: Callable[[], Awaitable[None]]) -> None:
    """Run a loop for ever: one that crashes says so, rests, and goes on."""
    while True:
        try:
            await loop()
        except (RedisError, OSError, RuntimeError) as error:
            log.warning("loop.interrupted", loop=loop.__qualname__, error=str(error))
        except Exception:
            log.exception("loop.crashed", loop=loop.__qualname__)
        await asyncio.sleep(RESTART_SECONDS)


async def _end(tasks: "list[asyncio.Task[None]]") -> None:
    """Cancel until all are gone.

    Once is not enough: redis-py writes with `asyncio.wait_for`, which before Python 3.12 can lose a cancellation.
    """
    while alive := [task for task in tasks if not task.done()]:
        for task in alive:
            task.cancel()
        await asyncio.wait(alive, timeout=CANCEL_AGAIN_SECONDS)


def check_schema(settings: Settings) -> None:
    """Raise DatabaseUnavailable where PostgreSQL does not answer or its schema is not this version's."""
    engine = create_engine(settings.database, poolclass=NullPool)
    with explaining_database_errors(settings.database), engine.connect() as connection:
        wrong = turnkeeper_migrations.mismatch(connection)
    if wrong is not None:
        url = settings.database
        raise DatabaseUnavailable(f"{url.host}:{url.port or 5432}/{url.database}", wrong)
