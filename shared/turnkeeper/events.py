"""The live events of a turn, and the rollback rule that makes them safe to show.

Everything a model says arrives first as *provisional* parts. They become true with `turn.committed`, and
they are void as soon as the step is tried again: on `turn.retry`, or on any event of a higher epoch or
attempt. `Transcript` applies the rule; `unvoided` spares a late follower what is void already.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Literal, NamedTuple, TypeAlias
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from turnkeeper.errors import ChatError
from turnkeeper.messages import Message

PartKind = Literal["text", "reasoning", "refusal", "tool_call"]


class Place(NamedTuple):
    """Which try at which step an event speaks for; a later one outranks an earlier one."""

    epoch: int
    step: int
    attempt: int


BEFORE_ALL = Place(0, 0, 0)


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = ""
    """The cursor to resume after; empty where the event was not read from the stream."""
    turn_id: UUID
    epoch: int
    step: int = 1
    attempt: int = 0
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @property
    def place(self) -> Place:
        """The try that this event speaks for."""
        return Place(self.epoch, self.step, self.attempt)


class TurnStarted(_Event):
    """A worker begins an attempt."""

    type: Literal["turn.started"] = "turn.started"
    provider: str
    model: str | None = None
    chained: bool = False
    resumed: bool = False
    """It comes back to a background response, and says again what is known of it."""


class TurnPart(_Event):
    """A piece of the answer; provisional until the step is committed."""

    type: Literal["turn.part"] = "turn.part"
    kind: PartKind = "text"
    text: str


class TurnRetry(_Event):
    """The attempt is void; another follows."""

    type: Literal["turn.retry"] = "turn.retry"
    reason: Literal["retry", "heal", "fall_back", "handed_back", "rescued", "cooldown"] = "retry"
    delay_ms: int = 0
    retrying_at: datetime
    error: ChatError | None = None
    """In retry copy; None where the provider did nothing wrong.  Of a `cooldown`: why it is not called now."""
    provider: str | None = None
    """Who goes on, where the turn falls back."""
    model: str | None = None


class TurnCommitted(_Event):
    """A step is stored; its messages replace the provisional parts."""

    type: Literal["turn.committed"] = "turn.committed"
    position: int = 1
    """The place of the first message in its turn; the same place always holds the same message."""
    messages: tuple[Message, ...]


class TurnCompleted(_Event):
    """The turn has its answer."""

    type: Literal["turn.completed"] = "turn.completed"
    usage: dict[str, int] | None = None
    finish: str = "stop"
    """Why the model stopped: `stop`, `max_output_tokens`, `content_filter`, `tool_calls`, …"""


class TurnFailed(_Event):
    """The turn ended without an answer."""

    type: Literal["turn.failed"] = "turn.failed"
    error: ChatError


class TurnCancelled(_Event):
    """The turn was cancelled; what had been said is kept."""

    type: Literal["turn.cancelled"] = "turn.cancelled"
    position: int = 1
    messages: tuple[Message, ...] = ()


Event: TypeAlias = Annotated[
    TurnStarted | TurnPart | TurnRetry | TurnCommitted | TurnCompleted | TurnFailed | TurnCancelled,
    Field(discriminator="type"),
]
FinalEvent: TypeAlias = TurnCompleted | TurnFailed | TurnCancelled
EVENT_TYPES: tuple[type[BaseModel], ...] = (
    TurnStarted,
    TurnPart,
    TurnRetry,
    TurnCommitted,
    TurnCompleted,
    TurnFailed,
    TurnCancelled,
)
COMMON_FIELDS = frozenset({*_Event.model_fields, "type"})
_event: TypeAdapter[Event] = TypeAdapter(Event)


def read_event(cursor: str, content: bytes | str) -> Event:
    """Decode an entry of the stream.  Raises pydantic.ValidationError for what is no event."""
    return _event.validate_json(content).model_copy(update={"id": cursor})


def unvoided(backlog: Sequence[Event]) -> list[Event]:
    """Drop the provisional parts that a later event of the same backlog made void or true."""
    kept: list[Event] = []
    floor = BEFORE_ALL
    for event in reversed(backlog):
        if not isinstance(event, TurnPart) or event.place >= floor:
            kept.append(event)
        floor = max(floor, _settles_below(event))
    return kept[::-1]


def _settles_below(event: Event) -> Place:
    """Return the lowest place whose parts still stand after *event*."""
    match event:
        case TurnRetry() | TurnCommitted() | TurnFailed() | TurnCancelled():
            return Place(event.epoch, event.step, event.attempt + 1)
        case TurnStarted() | TurnPart() | TurnCompleted():
            return event.place


@dataclass(slots=True)
class Fence:
    """Lets through only what the newest holder of the turn says."""

    epoch: int = 0

    def admits(self, event: Event) -> bool:
        """Tell whether *event* may be shown; remembers it when it may."""
        if event.epoch < self.epoch:
            return False
        self.epoch = event.epoch
        return True


@dataclass(slots=True)
class Transcript:
    """What a reader sees of a turn at this moment: the rollback rule, applied.

    >>> turn = UUID(int=1)
    >>> seen = Transcript()
    >>> seen.feed([TurnPart(turn_id=turn, epoch=1, attempt=1, text="Hel")])
    >>> seen.feed([TurnPart(turn_id=turn, epoch=1, attempt=2, text="Hello")])
    >>> seen.text
    'Hello'
    """

    messages: dict[int, Message] = field(default_factory=dict)
    """What is committed, by its place in the turn; a repeated commit changes nothing."""
    provisional: list[TurnPart] = field(default_factory=list)
    _place: Place = BEFORE_ALL

    @property
    def text(self) -> str:
        """The committed words, then the provisional ones."""
        said = "".join(self.messages[position].text for position in sorted(self.messages))
        return said + "".join(part.text for part in self.provisional if part.kind in {"text", "refusal"})

    def feed(self, events: Iterable[Event]) -> None:
        """Apply *events* in order."""
        for event in events:
            self._apply(event)

    def _apply(self, event: Event) -> None:
        if event.epoch < self._place.epoch:
            # A reader who resumed may meet the last words of a worker that lost the turn long ago.
            return
        if event.place > self._place:
            self.provisional.clear()
            self._place = event.place
        match event:
            case TurnPart():
                self.provisional.append(event)
            case TurnCommitted() | TurnCancelled():
                self.provisional.clear()
                self.messages.update(enumerate(event.messages, event.position))
            case TurnRetry() | TurnFailed():
                self.provisional.clear()
            case TurnStarted() | TurnCompleted():
                pass
