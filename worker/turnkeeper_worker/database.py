"""Transactions of the worker: on its event loop, and patient with a database that is away."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Concatenate, ParamSpec, Self, TypeVar

from sqlalchemy import URL, Connection
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import greenlet_spawn

from turnkeeper_worker.telemetry import Complaint, get_logger

log = get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

POOL_SIZE = 10
"""Transactions are short and none is open while a stream runs, so few connections serve many turns."""
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0


class Database:
    """Runs functions of `store` and `upkeep`: each in a transaction of its own, or as a statement by itself.

    Args:
        engine: Has the connections for transactions.
        single: Has those for single statements, which commit by themselves.
    """

    def __init__(self, engine: AsyncEngine, single: AsyncEngine) -> None:
        self._engine = engine
        self._single = single
        self._away = Complaint(log, "database.away")
        self._busy = Complaint(log, "database.busy")

    @classmethod
    def at(cls, url: URL, *, connections: int = POOL_SIZE) -> Self:
        """Prepare two pools of so many connections each; they are made when they are needed."""
        # No overflow: its connections are closed after each use, and opening one takes longer than a turn's
        # transactions. No ping before use: a stale connection fails, and `surely` tries again with a fresh one.
        # No parameters in exceptions: they are what people said, and exceptions are logged.
        pool = partial(create_async_engine, url, pool_size=connections, max_overflow=0, hide_parameters=True)
        return cls(pool(), pool(isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True))

    async def once(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run *work* in a transaction.  Raises what the driver raises when the database is away."""
        return await greenlet_spawn(partial(self._transact, work, *args, **kwargs))

    async def surely(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run *work* in a transaction, and wait for a database that is away.

        A commit whose answer was lost is tried again as well: its second run finds its guard unmet.
        """
        return await self._patiently(partial(self._transact, work, *args, **kwargs))

    async def surely_alone(
        self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run *work*, which writes with one statement, and wait for a database that is away.

        Without a transaction around it a statement takes one round trip instead of three, and half the CPU time.
        """
        return await self._patiently(partial(self._state, work, *args, **kwargs))

    async def _patiently(self, work: Callable[[], T]) -> T:
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                return await greenlet_spawn(work)
            except DBAPIError as error:
                if not (isinstance(error, OperationalError) or error.connection_invalidated):
                    raise
                self._away.make(error=str(error.orig).strip(), pause_s=pause)
            except PoolTimeout as error:
                # Every connection waits for a database that hangs; an answer must not be lost for that.
                self._busy.make(error=str(error), pause_s=pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    # All of it in one greenlet: with the engine's own coroutines each step has one, at a third of the cost.
    def _transact(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._engine.sync_engine.begin() as connection:
            return work(connection, *args, **kwargs)

    def _state(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._single.sync_engine.connect() as connection:
            return work(connection, *args, **kwargs)

    async def close(self) -> None:
        """Give the connections back."""
        await self._engine.dispose()
        await self._single.dispose()
