"""The pages that an answer rests on: read from any API, and never given back to one."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.messages import Citation, Message, Part, Parts, Text
from turnkeeper_worker.providers import anthropic_messages, openai_chat, openai_responses
from turnkeeper_worker.providers.fields import url_citations
from turnkeeper_worker.providers.interface import Call
from turnkeeper_worker.providers.openai_responses import read_items

URL = "https://example.org/"
NOTE: dict[str, Any] = {"type": "url_citation", "url": URL, "title": "Rivers", "start_index": 2, "end_index": 6}
CITATION = Citation(url=URL, title="Rivers", start=2, end=6)


def read(annotations: object, text: str = "A wide one") -> tuple[Part, ...]:
    """Return the parts of a Responses message with *annotations*."""
    content = {"type": "output_text", "text": text, "annotations": annotations}
    return read_items([{"type": "message", "content": [content]}])


class TestPages:
    @pytest.mark.parametrize(
        ("annotations", "citations"),
        [
            pytest.param([NOTE], (CITATION,), id="a page"),
            pytest.param(
                [NOTE, NOTE | {"url": "https://b.example/"}, NOTE], (CITATION, "https://b.example/"), id="two"
            ),
            pytest.param(
                [NOTE | {"type": "file_citation", "url": "f"}, NOTE], (CITATION,), id="a file and a page"
            ),
            pytest.param([], (), id="none"),
            pytest.param(None, (), id="no list"),
            pytest.param(
                [NOTE | {"url": 7}, NOTE | {"url": ""}, 7, {"type": "url_citation"}], (), id="no address"
            ),
        ],
    )
    def test_pages_are_kept_and_other_notes_are_not(self, annotations: object, citations: tuple[Any, ...]) -> None:
        expected = tuple(
            CITATION.model_copy(update={"url": one}) if isinstance(one, str) else one for one in citations
        )

        assert read(annotations) == (Text(text="A wide one", citations=expected),)

    @pytest.mark.parametrize(
        ("start", "end"),
        [(6, 2), (2, 2), (-1, 2), (2, 11), (2, None), (None, 6), ("2", "6"), (2.0, 6.0), (10**30, 10**31)],
    )
    def test_a_place_outside_of_the_words_is_none(self, start: object, end: object) -> None:
        assert read([NOTE | {"start_index": start, "end_index": end}]) == (
            Text(text="A wide one", citations=(Citation(url=URL, title="Rivers"),)),
        )

    def test_places_are_counted_in_characters(self) -> None:
        (part,) = read([NOTE | {"start_index": 0, "end_index": 1}], text="𝄞")

        assert isinstance(part, Text)
        assert (part.citations[0].start, part.citations[0].end) == (0, 1)

    def test_what_a_server_says_of_the_page_is_a_quote(self) -> None:
        page = {"url": URL, "content": "Rivers are wide."}

        assert url_citations([{"type": "url_citation", "url_citation": page}], "") == (
            Citation(url=URL, quote="Rivers are wide."),
        )

    def test_what_postgresql_cannot_store_is_replaced(self) -> None:
        (found,) = url_citations([NOTE | {"url": "a\0b", "title": "\ud800"}], "A wide one")

        assert (found.url, found.title) == ("a\ufffdb", "?")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from([*NOTE, "content"]), inner),
    max_leaves=5,
)
notes = st.dictionaries(st.sampled_from([*NOTE, "url_citation", "content", "cited_text"]), anything).map(
    lambda note: note | {"type": "url_citation"}
)


@given(st.lists(notes | anything), st.text(max_size=9))
def test_whatever_is_noted_what_is_kept_can_be_stored(annotations: list[object], text: str) -> None:
    said = (Text(text="Hi", citations=url_citations(annotations, text)),)

    stored = json.dumps(Parts.dump_python(said, mode="json"), ensure_ascii=False).encode()

    assert b"\\u0000" not in stored
    assert Parts.validate_python(json.loads(stored)) == said
    for one in said[0].citations:
        assert one.start is None or text[one.start : one.end]


@pytest.mark.parametrize("continues", [False, True])
def test_the_words_go_back_and_not_the_pages(continues: bool) -> None:
    asked = Message(role="user", parts=(Text(text="Rivers?"),))
    said = Message(role="assistant", parts=(Text(text="Wide", citations=(CITATION,)),))
    call = Call(request_id="r", model="m", history=(asked, said), continues=continues)

    bodies = [
        openai_responses.request_body(call, store=True),
        openai_chat.request_body(call),
        anthropic_messages.request_body(call, max_output_tokens=1),
    ]

    for sent in map(json.dumps, bodies):
        assert "Wide" in sent
        assert URL not in sent
