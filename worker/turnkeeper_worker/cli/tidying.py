"""`turnkeeper prune`: what every worker does by and by, done now, and with another age if need be."""

import re
from dataclasses import asdict
from datetime import timedelta

from rich.console import Console
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from turnkeeper.database import explaining_database_errors
from turnkeeper.exceptions import InvalidRequest
from turnkeeper_worker.config import Settings
from turnkeeper_worker.pruning import Pruned, prune

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_AGE = re.compile(r"(\d{1,6})([smhd])", re.ASCII)


def read_age(text: str) -> timedelta:
    """Read an age such as `30d`.  Raises InvalidRequest.

    >>> read_age("90m")
    datetime.timedelta(seconds=5400)
    """
    found = _AGE.fullmatch(text)
    if found is None:
        raise InvalidRequest(f"{text[:50]!r} is no age; write 30d, 12h, 90m or 600s")
    return timedelta(seconds=int(found[1]) * SECONDS[found[2]])


def retention_of(settings: Settings) -> timedelta:
    """Return the age that the settings name.  Raises InvalidRequest where they name none."""
    if not settings.retention_days:
        raise InvalidRequest("retention_days is 0, so everything is kept; say which age with --older-than")
    return timedelta(days=settings.retention_days)


def run(settings: Settings, age: timedelta, console: Console) -> dict[str, int]:
    """Delete what is older than *age*, batch after batch; return how many rows of each table went."""
    engine = create_engine(settings.database, poolclass=NullPool)
    deleted = Pruned()
    with (
        explaining_database_errors(settings.database),
        engine.connect() as connection,
        console.status("") as status,
    ):
        while True:
            batch = prune(connection, age)
            connection.commit()
            if not batch:
                return asdict(deleted)
            deleted += batch
            status.update(f"deleted {describe(asdict(deleted))}")


def describe(deleted: dict[str, int]) -> str:
    """Say how many rows went.

    >>> describe({"attempts": 1200, "tool_runs": 0, "workers": 1})
    '1,200 attempts, 1 workers'
    """
    said = (f"{count:,} {table.replace('_', ' ')}" for table, count in deleted.items() if count)
    return ", ".join(said) or "nothing"
