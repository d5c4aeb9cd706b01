"""What workers write about themselves, and about the turns that nobody looks after."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Connection,
    Integer,
    Row,
    Select,
    Table,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, insert

from turnkeeper import limits
from turnkeeper.errors import ChatError, ErrorKind, Situation, read_stored, terminal_copy
from turnkeeper.states import AttemptOutcome, TurnState
from turnkeeper.tables import attempts, chats, erased_turns, left_responses, rejections, tool_runs, turns, workers
from turnkeeper.turns import AT_BROKER, IS_PARKED, wake_next
from turnkeeper_worker import ledger
from turnkeeper_worker.checkpoint import Checkpoint, read_checkpoint
from turnkeeper_worker.store import total

BATCH = 500
"""How many turns one round of the rescue takes up at most."""
MAX_LOST = 5
"""A turn that was lost with this many workers is taken for what killed them, and fails."""


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
    providers: tuple[str, ...] = ()
    """The names of those that it is configured for."""


def beat(connection: Connection, me: Identity) -> list[Held]:
    """Renew the heartbeat, and return every turn that this worker holds.

    The first beat enters the worker, and so does the next one after somebody removed it.
    """
    row = {
        "id": me.id,
        "host": me.host,
        "pid": me.pid,
        "concurrency": me.concurrency,
        "providers": list(me.providers),
    }
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
    """A turn whose worker is gone, and what became of it."""

    id: UUID
    epoch: int
    step: int
    attempt: int
    state: TurnState
    """`queued`; `cancelled` where that was asked for; `failed` where too many workers died of it."""
    error: ChatError | None
    woken: UUID | None
    provider: str = ""
    model: str | None = None
    ran_tools: bool = False
    """Whether it was lost between two attempts."""


def rescue(connection: Connection, ttl: timedelta) -> list[Orphan]:
    """Running → queued, cancelled or failed: the turns of workers that are gone."""
    is_alive = exists().where(workers.c.id == turns.c.worker_id, workers.c.heartbeat_at > func.now() - ttl)
    return _release(connection, ~is_alive, lost=1)


def give_back(connection: Connection, turn_id: UUID, epoch: int) -> list[Orphan]:
    """Running → queued or cancelled: a turn that is ours by the database and that nobody here runs.

    The rescue loop rings for it: the heartbeat, which found it, must not wait for the broker.
    """
    return _release(connection, and_(turns.c.id == turn_id, turns.c.epoch == epoch), lost=0)


def _release(connection: Connection, condition: Any, *, lost: int) -> list[Orphan]:
    is_orphaned = and_(turns.c.state == TurnState.RUNNING, condition)
    # The chats first, as everywhere; those that somebody else is at are left for the next round.
    free = connection.scalars(
        select(chats.c.id)
        .where(chats.c.id.in_(select(turns.c.chat_id).where(is_orphaned).limit(BATCH)))
        # Not stronger than that: a worker that comes back may be storing messages, which refer to both.
        .with_for_update(key_share=True, skip_locked=True)
    ).all()
    orphaned = connection.scalars(
        select(turns.c.id).where(turns.c.chat_id.in_(free), is_orphaned).with_for_update(key_share=True)
    ).all()
    if not orphaned:
        return []
    _lose_attempts(connection, orphaned)
    rows = connection.execute(_FREE, {"orphaned": orphaned, "died": lost}).all()
    if ended := [row.id for row in rows if row.finished_at is not None]:
        ledger.interrupt(connection, tool_runs.c.turn_id.in_(ended))
    return [_orphan(connection, row) for row in rows]


def _lose_attempts(connection: Connection, orphaned: Sequence[UUID]) -> None:
    connection.execute(
        update(attempts)
        .where(attempts.c.turn_id.in_(orphaned), attempts.c.outcome == AttemptOutcome.RUNNING)
        .values(outcome=AttemptOutcome.LOST, finished_at=func.now())
    )


_POISONED = ChatError(message=terminal_copy(ErrorKind.GENERIC, None, Situation.POISON))
_was_asked = turns.c.cancel_requested_at.is_not(None)
# A worker that lives and gives a turn back did not die of it.
_died = bindparam("died", type_=Integer)
_is_poison = and_(_died > 0, turns.c.lost + _died >= MAX_LOST)
_is_over = or_(_was_asked, _is_poison)
_FREE = (
    update(turns)
    .where(turns.c.id.in_(bindparam("orphaned", expanding=True)))
    .values(
        state=case((_was_asked, TurnState.CANCELLED), (_is_poison, TurnState.FAILED), else_=TurnState.QUEUED),
        epoch=turns.c.epoch + 1,
        lost=turns.c.lost + _died,
        worker_id=None,
        available_at=case((_is_over, None), else_=func.now()),
        rung_at=case((or_(_is_over, _died == 0), None), else_=func.now()),
        finished_at=case((_is_over, func.now()), else_=None),
        error=case((and_(~_was_asked, _is_poison), literal(_POISONED.model_dump(mode="json"), JSONB)), else_=None),
    )
    .returning(turns)
)


def _orphan(connection: Connection, row: Row[Any]) -> Orphan:
    state = TurnState(row.state)
    if state is TurnState.FAILED:
        connection.execute(update(chats).where(chats.c.id == row.chat_id).values(last_error=row.error))
    return Orphan(
        id=row.id,
        epoch=row.epoch,
        step=row.step,
        attempt=row.attempt,
        state=state,
        error=read_stored(row.error),
        woken=wake_next(connection, row.chat_id) if state.is_final else None,
        provider=row.provider,
        model=row.model,
        ran_tools=row.runs_tools,
    )


def unpark(connection: Connection, provider: str | None) -> int:
    """Make parked turns due, of a provider or of all; the rescue loop rings for them.  Returns how many."""
    is_meant = IS_PARKED if provider is None else and_(IS_PARKED, turns.c.provider == provider)
    return connection.execute(update(turns).where(is_meant).values(available_at=func.now(), rung_at=None)).rowcount


@dataclass(frozen=True, slots=True)
class Due:
    """A turn that the broker should be told about."""

    id: UUID
    attempts: int


Ring = Callable[[list[Due]], Awaitable[None]]
"""Tells the broker about due turns.  Raises BrokerUnavailable."""


def take_due(
    connection: Connection, *, forgotten_after: timedelta, besides: Sequence[UUID] = (), limit: int = BATCH
) -> list[Due]:
    """Take up the turns that are due and of which the broker should know: those it forgot, and those in turn.

    Args:
        connection: An open transaction.
        forgotten_after: How long ago a ring must be to count as lost.
        besides: Turns that are not forgotten, whatever the broker knows.
        limit: How many to take of each.
    """
    forgotten = (
        select(turns.c.id)
        .where(
            turns.c.available_at <= func.now(),
            turns.c.rung_at < func.now() - forgotten_after,
            turns.c.id.not_in(besides),
        )
        .order_by(turns.c.available_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    rows = connection.execute(
        update(turns)
        .where(turns.c.id.in_(forgotten))
        .values(rung_at=func.now())
        .returning(turns.c.id, turns.c.attempt)
    )
    return [*(Due(row.id, row.attempt) for row in rows), *call_up(connection, limit=limit)]


# Owner after owner is found by a jump in the index, not by looking at all that stands back.
_CALL_UP = text(
    """
    WITH RECURSIVE owners (owner) AS (
        (
            SELECT owner FROM turns WHERE available_at IS NOT NULL AND rung_at IS NULL
            ORDER BY owner LIMIT 1
        )
        UNION ALL
        SELECT (
            SELECT turns.owner FROM turns
            WHERE available_at IS NOT NULL AND rung_at IS NULL AND turns.owner > owners.owner
            ORDER BY turns.owner LIMIT 1
        )
        FROM owners WHERE owners.owner IS NOT NULL
    ), room AS (
        SELECT owner, :at_broker - (
            SELECT count(*) FROM (
                SELECT FROM turns
                WHERE turns.owner = owners.owner AND available_at <= now() AND rung_at IS NOT NULL
                LIMIT :at_broker
            ) AS at_broker
        ) AS places
        FROM owners WHERE owner IS NOT NULL
    ), called AS (
        SELECT next.id, row_number() OVER (PARTITION BY owner) AS round
        FROM room, LATERAL (
            SELECT id FROM turns
            WHERE turns.owner = room.owner AND available_at <= now() AND rung_at IS NULL
            ORDER BY priority DESC, available_at
            LIMIT places
            FOR UPDATE SKIP LOCKED
        ) AS next
        ORDER BY round LIMIT :most
    ), rung AS (
        UPDATE turns SET rung_at = now() FROM called WHERE turns.id = called.id
        RETURNING turns.id, turns.attempt, called.round
    )
    SELECT id, attempt FROM rung ORDER BY round
    """
).columns(turns.c.id, turns.c.attempt)


def call_up(connection: Connection, *, limit: int = BATCH) -> list[Due]:
    """Call up turns that stand back: as many of each owner as the broker may hold, one owner after the other."""
    rows = connection.execute(_CALL_UP, {"at_broker": AT_BROKER, "most": limit})
    return [Due(row.id, row.attempt) for row in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """How many turns of all workers wait, and how long the one at the head has waited for a worker."""

    due: int
    counting_down: int
    oldest_due: timedelta


COUNTED = 10_000
"""More than this need not be counted exactly."""
_some_due = select(turns.c.available_at).where(turns.c.available_at <= func.now()).limit(COUNTED).subquery()
_some_later = select(turns.c.available_at).where(turns.c.available_at > func.now()).limit(COUNTED).subquery()
# All of it is in the indexes of waiting turns.
_COUNT_WAITING = select(
    select(func.count()).select_from(_some_due).scalar_subquery().label("due"),
    select(func.count()).select_from(_some_later).scalar_subquery().label("counting_down"),
    select(func.now() - func.min(turns.c.available_at))
    .where(turns.c.available_at <= func.now())
    .scalar_subquery()
    .label("oldest_due"),
)


def count_waiting(connection: Connection) -> Waiting:
    """Count the turns that wait for a worker, and those that wait for a countdown."""
    row = connection.execute(_COUNT_WAITING).one()
    return Waiting(due=row.due, counting_down=row.counting_down, oldest_due=row.oldest_due or timedelta(0))


_earlier = turns.alias("earlier")
_IS_STUCK = and_(
    turns.c.state == TurnState.QUEUED,
    turns.c.available_at.is_(None),
    turns.c.finished_at.is_(None),
    ~exists().where(
        _earlier.c.chat_id == turns.c.chat_id, _earlier.c.seq < turns.c.seq, _earlier.c.finished_at.is_(None)
    ),
)


def wake_stuck(connection: Connection, *, limit: int = BATCH) -> list[Due]:
    """Make turns due that wait behind nothing; no transition leaves one like that, but a hand on the rows may."""
    free = connection.scalars(
        select(chats.c.id)
        .where(chats.c.id.in_(select(turns.c.chat_id).where(_IS_STUCK).limit(limit)))
        .with_for_update(key_share=True, skip_locked=True)
    ).all()
    woken = (wake_next(connection, chat_id) for chat_id in free)
    return [Due(turn_id, 0) for turn_id in woken if turn_id is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandoned:
    """A background response that still runs, though its turn has ended, was erased, or has fallen back."""

    turn_id: UUID
    checkpoint: Checkpoint


_GOES_ON = exists().where(turns.c.id == left_responses.c.turn_id, turns.c.finished_at.is_(None))


def find_abandoned(connection: Connection, *, limit: int = 50) -> list[Abandoned]:
    """Return some background responses that nobody waits for any more.

    In no order: those of a provider that is away must not stand before all others.
    """
    ended = select(turns.c.id, turns.c.checkpoint).where(
        turns.c.checkpoint.is_not(None), turns.c.finished_at.is_not(None)
    )
    erased = select(erased_turns.c.id, erased_turns.c.checkpoint).where(erased_turns.c.checkpoint.is_not(None))
    left_behind = select(left_responses.c.turn_id, left_responses.c.checkpoint).where(
        or_(left_responses.c.called_off_at.is_(None), ~_GOES_ON)
    )
    all_of_them = union_all(ended, erased, left_behind).subquery()
    rows = connection.execute(select(all_of_them).order_by(func.random()).limit(limit))
    read = ((row.id, read_checkpoint(row.checkpoint)) for row in rows)
    return [Abandoned(turn_id=turn_id, checkpoint=left) for turn_id, left in read if left is not None]


def close_abandoned(connection: Connection, abandoned: Abandoned, usage: dict[str, int] | None) -> None:
    """Note that a background response is over, and what it has cost; of two workers that do so, one is heard."""
    if erased := _close(connection, erased_turns, abandoned):
        _charge(connection, erased.owner, usage)
    if left := _close_left(connection, abandoned):
        _charge(connection, left.owner, usage)
        _add_cost(connection, abandoned, usage, [(left.step, left.attempt)])
    if ended := _close(connection, turns, abandoned):
        _charge(connection, ended.owner if ended.metered else None, usage)
        _add_cost(connection, abandoned, usage, _last_attempt(abandoned.turn_id))


def _charge(connection: Connection, owner: str | None, usage: dict[str, int] | None) -> None:
    if owner is not None and usage:
        limits.count_tokens(connection, owner, usage)


def _add_cost(
    connection: Connection,
    abandoned: Abandoned,
    usage: dict[str, int] | None,
    attempt: Sequence[tuple[int, int]] | Select[Any],
) -> None:
    """Add to the turn, and to the attempt that had asked for it, what the response has cost."""
    this = turns.c.id == abandoned.turn_id
    found = connection.execute(select(turns.c.usage).where(this).with_for_update()).first()
    if found is None or usage is None:
        return
    connection.execute(update(turns).where(this).values(usage=total(found.usage, usage)))
    place = tuple_(attempts.c.step, attempts.c.number)
    connection.execute(
        update(attempts)
        .where(attempts.c.turn_id == abandoned.turn_id, place.in_(attempt))
        .values(usage=usage, response_id=abandoned.checkpoint.response_id)
    )


def _last_attempt(turn_id: UUID) -> Select[Any]:
    return (
        select(attempts.c.step, attempts.c.number)
        .where(attempts.c.turn_id == turn_id)
        .order_by(attempts.c.step.desc(), attempts.c.number.desc())
        .limit(1)
    )


def _close_left(connection: Connection, abandoned: Abandoned) -> Row[Any] | None:
    """Close a response that was left behind, once its turn has ended.

    Until then the turn's worker knows what the turn has cost so far, and would write over what we add.
    """
    response_id = left_responses.c.checkpoint["response_id"].astext
    this = and_(left_responses.c.turn_id == abandoned.turn_id, response_id == abandoned.checkpoint.response_id)
    connection.execute(update(left_responses).where(this, _GOES_ON).values(called_off_at=func.now()))
    return connection.execute(delete(left_responses).where(this, ~_GOES_ON).returning(left_responses)).first()


def _close(connection: Connection, table: Table, abandoned: Abandoned) -> Row[Any] | None:
    response_id = table.c.checkpoint["response_id"].astext
    this = and_(table.c.id == abandoned.turn_id, response_id == abandoned.checkpoint.response_id)
    return connection.execute(update(table).where(this).values(checkpoint=None).returning(table)).first()


def forget_abandoned(connection: Connection, *, after: timedelta) -> int:
    """Stop looking after responses whose turns ended so long ago that they are over by themselves."""
    ended = {turns: turns.c.finished_at, erased_turns: erased_turns.c.erased_at}
    is_old = and_(left_responses.c.left_at < func.now() - after, ~_GOES_ON)
    return connection.execute(delete(left_responses).where(is_old)).rowcount + sum(
        connection.execute(
            update(table).where(table.c.checkpoint.is_not(None), at < func.now() - after).values(checkpoint=None)
        ).rowcount
        for table, at in ended.items()
    )


def find_erased(connection: Connection, *, after: timedelta, limit: int = BATCH) -> list[UUID]:
    """Return turns that were erased so long ago that no worker says anything of them any more."""
    is_over = and_(erased_turns.c.checkpoint.is_(None), erased_turns.c.erased_at < func.now() - after)
    return list(connection.scalars(select(erased_turns.c.id).where(is_over).limit(limit)))


def forget_erased(connection: Connection, turn_ids: Sequence[UUID]) -> None:
    """Note that nothing is left of erased turns."""
    connection.execute(delete(erased_turns).where(erased_turns.c.id.in_(turn_ids)))


def forget_rings(connection: Connection, turn_ids: Sequence[UUID]) -> None:
    """Note that the broker was not told after all."""
    connection.execute(update(turns).where(turns.c.id.in_(turn_ids)).values(rung_at=None))


def reject(connection: Connection, turn_id: UUID, reason: str) -> None:
    """Keep the reason why a submitted request is no turn."""
    connection.execute(
        insert(rejections).values(id=turn_id, reason=reason).on_conflict_do_nothing(index_elements=["id"])
    )
