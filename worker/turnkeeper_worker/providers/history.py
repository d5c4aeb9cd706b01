"""What the adapters share when they give a history back to a model, in the shape of their APIs' messages.  Pure.

A message here is an object with a `role` and, for users and assistants, a list of blocks as its `content`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from pydantic_core import from_json

from turnkeeper.messages import ToolResult
from turnkeeper_worker.providers.fields import objects
from turnkeeper_worker.replay import plain_name

Block: TypeAlias = dict[str, Any]
Wire: TypeAlias = dict[str, Any]
"""A message as it is sent."""

MAX_NAME_CHARS = 64
"""What OpenAI takes."""

SILENCE = "(The user said nothing.)"
"""Stands where an API wants words of the user's and there are none."""

FAILED_TOOL = "The tool failed and said nothing."
"""Stands where the result of a tool is an error without a word; an error has to say something."""


def conversation(messages: Iterable[Wire], *, begins: bool = True, ends: bool = True) -> list[Wire]:
    """Return *messages* as every chat template takes them.

    The user opens the conversation and is the one to be answered, nobody speaks twice in a row, and nobody says
    nothing. Two turns of a user follow each other whenever the answer to the first one failed.

    Args:
        messages: What was said, in order.
        begins: Whether the first of them opens the conversation; False where the provider holds what came before.
        ends: Whether the last of them is to be answered; False where the model goes on with words of its own.
    """
    joined: list[Wire] = []
    for message in messages:
        if joined and _continues(joined[-1], message):
            before = joined.pop()
            joined.append({**before, **message, "content": [*before["content"], *message["content"]]})
        else:
            joined.append(message)
    return list(_framed(joined, begins=begins, ends=ends))


def _continues(before: Wire, message: Wire) -> bool:
    # Results are messages of their own in Chat Completions, and a message that calls tools is answered by them.
    is_talk = message["role"] in {"user", "assistant"} and "tool_calls" not in before
    return is_talk and before["role"] == message["role"]


def _framed(messages: list[Wire], *, begins: bool, ends: bool) -> Iterator[Wire]:
    silence = {"role": "user", "content": [text_block(SILENCE)]}
    if begins and messages and messages[0]["role"] == "assistant":
        yield silence
    yield from messages
    if not messages or (ends and messages[-1]["role"] == "assistant"):
        yield silence


def text_block(text: str) -> Block:
    """Return the block that holds *text*; the APIs write it alike."""
    return {"type": "text", "text": text}


def result_text(result: ToolResult) -> str:
    """Return what a tool answered, for an API that has no other place to say that it failed.

    >>> result_text(ToolResult(call_id="call_1", output="no such city", is_error=True))
    'The tool failed: no such city'
    """
    if not result.is_error:
        return result.output
    return f"The tool failed: {result.output}" if result.output.strip() else FAILED_TOOL


def all_tools(asked: object, ours: Sequence[Block], name: Callable[[Block], object]) -> object:
    """Return the tools that the options ask for, and ours behind them in place of those of the same name.

    Args:
        asked: The options' list; as it is where we have no tools, whatever it may be.
        ours: The worker's tools, as the API writes them.
        name: Where the API writes the name of a tool.
    """
    taken = [name(tool) for tool in ours]
    return [*(tool for tool in objects(asked) if name(tool) not in taken), *ours] if ours else asked


def tool_name(name: str, max_chars: int = MAX_NAME_CHARS) -> str:
    """Return the name by which a call is given back; a model may have made it up, or left it out.

    >>> tool_name("look"), tool_name("")
    ('look', 'unknown')
    """
    return plain_name(name, max_chars) or "unknown"


def arguments_object(arguments: str) -> dict[str, Any]:
    """Read the arguments of a tool call, which a model may have got wrong, as the object that servers expect.

    >>> arguments_object('{"at": 1}'), arguments_object(""), arguments_object("[1")
    ({'at': 1}, {}, {'arguments': '[1'})
    """
    if not arguments.strip():
        return {}
    try:
        value = from_json(arguments, allow_inf_nan=False)
    except ValueError:
        value = arguments
    return value if isinstance(value, dict) else {"arguments": value}
