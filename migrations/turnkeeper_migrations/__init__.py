"""The schema's history, and how to bring a database up to date."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, create_engine, text
from sqlalchemy.pool import NullPool

ADVISORY_LOCK = 7_385_460_512_013
"""Any number that no other program on the database uses; it lets one host migrate at a time."""


def upgrade(url: URL, revision: str = "head") -> str | None:
    """Bring the database to *revision*; wait for another host that is at it.  Returns where it was before."""
    with _alone_with(url) as connection:
        before = current_revision(connection)
        # Alembic opens a transaction of its own for each migration, unless one is open already.
        connection.commit()
        command.upgrade(_config(connection), revision)
        return before


def downgrade(url: URL, revision: str) -> None:
    """Take the database back to *revision*."""
    with _alone_with(url) as connection:
        command.downgrade(_config(connection), revision)


@contextmanager
def _alone_with(url: URL) -> Iterator[Connection]:
    """Connect, and keep other migrators out until the session ends."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
        connection.commit()
        yield connection


def current_revision(connection: Connection) -> str | None:
    """Return the revision that the database is at; None where it is empty."""
    return MigrationContext.configure(connection).get_current_revision()


def head_revision() -> str:
    """Return the newest revision that this package knows."""
    head = ScriptDirectory.from_config(_config(None)).get_current_head()
    if head is None:
        raise RuntimeError("the package holds no migrations; install it anew")
    return head


def mismatch(connection: Connection) -> str | None:
    """Say what is wrong with the database's schema; None where it is the one that this version works with."""
    found, wanted = current_revision(connection), head_revision()
    return (
        None
        if found == wanted
        else f"its schema is at {found or 'nothing'}, not {wanted}; run `turnkeeper migrate`"
    )


def _config(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("turnkeeper_migrations")))
    config.attributes["connection"] = connection
    return config
