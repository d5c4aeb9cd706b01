"""Everything that lives on a worker's event loop, put together and taken apart again."""

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
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
from turnkeeper_worker.config import ProviderConfig, Settings
from turnkeeper_worker.cooldown import Cooldowns
from turnkeeper_worker.database import Database
from turnkeeper_worker.leases import Leases, Stop
from turnkeeper_worker.live import Live
from turnkeeper_worker.metrics import Metrics, serving
from turnkeeper_worker.model_step import Show
from turnkeeper_worker.observer import Observer
from turnkeeper_worker.outcomes import Dropped, HandedBack, Outcome
from turnkeeper_worker.providers import Provider, open_providers
from turnkeeper_worker.rescue import Rescuer
from turnkeeper_worker.switchboard import Switchboard
from turnkeeper_worker.telemetry import get_logger
from turnkeeper_worker.tools import Toolbox, load_toolbox
from turnkeeper_worker.tracing import open_tracer
from turnkeeper_worker.turn import TurnRunner
from turnkeeper_worker.upkeep import Due, Held, Identity
from turnkeeper_worker.usher import Usher

log = get_logger(__name__)

REDIS_TIMEOUT_SECONDS = 5
UPKEEP_CONNECTIONS = 5
"""The heartbeat's, the rescue loop's, and those of the call-offs, of counting and of housekeeping."""
COOLDOWN_TIMEOUT_SECONDS = 1
"""No turn waits so long; it is for connections that hang."""
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
    """Connect, register the worker and start its loops; take it all apart in reverse."""
    toolbox = load_toolbox()
    configs = settings.all_providers(os.environ)
    me = Identity(
        id=uuid4(),
        host=socket.gethostname(),
        pid=os.getpid(),
        concurrency=settings.concurrency,
        providers=tuple(configs),
    )
    async with AsyncExitStack() as stack:
        database = Database.at(settings.database)
        stack.push_async_callback(database.close)
        # Hundreds of claims may wait for a connection; a heartbeat that waits behind them costs all their leases.
        upkeep_database = Database.at(settings.database, connections=UPKEEP_CONNECTIONS)
        stack.push_async_callback(upkeep_database.close)
        configs = settings.all_providers(os.environ)
        observer = _open_observer(stack, settings, configs)
        await upkeep_database.once(upkeep.beat, me)
        stack.push_async_callback(_sign_off, upkeep_database, me.id)
        redis = _open_redis(settings)
        stack.push_async_callback(_close_redis, redis)
        # A client of its own: nobody waits for it as long as for live events.
        cooldown_redis = _open_redis(settings, COOLDOWN_TIMEOUT_SECONDS, retry=Retry(NoBackoff(), 0))
        stack.push_async_callback(_close_redis, cooldown_redis)
        cooldowns = Cooldowns(
            redis=cooldown_redis, off={name for name, config in configs.items() if not config.cooldown}
        )
        stack.push_async_callback(cooldowns.close)
        providers = open_providers(configs, os.environ)
        for provider in providers.values():
            stack.push_async_callback(provider.close)
        switchboard = Switchboard()
        await switchboard.look(upkeep_database)
        engine = _assemble(
            settings,
            broker,
            me,
            database,
            upkeep_database,
            redis,
            configs,
            providers,
            toolbox,
            switchboard,
            cooldowns,
            observer,
        )
        stack.push_async_callback(engine.live.flush)
        tasks = [asyncio.create_task(_keep_going(loop)) for loop in engine.loops()]
        stack.push_async_callback(_end, tasks)
        yield engine


