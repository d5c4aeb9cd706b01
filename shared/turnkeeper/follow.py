"""Following a turn: what to believe of its live stream, and what to say when the stream is gone.

Nothing here does I/O but `stored_events` and `end_of`; the clients read the stream and ask the database.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TypeAlias
from uuid import UUID

from pydantic import ValidationError
from sqlalchemy import Connection, select

from turnkeeper.errors import ChatError, ErrorKind
from turnkeeper.events import (
    Event,
    Fence,
    FinalEvent,
    TurnCancelled,
    TurnCommitted,
    TurnCompleted,
    TurnFailed,
    read_event,
)
from turnkeeper.exceptions import InvalidRequest
from turnkeeper.states import TurnState
from turnkeeper.tables import turns
from turnkeeper.turns import find_state, unknown
from turnkeeper.views import TurnView, show

Entry: TypeAlias = tuple[bytes, Mapping[bytes, bytes]]

FIELD = b"event"
"""The one field of a stream entry; it holds the event as JSON."""
BLOCK_MS = 1000
"""How long a follower waits for the stream before it asks the database whether the turn has ended."""
EVENTS_TTL_SECONDS = 3600
"""How long a stream is kept to which a producer wrote last; workers have a setting for theirs."""

_CURSOR = re.compile(r"(?:\d{1,20}-\d{1,20})?", re.ASCII)


@dataclass(slots=True)
class Follower:
    """Turns entries of the stream into the events that may be shown, once each."""

    cursor: str = ""
    """The id of the last entry that was read; resume after it."""
    is_over: bool = False
    _fence: Fence = field(default_factory=Fence)
    resumed_behind: str = field(init=False)
    """The cursor that we came with; what stands before it was told to whoever held it."""
    _told: set[int] = field(default_factory=set)
    """The places of the messages that were told as committed."""

    def __post_init__(self) -> None:
        """Raise InvalidRequest for a cursor that is none: Redis would refuse it at every reading."""
        if not _CURSOR.fullmatch(self.cursor):
            raise InvalidRequest(f"{self.cursor[:50]!r} is no cursor; resume after the `id` of an event")
        self.resumed_behind = self.cursor

    def admit(self, entries: Iterable[Entry]) -> list[Event]:
        """Decode *entries*, drop those of a fenced worker, and stop behind the final event."""
        admitted: list[Event] = []
        for identifier, content in entries:
            if self.is_over:
                break
            self.cursor = identifier.decode()
            event = self._read(content)
            if event is not None and self._fence.admits(event):
                admitted.append(event)
                self._note(event)
                self.is_over = isinstance(event, FinalEvent)
        return admitted

    def recall(self, entries: Iterable[Entry]) -> None:
        """Note what had been told before we came."""
        for _, content in entries:
            self._note(self._read(content))

    def misses(self, stored: list[Event]) -> bool:
        """Tell whether more is stored than was told."""
        return any(isinstance(one, TurnCommitted) and not self._was_told(one) for one in stored)

    def confirm(self, events: list[Event], stored: list[Event]) -> list[Event]:
        """Compare the final event, the last of *events*, with what is *stored* of that end.

        Where nothing is, it is none: its worker had lost the turn when it said so. Where more is than was told,
        because Redis lost it on the way, that goes first.
        """
        *before, final = events
        if not stored:
            self.is_over = False
            return before
        missing = [one for one in stored if isinstance(one, TurnCommitted) and not self._was_told(one)]
        if isinstance(final, TurnCancelled):
            kept = [one.model_copy(update={"id": final.id}) for one in stored if isinstance(one, TurnCancelled)]
            return [*before, *(kept or [final])]
        return [*before, *missing, final]

    def _note(self, event: Event | None) -> None:
        if isinstance(event, TurnCommitted):
            self._told.update(range(event.position, event.position + len(event.messages)))

    def _was_told(self, committed: TurnCommitted) -> bool:
        return self._told.issuperset(range(committed.position, committed.position + len(committed.messages)))

    def _read(self, content: Mapping[bytes, bytes]) -> Event | None:
        try:
            return read_event(self.cursor, content.get(FIELD, b""))
        except ValidationError:
            # A newer worker may say what this follower cannot understand yet.
            return None


def stored_events(connection: Connection, turn_id: UUID) -> list[Event]:
    """Tell the end of a turn from the database; nothing while it has not ended.

    Raises UnknownTurn or TurnRejected.
    """
    # Asked once a second by every follower of a quiet turn, so the whole turn is read only when it has ended.
    return ending(show(connection, turn_id)) if find_state(connection, turn_id).is_final else []


def end_of(connection: Connection, event: Event) -> list[Event]:
    """Tell what is stored of the end that a final event speaks of; nothing where the turn did not end with it.

    A follower who resumes may meet the last words of a worker that had lost the turn, before it hears of anybody
    who holds it. Whoever ends a turn stores that before it says so.  Raises UnknownTurn or TurnRejected.
    """
    turn = connection.execute(select(turns.c.state, turns.c.epoch).where(turns.c.id == event.turn_id)).first()
    if turn is None:
        raise unknown(connection, event.turn_id)
    is_so = TurnState(turn.state).is_final and turn.epoch == event.epoch
    return ending(show(connection, event.turn_id)) if is_so else []


def ending(turn: TurnView) -> list[Event]:
    """Return the events that a follower who saw nothing needs, or none while the turn goes on."""
    # What stands before the model's first words is the user's, whom nobody needs to tell.
    asked = tuple(takewhile(lambda message: message.role == "user", turn.messages))
    position, told = len(asked), turn.messages[len(asked) :]
    common = {"turn_id": turn.id, "epoch": turn.epoch, "step": turn.step, "attempt": turn.attempt}
    committed = [TurnCommitted(**common, position=position, messages=told)] if told else []
    match turn.state:
        case TurnState.COMPLETED:
            return [*committed, TurnCompleted(**common, usage=turn.usage)]
        case TurnState.FAILED:
            error = turn.error or ChatError(kind=ErrorKind.GENERIC, message="The turn failed.")
            return [*committed, TurnFailed(**common, error=error)]
        case TurnState.CANCELLED:
            return [TurnCancelled(**common, position=position, messages=told)]
        case TurnState.QUEUED | TurnState.RUNNING | TurnState.RETRYING:
            return []
