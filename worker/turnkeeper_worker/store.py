"""The worker's transitions: one named function and one guarded UPDATE per arrow of the state machine.

Every write of a running turn names its lease, (id, epoch). When no row answers, the turn is another worker's by
now: `LeaseLost`, and the transaction leaves nothing behind. Functions take an open connection; whoever changes
the chat as well locks it first, as everywhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    DateTime,
    Row,
    Update,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, insert

from turnkeeper import limits
from turnkeeper.errors import ChatError
from turnkeeper.messages import Message, Parts, ToolCall
from turnkeeper.requests import Fallback
from turnkeeper.states import WAITING_STATES, AttemptOutcome, TurnState
from turnkeeper.tables import attempts, chats, left_responses, messages, turns
from turnkeeper.turns import WHO_PAYS, wake_next
from turnkeeper_worker.chain import Anchor, Credential, read_anchor
from turnkeeper_worker.checkpoint import Checkpoint, read_checkpoint
from turnkeeper_worker.history import Place, fingerprint

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
    owner: str
    seq: int
    epoch: int
    worker_id: UUID
    step: int
    attempt: int
    """The number of this attempt at the step."""
    spent: int
    healed: bool
    runs_tools: bool
    """The step's answer is stored; the tools that it called are run now."""
    provider: str
    model: str | None
    options: dict[str, Any]
    instructions: str | None
    tools: tuple[str, ...]
    """The worker's tools that the model may call."""
    background: bool | None
    """None: as the provider's configuration says."""
    fallbacks: tuple[Fallback, ...] | None
    """Who may still answer instead; None: as the provider's configuration says."""
    first_choice: "Asked | None"
    """What was asked at first, once the turn has fallen back."""
    checkpoint: Checkpoint | None
    anchor: Anchor | None
    usage: dict[str, int] | None
    """What the attempts before this one have cost."""
    metered: bool
    """What it uses is counted, for there are limits."""
    elapsed: timedelta
    """Since the turn ran first, by the database's clock."""
    is_cancelled: bool
    others_stand_back: bool
    """Turns of the same owner wait for their place at the broker; one of them may have it now."""
    waited: timedelta = timedelta(0)
    """How long the turn had been due when it was claimed."""
    trace_context: str | None = None
    """The span of whoever enqueued the turn, as W3C's `traceparent` writes it."""

    @property
    def asked(self) -> "Asked":
        """What was asked at first."""
        return self.first_choice or Asked(provider=self.provider, options=self.options, background=self.background)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a turn was enqueued with, of all that may be different when it falls back."""

    provider: str
    options: dict[str, Any]
    background: bool | None


@dataclass(frozen=True, slots=True)
class Early:
    """The turn is due in a moment; wait that long and claim again."""

    wait: timedelta


@dataclass(frozen=True, slots=True)
class NotMine:
    """The turn is not due, not at the head of its chat, or somebody else's: drop the message."""

    state: TurnState | None = None
    """Where the turn is; None where there is no such turn."""


Claim: TypeAlias = Claimed | Early | NotMine


def claim(connection: Connection, turn_id: UUID, worker_id: UUID) -> Claim:
    """queued, retrying → running."""
    row = connection.execute(_CLAIM, {"turn": turn_id, "worker": worker_id}).first()
    return _not_claimed(connection, turn_id) if row is None else _claimed(row, worker_id)


_earlier, _standing = turns.alias("earlier"), turns.alias("standing")
_OTHERS_STAND_BACK = exists().where(
    _standing.c.owner == turns.c.owner, _standing.c.available_at <= func.now(), _standing.c.rung_at.is_(None)
)
# The row as it was: the claim empties the time since when it had been due.
_before = turns.alias("before")
_CLAIM = (
    update(turns)
    .where(
        turns.c.id == bindparam("turn"),
        turns.c.state.in_(WAITING_STATES),
        turns.c.available_at <= func.now(),
        chats.c.id == turns.c.chat_id,
        _before.c.id == turns.c.id,
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
        _OTHERS_STAND_BACK.label("others_stand_back"),
        (func.now() - _before.c.available_at).label("waited"),
    )
)


