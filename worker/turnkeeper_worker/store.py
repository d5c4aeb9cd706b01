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

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Update,
    and_,
    bindparam,
    case,
    delete,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from turnkeeper import limits
from turnkeeper.errors import ChatError
from turnkeeper.messages import Message, Parts, ToolCall
from turnkeeper.requests import Fallback, Fallbacks
from turnkeeper.states import WAITING_STATES, AttemptOutcome, TurnState
from turnkeeper.tables import attempts, chats, left_responses, messages, turns
from turnkeeper.turns import WHO_PAYS, wake_next
from turnkeeper_worker.chain import Anchor, Credential, Health, read_anchor
from turnkeeper_worker.checkpoint import Checkpoint, read_checkpoint
from turnkeeper_worker.history import Heard
from turnkeeper_worker.statements import CLAIM, STORE_ANSWER

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A turn that was just claimed, and what the same statement read of its chat."""

    turn: Claimed
    heard: Heard
    """What was said behind the chat's anchor; all of it where there is none."""
    health: Health
    """How chains have held for the key that the turn's provider has here."""


Claim: TypeAlias = Taken | Early | NotMine


def claim(connection: Connection, turn_id: UUID, worker_id: UUID, providers: str = "{}") -> Claim:
    """queued, retrying → running.  Enters the attempt, unless tools are to be run first.

    Args:
        connection: A connection; all is one statement.
        turn_id: The turn that is due.
        worker_id: Who claims it.
        providers: The default model and the seal of each provider, by its name, in JSON.
    """
    row = connection.execute(CLAIM, {"turn": turn_id, "worker": worker_id, "providers": providers}).first()
    return _not_claimed(connection, turn_id) if row is None else _taken(row, worker_id)


_KEPT_AS_STORED = (
    *("id", "chat_id", "owner", "seq", "epoch", "step", "attempt", "spent", "healed", "runs_tools", "provider"),
    *("model", "options", "instructions", "background", "usage", "metered", "elapsed", "is_cancelled"),
    *("others_stand_back", "waited", "trace_context"),
)


def _taken(row: Row[Any], worker_id: UUID) -> Taken:
    return Taken(
        turn=_claimed(row, worker_id),
        heard=Heard(after=(row.after_seq, row.after_position), rows=row.rows or (), digest=row.digest),
        health=Health(row.breaks, row.is_resting),
    )


def _claimed(row: Row[Any], worker_id: UUID) -> Claimed:
    return Claimed(
        **{name: getattr(row, name) for name in _KEPT_AS_STORED},
        worker_id=worker_id,
        tools=tuple(row.tools),
        fallbacks=_read_fallbacks(row.fallbacks),
        first_choice=None if row.first_choice is None else _asked(row.first_choice),
        checkpoint=read_checkpoint(row.checkpoint),
        anchor=read_anchor(row.anchor),
    )


_FALLBACKS: TypeAdapter[Fallbacks | None] = TypeAdapter(Fallbacks | None)


def _read_fallbacks(stored: object) -> Fallbacks | None:
    """Read fallbacks back; what cannot be read names nobody."""
    try:
        return _FALLBACKS.validate_python(stored)
    except ValidationError:
        return ()


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


