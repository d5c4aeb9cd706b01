"""Repair of a history before it is sent: what a provider would refuse is mended here, not there.  Pure.

Every tool call gets exactly one result, in the messages that follow it, and every result has its call.
What the call was waiting for is lost when a turn breaks off; the model is told so.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from turnkeeper.messages import Message, Part, Reasoning, Text, ToolCall, ToolResult

INTERRUPTED = "The tool call was interrupted before it gave a result."


@dataclass(frozen=True, slots=True)
class Said:
    """A message of the history, and who wrote it."""

    message: Message
    provider: str | None = None
    """The provider of an assistant's message."""


def without_foreign_thoughts(history: Sequence[Said], provider: str) -> tuple[Message, ...]:
    """Drop the reasoning that another provider wrote: it is encrypted, or named, for that one alone."""
    return tuple(
        said.message if said.provider in {None, provider} else _thoughtless(said.message) for said in history
    )


def _thoughtless(message: Message) -> Message:
    words = tuple(part for part in message.parts if not isinstance(part, Reasoning))
    return message.model_copy(update={"parts": words})


def repair(history: Sequence[Message], *, answered: Iterable[str] = ()) -> tuple[Message, ...]:
    """Return *history* with tool calls and results paired, and without empty messages.

    Args:
        history: The messages in order.
        answered: Ids of calls before this history whose results may come in it.
    """
    pairing = _Pairing(open_calls=dict.fromkeys(answered))
    for message in history:
        pairing.take(message)
    return pairing.finish()


@dataclass(slots=True)
class _Pairing:
    open_calls: dict[str, None]
    seen_calls: set[str] = field(default_factory=set)
    done: list[Message] = field(default_factory=list)

    def take(self, message: Message) -> None:
        if message.role == "assistant":
            self._emit(Message(role="user", parts=self._missing_results()))
            self._emit(message.model_copy(update={"parts": self._kept(message)}))
            return
        kept = self._kept(message)
        results = tuple(part for part in kept if isinstance(part, ToolResult))
        others = tuple(part for part in kept if not isinstance(part, ToolResult))
        self._emit(message.model_copy(update={"parts": (*results, *self._missing_results(), *others)}))

    def finish(self) -> tuple[Message, ...]:
        self._emit(Message(role="user", parts=self._missing_results()))
        return tuple(self.done)

    def _emit(self, message: Message) -> None:
        if message.parts:
            self.done.append(message)

    def _kept(self, message: Message) -> tuple[Part, ...]:
        return tuple(part for part in message.parts if self._keeps(part))

    def _keeps(self, part: Part) -> bool:
        match part:
            case ToolCall(call_id=call_id):
                is_new = bool(call_id) and call_id not in self.seen_calls
                if is_new:
                    self.seen_calls.add(call_id)
                    self.open_calls[call_id] = None
                return is_new
            case ToolResult(call_id=call_id):
                is_awaited = call_id in self.open_calls
                self.open_calls.pop(call_id, None)
                return is_awaited
            case Text(text=text):
                return bool(text)
            case _:
                return True

    def _missing_results(self) -> tuple[ToolResult, ...]:
        missing = tuple(
            ToolResult(call_id=call_id, output=INTERRUPTED, is_error=True) for call_id in self.open_calls
        )
        self.open_calls.clear()
        return missing
