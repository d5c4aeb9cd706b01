"""The normal form of what is said: it comes back as it was, strict to producers, patient with later releases."""

import json
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from turnkeeper.events import TurnCommitted, read_event
from turnkeeper.exceptions import InvalidRequest
from turnkeeper.messages import (
    Citation,
    Image,
    Message,
    Part,
    Parts,
    Reasoning,
    Refusal,
    Source,
    Text,
    ToolCall,
    ToolResult,
    WebSearch,
)
from turnkeeper.requests import TurnRequest

words = st.text(st.characters(exclude_categories=["Cs"]))
citations = st.builds(
    Citation,
    url=words,
    title=st.none() | words,
    quote=st.none() | words,
    start=st.none() | st.integers(0, 9),
    end=st.none() | st.integers(0, 9),
)
parts = st.one_of(
    st.builds(Text, text=words, citations=st.lists(citations, max_size=2).map(tuple)),
    st.builds(Image, url=words),
    st.builds(Reasoning, text=words, id=st.none() | words, encrypted=st.none() | words),
    st.builds(ToolCall, call_id=words, name=words, arguments=words),
    st.builds(ToolResult, call_id=words, output=words, is_error=st.booleans()),
    st.builds(WebSearch, id=st.none() | words, action=st.none() | st.dictionaries(words, words | st.integers())),
    st.builds(Refusal, text=words),
)


@given(st.lists(parts, max_size=5).map(tuple))
def test_parts_come_back_from_their_stored_form(said: tuple[Part, ...]) -> None:
    stored = Parts.dump_python(said, mode="json")

    assert Parts.validate_python(stored) == said


@given(st.builds(Message, role=st.sampled_from(["user", "assistant"]), parts=st.lists(parts).map(tuple)))
def test_a_message_comes_back_from_json(message: Message) -> None:
    assert Message.model_validate_json(message.model_dump_json()) == message


def test_the_text_of_a_message_is_its_words_and_its_refusal() -> None:
    message = Message(
        role="assistant",
        parts=(
            Reasoning(text="Hm"),
            Text(text="Rivers "),
            ToolCall(call_id="call_1", name="look", arguments="{}"),
            Refusal(text="are secret."),
        ),
    )

    assert message.text == "Rivers are secret."


def test_words_that_rest_on_no_page_are_written_down_as_they_always_were() -> None:
    assert Parts.dump_python((Text(text="Hello"),), mode="json") == [{"type": "text", "text": "Hello"}]


@pytest.mark.parametrize(
    "part",
    [
        pytest.param({"text": "Hello"}, id="a part that does not say what it is"),
        pytest.param({"type": ["text"], "text": "Hello"}, id="a part whose type is none"),
        pytest.param({"type": "tool_call", "call_id": "call_1"}, id="half a tool call"),
        pytest.param("Hello", id="no part"),
    ],
)
def test_what_has_no_place_in_the_normal_form_is_refused(part: object) -> None:
    with pytest.raises(ValidationError):
        Parts.validate_python([part])


LATER: list[dict[str, Any]] = [
    {"type": "text", "text": "Hi", "mood": "calm", "citations": [{"url": "https://example.org/", "rank": 1}]},
    {"type": "video", "url": "https://example.org/"},
    {"type": "web_search", "id": "ws_1", "sources": [{"url": "https://example.org/", "rank": 1}]},
]
KNOWN = (
    Text(text="Hi", citations=(Citation(url="https://example.org/"),)),
    WebSearch(id="ws_1", sources=(Source(url="https://example.org/"),)),
)


class TestLaterReleases:
    """While a release is rolled out, its predecessor reads what it writes."""

    def test_stored_parts_lose_what_is_not_known_yet(self) -> None:
        assert Parts.validate_python(LATER) == KNOWN

    def test_messages_in_events_lose_what_is_not_known_yet(self) -> None:
        message = {"role": "assistant", "parts": LATER, "language": "en"}
        event = TurnCommitted(turn_id=uuid4(), epoch=1, messages=()).model_dump(mode="json")

        read = read_event("1-0", json.dumps(event | {"messages": [message]}))

        assert isinstance(read, TurnCommitted)
        assert read.messages == (Message(role="assistant", parts=KNOWN),)

    @pytest.mark.parametrize("part", LATER)
    def test_a_producer_hears_of_it(self, part: dict[str, Any]) -> None:
        with pytest.raises(InvalidRequest, match=r"parts\.0"):
            TurnRequest.parse({"parts": [part]})

    def test_a_producer_hears_which_field_there_is_not(self) -> None:
        with pytest.raises(InvalidRequest, match=r"parts\.0\.Text\.mood: Extra inputs are not permitted"):
            TurnRequest.parse({"parts": [{"type": "text", "text": "Hi", "mood": "calm"}]})

    def test_code_that_writes_a_part_hears_of_it(self) -> None:
        with pytest.raises(ValidationError, match="mood"):
            Text(text="Hi", mood="calm")  # type: ignore[call-arg]  # that is the point


def test_what_was_said_cannot_be_changed() -> None:
    text = Text(text="Hello")

    with pytest.raises(ValidationError, match="frozen"):
        text.text = "Goodbye"  # type: ignore[misc]  # that is the point
