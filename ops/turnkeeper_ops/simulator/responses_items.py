"""The input items of the Responses API: their shape, and what must stand beside what.

The two refusals that production is known for are here: a call without its output, and a web search
without its reasoning.  `param` and `code` are what the API gives; so are the sentences.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from turnkeeper_ops.simulator.novelties import NOVEL_ITEM, NOVEL_PART
from turnkeeper_ops.simulator.openai_errors import ApiError, invalid_encrypted_content, item_not_persisted
from turnkeeper_ops.simulator.openai_parameters import (
    MAX_STRING_CHARS,
    invalid_type,
    invalid_value,
    missing,
    too_long,
)
from turnkeeper_ops.simulator.seals import Seal
from turnkeeper_ops.simulator.vault import Item, Vault

_INPUT_PARTS = ("input_text", "input_image", "input_file", "input_audio")
_OUTPUT_PARTS = ("output_text", "refusal")
_PARTS_BY_ROLE: Mapping[str, tuple[str, ...]] = {
    "assistant": _OUTPUT_PARTS,
    "developer": _INPUT_PARTS,
    "system": _INPUT_PARTS,
    "user": _INPUT_PARTS,
}

_REQUIRED: Mapping[str, Mapping[str, type]] = {
    "message": {"role": str, "content": object},
    "function_call": {"call_id": str, "name": str, "arguments": str},
    "function_call_output": {"call_id": str, "output": object},
    "custom_tool_call": {"call_id": str, "name": str, "input": str},
    "custom_tool_call_output": {"call_id": str, "output": object},
    "reasoning": {"summary": list},
    "web_search_call": {"id": str},
    "item_reference": {"id": str},
}
_ID_PREFIX: Mapping[str, str] = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fc",
    "reasoning": "rs",
    "web_search_call": "ws",
}
_OTHER_TYPES = frozenset(
    {
        "code_interpreter_call",
        "compaction",
        "computer_call",
        "computer_call_output",
        "file_search_call",
        "image_generation_call",
        "local_shell_call",
        "local_shell_call_output",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_call",
        "mcp_list_tools",
    }
)
"""Types that are taken and not looked into."""

_CALL_TYPES = frozenset({"function_call", "custom_tool_call"})
_OUTPUT_TYPES = frozenset({"function_call_output", "custom_tool_call_output"})
_PRODUCED = frozenset({"message", "web_search_call", "reasoning", *_CALL_TYPES, *_OTHER_TYPES})
"""What reasoning may lead to."""


def as_items(given: str | Sequence[Any]) -> tuple[Any, ...]:
    """Return the input as items, unchecked; a bare string is a user message."""
    if isinstance(given, str):
        return ({"type": "message", "role": "user", "content": given},)
    return tuple(given)


def resolve(given: str | Sequence[Any], vault: Vault, seal: Seal) -> tuple[Item, ...]:
    """Check the shape of the input and its seals, and put stored items where they are referred to.

    Raises:
        ApiError: In the API's own words.
    """
    items = enumerate(as_items(given))
    return tuple(_resolve_item(item, f"input[{index}]", vault, seal) for index, item in items)


def check_history(items: Sequence[Item], vault: Vault) -> None:
    """Check the whole conversation: every call has its output, every search its reasoning.

    Raises:
        ApiError: In the API's own words.
    """
    _check_calls(items)
    _check_reasoning(items, vault)


def text_of(item: Item) -> str:
    """Return the text of a message or of a tool's output.

    >>> text_of({"content": [{"type": "input_text", "text": "Hel"}, {"type": "input_text", "text": "lo"}]})
    'Hello'
    """
    content = item.get("content", item.get("output", ""))
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "".join(_text_of_part(part) for part in content if isinstance(part, dict))


def chars_of(items: Iterable[Item]) -> int:
    """Return how many characters of text *items* hold."""
    return sum(len(text_of(item)) + len(str(item.get("arguments") or "")) for item in items)


def _text_of_part(part: Mapping[str, Any]) -> str:
    text = part.get("text") or part.get("refusal") or ""
    return text if isinstance(text, str) else ""


def _resolve_item(item: object, at: str, vault: Vault, seal: Seal) -> Item:
    if not isinstance(item, dict):
        raise invalid_type(at, "an object", item)
    kind = _type_of(item, at)
    for name, expected in _REQUIRED.get(kind, {}).items():
        if item.get(name) is None:
            raise missing(f"{at}.{name}")
        if not isinstance(item[name], expected):
            raise invalid_type(f"{at}.{name}", "an array" if expected is list else "a string", item[name])
    _check_id(item, kind, at)
    if kind == "item_reference":
        return _stored(item["id"], vault)
    if kind == "message":
        _check_message(item, at)
    if kind == "reasoning":
        _check_reasoning_item(item, at, vault, seal)
    return {**item, "type": kind}


def _type_of(item: Mapping[str, Any], at: str) -> str:
    """Return the item's type; where it is left out, the shape decides, as in the API."""
    kind = item.get("type")
    if kind is None:
        if "role" not in item and "id" not in item:
            raise missing(f"{at}.type")
        return "message" if "role" in item else "item_reference"
    if not isinstance(kind, str) or kind not in {*_REQUIRED, *_OTHER_TYPES, NOVEL_ITEM}:
        raise invalid_value(f"{at}.type", kind, sorted({*_REQUIRED, *_OTHER_TYPES}))
    return kind


