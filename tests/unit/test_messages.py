"""The normal form of what is said: it comes back from JSON as it was, and refuses what it does not know."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from turnkeeper.messages import (
    Image,
    Message,
    Part,
    Parts,
    Reasoning,
    Refusal,
    Text,
    ToolCall,
    ToolResult,
    WebSearch,
)

words = st.text(st.characters(exclude_categories=["Cs"]))
parts = st.one_of(
    st.builds(Text, text=words),
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


@pytest.mark.parametrize(
    "part",
    [
        pytest.param({"type": "text", "text": "Hello", "colour": "red"}, id="a field that it does not know"),
        pytest.param({"type": "video", "url": "https://example.org/"}, id="a part that it does not know"),
        pytest.param({"text": "Hello"}, id="a part that does not say what it is"),
        pytest.param({"type": "tool_call", "call_id": "call_1"}, id="half a tool call"),
    ],
)
def test_what_has_no_place_in_the_normal_form_is_refused(part: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Parts.validate_python([part])


def test_what_was_said_cannot_be_changed() -> None:
    text = Text(text="Hello")

    with pytest.raises(ValidationError, match="frozen"):
        text.text = "Goodbye"  # type: ignore[misc]  # that is the point
