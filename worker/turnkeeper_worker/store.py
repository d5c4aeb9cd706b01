"""The worker's transitions: one named function and one guarded UPDATE per arrow of the state machine.

Every write of a running turn names its lease, (id, epoch). When no row answers, the turn is another worker's by
now: `LeaseLost`, and the transaction leaves nothing behind. Functions take an open connection; whoever changes
the chat as well locks it first, as everywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import Connection, Row, Update, and_, bindparam, case, exists, func, literal, select, update
from sqlalchemy.dialects.postgresql import aggregate_order_by, insert

from turnkeeper.errors import ChatError
from turnkeeper.messages import Message, Parts
from turnkeeper.states import WAITING_STATES, AttemptOutcome, TurnState
from turnkeeper.tables import attempts, chats, messages, turns
from turnkeeper.turns import wake_next
from turnkeeper_worker.chain import Anchor, Credential, read_anchor
from turnkeeper_worker.replay import Said

EARLY = timedelta(seconds=1)
"""A ring may be this early, by the clocks' difference, and is then worth waiting for."""


class LeaseLost(Exception):
    """The turn is no longer ours; nothing was written."""

    def __init__(self, turn_id: UUID, epoch: int) -> None:
        super().__init__(turn_id, epoch)
        self.turn_id = turn_id
        self.epoch = epoch

    def __str__(self) -> str:
        return f"the lease of turn {self.turn_id} with epoch {self.epoch} is gone; this attempt is void"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A turn under our lease, with what its chat says."""

    id: UUID
    chat_id: UUID
    seq: int
    epoch: int
    worker_id: UUID
    step: int
    attempt: int
    """The number of this attempt at the step."""
    spent: int
    healed: bool
    provider: str
    model: str | None
    options: dict[str, Any]
    instructions: str | None
    anchor: Anchor | None
    elapsed: timedelta
    """Since the turn ran first, by the database's clock."""
    is_cancelled: bool


@dataclass(frozen=True, slots=True)
class Early:
    """The turn is due in a moment; wait that long and claim again."""

    wait: timedelta


@dataclass(frozen=True, slots=True)
class NotMine:
    """The turn is not due, not at the head of its chat, or somebody else's: drop the message."""


Claim: TypeAlias = Claimed | Early | NotMine


def claim(connection: Connection, turn_id: UUID, worker_id: UUID) -> Claim:
    """queued, retrying → running."""
    row = connection.execute(_CLAIM, {"turn": turn_id, "worker": worker_id}).first()
    return _not_claimed(connection, turn_id) if row is None else _claimed(row, worker_id)


_earlier = turns.alias("earlier")
_CLAIM = (
    update(turns)
    .where(
        turns.c.id == bindparam("turn"),
        turns.c.state.in_(WAITING_STATES),
        turns.c.available_at <= func.now(),
        chats.c.id == turns.c.chat_id,
        ~exists().where(
            _earlier.c.chat_id == turns.c.chat_id,
            _earlier.c.seq < turns.c.seq,
            _earlier.c.finished_at.is_(None),
        ),
    )
    .values(
        state=TurnState.RUNNING,
        epoch=turns.c.epoch + 1,
        attempt=turns.c.attempt + 1,
        worker_id=bindparam("worker"),
        available_at=None,
        started_at=func.coalesce(turns.c.started_at, func.now()),
    )
    .returning(
        turns,
        chats.c.instructions,
        chats.c.anchor,
        (func.now() - func.coalesce(turns.c.started_at, func.now())).label("elapsed"),
    )
)


def _claimed(row: Row[Any], worker_id: UUID) -> Claimed:
    return Claimed(
        id=row.id,
        chat_id=row.chat_id,
        seq=row.seq,
        epoch=row.epoch,
        worker_id=worker_id,
        step=row.step,
        attempt=row.attempt,
        spent=row.spent,
        healed=row.healed,
        provider=row.provider,
        model=row.model,
        options=row.options,
        instructions=row.instructions,
        anchor=read_anchor(row.anchor),
        elapsed=row.elapsed,
        is_cancelled=row.cancel_requested_at is not None,
    )


def _not_claimed(connection: Connection, turn_id: UUID) -> Early | NotMine:
    is_early = and_(
        turns.c.id == turn_id,
        turns.c.state.in_(WAITING_STATES),
        turns.c.available_at.between(func.now(), func.now() + EARLY),
    )
    wait = connection.scalar(select(turns.c.available_at - func.now()).where(is_early))
    return NotMine() if wait is None else Early(wait)


