"""What the adapters share when they give a history back to a model, in the shape of their APIs' messages.  Pure.

A message here is an object with a `role` and, for users and assistants, a list of blocks as its `content`.
"""

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from pydantic_core import from_json

from turnkeeper_worker.replay import plain_name

Block: TypeAlias = dict[str, Any]
Wire: TypeAlias = dict[str, Any]
"""A message as it is sent."""

MAX_NAME_CHARS = 64
"""What OpenAI takes."""

SILENCE = "(The user said nothing.)"
"""Stands where an API wants words of the user's and there are none."""


def conversation(messages: Iterable[Wire]) -> list[Wire]:
    """Return *messages* as every chat template takes them.

    The user opens the conversation and is the one to be answered, nobody speaks twice in a row, and nobody says
    nothing. Two turns of a user follow each other whenever the answer to the first one failed.
    """
    joined: list[Wire] = []
    for message in messages:
        if joined and _continues(joined[-1], message):
            before = joined.pop()
            joined.append({**before, **message, "content": [*before["content"], *message["content"]]})
        else:
            joined.append(message)
    return list(_framed(joined))


def _continues(before: Wire, message: Wire) -> bool:
    # Results are messages of their own in Chat Completions, and a message that calls tools is answered by them.
    is_talk = message["role"] in {"user", "assistant"} and "tool_calls" not in before
    return is_talk and before["role"] == message["role"]


def _framed(messages: list[Wire]) -> Iterator[Wire]:
    silence = {"role": "user", "content": [text_block(SILENCE)]}
    if not messages or messages[0]["role"] == "assistant":
        yield silence
    yield from messages
    if messages and messages[-1]["role"] == "assistant":
        yield silence


def text_block(text: str) -> Block:
    """Return the block that holds *text*; the APIs write it alike."""
    return {"type": "text", "text": text}


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
