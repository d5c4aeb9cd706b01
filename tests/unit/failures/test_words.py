"""Phrases: whole words, gaps within a sentence, open ends."""

# ruff: noqa: E501 - a row of a table is a line, whatever a provider had to say

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper_worker.failures.gates import PhraseRule
from turnkeeper_worker.failures.phrasebook import PHRASES
from turnkeeper_worker.failures.transport import NETWORK
from turnkeeper_worker.failures.words import GAP, first_found, phrases


@pytest.mark.parametrize(
    ("phrase", "text", "found"),
    [
        pytest.param("eof", "unexpected eof", "eof", id="a word at the end"),
        pytest.param("eof", "eof occurred", "eof", id="a word at the beginning"),
        pytest.param("eof", "(eof)", "eof", id="a word between signs"),
        pytest.param("eof", "unknown user geoffrey", None, id="not inside a word"),
        pytest.param("eof", "eof_marker", None, id="nor joined by an underscore"),
        pytest.param("eof", "geoffrey at eof", "eof", id="a later place counts"),
        pytest.param("rate limit*", "rate limited", "rate limit", id="an open end"),
        pytest.param("rate limit*", "corporate limits", None, id="an open end has a closed beginning"),
        pytest.param("model … not found", "model gpt-4.1 was not found", "model gpt-4.1 was not found", id="a gap"),
        pytest.param("model … not found", "model not found", "model not found", id="an empty gap"),
        pytest.param("model … not found", "not found: model", None, id="the order counts"),
        pytest.param("model … not found", "the model is up. key not found", None, id="a gap ends with the sentence"),
        pytest.param("model … not found", "a model. the model x not found", "model x not found", id="a second try"),
        pytest.param("a … b … c", "a 1 b 2 c", "a 1 b 2 c", id="two gaps"),
        pytest.param("exceed* … limit", "exceeded the limit", "exceeded the limit", id="an open end before a gap"),
        pytest.param("model … gone", "model" + " x" * (GAP // 2 - 2) + " gone", "model" + " x" * (GAP // 2 - 2) + " gone", id="just within the gap"),
        pytest.param("model … gone", "model" + " x" * (GAP // 2 + 2) + " gone", None, id="beyond the gap"),
        pytest.param("过载", "服务过载了", "过载", id="a script without spaces"),
    ],
)  # fmt: skip
def test_a_phrase(phrase: str, text: str, found: str | None) -> None:
    assert first_found(text, phrases(phrase)) == found


def test_the_first_phrase_of_the_table_decides() -> None:
    assert first_found("one two", phrases("two | one")) == "two"


def test_lines_and_bars_separate_phrases() -> None:
    assert phrases("a | b\n  c\n") == phrases("a|b|c")


@given(
    phrase=st.lists(st.from_regex(r"[ab]{1,3}\*?", fullmatch=True), min_size=1, max_size=3),
    text=st.text("ab. _", max_size=60),
)
def test_what_is_found_holds_every_part_in_order(phrase: list[str], text: str) -> None:
    found = first_found(text, phrases(" … ".join(phrase)))

    if found is not None:
        assert found in text
        at = 0
        for part in phrase:
            at = found.index(part.rstrip("*"), at) + len(part.rstrip("*"))


@pytest.mark.parametrize("table", [PHRASES, NETWORK], ids=["phrasebook", "transport"])
def test_every_phrase_of_the_tables_can_be_found(table: tuple[PhraseRule, ...]) -> None:
    for rule in table:
        for phrase in rule.phrases:
            _, parts = phrase
            for literal, _ in parts:
                assert literal == literal.lower().strip()
                assert not set("*\"'`") & set(literal), literal
            sample = " ".join(literal for literal, _ in parts)
            assert first_found(sample, [phrase]) == sample
