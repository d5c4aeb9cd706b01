"""Real servers for the tests, started once: PostgreSQL with a migrated template, and Redis."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import URL, Connection, Engine, create_engine, make_url

import turnkeeper_migrations
from turnkeeper_ops.services.postgres import Postgres
from turnkeeper_ops.services.redis import Redis

TEMPLATE = "turnkeeper_template"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the settings and the keys of whoever runs the tests out of them."""
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TURNKEEPER_CONFIG", str(tmp_path / "turnkeeper.toml"))


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A PostgreSQL that forgets about durability."""
    with Postgres(tmp_path_factory.mktemp("postgres") / "data", durable=False) as server:
        server.create_database(TEMPLATE)
        turnkeeper_migrations.upgrade(_driver(server.url(TEMPLATE)))
        yield server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A Redis that keeps nothing on disk."""
    with Redis(tmp_path_factory.mktemp("redis") / "data", durable=False) as server:
        yield server


@pytest.fixture
def database_url(postgres: Postgres) -> URL:
    """A fresh, migrated database."""
    return new_database(postgres)


@pytest.fixture
def engine(database_url: URL) -> Iterator[Engine]:
    """An engine on a fresh, migrated database."""
    engine = create_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    """An open transaction that is rolled back."""
    with engine.connect() as connection:
        yield connection


def new_database(server: Postgres) -> URL:
    """Copy the migrated template: a matter of milliseconds, where the migrations take longer."""
    name = f"test_{uuid4().hex}"
    server.create_database(name, template=TEMPLATE)
    return _driver(server.url(name))


def _driver(url: str) -> URL:
    return make_url(url).set(drivername="postgresql+psycopg")