def begin(connection: Connection, turn: Claimed) -> None:
    """Enter the attempt that a heal, a fall back or the next step has numbered; the first one is the claim's."""
    connection.execute(
        _BEGIN,
        {
            "turn_id": turn.id,
            "step": turn.step,
            "number": turn.attempt,
            "epoch": turn.epoch,
            "worker_id": turn.worker_id,
            "provider": turn.provider,
            "model": turn.model,
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How an attempt ended, as its row keeps it."""

    outcome: AttemptOutcome
    chained: bool | None = None
    """Whether the request continued from an anchor; None where no request was planned."""
    resumed: bool | None = None
    """Whether it came back to a background response that an earlier attempt had asked for; None likewise."""
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
    row = _store_answer(connection, turn, ended, said, origin, is_last=True)
    stored = _stored(connection, turn, ended, row)
    # Whoever enqueued behind us did so before we locked the chat, or will find the turn ended.
    has_followers = stored.turn_count > turn.seq
    return Settled(stored.position, wake_next(connection, turn.chat_id) if has_followers else None)


def complete_at_once(
    connection: Connection, turn: Claimed, ended: Ended, said: Sequence[Message], origin: Origin
) -> Settled | None:
    """Do what `complete` does, in one statement that commits by itself, which spares two round trips.

    Returns None, and has written nothing, where that takes more: a turn of the chat waits behind this one, or what
    it cost is counted. So it does where the lease is lost; `complete` tells which.
    """
    if turn.metered:
        return None
    row = _store_answer(connection, turn, ended, said, origin, is_last=True, only_unfollowed=True)
    return None if row is None else Settled(row.position, woken=None)


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
    row = _store_answer(connection, turn, ended, said, origin, runs_tools=runs_tools)
    stored = _stored(connection, turn, ended, row)
    usage = total(turn.usage, ended.usage)
    following = replace(turn, runs_tools=runs_tools, usage=usage, checkpoint=None, anchor=stored.anchor)
    return following, stored.position


def confirm(connection: Connection, turn: Claimed) -> None:
    """Hold the turn still until the transaction ends, if it is ours.  Raises LeaseLost."""
    ours = select(turns.c.id).where(_is_ours(turn)).with_for_update(key_share=True)
    if connection.execute(ours).first() is None:
        raise LeaseLost(turn.id, turn.epoch)


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


def _stored(connection: Connection, turn: Claimed, ended: Ended, row: Row[Any] | None) -> _Stored:
    """Count what the answer has cost, and tell what its storing brought about.  Raises LeaseLost."""
    if row is None:
        raise LeaseLost(turn.id, turn.epoch)
    _meter(connection, turn, ended)
    return _Stored(row.position, row.turn_count, read_anchor(row.anchor))


def _store_answer(
    connection: Connection,
    turn: Claimed,
    ended: Ended,
    said: Sequence[Message],
    origin: Origin,
    *,
    is_last: bool = False,
    runs_tools: bool = False,
    only_unfollowed: bool = False,
) -> Row[Any] | None:
    """Store messages, and what they mean for turn, attempt and chat; return None where nothing was written."""
    return connection.execute(
        STORE_ANSWER,
        {
            "turn_id": turn.id,
            "chat_id": turn.chat_id,
            "seq": turn.seq,
            "epoch": turn.epoch,
            "step": turn.step,
            "attempt": turn.attempt,
            "only_unfollowed": only_unfollowed,
            "is_last": is_last,
            "runs_tools": runs_tools,
            "total": total(turn.usage, ended.usage),
            "outcome": ended.outcome,
            "chained": ended.chained,
            "resumed": ended.resumed,
            "usage": ended.usage,
            "first_event_at": ended.first_event_at,
            "response_id": origin.response_id,
            "credential": origin.credential.seal,
            "said": [_row(turn, message) for message in said],
            "anchor": _anchor(turn, said, origin),
        },
    ).first()


def _anchor(turn: Claimed, said: Sequence[Message], origin: Origin) -> dict[str, Any] | None:
    """Return what becomes the chat's anchor, but for its position and digest, which the database knows."""
    if origin.response_id is None or not origin.anchors:
        return None
    return {
        "response_id": origin.response_id,
        "credential": origin.credential.model_dump(),
        "seq": turn.seq,
        "terms": origin.terms,
        "calls": [part.call_id for message in said for part in message.parts if isinstance(part, ToolCall)],
        "made_at": datetime.now(UTC).isoformat(),
    }


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
    if connection.execute(change.where(_is_ours(turn))).rowcount == 0:
        raise LeaseLost(turn.id, turn.epoch)


def _is_ours(turn: Claimed) -> ColumnElement[bool]:
    return and_(
        turns.c.id == turn.id,
        turns.c.state == TurnState.RUNNING,
        turns.c.epoch == turn.epoch,
        turns.c.step == turn.step,
        turns.c.attempt == turn.attempt,
        turns.c.runs_tools == turn.runs_tools,
    )


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
            chained=ended.chained,
            resumed=ended.resumed,
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
