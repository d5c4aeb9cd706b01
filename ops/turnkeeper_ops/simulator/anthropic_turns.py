"""What must stand beside what in the messages of a request.

The refusals that production is known for are here: a call without its result in the very next message,
thinking that came back changed or from another account, an answer begun by the client, and empty text.
The sentences are the API's own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

from turnkeeper_ops.simulator.anthropic_errors import MessagesError
from turnkeeper_ops.simulator.anthropic_input import (
    Block,
    Message,
    RedactedThinking,
    ServerToolUse,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    WebSearchResult,
)
from turnkeeper_ops.simulator.anthropic_pauses import Pauses
from turnkeeper_ops.simulator.seals import Seal

_OWNERS = {
    ToolUse: "assistant",
    Thinking: "assistant",
    RedactedThinking: "assistant",
    ServerToolUse: "assistant",
    WebSearchResult: "assistant",
    ToolResult: "user",
}
"""Who alone may send such a block."""

INVALID_SIGNATURE = "Invalid `signature` in `thinking` block"

Place: TypeAlias = tuple[int, int]
"""The index of a message, and of a block in it."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said until the other spoke: its messages in a row, which the API merges."""

    role: str
    first: int
    """The index of the first of the messages."""
    blocks: tuple[tuple[Place, Block], ...]

    @property
    def calls(self) -> list[str]:
        """The ids of the calls."""
        return [block.id for _, block in self.blocks if isinstance(block, ToolUse)]

    @property
    def results(self) -> list[tuple[Place, str]]:
        """The ids of the calls that are answered, and where."""
        return [(place, block.tool_use_id) for place, block in self.blocks if isinstance(block, ToolResult)]

    @property
    def said(self) -> list[dict[str, Any]]:
        """The blocks, as they came."""
        return [block.model_dump() for _, block in self.blocks]

    @property
    def searches(self) -> list[tuple[Place, str]]:
        """The ids of the searches that found nothing yet, and where."""
        found = {block.tool_use_id for _, block in self.blocks if isinstance(block, WebSearchResult)}
        return [
            (place, block.id)
            for place, block in self.blocks
            if isinstance(block, ServerToolUse) and block.name == "web_search" and block.id not in found
        ]


def check_turns(messages: Sequence[Message], seal: Seal, pauses: Pauses) -> None:
    """Check each message, and then what must follow what.

    Args:
        messages: The whole conversation, with at least one message.
        seal: Of the API key; what the model thought and found comes back under it.
        pauses: The answers that may be gone on with.

    Raises:
        MessagesError: In the API's own words.
    """
    if messages[0].role != "user":
        raise MessagesError('messages: first message must use the "user" role')
    for index, message in enumerate(messages):
        _check_message(message, index, last=index == len(messages) - 1)
    for at, block in _places(messages):
        _check_seal(block, seal, at)
    turns = merge(messages)
    _check_ids([call for turn in turns for call in turn.calls])
    for before, turn in zip([None, *turns], [*turns, None], strict=True):
        _check_pairs(before, turn)
    for turn in turns[:-1] if _is_paused(turns[-1], pauses) else turns:
        _check_end(turn)
        _check_searches(turn)


def pending_search(messages: Sequence[Message]) -> str | None:
    """Return the id of the search in which the model was paused at the end of *messages*, or None."""
    last = merge(messages)[-1]
    return next((call_id for _, call_id in last.searches), None) if last.role == "assistant" else None


def merge(messages: Sequence[Message]) -> list[Turn]:
    """Merge the messages that one side sent in a row."""
    turns = []
    for role, group in groupby(enumerate(messages), key=lambda each: each[1].role):
        merged = list(group)
        blocks = [
            ((index, number), block) for index, message in merged for number, block in enumerate(message.content)
        ]
        turns.append(Turn(role, merged[0][0], tuple(blocks)))
    return turns


def _check_message(message: Message, index: int, *, last: bool) -> None:
    if not message.content and not (last and message.role == "assistant"):
        raise MessagesError(
            f"messages.{index}: all messages must have non-empty content except for the optional final assistant "
            "message"
        )
    for number, block in enumerate(message.content):
        _check_block(block, message.role, f"messages.{index}.content.{number}")


