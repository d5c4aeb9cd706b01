"""What a producer may do to a turn: enqueue, edit, cancel, retry.

Every function takes an open connection and leaves the transaction to its owner, so a producer can
make a turn part of its own. Whoever changes turns of a chat locks the chat first; that order, chat before
turn, holds in the workers too and is what keeps them from deadlocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, Row, and_, bindparam, case, exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from turnkeeper import limits
from turnkeeper.exceptions import (
    ChatBusy,
    IdempotencyConflict,
    InvalidRequest,
    NotEditable,
    NotRetryable,
    TurnRejected,
    UnknownChat,
    UnknownTurn,
)
from turnkeeper.messages import Parts
from turnkeeper.requests import Fallbacks, TurnRequest
from turnkeeper.states import WAITING_STATES, OnBusy, TurnState
from turnkeeper.tables import chats, messages, rejections, turns

AT_BROKER = 10
"""How many turns of an owner the broker holds at the same time.

The others stand back in the database, and workers call them up as they get to those before. So a turn finds few of
each other owner before it at the broker, whose queue knows no owners, however many they have enqueued.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Enqueued:
    """What enqueue stored."""

    id: UUID
    chat_id: UUID
    is_new: bool
    """False where the idempotency key, or the id, had been used for the same request before."""
    is_due: bool
    """Whether a worker may take it now; otherwise it waits behind another turn of its chat."""
    is_rung: bool = True
    """Whether the broker was told; if not, the rescue loop of the workers tells it within seconds."""
    is_held: bool = False
    """Whether it stands back: the broker holds enough turns of the owner, and is told when one of them runs."""
    cancelled: tuple[tuple[UUID, int], ...] = ()
    """Waiting turns that `on_busy=interrupt` or an edit ended, with their epochs."""
    interrupted: tuple[UUID, ...] = ()
    """Running turns that `on_busy=interrupt` or an edit asked to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """What cancel found and did."""

    id: UUID
    chat_id: UUID
    state: TurnState
    """`cancelled` where it had not run, `running` where its worker was asked to stop, else as it ended."""
    epoch: int
    changed: bool
    """Whether this call ended it; a running turn is ended by its worker."""
    woken: UUID | None = None
    """The turn of the same chat that became due."""


def enqueue(
    connection: Connection,
    request: TurnRequest,
    *,
    turn_id: UUID | None = None,
    is_rung: bool = True,
    trace_context: str | None = None,
) -> Enqueued:
    """→ queued.  Store the turn and the user's message.

    Args:
        connection: An open transaction; its owner commits.
        request: What is asked for.
        turn_id: The id to give the turn; a second request with the same id is the same turn.
        is_rung: Whether the caller rings after the commit; if not, the workers' rescue loop does.
        trace_context: The caller's span, as a `traceparent`; the workers go on from it.

    Raises UnknownChat, ChatBusy, IdempotencyConflict, UsageLimitExceeded, InvalidRequest when no provider is
    named by the request or its chat; and, for an edit, UnknownTurn, TurnRejected or NotEditable.
    """
    turn_id = turn_id or uuid4()
    if (earlier := _find_earlier(connection, request, turn_id)) is not None:
        return earlier
    with connection.begin_nested() as savepoint:
        chat = _open_chat(connection, request)
        if chat.turn_count > 1 and (earlier := _find_earlier(connection, request, turn_id)) is not None:
            # The same request was under way in the chat that we waited for; it is no reason to call it busy.
            savepoint.rollback()
            return earlier
        place = _find_place(connection, request, chat)
        is_due = not _has_open_turn(connection, chat.id)
        is_held = is_due and is_rung and not _has_room(connection, request.owner)
        is_rung = is_due and is_rung and not is_held
        if _insert_turn(
            connection, request, turn_id, chat, place, is_due=is_due, is_rung=is_rung, trace_context=trace_context
        ):
            # Not before: the same request, under way elsewhere, is no second turn.
            limits.admit(connection, request.owner, chat.limits)
            _insert_input(connection, request, turn_id, chat)
            _supersede(connection, chat, place, turn_id)
            return Enqueued(
                id=turn_id,
                chat_id=chat.id,
                is_new=True,
                is_due=is_due,
                is_rung=is_rung,
                is_held=is_held,
                cancelled=place.stopped.cancelled,
                interrupted=place.stopped.interrupted,
            )
        savepoint.rollback()
    earlier = _find_earlier(connection, request, turn_id)
    if earlier is None:  # pragma: no cover - the conflicting row was deleted in between
        raise InvalidRequest("the chat was erased while the turn was enqueued; enqueue it again")
    return earlier


def _find_earlier(connection: Connection, request: TurnRequest, turn_id: UUID) -> Enqueued | None:
    same = turns.c.id == turn_id
    if request.idempotency_key is not None:
        same = or_(
            same,
            and_(turns.c.owner == request.owner, turns.c.idempotency_key == request.idempotency_key),
        )
    columns = (turns.c.id, turns.c.chat_id, turns.c.request_digest)
    row = connection.execute(select(*columns).where(same)).first()
    if row is None:
        return None
    if row.request_digest != request.digest():
        raise IdempotencyConflict(request.idempotency_key or str(turn_id), row.id)
    return Enqueued(id=row.id, chat_id=row.chat_id, is_new=False, is_due=False)


def _open_chat(connection: Connection, request: TurnRequest) -> Row[Any]:
    """Lock the chat, or make one; either way the new turn's number is taken."""
    if request.edits is not None:
        return _lock_chat(connection, lock_chat_of(connection, request.edits), request.owner)
    if request.chat_id is not None:
        return _lock_chat(connection, request.chat_id, request.owner)
    return _create_chat(connection, request)