def _claimed(row: Row[Any], worker_id: UUID) -> Claimed:
    return Claimed(
        id=row.id,
        chat_id=row.chat_id,
        owner=row.owner,
        seq=row.seq,
        epoch=row.epoch,
        worker_id=worker_id,
        step=row.step,
        attempt=row.attempt,
        spent=row.spent,
        healed=row.healed,
        runs_tools=row.runs_tools,
        provider=row.provider,
        model=row.model,
        options=row.options,
        instructions=row.instructions,
        tools=tuple(row.tools),
        background=row.background,
        fallbacks=None if row.fallbacks is None else tuple(map(Fallback.model_validate, row.fallbacks)),
        first_choice=None if row.first_choice is None else _asked(row.first_choice),
        checkpoint=read_checkpoint(row.checkpoint),
        anchor=read_anchor(row.anchor),
        usage=row.usage,
        metered=row.metered,
        elapsed=row.elapsed,
        is_cancelled=row.cancel_requested_at is not None,
        others_stand_back=row.others_stand_back,
        waited=row.waited,
        trace_context=row.trace_context,
    )


def _asked(first_choice: Mapping[str, Any]) -> Asked:
    return Asked(**{name: first_choice[name] for name in ("provider", "options", "background")})


def _not_claimed(connection: Connection, turn_id: UUID) -> Early | NotMine:
    found = connection.execute(_WHERE_IT_IS, {"turn": turn_id}).first()
    if found is None:
        return NotMine()
    return Early(found.wait) if found.is_early else NotMine(TurnState(found.state))


_WHERE_IT_IS = select(
    turns.c.state,
    (turns.c.available_at - func.now()).label("wait"),
    and_(turns.c.state.in_(WAITING_STATES), turns.c.available_at.between(func.now(), func.now() + EARLY)).label(
        "is_early"
    ),
).where(turns.c.id == bindparam("turn"))


_BEGIN = insert(attempts)


