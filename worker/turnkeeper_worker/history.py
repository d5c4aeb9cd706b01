"""What was said in a chat, as one of its turns sees it: read, and fingerprinted.

A turn sees its chat up to its own number, but neither what was never said nor what had been edited before the turn
was enqueued; what is edited afterwards is still history for it.
"""

from typing import TypeAlias
from uuid import UUID

from sqlalchemy import Connection, and_, bindparam, func, literal, select, tuple_
from sqlalchemy.dialects.postgresql import aggregate_order_by

from turnkeeper.messages import Message, Parts
from turnkeeper.states import TurnState
from turnkeeper.tables import messages, turns
from turnkeeper_worker.replay import Said

Place: TypeAlias = tuple[int, int]
"""A message of a chat: its turn's number, and its position there."""

START: Place = (0, 0)
"""Before every message."""

_IN_ORDER = (messages.c.turn_seq, messages.c.position)
_PLACE = tuple_(*_IN_ORDER)
_BOUND = tuple_(bindparam("bound_seq"), bindparam("bound_position"))

# The few turns that are hidden are looked up once, not for each message.
_hidden, _instead = turns.alias("hidden"), turns.alias("instead")
_OF_CHAT = _hidden.c.chat_id == bindparam("chat")
_UNHEARD = and_(_OF_CHAT, _hidden.c.state == TurnState.CANCELLED, _hidden.c.started_at.is_(None))
_EDITED = and_(_OF_CHAT, _hidden.c.superseded_by == _instead.c.id, _instead.c.seq <= bindparam("seen_by"))
_IS_SEEN = and_(
    messages.c.chat_id == bindparam("chat"),
    messages.c.turn_seq <= bindparam("seen_by"),
    messages.c.turn_id.not_in(select(_hidden.c.id).where(_UNHEARD)),
    messages.c.turn_id.not_in(select(_hidden.c.id).where(_EDITED)),
)

_digests = func.string_agg(messages.c.digest, aggregate_order_by(literal(" "), *_IN_ORDER))
_FINGERPRINT = select(func.md5(func.coalesce(_digests, ""))).where(_IS_SEEN, _PLACE <= _BOUND)
_HISTORY = (
    select(messages.c.role, messages.c.parts, messages.c.provider, messages.c.credential)
    .where(_IS_SEEN, _PLACE > _BOUND)
    .order_by(*_IN_ORDER)
)


def load(connection: Connection, chat_id: UUID, *, seen_by: int, after: Place = START) -> tuple[Said, ...]:
    """Read what was said behind the message *after*, as the turn with the number *seen_by* sees it."""
    rows = connection.execute(_HISTORY, _bounds(chat_id, seen_by, after))
    return tuple(
        Said(Message(role=row.role, parts=Parts.validate_python(row.parts)), row.provider, row.credential)
        for row in rows
    )


def fingerprint(connection: Connection, chat_id: UUID, *, seen_by: int, through: Place) -> str:
    """Take the fingerprint of what was said up to the message *through*; it changes with any edit."""
    found: str = connection.execute(_FINGERPRINT, _bounds(chat_id, seen_by, through)).scalar_one()
    return found


def _bounds(chat_id: UUID, seen_by: int, bound: Place) -> dict[str, UUID | int]:
    return {"chat": chat_id, "seen_by": seen_by, "bound_seq": bound[0], "bound_position": bound[1]}