def _create_chat(connection: Connection, request: TurnRequest) -> Row[Any]:
    if request.provider is None:
        raise InvalidRequest("no provider is named; give one, or set TURNKEEPER_DEFAULT_PROVIDER")
    new = {
        "id": uuid4(),
        "owner": request.owner,
        "provider": request.provider,
        "model": request.model,
        "instructions": request.instructions,
        "tools": list(request.tools or ()),
        "fallbacks": _stored(request.fallbacks),
        "turn_count": 1,
    }
    return connection.execute(_CREATE_CHAT, new | {"limited_owner": request.owner}).one()


_CREATE_CHAT = insert(chats).returning(chats, limits.LIMITS)
_LOCK_CHAT = (
    update(chats)
    .where(chats.c.id == bindparam("chat"))
    .values(turn_count=chats.c.turn_count + 1, updated_at=func.now())
    .returning(chats, limits.LIMITS)
)


def _lock_chat(connection: Connection, chat_id: UUID, owner: str) -> Row[Any]:
    chat = connection.execute(_LOCK_CHAT, {"chat": chat_id, "limited_owner": owner}).first()
    if chat is None:
        raise UnknownChat(chat_id)
    return chat


@dataclass(frozen=True, slots=True)
class _Stopped:
    cancelled: tuple[tuple[UUID, int], ...] = ()
    interrupted: tuple[UUID, ...] = ()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a new turn goes in its chat, and what had to make room."""

    stopped: _Stopped
    edited: Row[Any] | None = None
    """The turn that is edited."""
    since: int = 0
    """The number of the turn whose message is replaced."""


def _find_place(connection: Connection, request: TurnRequest, chat: Row[Any]) -> _Place:
    if request.edits is None:
        return _Place(_settle_busy_chat(connection, request.on_busy, chat.id))
    edited = connection.execute(select(turns).where(turns.c.id == request.edits)).one()
    if edited.superseded_by is not None:
        raise NotEditable(edited.id, edited.superseded_by)
    since = _seq_of_message(connection, edited)
    return _Place(_stop_open_turns(connection, chat.id, since=since), edited, since)


def _seq_of_message(connection: Connection, turn: Row[Any]) -> int:
    """Return the number of the turn whose message *turn* answers: its own, unless it repeats another turn."""
    while turn.retry_of is not None:
        turn = connection.execute(select(turns).where(turns.c.id == turn.retry_of)).one()
    seq: int = turn.seq
    return seq


def _supersede(connection: Connection, chat: Row[Any], place: _Place, turn_id: UUID) -> None:
    if place.edited is None:
        return
    is_replaced = and_(
        turns.c.chat_id == chat.id,
        turns.c.seq.between(place.since, chat.turn_count - 1),
        turns.c.superseded_by.is_(None),
    )
    connection.execute(update(turns).where(is_replaced).values(superseded_by=turn_id))


def _settle_busy_chat(connection: Connection, on_busy: OnBusy, chat_id: UUID) -> _Stopped:
    match on_busy:
        case OnBusy.QUEUE:
            return _Stopped()
        case OnBusy.REJECT:
            if _has_open_turn(connection, chat_id):
                raise ChatBusy(chat_id)
            return _Stopped()
        case OnBusy.INTERRUPT:
            return _stop_open_turns(connection, chat_id)


def _stop_open_turns(connection: Connection, chat_id: UUID, *, since: int = 1) -> _Stopped:
    """Stop the unfinished turns of a chat from the number *since* on."""
    is_meant = and_(turns.c.chat_id == chat_id, turns.c.seq >= since)
    is_open = and_(is_meant, turns.c.finished_at.is_(None))
    is_waiting = and_(is_meant, turns.c.state.in_(WAITING_STATES))
    is_running = and_(is_meant, turns.c.state == TurnState.RUNNING)
    # Locked first: a turn that moved from running to retrying between the two updates would escape both.
    connection.execute(select(turns.c.id).where(is_open).order_by(turns.c.seq).with_for_update())
    ended = update(turns).where(is_waiting).values(_CANCELLED).returning(turns.c.id, turns.c.epoch)
    asked = update(turns).where(is_running).values(_STOPPING).returning(turns.c.id)
    return _Stopped(
        cancelled=tuple((row.id, row.epoch) for row in connection.execute(ended)),
        interrupted=tuple(connection.scalars(asked)),
    )


def _has_open_turn(connection: Connection, chat_id: UUID) -> bool:
    is_open = and_(turns.c.chat_id == chat_id, turns.c.finished_at.is_(None))
    return bool(connection.scalar(select(exists().where(is_open))))


_waiting = (
    select(turns.c.id)
    .where(turns.c.owner == bindparam("owner"), turns.c.available_at <= func.now())
    .limit(AT_BROKER)
    .subquery()
)
_COUNT_WAITING = select(func.count()).select_from(_waiting)


def _has_room(connection: Connection, owner: str) -> bool:
    """Tell whether the broker may be told of another turn of *owner*; not before those that stand back already."""
    return connection.execute(_COUNT_WAITING, {"owner": owner}).scalar_one() < AT_BROKER


def _insert_turn(
    connection: Connection,
    request: TurnRequest,
    turn_id: UUID,
    chat: Row[Any],
    place: _Place,
    *,
    is_due: bool,
    is_rung: bool,
    trace_context: str | None,
) -> bool:
    statement = insert(turns).values(
        id=turn_id,
        chat_id=chat.id,
        seq=chat.turn_count,
        owner=request.owner,
        priority=request.priority,
        metered=chat.limits is not None,
        available_at=func.now() if is_due else None,
        rung_at=func.now() if is_rung else None,
        trace_context=trace_context,
        idempotency_key=request.idempotency_key,
        request_digest=request.digest(),
        **_settings(request, chat, place.edited),
    )
    return connection.execute(statement.on_conflict_do_nothing().returning(turns.c.id)).first() is not None


def _settings(request: TurnRequest, chat: Row[Any], edited: Row[Any] | None) -> dict[str, Any]:
    """Return what the request asks for and, where it asks for nothing, what the edited turn or the chat has."""
    like = chat._asdict() if edited is None else _first_choice(edited)
    is_there = request.provider in {None, like["provider"]}
    settings = {
        "provider": request.provider or like["provider"],
        "model": request.model or (like["model"] if is_there else None),
        "tools": like["tools"] if request.tools is None else list(request.tools),
        "fallbacks": like["fallbacks"] if request.fallbacks is None else _stored(request.fallbacks),
        "options": request.options,
        "background": request.background,
    }
    if edited is not None and is_there:
        settings["options"] = request.options or like["options"]
        settings["background"] = like["background"] if request.background is None else request.background
    return settings


def _first_choice(turn: Row[Any]) -> dict[str, Any]:
    """Return what a turn asked for, also where it has fallen back since."""
    names = ("provider", "model", "options", "tools", "background", "fallbacks")
    return {name: getattr(turn, name) for name in names} | (turn.first_choice or {})


def _stored(fallbacks: Fallbacks | None) -> list[dict[str, Any]] | None:
    return None if fallbacks is None else [one.model_dump(mode="json", exclude_none=True) for one in fallbacks]


def _insert_input(connection: Connection, request: TurnRequest, turn_id: UUID, chat: Row[Any]) -> None:
    connection.execute(
        insert(messages).values(
            turn_id=turn_id,
            position=0,
            chat_id=chat.id,
            turn_seq=chat.turn_count,
            role="user",
            parts=Parts.dump_python(request.input, mode="json"),
        )
    )


def lock_chat_of(connection: Connection, turn_id: UUID) -> UUID:
    """Lock the chat of a turn and return its id.  Raises UnknownTurn."""
    chat_id = select(turns.c.chat_id).where(turns.c.id == turn_id).scalar_subquery()
    # Not stronger than that: workers that store a message, which refers to the chat, need not wait.
    lock = select(chats.c.id).where(chats.c.id == chat_id).with_for_update(key_share=True)
    locked: UUID | None = connection.scalar(lock)
    if locked is None:
        raise unknown(connection, turn_id)
    return locked


_CANCELLED: Mapping[str, Any] = {
    "state": TurnState.CANCELLED,
    "epoch": turns.c.epoch + 1,
    "available_at": None,
    "finished_at": func.now(),
}
_STOPPING: Mapping[str, Any] = {"cancel_requested_at": func.coalesce(turns.c.cancel_requested_at, func.now())}


def cancel(connection: Connection, turn_id: UUID) -> Cancelled:
    """queued, retrying → cancelled; a running turn's worker is asked to stop.  Raises UnknownTurn."""
    chat_id = lock_chat_of(connection, turn_id)
    this = turns.c.id == turn_id
    is_waiting = and_(this, turns.c.state.in_(WAITING_STATES))
    if ended := connection.execute(update(turns).where(is_waiting).values(_CANCELLED).returning(turns)).first():
        woken = wake_next(connection, chat_id)
        return _cancelled(ended, changed=True, woken=woken)
    is_running = and_(this, turns.c.state == TurnState.RUNNING)
    if asked := connection.execute(update(turns).where(is_running).values(_STOPPING).returning(turns)).first():
        return _cancelled(asked, changed=False)
    found = connection.execute(select(turns).where(this).with_for_update()).one()
    # A worker may have moved it from running to retrying between the two statements; now it holds still.
    return _cancelled(found, changed=False) if found.finished_at else cancel(connection, turn_id)