@dataclass(frozen=True, slots=True)
class Past:
    """What planning needs to know of the history, without reading it."""

    digest: str
    """A fingerprint of what was said up to the anchor; it changes with any edit."""
    news: int
    """How many messages came after."""


# A turn that was cancelled before it ran was never said to anybody.
_unheard = turns.alias("unheard")
_WAS_HEARD = ~exists().where(
    _unheard.c.id == messages.c.turn_id,
    _unheard.c.state == TurnState.CANCELLED,
    _unheard.c.started_at.is_(None),
)
_IN_ORDER = (messages.c.turn_seq, messages.c.position)


def survey(connection: Connection, turn: Claimed, *, through: int) -> Past:
    """Take the fingerprint of the history up to the turn *through*, and count what follows it."""
    joined = func.string_agg(messages.c.digest, aggregate_order_by(literal(" "), *_IN_ORDER))
    is_past = messages.c.turn_seq <= through
    row = connection.execute(
        select(
            func.md5(func.coalesce(joined.filter(is_past), "")).label("digest"),
            func.count().filter(~is_past).label("news"),
        ).where(messages.c.chat_id == turn.chat_id, messages.c.turn_seq <= turn.seq, _WAS_HEARD)
    ).one()
    return Past(row.digest, row.news)


def load(connection: Connection, turn: Claimed, *, after: int = 0) -> tuple[Said, ...]:
    """Read what was said in the chat after the turn numbered *after*, the turn's own message included."""
    rows = connection.execute(
        select(messages.c.role, messages.c.parts, messages.c.provider)
        .where(
            messages.c.chat_id == turn.chat_id,
            messages.c.turn_seq > after,
            messages.c.turn_seq <= turn.seq,
            _WAS_HEARD,
        )
        .order_by(*_IN_ORDER)
    )
    return tuple(
        Said(Message(role=row.role, parts=Parts.validate_python(row.parts)), row.provider) for row in rows
    )


