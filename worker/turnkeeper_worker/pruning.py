"""What may be deleted when it is old: the records of how turns were run, never the chats themselves.

Each call deletes one small batch of each kind, in the transaction of its caller, and skips rows that another one
is at; so any number of workers may do it at once, and nobody waits for them.
"""

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, exists, func, or_, select, tuple_

from turnkeeper.tables import attempts, chain_health, rejections, tool_runs, turns, usage_periods, workers

BATCH = 500
"""How many rows of each kind one transaction deletes at most."""
WORKER_GONE_FOR = timedelta(hours=1)
"""A worker that has been silent for so long is not coming back; if it does, it enters itself again."""
LONGEST_PERIOD = timedelta(days=31)
"""Of those that usage is counted for."""
CHAINS_BROKE_BEFORE = timedelta(days=30)
"""Where no chain has broken for so long, none is being continued, or all of them hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """How many rows were deleted."""

    attempts: int = 0
    tool_runs: int = 0
    rejections: int = 0
    workers: int = 0
    chain_health: int = 0
    usage_periods: int = 0

    def __add__(self, other: "Pruned") -> "Pruned":
        mine, others = asdict(self), asdict(other)
        return Pruned(**{name: mine[name] + others[name] for name in mine})

    def __bool__(self) -> bool:
        """Whether anything was deleted."""
        return any(asdict(self).values())


def prune(connection: Connection, older_than: timedelta | None, *, limit: int = BATCH) -> Pruned:
    """Delete a batch of what is old; false where nothing is left to delete.

    Args:
        connection: An open transaction.
        older_than: The age from which attempts and tool runs of ended turns, and rejections, may go; None keeps
            them for ever.
        limit: How many rows of each kind to delete at most.
    """
    gone = Pruned(
        workers=_delete(connection, workers, workers.c.heartbeat_at < func.now() - WORKER_GONE_FOR, limit),
        chain_health=_delete(connection, chain_health, _HAS_NOT_BROKEN_LATELY, limit),
    )
    if older_than is None:
        return gone
    since = func.now() - older_than
    return gone + Pruned(
        attempts=_delete(connection, attempts, _is_over(attempts, since), limit),
        tool_runs=_delete(connection, tool_runs, _is_over(tool_runs, since), limit),
        rejections=_delete(connection, rejections, rejections.c.received_at < since, limit),
        usage_periods=_delete(connection, usage_periods, _is_past(since), limit),
    )


_HAS_NOT_BROKEN_LATELY = and_(
    chain_health.c.broken_at < func.now() - CHAINS_BROKE_BEFORE,
    or_(chain_health.c.rests_until.is_(None), chain_health.c.rests_until < func.now()),
)


def _is_past(since: ColumnElement[datetime]) -> ColumnElement[bool]:
    """Whether a counter is old; one of a month that goes on is not, however little is kept."""
    return and_(usage_periods.c.starts_at < since, usage_periods.c.starts_at < func.now() - LONGEST_PERIOD)


def _is_over(table: Table, since: ColumnElement[datetime]) -> ColumnElement[bool]:
    """Whether a record is old, and of a turn that ended as long ago: of one that goes on, it is needed."""
    has_ended = exists().where(turns.c.id == table.c.turn_id, turns.c.finished_at < since)
    return and_(table.c.started_at < since, has_ended)


def _delete(connection: Connection, table: Table, is_old: ColumnElement[bool], limit: int) -> int:
    key = table.primary_key.columns
    batch = select(*key).where(is_old).limit(limit).with_for_update(of=table, skip_locked=True)
    return connection.execute(delete(table).where(tuple_(*key).in_(batch))).rowcount