def _cancelled(row: Row[Any], *, changed: bool, woken: UUID | None = None) -> Cancelled:
    return Cancelled(
        id=row.id,
        chat_id=row.chat_id,
        state=TurnState(row.state),
        epoch=row.epoch,
        changed=changed,
        woken=woken,
    )


def wake_next(connection: Connection, chat_id: UUID) -> UUID | None:
    """Make the first unfinished turn of a chat due, unless it is already; return it when it became so."""
    is_open = and_(turns.c.chat_id == chat_id, turns.c.finished_at.is_(None))
    head = select(turns.c.id).where(is_open).order_by(turns.c.seq).limit(1).scalar_subquery()
    woken: UUID | None = connection.scalar(
        update(turns)
        .where(turns.c.id == head, turns.c.state == TurnState.QUEUED, turns.c.available_at.is_(None))
        .values(available_at=func.now(), rung_at=func.now())
        .returning(turns.c.id)
    )
    return woken


IS_PARKED = and_(turns.c.state == TurnState.QUEUED, turns.c.available_at > func.now())
"""Whether a turn waits for its provider's cooldown."""


def retry(connection: Connection, turn_id: UUID) -> Enqueued:
    """Try again: skip the wait for a retry or a cooldown, or answer a failed turn's message in a new one.

    A turn that skips the wait for a cooldown asks it again, and may have to wait again.  The new turn counts like
    any other.  Raises UnknownTurn, UsageLimitExceeded, or NotRetryable for a turn that stands in a queue, is
    running, completed, cancelled, superseded, or no longer the last of its chat.
    """
    chat_id = lock_chat_of(connection, turn_id)
    superseded_by = connection.scalar(select(turns.c.superseded_by).where(turns.c.id == turn_id))
    if superseded_by is not None:
        raise NotRetryable(turn_id, f"its message was edited, and turn {superseded_by} stands in its place")
    hurried = connection.execute(
        update(turns)
        .where(turns.c.id == turn_id, or_(turns.c.state == TurnState.RETRYING, IS_PARKED))
        .values(available_at=func.now(), rung_at=func.now())
        .returning(turns.c.id)
    ).first()
    if hurried is not None:
        return Enqueued(id=turn_id, chat_id=chat_id, is_new=False, is_due=True)
    turn = connection.execute(select(turns).where(turns.c.id == turn_id)).one()
    chat = connection.execute(select(chats).where(chats.c.id == chat_id)).one()
    if turn.state != TurnState.FAILED:
        raise NotRetryable(turn_id, f"it is {turn.state}; only failed and waiting turns can be")
    if turn.seq != chat.turn_count:
        raise NotRetryable(turn_id, "the chat has gone on since; enqueue a new turn")
    return _repeat(connection, turn)