def _assemble(
    settings: Settings,
    broker: Broker,
    me: Identity,
    database: Database,
    upkeep_database: Database,
    redis: Redis,
    configs: Mapping[str, ProviderConfig],
    providers: Mapping[str, Provider],
    toolbox: Toolbox,
    switchboard: Switchboard,
    cooldowns: Cooldowns,
    observer: Observer,
) -> Engine:
    rng = random.Random()  # noqa: S311 - for jitter, not for secrets
    ttl = timedelta(seconds=settings.lease_ttl_seconds)

    async def beat() -> list[Held]:
        return await upkeep_database.once(upkeep.beat, me)

    async def give_back(turn_id: UUID, epoch: int) -> None:
        rescuer.announce(await upkeep_database.once(upkeep.give_back, turn_id, epoch))

    def lost(turn_id: UUID) -> None:
        live.unsay(turn_id)

    leases = Leases(
        ttl=ttl, every=timedelta(seconds=settings.beat_seconds), beat=beat, give_back=give_back, lost=lost
    )
    live = Live(
        redis,
        coalesce=timedelta(milliseconds=settings.coalesce_ms),
        ttl=timedelta(seconds=settings.events_ttl_seconds),
        max_events=settings.events_max,
        may_speak=leases.are_sure,
        dropped=observer.metrics.live_events_dropped.inc,
    )
    _show_leases(observer.metrics, leases)

    async def ring(due: list[Due]) -> None:
        try:
            await asyncio.to_thread(broker.ring, due)
        except BrokerUnavailable:
            await upkeep_database.once(upkeep.forget_rings, [one.id for one in due])
            raise

    rescuer = Rescuer(
        database=upkeep_database,
        live=live,
        ring=ring,
        queue_length=lambda: asyncio.to_thread(broker.queue_length),
        holds=leases.turn_ids,
        may_judge=leases.may_judge,
        providers=providers,
        switchboard=switchboard,
        redis=redis,
        lease_ttl=ttl,
        every=timedelta(seconds=settings.rescue_seconds),
        tidy_every=timedelta(seconds=settings.housekeeping_seconds),
        retention=timedelta(days=settings.retention_days) or None,
        rng=rng,
        observer=observer,
    )

    usher = Usher(upkeep_database, ring)
    runner = TurnRunner.build(
        worker_id=me.id,
        database=database,
        live=live,
        providers=providers,
        configs=configs,
        keys={name: config.credential(os.environ) for name, config in configs.items()},
        toolbox=toolbox,
        switchboard=switchboard,
        cooldowns=cooldowns,
        settings=settings,
        call_up=usher.ask,
        show=broker.show,
        rng=rng,
        observer=observer,
    )
    return Engine(
        database=database, redis=redis, live=live, leases=leases, runner=runner, rescuer=rescuer, usher=usher
    )


def _open_observer(stack: AsyncExitStack, settings: Settings, configs: Mapping[str, ProviderConfig]) -> Observer:
    """Build what looks on, and open its page of metrics."""
    models = {name: tuple(filter(None, (one.model, *one.models))) for name, one in configs.items()}
    metrics = Metrics(models, {name: one.model for name, one in configs.items()})
    metrics.concurrency.set(settings.concurrency)
    stack.enter_context(serving(metrics, settings.metrics_address, settings.metrics_port))
    tracer = open_tracer(os.environ)
    stack.push_async_callback(asyncio.to_thread, tracer.close)
    conventions = {name: one.api.partition("-")[0] for name, one in configs.items()}
    return Observer(metrics, tracer=tracer, conventions=conventions)


def _show_leases(metrics: Metrics, leases: Leases) -> None:
    """Let metrics show the leases as they are when Prometheus asks."""
    metrics.in_flight.set_function(lambda: len(leases))
    metrics.held.set_function(leases.count_claimed)
    metrics.lease_age.set_function(leases.age)


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


async def _sign_off(database: Database, worker_id: UUID) -> None:
    try:
        await database.once(upkeep.sign_off, worker_id)
    except Exception as error:  # noqa: BLE001 - the process ends; the lease runs out by itself
        log.warning("worker.sign_off_failed", error=str(error))


def _open_redis(settings: Settings, timeout: int = REDIS_TIMEOUT_SECONDS, **more: Any) -> Redis:
    url = settings.redis_url.get_secret_value()
    return Redis.from_url(url, socket_timeout=timeout * 2, socket_connect_timeout=timeout, **more)


async def _close_redis(redis: Redis) -> None:
    with suppress(RedisError, OSError):
        await redis.aclose()
