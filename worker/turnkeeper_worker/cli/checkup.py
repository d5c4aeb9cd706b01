"""What `turnkeeper check` looks at: each server answers, the schema fits, a worker is alive."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta

import redis
from kombu.connection import Connection as BrokerConnection
from sqlalchemy import Connection, create_engine, func, select
from sqlalchemy.pool import NullPool

import turnkeeper_migrations
from turnkeeper.database import explaining_database_errors
from turnkeeper.doorbell import transport_options
from turnkeeper.settings import address_of
from turnkeeper.tables import workers
from turnkeeper_worker.config import Settings

TIMEOUT_SECONDS = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    ok: bool
    says: str


class Unwell(Exception):
    """Something answers, but not as it should."""


def examine(settings: Settings) -> list[Finding]:
    """Look at everything; a failure of one thing does not keep the others from being looked at."""
    looks: list[tuple[str, Callable[[Settings], str]]] = [
        ("database", _look_at_database),
        ("workers", _look_at_workers),
        ("live events", _look_at_redis),
        ("broker", _look_at_broker),
        ("providers", _look_at_providers),
    ]
    return [_look(what, look, settings) for what, look in looks]


def _look(what: str, look: Callable[[Settings], str], settings: Settings) -> Finding:
    try:
        return Finding(what, ok=True, says=look(settings))
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it is what we are asked for
        return Finding(what, ok=False, says=" ".join(str(error).split()))


def _look_at_database(settings: Settings) -> str:
    with _connected(settings) as connection:
        wrong = turnkeeper_migrations.mismatch(connection)
    if wrong is not None:
        raise Unwell(wrong)
    return f"the schema is at {turnkeeper_migrations.head_revision()}"


def _look_at_workers(settings: Settings) -> str:
    is_alive = workers.c.heartbeat_at > func.now() - timedelta(seconds=settings.lease_ttl_seconds)
    with _connected(settings) as connection:
        alive = connection.scalar(select(func.count()).select_from(workers).where(is_alive))
    if not alive:
        raise Unwell("none is alive; start `turnkeeper worker`")
    return f"{alive} alive"


def _look_at_redis(settings: Settings) -> str:
    url = settings.redis_url.get_secret_value()
    with closing(redis.Redis.from_url(url, socket_connect_timeout=TIMEOUT_SECONDS)) as client:
        client.ping()
    return f"Redis at {address_of(url)} answers"


def _look_at_broker(settings: Settings) -> str:
    with BrokerConnection(settings.broker, transport_options=transport_options(settings.broker)) as broker:
        broker.ensure_connection(max_retries=1, timeout=TIMEOUT_SECONDS)
    return f"the broker at {address_of(settings.broker)} answers"


def _look_at_providers(settings: Settings) -> str:
    configured = settings.all_providers(os.environ)
    if not configured:
        raise Unwell("none is configured; set OPENAI_API_KEY, or add [providers.NAME] to turnkeeper.toml")
    missing = [one.api_key_env for one in configured.values() if one.api_key_env and not one.api_key(os.environ)]
    if missing:
        raise Unwell(f"{', '.join(sorted(filter(None, missing)))} is not set")
    return ", ".join(sorted(configured))


@contextmanager
def _connected(settings: Settings) -> Iterator[Connection]:
    engine = create_engine(
        settings.database, poolclass=NullPool, connect_args={"connect_timeout": TIMEOUT_SECONDS}
    )
    with explaining_database_errors(settings.database), engine.connect() as connection:
        yield connection
