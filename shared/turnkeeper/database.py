"""What goes wrong between us and PostgreSQL, in one line that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from turnkeeper.exceptions import DatabaseUnavailable

UNDEFINED_TABLE = "42P01"
UNDEFINED_COLUMN = "42703"


@contextmanager
def explaining_database_errors(url: URL) -> Iterator[None]:
    """Turn a driver's exception into DatabaseUnavailable, which names the server and the remedy."""
    address = f"{url.host or 'localhost'}:{url.port or 5432}/{url.database or ''}"
    try:
        yield
    except DBAPIError as error:
        raise DatabaseUnavailable(address, _reason(error)) from error
    except PoolTimeout as error:
        raise DatabaseUnavailable(address, "every connection waits for its answer") from error


def _reason(error: DBAPIError) -> str:
    state = getattr(error.orig, "sqlstate", None)
    if state in {UNDEFINED_TABLE, UNDEFINED_COLUMN}:
        return "its tables are missing or old, run `turnkeeper migrate`"
    lines = str(error.orig).strip().splitlines() or [type(error.orig).__name__]
    return lines[0].strip().rstrip(".:")
