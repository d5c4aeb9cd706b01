"""The provider's own sentence, made fit to show: innermost, one line, short, and without secrets."""

import re

from turnkeeper.errors import Situation
from turnkeeper_worker.failures.evidence import Evidence, Layer
from turnkeeper_worker.failures.verdict import Verdict
from turnkeeper_worker.masking import mask

MAX_DETAIL = 500
"""Characters, the ellipsis included."""
_MAX_RAW = 4_000
"""Characters that are looked at; masking makes text shorter, so more than the result is read."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff]+")
# Ids of a conversation's items; without a digit it is a word such as `call_limit`.
_ITEM_ID = re.compile(r"\b(call|rs|ws|fc|msg|ig|mcp|ci|fs|toolu|tooluse)_(?=[A-Za-z_]{0,64}\d)\w{1,200}")

REPLAY_MARKS = (
    ("no tool output found", "function_call_output_missing"),
    ("no tool call found", "function_call_missing"),
    ("web_search_call", "web_search_reasoning_missing"),
    ("required reasoning item", "reasoning_missing"),
    ("required following item", "following_item_missing"),
)
"""What a refused history lacks → a mark that logs can be searched by."""


def detail_of(evidence: Evidence, verdict: Verdict) -> str | None:
    """Return the sentence to show beside our own copy, or None where the failure had nothing to say."""
    sentence = clean(_sentence(evidence))
    if verdict.situation is Situation.CANCELLED:
        return None
    if verdict.situation is Situation.REPLAY:
        sentence = _with_mark(_ITEM_ID.sub(r"\1_***", sentence), evidence.text)
    return shorten(sentence) or None


def clean(text: str) -> str:
    r"""Return *text* on one line, masked.

    >>> clean("one\n  two")
    'one two'
    """
    if len(text) > _MAX_RAW:
        # A secret that the cut splits would no longer be known as one, so its rest goes too.
        text = text[:_MAX_RAW].rpartition(" ")[0]
    return mask(" ".join(_CONTROL.sub(" ", text).split()))


def shorten(text: str) -> str:
    """Return at most `MAX_DETAIL` characters of *text*.

    >>> len(shorten("a" * 600))
    500
    """
    return text if len(text) <= MAX_DETAIL else text[: MAX_DETAIL - 1] + "…"


def _sentence(evidence: Evidence) -> str:
    inner_first = evidence.layers[::-1]
    for layer in inner_first:
        if layer.curated and layer.sentence:
            return layer.sentence
    return _finish(inner_first) or _spoken(inner_first) or _code(inner_first) or _class(evidence)


def _finish(layers: tuple[Layer, ...]) -> str:
    codes = (code for layer in layers for code in layer.codes if code.startswith("finish:"))
    return next((f"finish reason: {code.removeprefix('finish:')}" for code in codes), "")


def _spoken(layers: tuple[Layer, ...]) -> str:
    return next((layer.sentence for layer in layers if layer.sentence), "")


def _code(layers: tuple[Layer, ...]) -> str:
    return next((code for layer in layers if layer.fields for code in layer.codes), "")


def _class(evidence: Evidence) -> str:
    """Return the class of an exception without text, such as httpx's ReadError."""
    return next((fact.names[0] for fact in evidence.failure.exceptions if fact.names), "")


def _with_mark(sentence: str, text: str) -> str:
    mark = next((mark for words, mark in REPLAY_MARKS if words in text), None)
    return f"{shorten(sentence)[: MAX_DETAIL - 60]} (match={mark})" if mark else sentence
