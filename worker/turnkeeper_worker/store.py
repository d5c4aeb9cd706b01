"""The worker's transitions: one named function and one guarded UPDATE per arrow of the state machine.

Every write of a running turn names its lease, (id, epoch). When no row answers, the turn is another worker's by
now: `LeaseLost`, and the transaction leaves nothing behind. Functions take an open connection; whoever changes
the chat as well locks it first, as everywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Update,
    and_,
    bindparam,
    case,
    exists,
    false,
    func,
    literal,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by, insert

from turnkeeper.errors import ChatError
from turnkeeper.messages import Message, Parts, ToolCall
from turnkeeper.states import WAITING_STATES, AttemptOutcome, TurnState
from turnkeeper.tables import attempts, chain_health, chats, messages, turns
from turnkeeper.turns import wake_next
from turnkeeper_worker.chain import Anchor, Credential, Health, read_anchor
from turnkeeper_worker.checkpoint import Checkpoint, read_checkpoint
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
    checkpoint: Checkpoint | None
    anchor: Anchor | None
    usage: dict[str, int] | None
    """What the attempts before this one have cost."""
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
        checkpoint=read_checkpoint(row.checkpoint),
        anchor=read_anchor(row.anchor),
        usage=row.usage,
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


# A turn that was cancelled before it ran was never said to anybody.
_unheard = turns.alias("unheard")
_WAS_HEARD = ~exists().where(
    _unheard.c.id == messages.c.turn_id,
    _unheard.c.state == TurnState.CANCELLED,
    _unheard.c.started_at.is_(None),
)
_edited, _instead = turns.alias("edited"), turns.alias("instead")


def _is_seen_by(seq: int) -> ColumnElement[bool]:
    """Whether a message is history for a turn with this number: what was edited since is still history for it."""
    return ~exists().where(
        _edited.c.id == messages.c.turn_id, _instead.c.id == _edited.c.superseded_by, _instead.c.seq <= seq
    )


_IN_ORDER = (messages.c.turn_seq, messages.c.position)
_PLACE = tuple_(*_IN_ORDER)
Place: TypeAlias = tuple[int, int]
"""A message of a chat: its turn's number, and its position there."""


def fingerprint(connection: Connection, chat_id: UUID, *, through: Place, seen_by: int) -> str:
    """Take the fingerprint of the history up to *through*; it changes with any edit.

    Args:
        connection: An open transaction.
        chat_id: The chat.
        through: The last message that counts.
        seen_by: The number of the turn whose history it is; a turn that was edited sees what it stood for.
    """
    joined = func.string_agg(messages.c.digest, aggregate_order_by(literal(" "), *_IN_ORDER))
    past = and_(messages.c.chat_id == chat_id, tuple_(literal(through[0]), literal(through[1])) >= _PLACE)
    found: str = connection.execute(
        select(func.md5(func.coalesce(joined, ""))).where(past, _WAS_HEARD, _is_seen_by(seen_by))
    ).scalar_one()
    return found


def load(connection: Connection, turn: Claimed, *, after: Place = (0, 0)) -> tuple[Said, ...]:
    """Read what was said in the chat behind the message *after*, the turn's own messages included."""
    rows = connection.execute(
        select(messages.c.role, messages.c.parts, messages.c.provider, messages.c.credential)
        .where(
            messages.c.chat_id == turn.chat_id,
            tuple_(literal(after[0]), literal(after[1])) < _PLACE,
            messages.c.turn_seq <= turn.seq,
            _WAS_HEARD,
            _is_seen_by(turn.seq),
        )
        .order_by(*_IN_ORDER)
    )
    return tuple(
        Said(Message(role=row.role, parts=Parts.validate_python(row.parts)), row.provider, row.credential)
        for row in rows
    )


def chain_health_of(connection: Connection, credential: Credential) -> Health:
    """Tell how chains have held lately."""
    found = connection.execute(
        select(
            chain_health.c.breaks,
            func.coalesce(chain_health.c.rests_until > func.now(), false()).label("is_resting"),
        ).where(chain_health.c.credential == credential.seal)
    ).first()
    return Health() if found is None else Health(found.breaks, found.is_resting)


