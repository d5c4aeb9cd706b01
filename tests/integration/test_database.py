"""The worker's transactions: each is whole, and a database that is away or busy is waited for."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import URL, Connection, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from turnkeeper_worker.database import Database


@pytest.fixture
async def database(database_url: URL) -> AsyncIterator[Database]:
    database = Database.at(database_url)
    yield database
    await database.close()


def one(connection: Connection) -> int:
    return connection.scalar(text("SELECT 1")) or 0


async def test_a_transaction_that_fails_leaves_nothing_behind(database: Database) -> None:
    def half(connection: Connection) -> None:
        connection.execute(text("INSERT INTO rejections (id, reason) VALUES (gen_random_uuid(), 'x')"))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await database.surely(half)

    assert await database.once(lambda c: c.scalar(text("SELECT count(*) FROM rejections"))) == 0


async def test_a_database_that_is_away_is_told_or_waited_for(database: Database) -> None:
    tries = 0

    def twice_away(connection: Connection) -> int:
        nonlocal tries
        tries += 1
        if tries < 3:
            connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        return one(connection)

    assert await database.surely(twice_away) == 1
    assert tries == 3

    tries = 0
    with pytest.raises(OperationalError):
        await database.once(twice_away)


async def test_hundreds_that_wait_for_a_database_say_so_once_and_not_each(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    tries = 0

    def away(connection: Connection) -> int:
        nonlocal tries
        tries += 1
        if tries < 100:
            connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        return one(connection)

    await asyncio.gather(*(database.surely(away) for _ in range(20)))

    assert tries >= 100
    assert capsys.readouterr().out.count("database.away") == 1


async def test_a_broken_constraint_is_no_reason_to_wait(database: Database) -> None:
    def break_one(connection: Connection) -> None:
        connection.execute(text("INSERT INTO workers (id) VALUES (gen_random_uuid())"))

    with pytest.raises(IntegrityError):
        await database.surely(break_one)


async def test_a_database_that_is_busy_is_waited_for(database_url: URL) -> None:
    engine = create_async_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    database = Database(engine, engine)
    async with engine.connect():
        work = asyncio.create_task(database.surely(one))
        done, _ = await asyncio.wait([work], timeout=0.3)
        assert not done

    assert await work == 1
    await database.close()
