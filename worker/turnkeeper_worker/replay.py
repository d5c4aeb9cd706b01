"""Repair of a history before it is sent: what a provider would refuse is mended here, not there.  Pure.

Every tool call gets exactly one result, in the messages that follow it, and every result has its call.
What the call was waiting for is lost when a turn breaks off; the model is told so.  What another provider
wrote is brought into a form that anyone can read; what only one API asks for is that API's adapter's work.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from turnkeeper.messages import (
    Image,
    Message,
    Part,
    Reasoning,
    Refusal,
    Role,
    Text,
    ToolCall,
    ToolResult,
    WebSearch,
)

INTERRUPTED = "The tool call was interrupted before it gave a result."

MAX_CALL_ID_CHARS = 40
"""What OpenAI's Chat Completions, the strictest of the APIs, takes."""

_MARK_CHARS = 8
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
_STRANGE = re.compile(r"[^A-Za-z0-9_-]")
_PARTS_OF: dict[Role, tuple[type[Part], ...]] = {
    "user": (Text, Image, ToolResult),
    "assistant": (Text, Refusal, Reasoning, ToolCall, WebSearch),
}


@dataclass(frozen=True, slots=True)
class Said:
    """A message of the history, and who wrote it."""

    message: Message
    provider: str | None = None
    """The provider of an assistant's message."""


def readable_by(history: Sequence[Said], provider: str) -> tuple[Message, ...]:
    """Bring what other providers wrote into a form that *provider* can read.

    Reasoning and searches are encrypted, or named, for their writer alone, and go; the words that they led to
    stay. Tool calls keep their results under ids that everybody takes.
    """
    foreign_calls: set[str] = set()
    return tuple(
        _adopt(said.message, foreign_calls, is_foreign=said.provider not in {None, provider}) for said in history
    )


def _adopt(message: Message, foreign_calls: set[str], *, is_foreign: bool) -> Message:
    if is_foreign:
        foreign_calls.update(part.call_id for part in message.parts if isinstance(part, ToolCall))
    parts = tuple(
        _renamed(part, foreign_calls)
        for part in message.parts
        if not (is_foreign and isinstance(part, Reasoning | WebSearch))
    )
    return message if parts == message.parts else message.model_copy(update={"parts": parts})


def _renamed(part: Part, foreign_calls: set[str]) -> Part:
    if not isinstance(part, ToolCall | ToolResult) or part.call_id not in foreign_calls:
        return part
    call_id = plain_name(part.call_id, MAX_CALL_ID_CHARS)
    return part if call_id == part.call_id else part.model_copy(update={"call_id": call_id})


def plain_name(name: str, max_chars: int) -> str:
    """Return *name* where every API takes it, else one that they take: the same for the same, another for another.

    >>> plain_name("call_1", 40)
    'call_1'
    >>> plain_name("functions.look:0", 40)
    'functions_look_0_ec000204'
    """
    if not name or (len(name) <= max_chars and _PLAIN.fullmatch(name)):
        return name
    mark = sha256(name.encode()).hexdigest()[:_MARK_CHARS]
    return f"{_STRANGE.sub('_', name)[: max_chars - _MARK_CHARS - 1]}_{mark}"


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
        belonging = _PARTS_OF[message.role]
        return tuple(part for part in message.parts if isinstance(part, belonging) and self._keeps(part))

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
