"""The health check of a worker's container: a fresh heartbeat of this host, and nothing less."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Engine, create_engine, func, insert
from sqlalchemy.pool import NullPool

from turnkeeper.tables import metadata, workers
from turnkeeper_ops.services.postgres import Postgres

HERE = socket.gethostname()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("health")
    with Postgres(folder / "postgres", durable=False) as postgres:
        postgres.create_database("turnkeeper")
        yield postgres.url("turnkeeper")


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:", 1), poolclass=NullPool)
    metadata.create_all(engine)
    yield engine
    metadata.drop_all(engine)


def check(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "turnkeeper_ops.health"],
        env={**os.environ, "TURNKEEPER_DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )


def worker(engine: Engine, *, host: str, age: timedelta) -> None:
    with engine.begin() as connection:
        values = {"id": uuid4(), "host": host, "pid": 1, "concurrency": 1}
        connection.execute(insert(workers).values(**values, heartbeat_at=func.now() - age))


def test_a_worker_that_renews_its_lease_is_healthy(url: str, engine: Engine) -> None:
    worker(engine, host=HERE, age=timedelta(seconds=5))

    assert check(url).returncode == 0


@pytest.mark.parametrize(
    ("host", "age"),
    [
        pytest.param(HERE, timedelta(minutes=1), id="it stopped renewing"),
        pytest.param("elsewhere", timedelta(seconds=5), id="another host is fine"),
    ],
)
def test_anything_else_is_unhealthy(url: str, engine: Engine, host: str, age: timedelta) -> None:
    worker(engine, host=host, age=age)

    outcome = check(url)

    assert outcome.returncode == 1
    assert outcome.stderr == "no worker of this host renewed its lease for 0:00:30\n"


def test_a_database_without_tables_is_one_line_that_says_what_to_do(url: str) -> None:
    outcome = check(url)

    assert outcome.returncode == 1
    assert "run `turnkeeper migrate`" in outcome.stderr
    assert outcome.stderr.count("\n") == 1
