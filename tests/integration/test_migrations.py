"""The schema's history: what each migration does to rows, and that it ends at the models."""

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from sqlalchemy import URL, Connection, Engine, create_engine, make_url, text

import turnkeeper_migrations
from turnkeeper.errors import ErrorKind, read_stored
from turnkeeper.tables import metadata
from turnkeeper_ops.services.postgres import Postgres


@pytest.fixture
def empty_url(postgres: Postgres) -> URL:
    name = f"empty_{uuid4().hex}"
    postgres.create_database(name)
    return make_url(postgres.url(name)).set(drivername="postgresql+psycopg")


def _last_errors(url: URL) -> list[object]:
    engine = create_engine(url)
    with engine.connect() as connection:
        found = list(connection.scalars(text("SELECT last_error FROM chats ORDER BY owner")))
    engine.dispose()
    return found


def _insert_chats(url: URL, *errors: str | None) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        for index, error in enumerate(errors):
            connection.execute(
                text("INSERT INTO chats (id, owner, provider, last_error) VALUES (:id, :owner, 'openai', :error)"),
                {"id": uuid4(), "owner": str(index), "error": error},
            )
    engine.dispose()


def test_a_legacy_error_text_becomes_the_message_of_a_generic_error(empty_url: URL) -> None:
    turnkeeper_migrations.upgrade(empty_url, "0001")
    _insert_chats(empty_url, 'it said "no"', None, "")

    turnkeeper_migrations.upgrade(empty_url)

    legacy, nothing, blank = _last_errors(empty_url)
    assert legacy == {"message": 'it said "no"', "kind": "generic"}
    assert nothing is None
    assert blank == {"message": "", "kind": "generic"}
    read = read_stored(legacy)
    assert read is not None
    assert (read.kind, read.message) == (ErrorKind.GENERIC, 'it said "no"')


def test_going_back_keeps_the_message(empty_url: URL) -> None:
    turnkeeper_migrations.upgrade(empty_url, "0001")
    _insert_chats(empty_url, "it broke", None)
    turnkeeper_migrations.upgrade(empty_url)

    turnkeeper_migrations.downgrade(empty_url, "0001")

    assert _last_errors(empty_url) == ["it broke", None]


def test_the_way_down_leaves_nothing_behind(empty_url: URL) -> None:
    turnkeeper_migrations.upgrade(empty_url)

    turnkeeper_migrations.downgrade(empty_url, "base")

    engine = create_engine(empty_url)
    with engine.connect() as connection:
        tables = set(connection.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")))
    engine.dispose()
    assert tables == {"alembic_version"}


_CATALOGUE = {
    "columns": """
        SELECT table_name, column_name, data_type, is_nullable, column_default, generation_expression
        FROM information_schema.columns
        WHERE table_schema = 'public' AND table_name <> 'alembic_version' ORDER BY 1, 2
    """,
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace AND conrelid <> 0
          AND conrelid::regclass::text <> 'alembic_version' ORDER BY 1, 2
    """,
    "indexes": """
        SELECT tablename, indexname, indexdef FROM pg_indexes
        WHERE schemaname = 'public' AND tablename <> 'alembic_version' ORDER BY 1, 2
    """,
}


@pytest.mark.parametrize("what", _CATALOGUE)
def test_the_migrations_end_exactly_at_the_models(what: str, engine: Engine, empty_url: URL) -> None:
    by_models = create_engine(empty_url)
    metadata.create_all(by_models)

    with engine.connect() as migrated, by_models.connect() as modelled:
        assert _read(migrated, what) == _read(modelled, what)

    by_models.dispose()


def _read(connection: Connection, what: str) -> list[tuple[object, ...]]:
    return [tuple(row) for row in connection.execute(text(_CATALOGUE[what]))]


def test_several_hosts_may_migrate_at_once(empty_url: URL) -> None:
    with ThreadPoolExecutor(4) as hosts:
        before = list(hosts.map(lambda _: turnkeeper_migrations.upgrade(empty_url), range(4)))

    head = turnkeeper_migrations.head_revision()
    assert sorted(before, key=str) == [head, head, head, None]
