"""What every provider looks like to the turn: one call in, an answer or a failure out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, TypeAlias

from turnkeeper.events import PartKind
from turnkeeper.messages import Message
from turnkeeper_worker.failures import Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """A tool of the worker's, as the model is told of it."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """The JSON schema of its arguments, an object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A background response that goes on at the provider, whatever becomes of our connection."""

    response_id: str
    began_at: datetime
    """When the provider began it; a response that is still `queued` long after is given up."""
    cursor: int
    """The sequence number of the last event that was heard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request to a model."""

    request_id: str
    """Ours, sent along so that both sides can name the call."""
    model: str
    history: tuple[Message, ...]
    """Repaired; only what is new where the call is chained."""
    previous_response_id: str | None = None
    """The anchor: a response of OpenAI's, or a message of an Anthropic thread."""
    instructions: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the request, as the producer gave them."""
    tools: tuple[ToolSpec, ...] = ()
    """The worker's tools, beside those that the options describe."""
    background: bool = False
    """Let the provider go on whatever becomes of our connection."""
    running: Running | None = None
    """The background response to come back to, instead of asking for another."""
    may_chain: bool = True
    """Whether a later call may continue from this one; if not, no thread is opened for it."""
    continues: bool = False
    """The last message of the history is an assistant's that was paused; the model goes on with it."""

    @property
    def is_chained(self) -> bool:
        """Whether the call continues from an anchor."""
        return self.previous_response_id is not None

    @property
    def is_resumed(self) -> bool:
        """Whether the call comes back to a response that an earlier one asked for."""
        return self.running is not None


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
    goes_on: bool = False
    """The background response may still be running at the provider: come back to it rather than ask anew."""


Result: TypeAlias = Answer | Failed


@dataclass(frozen=True, slots=True)
class CalledOff:
    """What became of a background response that was to be cancelled."""

    is_over: bool
    """False where the provider could not be reached, and the response may still be running."""
    usage: dict[str, int] | None = None
    """What it has cost, where the provider says so."""


class Listener(Protocol):
    """Hears a call while it goes on; its methods return at once."""

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """Hear that the head of the response has come.

        Args:
            status: Its status, of a refusal as well.
            headers: Those that tell of limits, by their names in lower case, and its date.
        """

    def started(self, response_id: str) -> None:
        """Hear that the provider has begun the response."""

    def said(self, kind: PartKind, text: str) -> None:
        """Hear a piece of the answer, still provisional."""

    def counted(self, usage: dict[str, int]) -> None:
        """Hear what the response has cost so far; each count replaces the one before."""

    async def reached(self, running: Running) -> None:
        """Hear how far a background response is, and keep it: what follows is heard only after that.

        Called as soon as the response has an id, before any piece of it is said, and with every event that moves
        the cursor; the listener chooses which of the later ones are worth writing down.
        """


class Provider(Protocol):
    """One configured provider."""

    async def call(self, call: Call, listener: Listener) -> Result:
        """Make one attempt.

        Raises nothing but CancelledError, and that only when we cancel, and what `listener.reached` raises.
        """

    async def call_off(self, response_id: str) -> CalledOff:
        """Cancel a background response that nobody waits for any more."""

    async def close(self) -> None:
        """Give the connections back."""