def chain_held(connection: Connection, credential: Credential) -> None:
    """Note that a chain held, after some that broke."""
    connection.execute(
        update(chain_health).where(chain_health.c.credential == credential.seal).values(breaks=0, rests_until=None)
    )


def chain_broke(connection: Connection, credential: Credential, *, tolerated: int, rest: timedelta) -> None:
    """Count a broken chain; with *tolerated* of them in a row, chaining rests for this credential."""
    breaks = chain_health.c.breaks + 1
    until = case((breaks >= tolerated, func.now() + rest), else_=chain_health.c.rests_until)
    connection.execute(
        insert(chain_health)
        .values(
            credential=credential.seal,
            provider=credential.provider,
            breaks=1,
            rests_until=func.now() + rest if tolerated == 1 else None,
        )
        .on_conflict_do_update(
            index_elements=["credential"],
            set_={"breaks": breaks, "rests_until": until, "broken_at": func.now()},
        )
    )


def begin(
    connection: Connection, turn: Claimed, *, model: str | None, chained: bool, resumed: bool = False
) -> None:
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
            resumed=resumed,
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
    _lock_chat(connection, turn)
    _leave(connection, turn, TurnState.COMPLETED, usage=total(turn.usage, ended.usage), checkpoint=None)
    position, _ = _store_answer(connection, turn, ended, said, origin)
    return Settled(position, wake_next(connection, turn.chat_id))


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
    usage = total(turn.usage, ended.usage)
    _lock_chat(connection, turn)
    _write(connection, turn, update(turns).values(runs_tools=runs_tools, usage=usage, checkpoint=None))
    position, anchor = _store_answer(connection, turn, ended, said, origin)
    return replace(turn, runs_tools=runs_tools, usage=usage, checkpoint=None, anchor=anchor), position


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


def _store_answer(
    connection: Connection, turn: Claimed, ended: Ended, said: Sequence[Message], origin: Origin
) -> tuple[int, Anchor | None]:
    position = store_messages(connection, turn, said, origin)
    _end_attempt(connection, turn, ended)
    anchor = _anchor(connection, turn, (turn.seq, position + len(said) - 1), said, origin)
    _update_chat(connection, turn, anchor=anchor and anchor.model_dump(mode="json"), last_error=None)
    return position, anchor


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
        digest=fingerprint(connection, turn.chat_id, through=through, seen_by=turn.seq),
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
    # Whoever cancelled it in this moment should not wait for the countdown: the next claim ends it.
    was_asked = turns.c.cancel_requested_at.is_not(None)
    _leave(
        connection,
        turn,
        TurnState.RETRYING,
        spent=turn.spent + 1,
        available_at=case((was_asked, func.now()), else_=due),
        rung_at=case((was_asked, None), else_=due) if is_rung else None,
        **_cost(turn, ended),
        **_checkpoint(goes_on=goes_on),
    )
    _end_attempt(connection, turn, ended)
    retrying_at: datetime = connection.execute(select(due)).scalar_one()
    return retrying_at


def heal(connection: Connection, turn: Claimed, ended: Ended) -> Claimed:
    """Clear the broken anchor and number the next attempt; the turn stays running.  Raises LeaseLost."""
    usage = total(turn.usage, ended.usage)
    changes: dict[str, Any] = {"healed": True, "attempt": turn.attempt + 1, "usage": usage, "checkpoint": None}
    _lock_chat(connection, turn)
    _write(connection, turn, update(turns).values(changes))
    _end_attempt(connection, turn, ended)
    _update_chat(connection, turn, anchor=None)
    return replace(turn, **changes, anchor=None)


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


def store_messages(
    connection: Connection, turn: Claimed, said: Sequence[Message], origin: Origin | None = None
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
            "provider": turn.provider if message.role == "assistant" else None,
            "model": turn.model if message.role == "assistant" else None,
            "credential": origin.credential.seal if origin else None,
            "response_id": origin.response_id if origin else None,
        }
        for index, message in enumerate(said)
    ]
    if rows:
        connection.execute(insert(messages), rows)
    return first
