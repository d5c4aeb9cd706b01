"""What the streams of all APIs share: the facts that they know, and the rule by which an end is an answer.

Closed by default. A stream is an answer only after the terminal event of its API, and only if something was said;
everything else, the end of the stream included, is a failure.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from turnkeeper.events import PartKind
from turnkeeper.messages import Message, Part, Refusal, Text, ToolCall
from turnkeeper_worker.failures import Failure, Phase, Signal
from turnkeeper_worker.providers.fields import storable
from turnkeeper_worker.providers.interface import Answer, Failed, Listener, Result

#: After these the model had said all that it wanted to; after any other a tool call may be half of one.
_WHOLE = frozenset({"stop", "tool_calls"})
_FILTERED = frozenset({"content_filter", "refusal"})


@dataclass(slots=True, kw_only=True)
class EventStream(ABC):
    """Reads the events of one response until its end."""

    listener: Listener
    provider: str
    is_chained: bool = False
    is_kept: bool = False
    """The provider keeps the response, so that a later call can continue from it."""
    response_id: str | None = None
    model: str | None = None
    usage: dict[str, int] | None = None
    """What the response has cost so far; kept when it fails, because it is billed all the same."""
    has_begun: bool = False
    is_visible: bool = False
    is_complete: bool = False
    """Whether the answer is whole, and only its usage may still follow."""

    def take(self, event: object) -> Result | None:
        """Hear one event; return the result when it was the last one."""
        if not isinstance(event, dict):
            return self.broken("an event is no JSON object")
        self.has_begun = True
        if event.get("type") == "error" or event.get("error"):
            return self.failed(event, Signal.SSE_ERROR_EVENT)
        return self._take(event)

    def done(self) -> Result:
        """Judge a stream that was ended by `[DONE]`, which any stream may be, whether it succeeded or not."""
        return self.cut()

    def cut(self) -> Result:
        """Judge a stream that simply ended."""
        return self.lost(None, Signal.STREAM_TRUNCATED)

    def broken(self, what: str) -> Result:
        """Judge a stream whose bytes make no sense: it was damaged on the way, as one that was cut."""
        return self.lost({"message": f"The stream is malformed: {what}."}, Signal.STREAM_TRUNCATED)

    def lost(self, body: object, signal: Signal | None, **facts: Any) -> Result:
        """Judge a stream of which no more will come: nothing is lost if the answer was whole."""
        return self._conclude() if self.is_complete else self.failed(body, signal, **facts)

    def failed(self, body: object, signal: Signal | None, **facts: Any) -> Failed:
        """State the facts that the stream knows, and *facts* besides."""
        phase = Phase.MID_STREAM if self.has_begun else Phase.BEFORE_FIRST_EVENT
        failure = Failure(
            provider=self.provider,
            **({"phase": phase} | facts),
            signal=signal,
            body=body,
            chained=self.is_chained,
            visible=self.is_visible,
        )
        return Failed(failure=failure, response_id=self.response_id, usage=self.usage)

    @abstractmethod
    def _take(self, event: dict[str, Any]) -> Result | None:
        """Hear an event that is an object and no error."""

    @abstractmethod
    def _conclude(self) -> Result:
        """Judge the response at its proper end."""

    def _started(self, response_id: object) -> None:
        if isinstance(response_id, str) and response_id and self.response_id is None:
            self.response_id = storable(response_id)
            self.listener.started(self.response_id)

    def _counted(self, usage: dict[str, int] | None) -> None:
        """Note what the response has cost so far; None says nothing about it."""
        if usage and usage != self.usage:
            self.usage = usage
            self.listener.counted(usage)

    def _said(self, kind: PartKind, piece: str) -> None:
        if piece:
            self.is_visible = self.is_visible or kind in {"text", "refusal"}
            self.listener.said(kind, storable(piece))

    def _answer(self, said: Iterable[Part], finish: str, *, why: object) -> Result:
        """Return the answer, or the failure where nothing was said.

        Args:
            said: The parts of the response, in order.
            finish: Why the model stopped, in the words of `Answer.finish`.
            why: The same in the provider's words; it decides whether another attempt can do better.
        """
        parts = tuple(part for part in said if finish in _WHOLE or not isinstance(part, ToolCall))
        if finish in _FILTERED and not _says_something(parts):
            return self.failed(why, Signal.CONTENT_FILTER)
        if not (_says_something(parts) or (finish == "pause_turn" and parts)):
            return self.failed(why, Signal.EMPTY_OUTPUT)
        calls_tools = any(isinstance(part, ToolCall) for part in parts)
        if finish in _WHOLE:
            # Servers disagree on how to call the end of an answer that asks for tools; the parts do not.
            finish = "tool_calls" if calls_tools else "stop"
        return Answer(
            messages=(Message(role="assistant", parts=parts),),
            response_id=self.response_id,
            model=self.model,
            usage=self.usage,
            finish=finish,
            # An incomplete response leads a chain astray; open calls do not where the next request answers them.
            can_anchor=self.is_kept and finish in _WHOLE and self.response_id is not None,
        )


def _says_something(parts: Iterable[Part]) -> bool:
    return any(map(_is_said, parts))


def _is_said(part: Part) -> bool:
    match part:
        case Text(text=text) | Refusal(text=text):
            return bool(text.strip())
        case _:
            return isinstance(part, ToolCall)
