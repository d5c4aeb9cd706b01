"""Phrases and how they are looked for: whole words in lower-cased text, without regular expressions.

A phrase is written as it reads.  ` … ` stands for anything in between, at most `GAP` characters of it;
`*` at the end of a part leaves the last word open, so that `rate limit*` also finds "rate limited".
Plain `str.find` keeps the tables readable and the cost linear: no text can make it backtrack.
"""

import re
from collections.abc import Iterable
from typing import TypeAlias

Part: TypeAlias = tuple[str, bool]
"""The literal, and whether its last word is open."""
Phrase: TypeAlias = tuple[str, tuple[Part, ...]]
"""The literal of the first part, without which no more need be asked, and all parts.

A plain tuple, because a named one takes twice as long to unpack, 600 times per failure.
"""

GAP = 120
"""Characters that ` … ` may stand for: about one clause, and never past the end of a sentence."""
_TRIES = 8
"""Places where a phrase may begin before it is given up; bounds the cost of hostile repetition."""
_PLACES = 32
"""Places at which a literal may stand inside longer words before it is given up; bounds the same."""
_WORD = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_")
_WORDS = re.compile(r"[a-z0-9_]++")
_START = 5
"""So many letters of its first word decide whether a phrase is looked for at all."""


def phrases(written: str) -> tuple[Phrase, ...]:
    """Compile phrases as they are written in a table: one after another, with `|` or a new line between them.

    >>> phrases("model … not found")
    (('model', (('model', False), ('not found', False))),)
    """
    separate = (phrase.strip() for phrase in written.replace("\n", "|").split("|"))
    return tuple(_phrase(phrase) for phrase in separate if phrase)


def starts_in(text: str) -> frozenset[str]:
    """Return how the words of the lower-cased *text* begin, and the empty start, which every text has.

    >>> sorted(starts_in("no such model"))
    ['', 'model', 'no', 'such']
    """
    return frozenset(["", *[word[:_START] for word in _WORDS.findall(text)]])


def start_of(phrase: Phrase) -> str:
    """Return the start without which *phrase* cannot be found; empty where any text may hold it.

    >>> [start_of(one) for one in phrases("model … not found | 5* | (no")]
    ['model', '', '']
    """
    lead, parts = phrase
    first = _WORDS.match(lead)
    if first is None:
        return ""
    is_open = parts[0][1] and first.end() == len(lead)
    return "" if is_open and len(first[0]) < _START else first[0][:_START]


def first_found(text: str, wanted: Iterable[Phrase]) -> str | None:
    """Return the words of the lower-cased *text* in which the first matching phrase was found, or None.

    >>> first_found("the model gpt-9 was not found here", phrases("model … not found"))
    'model gpt-9 was not found'
    """
    for lead, parts in wanted:
        # Most phrases are absent: one substring test rejects them before any word is looked at.
        if lead in text and (span := _span(text, parts)):
            return text[span[0] : span[1]]
    return None


def _phrase(written: str) -> Phrase:
    parts = tuple((part.rstrip("*"), part.endswith("*")) for part in written.split(" … "))
    return parts[0][0], parts


def _span(text: str, parts: tuple[Part, ...]) -> tuple[int, int] | None:
    begin = 0
    for _ in range(_TRIES):
        start, end = _find(text, parts[0], begin, len(text))
        if start < 0:
            return None
        last = _rest(text, parts[1:], end)
        if last >= 0:
            return start, last
        begin = start + 1
    return None


def _rest(text: str, parts: tuple[Part, ...], end: int) -> int:
    for part in parts:
        limit = end + GAP + len(part[0])
        stop = text.find(". ", end, limit)
        start, end = _find(text, part, end, limit if stop < 0 else stop)
        if start < 0:
            return -1
    return end


def _find(text: str, part: Part, begin: int, limit: int) -> tuple[int, int]:
    literal, is_open = part
    end = begin
    for _ in range(_PLACES):
        start = text.find(literal, end, limit)
        end = start + len(literal)
        if start < 0:
            break
        if not _inside_word(text, start) and (is_open or not _inside_word(text, end)):
            return start, end
    return -1, -1


def _inside_word(text: str, at: int) -> bool:
    return 0 < at < len(text) and text[at - 1] in _WORD and text[at] in _WORD
