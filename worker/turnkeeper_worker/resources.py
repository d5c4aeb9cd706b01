"""What a worker process has: its name, its connections, its providers and tools, and what looks on.

Whatever runs turns is put together from these, in `engine`; nothing here runs by itself.
"""

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from turnkeeper_worker import upkeep
from turnkeeper_worker.config import ProviderConfig, Settings
from turnkeeper_worker.cooldown import Cooldowns
from turnkeeper_worker.database import Database
from turnkeeper_worker.metrics import Metrics, serving
from turnkeeper_worker.observer import Observer
from turnkeeper_worker.providers import Provider, open_providers
from turnkeeper_worker.switchboard import Switchboard
from turnkeeper_worker.telemetry import get_logger
from turnkeeper_worker.tools import Toolbox, load_toolbox
from turnkeeper_worker.tracing import open_tracer
from turnkeeper_worker.upkeep import Identity

log = get_logger(__name__)

REDIS_TIMEOUT_SECONDS = 5
COOLDOWN_TIMEOUT_SECONDS = 1
"""No turn waits so long; it is for connections that hang."""
UPKEEP_CONNECTIONS = 5
"""The heartbeat's, the rescue loop's, and those of the call-offs, of counting and of housekeeping."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Everything that the parts of one process share.  Belongs to one event loop."""

    settings: Settings
    me: Identity
    """As which the process is registered."""
    database: Database
    upkeep_database: Database
    """Hundreds of claims may wait for a connection; a heartbeat that waits behind them costs all their leases."""
    redis: Redis
    cooldowns: Cooldowns
    configs: Mapping[str, ProviderConfig]
    keys: Mapping[str, str]
    """A fingerprint of each provider's API key."""
    providers: Mapping[str, Provider]
    toolbox: Toolbox
    switchboard: Switchboard
    observer: Observer
    rng: random.Random
    """For jitter, not for secrets."""


@asynccontextmanager
async def open_resources(settings: Settings) -> AsyncIterator[Resources]:
    """Connect and register the worker; take it all apart in reverse."""
    toolbox, switchboard = load_toolbox(), Switchboard()
    configs = settings.all_providers(os.environ)
    me = _introduce(settings, configs)
    async with (
        _open_database(settings) as database,
        _open_database(settings, connections=UPKEEP_CONNECTIONS) as upkeep_database,
        _open_observer(settings, configs) as observer,
        _signed_on(upkeep_database, me),
        _open_redis(settings) as redis,
        _open_cooldowns(settings, configs) as cooldowns,
        _open_providers(configs) as providers,
    ):
        await switchboard.look(upkeep_database)
        yield Resources(
            settings=settings,
            me=me,
            database=database,
            upkeep_database=upkeep_database,
            redis=redis,
            cooldowns=cooldowns,
            configs=configs,
            keys={name: config.credential(os.environ) for name, config in configs.items()},
            providers=providers,
            toolbox=toolbox,
            switchboard=switchboard,
            observer=observer,
            rng=random.Random(),  # noqa: S311 - as its field says
        )


def _introduce(settings: Settings, configs: Mapping[str, ProviderConfig]) -> Identity:
    return Identity(
        id=uuid4(),
        host=socket.gethostname(),
        pid=os.getpid(),
        concurrency=settings.concurrency,
        providers=tuple(configs),
    )


@asynccontextmanager
async def _open_database(settings: Settings, **more: Any) -> AsyncIterator[Database]:
    database = Database.at(settings.database, **more)
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def _open_observer(settings: Settings, configs: Mapping[str, ProviderConfig]) -> AsyncIterator[Observer]:
    """Build what looks on, and open its page of metrics."""
    models = {name: tuple(filter(None, (one.model, *one.models))) for name, one in configs.items()}
    metrics = Metrics(models, {name: one.model for name, one in configs.items()})
    metrics.concurrency.set(settings.concurrency)
    conventions = {name: one.api.partition("-")[0] for name, one in configs.items()}
    with serving(metrics, settings.metrics_address, settings.metrics_port):
        tracer = open_tracer(os.environ)
        try:
            yield Observer(metrics, tracer=tracer, conventions=conventions)
        finally:
            await asyncio.to_thread(tracer.close)


@asynccontextmanager
async def _signed_on(database: Database, me: Identity) -> AsyncIterator[None]:
    """Be known as a worker meanwhile."""
    await database.once(upkeep.beat, me)
    try:
        yield
    finally:
        try:
            await database.once(upkeep.sign_off, me.id)
        except Exception as error:  # noqa: BLE001 - the process ends; the lease runs out by itself
            log.warning("worker.sign_off_failed", error=str(error))


@asynccontextmanager
async def _open_redis(
    settings: Settings, seconds: int = REDIS_TIMEOUT_SECONDS, **more: Any
) -> AsyncIterator[Redis]:
    url = settings.redis_url.get_secret_value()
    redis = Redis.from_url(url, socket_timeout=seconds * 2, socket_connect_timeout=seconds, **more)
    try:
        yield redis
    finally:
        with suppress(RedisError, OSError):
            await redis.aclose()


@asynccontextmanager
async def _open_cooldowns(settings: Settings, configs: Mapping[str, ProviderConfig]) -> AsyncIterator[Cooldowns]:
    off = {name for name, config in configs.items() if not config.cooldown}
    # A client of its own: nobody waits for it as long as for live events.
    async with _open_redis(settings, COOLDOWN_TIMEOUT_SECONDS, retry=Retry(NoBackoff(), 0)) as redis:
        cooldowns = Cooldowns(redis=redis, off=off)
        try:
            yield cooldowns
        finally:
            await cooldowns.close()


@asynccontextmanager
async def _open_providers(configs: Mapping[str, ProviderConfig]) -> AsyncIterator[Mapping[str, Provider]]:
    async with AsyncExitStack() as stack:
        providers = open_providers(configs, os.environ)
        for provider in providers.values():
            stack.push_async_callback(provider.close)
        yield providers
