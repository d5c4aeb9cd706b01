"""What must stand beside what in the messages of a request.

The refusals that production is known for are here: a call without its result in the very next message,
thinking that came back changed, and empty text.  The sentences are the API's own.
"""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby
from typing import TypeAlias

from turnkeeper_ops.simulator.anthropic_errors import MessagesError
from turnkeeper_ops.simulator.anthropic_input import Block, Message, Text, Thinking, ToolResult, ToolUse

_OWNERS = {ToolUse: "assistant", Thinking: "assistant", ToolResult: "user"}
"""Who alone may send such a block."""

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


def check_turns(messages: Sequence[Message]) -> None:
    """Check each message, and then what must follow what.

    Raises:
        MessagesError: In the API's own words.
    """
    if messages[0].role != "user":
        raise MessagesError('messages: first message must use the "user" role')
    for index, message in enumerate(messages):
        _check_message(message, index, last=index == len(messages) - 1)
    turns = merge(messages)
    _check_ids([call for turn in turns for call in turn.calls])
    for before, turn in zip([None, *turns], [*turns, None], strict=True):
        _check_pairs(before, turn)


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


def sign(thinking: str) -> str:
    """Return the signature that goes with *thinking*, so that a change of it shows.

    >>> sign("Hm") == sign("Hm") != sign("Hm.")
    True
    """
    return b64encode(blake2b(thinking.encode("utf-8", "replace"), key=b"turnkeeper").digest()).decode()


def _check_message(message: Message, index: int, *, last: bool) -> None:
    if not message.content and not (last and message.role == "assistant"):
        raise MessagesError(
            f"messages.{index}: all messages must have non-empty content except for the optional final assistant "
            "message"
        )
    for number, block in enumerate(message.content):
        _check_block(block, message.role, f"messages.{index}.content.{number}")
    if message.role == "assistant" and message.content and isinstance(message.content[-1], Thinking):
        raise MessagesError(f"messages.{index}: The final block in an assistant message cannot be `thinking`.")


def _check_block(block: Block, role: str, at: str) -> None:
    owner = _OWNERS.get(type(block), role)
    if owner != role:
        raise MessagesError(f"{at}: `{block.type}` blocks can only be in `{owner}` messages")
    if isinstance(block, Thinking) and block.signature != sign(block.thinking):
        raise MessagesError(f"{at}: Invalid `signature` in `thinking` block")
    if isinstance(block, Text):
        check_text(block, "messages")


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