def _check_id(item: Mapping[str, Any], kind: str, at: str) -> None:
    item_id, prefix = item.get("id"), _ID_PREFIX.get(kind)
    if item_id is None or prefix is None:
        return
    if not isinstance(item_id, str):
        raise invalid_type(f"{at}.id", "a string", item_id)
    if not item_id.startswith(prefix):
        raise ApiError(
            f"Invalid '{at}.id': '{item_id}'. Expected an ID that begins with '{prefix}'.",
            param=f"{at}.id",
            code="invalid_value",
        )


def _stored(item_id: str, vault: Vault) -> Item:
    stored = vault.item(item_id)
    if stored is None:
        error = item_not_persisted(item_id)["error"]
        raise ApiError(error["message"], param=error["param"], status=404)
    return stored


def _check_reasoning_item(item: Mapping[str, Any], at: str, vault: Vault, seal: Seal) -> None:
    """Check that reasoning is stored here, or else brings along what was made here for this API key."""
    sealed = item.get("encrypted_content")
    if not sealed:
        if item.get("id") is None:
            raise missing(f"{at}.id")
        _stored(item["id"], vault)
    elif not isinstance(sealed, str):
        raise invalid_type(f"{at}.encrypted_content", "a string", sealed)
    elif not seal.fits(sealed):
        which = f"for item {item['id']}" if item.get("id") else f"{sealed[:4]}...{sealed[-4:]}"
        error = invalid_encrypted_content(which)["error"]
        raise ApiError(error["message"], code=error["code"])


def _check_message(item: Mapping[str, Any], at: str) -> None:
    role, content = item["role"], item["content"]
    if role not in _PARTS_BY_ROLE:
        raise invalid_value(f"{at}.role", role, sorted(_PARTS_BY_ROLE))
    if isinstance(content, str):
        if len(content) > MAX_STRING_CHARS:
            raise too_long(f"{at}.content", content)
    elif isinstance(content, list):
        for index, part in enumerate(content):
            _check_part(part, role, f"{at}.content[{index}]")
    else:
        raise invalid_type(f"{at}.content", "one of an array of objects or string", content)


def _check_part(part: object, role: str, at: str) -> None:
    if not isinstance(part, dict):
        raise invalid_type(at, "an object", part)
    kind, allowed = part.get("type"), _PARTS_BY_ROLE[role]
    if kind is None:
        raise missing(f"{at}.type")
    if kind not in {*allowed, NOVEL_PART}:
        # The API names the part, not its type, as the parameter.
        raise invalid_value(at, kind, allowed)
    _check_part_content(part, str(kind), at)


def _check_part_content(part: Mapping[str, Any], kind: str, at: str) -> None:
    if kind in {"input_text", "output_text", "refusal"}:
        name = "refusal" if kind == "refusal" else "text"
        if part.get(name) is None:
            raise missing(f"{at}.{name}")
        if not isinstance(part[name], str):
            raise invalid_type(f"{at}.{name}", "a string", part[name])
        if len(part[name]) > MAX_STRING_CHARS:
            raise too_long(f"{at}.{name}", part[name])
    if kind == "input_image" and not (part.get("image_url") or part.get("file_id")):
        raise missing(f"{at}.image_url")


def _check_calls(items: Sequence[Item]) -> None:
    """Pair calls and outputs, over the whole conversation and in its order."""
    answered: dict[str, bool] = {}
    for item in items:
        # A blank call id pairs with nothing; the API lets it pass.
        call_id = item.get("call_id")
        if call_id and item["type"] in _CALL_TYPES:
            if call_id in answered:
                raise _call_error(f"Duplicate function call with call_id {call_id}.")
            answered[call_id] = False
        elif call_id and item["type"] in _OUTPUT_TYPES:
            if call_id not in answered:
                raise _call_error(f"No tool call found for function call output with call_id {call_id}.")
            if answered[call_id]:
                raise _call_error(f"Duplicate function call output with call_id {call_id}.")
            answered[call_id] = True
    for call_id, done in answered.items():
        if not done:
            raise _call_error(f"No tool output found for function call {call_id}.")


def _call_error(message: str) -> ApiError:
    return ApiError(message, param="input")


def _check_reasoning(items: Sequence[Item], vault: Vault) -> None:
    """Check that reasoning and what it led to stand side by side."""
    before: Item | None = None
    for item in items:
        _check_led_by_reasoning(item, before, vault)
        _check_leads_somewhere(before, item)
        before = item
    _check_leads_somewhere(before, None)


def _check_led_by_reasoning(item: Item, before: Item | None, vault: Vault) -> None:
    item_id, kind = item.get("id"), item["type"]
    if not isinstance(item_id, str):
        return
    required = vault.reasoning_of(item_id)
    if kind == "web_search_call" and required is None:
        required = f"rs_{item_id.partition('_')[2]}"
        satisfied = before is not None and before["type"] == "reasoning"
    else:
        satisfied = required is None or (before is not None and before.get("id") == required)
    if not satisfied:
        raise ApiError(
            f"Item '{item_id}' of type '{kind}' was provided without its required 'reasoning' item: '{required}'.",
            param="input",
        )


def _check_leads_somewhere(before: Item | None, item: Item | None) -> None:
    if before is None or before["type"] != "reasoning":
        return
    follows = item is not None and item["type"] in _PRODUCED and item.get("role", "assistant") == "assistant"
    if not follows:
        raise ApiError(
            f"Item '{before.get('id')}' of type 'reasoning' was provided without its required following item.",
            param="input",
        )
