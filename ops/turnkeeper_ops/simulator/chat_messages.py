"""The messages of Chat Completions: their shape, and which must follow which.

The refusals that production is known for are here: a tool's message that answers no call, and a call
without its answer.  The sentences are the API's own, its spelling of "preceding" included.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from turnkeeper_ops.simulator.openai_errors import ApiError
from turnkeeper_ops.simulator.openai_parameters import (
    MAX_STRING_CHARS,
    invalid_type,
    invalid_value,
    missing,
    too_long,
    too_short,
    type_name,
)

Message: TypeAlias = Mapping[str, Any]

_TEXT = ("text",)
_PARTS_BY_ROLE: Mapping[str, tuple[str, ...]] = {
    "system": _TEXT,
    "assistant": ("text", "refusal"),
    "user": ("text", "image_url", "input_audio", "file"),
    "tool": _TEXT,
    "developer": _TEXT,
}
_PART_TYPES: Mapping[str, type] = {"image_url": dict, "input_audio": dict, "file": dict}
"""Of the field that has the part's own name; else it is a string."""


def check_messages(messages: Sequence[Message]) -> None:
    """Check each message, and then what must follow what.

    Raises:
        ApiError: In the API's own words.
    """
    for index, message in enumerate(messages):
        _check_message(message, index)
    _check_calls(messages)


def text_of(message: Message) -> str:
    """Return the text of a message.

    >>> text_of({"content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]})
    'Hello'
    """
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or part.get("refusal") or "" for part in content or ())


def chars_of(messages: Sequence[Message]) -> int:
    """Return how many characters of text *messages* hold, the arguments of calls included."""
    calls = (call for message in messages for call in message.get("tool_calls") or ())
    return sum(map(len, map(text_of, messages))) + sum(len(call["function"]["arguments"]) for call in calls)


def _check_message(message: Message, index: int) -> None:
    at, role = f"messages[{index}]", message.get("role")
    if role is None:
        raise missing(f"{at}.role")
    if not isinstance(role, str):
        raise invalid_type(f"{at}.role", "a string", role)
    if role not in _PARTS_BY_ROLE:
        raise invalid_value(f"{at}.role", role, list(_PARTS_BY_ROLE))
    if role == "tool" and not isinstance(message.get("tool_call_id"), str):
        raise missing(f"{at}.tool_call_id")
    calls = message.get("tool_calls")
    if calls is not None:
        _check_tool_calls(calls, f"{at}.tool_calls")
    if message.get("content") is not None:
        _check_content(message["content"], role, f"{at}.content")
    elif not (role == "assistant" and (calls or message.get("refusal"))):
        # An older part of the API words this; it writes the place with one more dot.
        raise ApiError(
            "Invalid value for 'content': expected a string, got null.", param=f"messages.[{index}].content"
        )


def _check_tool_calls(calls: object, at: str) -> None:
    if not isinstance(calls, list):
        raise invalid_type(at, "an array of objects", calls)
    if not calls:
        raise too_short(at, "array")
    for index, call in enumerate(calls):
        _check_tool_call(call, f"{at}[{index}]")


def _check_tool_call(call: object, at: str) -> None:
    if not isinstance(call, dict):
        raise invalid_type(at, "an object", call)
    for name in ("id", "type", "function"):
        if not call.get(name):
            raise missing(f"{at}.{name}")
    if not isinstance(call["id"], str):
        raise invalid_type(f"{at}.id", "a string", call["id"])
    if not isinstance(call["function"], dict):
        raise invalid_type(f"{at}.function", "an object", call["function"])
    for name in ("name", "arguments"):
        value = call["function"].get(name)
        if value is None:
            raise missing(f"{at}.function.{name}")
        if not isinstance(value, str):
            raise invalid_type(f"{at}.function.{name}", "a string", value)


def _check_content(content: object, role: str, at: str) -> None:
    match content:
        case str():
            if len(content) > MAX_STRING_CHARS:
                raise too_long(at, content)
        case []:
            raise too_short(at, "array")
        case list():
            for index, part in enumerate(content):
                _check_part(part, role, f"{at}[{index}]")
        case _:
            raise invalid_type(at, "one of a string or array of objects", content)


def _check_part(part: object, role: str, at: str) -> None:
    if not isinstance(part, dict):
        raise invalid_type(at, "an object", part)
    kind, allowed = part.get("type"), _PARTS_BY_ROLE[role]
    if kind is None:
        raise missing(f"{at}.type")
    if kind not in allowed:
        raise invalid_value(f"{at}.type", kind, allowed)
    value, expected = part.get(kind), _PART_TYPES.get(kind, str)
    if value is None:
        raise missing(f"{at}.{kind}")
    if not isinstance(value, expected):
        raise invalid_type(f"{at}.{kind}", type_name(expected()), value)


def _check_calls(messages: Sequence[Message]) -> None:
    """Check that each call is answered right after it, and that nothing else is."""
    open_calls: list[str] = []
    answerable: set[str] = set()
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            _check_answers(message, index, answerable)
            open_calls = [call_id for call_id in open_calls if call_id != message["tool_call_id"]]
            continue
        _check_answered(open_calls, index)
        open_calls = [call["id"] for call in message.get("tool_calls") or ()]
        answerable = set(open_calls)
    _check_answered(open_calls, len(messages))


def _check_answers(message: Message, index: int, answerable: set[str]) -> None:
    if not answerable:
        raise ApiError(
            "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with "
            "'tool_calls'.",
            param=f"messages.[{index}].role",
        )
    if message["tool_call_id"] not in answerable:
        raise ApiError(
            f"Invalid parameter: 'tool_call_id' of '{message['tool_call_id']}' not found in 'tool_calls' of "
            "previous message.",
            param=f"messages.[{index}].tool_call_id",
        )


def _check_answered(open_calls: Sequence[str], index: int) -> None:
    if open_calls:
        raise ApiError(
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            "'tool_call_id'. The following tool_call_ids did not have response messages: "
            f"{', '.join(open_calls)}",
            param=f"messages.[{index}].role",
        )
