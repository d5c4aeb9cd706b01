"""What was said in a chat, as one of its turns sees it: read, and fingerprinted.

A turn sees its chat up to its own number, but neither what was never said nor what had been edited before the turn
was enqueued; what is edited afterwards is still history for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from string import Template
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import Connection, text

from turnkeeper.messages import Message, Parts
from turnkeeper_worker.replay import Said

Place: TypeAlias = tuple[int, int]
"""A message of a chat: its turn's number, and its position there."""

START: Place = (0, 0)
"""Before every message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A chat as a turn sees it, as far as it was read: the messages behind a place, and what lies before."""

    after: Place
    rows: Sequence[Sequence[Any]]
    """The messages behind that place, as they are stored."""
    digest: str
    """The fingerprint of what lies before."""

    def said(self) -> tuple[Said, ...]:
        """Return the messages that were read.  Raises ValidationError for one that makes no sense."""
        return tuple(
            Said(Message(role=role, parts=Parts.validate_python(parts)), provider, credential)
            for role, parts, provider, credential in self.rows
        )


# The few turns that are hidden are looked up once, not for each message.
_SEEN = Template(
    """
    messages.chat_id = $chat AND messages.turn_seq <= $seen_by
    AND messages.turn_id NOT IN (
        SELECT unheard.id FROM turns AS unheard
        WHERE unheard.chat_id = $chat AND unheard.state = 'cancelled' AND unheard.started_at IS NULL
    )
    AND messages.turn_id NOT IN (
        SELECT edited.id FROM turns AS edited JOIN turns AS instead ON edited.superseded_by = instead.id
        WHERE edited.chat_id = $chat AND instead.seq <= $seen_by
    )
    """
)


def seen(chat: str, seen_by: str) -> str:
    """Return the condition in SQL for the messages that a turn sees.

    Args:
        chat: The turn's chat, in SQL.
        seen_by: The turn's number there, in SQL.
    """
    return _SEEN.substitute(chat=chat, seen_by=seen_by)


#: The fingerprint of rows that have the columns *digest*, *turn_seq* and *position*; it changes with any edit.
DIGEST = "md5(coalesce(string_agg(digest, ' ' ORDER BY turn_seq, position), ''))"

_ROWS = "json_agg(json_build_array(role, parts, provider, credential) ORDER BY turn_seq, position)"


def heard(chat: str, seen_by: str, after: str) -> str:
    """Return the columns *rows* and *digest* in SQL, of which `Heard` is made.

    Args:
        chat: The turn's chat, in SQL.
        seen_by: The turn's number there, in SQL.
        after: The place behind which the messages are read, in SQL.
    """
    is_seen = seen(chat, seen_by)
    return f"""
    (SELECT {_ROWS} FROM messages WHERE {is_seen} AND (turn_seq, position) > ({after})) AS rows,
    (SELECT {DIGEST} FROM messages WHERE {is_seen} AND (turn_seq, position) <= ({after})) AS digest
    """  # noqa: S608 - names of columns and parameters, no values


_HEAR = text(f"SELECT {heard('CAST(:chat AS uuid)', 'CAST(:seen_by AS integer)', ':seq, :position')}")


def hear(connection: Connection, chat_id: UUID, *, seen_by: int, after: Place = START) -> Heard:
    """Read what was said behind the message *after*, as the turn with the number *seen_by* sees it."""
    place = {"seq": after[0], "position": after[1]}
    row = connection.execute(_HEAR, {"chat": chat_id, "seen_by": seen_by} | place).one()
    return Heard(after=after, rows=row.rows or (), digest=row.digest)