def begin(
    connection: Connection, turn: Claimed, *, model: str | None, chained: bool, resumed: bool = False
) -> None:
    """Record that the attempt, which the claim or the heal numbered, starts now."""
    connection.execute(
        _BEGIN,
        {
            "turn_id": turn.id,
            "step": turn.step,
            "number": turn.attempt,
            "epoch": turn.epoch,
            "worker_id": turn.worker_id,
            "provider": turn.provider,
            "model": model,
            "chained": chained,
            "resumed": resumed,
        },
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a step's answer came from."""

    credential: Credential
    response_id: str | None
    anchors: bool
    """Whether the response is kept there and may be continued from."""
    terms: str = ""
    """What is kept with it; see `Anchor.terms`."""


def complete(
    connection: Connection, turn: Claimed, ended: Ended, said: Sequence[Message], origin: Origin
) -> Settled:
    """Running → completed, with the last step's answer.  Raises LeaseLost."""
    stored = _store_answer(connection, turn, ended, said, origin, is_last=True)
    # Whoever enqueued behind us did so before we locked the chat, or will find the turn ended.
    has_followers = stored.turn_count > turn.seq
    return Settled(stored.position, wake_next(connection, turn.chat_id) if has_followers else None)


def complete_step(
    connection: Connection,
    turn: Claimed,
    ended: Ended,
    said: Sequence[Message],
    origin: Origin,
    *,
    runs_tools: bool,
) -> tuple[Claimed, int]:
    """Store a step's answer, after which the turn goes on; it stays running.  Raises LeaseLost.

    Returns the turn, and the place of the first message.
    """
    stored = _store_answer(connection, turn, ended, said, origin, runs_tools=runs_tools)
    usage = total(turn.usage, ended.usage)
    following = replace(turn, runs_tools=runs_tools, usage=usage, checkpoint=None, anchor=stored.anchor)
    return following, stored.position


def next_step(connection: Connection, turn: Claimed) -> Claimed:
    """Number the next step, and its first attempt; the turn stays running.  Raises LeaseLost."""
    following: dict[str, Any] = {"step": turn.step + 1, "attempt": 1, "spent": 0, "runs_tools": False}
    _write(connection, turn, update(turns).values(following))
    return replace(turn, **following)


def complete_after_tools(connection: Connection, turn: Claimed) -> UUID | None:
    """Running → completed: the results that are missing come with the next turn.  Raises LeaseLost.

    Returns the turn of the same chat that became due.
    """
    _lock_chat(connection, turn)
    _leave(connection, turn, TurnState.COMPLETED)
    return wake_next(connection, turn.chat_id)


@dataclass(frozen=True, slots=True)
class _Stored:
    position: int
    turn_count: int
    anchor: Anchor | None


# One round trip for what every turn does at least once. The chat comes first, for the order of locks.
_STORE_ANSWER = text(
    """
    WITH chat AS (
        UPDATE chats SET anchor = NULL, last_error = NULL, updated_at = now()
        WHERE id = :chat_id
        RETURNING turn_count
    ), turn AS (
        UPDATE turns SET
            state = CASE WHEN :is_last THEN 'completed' ELSE state END,
            worker_id = CASE WHEN NOT :is_last THEN worker_id END,
            finished_at = CASE WHEN :is_last THEN now() END,
            runs_tools = :runs_tools,
            usage = :total,
            checkpoint = NULL
        FROM chat
        WHERE turns.id = :turn_id AND state = 'running' AND epoch = :epoch
            AND step = :step AND attempt = :attempt AND NOT turns.runs_tools
        RETURNING turn_count
    ), attempt AS (
        UPDATE attempts SET
            outcome = :outcome,
            response_id = :response_id,
            usage = :usage,
            first_event_at = :first_event_at,
            finished_at = now()
        FROM turn
        WHERE turn_id = :turn_id AND step = :step AND number = :attempt AND outcome = 'running'
    ), place AS (
        SELECT coalesce(max(position) + 1, 0) AS first FROM messages WHERE turn_id = :turn_id
    ), said AS (
        INSERT INTO messages
            (turn_id, position, chat_id, turn_seq, role, parts, provider, model, credential, response_id)
        SELECT
            :turn_id, place.first + number - 1, :chat_id, :seq, message->>'role', message->'parts',
            message->>'provider', message->>'model', :credential, :response_id
        FROM turn, place, jsonb_array_elements(:said) WITH ORDINALITY AS element (message, number)
    )
    SELECT turn_count, place.first AS position FROM turn, place
    """
).bindparams(
    bindparam("total", type_=JSONB(none_as_null=True)),
    bindparam("usage", type_=JSONB(none_as_null=True)),
    bindparam("said", type_=JSONB),
    bindparam("first_event_at", type_=DateTime(timezone=True)),
)


def _store_answer(
    connection: Connection,
    turn: Claimed,
    ended: Ended,
    said: Sequence[Message],
    origin: Origin,
    *,
    is_last: bool = False,
    runs_tools: bool = False,
) -> _Stored:
    """Store messages, and what they mean for the turn, its attempt and its chat.  Raises LeaseLost."""
    row = connection.execute(
        _STORE_ANSWER,
        {
            "turn_id": turn.id,
            "chat_id": turn.chat_id,
            "seq": turn.seq,
            "epoch": turn.epoch,
            "step": turn.step,
            "attempt": turn.attempt,
            "is_last": is_last,
            "runs_tools": runs_tools,
            "total": total(turn.usage, ended.usage),
            "outcome": ended.outcome,
            "usage": ended.usage,
            "first_event_at": ended.first_event_at,
            "response_id": origin.response_id,
            "credential": origin.credential.seal,
            "said": [_row(turn, message) for message in said],
        },
    ).first()
    if row is None:
        raise LeaseLost(turn.id, turn.epoch)
    anchor = _anchor(connection, turn, (turn.seq, row.position + len(said) - 1), said, origin)
    if anchor is not None:
        _update_chat(connection, turn, anchor=anchor.model_dump(mode="json"))
    _meter(connection, turn, ended)
    return _Stored(row.position, row.turn_count, anchor)


def _anchor(
    connection: Connection, turn: Claimed, through: Place, said: Sequence[Message], origin: Origin
) -> Anchor | None:
    if origin.response_id is None or not origin.anchors:
        return None
    return Anchor(
        response_id=origin.response_id,
        credential=origin.credential,
        seq=through[0],
        position=through[1],
        digest=fingerprint(connection, turn.chat_id, seen_by=turn.seq, through=through),
        terms=origin.terms,
        calls=tuple(part.call_id for message in said for part in message.parts if isinstance(part, ToolCall)),
        made_at=datetime.now(UTC),
    )


def fail(connection: Connection, turn: Claimed, ended: Ended, *, goes_on: bool = False) -> Settled:
    """Running → failed.  Raises LeaseLost.

    Args:
        connection: An open transaction.
        turn: The turn under our lease.
        ended: The last attempt, with its error.
        goes_on: Whether a background response is left behind, which must be called off.
    """
    assert ended.error is not None  # noqa: S101 - for the type checker; a failure has an error
    error = ended.error.model_dump(mode="json")
    _lock_chat(connection, turn)
    _leave(connection, turn, TurnState.FAILED, error=error, **_cost(turn, ended), **_checkpoint(goes_on=goes_on))
    _end_attempt(connection, turn, ended)
    _update_chat(connection, turn, last_error=error)
    return Settled(0, wake_next(connection, turn.chat_id))


def cancel(connection: Connection, turn: Claimed, ended: Ended, said: Sequence[Message]) -> Settled:
    """Running → cancelled, with what had been said.  Raises LeaseLost."""
    _lock_chat(connection, turn)
    _leave(connection, turn, TurnState.CANCELLED, **_cost(turn, ended))
    position = store_messages(connection, turn, said)
    _end_attempt(connection, turn, ended)
    return Settled(position, wake_next(connection, turn.chat_id))


def retry(
    connection: Connection, turn: Claimed, ended: Ended, *, is_rung: bool, goes_on: bool = False
) -> datetime:
    """Running → retrying.  Returns when it is due.  Raises LeaseLost.

    Args:
        connection: An open transaction.
        turn: The turn under our lease.
        ended: The failed attempt, with the delay.
        is_rung: Whether the caller gives the broker the countdown; if not, the rescue loop rings in time.
        goes_on: Whether the next attempt comes back to the same background response.
    """
    due = func.now() + (ended.delay or timedelta(0))
    _leave(
        connection,
        turn,
        TurnState.RETRYING,
        spent=turn.spent + 1,
        **_countdown(due, is_rung=is_rung),
        **_cost(turn, ended),
        **_checkpoint(goes_on=goes_on),
    )
    _end_attempt(connection, turn, ended)
    retrying_at: datetime = connection.execute(select(due)).scalar_one()
    return retrying_at


def park(connection: Connection, turn: Claimed, wait: timedelta, *, is_rung: bool) -> datetime:
    """Running → queued, due when its provider has rested; the attempt was none.  Returns when.  Raises LeaseLost.

    Args:
        connection: An open transaction.
        turn: The turn under our lease, of which nothing was sent.
        wait: How long it waits.
        is_rung: Whether the caller gives the broker the countdown; if not, the rescue loop rings in time.
    """
    due = func.now() + wait
    _leave(connection, turn, TurnState.QUEUED, attempt=turn.attempt - 1, **_countdown(due, is_rung=is_rung))
    connection.execute(_TAKE_BACK, {"turn": turn.id, "step": turn.step, "attempt": turn.attempt})
    parked_until: datetime = connection.execute(select(due)).scalar_one()
    return parked_until


_TAKE_BACK = delete(attempts).where(
    attempts.c.turn_id == bindparam("turn"),
    attempts.c.step == bindparam("step"),
    attempts.c.number == bindparam("attempt"),
    attempts.c.outcome == AttemptOutcome.RUNNING,
)


def heal(connection: Connection, turn: Claimed, ended: Ended) -> Claimed:
    """Clear the broken anchor and number the next attempt; the turn stays running.  Raises LeaseLost."""
    usage = total(turn.usage, ended.usage)
    changes: dict[str, Any] = {"healed": True, "attempt": turn.attempt + 1, "usage": usage, "checkpoint": None}
    _lock_chat(connection, turn)
    _write(connection, turn, update(turns).values(changes))
    _end_attempt(connection, turn, ended)
    _update_chat(connection, turn, anchor=None)
    return replace(turn, **changes, anchor=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which model is to answer a turn, and what it is asked for."""

    provider: str
    model: str | None
    options: dict[str, Any]
    background: bool | None
    fallbacks: tuple[Fallback, ...]
    """Who may answer instead of this one."""


def fall_back(
    connection: Connection, turn: Claimed, ended: Ended, choice: Choice, *, goes_on: bool = False
) -> Claimed:
    """Let another model go on with the step, and number its first attempt; the turn stays running.

    Raises LeaseLost.

    Args:
        connection: An open transaction.
        turn: The turn under our lease.
        ended: The failed attempt.
        choice: The model that follows; its budget is a new one.
        goes_on: Whether a background response is left behind, which must be called off.
    """
    if goes_on:
        _leave_response(connection, turn)
    changes: dict[str, Any] = {
        "provider": choice.provider,
        "model": choice.model,
        "options": choice.options,
        "background": choice.background,
        "attempt": turn.attempt + 1,
        "spent": 0,
        "healed": False,
        "usage": total(turn.usage, ended.usage),
        "checkpoint": None,
    }
    remaining = [one.model_dump(mode="json", exclude_none=True) for one in choice.fallbacks]
    first = func.coalesce(turns.c.first_choice, _CHOSEN)
    _write(connection, turn, update(turns).values(changes | {"fallbacks": remaining, "first_choice": first}))
    _end_attempt(connection, turn, ended)
    return replace(turn, **changes, fallbacks=choice.fallbacks, first_choice=turn.asked)


_MAY_DIFFER = ("provider", "model", "options", "background", "fallbacks")
_CHOSEN = func.jsonb_build_object(
    *chain.from_iterable((literal_column(f"'{name}'"), turns.c[name]) for name in _MAY_DIFFER)
)


def _leave_response(connection: Connection, turn: Claimed) -> None:
    """Note that a background response goes on which nobody will come back to."""
    left = select(
        turns.c.id, turns.c.step, turns.c.attempt, turns.c.checkpoint.op("-")(literal_column("'pieces'")), WHO_PAYS
    ).where(turns.c.id == turn.id, turns.c.epoch == turn.epoch, turns.c.checkpoint.is_not(None))
    columns = ["turn_id", "step", "attempt", "checkpoint", "owner"]
    connection.execute(insert(left_responses).from_select(columns, left))


def hand_back(connection: Connection, turn: Claimed, ended: Ended) -> None:
    """Running → queued, due at once; a background response goes on without us.  Raises LeaseLost."""
    _leave(connection, turn, TurnState.QUEUED, available_at=func.now(), rung_at=func.now(), **_cost(turn, ended))
    _end_attempt(connection, turn, ended)


def keep(connection: Connection, turn: Claimed, checkpoint: Checkpoint) -> None:
    """Write down how far a background response has come.  Raises LeaseLost."""
    _write(connection, turn, update(turns).values(checkpoint=checkpoint.model_dump(mode="json")))


def _leave(connection: Connection, turn: Claimed, state: TurnState, **values: Any) -> None:
    finished = {"finished_at": func.now()} if state.is_final else {}
    _write(connection, turn, update(turns).values(state=state, worker_id=None, **finished, **values))


def _write(connection: Connection, turn: Claimed, change: Update) -> None:
    """Change the turn, if it is where we believe it to be.

    The lease is the epoch. Step and attempt are for a write whose answer was lost: when it is tried again,
    it finds the turn moved on, by itself.
    """
    is_ours = and_(
        turns.c.id == turn.id,
        turns.c.state == TurnState.RUNNING,
        turns.c.epoch == turn.epoch,
        turns.c.step == turn.step,
        turns.c.attempt == turn.attempt,
        turns.c.runs_tools == turn.runs_tools,
    )
    if connection.execute(change.where(is_ours)).rowcount == 0:
        raise LeaseLost(turn.id, turn.epoch)


def _countdown(due: ColumnElement[Any], *, is_rung: bool) -> dict[str, Any]:
    # Whoever cancelled it in this moment should not wait for the countdown: the next claim ends it.
    was_asked = turns.c.cancel_requested_at.is_not(None)
    return {
        "available_at": case((was_asked, func.now()), else_=due),
        "rung_at": case((was_asked, None), else_=due) if is_rung else None,
    }


def _cost(turn: Claimed, ended: Ended) -> dict[str, Any]:
    return {"usage": total(turn.usage, ended.usage)}


def _checkpoint(*, goes_on: bool) -> dict[str, Any]:
    return {} if goes_on else {"checkpoint": None}


def total(spent: dict[str, int] | None, more: dict[str, int] | None) -> dict[str, int] | None:
    """Add up tokens by kind; what is absent on both sides stays absent.

    >>> total({"input_tokens": 3}, {"input_tokens": 4, "output_tokens": 1})
    {'input_tokens': 7, 'output_tokens': 1}
    """
    if not (spent and more):
        return spent or more
    return {name: spent.get(name, 0) + more.get(name, 0) for name in spent | more}


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
    _meter(connection, turn, ended)


def _meter(connection: Connection, turn: Claimed, ended: Ended) -> None:
    """Count what an attempt has cost; late, for the turns of an owner wait for each other here."""
    if turn.metered and ended.usage:
        limits.count_tokens(connection, turn.owner, ended.usage)


def store_messages(connection: Connection, turn: Claimed, said: Sequence[Message]) -> int:
    """Store *said* behind what the turn holds already; return the place of the first."""
    last = select(func.max(messages.c.position)).where(messages.c.turn_id == turn.id)
    highest = connection.scalar(last)
    first = 0 if highest is None else highest + 1
    place = {"turn_id": turn.id, "chat_id": turn.chat_id, "turn_seq": turn.seq}
    rows = [place | {"position": first + index} | _row(turn, message) for index, message in enumerate(said)]
    if rows:
        connection.execute(insert(messages), rows)
    return first


def _row(turn: Claimed, message: Message) -> dict[str, Any]:
    is_answer = message.role == "assistant"
    return {
        "role": message.role,
        "parts": Parts.dump_python(message.parts, mode="json"),
        "provider": turn.provider if is_answer else None,
        "model": turn.model if is_answer else None,
    }
