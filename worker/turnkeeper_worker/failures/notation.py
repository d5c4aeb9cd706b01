"""Text as providers, gateways and SDKs write it, read into plain values.

One function per notation: JSON (also with raw newlines in it, and inside prose), Python's repr of it, server-sent
events, HTML.  Nothing here knows what an error is, and nothing raises: what cannot be read is None or empty.
"""

import json
import re
from collections.abc import Iterator

MAX_TEXT = 65_536
"""Characters; a longer text is not parsed.  Error bodies are short, and the worst case must stay short too."""
MAX_EMBEDDED = 8_192
"""Characters of prose in which objects are looked for."""
MAX_REPR = 4_096
"""Characters of Python's repr that are read; reading it costs ten times what JSON does."""
_MAX_OBJECTS = 3
"""Places in prose at which an object may begin."""
_MAX_FRAMES = 64
"""Frames of a stream's tail that are read; an error frame is the last one or near it."""

_DECODER = json.JSONDecoder(strict=False)  # gateways leave raw newlines inside strings
_OBJECT_START = re.compile(r"""\{\s{0,64}["'}]|\[\s{0,64}\{""")
# A string without an end runs to the end of the text: failing there would start over at each of its quotes.
_REPR_TOKEN = re.compile(
    r"""'(?P<single>(?:[^'\\]|\\.?)*+)(?:'|\Z)
      | (?P<double>"(?:[^"\\]|\\.?)*+(?:"|\Z))
      | \b(?P<name>True|False|None)\b""",
    re.DOTALL | re.VERBOSE,
)
_REPR_NAMES = {"True": "true", "False": "false", "None": "null"}
_PAIR = re.compile(
    r"""["']?\b(?P<key>message|code|type|reason|status|detail)["']?\s{0,4}:\s{0,4}
        (?P<quote>["'`])(?P<value>(?:(?!(?P=quote))[^\\]|\\.){1,2000}+)""",
    re.VERBOSE | re.DOTALL,
)
_FRAME_FIELD = re.compile(r"^(?:event|data)[ \t]*:", re.MULTILINE)
_DATA_LINE = re.compile(r"^data[ \t]*:[ \t]?(.*)$", re.MULTILINE)
_HTML_START = re.compile(r"\s{0,64}(?:<!doctype html|<html|<head|<title|<center|<h1)", re.IGNORECASE)
_HTML_TITLE = re.compile(r"<(title|h1)[^<>]{0,200}>([^<]{1,500})", re.IGNORECASE)
_HTML_TAG = re.compile(r"<[^<>]{0,500}>")


def decode(text: str) -> object | None:
    """Read *text* that is one JSON value or the Python repr of one; None where it is neither.

    >>> decode('{"a": 1}'), decode("{'a': None}"), decode("neither")
    ({'a': 1}, {'a': None}, None)
    """
    text = text.strip()
    if not text or text[0] not in '{["' or len(text) > MAX_TEXT:
        return None
    value, end = _decode_at(text, 0)
    return value if end >= len(text) else None


def embedded(text: str) -> Iterator[dict[str, object]]:
    """Yield the objects that stand inside prose, in their order.

    >>> list(embedded("Error code: 400 - {'error': {'code': 'x'}} (again)"))
    [{'error': {'code': 'x'}}]
    """
    text = text[:MAX_EMBEDDED]
    at = 0
    for _ in range(_MAX_OBJECTS):
        start = _OBJECT_START.search(text, at)
        if start is None:
            return
        value, end = _decode_at(text, start.start())
        if value is None and "'" in start[0]:
            # A repr that cannot be read from its beginning is not worth reading from its middle.
            return
        at = max(end, start.start() + 1)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, dict):
            yield value


def scrape(text: str) -> dict[str, object]:
    """Pick the telling pairs out of an object that is broken, cut off, or in another language's notation.

    >>> scrape('{"error": {"message": "Too many", "code": "rate_li')
    {'message': 'Too many', 'code': 'rate_li'}
    """
    pairs: dict[str, object] = {}
    for match in _PAIR.finditer(text[:MAX_EMBEDDED]):
        pairs.setdefault(match["key"], match["value"])
    return pairs


def frames(text: str) -> list[str] | None:
    r"""Return the data of the last server-sent events in *text*, the end mark left out; None where it holds none.

    >>> frames('event: error\ndata: {"error": 1}\n\ndata: [DONE]\n')
    ['{"error": 1}']
    >>> frames("prose") is None
    True
    """
    if _FRAME_FIELD.search(text) is None:
        return None
    data = (line.strip() for line in _DATA_LINE.findall(text)[-_MAX_FRAMES:])
    return [frame for frame in data if frame and frame != "[DONE]"]


def html_title(text: str) -> str | None:
    """Return the title of an HTML page, else its first words; None where *text* is no page.

    >>> html_title("<html><head><title>502 Bad Gateway</title></head></html>")
    '502 Bad Gateway'
    """
    if _HTML_START.match(text) is None:
        return None
    title = _HTML_TITLE.search(text)
    return title[2].strip() if title else " ".join(_HTML_TAG.sub(" ", text[:4096]).split())[:500]


def _decode_at(text: str, start: int) -> tuple[object | None, int]:
    # RecursionError: nesting deeper than the decoder's stack.  ValueError: no JSON, or a number of 5,000 digits.
    try:
        return _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        pass
    if "'" not in text[start : start + 3]:
        return None, -1
    try:
        value, _ = _DECODER.raw_decode(_json_of_repr(text[start : start + MAX_REPR]))
    except (ValueError, RecursionError):
        return None, -1
    return value, len(text)


def _json_of_repr(text: str) -> str:
    return _REPR_TOKEN.sub(_json_token, text)


def _json_token(match: re.Match[str]) -> str:
    if (single := match["single"]) is not None:
        # JSON knows no \' and no \x1b; every other escape means the same in both.
        plain = single.replace("\\'", "'").replace('\\"', '"').replace('"', '\\"').replace("\\x", "\\u00")
        return f'"{plain}"'
    return match["double"] or _REPR_NAMES[match["name"]]
