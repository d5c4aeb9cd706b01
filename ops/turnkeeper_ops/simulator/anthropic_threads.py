"""Message threads: conversations that Anthropic keeps for a while, so that only what is new is sent.

A thread is not one object: each message of the model's stands for the conversation up to it, and can be
continued once.  Time is handed in.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from turnkeeper_ops.simulator.anthropic_errors import MessagesError
from turnkeeper_ops.simulator.scripts import Spelling
from turnkeeper_ops.simulator.vault import StoredResponse, history

BETA = "message-threads-2026-08-12"
KEPT_SECONDS = 300.0
"""After the last request; the API promises no more, and deletes what was kept within the hour."""
MAX_MESSAGES = 20_000
"""The oldest message is dropped first."""

_INHERITED = ("system", "tools")
"""What the thread keeps, so that it is left out of what continues it."""
_PINNED = ("model", *_INHERITED, "thinking", "output_config")
"""What must stay the same along a thread."""
_UNSUPPORTED = ("context_management", "fallbacks")
"""What cannot be asked for together with a thread."""


@dataclass(frozen=True, slots=True)
class Thread:
    """What a request asks for with `thread`."""

    previous: str | None
    """The message that it continues from; None: it begins a thread."""


class Use(Enum):
    """Whether a message was continued."""

    NOT_YET = "not yet"
    IN_FLIGHT = "in flight"
    CONTINUED = "continued"


@dataclass(slots=True, kw_only=True, eq=False)
class Kept:
    """A message of the model's, with the conversation that it stands for."""

    stored: StoredResponse
    pinned: Mapping[str, Any]
    paused: bool
    """Whether it may be continued with nothing new."""
    used: float
    """Seconds of the monotonic clock; when it was last asked for."""
    use: Use = Use.NOT_YET

    def complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return *given* with what the thread keeps: the messages before, the system prompt, the tools.

        Raises:
            MessagesError: There is nothing new, or what must stay the same does not.
        """
        inherited = {name: self.pinned[name] for name in _INHERITED if self.pinned.get(name) is not None}
        whole = inherited | {name: value for name, value in given.items() if value is not None}
        differing = [name for name in _PINNED if not _is_same(whole.get(name), self.pinned.get(name))]
        if differing:
            raise thread_error(Spelling.THREAD_FINGERPRINT_MISMATCH, _differing(differing))
        new = given.get("messages")
        if new == [] and not self.paused:
            raise MessagesError("messages: at least one message is required")
        return whole | {"messages": [*history(self.stored), *new] if isinstance(new, list) else new}


@dataclass(slots=True)
class Threads:
    """The messages that can be continued, by id."""

    _kept: OrderedDict[str, Kept] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, message_id: str, now: float) -> Kept:
        """Return a message that can be continued; what has expired is gone.

        Raises:
            MessagesError: It is not there, was continued already, or is being continued.
        """
        kept = self._kept.get(message_id)
        if kept is None or now - kept.used > KEPT_SECONDS:
            self._kept.pop(message_id, None)
            raise thread_error(Spelling.THREAD_NOT_FOUND)
        if kept.use is Use.CONTINUED:
            raise thread_error(Spelling.THREAD_ALREADY_CONTINUED)
        if kept.use is Use.IN_FLIGHT:
            raise thread_error(Spelling.THREAD_CONTINUE_IN_FLIGHT)
        kept.used = now
        return kept

    def keep(self, kept: Kept) -> None:
        """Keep a message; the oldest makes room."""
        self._kept[kept.stored.id] = kept
        if len(self._kept) > MAX_MESSAGES:
            self._kept.popitem(last=False)

    def lose(self, kept: Kept, spelling: Spelling) -> None:
        """Do to the message what the error in this spelling says of it."""
        if spelling is Spelling.THREAD_ALREADY_CONTINUED:
            kept.use = Use.CONTINUED
        elif spelling not in {Spelling.THREAD_CONTINUE_IN_FLIGHT, Spelling.INVALID_ENCRYPTED_CONTENT}:
            self._drop_conversation(kept.stored.conversation)

    def clear(self) -> int:
        """Drop everything; return how many messages that was."""
        dropped = len(self._kept)
        self._kept.clear()
        return dropped

    def _drop_conversation(self, conversation: str) -> None:
        for message_id in [i for i, kept in self._kept.items() if kept.stored.conversation == conversation]:
            del self._kept[message_id]


def allows_threads(betas: str) -> bool:
    """Tell whether the header `anthropic-beta`, commas and all, asks for message threads.

    >>> allows_threads("fast-mode-2026-02-01, message-threads-2026-08-12")
    True
    """
    return BETA in {beta.strip() for beta in betas.split(",")}


def read_thread(given: Mapping[str, Any], betas: str) -> Thread | None:
    """Return what a request asks for with `thread`; without the beta header that is a field like any unknown one.

    Args:
        given: The body of the request.
        betas: The header `anthropic-beta`, commas and all.

    Raises:
        MessagesError: In the API's own words.
    """
    if not allows_threads(betas) or given.get("thread") is None:
        return None
    unsupported = [name for name in _UNSUPPORTED if given.get(name) is not None]
    if unsupported:
        raise thread_error(Spelling.THREAD_UNSUPPORTED_REQUEST, unsupported=unsupported)
    match given["thread"]:
        case {"type": "create", **rest} if not rest:
            return Thread(previous=None)
        case {"type": "continue", "previous_message_id": str(message_id), **rest} if not rest:
            return Thread(previous=message_id)
    raise MessagesError(
        "thread: Input should be {'type': 'create'} or {'type': 'continue', 'previous_message_id': 'msg_…'}"
    )


def pinned(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the thread of a whole request is held to."""
    return {name: given.get(name) for name in _PINNED}


def thread_error(spelling: Spelling, message: str | None = None, **details: Any) -> MessagesError:
    """Return the error of this code; the spellings of other APIs say that the thread is not found."""
    code = spelling if spelling in _MESSAGES else Spelling.THREAD_NOT_FOUND
    return MessagesError(
        message or _MESSAGES[code],
        status=404 if code is Spelling.THREAD_NOT_FOUND else 400,
        details={"error_code": code.value, **details},
    )


def is_thread_code(code: str | None) -> bool:
    """Tell whether *code* is an `error_code` of message threads."""
    return code in set(_MESSAGES)


def _differing(fields: Sequence[str]) -> str:
    return (
        "thread: what must stay the same along a thread is not what the thread was created with; "
        f"differing field(s): {', '.join(fields)}"
    )


_MESSAGES: Mapping[Spelling, str] = {
    Spelling.THREAD_NOT_FOUND: "thread: no usable thread was found for `previous_message_id`. Send the full "
    "conversation with a new `create`.",
    Spelling.THREAD_FINGERPRINT_MISMATCH: _differing(["system"]),
    Spelling.THREAD_ALREADY_CONTINUED: "thread: the response that `previous_message_id` names has already been "
    "continued, and each response can be continued only once.",
    Spelling.THREAD_CONTINUE_IN_FLIGHT: "thread: another request is still continuing from the same "
    "`previous_message_id`.",
    Spelling.THREAD_UNSUPPORTED_REQUEST: "thread: the request combines `thread` with what threads do not support.",
}


def _is_same(one: Any, other: Any) -> bool:
    """Compare two values of a field: a bare text is the one block that it stands for, and empty is nothing."""
    blocks = [
        [{"type": "text", "text": each}] if each and isinstance(each, str) else each for each in (one, other)
    ]
    return (blocks[0] or None) == (blocks[1] or None)
