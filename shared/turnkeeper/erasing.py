"""Erasing a chat: its rows at once, and what outlives them as soon as may be.

A turn that runs goes on for a moment, until its worker hears that it must stop or finds its row gone; what it says
meanwhile makes a new stream of events. A background response goes on for as long as nobody calls it off. The ids
of the erased turns are therefore kept, without a word of the chat, until the workers have seen to both.
"""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, Text, cast, func, select
from sqlalchemy.dialects.postgresql import insert

from turnkeeper.exceptions import UnknownChat
from turnkeeper.states import TurnState
from turnkeeper.tables import chats, erased_turns, turns
from turnkeeper.turns import WHO_PAYS


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """What was erased with a chat."""

    chat_id: UUID
    turns: tuple[UUID, ...]
    """All of its turns."""
    running: tuple[UUID, ...]
    """Those whose workers are still to be told."""


def erase_chat(connection: Connection, chat_id: UUID) -> Erased:
    """Delete a chat with all of its turns and messages.  Raises UnknownChat."""
    this = select(chats.c.id).where(chats.c.id == chat_id)
    # So strong from the start: a worker that stores a message asks first whether the chat is there, then the turn.
    if connection.scalar(this.with_for_update()) is None:
        raise UnknownChat(chat_id)
    of_chat = turns.c.chat_id == chat_id
    found = connection.execute(
        select(turns.c.id, turns.c.state).where(of_chat).order_by(turns.c.seq).with_for_update()
    ).all()
    remains = select(turns.c.id, turns.c.checkpoint.op("-")(cast("pieces", Text)), WHO_PAYS).where(of_chat)
    remember = insert(erased_turns).from_select(["id", "checkpoint", "owner"], remains)
    renew = {
        "checkpoint": remember.excluded.checkpoint,
        "owner": remember.excluded.owner,
        "erased_at": func.now(),
    }
    connection.execute(remember.on_conflict_do_update(index_elements=["id"], set_=renew))
    connection.execute(chats.delete().where(chats.c.id == chat_id))
    return Erased(
        chat_id=chat_id,
        turns=tuple(row.id for row in found),
        running=tuple(row.id for row in found if row.state == TurnState.RUNNING),
    )
