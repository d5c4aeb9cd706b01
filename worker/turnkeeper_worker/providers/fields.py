"""Reading JSON that anybody may have written: a field of the wrong type is an absent one."""

from collections.abc import Mapping
from math import isfinite
from typing import Any, TypeAlias

Path: TypeAlias = tuple[str, ...]


def text_or_none(value: object) -> str | None:
    """Return *value* where it is text, fit to be stored."""
    return storable(value) if isinstance(value, str) else None


def mapping(value: object) -> Mapping[str, Any]:
    """Return *value* where it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def objects(value: object) -> list[dict[str, Any]]:
    """Return those elements of a list that are objects."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def counts(usage: object, table: Mapping[str, Path]) -> dict[str, int] | None:
    """Return the tokens that *table* names; what is absent stays absent, because absent is not zero.

    >>> counts({"prompt_tokens": 3}, {"input_tokens": ("prompt_tokens",), "output_tokens": ("completion_tokens",)})
    {'input_tokens': 3}
    """
    found = {name: _at(usage, path) for name, path in table.items()}
    return {name: count for name, count in found.items() if isinstance(count, int)} or None


def _at(value: object, path: Path) -> object:
    for key in path:
        value = mapping(value).get(key)
    return value


def storable_object(value: Mapping[str, Any]) -> dict[str, Any]:
    """Make every text and number in *value* fit to be stored."""
    return {storable(name): _storable_json(item) for name, item in value.items()}


def _storable_json(value: object) -> object:
    match value:
        case str():
            return storable(value)
        case dict():
            return storable_object(value)
        case list():
            return [_storable_json(item) for item in value]
        case float() if not isfinite(value):
            return None
        case _:
            return value


def storable(text: str) -> str:
    """Replace what PostgreSQL cannot store: NUL, and halves of surrogate pairs.

    >>> storable("a" + chr(0) + "b")
    'a\ufffdb'
    """
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
