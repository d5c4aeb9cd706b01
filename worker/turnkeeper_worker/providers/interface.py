"""What every provider looks like to the turn: one call in, an answer or a failure out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from turnkeeper.events import PartKind
from turnkeeper.messages import Message
from turnkeeper_worker.failures import Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request to a model."""

    request_id: str
    """Ours, sent along so that both sides can name the call."""
    model: str
    history: tuple[Message, ...]
    """Repaired; only what is new where the call is chained."""
    previous_response_id: str | None = None
    instructions: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the request, as the producer gave them."""

    @property
    def is_chained(self) -> bool:
        """Whether the call continues from an anchor."""
        return self.previous_response_id is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A stream that came to its proper end."""

    messages: tuple[Message, ...]
    response_id: str | None
    model: str | None
    usage: dict[str, int] | None
    finish: str
    """Why the model stopped: `stop`, `tool_calls`, `max_output_tokens`, `content_filter`, `refusal`, `pause_turn`,
    or a word of the provider's own. Only with `tool_calls` are there calls, and all of them are whole."""
    can_anchor: bool
    """Whether the next turn may continue from `response_id`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A call that gave no answer, with what it cost all the same."""

    failure: Failure
    response_id: str | None = None
    usage: dict[str, int] | None = None


Result: TypeAlias = Answer | Failed


class Listener(Protocol):
    """Hears a call while it goes on; its methods return at once."""

    def started(self, response_id: str) -> None:
        """Hear that the provider has begun the response."""

    def said(self, kind: PartKind, text: str) -> None:
        """Hear a piece of the answer, still provisional."""


class Provider(Protocol):
    """One configured provider."""

    async def call(self, call: Call, listener: Listener) -> Result:
        """Make one attempt.  Raises nothing but CancelledError, and that only when we cancel."""

    async def close(self) -> None:
        """Give the connections back."""