def begin(connection: Connection, turn: Claimed, *, model: str | None, chained: bool) -> None:
    """Record that the attempt, which the claim or the heal numbered, starts now."""
    connection.execute(
        insert(attempts).values(
            turn_id=turn.id,
            step=turn.step,
            number=turn.attempt,
            epoch=turn.epoch,
            worker_id=turn.worker_id,
            provider=turn.provider,
            model=model,
            chained=chained,
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How an attempt ended, as its row keeps it."""

    outcome: AttemptOutcome
    error: ChatError | None = None
    facts: dict[str, Any] | None = None
    delay: timedelta | None = None
    response_id: str | None = None
    usage: dict[str, int] | None = None
    first_event_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Settled:
    """What the last write of a turn brought about."""

    position: int
    """The place of the first message that it stored."""
    woken: UUID | None
    """The turn of the same chat that became due."""


def complete(
    connection: Connection,
    turn: Claimed,
    ended: Ended,
    said: Sequence[Message],
    stored_at: Credential | None,
) -> Settled:
    """Running → completed.  Raises LeaseLost.

    Args:
        connection: An open transaction.
        turn: The turn under our lease.
        ended: The attempt that gave the answer.
        said: The messages of the answer.
        stored_at: Where the response is kept and may be continued from; None where it may not.
    """
    _lock_chat(connection, turn)
    _leave(connection, turn, TurnState.COMPLETED, usage=ended.usage)
    position = _store_messages(connection, turn, said, response_id=ended.response_id)
    _end_attempt(connection, turn, ended)
    _update_chat(connection, turn, anchor=_anchor(connection, turn, ended.response_id, stored_at), last_error=None)
    return Settled(position, wake_next(connection, turn.chat_id))


def _anchor(
    connection: Connection, turn: Claimed, response_id: str | None, stored_at: Credential | None
) -> dict[str, Any] | None:
    if response_id is None or stored_at is None:
        return None
    digest = survey(connection, turn, through=turn.seq).digest
    anchor = Anchor(response_id=response_id, credential=stored_at, through=turn.seq, digest=digest)
    return anchor.model_dump()


def fail(connection: Connection, turn: Claimed, ended: Ended) -> Settled:
    """Running → failed.  Raises LeaseLost."""
    assert ended.error is not None  # noqa: S101 - for the type checker; a failure has an error
    error = ended.error.model_dump(mode="json")
    _lock_chat(connection, turn)
    _leave(connection, turn, TurnState.FAILED, error=error, usage=ended.usage)
    _end_attempt(connection, turn, ended)
    _update_chat(connection, turn, last_error=error)
    return Settled(0, wake_next(connection, turn.chat_id))


def cancel(connection: Connection, turn: Claimed, ended: Ended, said: Sequence[Message]) -> Settled:
    """Running → cancelled, with what had been said.  Raises LeaseLost."""
    _lock_chat(connection, turn)
    _leave(connection, turn, TurnState.CANCELLED, usage=ended.usage)
    position = _store_messages(connection, turn, said, response_id=None)
    _end_attempt(connection, turn, ended)
    return Settled(position, wake_next(connection, turn.chat_id))


def retry(connection: Connection, turn: Claimed, ended: Ended, *, is_rung: bool) -> datetime:
    """Running → retrying.  Returns when it is due.  Raises LeaseLost.

    Args:
        connection: An open transaction.
        turn: The turn under our lease.
        ended: The failed attempt, with the delay.
        is_rung: Whether the caller gives the broker the countdown; if not, the rescue loop rings in time.
    """
    due = func.now() + (ended.delay or timedelta(0))
    # Whoever cancelled it in this moment should not wait for the countdown: the next claim ends it.
    was_asked = turns.c.cancel_requested_at.is_not(None)
    _leave(
        connection,
        turn,
        TurnState.RETRYING,
        spent=turn.spent + 1,
        available_at=case((was_asked, func.now()), else_=due),
        rung_at=case((was_asked, None), else_=due) if is_rung else None,
    )
    _end_attempt(connection, turn, ended)
    retrying_at: datetime = connection.execute(select(due)).scalar_one()
    return retrying_at


def heal(connection: Connection, turn: Claimed, ended: Ended) -> Claimed:
    """Clear the broken anchor and number the next attempt; the turn stays running.  Raises LeaseLost."""
    _lock_chat(connection, turn)
    _write(connection, turn, update(turns).values(healed=True, attempt=turn.attempt + 1))
    _end_attempt(connection, turn, ended)
    _update_chat(connection, turn, anchor=None)
    return replace(turn, healed=True, attempt=turn.attempt + 1, anchor=None)


def hand_back(connection: Connection, turn: Claimed, ended: Ended) -> None:
    """Running → queued, due at once.  Raises LeaseLost."""
    _leave(connection, turn, TurnState.QUEUED, available_at=func.now(), rung_at=func.now())
    _end_attempt(connection, turn, ended)


def _leave(connection: Connection, turn: Claimed, state: TurnState, **values: Any) -> None:
    finished = {"finished_at": func.now()} if state.is_final else {}
    _write(connection, turn, update(turns).values(state=state, worker_id=None, **finished, **values))


def _write(connection: Connection, turn: Claimed, change: Update) -> None:
    is_ours = and_(turns.c.id == turn.id, turns.c.state == TurnState.RUNNING, turns.c.epoch == turn.epoch)
    if connection.execute(change.where(is_ours)).rowcount == 0:
        raise LeaseLost(turn.id, turn.epoch)


def _lock_chat(connection: Connection, turn: Claimed) -> None:
    connection.execute(select(chats.c.id).where(chats.c.id == turn.chat_id).with_for_update())


def _update_chat(connection: Connection, turn: Claimed, **values: Any) -> None:
    connection.execute(update(chats).where(chats.c.id == turn.chat_id).values(updated_at=func.now(), **values))


def _end_attempt(connection: Connection, turn: Claimed, ended: Ended) -> None:
    this = and_(attempts.c.turn_id == turn.id, attempts.c.step == turn.step, attempts.c.number == turn.attempt)
    connection.execute(
        update(attempts)
        .where(this, attempts.c.outcome == AttemptOutcome.RUNNING)
        .values(
            outcome=ended.outcome,
            error=ended.error.model_dump(mode="json") if ended.error else None,
            facts=ended.facts,
            delay_ms=round(ended.delay.total_seconds() * 1000) if ended.delay is not None else None,
            response_id=ended.response_id,
            usage=ended.usage,
            first_event_at=ended.first_event_at,
            finished_at=func.now(),
        )
    )


def _store_messages(
    connection: Connection, turn: Claimed, said: Sequence[Message], *, response_id: str | None
) -> int:
    """Store *said* behind what the turn holds already; return the place of the first."""
    last = select(func.max(messages.c.position)).where(messages.c.turn_id == turn.id)
    highest = connection.scalar(last)
    first = 0 if highest is None else highest + 1
    rows = [
        {
            "turn_id": turn.id,
            "position": first + index,
            "chat_id": turn.chat_id,
            "turn_seq": turn.seq,
            "role": message.role,
            "parts": Parts.dump_python(message.parts, mode="json"),
            "provider": turn.provider,
            "model": turn.model,
            "response_id": response_id,
        }
        for index, message in enumerate(said)
    ]
    if rows:
        connection.execute(insert(messages), rows)
    return first