def _check_block(block: Block, role: str, at: str) -> None:
    owner = _OWNERS.get(type(block), role)
    if owner != role:
        raise MessagesError(f"{at}: `{block.type}` blocks can only be in `{owner}` messages")
    if isinstance(block, Text):
        check_text(block, "messages")


def _places(messages: Sequence[Message]) -> Iterator[tuple[str, Block]]:
    for index, message in enumerate(messages):
        for number, block in enumerate(message.content):
            yield f"messages.{index}.content.{number}", block


def _check_seal(block: Block, seal: Seal, at: str) -> None:
    """Check that what only the model can have said was said here, to this API key."""
    match block:
        case Thinking(thinking=thinking, signature=signature) if signature != seal.sign(thinking):
            raise MessagesError(f"{at}: {INVALID_SIGNATURE}")
        case RedactedThinking(data=data) if not seal.fits(data):
            raise MessagesError(f"{at}: Invalid `data` in `redacted_thinking` block")
        case WebSearchResult(content=list(pages)):
            for number, page in enumerate(pages):
                _check_page(page, seal, f"{at}.content.{number}")


def _check_page(page: dict[str, Any], seal: Seal, at: str) -> None:
    sealed = page.get("encrypted_content")
    if not (isinstance(sealed, str) and seal.fits(sealed)):
        raise MessagesError(f"{at}: Invalid `encrypted_content` in `web_search_result` block")


def _is_paused(last: Turn, pauses: Pauses) -> bool:
    """Tell whether the last turn is an answer that was paused, unchanged; any other answer is refused."""
    if last.role == "assistant" and not pauses.holds(last.said):
        raise MessagesError(
            "This model does not support assistant message prefill. The conversation must end with a user message."
        )
    return last.role == "assistant"


def _check_end(turn: Turn) -> None:
    (message, _), block = turn.blocks[-1]
    if isinstance(block, Thinking):
        raise MessagesError(f"messages.{message}: The final block in an assistant message cannot be `thinking`.")


def _check_searches(turn: Turn) -> None:
    for (message, _), call_id in turn.searches:
        raise MessagesError(
            f"messages.{message}: `web_search` tool use with id `{call_id}` was found without a corresponding "
            "`web_search_tool_result` block"
        )


def check_text(block: Text, where: str) -> None:
    """Refuse text that says nothing.

    Raises:
        MessagesError: In the API's own words.
    """
    if not block.text:
        raise MessagesError(f"{where}: text content blocks must be non-empty")
    if not block.text.strip():
        raise MessagesError(f"{where}: text content blocks must contain non-whitespace text")


def _check_ids(calls: Sequence[str]) -> None:
    if len(set(calls)) < len(calls):
        raise MessagesError("messages: `tool_use` ids must be unique")


def _check_pairs(before: Turn | None, turn: Turn | None) -> None:
    """Check that *turn* answers every call of the turn before it, first of all, and no other."""
    calls = before.calls if before else []
    seen: set[str] = set()
    for (message, number), call_id in turn.results if turn else []:
        at = f"messages.{message}.content.{number}"
        if call_id not in calls:
            raise MessagesError(
                f"{at}: unexpected `tool_use_id` found in `tool_result` blocks: {call_id}. Each `tool_result` "
                "block must have a corresponding `tool_use` block in the previous message."
            )
        if call_id in seen:
            raise MessagesError(
                f"{at}: each tool_use must have a single result. Found multiple `tool_result` blocks with id: "
                f"{call_id}"
            )
        seen.add(call_id)
    _check_answered(before, [call for call in calls if call not in _leading_results(turn)])


def _leading_results(turn: Turn | None) -> set[str]:
    """Return the ids that are answered before anything else is said; later ones come too late."""
    leading: set[str] = set()
    for _, block in turn.blocks if turn else ():
        if not isinstance(block, ToolResult):
            break
        leading.add(block.tool_use_id)
    return leading


def _check_answered(before: Turn | None, unanswered: Sequence[str]) -> None:
    if before is not None and unanswered:
        raise MessagesError(
            f"messages.{before.first}: `tool_use` ids were found without `tool_result` blocks immediately after: "
            f"{', '.join(unanswered)}. Each `tool_use` block must have a corresponding `tool_result` block in the "
            "next message."
        )