def _repeat(connection: Connection, turn: Row[Any]) -> Enqueued:
    """Store a turn without a message of its own: the history already ends with the unanswered one."""
    new, found = uuid4(), limits.limits_of(connection, turn.owner)
    limits.admit(connection, turn.owner, found)
    connection.execute(update(chats).where(chats.c.id == turn.chat_id).values(turn_count=turn.seq + 1))
    connection.execute(
        insert(turns).values(
            id=new,
            chat_id=turn.chat_id,
            seq=turn.seq + 1,
            owner=turn.owner,
            metered=found is not None,
            available_at=func.now(),
            rung_at=func.now(),
            priority=turn.priority,
            request_digest=turn.request_digest,
            retry_of=turn.id,
            **_first_choice(turn),
        )
    )
    return Enqueued(id=new, chat_id=turn.chat_id, is_new=True, is_due=True)


WHO_PAYS = case((turns.c.metered & turns.c.checkpoint.is_not(None), turns.c.owner))
"""Whose usage the cost of a background response is added to that nobody waits for; NULL where nobody counts."""


def forget_ring(connection: Connection, turn_id: UUID) -> None:
    """Note that the broker was not told, so that the next rescue tells it."""
    connection.execute(update(turns).where(turns.c.id == turn_id).values(rung_at=None))


def unknown(connection: Connection, turn_id: UUID) -> UnknownTurn | TurnRejected:
    """Say why there is no such turn."""
    reason = connection.scalar(select(rejections.c.reason).where(rejections.c.id == turn_id))
    return UnknownTurn(turn_id) if reason is None else TurnRejected(turn_id, reason)


def find_state(connection: Connection, turn_id: UUID) -> TurnState:
    """Return the state of a turn.  Raises UnknownTurn or TurnRejected."""
    state = connection.scalar(select(turns.c.state).where(turns.c.id == turn_id))
    if state is None:
        raise unknown(connection, turn_id)
    return TurnState(state)
