"""Whether a worker of this host renews its lease: `python -m turnkeeper_ops.health`, for health checks.

A worker that answers pings may still have stopped taking turns. Its heartbeat in PostgreSQL is what its turns
depend on, so that is what is looked at, by the database's clock.
"""

import socket
import sys
from datetime import timedelta

from sqlalchemy import NullPool, create_engine, func, select

from turnkeeper import TurnkeeperError
from turnkeeper.database import explaining_database_errors
from turnkeeper.settings import Connections
from turnkeeper.tables import workers

FRESH = timedelta(seconds=30)
"""Twice the time that a lease lives; by then another worker has taken the turns over."""


def main() -> int:
    """Return 0 when a worker of this host is alive, else say why not and return 1."""
    try:
        settings = Connections.load()
        with explaining_database_errors(settings.database):
            alive = _is_alive(settings, socket.gethostname())
    except TurnkeeperError as error:
        return _unhealthy(str(error))
    return 0 if alive else _unhealthy(f"no worker of this host renewed its lease for {FRESH}")


def _is_alive(settings: Connections, host: str) -> bool:
    fresh = workers.c.heartbeat_at > func.now() - FRESH
    query = select(workers.c.id).where(workers.c.host == host, fresh)
    with create_engine(settings.database, poolclass=NullPool).connect() as connection:
        return connection.execute(query).first() is not None


def _unhealthy(why: str) -> int:
    sys.stderr.write(f"{why}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
