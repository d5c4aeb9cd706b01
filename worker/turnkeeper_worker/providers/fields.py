"""Reading JSON that anybody may have written: a field of the wrong type is an absent one."""

from collections.abc import Mapping
from math import isfinite
from typing import Any, TypeAlias

from turnkeeper.messages import Citation

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


def url_citations(annotations: object, text: str) -> tuple[Citation, ...]:
    """Return the pages among *annotations*, as both of OpenAI's APIs write them, each of them once.

    Args:
        annotations: What was noted beside the words; notes of other types are passed over.
        text: The words, in whose characters the places are counted.

    >>> url_citations([{"type": "url_citation", "url": "https://a.example/", "title": "A"}], "Hi")
    (Citation(url='https://a.example/', title='A', quote=None, start=None, end=None),)
    """
    found = (
        # Chat Completions puts the page into an object of its own.
        citation(mapping(one.get("url_citation")) or one, text)
        for one in objects(annotations)
        if one.get("type") == "url_citation"
    )
    return tuple(dict.fromkeys(one for one in found if one is not None))


def citation(page: Mapping[str, Any], text: str = "") -> Citation | None:
    """Return what *page* says of the words that rest on it, or None where it has no address.

    A place that lies outside of *text* is none.
    """
    if not (url := text_or_none(page.get("url"))):
        return None
    quotes = (text_or_none(page.get(name)) for name in ("cited_text", "content"))
    start, end = _span(page.get("start_index"), page.get("end_index"), len(text))
    return Citation(
        url=url,
        title=text_or_none(page.get("title")),
        quote=next(filter(None, quotes), None),
        start=start,
        end=end,
    )


def _span(start: object, end: object, length: int) -> tuple[int, int] | tuple[None, None]:
    match start, end:
        case int(), int() if 0 <= start < end <= length:
            return start, end
        case _:
            return None, None


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
