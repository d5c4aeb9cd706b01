"""Repair of a history before it is sent: what a provider would refuse is mended here, not there.  Pure.

Every tool call gets exactly one result, in the messages that follow it, and every result has its call.
What the call was waiting for is lost when a turn breaks off; the model is told so.  What another provider
wrote, or sealed under another key, is brought into a form that anyone can read; what only one API asks for is that
API's adapter's work.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count

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
    seal: str | None = None
    """Who can read what is sealed in it; None where that was not noted."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Who the history is for."""

    provider: str
    seal: str | None
    """None: whatever is sealed is refused, as it just was."""


def readable_by(history: Sequence[Said], reader: Reader) -> tuple[Message, ...]:
    """Bring what others wrote into a form that *reader* can read.

    Another provider's reasoning and searches are encrypted, or named, for their writer alone, and go; the words
    that they led to stay. Tool calls keep their results under ids that everybody takes. What the same provider
    sealed under another key goes as well, and nothing else.
    """
    foreign_calls: set[str] = set()
    return tuple(_adopt(said, reader, foreign_calls) for said in history)


def _adopt(said: Said, reader: Reader, foreign_calls: set[str]) -> Message:
    message = said.message
    is_foreign = said.provider not in {None, reader.provider}
    is_sealed = reader.seal is None or said.seal not in {None, reader.seal}
    if is_foreign:
        foreign_calls.update(part.call_id for part in message.parts if isinstance(part, ToolCall))
    parts = tuple(
        _renamed(part, foreign_calls)
        for part in message.parts
        if not (is_foreign and isinstance(part, Reasoning | WebSearch)) and not (is_sealed and _has_seal(part))
    )
    return message if parts == message.parts else message.model_copy(update={"parts": parts})


def _has_seal(part: Part) -> bool:
    match part:
        case Reasoning():
            return any((part.encrypted, part.signature, part.redacted))
        case WebSearch(sources=sources):
            return any(source.encrypted for source in sources or ())
        case _:
            return False


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
    calls = tuple(answered)
    pairing = _Pairing(open_calls=dict(zip(calls, calls, strict=True)), seen_ids=set(map(_plain, calls)))
    for message in history:
        pairing.take(message)
    return pairing.finish()


def interrupted(call_id: str) -> ToolResult:
    """Return what the model is told of a call that broke off."""
    return ToolResult(call_id=call_id, output=INTERRUPTED, is_error=True)


@dataclass(slots=True)
class _Pairing:
    open_calls: dict[str, str]
    """Calls without a result: their id → the id under which they are sent."""
    seen_ids: set[str] = field(default_factory=set)
    """In the form in which the strictest API is told of them, where two that differ may become one."""
    results: list[ToolResult] = field(default_factory=list)
    heard: list[Message] = field(default_factory=list)
    """What the user said besides the results, until the model speaks again."""
    done: list[Message] = field(default_factory=list)

    def take(self, message: Message) -> None:
        belonging = _PARTS_OF[message.role]
        parts = [part for part in message.parts if isinstance(part, belonging) and _says_something(part)]
        if message.role == "user":
            self.results += [result for part in parts if (result := self._answered(part)) is not None]
            self._hear(message, [part for part in parts if not isinstance(part, ToolResult)])
        elif parts:
            self._settle()
            called = [kept for part in parts if (kept := self._called(part)) is not None]
            self.done.append(message.model_copy(update={"parts": tuple(called)}))

    def finish(self) -> tuple[Message, ...]:
        self._settle()
        return tuple(self.done)

    def _hear(self, message: Message, parts: Sequence[Part]) -> None:
        if parts:
            self.heard.append(message.model_copy(update={"parts": tuple(parts)}))

    def _settle(self) -> None:
        """Give the user's side out: results first, as every API asks, and what is missing of them made up."""
        results, heard = (*self.results, *self._missing_results()), self.heard
        if results and heard:
            # The results and the words behind them are one message, as some APIs ask.
            heard[0] = heard[0].model_copy(update={"parts": (*results, *heard[0].parts)})
        elif results:
            heard = [Message(role="user", parts=results)]
        self.done += heard
        self.results, self.heard = [], []

    def _called(self, part: Part) -> Part | None:
        if not isinstance(part, ToolCall):
            return part
        if part.call_id in self.open_calls:
            return None
        sent_as = self._unused(part.call_id)
        self.seen_ids.add(_plain(sent_as))
        self.open_calls[part.call_id] = sent_as
        return part if sent_as == part.call_id else part.model_copy(update={"call_id": sent_as})

    def _unused(self, call_id: str) -> str:
        """Return *call_id*, or a new name for it: some servers count their calls from 0 in every answer."""
        if _plain(call_id) not in self.seen_ids:
            return call_id
        names = (_plain(f"{call_id}_{number}") for number in count(2))
        return next(name for name in names if name not in self.seen_ids)

    def _answered(self, part: Part) -> ToolResult | None:
        if not isinstance(part, ToolResult):
            return None
        sent_as = self.open_calls.pop(part.call_id, None)
        return None if sent_as is None else part.model_copy(update={"call_id": sent_as})

    def _missing_results(self) -> tuple[ToolResult, ...]:
        missing = tuple(map(interrupted, self.open_calls.values()))
        self.open_calls.clear()
        return missing


def _plain(call_id: str) -> str:
    return plain_name(call_id, MAX_CALL_ID_CHARS)


def _says_something(part: Part) -> bool:
    match part:
        case Text(text=words) | ToolCall(call_id=words):
            return bool(words)
        case _:
            return True
