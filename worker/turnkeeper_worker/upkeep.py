"""What workers write about themselves, and about the turns that nobody looks after."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, and_, case, delete, exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from turnkeeper.states import AttemptOutcome, TurnState
from turnkeeper.tables import attempts, chats, rejections, turns, workers
from turnkeeper.turns import wake_next

BATCH = 500
"""How many turns one round of the rescue takes up at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What the database says of a turn that this worker holds."""

    turn_id: UUID
    epoch: int
    is_cancelled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A worker process, as its row describes it."""

    id: UUID
    host: str
    pid: int
    concurrency: int


def beat(connection: Connection, me: Identity) -> list[Held]:
    """Renew the heartbeat, and return every turn that this worker holds.

    The first beat enters the worker, and so does the next one after somebody removed it.
    """
    row = {"id": me.id, "host": me.host, "pid": me.pid, "concurrency": me.concurrency}
    connection.execute(
        insert(workers).values(row).on_conflict_do_update(index_elements=["id"], set_={"heartbeat_at": func.now()})
    )
    held = connection.execute(
        select(turns.c.id, turns.c.epoch, turns.c.cancel_requested_at).where(
            turns.c.worker_id == me.id, turns.c.state == TurnState.RUNNING
        )
    )
    return [
        Held(turn_id=row.id, epoch=row.epoch, is_cancelled=row.cancel_requested_at is not None) for row in held
    ]


def sign_off(connection: Connection, worker_id: UUID) -> None:
    """Remove a worker process; whatever it still holds is free for rescue at once."""
    connection.execute(delete(workers).where(workers.c.id == worker_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """A turn whose worker is gone, as it was left."""

    id: UUID
    epoch: int
    step: int
    attempt: int
    is_cancelled: bool
    woken: UUID | None


def rescue(connection: Connection, ttl: timedelta) -> list[Orphan]:
    """Running → queued, or cancelled where that was asked for: the turns of workers that are gone."""
    is_alive = exists().where(workers.c.id == turns.c.worker_id, workers.c.heartbeat_at > func.now() - ttl)
    return _release(connection, ~is_alive)


def give_back(connection: Connection, turn_id: UUID, epoch: int) -> list[Orphan]:
    """Running → queued: a turn that is ours by the database and that nobody here runs."""
    return _release(connection, and_(turns.c.id == turn_id, turns.c.epoch == epoch))


def _release(connection: Connection, condition: Any) -> list[Orphan]:
    # The chats first, as everywhere; those that somebody else is at are left for the next round.
    orphaned = select(turns.c.chat_id).where(turns.c.state == TurnState.RUNNING, condition).limit(BATCH)
    free = connection.scalars(
        select(chats.c.id).where(chats.c.id.in_(orphaned)).with_for_update(skip_locked=True)
    ).all()
    if not free:
        return []
    was_asked = turns.c.cancel_requested_at.is_not(None)
    rows = connection.execute(
        update(turns)
        .where(turns.c.state == TurnState.RUNNING, turns.c.chat_id.in_(free), condition)
        .values(
            state=case((was_asked, TurnState.CANCELLED), else_=TurnState.QUEUED),
            epoch=turns.c.epoch + 1,
            worker_id=None,
            available_at=case((was_asked, None), else_=func.now()),
            rung_at=case((was_asked, None), else_=func.now()),
            finished_at=case((was_asked, func.now()), else_=None),
        )
        .returning(turns)
    ).all()
    _lose_attempts(connection, [row.id for row in rows])
    return [_orphan(connection, row) for row in rows]


def _lose_attempts(connection: Connection, lost: Sequence[UUID]) -> None:
    connection.execute(
        update(attempts)
        .where(attempts.c.turn_id.in_(lost), attempts.c.outcome == AttemptOutcome.RUNNING)
        .values(outcome=AttemptOutcome.LOST, finished_at=func.now())
    )


def _orphan(connection: Connection, row: Row[Any]) -> Orphan:
    is_cancelled = row.state == TurnState.CANCELLED
    return Orphan(
        id=row.id,
        epoch=row.epoch,
        step=row.step,
        attempt=row.attempt,
        is_cancelled=is_cancelled,
        woken=wake_next(connection, row.chat_id) if is_cancelled else None,
    )


@dataclass(frozen=True, slots=True)
class Due:
    """A turn that the broker should be told about."""

    id: UUID
    attempts: int


def take_due(connection: Connection, *, forgotten_after: timedelta, limit: int = BATCH) -> list[Due]:
    """Take up the turns that are due and of which the broker does not know, or knew too long ago.

    Args:
        connection: An open transaction.
        forgotten_after: How long ago a ring must be to count as lost.
        limit: How many to take.
    """
    is_unheard = or_(turns.c.rung_at.is_(None), turns.c.rung_at < func.now() - forgotten_after)
    due = (
        select(turns.c.id)
        .where(turns.c.available_at <= func.now(), is_unheard)
        .order_by(turns.c.available_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    rows = connection.execute(
        update(turns).where(turns.c.id.in_(due)).values(rung_at=func.now()).returning(turns.c.id, turns.c.attempt)
    )
    return [Due(row.id, row.attempt) for row in rows]


def forget_rings(connection: Connection, turn_ids: Sequence[UUID]) -> None:
    """Note that the broker was not told after all."""
    connection.execute(update(turns).where(turns.c.id.in_(turn_ids)).values(rung_at=None))


def reject(connection: Connection, turn_id: UUID, reason: str) -> None:
    """Keep the reason why a submitted request is no turn."""
    connection.execute(
        insert(rejections).values(id=turn_id, reason=reason).on_conflict_do_nothing(index_elements=["id"])
    )
